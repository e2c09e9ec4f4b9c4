"""The fake provider's machines. layout.py says where their files are, memory.py what their memory is."""

from __future__ import annotations

import shutil
import time
from typing import TYPE_CHECKING

import msgspec

from agent_swarm import processes
from agent_swarm.errors import BootError, MachineError, SwarmError
from agent_swarm.files import allocated_bytes, remove_tree, sync_directory, write_atomically
from agent_swarm.model import EnvironmentId, LocalEndpoint, MachineState, MachineStatus, PointId
from agent_swarm.providers.base import FromPoint, OwnedMachine, Readiness
from agent_swarm.providers.fake import memory as memories
from agent_swarm.providers.fake import power, recovery, trees
from agent_swarm.providers.fake.faults import Faults
from agent_swarm.providers.fake.layout import (
    DISK,
    MEMORY,
    OWNER,
    POINTS,
    Layout,
    Owner,
    owner,
    owner_or_fail,
    typed,
)
from agent_swarm.providers.fake.points import FakePoints
from agent_swarm.providers.fake.steps import Step
from agent_swarm.providers.fake.suspension import FakeSuspend

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from agent_swarm.events import Progress
    from agent_swarm.model import Endpoint
    from agent_swarm.providers.base import (
        LiveFork,
        MachineSpec,
        Pricing,
        ProviderContext,
        Snapshots,
        Suspend,
    )


