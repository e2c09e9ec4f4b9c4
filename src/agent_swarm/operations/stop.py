"""Stop a machine; a project's last state becomes its next baseline generation."""

from __future__ import annotations

from typing import TYPE_CHECKING

from agent_swarm.errors import ConflictError
from agent_swarm.events import Notice
from agent_swarm.model import Environment, Kind, OperationKind, Status
from agent_swarm.operations import observe, recovery, retention
from agent_swarm.operations.baseline import capture_cold, capture_warm, wants_memory
from agent_swarm.operations.journal import Change

if TYPE_CHECKING:
    from agent_swarm.operations.context import Context

STOPPABLE = frozenset({Status.RUNNING, Status.FAILED})


def stop(context: Context, kind: Kind, name: str, *, force: bool = False) -> Environment:
    """The machine, shut down. One that does not run is returned as it is.

    A project that ran gets its next baseline generation: with its memory, captured while it still runs, where
    the provider can, else from the disk that it leaves; existing tasks keep theirs. A project whose set-up
    had failed becomes an ordinary one: you stopped it when it was repaired.
    """
    recovery.recover(context)
    retention.tidy(context)
    named = context.registry.environment(kind, name)
    with context.changing(named, force=force) as current:
        environment = observe.observe(context, [current])[0]
        if environment.status is Status.STOPPED:
            return environment
        if environment.status is Status.SUSPENDED:
            context.progress(
                Notice(f"{environment.label} is suspended already; its next start goes on where it was")
            )
            return environment
        if environment.status not in STOPPABLE:
            message = f"{environment.label} is {environment.status} and cannot be stopped"
            raise ConflictError(message, details=environment.reason, hint="Run `agent-swarm doctor`.")
        provider = context.provider(environment.provider)
        with Change.begin(context, environment, OperationKind.STOP) as change:
            warm = None
            if environment.kind is Kind.PROJECT and wants_memory(context, provider):
                with change.step("capture baseline"):
                    warm = capture_warm(context, environment, provider, environment.handle)
            with change.step("stop machine"):
                context.disconnect(environment)
                provider.stop(environment.handle, timeout_s=context.config.timeouts.stop_s)
                context.registry.set_status(environment.id, Status.STOPPED)
            if environment.kind is Kind.PROJECT and warm is None:
                with change.step("capture baseline"):
                    capture_cold(context, environment, provider, environment.handle)
            change.done(lambda: context.registry.set_status(environment.id, Status.STOPPED))
        context.publish_hosts()
    stopped = context.registry.by_id(environment.id)
    assert stopped is not None
    return stopped
