"""Removing what `restore` and `fork` saved by themselves, once it is old: checkpoints.keep_automatic_h."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from agent_swarm.errors import BusyError, NotFoundError, SwarmError
from agent_swarm.events import Notice

if TYPE_CHECKING:
    from agent_swarm.model import Checkpoint
    from agent_swarm.operations.context import Context


def expired(context: Context) -> list[Checkpoint]:
    """Automatic checkpoints of all tasks that were kept for long enough."""
    kept = timedelta(hours=context.config.checkpoints.keep_automatic_h)
    return context.registry.automatic_checkpoints(before=datetime.now(UTC) - kept)


def tidy(context: Context) -> None:
    """Remove the expired ones. A failure is a Notice, not an error: the command that calls this is about
    something else. Recovery has run: what an abandoned restore still needs, it has used."""
    for found in expired(context):
        try:
            remove(context, found)
        except (BusyError, NotFoundError):
            continue  # another command's turn
        except SwarmError as error:
            context.progress(
                Notice(f"the old automatic checkpoint {found.name} could not be removed: {error.message}")
            )


def remove(context: Context, found: Checkpoint) -> None:
    """Remove one, where it is still there and nothing that is open may need it."""
    from agent_swarm.operations import checkpoint  # which calls `tidy`

    environment = context.registry.by_id(found.environment_id)
    if environment is None or any(
        operation.environment_id == environment.id for operation in context.registry.open_operations()
    ):
        return
    with context.changing(environment) as current:
        if context.registry.checkpoint(found.id) is not None:
            checkpoint.remove(context, current, found)
