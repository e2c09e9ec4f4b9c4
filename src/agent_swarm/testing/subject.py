"""What the contract suites need to know of the provider under test: set or override what differs."""

from __future__ import annotations

import os
import secrets
import shlex
import signal
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, ClassVar, TypeVar

import psutil
import pytest

from agent_swarm import processes, runner
from agent_swarm.config import Config
from agent_swarm.errors import MachineError
from agent_swarm.events import ignore
from agent_swarm.files import remove_tree
from agent_swarm.model import (
    SESSION_SECRETS,
    EnvironmentId,
    Firmware,
    Image,
    ImageDigest,
    InstallationId,
    Kind,
    LocalEndpoint,
    PointId,
    Resources,
    Seed,
)
from agent_swarm.paths import Paths
from agent_swarm.providers.base import FromImage, FromPoint, MachineSpec, ProviderContext
from agent_swarm.testing import child

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Iterator, Sequence

    from agent_swarm.model import Endpoint
    from agent_swarm.providers.base import OwnedMachine, Provider

CANARY = "canary-in-user-data-5b1f0c"
"""Stands in every seed's user-data; it must not show in an argument vector."""

ENDING_S = 20.0
"""How long a process may take to end that has been told to."""


_SHARED = "/dev/shm"
Facet = TypeVar("Facet")


@dataclass(frozen=True, slots=True)
class Identity:
    """What tells a machine from every other. `random` is drawn anew each time that it is asked for, or
    at the latest at each start from saved memory."""

    host_name: str
    machine_id: str
    random: str


