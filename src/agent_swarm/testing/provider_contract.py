"""The provider contract as tests: what every provider must pass, ours and those of third parties.

    from agent_swarm.testing.provider_contract import (
        LiveMachineContract,
        ProviderContract,
        ProviderSubject,
        RunningMachineContract,
    )
    from my_package import create_provider

    class Subject(ProviderSubject):
        create_provider = staticmethod(create_provider)

        @classmethod
        def damage(cls, context, identifier):
            (context.paths.home / "mine" / identifier / "disk").unlink()

    class TestContract(Subject, ProviderContract): ...
    class TestRunning(Subject, RunningMachineContract): ...
    class TestLive(Subject, LiveMachineContract): ...

`ProviderContract` (with snapshot_contract.py and memory_contract.py) starts machines but never waits for one to boot.
`RunningMachineContract` boots four, `LiveMachineContract` one, shared by their tests. What a facet that is None would do is
skipped, with the facet's name. All have fixtures of class scope, so with pytest-xdist a class belongs in one worker:
`--dist loadscope`.
`ProviderSubject` (subject.py) says what can be overridden. It needs pytest and psutil.
"""

from __future__ import annotations

import concurrent.futures
import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from agent_swarm import processes
from agent_swarm.errors import BootError, MachineError, SwarmError
from agent_swarm.events import ignore
from agent_swarm.model import InstallationId, Kind, MachineState
from agent_swarm.providers.base import FromPoint, ProviderContext
from agent_swarm.testing import child
from agent_swarm.testing.live_contract import LiveMachineContract
from agent_swarm.testing.memory_contract import MemoryContract
from agent_swarm.testing.running_contract import RunningMachineContract
from agent_swarm.testing.snapshot_contract import SnapshotContract
from agent_swarm.testing.subject import (
    CANARY,
    ProviderSubject,
    argument_vectors,
    kill,
    kill_process,
    new_point,
    owned,
    traces,
)

if TYPE_CHECKING:
    from agent_swarm.model import Image
    from agent_swarm.providers.base import Provider

__all__ = ["LiveMachineContract", "ProviderContract", "ProviderSubject", "RunningMachineContract"]


