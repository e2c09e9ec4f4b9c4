"""The files of one machine, and the small records among them.

    projects|tasks/<environment id>/
    ├── owner.json        the tag: whose machine this is; the directory appears with it
    ├── machine.json      what the machine is (definition.py); written last, so that it means "complete"
    ├── layers/0001.qcow2, 0002.qcow2, ...
    │                     the disk; each builds on another of them, the first on the image (project) or on
    │                     a layer of another machine (task). Files never move. Only the active one is written
    ├── points/<id>/      a point: point.json says which layer it is; memory.json, memory and state are there
    │                     where it has memory (memory.py), uefi-vars.fd where the machine has UEFI
    ├── saved/            memory that the next start goes on from, or that the running QEMU went on from and still
    │                     maps; links to a point's, or a suspension's own. `.saved` in the making
    ├── saving/           memory in the making
    ├── kept.json         the machine was deleted, but others build on its layers (storage.py)
    ├── seed.iso          cloud-init's NoCloud seed
    ├── uefi-vars.fd      UEFI variables, where the machine starts by UEFI
    ├── console.log       the serial console since the last start
    ├── qemu.log, passt.log   what these programs complained of since the last start
    ├── runtime.json      port, accelerator and network of the last start; the SSH host key that it was given
    ├── qemu.pid          written by QEMU itself
    └── qemu.lock         locked by the running QEMU: free means that no QEMU of this machine lives

A directory in the making, or in its removal, is called .<environment id>.<installation id> instead, so that
it carries the tag at every instant.

Sockets and the process record are in `Paths.run`. Every path that is kept in a file is relative, so the
state directory can be moved while its machines are stopped.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import msgspec

from agent_swarm.errors import MachineError
from agent_swarm.files import read_bytes, write_atomically
from agent_swarm.model import EnvironmentId, InstallationId, Kind, PointId

if TYPE_CHECKING:
    from pathlib import Path

    from agent_swarm.paths import Paths

FORMAT_VERSION = 1
POINT_RECORD = "point.json"


class Owner(msgspec.Struct, frozen=True):
    """owner.json."""

    installation: InstallationId
    environment: EnvironmentId
    kind: Kind


class PointRecord(msgspec.Struct, frozen=True):
    """points/<id>/point.json: the layer that the point's disk is; it is never written again."""

    layer: int
    created_at: str


class Runtime(msgspec.Struct, frozen=True):
    """runtime.json: what was chosen at the last start."""

    ssh_port: int
    accelerator: str
    network: str
    host_key: str = ""
    """The SSH host key that a machine was given when it went on from another's memory; "" else: the guest tells."""


@dataclass(frozen=True, slots=True)
class MachineFiles:
    """Where one machine's files are. Making it touches nothing."""

    id: EnvironmentId
    kind: Kind
    directory: Path
    paths: Paths

    @classmethod
    def of(cls, paths: Paths, kind: Kind, environment: EnvironmentId) -> MachineFiles:
        return cls(id=environment, kind=kind, directory=paths.machine(kind, environment), paths=paths)

    @property
    def handle(self) -> str:
        return f"{self.kind}/{self.id}"

    @property
    def marker(self) -> str:
        """Stands in QEMU's argument vector, as the machine's -name."""
        return f"agent-swarm-{self.id}"

    def remains(self, installation: InstallationId) -> Path:
        """The directory's name before it is complete enough to be tagged, and while it is removed."""
        return self.directory.with_name(f".{self.id}.{installation}")

    @property
    def owner(self) -> Path:
        return self.directory / "owner.json"

    @property
    def definition(self) -> Path:
        return self.directory / "machine.json"

    @property
    def layers(self) -> Path:
        return self.directory / "layers"

    def layer(self, number: int) -> Path:
        return self.directory.joinpath("layers", f"{number:04d}.qcow2")

    @property
    def points(self) -> Path:
        return self.directory / "points"

    def point(self, point: PointId) -> Path:
        """A point's directory; it appears whole, by a rename."""
        return self.points / point

    def point_record(self, point: PointId) -> Path:
        return self.point(point) / POINT_RECORD

    @property
    def saved(self) -> Path:
        return self.directory / "saved"

    @property
    def saving(self) -> Path:
        return self.directory / "saving"

    @property
    def kept(self) -> Path:
        return self.directory / "kept.json"

    @property
    def seed(self) -> Path:
        return self.directory / "seed.iso"

    @property
    def uefi_variables(self) -> Path:
        return self.directory / "uefi-vars.fd"

    @property
    def console(self) -> Path:
        return self.directory / "console.log"

    @property
    def qemu_log(self) -> Path:
        return self.directory / "qemu.log"

    @property
    def passt_log(self) -> Path:
        return self.directory / "passt.log"

    @property
    def runtime(self) -> Path:
        return self.directory / "runtime.json"

    @property
    def pid_file(self) -> Path:
        return self.directory / "qemu.pid"

    @property
    def lock(self) -> Path:
        return self.directory / "qemu.lock"

    @property
    def qmp_socket(self) -> Path:
        return self.paths.qmp_socket(self.id)

    @property
    def agent_socket(self) -> Path:
        return self.paths.agent_socket(self.id)

    @property
    def process_record(self) -> Path:
        return self.paths.process_record(self.id)


_KINDS = {kind.value: kind for kind in Kind}


def parse_handle(paths: Paths, handle: str) -> MachineFiles:
    """The files that a handle ("project/0123456789ab") names. Raises MachineError for what is no handle."""
    kind, _, environment = handle.partition("/")
    if kind not in _KINDS or not environment.isalnum():
        message = f"{handle!r} is not a handle of the qemu provider"
        raise MachineError(message, hint="`agent-swarm doctor` checks the registry.")
    return MachineFiles.of(paths, _KINDS[kind], EnvironmentId(environment))


def parse_remains(name: str) -> tuple[EnvironmentId, InstallationId] | None:
    """What `MachineFiles.remains` was made from; None for any other name."""
    parts = name.split(".")
    return (EnvironmentId(parts[1]), InstallationId(parts[2])) if len(parts) == 3 and not parts[0] else None


def point_handle(files: MachineFiles, point: PointId) -> str:
    return f"{files.handle}/{point}"


def parse_point_handle(paths: Paths, handle: str) -> tuple[MachineFiles, PointId]:
    """The machine's files and the id of a point, of the point's handle. Raises MachineError."""
    machine, _, point = handle.rpartition("/")
    return parse_handle(paths, machine), PointId(point)


Record = TypeVar("Record", bound=msgspec.Struct)


def read(path: Path, record: type[Record]) -> Record | None:
    """The record in a file, None where there is no file. Raises MachineError where it cannot be read."""
    try:
        return msgspec.json.decode(read_bytes(path), type=record)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.DecodeError) as error:
        message = f"{path.name} of {path.parent.name} cannot be read"
        raise MachineError(
            message, details=f"{path}: {error}", hint="Delete the machine, or restore the file."
        ) from error


def write(path: Path, record: msgspec.Struct) -> None:
    write_atomically(path, msgspec.json.format(msgspec.json.encode(record)))
