"""A full Linux machine of its own for every coding agent's task.

The public API is what this module exports; everything else may change between versions.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:
    from agent_swarm.config import Config
    from agent_swarm.errors import (
        BootError,
        BusyError,
        CommandError,
        ConfigError,
        ConflictError,
        ImageError,
        MachineError,
        NotFoundError,
        ProviderUnavailableError,
        RegistryError,
        ResourceLimitError,
        SetupError,
        SwarmError,
        UnreachableError,
        UsageError,
    )
    from agent_swarm.events import Event, Progress
    from agent_swarm.model import Baseline, Checkpoint, Environment, Image, Kind, Resources, Status
    from agent_swarm.operations.requests import ResourceRequest
    from agent_swarm.paths import Paths
    from agent_swarm.swarm import Swarm

# Where each name lives; loaded at first use, so that `import agent_swarm` costs nothing (PEP 562).
_HOME = {
    "Swarm": "swarm",
    "Paths": "paths",
    "Config": "config",
    "ResourceRequest": "operations.requests",
    **dict.fromkeys(("Event", "Progress"), "events"),
    **dict.fromkeys(
        ("Baseline", "Checkpoint", "Environment", "Image", "Kind", "Resources", "Status"), "model"
    ),
    **dict.fromkeys(
        (
            "BootError",
            "BusyError",
            "CommandError",
            "ConfigError",
            "ConflictError",
            "ImageError",
            "MachineError",
            "NotFoundError",
            "ProviderUnavailableError",
            "RegistryError",
            "ResourceLimitError",
            "SetupError",
            "SwarmError",
            "UnreachableError",
            "UsageError",
        ),
        "errors",
    ),
}

__all__ = [
    "Swarm",
    "Paths",
    "Config",
    "ResourceRequest",
    # what it works with
    "Baseline",
    "Checkpoint",
    "Environment",
    "Event",
    "Image",
    "Kind",
    "Progress",
    "Resources",
    "Status",
    # what it raises
    "BootError",
    "BusyError",
    "CommandError",
    "ConfigError",
    "ConflictError",
    "ImageError",
    "MachineError",
    "NotFoundError",
    "ProviderUnavailableError",
    "RegistryError",
    "ResourceLimitError",
    "SetupError",
    "SwarmError",
    "UnreachableError",
    "UsageError",
    "__version__",
]


def __getattr__(name: str) -> object:
    if name not in _HOME:
        message = f"module 'agent_swarm' has no attribute {name!r}"
        raise AttributeError(message)
    from importlib import import_module

    value: object = getattr(import_module(f"agent_swarm.{_HOME[name]}"), name)
    globals()[name] = value
    return value
