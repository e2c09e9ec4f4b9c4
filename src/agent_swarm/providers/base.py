"""The provider contract.

A provider makes, starts, stops and deletes machines, and captures points of their lives: a project's baselines,
a task's checkpoints. It knows nothing of the registry, of names that users gave, or of what runs inside. Everything is
synchronous. `agent_swarm.testing.provider_contract` is this page as a test suite; a provider is done
when it passes.

What holds for every method:

- A machine is named by the environment's id, which is unique for ever. Every machine is tagged with
  the installation's id and its own id at creation, before it can run.
- Killing the caller at any instant leaves only what a later `delete(handle)` or `discard` removes, and
  `list_owned` lists.
- Arguments that cannot be met raise before anything is changed.
- Errors are SwarmErrors: ProviderUnavailableError when the back end itself cannot be used,
  MachineError for one machine's trouble, ResourceLimitError where the back end refuses by quota.
- No secret is put into an argument vector, a log, user-data or an error.

Abilities that not every back end has are facets: typed attributes that are None where absent, so that
a missing one is known before anything happens.

A machine's states and what leads from one to the other:

    create ──► STOPPED ──start──► RUNNING ──stop──► STOPPED
    create from a point with memory, restore to one, suspend ──► SUSPENDED ──start──► RUNNING
    SUSPENDED ──forget──► STOPPED, with the disk of the instant that the memory was saved at

What a start from saved memory owes (the hygiene contract) holds before `start` returns; where a part of it
cannot be done, the machine does not run and is SUSPENDED as before:

- The guest's random number generator has new entropy from the host, its wall clock is right to the second.
- Where the memory was another machine's, the guest has an identity of its own: host name, machine-id and SSH
  host keys; and no process lives in it that was given a session's secrets (`model.SESSION_SECRETS` in its
  environment), unless the new machine was asked to keep them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from agent_swarm.config import Config
    from agent_swarm.events import Progress
    from agent_swarm.model import (
        Endpoint,
        EnvironmentId,
        Image,
        InstallationId,
        Kind,
        MachineStatus,
        PointId,
        Resources,
        Seed,
    )
    from agent_swarm.paths import Paths


@dataclass(frozen=True, slots=True)
class ProviderContext:
    """What a provider is made from."""

    paths: Paths
    config: Config
    installation: InstallationId


@dataclass(frozen=True, slots=True)
class Readiness:
    """Whether a provider can be used on this host, and what would make it usable."""

    usable: bool
    summary: str
    """One line: "QEMU 7.2.22, TCG (software emulation)"."""
    missing: Sequence[str] = ()
    """What is missing, one line each."""
    install_command: str = ""
    """The exact shell command that installs what is missing, "" where there is none."""
    warnings: Sequence[str] = ()
    """What works less well than it should: a fallback, a weaker isolation."""


@dataclass(frozen=True, slots=True)
class FromImage:
    """A new project machine's disk is an overlay of this image."""

    image: Image


@dataclass(frozen=True, slots=True)
class FromPoint:
    """A task machine's disk is an overlay of this point's, made by the same provider.

    `image` is the image that the project was made from: it holds the kernel of a direct boot.
    """

    handle: str
    image: Image
    memory: bool = False
    """The new machine is SUSPENDED: its first start goes on from the point's memory. `LiveFork.obstacle` has
    said "" for it."""
    keep_secrets: bool = False
    """With `memory`: processes that hold a session's secrets live on in the new machine."""


@dataclass(frozen=True, slots=True)
class MachineSpec:
    """Everything a provider needs to make one machine."""

    id: EnvironmentId
    kind: Kind
    host_name: str
    source: FromImage | FromPoint
    resources: Resources
    """`disk_gib` is at least the source's virtual size; the caller has checked."""
    seed: Seed


@dataclass(frozen=True, slots=True)
class OwnedMachine:
    """A machine, or the remains of one, that carries our installation's tag."""

    id: EnvironmentId
    handle: str
    points: Sequence[PointId] = ()
    """The points that were captured from it."""
    kept: bool = False
    """It was deleted, but others build on its files. They go with the last of those; nothing needs doing."""


@dataclass(frozen=True, slots=True)
class PointSize:
    """What one point takes of the host's disk, in bytes. Layers that others need are not counted; saved memory is,
    though machines that go on from it may share it."""

    disk_bytes: int
    """What only this point's deletion would free of disks."""
    memory_bytes: int
    """Its saved memory; 0 where it has none."""


class Snapshots(Protocol):
    """Points of any machine, which it can be put back to."""

    memory: bool
    """Whether `capture(memory=True)` works: points of running machines with their processes."""

    def restore(self, handle: str, point_handle: str, progress: Progress) -> None:
        """Put the machine back to a point that was captured from it: SUSPENDED where the point has memory,
        else STOPPED. A machine that runs loses what it does now: the caller has captured that, or does not want it.

        Points stay, also those that were captured after this one. Idempotent. On an error the machine is stopped
        or as it was, and every point is unharmed.
        """
        ...

    def size(self, point_handle: str) -> PointSize:
        """What the point takes. Zeros where it is gone. Costs a look at file names and sizes."""
        ...