class FakeProvider:
    """See providers/base.py for what each method promises. A handle is the environment's id, a
    point's handle "<environment id>/<point id>"."""

    name = "fake"
    simulated = True
    snapshots: Snapshots | None
    live_fork: LiveFork | None
    suspend: Suspend | None
    pricing: Pricing | None = None

    def __init__(self, context: ProviderContext, sleep: Callable[[float], None] = time.sleep) -> None:
        self._installation = context.installation
        self._root = context.paths.fake
        self._faults = Faults(self._root / "faults.json", sleep)
        self._layout = Layout(self._root, context.installation)
        self._points = FakePoints(self._layout, self._meet)
        self.snapshots = self._points
        self.live_fork = self._points
        self.suspend = FakeSuspend(self._layout, self._meet)

    def probe(self) -> Readiness:
        try:
            self._faults.meet("probe")
        except (SwarmError, OSError) as error:
            return Readiness(usable=False, summary="not usable", missing=(str(error),))
        return Readiness(
            usable=True,
            summary="directories and local processes, for tests",
            warnings=("nothing is isolated: commands run on this host, as you",),
        )

    def create(self, spec: MachineSpec, progress: Progress) -> str:
        machine = self._layout.directory(spec.id)
        self._meet("create")
        if machine.is_dir():
            return spec.id
        source = self._source(spec)
        partial = self._layout.remains(spec.id, "partial")
        with Step(progress, spec.host_name, "copy the disk"):
            try:
                self._root.mkdir(mode=0o700, parents=True, exist_ok=True)
                remove_tree(partial)
                partial.mkdir(mode=0o700)
                tag = Owner(
                    self._installation,
                    spec.id,
                    spec.kind,
                    spec.source.image.digest,
                    spec.host_name,
                    spec.resources,
                )
                write_atomically(partial / OWNER, msgspec.json.encode(tag))
                self._faults.meet("create:tagged")
                if source is None:
                    (partial / DISK).mkdir(mode=0o700)
                else:
                    trees.copy(source, partial / DISK)
                if isinstance(spec.source, FromPoint) and spec.source.memory:
                    saved = self._layout.point_of(spec.source.handle) / MEMORY
                    memories.hand_on(saved, partial / MEMORY, keep_secrets=spec.source.keep_secrets)
                (partial / POINTS).mkdir(mode=0o700)
                (partial / power.CONSOLE).touch(mode=0o600)
                self._faults.meet("create:copied")
                trees.sync(partial)
                partial.rename(machine)
                sync_directory(self._root)
                self._faults.meet("create:renamed")
            except (SwarmError, OSError) as error:
                for left in (partial, machine):
                    shutil.rmtree(left, ignore_errors=True)
                raise typed(error, f"the disk of {spec.host_name} could not be made") from error
        return spec.id

    def start(self, handle: str, progress: Progress) -> None:
        machine = self._layout.existing(handle)
        recovery.settle(machine)
        if power.running(machine) is not None:
            return
        if not (machine / DISK).is_dir():
            message = f"machine {handle} has no disk"
            raise MachineError(message, hint="Delete it; its disk cannot be brought back.")
        self._meet("start")
        going_on = memories.suspended(machine)
        try:
            with Step(progress, handle, "go on from memory" if going_on else "power on"):
                (memories.bring_back if going_on else memories.boot)(machine, owner_or_fail(machine))
                self._meet("start:prepared")
                power.on(machine, f"agent-swarm-{handle}", lambda step: self._meet(f"start:{step}"))
        except (SwarmError, OSError) as error:
            power.off(machine, timeout_s=0)
            memories.take_back(machine)
            raise typed(error, f"machine {handle} could not be started") from error
        memories.clean_up(machine)

    def endpoint(self, handle: str, *, timeout_s: float, progress: Progress) -> Endpoint:
        del timeout_s, progress  # a fake machine is up as soon as it runs: there is nothing to wait for
        machine = self._layout.existing(handle)
        self._meet("endpoint")
        if memories.suspended(machine) or power.running(machine) is None:
            message = f"machine {handle} does not run"
            raise BootError(message, details=power.console_tail(machine), hint="Start it again.")
        return LocalEndpoint(root=machine / DISK)

    def stop(self, handle: str, *, force: bool = False, timeout_s: float = 90.0) -> None:
        machine = self._layout.directory(handle)
        self._meet("stop")
        power.off(machine, timeout_s=0 if force else timeout_s)
        self._meet("stop:ended")
        memories.empty(machine)

    def delete(self, handle: str) -> None:
        machine = self._layout.directory(handle)
        self._meet("delete")
        power.off(machine, timeout_s=0)
        self._meet("delete:ended")
        try:
            remove_tree(self._layout.remains(handle, "partial"))
            remove_tree(self._layout.remains(handle, "deleting"))
            if machine.is_dir():
                machine.rename(self._layout.remains(handle, "deleting"))
                sync_directory(self._root)
                self._faults.meet("delete:renamed")
                remove_tree(self._layout.remains(handle, "deleting"))
        except OSError as error:
            raise typed(error, f"machine {handle} could not be removed") from error

    def capture(self, handle: str, point: PointId, progress: Progress, *, memory: bool = False) -> str:
        recovery.settle(self._layout.existing(handle))
        return self._points.capture(handle, point, progress, memory=memory)

    def discard(self, handle: str, point: PointId) -> None:
        self._points.discard(handle, point)

    def settle(self, handle: str) -> None:
        self._meet("settle")
        try:
            recovery.settle(self._layout.directory(handle))
        except OSError as error:
            raise typed(error, f"machine {handle} could not be settled") from error

    def inspect(self, handle: str) -> MachineStatus:
        try:
            self._faults.meet("inspect")
            machine = self._layout.directory(handle)
            if not machine.is_dir():
                remains = [self._layout.remains(handle, stage) for stage in ("partial", "deleting")]
                if any(path.is_dir() for path in remains):
                    return MachineStatus(MachineState.BROKEN, "it was interrupted in its making or removal")
                return MachineStatus(MachineState.ABSENT)
            suspended = memories.suspended(machine)
            record = None if suspended else power.running(machine)
            pid = None if record is None else record.pid
            if owner(machine) is None:
                return MachineStatus(MachineState.BROKEN, f"its {OWNER} is missing or damaged", pid=pid)
            if not (machine / DISK).is_dir():
                reason = "a restore was interrupted" if (machine / recovery.RESTORING).is_dir() else ""
                return MachineStatus(MachineState.BROKEN, reason or "its disk is missing", pid=pid)
        except (SwarmError, OSError) as error:
            return MachineStatus(MachineState.BROKEN, str(error))
        if suspended:
            return MachineStatus(MachineState.SUSPENDED)
        return MachineStatus(MachineState.STOPPED if pid is None else MachineState.RUNNING, pid=pid)

    def usage(self, handle: str) -> MachineStatus:
        seen = self.inspect(handle)
        try:
            self._faults.meet("usage")
            disk = (
                allocated_bytes(self._layout.directory(handle))
                if seen.state is not MachineState.ABSENT
                else None
            )
        except (SwarmError, OSError) as error:
            return MachineStatus(MachineState.BROKEN, str(error), pid=seen.pid)
        memory = None if seen.pid is None else processes.memory_bytes(seen.pid)
        return MachineStatus(seen.state, seen.reason, seen.pid, memory_bytes=memory, disk_bytes=disk)

    def console(self, handle: str) -> Path | None:
        path = self._layout.directory(handle) / power.CONSOLE
        return path if path.is_file() else None

    def list_owned(self) -> Iterator[OwnedMachine]:
        found: dict[str, list[PointId]] = {}
        for path in sorted(self._root.iterdir()) if self._root.is_dir() else ():
            remains = self._layout.remains_of(path)
            if remains is not None:
                found.setdefault(remains, [])
            elif self._layout.is_ours(path):
                names = {entry.name.removesuffix(".partial") for entry in (path / POINTS).glob("*")}
                found[path.name] = [PointId(name) for name in sorted(names)]
        for handle, points in found.items():
            yield OwnedMachine(id=EnvironmentId(handle), handle=handle, points=tuple(points))

    def _meet(self, point: str) -> None:
        try:
            self._faults.meet(point)
        except OSError as error:
            raise typed(error, f"{point} failed") from error

    def _source(self, spec: MachineSpec) -> Path | None:
        """The tree that a new disk is a copy of; None: the image is none of ours, so an empty one."""
        if not isinstance(spec.source, FromPoint):
            return spec.source.image.disk if spec.source.image.disk.is_dir() else None
        point = self._layout.point_of(spec.source.handle)
        if not point.is_dir():
            message = f"there is no point {spec.source.handle}"
            raise MachineError(message, hint="Stop the project to capture its next baseline.")
        if spec.source.memory and (reason := self._points.obstacle(spec.source.handle, spec.resources)):
            message = f"{spec.host_name} cannot go on from the memory of {spec.source.handle}: {reason}"
            raise MachineError(message, hint="Make it from the point's disk alone.")
        return point / DISK
