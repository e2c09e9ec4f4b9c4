"""Where the fake provider's files are.

fake/
├── faults.json (.lock)             faults.py
├── <id>/                           a machine; appears whole, by a rename
│   ├── owner.json                  the tag: installation and environment
│   ├── disk/                       the machine's disk, its endpoint's root
│   │   └── run/                    its memory while it runs (memory.py); else of no meaning
│   ├── memory/                     saved memory: the machine is SUSPENDED exactly while this is here
│   ├── memory.partial/             one in the making, or on its way out
│   ├── memory.resumed/             one that a start went on from
│   ├── points/<point>/             disk/, and memory/ where the point has one; appears whole, by a rename
│   ├── points/<point>.partial/     one in the making, or on its way out
│   ├── restoring/                  a copy of a point that is about to take the machine's place (points.py)
│   ├── restoring.partial/          one in the making, or on its way out
│   ├── disk.old/                   the disk that a restore replaced
│   ├── console.log
│   └── process.json                which process runs it (power.py)
├── <id>.<installation>.partial/    a machine in the making: the name is its tag
└── <id>.<installation>.deleting/   a machine on its way out
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import msgspec

from agent_swarm.errors import MachineError, SwarmError
from agent_swarm.model import PointId, Resources

if TYPE_CHECKING:
    from pathlib import Path

    from agent_swarm.model import InstallationId

OWNER = "owner.json"
DISK = "disk"
POINTS = "points"
MEMORY = "memory"

_HANDLE = re.compile(r"[A-Za-z0-9_-]+")
_REMAINS = re.compile(r"(?P<id>[A-Za-z0-9_-]+)\.(?P<installation>[A-Za-z0-9_-]+)\.(?:partial|deleting)")


class Owner(msgspec.Struct, frozen=True):
    """The tag of a machine, and what of its spec later calls need. `image` is the digest that its disk goes back to."""

    installation: str
    environment: str
    kind: str
    image: str
    host_name: str
    resources: Resources


class Layout:
    """The paths of one state directory. A handle is the environment's id, a point's handle
    "<environment id>/<point id>"."""

    def __init__(self, root: Path, installation: InstallationId) -> None:
        self.root = root
        self._installation = installation

    def directory(self, handle: str) -> Path:
        """A machine's directory. Refuses what is no handle: "" and ".." would name other directories."""
        if _HANDLE.fullmatch(handle) is None:
            message = f"{handle!r} is not a handle of the fake provider"
            raise MachineError(message)
        return self.root / handle

    def existing(self, handle: str) -> Path:
        machine = self.directory(handle)
        if not machine.is_dir():
            message = f"there is no machine {handle}"
            raise MachineError(message, hint="`agent-swarm doctor` compares the registry with what exists.")
        return machine

    def remains(self, handle: str, stage: str) -> Path:
        return self.root / f"{self.directory(handle).name}.{self._installation}.{stage}"

    def remains_of(self, path: Path) -> str | None:
        """The id of the machine that these are the remains of, where it was ours."""
        found = _REMAINS.fullmatch(path.name)
        return found["id"] if found is not None and found["installation"] == self._installation else None

    def is_ours(self, path: Path) -> bool:
        """Whether this is the directory of a whole machine of our installation."""
        tag = owner(path)
        whole = _REMAINS.fullmatch(path.name) is None
        return whole and tag is not None and tag.installation == self._installation

    def point(self, machine: Path, point: PointId) -> Path:
        return machine / POINTS / self.directory(point).name

    def point_of(self, point_handle: str) -> Path:
        """A point's directory, there or not."""
        machine, _, point = point_handle.partition("/")
        return self.point(self.directory(machine), PointId(point))


def owner(machine: Path) -> Owner | None:
    """Who a machine belongs to; None where that cannot be told."""
    try:
        return msgspec.json.decode((machine / OWNER).read_bytes(), type=Owner)
    except (OSError, msgspec.DecodeError):
        return None


def owner_or_fail(machine: Path) -> Owner:
    found = owner(machine)
    if found is None:
        message = f"machine {machine.name}: its {OWNER} is missing or damaged"
        raise MachineError(message, hint="Delete it.")
    return found


def typed(error: SwarmError | OSError, message: str) -> SwarmError:
    """The error as the contract has it: what the system refused is the machine's trouble."""
    if isinstance(error, SwarmError):
        return error
    return MachineError(message, details=str(error), hint="Free space, or see to the cause, and try again.")
