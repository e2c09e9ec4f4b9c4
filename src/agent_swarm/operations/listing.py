"""All machines and how they stand: what `list` shows, and so kept apart from what imports more."""

from __future__ import annotations

from typing import TYPE_CHECKING

from agent_swarm.errors import ProviderUnavailableError, UsageError
from agent_swarm.model import Environment, Kind
from agent_swarm.operations import observe, recovery

if TYPE_CHECKING:
    from agent_swarm.operations.context import Context


def is_simulated(context: Context, provider: str) -> bool:
    """Whether a provider's machines are not real ones. False for one that cannot be loaded: it has none."""
    try:
        return context.provider(provider).simulated
    except (ProviderUnavailableError, UsageError):
        return False


def listing(context: Context, *, kind: Kind | None = None, project: str | None = None) -> list[Environment]:
    """Environments with the status that is so now, projects first. Ends abandoned operations."""
    recovery.recover(context)
    parent = context.registry.environment(Kind.PROJECT, project).id if project is not None else None
    return observe.observe(context, context.registry.environments(kind=kind, parent=parent))
