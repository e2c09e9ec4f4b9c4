"""The part of the provider contract on points of any machine: restore, discard, and deletion that harms no other.

No machine boots. Contents are compared where the subject can look at disks (`ProviderSubject.read_disk`).
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from agent_swarm.errors import MachineError, SwarmError
from agent_swarm.events import ignore
from agent_swarm.model import MachineState
from agent_swarm.providers.base import PointSize
from agent_swarm.testing import child
from agent_swarm.testing.subject import ProviderSubject, facet, kill, new_point, owned, traces

if TYPE_CHECKING:
    from agent_swarm.model import EnvironmentId, Image, PointId
    from agent_swarm.providers.base import MachineSpec, Provider, ProviderContext, Snapshots

CONTENTS = ("first", "second", "third")


@dataclass(frozen=True, slots=True)
class Point:
    """A point, and what the disk held when it was captured."""

    id: PointId
    handle: str
    content: str


@dataclass(frozen=True, slots=True)
class Machine:
    """A stopped machine with a point for each of `CONTENTS`; its disk holds the last."""

    id: EnvironmentId
    handle: str
    points: tuple[Point, ...]


class SnapshotContract(ProviderSubject):
    """Points of projects and tasks, without memory."""

    @pytest.fixture
    @classmethod
    def snapshots(cls, provider: Provider) -> Snapshots:
        return facet(provider.snapshots, "snapshots")

    @pytest.fixture
    @classmethod
    def task(
        cls, snapshots: Snapshots, context: ProviderContext, provider: Provider, image: Image
    ) -> Machine:
        assert snapshots
        return cls.with_points(context, provider, image)

    @classmethod
    def with_points(cls, context: ProviderContext, provider: Provider, image: Image) -> Machine:
        """A task with points, and a project that it was made from."""
        project = provider.create(cls.project_spec(image), ignore)
        spec = cls.task_spec(image, provider.capture(project, new_point(), ignore))
        handle = provider.create(spec, ignore)
        points = []
        for content in CONTENTS:
            cls.write_disk(context, spec.id, content)
            point = new_point()
            points.append(Point(point, provider.capture(handle, point, ignore), content))
        return Machine(spec.id, handle, tuple(points))

    @classmethod
    def holds(cls, context: ProviderContext, identifier: EnvironmentId, *contents: str) -> bool:
        """Whether a stopped machine's disk holds one of these; True where the subject cannot look."""
        return cls.read_disk(context, identifier) in {None, *contents}

    @classmethod
    def made_from(cls, provider: Provider, image: Image, point_handle: str) -> MachineSpec:
        spec = cls.task_spec(image, point_handle)
        provider.create(spec, ignore)
        return spec

    def runs(self, provider: Provider, spec: MachineSpec) -> bool:
        """Whether the machine still starts; it is stopped afterwards."""
        handle = owned(provider, spec.id)[0].handle
        provider.start(handle, ignore)
        running = provider.inspect(handle).state is MachineState.RUNNING
        provider.stop(handle, force=True)
        return running

    # Points of tasks

    def test_a_task_is_made_from_each_point_of_a_stopped_task(
        self, context: ProviderContext, provider: Provider, image: Image, task: Machine
    ) -> None:
        for point in task.points:
            spec = self.made_from(provider, image, point.handle)
            assert self.holds(context, spec.id, point.content)
            assert self.runs(provider, spec)

    def test_a_point_of_a_running_task_leaves_it_running(
        self, context: ProviderContext, provider: Provider, image: Image, task: Machine
    ) -> None:
        provider.start(task.handle, ignore)
        before = provider.inspect(task.handle)
        point = provider.capture(task.handle, new_point(), ignore)
        assert provider.inspect(task.handle) == before
        assert before.state is MachineState.RUNNING
        spec = self.made_from(provider, image, point)
        assert self.holds(context, spec.id, CONTENTS[-1])
        provider.stop(task.handle, force=True)

    def test_a_task_writes_neither_into_its_points_nor_into_what_was_made_from_them(
        self, context: ProviderContext, provider: Provider, image: Image, task: Machine
    ) -> None:
        last = task.points[-1]
        earlier = self.made_from(provider, image, last.handle)
        self.write_disk(context, task.id, "changed")
        later = self.made_from(provider, image, last.handle)
        assert self.holds(context, earlier.id, last.content)
        assert self.holds(context, later.id, last.content)
        assert self.holds(context, task.id, "changed")

    # Restore

    def test_restore_goes_to_any_point_back_and_forth(
        self, context: ProviderContext, provider: Provider, snapshots: Snapshots, task: Machine
    ) -> None:
        for index in (0, 2, 1, 2, 0):
            snapshots.restore(task.handle, task.points[index].handle, ignore)
            assert provider.inspect(task.handle).state is MachineState.STOPPED
            assert self.holds(context, task.id, task.points[index].content)
            self.write_disk(context, task.id, "lost by the next restore")

    def test_restore_leaves_every_point(
        self, provider: Provider, snapshots: Snapshots, task: Machine
    ) -> None:
        snapshots.restore(task.handle, task.points[0].handle, ignore)
        assert set(owned(provider, task.id)[0].points) == {point.id for point in task.points}

    def test_restore_again_changes_nothing(
        self, context: ProviderContext, provider: Provider, snapshots: Snapshots, task: Machine
    ) -> None:
        for _ in range(2):
            snapshots.restore(task.handle, task.points[1].handle, ignore)
            assert provider.inspect(task.handle).state is MachineState.STOPPED
            assert self.holds(context, task.id, task.points[1].content)

    def test_restore_stops_a_running_machine_which_starts_again(
        self, provider: Provider, snapshots: Snapshots, task: Machine
    ) -> None:
        provider.start(task.handle, ignore)
        snapshots.restore(task.handle, task.points[0].handle, ignore)
        assert provider.inspect(task.handle).state is MachineState.STOPPED
        provider.start(task.handle, ignore)
        assert provider.inspect(task.handle).state is MachineState.RUNNING
        provider.stop(task.handle, force=True)

    def test_points_captured_after_a_restore_stand_beside_the_others(
        self, context: ProviderContext, provider: Provider, snapshots: Snapshots, task: Machine
    ) -> None:
        snapshots.restore(task.handle, task.points[0].handle, ignore)
        self.write_disk(context, task.id, "another branch")
        branch = provider.capture(task.handle, new_point(), ignore)
        for handle, content in ((task.points[2].handle, "third"), (branch, "another branch")):
            snapshots.restore(task.handle, handle, ignore)
            assert self.holds(context, task.id, content)

    def test_a_project_goes_back_to_its_points_too(
        self, context: ProviderContext, provider: Provider, image: Image, snapshots: Snapshots
    ) -> None:
        spec = self.project_spec(image)
        handle = provider.create(spec, ignore)
        self.write_disk(context, spec.id, "first")
        point = provider.capture(handle, new_point(), ignore)
        self.write_disk(context, spec.id, "second")
        snapshots.restore(handle, point, ignore)
        assert self.holds(context, spec.id, "first")
        assert provider.inspect(handle).state is MachineState.STOPPED

    def test_restore_to_a_point_of_another_machine_fails_and_changes_nothing(
        self, context: ProviderContext, provider: Provider, image: Image, snapshots: Snapshots, task: Machine
    ) -> None:
        other = self.made_from(provider, image, task.points[0].handle)
        handle = owned(provider, other.id)[0].handle
        with pytest.raises(SwarmError):
            snapshots.restore(handle, task.points[1].handle, ignore)
        assert provider.inspect(handle).state is MachineState.STOPPED
        assert self.holds(context, other.id, task.points[0].content)

    def test_restore_to_a_point_that_is_gone_leaves_the_machine_running(
        self, provider: Provider, snapshots: Snapshots, task: Machine
    ) -> None:
        provider.discard(task.handle, task.points[0].id)
        provider.start(task.handle, ignore)
        before = provider.inspect(task.handle)
        with pytest.raises(MachineError):
            snapshots.restore(task.handle, task.points[0].handle, ignore)
        assert provider.inspect(task.handle) == before
        provider.stop(task.handle, force=True)

    @pytest.mark.parametrize("running", [False, True], ids=["stopped", "running"])
    def test_restore_killed_at_any_instant_and_settled_is_before_or_after(
        self, context: ProviderContext, provider: Provider, task: Machine, running: bool
    ) -> None:
        first, _, last = task.points
        if running:
            provider.start(task.handle, ignore)
        changes = child.run(self.call(context, "snapshots.restore", task.handle, first.handle, ignore))
        for instant in self.instants(changes):
            child.run(self.call(context, "snapshots.restore", task.handle, last.handle, ignore))
            if running:
                provider.start(task.handle, ignore)
            kill(self.call(context, "snapshots.restore", task.handle, first.handle, ignore), instant)
            provider.inspect(task.handle)
            provider.settle(task.handle)
            seen = provider.inspect(task.handle).state
            assert seen is MachineState.STOPPED or (running and seen is MachineState.RUNNING), instant
            assert self.holds(context, task.id, first.content, last.content), instant
            assert set(owned(provider, task.id)[0].points) == {point.id for point in task.points}, instant
            child.run(self.call(context, "snapshots.restore", task.handle, first.handle, ignore))
            assert provider.inspect(task.handle).state is MachineState.STOPPED, instant
            assert self.holds(context, task.id, first.content), instant
        provider.delete(task.handle)
        assert traces(context, task.id) == []

    def test_restore_killed_at_any_instant_is_completed_by_the_next_without_harm_to_points(
        self, context: ProviderContext, provider: Provider, image: Image, snapshots: Snapshots, task: Machine
    ) -> None:
        first, _, last = task.points
        changes = child.run(self.call(context, "snapshots.restore", task.handle, first.handle, ignore))
        for instant in self.instants(changes):
            kill(self.call(context, "snapshots.restore", task.handle, first.handle, ignore), instant)
            provider.settle(task.handle)
            for point in (first, last):
                snapshots.restore(task.handle, point.handle, ignore)
                assert self.holds(context, task.id, point.content), instant
                clone = self.made_from(provider, image, point.handle)
                assert self.holds(context, clone.id, point.content), instant
                provider.delete(owned(provider, clone.id)[0].handle)

    # Discard

    @pytest.mark.parametrize("order", list(itertools.permutations(range(3))), ids=str)
    def test_points_go_in_any_order_without_harm_to_machine_clones_and_other_points(
        self,
        context: ProviderContext,
        provider: Provider,
        image: Image,
        snapshots: Snapshots,
        task: Machine,
        order: tuple[int, ...],
    ) -> None:
        clones = [self.made_from(provider, image, point.handle) for point in task.points]
        snapshots.restore(task.handle, task.points[1].handle, ignore)
        left = list(task.points)
        for index in order:
            provider.discard(task.handle, task.points[index].id)
            left.remove(task.points[index])
            assert set(owned(provider, task.id)[0].points) == {point.id for point in left}
            assert provider.inspect(task.handle).state is MachineState.STOPPED
            assert self.holds(context, task.id, task.points[1].content)
            for clone, point in zip(clones, task.points, strict=True):
                assert self.holds(context, clone.id, point.content)
        for clone in clones:
            assert self.runs(provider, clone)

    def test_what_is_left_after_a_discard_can_be_restored(
        self, context: ProviderContext, provider: Provider, snapshots: Snapshots, task: Machine
    ) -> None:
        provider.discard(task.handle, task.points[1].id)
        for point in (task.points[0], task.points[2], task.points[0]):
            snapshots.restore(task.handle, point.handle, ignore)
            assert self.holds(context, task.id, point.content)

    def test_discard_killed_at_any_instant_harms_nothing_and_is_completed_by_the_next(
        self, context: ProviderContext, provider: Provider, image: Image, snapshots: Snapshots, task: Machine
    ) -> None:
        first, second, last = task.points
        clone = self.made_from(provider, image, second.handle)
        changes = child.run(self.call(context, "discard", task.handle, second.id))
        for instant in self.instants(changes):
            snapshots.restore(task.handle, first.handle, ignore)
            point = new_point()
            branch = self.made_from(provider, image, provider.capture(task.handle, point, ignore))
            kill(self.call(context, "discard", task.handle, point), instant)
            provider.discard(task.handle, point)
            assert set(owned(provider, task.id)[0].points) == {first.id, last.id}, instant
            for identifier, content in ((clone.id, second.content), (branch.id, first.content)):
                assert self.holds(context, identifier, content), instant
            snapshots.restore(task.handle, last.handle, ignore)
            assert self.holds(context, task.id, last.content), instant
            provider.delete(owned(provider, branch.id)[0].handle)

    # Delete

    def test_delete_does_not_harm_machines_made_from_its_points_and_the_last_of_them_leaves_nothing(
        self, context: ProviderContext, provider: Provider, image: Image, task: Machine
    ) -> None:
        clones = [self.made_from(provider, image, point.handle) for point in task.points]
        provider.delete(task.handle)
        for clone, point in zip(clones, task.points, strict=True):
            assert provider.inspect(task.handle).state is MachineState.ABSENT
            assert all(remains.kept for remains in owned(provider, task.id))
            assert self.holds(context, clone.id, point.content)
            assert self.runs(provider, clone)
            provider.delete(owned(provider, clone.id)[0].handle)
        assert owned(provider, task.id) == []
        assert traces(context, task.id) == []

    def test_delete_of_a_whole_line_of_forebears_leaves_the_last_one_whole(
        self, context: ProviderContext, provider: Provider, image: Image, task: Machine
    ) -> None:
        middle = self.made_from(provider, image, task.points[0].handle)
        middle_handle = owned(provider, middle.id)[0].handle
        self.write_disk(context, middle.id, "middle")
        last = self.made_from(provider, image, provider.capture(middle_handle, new_point(), ignore))
        for handle in (task.handle, middle_handle):
            provider.delete(handle)
            provider.delete(handle)  # what is kept of it is silent too
            assert self.holds(context, last.id, "middle")
            assert self.runs(provider, last)
        provider.delete(owned(provider, last.id)[0].handle)
        for identifier in (task.id, middle.id, last.id):
            assert owned(provider, identifier) == []
            assert traces(context, identifier) == []

    def test_delete_of_a_forebear_leaves_a_machine_that_still_makes_others(
        self, context: ProviderContext, provider: Provider, image: Image, snapshots: Snapshots, task: Machine
    ) -> None:
        clone = self.made_from(provider, image, task.points[1].handle)
        handle = owned(provider, clone.id)[0].handle
        before = provider.capture(handle, new_point(), ignore)
        provider.delete(task.handle)
        self.write_disk(context, clone.id, "changed")
        after = provider.capture(handle, new_point(), ignore)
        snapshots.restore(handle, before, ignore)
        assert self.holds(context, clone.id, task.points[1].content)
        grandchild = self.made_from(provider, image, after)
        assert self.holds(context, grandchild.id, "changed")
        assert self.runs(provider, grandchild)

    def test_delete_leaves_a_running_clone_running(
        self, provider: Provider, image: Image, task: Machine
    ) -> None:
        clone = self.made_from(provider, image, task.points[1].handle)
        handle = owned(provider, clone.id)[0].handle
        provider.start(handle, ignore)
        before = provider.inspect(handle)
        provider.delete(task.handle)
        assert provider.inspect(handle) == before
        assert before.state is MachineState.RUNNING
        provider.stop(handle, force=True)
        assert self.runs(provider, clone)

    def test_delete_killed_at_any_instant_harms_no_clone_and_is_completed_by_the_next(
        self, snapshots: Snapshots, context: ProviderContext, provider: Provider, image: Image
    ) -> None:
        assert snapshots
        first = self.with_points(context, provider, image)
        self.made_from(provider, image, first.points[0].handle)
        changes = child.run(self.call(context, "delete", first.handle))
        for instant in self.instants(changes):
            machine = self.with_points(context, provider, image)
            clone = self.made_from(provider, image, machine.points[0].handle)
            kill(self.call(context, "delete", machine.handle), instant)
            assert self.holds(context, clone.id, machine.points[0].content), instant
            provider.delete(machine.handle)
            assert provider.inspect(machine.handle).state is MachineState.ABSENT, instant
            assert self.holds(context, clone.id, machine.points[0].content), instant
            assert self.runs(provider, clone), instant
            provider.delete(owned(provider, clone.id)[0].handle)
            assert owned(provider, machine.id) == [], instant
            assert traces(context, machine.id) == [], instant

    def test_delete_of_the_last_clone_killed_at_any_instant_leaves_what_the_next_removes(
        self, snapshots: Snapshots, context: ProviderContext, provider: Provider, image: Image
    ) -> None:
        assert snapshots

        def orphan() -> tuple[Machine, MachineSpec, str]:
            machine = self.with_points(context, provider, image)
            clone = self.made_from(provider, image, machine.points[0].handle)
            provider.delete(machine.handle)
            return machine, clone, owned(provider, clone.id)[0].handle

        changes = child.run(self.call(context, "delete", orphan()[2]))
        for instant in self.instants(changes):
            machine, clone, handle = orphan()
            kill(self.call(context, "delete", handle), instant)
            for identifier in (clone.id, machine.id):
                for remains in owned(provider, identifier):
                    provider.delete(remains.handle)
            for identifier in (clone.id, machine.id):
                assert owned(provider, identifier) == [], instant
                assert traces(context, identifier) == [], instant

    # Size

    def test_a_point_without_memory_has_no_memory_and_one_that_is_gone_has_no_size(
        self, provider: Provider, snapshots: Snapshots, task: Machine
    ) -> None:
        point = task.points[0]
        size = snapshots.size(point.handle)
        assert size.disk_bytes >= 0
        assert size.memory_bytes == 0
        provider.discard(task.handle, point.id)
        assert snapshots.size(point.handle) == PointSize(0, 0)
        provider.delete(task.handle)
        assert snapshots.size(task.points[1].handle) == PointSize(0, 0)

    # Settle

    def test_settle_changes_nothing_where_nothing_was_interrupted(
        self, provider: Provider, task: Machine
    ) -> None:
        provider.settle(task.handle)
        assert provider.inspect(task.handle).state is MachineState.STOPPED
        provider.start(task.handle, ignore)
        before = provider.inspect(task.handle)
        provider.settle(task.handle)
        assert provider.inspect(task.handle) == before
        provider.delete(task.handle)
        provider.settle(task.handle)
        assert provider.inspect(task.handle).state is MachineState.ABSENT
