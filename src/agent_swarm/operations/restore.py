"""Put a task back to one of its checkpoints."""

from __future__ import annotations

from typing import TYPE_CHECKING

from agent_swarm.errors import ConflictError, NotFoundError
from agent_swarm.model import Checkpoint, Environment, Kind, OperationKind, Status
from agent_swarm.operations import boot, capacity, checkpoint, observe, points, recovery, retention
from agent_swarm.operations.journal import Change

if TYPE_CHECKING:
    from agent_swarm.operations.context import Context
    from agent_swarm.providers.base import Provider


def restore(
    context: Context, task: str, name: str | None = None, *, force: bool = False, cold: bool = False
) -> Environment:
    """The task as it was at a checkpoint. `name` None: the newest that was asked for, not an automatic one.

    From a checkpoint with memory it goes on where it was, also where it was stopped meanwhile; from one without,
    or with `cold`, it boots if it ran. The present state becomes an automatic checkpoint first (setting
    checkpoints.automatic), and when anything fails the task is as it was. Refused with BusyError while
    sessions use it, unless `force`: they end. `force` also passes over the host's limits.
    """
    recovery.recover(context)
    retention.tidy(context)
    named = context.registry.environment(Kind.TASK, task)
    with context.changing(named, force=force) as current:
        environment = observe.observe(context, [current])[0]
        target = _chosen(context, environment, name)
        provider = context.provider(environment.provider)
        checkpoint.require_snapshots(provider)
        checkpoint.require_capturable(environment)
        _require_no_obstacle(provider, environment, target, cold=cold)
        _restore(context, environment, provider, target, force=force, cold=cold)
        context.publish_hosts()
    restored = context.registry.by_id(environment.id)
    assert restored is not None
    return restored


def _restore(
    context: Context,
    environment: Environment,
    provider: Provider,
    target: Checkpoint,
    *,
    force: bool,
    cold: bool,
) -> None:
    registry = context.registry
    ran = environment.status is Status.RUNNING
    resumes = target.memory and not cold
    saves = context.config.checkpoints.automatic
    observe.observe(context, [found for found in registry.environments() if found.id != environment.id])

    def intend() -> None:
        if resumes and not ran and not force:
            capacity.require(
                capacity.measure(context),
                context.config.limits,
                environment.resources,
                what=environment.label,
            )

    with Change.begin(context, environment, OperationKind.RESTORE, intend) as change:
        if saves:
            with change.step(points.SAVE):
                intended = registry.add_checkpoint(
                    environment.id,
                    points.free_name(context, environment.id, "before-restore-"),
                    memory=ran and points.saves_memory(provider),
                    automatic=True,
                )
                saved = points.capture_checkpoint(context, change, provider, intended)
                with registry.transaction():
                    registry.finish_checkpoint(saved.id, saved.handle)
        undoing = _Undoing(change, provider, starts=ran and saves)
        change.undo.callback(undoing)
        change.when_undone(lambda: registry.set_status(environment.id, undoing.status))

        def begin() -> None:
            registry.set_status(environment.id, Status.CREATING)
            if not saves:  # there is no way back: recovery goes forward
                registry.set_checkpoint(environment.id, target.id)

        with change.step(points.RESTORE, begin):
            context.disconnect(environment)
            assert provider.snapshots is not None
            provider.snapshots.restore(environment.handle, target.handle, context.progress)
            if target.memory and cold:
                assert provider.suspend is not None
                provider.suspend.forget(environment.handle)
        _go_on(change, provider, resumes=resumes, starts=ran)

        def write() -> None:
            registry.set_checkpoint(environment.id, target.id)
            registry.set_status(environment.id, Status.RUNNING if resumes or ran else Status.STOPPED)

        change.done(write)


class _Undoing:
    """Puts the task back to where its record says that it descends from: what was saved, or, where nothing
    was, the target itself. With `starts` it is started there. `status` is what it ends as."""

    def __init__(self, change: Change, provider: Provider, *, starts: bool) -> None:
        self._change = change
        self._provider = provider
        self._starts = starts
        self.status = change.environment.status

    def __call__(self) -> None:
        context, environment = self._change.context, self._change.environment
        point = points.put_back(context, environment, self._change.at)
        if point is None:
            return
        self.status = Status.SUSPENDED if point.memory else Status.STOPPED
        if self._starts:
            _go_on(self._change, self._provider, resumes=point.memory, starts=True)
            self.status = Status.RUNNING


def _go_on(change: Change, provider: Provider, *, resumes: bool, starts: bool) -> None:
    if resumes:
        boot.resume(change.context, change, provider, change.environment.handle)
    elif starts:
        boot.bring_up(change.context, change, provider, change.environment.handle)


def _chosen(context: Context, environment: Environment, name: str | None) -> Checkpoint:
    if name is not None:
        return checkpoint.find(context, environment, name)
    found = [
        entry for entry in context.registry.checkpoints(environment.id) if entry.ready and not entry.automatic
    ]
    if not found:
        message = f"{environment.label} has no checkpoint to go back to"
        raise NotFoundError(
            message, hint=f"`agent-swarm checkpoint {environment.name}` makes one of its present state."
        )
    return found[-1]


def _require_no_obstacle(
    provider: Provider, environment: Environment, target: Checkpoint, *, cold: bool
) -> None:
    if not target.memory:
        return
    if cold:
        if provider.suspend is None:
            message = f"the provider {provider.name} cannot drop the memory of checkpoint {target.name}"
            raise ConflictError(message, hint="Leave out --cold.")
        return
    why_not = points.obstacle(provider, target.handle, environment.resources)
    if why_not:
        message = f"{environment.label} cannot go on from the memory of checkpoint {target.name}: {why_not}"
        raise ConflictError(
            message,
            hint=f"`agent-swarm restore --cold {environment.name} {target.name}` restores its disk alone.",
        )
