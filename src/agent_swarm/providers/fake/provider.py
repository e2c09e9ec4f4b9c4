"""The fake provider's machines.

fake/
├── faults.json (.lock)             faults.py
├── <id>/                           a machine; appears whole, by a rename
│   ├── owner.json                  the tag: installation and environment
│   ├── disk/                       the machine's disk, its endpoint's root
│   ├── points/<point>/       a copy of disk/; appears whole, by a rename
│   ├── points/<point>.partial/  one in the making, or on its way out
│   ├── console.log
│   └── process.json                which process runs it (power.py)
├── <id>.<installation>.partial/    a machine in the making: the name is its tag
└── <id>.<installation>.deleting/   a machine on its way out
"""

from __future__ import annotations

import re
import shutil
import time
from typing import TYPE_CHECKING

import msgspec

from agent_swarm import processes
from agent_swarm.errors import BootError, MachineError, SwarmError
from agent_swarm.events import StepDone, StepStarted
from agent_swarm.files import allocated_bytes, remove_tree, sync_directory, write_atomically
from agent_swarm.model import EnvironmentId, LocalEndpoint, MachineState, MachineStatus, PointId
from agent_swarm.providers.base import FromPoint, OwnedMachine, Readiness
from agent_swarm.providers.fake import power, trees
from agent_swarm.providers.fake.faults import Faults

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

_HANDLE = re.compile(r"[A-Za-z0-9_-]+")
_REMAINS = re.compile(r"(?P<id>[A-Za-z0-9_-]+)\.(?P<installation>[A-Za-z0-9_-]+)\.(?:partial|deleting)")


class Owner(msgspec.Struct, frozen=True):
    """The tag of a machine. `image` is the digest that its disk goes back to."""

    installation: str
    environment: str
    kind: str
    image: str


