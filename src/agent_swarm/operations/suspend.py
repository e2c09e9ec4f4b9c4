"""Put a running machine's memory on the disk, and free the host's."""

from __future__ import annotations

from typing import TYPE_CHECKING

from agent_swarm.errors import ConflictError
from agent_swarm.model import Environment, OperationKind, Status
from agent_swarm.operations import observe, recovery, retention
from agent_swarm.operations.journal import Change

if TYPE_CHECKING:
    from agent_swarm.model import Kind
    from agent_swarm.operations.context import Context


def suspend(context: Context, kind: Kind, name: str, *, force: bool = False) -> Environment:
    """The machine, suspended: its next start goes on where it was. A suspended one is returned as it is.

    A machine in use is refused unless `force`: its sessions end. When it fails the machine runs on.
    """
    recovery.recover(context)
    retention.tidy(context)
    named = context.registry.environment(kind, name)
    with context.changing(named, force=force) as current:
        environment = observe.observe(context, [current])[0]
        if environment.status is Status.SUSPENDED:
            return environment
        if environment.status is not Status.RUNNING:
            message = f"{environment.label} is {environment.status} and cannot be suspended"
            raise ConflictError(
                message, details=environment.reason, hint="Only what runs has a memory to save."
            )
        provider = context.provider(environment.provider)
        facet = provider.suspend
        if facet is None:
            message = f"the provider {provider.name} cannot suspend machines"
            raise ConflictError(message, hint="Leave out --suspend: the disk is kept.")
        with Change.begin(context, environment, OperationKind.SUSPEND) as change:
            with change.step("suspend machine"):
                context.disconnect(environment)
                facet.suspend(environment.handle, context.progress)
            change.done(lambda: context.registry.set_status(environment.id, Status.SUSPENDED))
        context.publish_hosts()
    suspended = context.registry.by_id(environment.id)
    assert suspended is not None
    return suspended
