"""The part of the provider contract that needs machines which have booted: four of them, shared."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from agent_swarm.events import ignore
from agent_swarm.model import MachineState
from agent_swarm.testing.subject import ProviderSubject, new_point, traces

if TYPE_CHECKING:
    from collections.abc import Iterator

    from agent_swarm.model import Endpoint, Image, PointId
    from agent_swarm.providers.base import Provider, ProviderContext


@dataclass(frozen=True, slots=True)
class Running:
    """A machine that has booted."""

    handle: str
    endpoint: Endpoint


@dataclass(frozen=True, slots=True)
class Prepared:
    """A running project, which was captured while it ran and then went on to write."""

    project: Running
    point: PointId
    point_handle: str
    pid_before: int | None


class RunningMachineContract(ProviderSubject):
    """A running project, a clone of it, a sibling made later, and a clone of its next generation.

    The project wrote `captured`, was captured, then wrote `later`; the clone writes `cloned`. The tests
    run in the order that they stand in; the last one stops the project.
    """

    @pytest.fixture(scope="class")
    @classmethod
    def prepared(cls, provider: Provider, image: Image) -> Prepared:
        project = Running(*cls.boot(provider, cls.project_spec(image)))
        cls.sh(project.endpoint, "echo first > captured; sync")
        pid, point = provider.inspect(project.handle).pid, new_point()
        handle = provider.capture(project.handle, point, ignore)
        cls.sh(project.endpoint, "echo second > later; echo changed > captured; sync")
        return Prepared(project, point, handle, pid)

    @pytest.fixture(scope="class")
    @classmethod
    def clone(cls, provider: Provider, image: Image, prepared: Prepared) -> Running:
        running = Running(*cls.boot(provider, cls.task_spec(image, prepared.point_handle)))
        cls.sh(running.endpoint, "echo third > cloned; sync")
        return running

    @pytest.fixture(scope="class")
    @classmethod
    def sibling(
        cls, provider: Provider, image: Image, prepared: Prepared, clone: Running
    ) -> Iterator[Running]:
        """Made from the same point when clone and project had gone on."""
        assert clone
        running = Running(*cls.boot(provider, cls.task_spec(image, prepared.point_handle)))
        yield running
        provider.delete(running.handle)

    def test_a_booted_machine_runs_commands(self, prepared: Prepared) -> None:
        done = self.execute(prepared.project.endpoint, ["sh", "-c", "echo out; echo err >&2; exit 7"])
        assert (done.stdout, done.stderr, done.returncode) == (b"out\n", b"err\n", 7)

    def test_a_capture_leaves_the_machine_running(self, provider: Provider, prepared: Prepared) -> None:
        seen = provider.inspect(prepared.project.handle)
        assert (seen.state, seen.pid) == (MachineState.RUNNING, prepared.pid_before)
        assert self.sh(prepared.project.endpoint, "cat later") == "second"

    def test_capture_of_a_running_machine_is_idempotent(self, provider: Provider, prepared: Prepared) -> None:
        again = provider.capture(prepared.project.handle, prepared.point, ignore)
        assert again == prepared.point_handle

    def test_endpoint_of_a_booted_machine_is_the_same_each_time(
        self, provider: Provider, prepared: Prepared
    ) -> None:
        endpoint = provider.endpoint(prepared.project.handle, timeout_s=self.boot_timeout_s, progress=ignore)
        assert endpoint == prepared.project.endpoint

    def test_usage_tells_the_memory_of_a_running_machine(
        self, provider: Provider, prepared: Prepared
    ) -> None:
        usage = provider.usage(prepared.project.handle)
        assert usage.state is MachineState.RUNNING
        assert usage.memory_bytes is None or usage.memory_bytes > 0

    def test_a_clone_has_what_the_project_had_when_it_was_captured(self, clone: Running) -> None:
        assert self.sh(clone.endpoint, "cat captured") == "first"

    def test_a_clone_has_nothing_that_the_project_wrote_later(self, clone: Running) -> None:
        assert self.sh(clone.endpoint, "test ! -e later && echo none") == "none"

    def test_writes_of_a_clone_do_not_show_in_its_project(self, clone: Running, prepared: Prepared) -> None:
        assert self.sh(clone.endpoint, "cat cloned") == "third"
        assert self.sh(prepared.project.endpoint, "test ! -e cloned && echo none") == "none"

    def test_a_sibling_made_later_is_as_the_point_was(self, sibling: Running) -> None:
        assert self.sh(sibling.endpoint, "cat captured") == "first"
        assert self.sh(sibling.endpoint, "test ! -e later && test ! -e cloned && echo none") == "none"

    def test_a_stopped_projects_next_point_has_its_last_writes(
        self, provider: Provider, image: Image, prepared: Prepared, clone: Running
    ) -> None:
        self.sh(prepared.project.endpoint, "echo last > last")  # no sync: an orderly stop writes it
        provider.stop(prepared.project.handle)
        assert provider.inspect(prepared.project.handle).state is MachineState.STOPPED
        point = provider.capture(prepared.project.handle, new_point(), ignore)
        following = Running(*self.boot(provider, self.task_spec(image, point)))
        assert self.sh(following.endpoint, "cat last later captured") == "last\nsecond\nchanged"
        assert self.sh(following.endpoint, "test ! -e cloned && echo none") == "none"
        assert self.sh(clone.endpoint, "cat captured") == "first"

    def test_delete_of_booted_machines_leaves_no_trace(
        self, context: ProviderContext, provider: Provider, prepared: Prepared
    ) -> None:
        assert prepared
        machines = list(provider.list_owned())
        for machine in sorted(machines, key=lambda found: len(found.points)):  # clones first
            provider.delete(machine.handle)
        assert [trace for machine in machines for trace in traces(context, machine.id)] == []
