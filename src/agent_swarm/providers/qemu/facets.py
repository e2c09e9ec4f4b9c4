"""The provider's optional abilities: points, forks and suspension. See providers/base.py for what they promise."""

from __future__ import annotations

from typing import TYPE_CHECKING

from agent_swarm.errors import MachineError
from agent_swarm.events import ignore
from agent_swarm.files import allocated_bytes, remove_tree
from agent_swarm.providers.base import PointSize
from agent_swarm.providers.qemu import capture, definition, launch, layout, memory, process, resume, storage
from agent_swarm.providers.qemu.chain import virtual_size

if TYPE_CHECKING:
    from pathlib import Path

    from agent_swarm.events import Progress
    from agent_swarm.model import Resources
    from agent_swarm.providers.qemu.definition import MachineDefinition
    from agent_swarm.providers.qemu.layout import MachineFiles
    from agent_swarm.providers.qemu.provider import QemuProvider


class Points:
    """Snapshots and LiveFork."""

    memory = True

    def __init__(self, provider: QemuProvider) -> None:
        self._provider = provider

    def restore(self, handle: str, point_handle: str, progress: Progress) -> None:  # noqa: ARG002 - takes no time
        files, machine = self._provider.existing(handle)
        owner, point = layout.parse_point_handle(self._provider.paths, point_handle)
        if owner.handle != files.handle:
            message = f"{point_handle} is no point of machine {handle}"
            raise MachineError(message, hint="Make a new machine from it: `agent-swarm fork`.")
        record = layout.read(files.point_record(point), layout.PointRecord)
        if record is None:
            message = f"machine {handle} has no point {point}"
            raise MachineError(message, hint="`agent-swarm checkpoints` lists what there is.")
        process.end(files)
        machine = capture.settle(files, machine)
        capture.restore(files, machine, point, record)

    def size(self, point_handle: str) -> PointSize:
        files, point = layout.parse_point_handle(self._provider.paths, point_handle)
        if not files.point_record(point).exists():
            return PointSize(0, 0)
        saved = files.point(point)
        taken = sum(allocated_bytes(saved / name) for name in (memory.MEMORY, memory.STATE))
        return PointSize(disk_bytes=storage.freed_by(files, point), memory_bytes=taken)

    def obstacle(self, point_handle: str, resources: Resources) -> str:
        files, point = layout.parse_point_handle(self._provider.paths, point_handle)
        machine = definition.load(files)
        if machine is None:
            return "the machine that it was captured from is gone"
        record = layout.read(files.point_record(point), layout.PointRecord)
        if record is not None:
            size_gib = virtual_size(files.layer(record.layer)) / (1 << 30)
            if resources.disk_gib != size_gib:
                return f"its memory is that of a machine with a disk of {size_gib:g} GiB"
        return obstacle(self._provider, files, machine, files.point(point), resources)


class Suspension:
    """Suspend."""

    def __init__(self, provider: QemuProvider) -> None:
        self._provider = provider

    def suspend(self, handle: str, progress: Progress) -> None:
        files, machine = self._provider.existing(handle)
        self._provider.require_running(files)
        capture.suspend(files, machine, progress)

    def forget(self, handle: str) -> None:
        files = layout.parse_handle(self._provider.paths, handle)
        machine = definition.load(files)
        if machine is None or machine.resume is None:
            return
        machine = capture.settle(files, machine)
        resume.prepare(files, machine)
        definition.save(files, machine, resume=None)
        remove_tree(files.saved)

    def obstacle(self, handle: str) -> str:
        files = layout.parse_handle(self._provider.paths, handle)
        machine = definition.load(files)
        if machine is None or machine.resume is None:
            return ""
        return obstacle(self._provider, files, machine, files.saved, None)


def obstacle(
    provider: QemuProvider,
    files: MachineFiles,
    machine: MachineDefinition,
    saved: Path,
    resources: Resources | None,
) -> str:
    """Why the memory in a directory cannot be loaded now, "" where it can."""
    record = memory.load_record(saved)
    if record is None:
        return "it has no memory"
    qemu = provider.qemu(machine.architecture)
    return memory.obstacle(
        record,
        qemu=qemu.version,
        accelerator=provider.accelerator(files, machine, qemu, ignore),
        network="slirp" if launch.network_is_slirp(provider.config.qemu.network) else "passt",
        resources=resources,
    )
