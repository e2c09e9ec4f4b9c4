"""Start a stopped machine."""

from __future__ import annotations

from typing import TYPE_CHECKING

from agent_swarm.errors import ConflictError
from agent_swarm.model import Environment, OperationKind, Status
from agent_swarm.operations import capacity, observe, recovery
from agent_swarm.operations.boot import bring_up
from agent_swarm.operations.journal import Change

if TYPE_CHECKING:
    from agent_swarm.model import Kind
    from agent_swarm.operations.context import Context


def start(context: Context, kind: Kind, name: str, *, force: bool = False) -> Environment:
    """The machine, running and answering. A running one is returned as it is.

    When it does not come up it is stopped again, its disk as it was, and BootError is raised.
    """
    recovery.recover(context)
    named = context.registry.environment(kind, name)
    with context.changing(named) as current:
        environment = observe.observe(context, [current])[0]
        if environment.status is Status.RUNNING:
            return environment
        if environment.status is not Status.STOPPED:
            message = f"{environment.label} is {environment.status} and cannot be started"
            raise ConflictError(
                message, details=environment.reason, hint="Delete it, or repair what is named above."
            )
        provider = context.provider(environment.provider)
        others = [found for found in context.registry.environments() if found.id != environment.id]
        observe.observe(context, others)

        def intend() -> None:
            if not force:
                figures = capacity.measure(context)
                capacity.require(
                    figures, context.config.limits, environment.resources, what=environment.label
                )
            context.registry.set_status(environment.id, Status.CREATING)

        with Change.begin(context, environment, OperationKind.START, intend) as change:
            change.when_undone(lambda: context.registry.set_status(environment.id, Status.STOPPED))
            change.undo.callback(provider.stop, environment.handle, force=True)
            bring_up(context, change, provider, environment.handle)
            change.done(lambda: context.registry.set_status(environment.id, Status.RUNNING))
    started = context.registry.by_id(environment.id)
    assert started is not None
    return started
