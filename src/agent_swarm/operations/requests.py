"""What a caller may ask for when a machine is made."""

from __future__ import annotations

from dataclasses import dataclass

from agent_swarm.model import Resources


@dataclass(frozen=True, slots=True)
class ResourceRequest:
    """What flags asked for; None: what the project, else the config, says."""

    cpus: int | None = None
    memory_mib: int | None = None
    disk_gib: int | None = None

    def over(self, default: Resources) -> Resources:
        return Resources(
            cpus=default.cpus if self.cpus is None else self.cpus,
            memory_mib=default.memory_mib if self.memory_mib is None else self.memory_mib,
            disk_gib=default.disk_gib if self.disk_gib is None else self.disk_gib,
        )