class FakeProvider:
    """See providers/base.py for what each method promises. A handle is the environment's id, a
    point's handle "<environment id>/<point id>"."""

    name = "fake"
    simulated = True
    snapshots: Snapshots | None = None
    live_fork: LiveFork | None = None
    suspend: Suspend | None = None
    pricing: Pricing | None = None

    def __init__(self, context: ProviderContext, sleep: Callable[[float], None] = time.sleep) -> None:
        self._installation = context.installation
        self._root = context.paths.fake
        self._faults = Faults(self._root / "faults.json", sleep)

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
        machine = self._directory(spec.id)
        self._meet("create")
        if machine.is_dir():
            return spec.id
        source = self._source(spec)
        partial = self._remains(spec.id, "partial")
        with _Step(progress, spec.host_name, "copy the disk"):
            try:
                self._root.mkdir(mode=0o700, parents=True, exist_ok=True)
                remove_tree(partial)
                partial.mkdir(mode=0o700)
                owner = Owner(self._installation, spec.id, spec.kind, spec.source.image.digest)
                write_atomically(partial / "owner.json", msgspec.json.encode(owner))
                self._faults.meet("create:tagged")
                if source is None:
                    (partial / "disk").mkdir(mode=0o700)
                else:
                    trees.copy(source, partial / "disk")
                (partial / "points").mkdir(mode=0o700)
                (partial / power.CONSOLE).touch(mode=0o600)
                self._faults.meet("create:copied")
                trees.sync(partial)
                partial.rename(machine)
                sync_directory(self._root)
                self._faults.meet("create:renamed")
            except (SwarmError, OSError) as error:
                for left in (partial, machine):
                    shutil.rmtree(left, ignore_errors=True)
                raise _typed(error, f"the disk of {spec.host_name} could not be made") from error
        return spec.id

    def start(self, handle: str, progress: Progress) -> None:
        machine = self._existing(handle)
        if power.running(machine) is not None:
            return
        if not (machine / "disk").is_dir():
            message = f"machine {handle} has no disk"
            raise MachineError(message, hint="Delete it; its disk cannot be brought back.")
        self._meet("start")
        try:
            with _Step(progress, handle, "power on"):
                power.on(machine, f"agent-swarm-{handle}", lambda step: self._faults.meet(f"start:{step}"))
        except (SwarmError, OSError) as error:
            power.off(machine, timeout_s=0)
            raise _typed(error, f"machine {handle} could not be started") from error

    def endpoint(self, handle: str, *, timeout_s: float, progress: Progress) -> Endpoint:
        del timeout_s, progress  # a fake machine is up as soon as it runs: there is nothing to wait for
        machine = self._existing(handle)
        self._meet("endpoint")
        if power.running(machine) is None:
            message = f"machine {handle} does not run"
            raise BootError(message, details=power.console_tail(machine), hint="Start it again.")
        return LocalEndpoint(root=machine / "disk")

    def stop(self, handle: str, *, force: bool = False, timeout_s: float = 90.0) -> None:
        machine = self._directory(handle)
        self._meet("stop")
        power.off(machine, timeout_s=0 if force else timeout_s)
        self._meet("stop:ended")

    def delete(self, handle: str) -> None:
        machine = self._directory(handle)
        self._meet("delete")
        power.off(machine, timeout_s=0)
        self._meet("delete:ended")
        try:
            remove_tree(self._remains(handle, "partial"))
            remove_tree(self._remains(handle, "deleting"))
            if machine.is_dir():
                machine.rename(self._remains(handle, "deleting"))
                sync_directory(self._root)
                self._faults.meet("delete:renamed")
                remove_tree(self._remains(handle, "deleting"))
        except OSError as error:
            raise _typed(error, f"machine {handle} could not be removed") from error

    def capture(self, handle: str, point: PointId, progress: Progress, *, memory: bool = False) -> str:
        machine = self._existing(handle)
        if memory:
            message = "the fake provider saves no memory"
            raise MachineError(message)
        target = self._point(machine, point)
        self._meet("capture")
        if target.is_dir():
            return f"{handle}/{point}"
        partial = target.with_suffix(".partial")
        with _Step(progress, handle, "copy the disk"):
            try:
                remove_tree(partial)
                trees.copy(machine / "disk", partial)
                self._faults.meet("capture:copied")
                partial.rename(target)
                sync_directory(target.parent)
                self._faults.meet("capture:renamed")
            except (SwarmError, OSError) as error:
                for left in (partial, target):
                    shutil.rmtree(left, ignore_errors=True)
                raise _typed(error, f"point {point} could not be captured") from error
        return f"{handle}/{point}"

    def discard(self, handle: str, point: PointId) -> None:
        target = self._point(self._directory(handle), point)
        partial = target.with_suffix(".partial")
        self._meet("discard")
        try:
            remove_tree(partial)
            if target.is_dir():
                target.rename(partial)
                sync_directory(target.parent)
                self._faults.meet("discard:renamed")
                remove_tree(partial)
        except OSError as error:
            raise _typed(error, f"point {point} could not be removed") from error

    def settle(self, handle: str) -> None:
        """Nothing of it is ever paused."""

    def inspect(self, handle: str) -> MachineStatus:
        try:
            self._faults.meet("inspect")
            machine = self._directory(handle)
            if not machine.is_dir():
                remains = [self._remains(handle, stage) for stage in ("partial", "deleting")]
                if any(path.is_dir() for path in remains):
                    return MachineStatus(MachineState.BROKEN, "it was interrupted in its making or removal")
                return MachineStatus(MachineState.ABSENT)
            record = power.running(machine)
            pid = None if record is None else record.pid
            if _owner(machine) is None:
                return MachineStatus(MachineState.BROKEN, "its owner.json is missing or damaged", pid=pid)
            if not (machine / "disk").is_dir():
                return MachineStatus(MachineState.BROKEN, "its disk is missing", pid=pid)
        except (SwarmError, OSError) as error:
            return MachineStatus(MachineState.BROKEN, str(error))
        return MachineStatus(MachineState.STOPPED if pid is None else MachineState.RUNNING, pid=pid)

    def usage(self, handle: str) -> MachineStatus:
        seen = self.inspect(handle)
        try:
            self._faults.meet("usage")
            disk = allocated_bytes(self._directory(handle)) if seen.state is not MachineState.ABSENT else None
        except (SwarmError, OSError) as error:
            return MachineStatus(MachineState.BROKEN, str(error), pid=seen.pid)
        memory = None if seen.pid is None else processes.memory_bytes(seen.pid)
        return MachineStatus(seen.state, seen.reason, seen.pid, memory_bytes=memory, disk_bytes=disk)

    def console(self, handle: str) -> Path | None:
        path = self._directory(handle) / power.CONSOLE
        return path if path.is_file() else None

    def list_owned(self) -> Iterator[OwnedMachine]:
        found: dict[str, list[PointId]] = {}
        for path in sorted(self._root.iterdir()) if self._root.is_dir() else ():
            remains = _REMAINS.fullmatch(path.name)
            owner = _owner(path)
            if remains is not None and remains["installation"] == self._installation:
                found.setdefault(remains["id"], [])
            elif owner is not None and owner.installation == self._installation and remains is None:
                names = {entry.name.removesuffix(".partial") for entry in (path / "points").glob("*")}
                found[path.name] = [PointId(name) for name in sorted(names)]
        for handle, points in found.items():
            yield OwnedMachine(id=EnvironmentId(handle), handle=handle, points=tuple(points))

    def _meet(self, point: str) -> None:
        try:
            self._faults.meet(point)
        except OSError as error:
            raise _typed(error, f"{point} failed") from error

    def _source(self, spec: MachineSpec) -> Path | None:
        """The tree that a new disk is a copy of; None: the image is none of ours, so an empty one."""
        if isinstance(spec.source, FromPoint):
            owner, _, point = spec.source.handle.partition("/")
            source = self._point(self._directory(owner), PointId(point))
            if not source.is_dir():
                message = f"there is no point {spec.source.handle}"
                raise MachineError(message, hint="Stop the project to capture its next baseline.")
            return source
        disk = spec.source.image.disk
        return disk if disk.is_dir() else None

    def _directory(self, handle: str) -> Path:
        """A machine's directory. Refuses what is no handle: "" and ".." would name other directories."""
        if _HANDLE.fullmatch(handle) is None:
            message = f"{handle!r} is not a handle of the fake provider"
            raise MachineError(message)
        return self._root / handle

    def _existing(self, handle: str) -> Path:
        machine = self._directory(handle)
        if not machine.is_dir():
            message = f"there is no machine {handle}"
            raise MachineError(message, hint="`agent-swarm doctor` compares the registry with what exists.")
        return machine

    def _point(self, machine: Path, point: PointId) -> Path:
        return machine / "points" / self._directory(point).name

    def _remains(self, handle: str, stage: str) -> Path:
        return self._root / f"{self._directory(handle).name}.{self._installation}.{stage}"


class _Step:
    """Tells a step's begin, and its end when it was reached."""

    def __init__(self, progress: Progress, subject: str, step: str) -> None:
        self._progress = progress
        self._subject = subject
        self._step = step

    def __enter__(self) -> None:
        self._began_s = time.monotonic()
        self._progress(StepStarted(self._subject, self._step))

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self._progress(StepDone(self._subject, self._step, time.monotonic() - self._began_s))


def _owner(machine: Path) -> Owner | None:
    try:
        return msgspec.json.decode((machine / "owner.json").read_bytes(), type=Owner)
    except (OSError, msgspec.DecodeError):
        return None


def _typed(error: SwarmError | OSError, message: str) -> SwarmError:
    """The error as the contract has it: what the system refused is the machine's trouble."""
    if isinstance(error, SwarmError):
        return error
    return MachineError(message, details=str(error), hint="Free space, or see to the cause, and try again.")
