"""Make the next baseline generation of a project, which its next tasks are cloned from."""

from __future__ import annotations

from typing import TYPE_CHECKING

from agent_swarm.errors import ConflictError, SwarmError
from agent_swarm.events import Notice
from agent_swarm.model import Baseline, Environment, Kind, OperationKind, Status
from agent_swarm.operations import observe, points, recovery
from agent_swarm.operations.journal import Change

if TYPE_CHECKING:
    from agent_swarm.operations.context import Context
    from agent_swarm.providers.base import Provider


def baseline(context: Context, name: str) -> Baseline:
    """The project's next baseline generation, from its state as it is now; a running project goes on."""
    recovery.recover(context)
    named = context.registry.environment(Kind.PROJECT, name)
    with context.changing(named) as current:
        environment = observe.observe(context, [current])[0]
        if environment.status not in {Status.RUNNING, Status.STOPPED}:
            message = f"{environment.label} is {environment.status}: no baseline can be made from it"
            hint = f"`agent-swarm project start {name}` goes on where it was."
            raise ConflictError(
                message,
                details=environment.reason,
                hint=hint if environment.status is Status.SUSPENDED else "",
            )
        provider = context.provider(environment.provider)
        with Change.begin(context, environment, OperationKind.BASELINE) as change:
            with change.step("capture baseline"):
                made = None
                if environment.status is Status.RUNNING:
                    made = capture_warm(context, environment, provider, environment.handle)
                if made is None:
                    made = capture_cold(context, environment, provider, environment.handle)
            change.done(lambda: None)
    return made


def wants_memory(context: Context, provider: Provider) -> bool:
    """Whether baselines of running projects of this provider shall hold memory, and can."""
    return context.config.baselines.memory and points.saves_memory(provider)


def capture_warm(
    context: Context, environment: Environment, provider: Provider, handle: str
) -> Baseline | None:
    """The next generation, disk and memory, of a project that runs. None where that is not wanted, not possible,
    or failed: a Notice says why, and the disk alone will do."""
    if not wants_memory(context, provider):
        return None
    try:
        return _capture(context, environment, provider, handle, memory=True)
    except SwarmError as error:
        said = " ".join(filter(None, [error.message, error.details]))
        context.progress(
            Notice(f"the baseline of {environment.label} holds no memory, its tasks will boot: {said}")
        )
        return None


def capture_cold(context: Context, environment: Environment, provider: Provider, handle: str) -> Baseline:
    """The next generation, of the disk alone."""
    return _capture(context, environment, provider, handle, memory=False)


def _capture(
    context: Context, environment: Environment, provider: Provider, handle: str, *, memory: bool
) -> Baseline:
    """Make and record it. On an error, or a kill, it is not listed, and recovery discards it."""
    with context.registry.transaction():
        intended = context.registry.add_baseline(environment.id, memory=memory)
    try:
        made = provider.capture(handle, intended.id, context.progress, memory=memory)
    except BaseException as error:
        provider.discard(handle, intended.id)
        context.registry.remove_baseline(intended.id)
        if isinstance(error, SwarmError) and not error.hint:
            error.hint = f"`agent-swarm project baseline {environment.name}` tries again."
        raise
    context.registry.finish_baseline(intended.id, made)
    return next(found for found in context.registry.baselines(environment.id) if found.id == intended.id)
