"""The provider contract.

A provider makes, starts, stops and deletes machines, and captures a project's disk as a baseline.
It knows nothing of the registry, of names that users gave, or of what runs inside. Everything is
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
        BaselineId,
        Endpoint,
        EnvironmentId,
        Image,
        InstallationId,
        Kind,
        MachineStatus,
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
class FromBaseline:
    """A task machine's disk is an overlay of this baseline, made by the same provider.

    `image` is the image that the project was made from: it holds the kernel of a direct boot.
    """

    handle: str
    image: Image


@dataclass(frozen=True, slots=True)
class MachineSpec:
    """Everything a provider needs to make one machine."""

    id: EnvironmentId
    kind: Kind
    host_name: str
    source: FromImage | FromBaseline
    resources: Resources
    """`disk_gib` is at least the source's virtual size; the caller has checked."""
    seed: Seed


@dataclass(frozen=True, slots=True)
class OwnedMachine:
    """A machine, or the remains of one, that carries our installation's tag."""

    id: EnvironmentId
    handle: str
    baselines: Sequence[BaselineId] = ()
    """The baselines that were captured from it."""


class Snapshots(Protocol):
    """Checkpoints of machines: step 2 of the product. No provider has this facet yet."""


class LiveFork(Protocol):
    """Forks of running machines, memory included: step 2 of the product. No provider has this facet yet."""


class Suspend(Protocol):
    """Memory to disk and back: step 2 of the product. No provider has this facet yet."""


class Pricing(Protocol):
    """What a machine costs per hour; for clouds. No provider has this facet yet."""


class Provider(Protocol):
    name: str
    """Lower-case identifier, as in the config and in `providers`."""
    simulated: bool
    """True where "machines" are not real ones; shown in every listing."""
    snapshots: Snapshots | None
    live_fork: LiveFork | None
    suspend: Suspend | None
    pricing: Pricing | None

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
        """Start the machine; return when its process, not its operating system, runs.

        A running machine: nothing happens. The machine outlives the calling process.
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
        """Remove the machine, running or not, with its baselines. Silent where it, or a part of it, is
        gone. The caller has made sure that no other machine was cloned from its baselines."""
        ...

    def capture(self, handle: str, baseline: BaselineId, progress: Progress) -> str:
        """Freeze the project machine's disk as it is now into an immutable baseline; return its handle.

        The machine may run (it goes on after a pause of well under a second, file systems frozen where the guest
        can) or be stopped. Idempotent by `baseline`. On an error the machine is as it was.
        """
        ...

    def discard(self, handle: str, baseline: BaselineId) -> None:
        """Remove one baseline of the project machine `handle`. Silent where it is gone. The caller has
        made sure that no machine was cloned from it. `handle`'s machine, where it still exists, is not
        harmed: what it builds on is kept until it is deleted too."""
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
