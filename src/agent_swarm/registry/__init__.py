"""The registry: what we know of every environment, in one SQLite file that many processes share."""

from agent_swarm.registry.registry import Registry

__all__ = ["Registry"]
