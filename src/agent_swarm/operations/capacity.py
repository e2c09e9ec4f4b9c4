"""Whether the host can carry one machine more.

Memory: what running machines were promised, the new one and the reserve must fit into the host's memory.
Disk: after the reserve, every running machine and the new one must find room to grow by
`limits.disk_growth_gib`; disks are sparse, so their full size is not counted.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING

from agent_swarm.errors import ResourceLimitError
from agent_swarm.model import Status

if TYPE_CHECKING:
    from agent_swarm.config import LimitSettings
    from agent_swarm.model import Environment, Resources
    from agent_swarm.operations.context import Context

GIB = 1024**3
MIB = 1024**2
COUNTED = frozenset({Status.RUNNING, Status.CREATING, Status.FAILED})


@dataclass(frozen=True, slots=True)
class Capacity:
    """The host's figures. `running` counts machines that run or are being made."""

    cpus: int
    memory_mib: int
    memory_promised_mib: int
    disk_free_bytes: int
    disk_total_bytes: int
    running: int
    cpus_promised: int


def measure(context: Context) -> Capacity:
    """The host as it is now, with what the registry has promised. No process is asked."""
    import psutil

    machines = [found for found in context.registry.environments() if _counts(found)]
    disk = shutil.disk_usage(context.paths.home)
    return Capacity(
        cpus=os.cpu_count() or 1,
        memory_mib=psutil.virtual_memory().total // MIB,
        memory_promised_mib=sum(found.resources.memory_mib for found in machines),
        disk_free_bytes=disk.free,
        disk_total_bytes=disk.total,
        running=len(machines),
        cpus_promised=sum(found.resources.cpus for found in machines),
    )


def require(capacity: Capacity, limits: LimitSettings, resources: Resources, *, what: str) -> None:
    """Raise ResourceLimitError, with the figures, where `resources` more do not fit."""
    left_mib = capacity.memory_mib - limits.memory_reserve_mib - capacity.memory_promised_mib
    if resources.memory_mib > left_mib:
        message = f"{what} needs {resources.memory_mib} MiB of memory, and {max(left_mib, 0)} MiB are left"
        raise ResourceLimitError(
            message,
            details=(
                f"The host has {capacity.memory_mib} MiB; {capacity.running} running machine(s) were promised "
                f"{capacity.memory_promised_mib} MiB; {limits.memory_reserve_mib} MiB are kept in reserve."
            ),
            hint="Stop a machine, use a smaller --memory, or use --force.",
        )
    needed = (limits.disk_reserve_gib + limits.disk_growth_gib * (capacity.running + 1)) * GIB
    if capacity.disk_free_bytes < needed:
        message = f"{what} needs room to grow, and the disk has {capacity.disk_free_bytes / GIB:.1f} GiB free"
        raise ResourceLimitError(
            message,
            details=(
                f"{limits.disk_reserve_gib} GiB are kept in reserve and {limits.disk_growth_gib} GiB for each of "
                f"{capacity.running + 1} machine(s) to grow: {needed / GIB:.1f} GiB."
            ),
            hint="Run `agent-swarm gc`, delete a machine, or use --force.",
        )


def _counts(environment: Environment) -> bool:
    return environment.status in COUNTED
