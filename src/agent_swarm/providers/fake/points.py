"""Points of fake machines: whole copies, so that removing one harms nothing that was made from it."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

from agent_swarm.errors import MachineError, SwarmError
from agent_swarm.files import allocated_bytes, remove_tree, sync_directory
from agent_swarm.providers.base import PointSize
from agent_swarm.providers.fake import memory as memories
from agent_swarm.providers.fake import power, recovery, trees
from agent_swarm.providers.fake.layout import DISK, MEMORY, owner_or_fail, typed
from agent_swarm.providers.fake.steps import Step

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from agent_swarm.events import Progress
    from agent_swarm.model import PointId, Resources
    from agent_swarm.providers.fake.layout import Layout


class FakePoints:
    """The facets `snapshots` and `live_fork`, and what `capture` and `discard` do. `meet` comes to a fault's point."""

    memory = True

    def __init__(self, layout: Layout, meet: Callable[[str], None]) -> None:
        self._layout = layout
        self._meet = meet

    def capture(self, handle: str, point: PointId, progress: Progress, *, memory: bool) -> str:
        machine = self._layout.existing(handle)
        target = self._layout.point(machine, point)
        self._meet("capture")
        if target.is_dir():
            return f"{handle}/{point}"
        if memory and power.running(machine) is None:
            message = f"machine {handle} does not run: it has no memory to capture"
            raise MachineError(message, hint="Start it, or capture its disk alone.")
        try:
            with Step(progress, handle, "save the memory" if memory else "copy the disk"):
                self._copy(machine, target, memory=memory)
        except (SwarmError, OSError) as error:
            for left in (target.with_suffix(".partial"), target):
                shutil.rmtree(left, ignore_errors=True)
            raise typed(error, f"point {point} could not be captured") from error
        finally:
            if memory:
                power.go_on(machine)
        return f"{handle}/{point}"

    def _copy(self, machine: Path, target: Path, *, memory: bool) -> None:
        partial = target.with_suffix(".partial")
        remove_tree(partial)
        partial.mkdir(mode=0o700)
        if memory:
            power.pause(machine)
            self._meet("capture:paused")
            memories.save(machine, owner_or_fail(machine), partial / MEMORY)
        trees.copy(machine / DISK, partial / DISK, leave_out=memories.RUN)
        self._meet("capture:copied")
        partial.rename(target)
        sync_directory(target.parent)
        self._meet("capture:renamed")

    def discard(self, handle: str, point: PointId) -> None:
        target = self._layout.point(self._layout.directory(handle), point)
        partial = target.with_suffix(".partial")
        self._meet("discard")
        try:
            remove_tree(partial)
            if target.is_dir():
                target.rename(partial)
                sync_directory(target.parent)
                self._meet("discard:renamed")
                remove_tree(partial)
        except OSError as error:
            raise typed(error, f"point {point} could not be removed") from error

    def restore(self, handle: str, point_handle: str, progress: Progress) -> None:
        machine = self._layout.existing(handle)
        point = self._layout.point_of(point_handle)
        if point.parent.parent != machine or not point.is_dir():
            message = f"machine {handle} has no point {point_handle}"
            raise MachineError(message, hint="A machine is put back to a point that was captured from it.")
        self._meet("restore")
        recovery.settle(machine)
        restoring = machine / recovery.RESTORING
        partial = restoring.with_suffix(".partial")
        try:
            with Step(progress, handle, "copy the point"):
                trees.copy(point, partial)
                self._meet("restore:copied")
                partial.rename(restoring)
                sync_directory(machine)
                self._meet("restore:prepared")
        except (SwarmError, OSError) as error:
            for left in (restoring, partial):
                shutil.rmtree(left, ignore_errors=True)
            raise typed(error, f"machine {handle} could not be restored") from error
        try:
            recovery.finish_restore(machine)
            self._meet("restore:switched")
        except (SwarmError, OSError) as error:
            memories.drop(machine)
            raise typed(error, f"machine {handle} could not be restored") from error

    def size(self, point_handle: str) -> PointSize:
        point = self._layout.point_of(point_handle)
        return PointSize(allocated_bytes(point / DISK), allocated_bytes(point / MEMORY))

    def obstacle(self, point_handle: str, resources: Resources) -> str:
        try:
            self._meet("obstacle")
            point = self._layout.point_of(point_handle)
        except SwarmError as error:
            return str(error)
        if not point.is_dir():
            return "the point is gone"
        if not (point / MEMORY).is_dir():
            return "the point was captured without memory"
        return memories.obstacle(point / MEMORY, resources)
