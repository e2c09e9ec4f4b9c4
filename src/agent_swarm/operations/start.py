"""Start a machine that is stopped or suspended."""

from __future__ import annotations

from typing import TYPE_CHECKING

from agent_swarm.errors import ConflictError
from agent_swarm.model import Environment, Kind, OperationKind, Status
from agent_swarm.operations import boot, capacity, observe, points, recovery, retention
from agent_swarm.operations.journal import Change

if TYPE_CHECKING:
    from agent_swarm.operations.context import Context
    from agent_swarm.providers.base import Provider

STARTABLE = frozenset({Status.STOPPED, Status.SUSPENDED})


def start(context: Context, kind: Kind, name: str, *, force: bool = False, cold: bool = False) -> Environment:
    """The machine, running and answering. A running one is returned as it is; a suspended one goes on where it
    was, or, with `cold`, boots from its disk and loses its memory.

    When it does not come up it is what it was before, and BootError is raised; once `cold` has dropped its
    memory, it is stopped.
    """
    recovery.recover(context)
    retention.tidy(context)
    named = context.registry.environment(kind, name)
    with context.changing(named) as current:
        environment = observe.observe(context, [current])[0]
        if environment.status is Status.RUNNING:
            return environment
        if environment.status not in STARTABLE:
            message = f"{environment.label} is {environment.status} and cannot be started"
            raise ConflictError(
                message, details=environment.reason, hint="Delete it, or repair what is named above."
            )
        provider = context.provider(environment.provider)
        resumed = environment.status is Status.SUSPENDED and not cold
        if resumed:
            _require_no_obstacle(provider, environment)
        observe.observe(
            context, [found for found in context.registry.environments() if found.id != environment.id]
        )

        def intend() -> None:
            if not force:
                figures = capacity.measure(context)
                capacity.require(
                    figures, context.config.limits, environment.resources, what=environment.label
                )
            context.registry.set_status(environment.id, Status.CREATING)

        with Change.begin(context, environment, OperationKind.START, intend) as change:
            before = environment.status if resumed else Status.STOPPED
            change.when_undone(lambda: context.registry.set_status(environment.id, before))
            if resumed:
                change.undo.callback(points.suspend_again, context, environment)
                boot.resume(context, change, provider, environment.handle)
            else:
                if provider.suspend is not None and environment.status is Status.SUSPENDED:
                    with change.step("drop saved memory"):
                        provider.suspend.forget(environment.handle)
                change.undo.callback(provider.stop, environment.handle, force=True)
                boot.bring_up(context, change, provider, environment.handle)
            change.done(lambda: context.registry.set_status(environment.id, Status.RUNNING))
    started = context.registry.by_id(environment.id)
    assert started is not None
    return started


def _require_no_obstacle(provider: Provider, environment: Environment) -> None:
    why_not = provider.suspend.obstacle(environment.handle) if provider.suspend is not None else ""
    if why_not:
        prefix = "project " if environment.kind is Kind.PROJECT else ""
        message = f"{environment.label} cannot go on from its saved memory: {why_not}"
        raise ConflictError(
            message,
            hint=f"`agent-swarm {prefix}start --cold {environment.name}` boots it from its disk; what was in its "
            "memory is lost.",
        )
