"""The nouns: what an environment, a baseline, an image and an operation are.

All types are frozen; a change makes a new value. Sizes carry their unit in the name, times are
aware UTC datetimes, durations are seconds as float.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, NewType

from agent_swarm.errors import UsageError

if TYPE_CHECKING:
    from datetime import datetime
    from pathlib import Path

InstallationId = NewType("InstallationId", str)
"""12 hex digits, made once per state directory; tags every machine that is ours."""

EnvironmentId = NewType("EnvironmentId", str)
"""12 hex digits; names the machine's files, sockets and processes, so it stays short."""

PointId = NewType("PointId", str)
"""12 hex digits; one point in a machine's life that was captured: a baseline or a checkpoint."""

BaselineId = PointId
CheckpointId = PointId

OperationId = NewType("OperationId", int)

ImageDigest = NewType("ImageDigest", str)
"""sha256 of the image's qcow2 file, 64 hex digits."""

SESSION_SECRETS = "AGENT_SWARM_SESSION_SECRETS"
"""An environment variable of every process in a guest that was given a session's secrets: such processes do not
live on in a fork (providers/base.py, the hygiene contract)."""

NAME_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
NAME_RULE = "1 to 63 letters, digits, '.', '_' or '-', starting with a letter or digit"


def validate_name(name: str, *, what: str = "name") -> str:
    """`name` itself when it is allowed (NAME_RULE), else a UsageError.

    The rule makes every name usable as it is in a path, a host name alias, a branch and a shell.
    """
    if NAME_PATTERN.fullmatch(name) is None or name.endswith((".lock", ".")) or ".." in name:
        shown = name if len(name) <= 40 else name[:37] + "..."
        message = f"{shown!r} is not a valid {what}"
        raise UsageError(message, hint=f"Use {NAME_RULE}; no '..', and not ending in '.' or '.lock'.")
    return name


class Kind(StrEnum):
    PROJECT = "project"
    TASK = "task"


class Status(StrEnum):
    """What the registry knows of an environment.

    CREATING and DELETING belong to an open operation (see `operations/recovery.py`); FAILED is a
    project whose set-up failed: its machine is left for inspection. The rest is what the
    provider reports.
    """

    CREATING = "creating"
    RUNNING = "running"
    STOPPED = "stopped"
    SUSPENDED = "suspended"
    FAILED = "failed"
    DELETING = "deleting"
    BROKEN = "broken"


class MachineState(StrEnum):
    """What a provider says about a machine."""

    RUNNING = "running"
    STOPPED = "stopped"
    SUSPENDED = "suspended"
    """It does not run, and the next start goes on from memory that was saved."""
    BROKEN = "broken"
    ABSENT = "absent"


@dataclass(frozen=True, slots=True)
class Resources:
    cpus: int
    memory_mib: int
    disk_gib: int


@dataclass(frozen=True, slots=True)
class SshEndpoint:
    """How to reach a machine by SSH. `host_key` is the public key line ("ssh-ed25519 AAAA...")
    which the provider learned through a channel of its own, never from the network."""

    host: str
    port: int
    user: str
    host_key: str


@dataclass(frozen=True, slots=True)
class LocalEndpoint:
    """A machine whose commands run as local processes in `root` (the fake provider's)."""

    root: Path


Endpoint = SshEndpoint | LocalEndpoint


@dataclass(frozen=True, slots=True)
class Environment:
    """The registry's record of one project or task machine."""

    id: EnvironmentId
    kind: Kind
    name: str
    provider: str
    handle: str
    """The provider's own name of the machine, opaque here; "" until the provider made it."""
    image: ImageDigest | None
    baseline_id: BaselineId | None
    """What a task was cloned from; None for a project."""
    parent_id: EnvironmentId | None
    """A task's project."""
    resources: Resources
    status: Status
    endpoint: Endpoint | None
    created_at: datetime
    updated_at: datetime
    started_at: datetime | None
    """When it was last started; None while it is stopped."""
    reason: str = ""
    """Why it is FAILED or BROKEN."""
    origin: str = ""
    """What a fork was made from: "fix-1@before"; "" for everything else."""
    checkpoint_id: CheckpointId | None = None
    """The checkpoint that the present state descends from."""

    @property
    def label(self) -> str:
        """How messages name it: "task fix-1", "project web"."""
        return f"{self.kind} {self.name}"


@dataclass(frozen=True, slots=True)
class Baseline:
    """One immutable generation of a project that tasks are cloned from."""

    id: BaselineId
    project_id: EnvironmentId
    generation: int
    handle: str
    """The provider's own name of it; "" until the provider made it."""
    ready: bool
    created_at: datetime
    memory: bool = False
    """It holds the project's running processes, too: tasks go on from there instead of booting."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """One immutable point of a task, which it can be put back to and forked from."""

    id: CheckpointId
    environment_id: EnvironmentId
    name: str
    parent_id: CheckpointId | None
    """The checkpoint that the task's state descended from when this one was made."""
    handle: str
    """The provider's own name of it; "" until the provider made it."""
    ready: bool
    """False while it is being made or deleted."""
    memory: bool
    automatic: bool
    """Made by `restore` or `fork`, and removed after checkpoints.keep_automatic_h."""
    created_at: datetime


class OperationKind(StrEnum):
    CREATE = "create"
    START = "start"
    STOP = "stop"
    SUSPEND = "suspend"
    BASELINE = "baseline"
    CHECKPOINT = "checkpoint"
    """Making one, or deleting one."""
    RESTORE = "restore"
    DELETE = "delete"


class OperationState(StrEnum):
    OPEN = "open"
    DONE = "done"
    FAILED = "failed"
    ROLLED_BACK = "rolled-back"


@dataclass(frozen=True, slots=True)
class Operation:
    """One journalled change of an environment. `step` is the last step that was begun."""

    id: OperationId
    environment_id: EnvironmentId
    kind: OperationKind
    state: OperationState
    step: str
    started_at: datetime
    ended_at: datetime | None
    error: str


@dataclass(frozen=True, slots=True)
class MachineStatus:
    """What `Provider.inspect` saw. `reason` says why a machine is broken or could not be looked at."""

    state: MachineState
    reason: str = ""
    pid: int | None = None
    memory_bytes: int | None = None
    """Memory of the host that the machine uses now (PSS where the system can tell)."""
    disk_bytes: int | None = None
    """Bytes on the host's disk that belong to this machine alone."""


class Firmware(StrEnum):
    """How a machine starts: its kernel given by us, or the firmware reads the disk."""

    DIRECT = "direct"
    BIOS = "bios"
    UEFI = "uefi"


@dataclass(frozen=True, slots=True)
class Image:
    """An immutable OS disk. Everything lies in one directory named by the digest.

    `kernel`, `initrd` and `kernel_command_line` are set when, and only when, `firmware` is DIRECT.
    """

    digest: ImageDigest
    name: str
    """What `init-base --from` was given: "build:trixie", "ubuntu:24.04", a path or URL."""
    architecture: str
    """"x86_64" or "aarch64" (uname -m)."""
    firmware: Firmware
    disk: Path
    kernel: Path | None
    initrd: Path | None
    kernel_command_line: str
    virtual_size_bytes: int
    size_bytes: int
    has_guest_agent: bool
    """False: the seed has cloud-init install qemu-guest-agent at the first boot."""
    created_at: datetime


@dataclass(frozen=True, slots=True)
class Seed:
    """The three files of a cloud-init NoCloud seed, as text.

    Source: https://docs.cloud-init.io/en/latest/reference/datasources/nocloud.html
    """

    instance_id: str
    user_data: str
    meta_data: str
    network_config: str
