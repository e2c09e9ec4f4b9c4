"""Stop a machine; a project's disk becomes its next baseline generation."""

from __future__ import annotations

from typing import TYPE_CHECKING

from agent_swarm.errors import ConflictError, SwarmError
from agent_swarm.model import Baseline, Environment, Kind, OperationKind, Status
from agent_swarm.operations import observe, recovery
from agent_swarm.operations.journal import Change

if TYPE_CHECKING:
    from agent_swarm.operations.context import Context
    from agent_swarm.providers.base import Provider

STOPPABLE = frozenset({Status.RUNNING, Status.FAILED})


def stop(context: Context, kind: Kind, name: str, *, force: bool = False) -> Environment:
    """The machine, shut down. A stopped one is returned as it is.

    A project that ran gets its next baseline generation from the disk that it leaves; existing tasks keep
    theirs. A project whose set-up had failed becomes an ordinary one: you stopped it when it was repaired.
    """
    recovery.recover(context)
    named = context.registry.environment(kind, name)
    with context.changing(named, force=force) as current:
        environment = observe.observe(context, [current])[0]
        if environment.status is Status.STOPPED:
            return environment
        if environment.status not in STOPPABLE:
            message = f"{environment.label} is {environment.status} and cannot be stopped"
            raise ConflictError(message, details=environment.reason, hint="Run `agent-swarm doctor`.")
        provider = context.provider(environment.provider)
        with Change.begin(context, environment, OperationKind.STOP) as change:
            with change.step("stop machine"):
                context.disconnect(environment)
                provider.stop(environment.handle, timeout_s=context.config.timeouts.stop_s)
                context.registry.set_status(environment.id, Status.STOPPED)
            if environment.kind is Kind.PROJECT:
                with change.step("capture baseline"):
                    capture_baseline(context, environment, provider, environment.handle)
            change.done(lambda: context.registry.set_status(environment.id, Status.STOPPED))
        context.publish_hosts()
    stopped = context.registry.by_id(environment.id)
    assert stopped is not None
    return stopped


def baseline(context: Context, name: str) -> Baseline:
    """The project's next baseline generation, from its disk as it is now; a running project goes on."""
    recovery.recover(context)
    named = context.registry.environment(Kind.PROJECT, name)
    with context.changing(named) as current:
        environment = observe.observe(context, [current])[0]
        if environment.status not in {Status.RUNNING, Status.STOPPED}:
            message = f"{environment.label} is {environment.status}: no baseline can be made from it"
            raise ConflictError(message, details=environment.reason)
        provider = context.provider(environment.provider)
        with Change.begin(context, environment, OperationKind.BASELINE) as change:
            with change.step("capture baseline"):
                made = capture_baseline(context, environment, provider, environment.handle)
            change.done(lambda: None)
    return made


def capture_baseline(context: Context, environment: Environment, provider: Provider, handle: str) -> Baseline:
    """Make and record the next generation. On an error, or a kill, it is not listed, and recovery discards it."""
    with context.registry.transaction():
        intended = context.registry.add_baseline(environment.id)
    try:
        made = provider.capture(handle, intended.id, context.progress)
    except BaseException as error:
        provider.discard(handle, intended.id)
        context.registry.remove_baseline(intended.id)
        if isinstance(error, SwarmError) and not error.hint:
            error.hint = f"`agent-swarm project baseline {environment.name}` tries again."
        raise
    context.registry.finish_baseline(intended.id, made)
    return next(found for found in context.registry.baselines(environment.id) if found.id == intended.id)