class ProviderSubject:
    """Base of the suites: fixtures, and helpers that the tests share.

    A subclass sets `create_provider = staticmethod(...)`, a function that can be imported by name (tests
    call it in other processes), and defines `damage`. For machines that really boot it also overrides
    the fixture `image` and the methods `seed` and `execute`.
    """

    boot_timeout_s: ClassVar[float] = 300.0
    """From `start` to the first command."""
    resources: ClassVar[Resources] = Resources(cpus=1, memory_mib=512, disk_gib=10)
    kill_instants: ClassVar[int | None] = 6
    """At how many instants, spread evenly, a method is killed; None: at every one."""

    @staticmethod
    def create_provider(context: ProviderContext) -> Provider:
        """What the entry point of the provider names."""
        raise NotImplementedError

    @pytest.fixture(scope="class")
    @classmethod
    def context(cls, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ProviderContext]:
        """A state directory of its own for each test class."""
        paths = Paths.at(tmp_path_factory.mktemp("state"))
        paths.prepare()
        yield ProviderContext(paths=paths, config=Config(), installation=InstallationId(secrets.token_hex(6)))
        remove_tree(paths.run)  # it may lie outside the temporary directory

    @pytest.fixture(scope="class")
    @classmethod
    def image(cls) -> Image:
        """What projects are made from. This one has no files: for providers that need none."""
        return bare_image()

    @pytest.fixture(scope="class")
    @classmethod
    def provider(cls, context: ProviderContext) -> Iterator[Provider]:
        """The provider under test; what tests left is deleted at the end, those that use others first."""
        provider = cls.create_provider(context)
        yield provider
        for machine in list(provider.list_owned()):
            provider.delete(machine.handle)

    @classmethod
    def seed(cls, identifier: EnvironmentId, host_name: str) -> Seed:
        """The machine's cloud-init seed. One that a real guest reads makes `execute` possible."""
        return Seed(
            instance_id=identifier,
            user_data="#cloud-config\n{}\n",
            meta_data=f"instance-id: {identifier}\nlocal-hostname: {host_name}\n",
            network_config="version: 2\n",
        )

    @classmethod
    def execute(cls, endpoint: Endpoint, argv: Sequence[str]) -> subprocess.CompletedProcess[bytes]:
        """Run a command in a machine, in a directory that lasts: by SSH, the user's home directory."""
        if not isinstance(endpoint, LocalEndpoint):
            pytest.fail("override `execute`: this provider's machines are reached by SSH")
        return runner.run(argv, timeout_s=60, cwd=endpoint.root, check=False)

    @classmethod
    def damage(cls, context: ProviderContext, identifier: EnvironmentId) -> None:
        """Break a stopped machine from outside: remove its disk."""
        raise NotImplementedError

    @classmethod
    def write_disk(cls, context: ProviderContext, identifier: EnvironmentId, text: str) -> None:
        """Put a short text on the disk of a machine that does not run, from outside. See `read_disk`."""

    @classmethod
    def read_disk(cls, context: ProviderContext, identifier: EnvironmentId) -> str | None:
        """The text that `write_disk` put last on the disk that a stopped machine has now, "" where none was. None: this
        subject cannot look, and tests of machines that never booted compare no contents."""
        del context, identifier
        return None

    # What runs inside; the defaults are for a Linux guest

    @classmethod
    def identity(cls, endpoint: Endpoint) -> Identity:
        words = cls.sh(endpoint, "hostname; cat /etc/machine-id /proc/sys/kernel/random/uuid").split()
        return Identity(*words)

    @classmethod
    def remember(cls, endpoint: Endpoint, text: str) -> None:
        """Put a text into the machine's memory, and nowhere on its disk.

        As root where that needs no password: logind removes a user's own files from /dev/shm when the last
        session ends (RemoveIPC= in logind.conf(5)).
        """
        keep = f"tee {_SHARED}/remembered >/dev/null"
        cls.sh(
            endpoint, f"printf %s {shlex.quote(text)} | if sudo -n true; then sudo -n {keep}; else {keep}; fi"
        )

    @classmethod
    def recall(cls, endpoint: Endpoint) -> str:
        """What `remember` was given last; "" where the memory has nothing of it."""
        return cls.sh(endpoint, f"cat {_SHARED}/remembered 2>/dev/null || true")

    @classmethod
    def run_process(cls, endpoint: Endpoint, name: str, *, secret: bool = False) -> None:
        """Start a process that counts in memory and outlives its session; return when it has begun to.
        `secret`: it is marked as one that was given a session's secrets."""
        marked = f"{SESSION_SECRETS}=1" if secret else ""
        counting = f"echo $$ >{_SHARED}/{name}.pid; while :; do echo >>{_SHARED}/{name}; sleep 0.5; done"
        cls.sh(
            endpoint,
            f"env {marked} setsid sh -c {shlex.quote(counting)} </dev/null >/dev/null 2>&1 & "
            f"until [ -s {_SHARED}/{name} ]; do sleep 0.1; done",
        )

    @classmethod
    def count(cls, endpoint: Endpoint, name: str) -> int | None:
        """How far a process of `run_process` has counted; None where none of that name lives."""
        alive = f"grep -qs {name} /proc/$(cat {_SHARED}/{name}.pid 2>/dev/null || echo 0)/cmdline"  # a zombie's is empty
        counted = cls.sh(endpoint, f"if {alive}; then wc -l <{_SHARED}/{name}; fi")
        return int(counted) if counted else None

    # What the tests share

    @classmethod
    def make_spec(cls, kind: Kind, source: FromImage | FromPoint) -> MachineSpec:
        """A new machine's spec, with an id of its own and the canary in its user-data."""
        identifier = EnvironmentId(secrets.token_hex(6))
        host_name = f"{kind}-{identifier}"
        seed = cls.seed(identifier, host_name)
        return MachineSpec(
            id=identifier,
            kind=kind,
            host_name=host_name,
            source=source,
            resources=cls.resources,
            seed=Seed(
                seed.instance_id,
                f"{seed.user_data.rstrip()}\n# {CANARY}\n",
                seed.meta_data,
                seed.network_config,
            ),
        )

    @classmethod
    def project_spec(cls, image: Image) -> MachineSpec:
        return cls.make_spec(Kind.PROJECT, FromImage(image))

    @classmethod
    def task_spec(cls, image: Image, point_handle: str) -> MachineSpec:
        return cls.make_spec(Kind.TASK, FromPoint(point_handle, image))

    @classmethod
    def fork_spec(cls, image: Image, point_handle: str, *, keep_secrets: bool = False) -> MachineSpec:
        source = FromPoint(point_handle, image, memory=True, keep_secrets=keep_secrets)
        return cls.make_spec(Kind.TASK, source)

    @classmethod
    def call(cls, context: ProviderContext, method: str, *arguments: object, **named: object) -> child.Call:
        return child.Call(cls.create_provider, context, method, arguments, named)

    @classmethod
    def instants(cls, changes: int) -> list[int]:
        """At which of `changes` changes to kill: the first, the last, and evenly between."""
        wanted = changes if cls.kill_instants is None else min(changes, cls.kill_instants)
        if wanted <= 1:
            return [1][:wanted]
        return sorted({1 + round(step * (changes - 1) / (wanted - 1)) for step in range(wanted)})

    @classmethod
    def boot(cls, provider: Provider, spec: MachineSpec) -> tuple[str, Endpoint]:
        """Make a machine, start it and wait for it."""
        handle = provider.create(spec, ignore)
        provider.start(handle, ignore)
        return handle, provider.endpoint(handle, timeout_s=cls.boot_timeout_s, progress=ignore)

    @classmethod
    def sh(cls, endpoint: Endpoint, script: str) -> str:
        """What a shell script writes in a machine. Raises MachineError when it fails."""
        done = cls.execute(endpoint, ["sh", "-c", script])
        if done.returncode != 0:
            message = f"{script!r} failed with exit code {done.returncode}"
            raise MachineError(message, details=done.stderr.decode("utf-8", "replace"))
        return done.stdout.decode("utf-8", "replace").strip()