class ProviderContract(SnapshotContract, MemoryContract):
    """Machines that are made, started, killed and removed; none is waited for to boot."""

    # The provider itself

    def test_name_is_a_lower_case_identifier(self, provider: Provider) -> None:
        assert re.fullmatch(r"[a-z][a-z0-9-]*", provider.name)

    def test_abilities_are_attributes(self, provider: Provider) -> None:
        assert isinstance(provider.simulated, bool)
        for facet in ("snapshots", "live_fork", "suspend", "pricing"):
            assert hasattr(provider, facet), facet

    def test_probe_says_that_it_is_usable_here(self, provider: Provider) -> None:
        readiness = provider.probe()
        assert readiness.usable, readiness.missing
        assert readiness.summary
        assert "\n" not in readiness.summary

    # Create

    def test_a_new_machine_is_stopped(self, provider: Provider, image: Image) -> None:
        handle = provider.create(self.project_spec(image), ignore)
        assert handle
        assert provider.inspect(handle).state is MachineState.STOPPED

    def test_create_again_returns_the_same_machine_unchanged(self, provider: Provider, image: Image) -> None:
        spec, point = self.project_spec(image), new_point()
        handle = provider.create(spec, ignore)
        provider.capture(handle, point, ignore)
        assert provider.create(spec, ignore) == handle
        assert [tuple(found.points) for found in owned(provider, spec.id)] == [(point,)]

    def test_create_again_leaves_a_running_machine_running(self, provider: Provider, image: Image) -> None:
        spec = self.project_spec(image)
        handle = provider.create(spec, ignore)
        provider.start(handle, ignore)
        before = provider.inspect(handle)
        assert provider.create(spec, ignore) == handle
        assert provider.inspect(handle) == before
        provider.stop(handle, force=True)

    def test_creates_side_by_side_do_not_collide(self, provider: Provider, image: Image) -> None:
        specs = [self.project_spec(image) for _ in range(4)]
        with concurrent.futures.ThreadPoolExecutor(len(specs)) as pool:
            handles = list(pool.map(lambda spec: provider.create(spec, ignore), specs))
        assert len(set(handles)) == len(specs)
        assert {provider.inspect(handle).state for handle in handles} == {MachineState.STOPPED}
        assert all(owned(provider, spec.id) for spec in specs)

    def test_clones_of_one_point_side_by_side_do_not_collide(self, provider: Provider, image: Image) -> None:
        project = provider.create(self.project_spec(image), ignore)
        point = provider.capture(project, new_point(), ignore)
        specs = [self.task_spec(image, point) for _ in range(4)]
        with concurrent.futures.ThreadPoolExecutor(len(specs)) as pool:
            handles = list(pool.map(lambda spec: provider.create(spec, ignore), specs))
        assert {provider.inspect(handle).state for handle in handles} == {MachineState.STOPPED}

    def test_create_from_a_missing_point_fails_and_leaves_nothing(
        self, context: ProviderContext, provider: Provider, image: Image
    ) -> None:
        project = self.project_spec(image)
        handle = provider.create(project, ignore)
        point = new_point()
        gone = provider.capture(handle, point, ignore)
        provider.discard(handle, point)
        spec = self.make_spec(Kind.TASK, FromPoint(gone, image))
        with pytest.raises(SwarmError):
            provider.create(spec, ignore)
        assert owned(provider, spec.id) == []
        assert traces(context, spec.id) == []

    def test_create_killed_at_any_instant_is_completed_by_the_next(
        self, context: ProviderContext, provider: Provider, image: Image
    ) -> None:
        changes = child.run(self.call(context, "create", self.project_spec(image), ignore))
        for instant in self.instants(changes):
            spec = self.project_spec(image)
            kill(self.call(context, "create", spec, ignore), instant)
            handle = provider.create(spec, ignore)
            assert provider.inspect(handle).state is MachineState.STOPPED, instant
            assert [found.handle for found in owned(provider, spec.id)] == [handle], instant
            provider.delete(handle)
            assert traces(context, spec.id) == [], instant

    def test_create_killed_at_any_instant_leaves_what_is_listed_and_deletable(
        self, context: ProviderContext, provider: Provider, image: Image
    ) -> None:
        changes = child.run(self.call(context, "create", self.project_spec(image), ignore))
        for instant in self.instants(changes):
            spec = self.project_spec(image)
            kill(self.call(context, "create", spec, ignore), instant)
            for remains in owned(provider, spec.id):
                assert provider.inspect(remains.handle).state is not MachineState.RUNNING, instant
                provider.delete(remains.handle)
            assert owned(provider, spec.id) == [], instant
            assert traces(context, spec.id) == [], instant

    # Start, stop

    def test_start_runs_a_machine_that_outlives_its_starter(
        self, context: ProviderContext, provider: Provider, image: Image
    ) -> None:
        handle = provider.create(self.project_spec(image), ignore)
        child.run(self.call(context, "start", handle, ignore))
        assert provider.inspect(handle).state is MachineState.RUNNING
        provider.stop(handle, force=True)
        assert provider.inspect(handle).state is MachineState.STOPPED

    def test_start_of_a_running_machine_changes_nothing(self, provider: Provider, image: Image) -> None:
        handle = provider.create(self.project_spec(image), ignore)
        provider.start(handle, ignore)
        before = provider.inspect(handle)
        provider.start(handle, ignore)
        assert provider.inspect(handle) == before
        provider.stop(handle, force=True)

    def test_start_killed_at_any_instant_leaves_what_delete_removes(
        self, context: ProviderContext, provider: Provider, image: Image
    ) -> None:
        first = provider.create(self.project_spec(image), ignore)
        changes = child.run(self.call(context, "start", first, ignore))
        provider.delete(first)
        for instant in self.instants(changes):
            spec = self.project_spec(image)
            handle = provider.create(spec, ignore)
            kill(self.call(context, "start", handle, ignore), instant)
            provider.delete(handle)
            assert owned(provider, spec.id) == [], instant
            assert traces(context, spec.id) == [], instant

    def test_start_killed_at_any_instant_is_completed_by_the_next(
        self, context: ProviderContext, provider: Provider, image: Image
    ) -> None:
        first = provider.create(self.project_spec(image), ignore)
        changes = child.run(self.call(context, "start", first, ignore))
        provider.delete(first)
        for instant in self.instants(changes):
            spec = self.project_spec(image)
            handle = provider.create(spec, ignore)
            kill(self.call(context, "start", handle, ignore), instant)
            provider.start(handle, ignore)
            assert provider.inspect(handle).state is MachineState.RUNNING, instant
            provider.delete(handle)
            assert traces(context, spec.id) == [], instant

    def test_stop_of_what_does_not_run_is_silent(self, provider: Provider, image: Image) -> None:
        handle = provider.create(self.project_spec(image), ignore)
        provider.stop(handle)
        provider.stop(handle, force=True)
        assert provider.inspect(handle).state is MachineState.STOPPED
        provider.delete(handle)
        provider.stop(handle)
        assert provider.inspect(handle).state is MachineState.ABSENT

    def test_a_machine_whose_process_died_is_stopped_and_starts_again(
        self, provider: Provider, image: Image
    ) -> None:
        handle = provider.create(self.project_spec(image), ignore)
        provider.start(handle, ignore)
        kill_process(provider, handle)
        assert provider.inspect(handle).state is MachineState.STOPPED
        provider.start(handle, ignore)
        assert provider.inspect(handle).state is MachineState.RUNNING
        provider.stop(handle, force=True)

    def test_start_of_a_machine_that_is_gone_fails(self, provider: Provider, image: Image) -> None:
        handle = provider.create(self.project_spec(image), ignore)
        provider.delete(handle)
        with pytest.raises(MachineError):
            provider.start(handle, ignore)

    def test_user_data_is_in_no_argument_vector(self, provider: Provider, image: Image) -> None:
        handle = provider.create(self.project_spec(image), ignore)
        provider.start(handle, ignore)
        assert argument_vectors(CANARY) == []
        provider.stop(handle, force=True)

    # Endpoint and console

    def test_endpoint_of_a_stopped_machine_is_a_boot_error_at_once(
        self, provider: Provider, image: Image
    ) -> None:
        handle = provider.create(self.project_spec(image), ignore)
        with pytest.raises(BootError):
            provider.endpoint(handle, timeout_s=24 * 3600, progress=ignore)

    def test_endpoint_of_a_machine_that_died_is_a_boot_error_at_once(
        self, provider: Provider, image: Image
    ) -> None:
        handle = provider.create(self.project_spec(image), ignore)
        provider.start(handle, ignore)
        kill_process(provider, handle)
        with pytest.raises(BootError):
            provider.endpoint(handle, timeout_s=24 * 3600, progress=ignore)

    def test_console_of_a_started_machine_is_a_file_or_none(self, provider: Provider, image: Image) -> None:
        handle = provider.create(self.project_spec(image), ignore)
        provider.start(handle, ignore)
        console = provider.console(handle)
        assert console is None or console.is_file()
        provider.delete(handle)
        assert provider.console(handle) is None or not Path(str(provider.console(handle))).exists()

    # Delete

    def test_delete_of_a_running_machine_leaves_no_trace(
        self, context: ProviderContext, provider: Provider, image: Image
    ) -> None:
        spec = self.project_spec(image)
        handle = provider.create(spec, ignore)
        provider.capture(handle, new_point(), ignore)
        provider.start(handle, ignore)
        pid = provider.inspect(handle).pid
        process = None if pid is None else processes.describe(pid, "")
        provider.delete(handle)
        assert not processes.alive(process)
        assert provider.inspect(handle).state is MachineState.ABSENT
        assert owned(provider, spec.id) == []
        assert traces(context, spec.id) == []

    def test_delete_of_what_is_gone_is_silent(self, provider: Provider, image: Image) -> None:
        handle = provider.create(self.project_spec(image), ignore)
        provider.delete(handle)
        provider.delete(handle)
        assert provider.inspect(handle).state is MachineState.ABSENT

    def test_delete_of_a_clone_leaves_its_project_and_siblings(
        self, provider: Provider, image: Image
    ) -> None:
        project = provider.create(self.project_spec(image), ignore)
        point = provider.capture(project, new_point(), ignore)
        clone = provider.create(self.task_spec(image, point), ignore)
        sibling = provider.create(self.task_spec(image, point), ignore)
        provider.delete(clone)
        assert provider.inspect(project).state is MachineState.STOPPED
        assert provider.inspect(sibling).state is MachineState.STOPPED
        provider.start(sibling, ignore)
        provider.stop(sibling, force=True)

    def test_delete_killed_at_any_instant_is_completed_by_the_next(
        self, context: ProviderContext, provider: Provider, image: Image
    ) -> None:
        first = provider.create(self.project_spec(image), ignore)
        provider.start(first, ignore)
        changes = child.run(self.call(context, "delete", first))
        for instant in self.instants(changes):
            spec = self.project_spec(image)
            handle = provider.create(spec, ignore)
            provider.start(handle, ignore)
            kill(self.call(context, "delete", handle), instant)
            left = traces(context, spec.id, settle_s=0)
            assert not left or owned(provider, spec.id), left
            provider.inspect(handle)
            provider.delete(handle)
            assert owned(provider, spec.id) == [], instant
            assert traces(context, spec.id) == [], instant

    # Capture, discard

    def test_capture_of_a_stopped_machine_is_idempotent(self, provider: Provider, image: Image) -> None:
        project, point = provider.create(self.project_spec(image), ignore), new_point()
        handle = provider.capture(project, point, ignore)
        assert provider.capture(project, point, ignore) == handle
        assert provider.inspect(project).state is MachineState.STOPPED

    def test_two_captures_are_two_points(self, provider: Provider, image: Image) -> None:
        spec, points = self.project_spec(image), [new_point(), new_point()]
        project = provider.create(spec, ignore)
        handles = {provider.capture(project, point, ignore) for point in points}
        assert len(handles) == 2
        assert [set(found.points) for found in owned(provider, spec.id)] == [set(points)]
        for handle in handles:
            clone = provider.create(self.task_spec(image, handle), ignore)
            assert provider.inspect(clone).state is MachineState.STOPPED

    def test_capture_killed_at_any_instant_is_completed_by_the_next(
        self, context: ProviderContext, provider: Provider, image: Image
    ) -> None:
        project = provider.create(self.project_spec(image), ignore)
        changes = child.run(self.call(context, "capture", project, new_point(), ignore))
        for instant in self.instants(changes):
            point = new_point()
            kill(self.call(context, "capture", project, point, ignore), instant)
            handle = provider.capture(project, point, ignore)
            clone = provider.create(self.task_spec(image, handle), ignore)
            provider.start(project, ignore)
            provider.stop(project, force=True)
            provider.delete(clone)

    def test_capture_killed_at_any_instant_leaves_what_discard_removes(
        self, context: ProviderContext, provider: Provider, image: Image
    ) -> None:
        spec = self.project_spec(image)
        project = provider.create(spec, ignore)
        changes = child.run(self.call(context, "capture", project, new_point(), ignore))
        for instant in self.instants(changes):
            point = new_point()
            kill(self.call(context, "capture", project, point, ignore), instant)
            provider.discard(project, point)
            assert all(point not in found.points for found in owned(provider, spec.id)), instant
            provider.start(project, ignore)
            provider.stop(project, force=True)

    def test_discard_removes_the_point_and_leaves_its_machine(self, provider: Provider, image: Image) -> None:
        spec, point, kept = self.project_spec(image), new_point(), new_point()
        project = provider.create(spec, ignore)
        provider.capture(project, point, ignore)
        provider.capture(project, kept, ignore)
        provider.discard(project, point)
        assert [tuple(found.points) for found in owned(provider, spec.id)] == [(kept,)]
        provider.start(project, ignore)
        assert provider.inspect(project).state is MachineState.RUNNING
        provider.stop(project, force=True)

    def test_discard_of_what_is_gone_is_silent(self, provider: Provider, image: Image) -> None:
        project, point = provider.create(self.project_spec(image), ignore), new_point()
        provider.capture(project, point, ignore)
        provider.discard(project, point)
        provider.discard(project, point)
        provider.delete(project)
        provider.discard(project, point)
        assert provider.inspect(project).state is MachineState.ABSENT

    # Inspect, usage, list

    def test_a_damaged_machine_is_broken_with_a_reason_and_can_be_deleted(
        self, context: ProviderContext, provider: Provider, image: Image
    ) -> None:
        spec, other = self.project_spec(image), provider.create(self.project_spec(image), ignore)
        handle = provider.create(spec, ignore)
        self.damage(context, spec.id)
        seen = provider.inspect(handle)
        assert seen.state is MachineState.BROKEN
        assert seen.reason
        assert provider.usage(handle).state is MachineState.BROKEN
        with pytest.raises(MachineError):
            provider.start(handle, ignore)
        assert provider.inspect(other).state is MachineState.STOPPED
        provider.delete(handle)
        assert traces(context, spec.id) == []

    def test_usage_tells_the_disk_of_a_stopped_machine(self, provider: Provider, image: Image) -> None:
        handle = provider.create(self.project_spec(image), ignore)
        usage = provider.usage(handle)
        assert usage.state is MachineState.STOPPED
        assert usage.disk_bytes is None or usage.disk_bytes > 0
        assert not usage.memory_bytes

    def test_usage_of_what_is_gone_is_absent(self, provider: Provider, image: Image) -> None:
        handle = provider.create(self.project_spec(image), ignore)
        provider.delete(handle)
        assert provider.usage(handle).state is MachineState.ABSENT

    def test_list_owned_does_not_list_what_another_installation_was_killed_at(
        self, context: ProviderContext, provider: Provider, image: Image
    ) -> None:
        their_context = ProviderContext(context.paths, context.config, InstallationId("e" * 12))
        theirs = self.create_provider(their_context)
        changes = child.run(self.call(their_context, "create", self.project_spec(image), ignore))
        for instant in self.instants(changes):
            spec = self.project_spec(image)
            kill(self.call(their_context, "create", spec, ignore), instant)
            assert owned(provider, spec.id) == [], instant
        for machine in list(theirs.list_owned()):
            theirs.delete(machine.handle)

    def test_list_owned_lists_ours_and_only_ours(
        self, context: ProviderContext, provider: Provider, image: Image
    ) -> None:
        theirs = self.create_provider(
            ProviderContext(context.paths, context.config, InstallationId("f" * 12))
        )
        our_spec, their_spec = self.project_spec(image), self.project_spec(image)
        our_handle = provider.create(our_spec, ignore)
        their_handle = theirs.create(their_spec, ignore)
        assert [found.handle for found in owned(provider, our_spec.id)] == [our_handle]
        assert [found.id for found in theirs.list_owned()] == [their_spec.id]
        assert owned(provider, their_spec.id) == []
        theirs.delete(their_handle)
        assert list(theirs.list_owned()) == []
