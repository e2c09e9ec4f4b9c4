"""The part of the provider contract on saved memory that needs no booted machine: nothing here goes on from it.

What runs inside, and goes on, is in live_contract.py.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import pytest

from agent_swarm import processes
from agent_swarm.errors import BootError, MachineError, SwarmError
from agent_swarm.events import ignore
from agent_swarm.model import MachineState
from agent_swarm.testing import child
from agent_swarm.testing.subject import ProviderSubject, facet, kill, new_point, owned, traces

if TYPE_CHECKING:
    from collections.abc import Iterator

    from agent_swarm.model import Image
    from agent_swarm.providers.base import (
        LiveFork,
        MachineSpec,
        Provider,
        ProviderContext,
        Snapshots,
        Suspend,
    )


class MemoryContract(ProviderSubject):
    """Points with memory and suspended machines: made, dropped, killed and removed."""

    @pytest.fixture
    @classmethod
    def with_memory(cls, provider: Provider) -> Snapshots:
        snapshots = facet(provider.snapshots, "snapshots")
        if not snapshots.memory:
            pytest.skip("the provider's points have no memory: `snapshots.memory` is False")
        return snapshots

    @pytest.fixture
    @classmethod
    def forks(cls, with_memory: Snapshots, provider: Provider) -> LiveFork:
        assert with_memory.memory
        return facet(provider.live_fork, "live_fork")

    @pytest.fixture
    @classmethod
    def suspension(cls, provider: Provider) -> Suspend:
        return facet(provider.suspend, "suspend")

    @pytest.fixture
    @classmethod
    def running(cls, provider: Provider, image: Image) -> Iterator[MachineSpec]:
        """A machine that was started, and may have nothing to boot. Its handle: `handle`."""
        spec = cls.project_spec(image)
        handle = provider.create(spec, ignore)
        provider.start(handle, ignore)
        yield spec
        provider.delete(handle)

    @classmethod
    def handle(cls, provider: Provider, spec: MachineSpec) -> str:
        return owned(provider, spec.id)[0].handle

    # What cannot be met

    def test_memory_of_a_machine_that_does_not_run_cannot_be_captured(
        self, provider: Provider, image: Image
    ) -> None:
        spec = self.project_spec(image)
        handle = provider.create(spec, ignore)
        with pytest.raises(MachineError):
            provider.capture(handle, new_point(), ignore, memory=True)
        assert tuple(owned(provider, spec.id)[0].points) == ()
        assert provider.inspect(handle).state is MachineState.STOPPED

    def test_memory_is_refused_where_points_have_none(self, provider: Provider, running: MachineSpec) -> None:
        if provider.snapshots is not None and provider.snapshots.memory:
            pytest.skip("the provider's points have memory")
        handle = self.handle(provider, running)
        before = provider.inspect(handle)
        with pytest.raises(MachineError):
            provider.capture(handle, new_point(), ignore, memory=True)
        assert provider.inspect(handle) == before
        assert tuple(owned(provider, running.id)[0].points) == ()

    def test_a_machine_that_does_not_run_cannot_be_suspended(
        self, provider: Provider, image: Image, suspension: Suspend
    ) -> None:
        handle = provider.create(self.project_spec(image), ignore)
        with pytest.raises(MachineError):
            suspension.suspend(handle, ignore)
        assert provider.inspect(handle).state is MachineState.STOPPED

    def test_a_suspended_machine_cannot_be_suspended(
        self, provider: Provider, running: MachineSpec, suspension: Suspend
    ) -> None:
        handle = self.handle(provider, running)
        suspension.suspend(handle, ignore)
        with pytest.raises(MachineError):
            suspension.suspend(handle, ignore)
        assert provider.inspect(handle).state is MachineState.SUSPENDED

    # Points with memory

    def test_a_point_with_memory_leaves_its_machine_running(
        self, provider: Provider, running: MachineSpec, with_memory: Snapshots
    ) -> None:
        handle = self.handle(provider, running)
        before = provider.inspect(handle)
        point = new_point()
        made = provider.capture(handle, point, ignore, memory=True)
        assert provider.capture(handle, point, ignore, memory=True) == made
        assert provider.inspect(handle) == before
        assert before.state is MachineState.RUNNING
        assert tuple(owned(provider, running.id)[0].points) == (point,)
        assert with_memory.size(made).memory_bytes > 0

    def test_a_point_with_memory_makes_stopped_machines_too(
        self, provider: Provider, image: Image, running: MachineSpec, with_memory: Snapshots
    ) -> None:
        assert with_memory
        point = provider.capture(self.handle(provider, running), new_point(), ignore, memory=True)
        clone = provider.create(self.task_spec(image, point), ignore)
        assert provider.inspect(clone).state is MachineState.STOPPED
        provider.delete(clone)

    def test_restore_to_a_point_with_memory_is_suspended_and_to_one_without_stopped(
        self, provider: Provider, running: MachineSpec, with_memory: Snapshots
    ) -> None:
        handle = self.handle(provider, running)
        without = provider.capture(handle, new_point(), ignore)
        remembers = provider.capture(handle, new_point(), ignore, memory=True)
        for point, state in (
            (remembers, MachineState.SUSPENDED),
            (without, MachineState.STOPPED),
            (remembers, MachineState.SUSPENDED),
            (remembers, MachineState.SUSPENDED),
        ):
            with_memory.restore(handle, point, ignore)
            assert provider.inspect(handle).state is state
            assert len(owned(provider, running.id)[0].points) == 2

    def test_discard_of_the_point_leaves_the_machine_suspended(
        self, provider: Provider, running: MachineSpec, with_memory: Snapshots
    ) -> None:
        handle, point = self.handle(provider, running), new_point()
        with_memory.restore(handle, provider.capture(handle, point, ignore, memory=True), ignore)
        provider.discard(handle, point)
        assert provider.inspect(handle).state is MachineState.SUSPENDED
        assert tuple(owned(provider, running.id)[0].points) == ()

    def test_capture_with_memory_killed_at_any_instant_and_settled_runs_on(
        self, context: ProviderContext, provider: Provider, running: MachineSpec, with_memory: Snapshots
    ) -> None:
        handle, point = self.handle(provider, running), new_point()
        before = provider.inspect(handle)
        changes = child.run(self.call(context, "capture", handle, point, ignore, memory=True))
        provider.discard(handle, point)
        for instant in self.instants(changes):
            point = new_point()
            kill(self.call(context, "capture", handle, point, ignore, memory=True), instant)
            provider.settle(handle)
            assert provider.inspect(handle) == before, instant
            made = provider.capture(handle, point, ignore, memory=True)
            assert with_memory.size(made).memory_bytes > 0, instant
            provider.discard(handle, point)
            assert tuple(owned(provider, running.id)[0].points) == (), instant
        provider.delete(handle)
        assert traces(context, running.id) == []

    def test_capture_with_memory_killed_at_any_instant_leaves_what_discard_removes(
        self, context: ProviderContext, provider: Provider, running: MachineSpec, with_memory: Snapshots
    ) -> None:
        assert with_memory
        handle, point = self.handle(provider, running), new_point()
        changes = child.run(self.call(context, "capture", handle, point, ignore, memory=True))
        provider.discard(handle, point)
        for instant in self.instants(changes):
            kill(self.call(context, "capture", handle, point, ignore, memory=True), instant)
            provider.settle(handle)
            provider.discard(handle, point)
            assert tuple(owned(provider, running.id)[0].points) == (), instant
            assert provider.inspect(handle).state is MachineState.RUNNING, instant

    def test_restore_to_memory_killed_at_any_instant_and_settled_is_before_or_after(
        self, context: ProviderContext, provider: Provider, running: MachineSpec, with_memory: Snapshots
    ) -> None:
        handle = self.handle(provider, running)
        without = provider.capture(handle, new_point(), ignore)
        remembers = provider.capture(handle, new_point(), ignore, memory=True)
        ends = {without: MachineState.STOPPED, remembers: MachineState.SUSPENDED}
        for origin, goal in ((without, remembers), (remembers, without)):
            with_memory.restore(handle, origin, ignore)
            changes = child.run(self.call(context, "snapshots.restore", handle, goal, ignore))
            for instant in self.instants(changes):
                with_memory.restore(handle, origin, ignore)
                kill(self.call(context, "snapshots.restore", handle, goal, ignore), instant)
                provider.settle(handle)
                assert provider.inspect(handle).state in {MachineState.STOPPED, ends[origin], ends[goal]}
                with_memory.restore(handle, goal, ignore)
                assert provider.inspect(handle).state is ends[goal], instant

    # Forks

    def test_a_machine_from_memory_is_suspended_and_forgets_to_stopped(
        self,
        context: ProviderContext,
        provider: Provider,
        image: Image,
        running: MachineSpec,
        forks: LiveFork,
    ) -> None:
        point = provider.capture(self.handle(provider, running), new_point(), ignore, memory=True)
        assert forks.obstacle(point, self.resources) == ""
        spec = self.fork_spec(image, point)
        fork = provider.create(spec, ignore)
        assert provider.create(spec, ignore) == fork
        assert provider.inspect(fork).state is MachineState.SUSPENDED
        if provider.suspend is not None:
            assert provider.suspend.obstacle(fork) == ""
            provider.suspend.forget(fork)
            assert provider.inspect(fork).state is MachineState.STOPPED
        provider.delete(fork)
        assert traces(context, spec.id) == []

    def test_other_resources_are_an_obstacle_that_create_refuses(
        self,
        context: ProviderContext,
        provider: Provider,
        image: Image,
        running: MachineSpec,
        forks: LiveFork,
    ) -> None:
        point = provider.capture(self.handle(provider, running), new_point(), ignore, memory=True)
        for other in (
            dataclasses.replace(self.resources, memory_mib=2 * self.resources.memory_mib),
            dataclasses.replace(self.resources, cpus=self.resources.cpus + 1),
        ):
            assert forks.obstacle(point, other)
            spec = dataclasses.replace(self.fork_spec(image, point), resources=other)
            with pytest.raises(SwarmError):
                provider.create(spec, ignore)
            assert owned(provider, spec.id) == []
            assert traces(context, spec.id) == []

    def test_a_point_without_memory_or_gone_is_an_obstacle(
        self, provider: Provider, running: MachineSpec, forks: LiveFork
    ) -> None:
        handle, gone = self.handle(provider, running), new_point()
        assert forks.obstacle(provider.capture(handle, new_point(), ignore), self.resources)
        point = provider.capture(handle, gone, ignore, memory=True)
        provider.discard(handle, gone)
        assert forks.obstacle(point, self.resources)

    def test_create_from_memory_killed_at_any_instant_is_completed_by_the_next(
        self,
        context: ProviderContext,
        provider: Provider,
        image: Image,
        running: MachineSpec,
        forks: LiveFork,
    ) -> None:
        assert forks
        point = provider.capture(self.handle(provider, running), new_point(), ignore, memory=True)
        changes = child.run(self.call(context, "create", self.fork_spec(image, point), ignore))
        for instant in self.instants(changes):
            spec = self.fork_spec(image, point)
            kill(self.call(context, "create", spec, ignore), instant)
            assert provider.inspect(provider.create(spec, ignore)).state is MachineState.SUSPENDED, instant
            provider.delete(self.handle(provider, spec))
            assert owned(provider, spec.id) == [], instant
            assert traces(context, spec.id) == [], instant

    def test_a_deleted_source_leaves_its_forks_suspended_and_the_last_fork_leaves_nothing(
        self,
        context: ProviderContext,
        provider: Provider,
        image: Image,
        running: MachineSpec,
        forks: LiveFork,
    ) -> None:
        assert forks
        source = self.handle(provider, running)
        point = provider.capture(source, new_point(), ignore, memory=True)
        handles = [provider.create(self.fork_spec(image, point), ignore) for _ in range(2)]
        provider.delete(source)
        for handle in handles:
            assert provider.inspect(source).state is MachineState.ABSENT
            assert all(remains.kept for remains in owned(provider, running.id))
            assert provider.inspect(handle).state is MachineState.SUSPENDED
            provider.delete(handle)
        assert owned(provider, running.id) == []
        assert traces(context, running.id) == []

    # Suspend

    def test_a_suspended_machine_has_no_process_and_keeps_its_points(
        self, provider: Provider, running: MachineSpec, suspension: Suspend
    ) -> None:
        handle, point = self.handle(provider, running), new_point()
        provider.capture(handle, point, ignore)
        pid = provider.inspect(handle).pid
        process = None if pid is None else processes.describe(pid, "")
        suspension.suspend(handle, ignore)
        assert not processes.alive(process)
        seen = provider.usage(handle)
        assert (seen.state, seen.pid) == (MachineState.SUSPENDED, None)
        assert not seen.memory_bytes
        assert tuple(owned(provider, running.id)[0].points) == (point,)
        assert suspension.obstacle(handle) == ""

    def test_a_suspended_machine_has_no_endpoint(
        self, provider: Provider, running: MachineSpec, suspension: Suspend
    ) -> None:
        handle = self.handle(provider, running)
        suspension.suspend(handle, ignore)
        with pytest.raises(BootError):
            provider.endpoint(handle, timeout_s=24 * 3600, progress=ignore)

    def test_stop_and_settle_leave_a_suspended_machine_suspended(
        self, provider: Provider, running: MachineSpec, suspension: Suspend
    ) -> None:
        handle = self.handle(provider, running)
        suspension.suspend(handle, ignore)
        provider.stop(handle)
        provider.stop(handle, force=True)
        provider.settle(handle)
        assert provider.inspect(handle).state is MachineState.SUSPENDED

    def test_forget_stops_a_suspended_machine_which_starts_from_its_disk(
        self, provider: Provider, running: MachineSpec, suspension: Suspend
    ) -> None:
        handle = self.handle(provider, running)
        suspension.suspend(handle, ignore)
        for _ in range(2):
            suspension.forget(handle)
            assert provider.inspect(handle).state is MachineState.STOPPED
        provider.start(handle, ignore)
        assert provider.inspect(handle).state is MachineState.RUNNING

    def test_forget_and_obstacle_do_nothing_with_other_machines(
        self, provider: Provider, image: Image, running: MachineSpec, suspension: Suspend
    ) -> None:
        stopped = provider.create(self.project_spec(image), ignore)
        for handle in (self.handle(provider, running), stopped):
            before = provider.inspect(handle)
            suspension.forget(handle)
            assert suspension.obstacle(handle) == ""
            assert provider.inspect(handle) == before
        provider.delete(stopped)
        suspension.forget(stopped)
        assert provider.inspect(stopped).state is MachineState.ABSENT

    def test_delete_of_a_suspended_machine_leaves_no_trace(
        self, context: ProviderContext, provider: Provider, running: MachineSpec, suspension: Suspend
    ) -> None:
        handle = self.handle(provider, running)
        suspension.suspend(handle, ignore)
        provider.delete(handle)
        assert owned(provider, running.id) == []
        assert traces(context, running.id) == []

    def test_suspend_killed_at_any_instant_and_settled_is_before_or_after(
        self, context: ProviderContext, provider: Provider, image: Image, suspension: Suspend
    ) -> None:
        def started() -> tuple[MachineSpec, str]:
            spec = self.project_spec(image)
            handle = provider.create(spec, ignore)
            provider.start(handle, ignore)
            return spec, handle

        first = started()[1]
        changes = child.run(self.call(context, "suspend.suspend", first, ignore))
        provider.delete(first)
        for instant in self.instants(changes):
            spec, handle = started()
            before = provider.inspect(handle)
            process = None if before.pid is None else processes.describe(before.pid, "")
            kill(self.call(context, "suspend.suspend", handle, ignore), instant)
            provider.settle(handle)
            seen = provider.inspect(handle)
            assert not (seen.state is MachineState.SUSPENDED and processes.alive(process)), instant
            assert seen == before or seen.state is MachineState.SUSPENDED, instant
            if seen.state is MachineState.RUNNING:
                suspension.suspend(handle, ignore)
            assert provider.inspect(handle).state is MachineState.SUSPENDED, instant
            provider.delete(handle)
            assert traces(context, spec.id) == [], instant

    def test_suspend_killed_at_any_instant_leaves_what_delete_removes(
        self, context: ProviderContext, provider: Provider, image: Image, suspension: Suspend
    ) -> None:
        assert suspension
        first = provider.create(self.project_spec(image), ignore)
        provider.start(first, ignore)
        changes = child.run(self.call(context, "suspend.suspend", first, ignore))
        for instant in self.instants(changes):
            spec = self.project_spec(image)
            handle = provider.create(spec, ignore)
            provider.start(handle, ignore)
            kill(self.call(context, "suspend.suspend", handle, ignore), instant)
            provider.delete(handle)
            assert owned(provider, spec.id) == [], instant
            assert traces(context, spec.id) == [], instant

    def test_forget_killed_at_any_instant_is_completed_by_the_next(
        self, context: ProviderContext, provider: Provider, running: MachineSpec, suspension: Suspend
    ) -> None:
        handle = self.handle(provider, running)
        suspension.suspend(handle, ignore)
        changes = child.run(self.call(context, "suspend.forget", handle))
        for instant in self.instants(changes):
            provider.start(handle, ignore)
            suspension.suspend(handle, ignore)
            kill(self.call(context, "suspend.forget", handle), instant)
            provider.settle(handle)
            seen = provider.inspect(handle).state
            assert seen in {MachineState.SUSPENDED, MachineState.STOPPED}, instant
            suspension.forget(handle)
            assert provider.inspect(handle).state is MachineState.STOPPED, instant
