"""The part of the provider contract on machines that go on from saved memory. One boots; all others are its forks."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import pytest

from agent_swarm.errors import MachineError
from agent_swarm.events import ignore
from agent_swarm.model import MachineState
from agent_swarm.testing import child
from agent_swarm.testing.live_machines import MARKED, Live, LiveMachines
from agent_swarm.testing.subject import kill, new_point, owned, traces

if TYPE_CHECKING:
    from agent_swarm.model import Image, PointId
    from agent_swarm.providers.base import LiveFork, Provider, ProviderContext, Snapshots, Suspend
    from agent_swarm.testing.live_machines import Source


class LiveMachineContract(LiveMachines):
    """What live_machines.py made, and forks of one test where a test changes a machine beyond repair. The tests run in the
    order that they stand in; the sibling is suspended by one of them, and the last one deletes all.
    """

    # The machine that was captured

    def test_a_point_with_memory_leaves_its_machine_running(self, provider: Provider, source: Source) -> None:
        seen = provider.inspect(source.machine.handle)
        assert (seen.state, seen.pid) == (MachineState.RUNNING, source.pid_before)
        assert self.recall(source.machine.endpoint) == "late"
        assert self.sh(source.machine.endpoint, "cat file") == "late"
        assert self.counts_on(source.machine)
        assert self.counts_on(source.machine, MARKED)

    # Forks

    def test_a_fork_has_memory_and_disk_of_the_same_instant(self, fork: Live) -> None:
        assert self.recall(fork.endpoint) == "early"
        assert self.sh(fork.endpoint, "cat file") == "early"

    def test_a_process_goes_on_in_a_fork_where_it_was(self, source: Source, fork: Live) -> None:
        assert self.counted(fork) >= source.count
        assert self.counts_on(fork)

    def test_a_fork_has_an_identity_of_its_own(self, source: Source, fork: Live) -> None:
        assert self.has_own_identity(fork, source.machine)

    def test_siblings_have_identities_and_entropy_of_their_own(
        self, source: Source, fork: Live, sibling: Live
    ) -> None:
        assert self.has_own_identity(sibling, fork, source.machine)

    def test_a_fork_drops_processes_with_secrets(self, source: Source, fork: Live) -> None:
        assert self.count(fork.endpoint, MARKED) is None
        assert self.counts_on(source.machine, MARKED)

    def test_a_fork_that_was_asked_to_keeps_processes_with_secrets(self, sibling: Live) -> None:
        assert self.counts_on(sibling, MARKED)
        assert self.counts_on(sibling)

    def test_what_a_fork_does_shows_nowhere_else(self, source: Source, fork: Live, sibling: Live) -> None:
        self.remember(fork.endpoint, "in the fork")
        self.sh(fork.endpoint, "echo forked >file; sync")
        for other, text in ((sibling, "early"), (source.machine, "late")):
            assert self.recall(other.endpoint) == text
            assert self.sh(other.endpoint, "cat file") == text

    def test_a_fork_of_a_fork_goes_on_where_that_was(
        self, provider: Provider, image: Image, source: Source, fork: Live
    ) -> None:
        self.remember(fork.endpoint, "second generation")
        count = self.counted(fork)
        point = provider.capture(fork.handle, new_point(), ignore, memory=True)
        grandchild = self.forked(provider, image, point)
        assert self.recall(grandchild.endpoint) == "second generation"
        assert self.counted(grandchild) >= count
        assert self.counts_on(grandchild)
        assert self.has_own_identity(grandchild, fork, source.machine)
        provider.delete(grandchild.handle)
        assert self.recall(fork.endpoint) == "second generation"

    def test_secrets_kept_in_one_fork_do_not_live_on_in_its_forks(
        self, provider: Provider, image: Image, sibling: Live
    ) -> None:
        point = provider.capture(sibling.handle, new_point(), ignore, memory=True)
        grandchild = self.forked(provider, image, point)
        assert self.count(grandchild.endpoint, MARKED) is None
        assert self.counts_on(grandchild)
        provider.delete(grandchild.handle)

    def test_other_resources_are_an_obstacle_and_the_same_are_none(
        self, source: Source, forks: LiveFork
    ) -> None:
        other = dataclasses.replace(self.resources, memory_mib=2 * self.resources.memory_mib)
        assert forks.obstacle(source.point_handle, other)
        assert forks.obstacle(source.point_handle, self.resources) == ""

    # Suspend

    def test_a_suspended_machine_goes_on_where_it_was(
        self, provider: Provider, sibling: Live, suspension: Suspend
    ) -> None:
        self.remember(sibling.endpoint, "through the night")
        before, count = self.identity(sibling.endpoint), self.counted(sibling)
        suspension.suspend(sibling.handle, ignore)
        assert provider.inspect(sibling.handle).state is MachineState.SUSPENDED
        assert suspension.obstacle(sibling.handle) == ""
        awake = self.resumed(provider, sibling.spec, sibling.handle)
        assert self.recall(awake.endpoint) == "through the night"
        assert self.counted(awake) >= count
        assert self.counts_on(awake)
        assert self.counts_on(awake, MARKED)
        after = self.identity(awake.endpoint)
        assert (after.host_name, after.machine_id) == (before.host_name, before.machine_id)

    def test_a_machine_is_suspended_and_woken_again_and_again(
        self, provider: Provider, passing: Live, suspension: Suspend
    ) -> None:
        for text in ("once", "twice", "thrice"):
            self.remember(passing.endpoint, text)
            suspension.suspend(passing.handle, ignore)
            passing = self.resumed(provider, passing.spec, passing.handle)
            assert self.recall(passing.endpoint) == text
        assert self.counts_on(passing)

    def test_suspend_leaves_the_points_whole(
        self, provider: Provider, image: Image, passing: Live, suspension: Suspend
    ) -> None:
        self.remember(passing.endpoint, "in the point")
        point = provider.capture(passing.handle, new_point(), ignore, memory=True)
        self.remember(passing.endpoint, "after the point")
        suspension.suspend(passing.handle, ignore)
        made = self.forked(provider, image, point)
        assert self.recall(made.endpoint) == "in the point"
        provider.delete(made.handle)
        assert self.recall(self.resumed(provider, passing.spec, passing.handle).endpoint) == "after the point"

    def test_a_stopped_machine_cannot_be_suspended(
        self, provider: Provider, passing: Live, suspension: Suspend
    ) -> None:
        provider.stop(passing.handle, force=True)
        with pytest.raises(MachineError):
            suspension.suspend(passing.handle, ignore)
        assert provider.inspect(passing.handle).state is MachineState.STOPPED

    # Restore

    def test_restore_brings_memory_processes_and_disk_back_to_any_point(
        self, provider: Provider, snapshots: Snapshots, passing: Live
    ) -> None:
        points: dict[str, tuple[str, int]] = {}
        for text in ("one", "two"):
            self.remember(passing.endpoint, text)
            self.sh(passing.endpoint, f"echo {text} >file; sync")
            count = self.counted(passing)
            points[text] = (provider.capture(passing.handle, new_point(), ignore, memory=True), count)
        before = self.identity(passing.endpoint)
        for text in ("one", "two", "one"):
            point, count = points[text]
            snapshots.restore(passing.handle, point, ignore)
            back = self.resumed(provider, passing.spec, passing.handle)
            assert self.recall(back.endpoint) == text
            assert self.sh(back.endpoint, "cat file") == text
            assert self.counted(back) >= count
            assert self.counts_on(back)
            after = self.identity(back.endpoint)
            assert (after.host_name, after.machine_id) == (before.host_name, before.machine_id)
            assert after.random != before.random
            before = after
            self.remember(back.endpoint, "lost")
            self.sh(back.endpoint, "echo lost >file; sync")

    def test_a_restored_machine_keeps_its_own_processes_with_secrets(
        self, provider: Provider, snapshots: Snapshots, passing: Live
    ) -> None:
        self.run_process(passing.endpoint, "own-secret", secret=True)
        point = provider.capture(passing.handle, new_point(), ignore, memory=True)
        snapshots.restore(passing.handle, point, ignore)
        assert self.counts_on(self.resumed(provider, passing.spec, passing.handle), "own-secret")

    def test_discard_of_the_point_that_a_machine_runs_from_leaves_it_running(
        self, provider: Provider, snapshots: Snapshots, passing: Live
    ) -> None:
        point = new_point()
        self.remember(passing.endpoint, "discarded")
        handle = provider.capture(passing.handle, point, ignore, memory=True)
        snapshots.restore(passing.handle, handle, ignore)
        back = self.resumed(provider, passing.spec, passing.handle)
        provider.discard(passing.handle, point)
        assert self.recall(back.endpoint) == "discarded"
        assert self.counts_on(back)
        assert self.sh(back.endpoint, "cat file") == "early"

    # Delete

    def test_a_deleted_source_harms_no_fork_running_or_not(
        self, context: ProviderContext, provider: Provider, image: Image, source: Source
    ) -> None:
        parent = self.forked(provider, image, source.point_handle)
        self.remember(parent.endpoint, "inherited")
        self.sh(parent.endpoint, "echo inherited >file; sync")
        point = provider.capture(parent.handle, new_point(), ignore, memory=True)
        running = self.forked(provider, image, point)
        waiting_spec = self.fork_spec(image, point)
        waiting = provider.create(waiting_spec, ignore)
        provider.delete(parent.handle)
        assert provider.inspect(parent.handle).state is MachineState.ABSENT
        assert all(remains.kept for remains in owned(provider, parent.spec.id))
        for heir in (running, self.resumed(provider, waiting_spec, waiting)):
            assert self.recall(heir.endpoint) == "inherited"
            assert self.sh(heir.endpoint, "cat file") == "inherited"
            assert self.counts_on(heir)
        for handle in (running.handle, waiting):
            provider.delete(handle)
        assert owned(provider, parent.spec.id) == []
        assert traces(context, parent.spec.id) == []

    # Killed callers

    def test_capture_killed_at_any_instant_and_settled_runs_on(
        self, context: ProviderContext, provider: Provider, image: Image, passing: Live
    ) -> None:
        def call(point: PointId) -> child.Call:
            return self.call(context, "capture", passing.handle, point, ignore, memory=True)

        first = new_point()
        changes = child.run(call(first))
        provider.discard(passing.handle, first)
        pid = provider.inspect(passing.handle).pid
        for instant in self.instants(changes):
            point, text, count = new_point(), f"instant {instant}", self.counted(passing)
            self.remember(passing.endpoint, text)
            kill(call(point), instant)
            provider.settle(passing.handle)
            seen = provider.inspect(passing.handle)
            assert (seen.state, seen.pid) == (MachineState.RUNNING, pid), instant
            assert self.survives(passing, text, count), instant
            provider.discard(passing.handle, point)
            assert tuple(owned(provider, passing.spec.id)[0].points) == (), instant
        handle = provider.capture(passing.handle, new_point(), ignore, memory=True)
        made = self.forked(provider, image, handle)
        assert self.survives(made, text, count)
        provider.delete(made.handle)
        provider.delete(passing.handle)
        assert traces(context, passing.spec.id) == []
        assert traces(context, made.spec.id) == []

    def test_suspend_killed_at_any_instant_and_settled_goes_on(
        self, context: ProviderContext, provider: Provider, passing: Live, suspension: Suspend
    ) -> None:
        assert suspension
        changes = child.run(self.call(context, "suspend.suspend", passing.handle, ignore))
        machine = self.resumed(provider, passing.spec, passing.handle)
        for instant in self.instants(changes):
            text, count = f"instant {instant}", self.counted(machine)
            self.remember(machine.endpoint, text)
            before = provider.inspect(machine.handle)
            kill(self.call(context, "suspend.suspend", machine.handle, ignore), instant)
            provider.settle(machine.handle)
            seen = provider.inspect(machine.handle)
            if seen.state is MachineState.SUSPENDED:
                machine = self.resumed(provider, machine.spec, machine.handle)
            else:
                assert seen == before, instant
            assert self.survives(machine, text, count), instant
        provider.delete(machine.handle)
        assert traces(context, machine.spec.id) == []

    def test_start_from_memory_killed_at_any_instant_stays_suspended_or_has_all_of_it(
        self, context: ProviderContext, provider: Provider, image: Image, source: Source
    ) -> None:
        first = provider.create(self.fork_spec(image, source.point_handle), ignore)
        changes = child.run(self.call(context, "start", first, ignore))
        provider.delete(first)
        for instant in self.instants(changes):
            spec = self.fork_spec(image, source.point_handle)
            handle = provider.create(spec, ignore)
            kill(self.call(context, "start", handle, ignore), instant)
            provider.settle(handle)
            seen = provider.inspect(handle).state
            assert seen in {MachineState.SUSPENDED, MachineState.RUNNING}, instant
            provider.start(handle, ignore)
            assert provider.inspect(handle).state is MachineState.RUNNING, instant
            endpoint = provider.endpoint(handle, timeout_s=self.boot_timeout_s, progress=ignore)
            fork = Live(spec, handle, endpoint)
            assert self.survives(fork, "early", source.count), instant
            assert self.has_own_identity(fork, source.machine), instant
            assert self.count(endpoint, MARKED) is None, instant
            provider.delete(handle)
            assert traces(context, spec.id) == [], instant

    def test_restore_killed_at_any_instant_and_settled_is_before_or_after(
        self, context: ProviderContext, provider: Provider, passing: Live
    ) -> None:
        self.remember(passing.endpoint, "at the point")
        count = self.counted(passing)
        point = provider.capture(passing.handle, new_point(), ignore, memory=True)
        call = self.call(context, "snapshots.restore", passing.handle, point, ignore)
        machine = passing
        changes = child.run(call)
        for instant in self.instants(changes):
            if provider.inspect(machine.handle).state is MachineState.SUSPENDED:
                machine = self.resumed(provider, machine.spec, machine.handle)
            self.remember(machine.endpoint, "since then")
            before = provider.inspect(machine.handle)
            kill(call, instant)
            provider.settle(machine.handle)
            seen = provider.inspect(machine.handle)
            if seen.state is MachineState.RUNNING:
                assert seen == before, instant
                assert self.survives(machine, "since then", count), instant
            elif seen.state is MachineState.SUSPENDED:
                machine = self.resumed(provider, machine.spec, machine.handle)
                assert self.survives(machine, "at the point", count), instant
            else:
                assert seen.state is MachineState.STOPPED, instant
            child.run(call)
            assert provider.inspect(machine.handle).state is MachineState.SUSPENDED, instant
        machine = self.resumed(provider, machine.spec, machine.handle)
        assert self.survives(machine, "at the point", count)
        provider.delete(machine.handle)
        assert traces(context, machine.spec.id) == []

    # The end

    def test_delete_of_all_leaves_no_trace(
        self, context: ProviderContext, provider: Provider, source: Source
    ) -> None:
        provider.delete(source.machine.handle)  # before its forks: it is kept for them
        machines = list(provider.list_owned())
        for machine in machines:
            provider.delete(machine.handle)
        assert list(provider.list_owned()) == []
        identifiers = {source.machine.spec.id, *(machine.id for machine in machines)}
        assert [trace for identifier in identifiers for trace in traces(context, identifier)] == []
