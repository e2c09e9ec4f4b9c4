"""The machines that live_contract.py shares between its tests: one that boots, and its forks."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from agent_swarm.events import ignore
from agent_swarm.model import MachineState, SshEndpoint
from agent_swarm.testing.subject import ProviderSubject, facet, new_point

if TYPE_CHECKING:
    from collections.abc import Iterator

    from agent_swarm.model import Endpoint, Image, PointId
    from agent_swarm.providers.base import LiveFork, MachineSpec, Provider, Snapshots, Suspend

COUNTER = "counter"
MARKED = "marked-with-secrets"
PROGRESS_S = 60.0
"""How long a process that lives may take to count on, on a host that is busy."""


@dataclass(frozen=True, slots=True)
class Live:
    """A machine that runs, and commands in it."""

    spec: MachineSpec
    handle: str
    endpoint: Endpoint


@dataclass(frozen=True, slots=True)
class Source:
    """The machine that was booted, and its point with memory."""

    machine: Live
    point: PointId
    point_handle: str
    pid_before: int | None
    count: int
    """How far the counter was before the point was captured."""


class LiveMachines(ProviderSubject):
    """A booted project and its forks.

    The project remembered `early`, wrote it to `file`, and started two processes that count, one of which holds
    a secret. It was captured with its memory; then it remembered `late`, and wrote that.
    """

    @pytest.fixture(scope="class")
    @classmethod
    def snapshots(cls, provider: Provider) -> Snapshots:
        snapshots = facet(provider.snapshots, "snapshots")
        if not snapshots.memory:
            pytest.skip("the provider's points have no memory: `snapshots.memory` is False")
        return snapshots

    @pytest.fixture(scope="class")
    @classmethod
    def forks(cls, snapshots: Snapshots, provider: Provider) -> LiveFork:
        assert snapshots.memory
        return facet(provider.live_fork, "live_fork")

    @pytest.fixture(scope="class")
    @classmethod
    def suspension(cls, provider: Provider) -> Suspend:
        return facet(provider.suspend, "suspend")

    @pytest.fixture(scope="class")
    @classmethod
    def source(cls, provider: Provider, image: Image, forks: LiveFork) -> Source:
        assert forks
        spec = cls.project_spec(image)
        machine = Live(spec, *cls.boot(provider, spec))
        cls.run_process(machine.endpoint, COUNTER)
        cls.run_process(machine.endpoint, MARKED, secret=True)
        cls.remember(machine.endpoint, "early")
        cls.sh(machine.endpoint, "echo early >file; sync")
        pid, point, count = provider.inspect(machine.handle).pid, new_point(), cls.counted(machine)
        handle = provider.capture(machine.handle, point, ignore, memory=True)
        cls.remember(machine.endpoint, "late")
        cls.sh(machine.endpoint, "echo late >file; sync")
        return Source(machine, point, handle, pid, count)

    @pytest.fixture(scope="class")
    @classmethod
    def fork(cls, provider: Provider, image: Image, source: Source) -> Live:
        return cls.forked(provider, image, source.point_handle)

    @pytest.fixture(scope="class")
    @classmethod
    def sibling(cls, provider: Provider, image: Image, source: Source, fork: Live) -> Live:
        """Of the same point, and asked to keep secrets."""
        assert fork
        return cls.forked(provider, image, source.point_handle, keep_secrets=True)

    @pytest.fixture
    @classmethod
    def passing(cls, provider: Provider, image: Image, source: Source) -> Iterator[Live]:
        """A fork for one test."""
        machine = cls.forked(provider, image, source.point_handle)
        yield machine
        provider.delete(machine.handle)

    @classmethod
    def forked(cls, provider: Provider, image: Image, point: str, *, keep_secrets: bool = False) -> Live:
        spec = cls.fork_spec(image, point, keep_secrets=keep_secrets)
        return cls.resumed(provider, spec, provider.create(spec, ignore))

    @classmethod
    def resumed(cls, provider: Provider, spec: MachineSpec, handle: str) -> Live:
        """Start a SUSPENDED machine."""
        assert provider.inspect(handle).state is MachineState.SUSPENDED
        provider.start(handle, ignore)
        assert provider.inspect(handle).state is MachineState.RUNNING
        endpoint = provider.endpoint(handle, timeout_s=cls.boot_timeout_s, progress=ignore)
        return Live(spec, handle, endpoint)

    @classmethod
    def counted(cls, machine: Live, name: str = COUNTER) -> int:
        """How far a process of the machine has counted; fails where it does not live."""
        count = cls.count(machine.endpoint, name)
        assert count is not None, f"process {name} does not live"
        return count

    @classmethod
    def counts_on(cls, machine: Live, name: str = COUNTER) -> bool:
        """Whether the process lives and does its work."""
        before, deadline = cls.counted(machine, name), time.monotonic() + PROGRESS_S
        while cls.counted(machine, name) <= before:  # each look takes as long as a command does
            if time.monotonic() > deadline:
                return False
        return True

    @classmethod
    def has_own_identity(cls, machine: Live, *others: Live) -> bool:
        """Whether a machine has its own host name, and machine-id and host key that none of the others has."""
        mine, theirs = cls.identity(machine.endpoint), [cls.identity(other.endpoint) for other in others]
        keys = [
            live.endpoint.host_key for live in (machine, *others) if isinstance(live.endpoint, SshEndpoint)
        ]
        return (
            mine.host_name == machine.spec.host_name
            and mine.machine_id not in {other.machine_id for other in theirs}
            and mine.random not in {other.random for other in theirs}
            and len(set(keys)) == len(keys)
        )

    @classmethod
    def survives(cls, machine: Live, text: str, count: int) -> bool:
        """Whether a machine went on through everything since it remembered `text` and had counted to `count`."""
        went_on = cls.recall(machine.endpoint) == text and cls.counted(machine) >= count
        return went_on and cls.counts_on(machine)
