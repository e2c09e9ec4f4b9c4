"""Making a machine and its record: what create and fork have in common."""

from __future__ import annotations

import contextlib
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from agent_swarm import locks
from agent_swarm.errors import NotFoundError, SetupError
from agent_swarm.events import Notice
from agent_swarm.guest import cloudinit, keys
from agent_swarm.model import Environment, Image, Kind, OperationKind, Resources, Status
from agent_swarm.operations import boot, capacity, observe, recovery
from agent_swarm.operations.journal import Change
from agent_swarm.providers.base import FromImage, FromPoint, MachineSpec
from agent_swarm.registry.registry import new_environment_id

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from agent_swarm.model import BaselineId, EnvironmentId
    from agent_swarm.operations.context import Context
    from agent_swarm.providers.base import Provider


def make(
    context: Context,
    environment: Environment,
    source: FromImage | FromPoint,
    image: Image,
    *,
    parent: Environment | None,
    then: Callable[[Change, Provider, str], None] | None = None,
    still_there: Callable[[], None] = lambda: None,
    notice: str = "",
    force: bool,
) -> Environment:
    """The machine, running, and its record. On any failure nothing of it is left, but a SetupError of `then`, which
    is called with the running machine, leaves it as FAILED.

    `still_there` is called inside the transaction that writes the intent, and raises where `source` is gone.
    `notice` is told once the intent is written.
    Raises ResourceLimitError where the host cannot carry the machine, unless `force`.
    """
    provider = context.provider(environment.provider)
    # a task has the agent from its project
    install_agent = environment.kind is Kind.PROJECT and not image.has_guest_agent
    seed = cloudinit.make_seed(
        environment=environment.id,
        host_name=cloudinit.host_name(environment.name),
        authorized_key=keys.ensure_client_key(context.paths),
        install_agent=install_agent,
    )
    spec = MachineSpec(
        id=environment.id,
        kind=environment.kind,
        host_name=cloudinit.host_name(environment.name),
        source=source,
        resources=environment.resources,
        seed=seed,
    )
    observe.observe(context, context.registry.environments())  # machines that died hold no memory

    def intend() -> None:
        if not force:
            capacity.require(
                capacity.measure(context),
                context.config.limits,
                environment.resources,
                what=environment.label,
            )
        if parent is not None:
            current = context.registry.by_id(parent.id)
            if current is None or current.status is Status.DELETING:
                message = f"{parent.label} was deleted meanwhile"
                raise NotFoundError(message)
        still_there()
        context.registry.insert(environment)

    # the id is new, so nobody else can hold this lock
    with (
        locks.hold(context.paths.lock(f"{environment.id}.change"), busy=f"{environment.label} is busy"),
        _no_files_without_record(context, environment.id),
        Change.begin(context, environment, OperationKind.CREATE, intend) as change,
    ):
        change.when_undone(lambda: context.registry.remove(environment.id))
        change.undo.callback(recovery.remove_machine, context, environment)
        if notice:
            context.progress(Notice(notice))
        with change.step("make machine"):
            handle = provider.create(spec, context.progress)
            context.registry.set_handle(environment.id, handle)
        if isinstance(source, FromPoint) and source.memory:
            boot.resume(context, change, provider, handle)
        else:
            boot.bring_up(context, change, provider, handle, installs_agent=install_agent)
        if then is not None:
            try:
                then(change, provider, handle)
            except SetupError as error:
                reason = error.message
                change.failed(
                    error, lambda: context.registry.set_status(environment.id, Status.FAILED, reason=reason)
                )
                raise
        change.done(lambda: context.registry.set_status(environment.id, Status.RUNNING))
    made = context.registry.by_id(environment.id)
    assert made is not None
    return made


@contextlib.contextmanager
def _no_files_without_record(context: Context, environment: EnvironmentId) -> Iterator[None]:
    try:
        yield
    finally:
        if context.registry.by_id(environment) is None:
            recovery.forget_files(context, environment)


def new(
    kind: Kind,
    name: str,
    *,
    provider: str,
    image: Image,
    resources: Resources,
    parent: Environment | None = None,
    baseline: BaselineId | None = None,
    origin: str = "",
) -> Environment:
    """The record of a machine that is about to be made."""
    now = datetime.now(UTC)
    return Environment(
        id=new_environment_id(),
        kind=kind,
        name=name,
        provider=provider,
        handle="",
        image=image.digest,
        baseline_id=baseline,
        parent_id=parent.id if parent else None,
        resources=resources,
        status=Status.CREATING,
        endpoint=None,
        created_at=now,
        updated_at=now,
        started_at=None,
        origin=origin,
    )
