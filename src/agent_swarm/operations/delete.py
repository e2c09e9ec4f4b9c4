"""Delete a machine and everything that is its own."""

from __future__ import annotations

from typing import TYPE_CHECKING

from agent_swarm.errors import ConflictError
from agent_swarm.model import OperationKind, Status
from agent_swarm.operations import recovery, retention
from agent_swarm.operations.checkpoint import require_no_fork_in_the_making
from agent_swarm.operations.journal import Change

if TYPE_CHECKING:
    from agent_swarm.model import Kind
    from agent_swarm.operations.context import Context


def delete(context: Context, kind: Kind, name: str, *, force: bool = False) -> None:
    """Remove the machine, its disk and its record.

    A project with tasks is refused, and they are named. Forks of a task are not harmed. A machine in use is refused unless `force`.
    Once begun it is not undone: what a failure or a kill left is finished by the next command.
    """
    recovery.recover(context)
    retention.tidy(context)
    named = context.registry.environment(kind, name)
    with context.changing(named, force=force) as environment:

        def intend() -> None:
            tasks = context.registry.environments(parent=environment.id)
            if tasks:
                names = ", ".join(task.name for task in tasks[:10]) + (", ..." if len(tasks) > 10 else "")
                message = f"{environment.label} still has {len(tasks)} task(s): {names}"
                raise ConflictError(
                    message, hint=f"Delete them first: `agent-swarm bulk delete --project {name}`."
                )
            require_no_fork_in_the_making(context, environment)
            context.registry.set_status(environment.id, Status.DELETING)

        with Change.begin(context, environment, OperationKind.DELETE, intend, forward_only=True) as change:
            with change.step("delete machine"):
                recovery.remove_machine(context, environment)
            change.done(lambda: context.registry.remove(environment.id))
        recovery.forget_files(context, environment.id)
    context.publish_hosts()