def bare_image() -> Image:
    """An image without files."""
    digest = ImageDigest("0" * 64)
    paths = Paths.at(Paths.from_environment().home)
    return Image(
        digest=digest,
        name="test:none",
        architecture="x86_64",
        firmware=Firmware.BIOS,
        disk=paths.image(digest) / "disk.qcow2",
        kernel=None,
        initrd=None,
        kernel_command_line="",
        virtual_size_bytes=1 << 30,
        size_bytes=0,
        has_guest_agent=True,
        created_at=datetime(2025, 1, 1, tzinfo=UTC),
    )


def new_point() -> PointId:
    return PointId(secrets.token_hex(6))


def owned(provider: Provider, identifier: EnvironmentId) -> list[OwnedMachine]:
    """What the provider lists under an id: at most one."""
    return [machine for machine in provider.list_owned() if machine.id == identifier]


def facet(found: Facet | None, name: str) -> Facet:
    """A provider's facet; the test is skipped where the provider is without."""
    if found is None:
        pytest.skip(f"the provider has no facet `{name}`")
    return found


def kill(call: child.Call, instant: int) -> None:
    """Kill a call before its change number `instant`.

    How many changes a call makes may depend on how quick the machine is: one that makes fewer than the call
    that was counted comes to its end, and what is checked afterwards holds all the same.
    """
    killed = child.killed(call, before=instant)
    assert killed or instant > 1, "the call was not killed before its first change"


def argument_vectors(text: str) -> list[str]:
    """The argument vectors of all processes on this host that hold `text`."""
    return [line for _, line in _processes(text)]


def traces(context: ProviderContext, identifier: EnvironmentId, *, settle_s: float = ENDING_S) -> list[str]:
    """Files below the state directory, and processes, that are named after a machine.

    A process that is about to end by itself, because its starter was killed, gets `settle_s` to do so.
    """
    roots = {context.paths.home, context.paths.run}
    files = [str(path) for root in roots for path in root.rglob(f"*{identifier}*")]
    ending = (processes.describe(pid, identifier) for pid, _ in _processes(identifier))
    left = [record for record in ending if record and not processes.wait_for_end(record, timeout_s=settle_s)]
    return files + [f"process {record.pid}" for record in left]


def kill_process(provider: Provider, handle: str) -> None:
    """End a machine's process as the kernel does when memory runs out, and wait until it is gone."""
    pid = provider.inspect(handle).pid
    if pid is None:
        pytest.skip("the provider's machines are no processes of this host")
    record = processes.describe(pid, "")
    assert record is not None
    os.kill(pid, signal.SIGKILL)
    assert processes.wait_for_end(record, timeout_s=ENDING_S)


def _processes(text: str) -> list[tuple[int, str]]:
    found = []
    for process in psutil.process_iter(["cmdline"]):
        line = " ".join(process.info["cmdline"] or ())
        if text in line:
            found.append((process.pid, line))
    return found