class LiveFork(Protocol):
    """New machines from points with memory: `FromPoint.memory`."""

    def obstacle(self, point_handle: str, resources: Resources) -> str:
        """Why a machine of these resources cannot go on from the point's memory here and now, as half a
        sentence ("it was saved by QEMU 7.2.22, and 10.0.2 is installed"); "" where it can. Cheap."""
        ...


class Suspend(Protocol):
    """Memory to disk and back."""

    def suspend(self, handle: str, progress: Progress) -> None:
        """Save the running machine's memory and free the host's: SUSPENDED afterwards. Points are unharmed.
        A machine that does not run: MachineError. On an error the machine runs on."""
        ...

    def forget(self, handle: str) -> None:
        """Drop the memory of a SUSPENDED machine: STOPPED, its disk as at the instant that the memory was saved,
        as after a power cut. Any other machine: nothing happens."""
        ...

    def obstacle(self, handle: str) -> str:
        """Why the SUSPENDED machine cannot go on here and now, as `LiveFork.obstacle`; "" where it can, and
        for any other machine."""
        ...


class Pricing(Protocol):
    """What a machine costs per hour; for clouds. No provider has this facet yet."""


class Provider(Protocol):
    name: str
    """Lower-case identifier, as in the config and in `providers`."""
    simulated: bool
    """True where "machines" are not real ones; shown in every listing."""

    @property
    def snapshots(self) -> Snapshots | None: ...
    @property
    def live_fork(self) -> LiveFork | None: ...
    @property
    def suspend(self) -> Suspend | None: ...
    @property
    def pricing(self) -> Pricing | None: ...

    def probe(self) -> Readiness:
        """Look at the host and say whether this provider works here. Changes nothing, never raises,
        returns within a few seconds."""
        ...

    def create(self, spec: MachineSpec, progress: Progress) -> str:
        """Make the machine, stopped, and return its handle.

        Idempotent by `spec.id`: called again after success it returns the same handle and changes
        nothing; called after an interrupted attempt it completes or replaces that. Two calls for
        different ids never collide. On an error nothing of the machine is left.
        """
        ...

    def start(self, handle: str, progress: Progress) -> None:
        """Start the machine; return when its process, not its operating system, runs. A SUSPENDED one goes on
        where its memory was saved, and the hygiene contract (above) holds on return.

        A running machine: nothing happens. The machine outlives the calling process. Raises MachineError; a
        SUSPENDED machine is then still that.
        """
        ...

    def endpoint(self, handle: str, *, timeout_s: float, progress: Progress) -> Endpoint:
        """How to reach the running machine. Blocks until the machine has told its SSH host key through
        a channel of the provider's own; at most `timeout_s`, then BootError with the console's
        last lines. A machine that died meanwhile: BootError at once."""
        ...

    def stop(self, handle: str, *, force: bool = False, timeout_s: float = 90.0) -> None:
        """Shut the machine down in an orderly way; after `timeout_s`, or at once with `force`, cut its
        power. A machine that is not running, or not there: nothing happens."""
        ...

    def delete(self, handle: str) -> None:
        """Remove the machine, running or not, with its points. Silent where it, or a part of it, is gone.

        Machines that were made from its points are not harmed: files that they build on are kept until the last
        of them is deleted too, and `list_owned` says so.
        """
        ...

    def capture(self, handle: str, point: PointId, progress: Progress, *, memory: bool = False) -> str:
        """Freeze the machine as it is now into an immutable point; return the point's handle.

        The machine may run (it goes on after a pause of well under a second, its sessions and connections
        intact) or be stopped. With `memory` the point also holds the memory of that very instant: only for a
        running machine, and where `snapshots.memory`; MachineError otherwise. Without, the guest's file systems
        are frozen for the instant where the guest can. Idempotent by `point`. On an error the machine is as it was.
        """
        ...

    def discard(self, handle: str, point: PointId) -> None:
        """Remove one point of the machine `handle`. Silent where it is gone. Machines that were made from it, the
        machine itself and its other points are not harmed: what they build on is kept."""
        ...

    def settle(self, handle: str) -> None:
        """End what a killed caller left of a capture, a restore or a suspension: a machine that was paused for it
        goes on. Called before anything else where an operation was abandoned. Silent where there is nothing."""
        ...

    def inspect(self, handle: str) -> MachineStatus:
        """What the machine does now. Never raises for a broken machine: BROKEN with the reason, ABSENT
        where there is nothing. Cheap: called for every environment by every `list`."""
        ...

    def usage(self, handle: str) -> MachineStatus:
        """`inspect`, with the memory and disk that the machine uses filled in. May cost more."""
        ...

    def console(self, handle: str) -> Path | None:
        """The file that the machine's serial console is written to, None where there is none."""
        ...

    def list_owned(self) -> Iterator[OwnedMachine]:
        """Every machine, or remains of one, tagged with our installation's id; nobody else's."""
        ...
