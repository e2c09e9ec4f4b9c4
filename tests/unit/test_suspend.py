"""Suspended machines, on the fake provider: `run/` is a machine's memory."""

from __future__ import annotations

import pytest

from agent_swarm.errors import BusyError, ConflictError, MachineError, ResourceLimitError
from agent_swarm.events import Notice
from agent_swarm.model import Kind, Status
from agent_swarm.operations.requests import ResourceRequest
from tests.support.swarms import faults, sh, with_limits

pytestmark = pytest.mark.usefixtures("task")


def write(swarm, text, name="fix-1", kind=Kind.TASK):
    """A file on the disk, and a running process."""
    sh(swarm, name, f"echo {text} >file; echo {text} >run/process", kind)


def read(swarm, name="fix-1", kind=Kind.TASK):
    return sh(swarm, name, "cat file run/process 2>/dev/null || true", kind).split()


def test_a_suspended_task_does_not_run_and_goes_on_where_it_was(swarm):
    write(swarm, "work")
    suspended = swarm.stop("fix-1", suspend=True)
    assert (suspended.status, suspended.started_at) == (Status.SUSPENDED, None)
    assert swarm.show("fix-1").machine.pid is None
    assert {found.name: found.status for found in swarm.environments()}["fix-1"] is Status.SUSPENDED
    assert swarm.start("fix-1").status is Status.RUNNING
    assert read(swarm) == ["work", "work"]


def test_a_project_can_be_suspended_and_gets_no_baseline_by_that(swarm):
    write(swarm, "work", "web", Kind.PROJECT)
    swarm.stop("web", kind=Kind.PROJECT, suspend=True)
    details = swarm.show("web", kind=Kind.PROJECT)
    assert (details.environment.status, len(details.baselines)) == (Status.SUSPENDED, 1)
    swarm.create("web", "fix-2")
    with pytest.raises(ConflictError, match="suspended") as caught:
        swarm.baseline("web")
    assert "project start web" in caught.value.hint
    swarm.start("web", kind=Kind.PROJECT)
    assert read(swarm, "web", Kind.PROJECT) == ["work", "work"]


def test_a_command_in_a_suspended_task_says_how_to_start_it(swarm):
    swarm.stop("fix-1", suspend=True)
    with pytest.raises(ConflictError, match="suspended") as caught:
        swarm.run_captured("fix-1", ["true"])
    assert "agent-swarm start fix-1" in caught.value.hint


def test_suspending_twice_changes_nothing_and_stopping_says_that_it_is_suspended(swarm, recorder):
    swarm.stop("fix-1", suspend=True)
    journal = swarm.show("fix-1").operations
    swarm.stop("fix-1", suspend=True)
    assert swarm.stop("fix-1").status is Status.SUSPENDED
    assert swarm.show("fix-1").operations == journal
    assert "suspended already" in recorder.of(Notice)[-1].message


def test_what_does_not_run_cannot_be_suspended(swarm):
    swarm.stop("fix-1")
    with pytest.raises(ConflictError, match="stopped and cannot be suspended"):
        swarm.stop("fix-1", suspend=True)


def test_a_provider_that_cannot_suspend_is_a_conflict(swarm, monkeypatch):
    monkeypatch.setattr(swarm._context.provider("fake"), "suspend", None)
    with pytest.raises(ConflictError, match="cannot suspend"):
        swarm.stop("fix-1", suspend=True)
    assert swarm.find("fix-1").status is Status.RUNNING


def test_a_machine_in_use_is_suspended_only_with_force(swarm):
    with swarm._context.using(swarm.find("fix-1")):
        with pytest.raises(BusyError, match="in use"):
            swarm.stop("fix-1", suspend=True)
        assert swarm.stop("fix-1", suspend=True, force=True).status is Status.SUSPENDED


def test_a_suspended_machine_holds_no_memory_and_needs_it_to_go_on(swarm):
    reserve = swarm.status().capacity.memory_mib - 3 * 256 + 128  # room for two machines, not for three
    with with_limits(swarm, memory_reserve_mib=reserve) as tight:
        with pytest.raises(ResourceLimitError):
            tight.create("web", "b")
        tight.stop("fix-1", suspend=True)
        tight.create("web", "b", request=ResourceRequest())
        with pytest.raises(ResourceLimitError):
            tight.start("fix-1")
        assert tight.find("fix-1").status is Status.SUSPENDED
        assert tight.start("fix-1", force=True).status is Status.RUNNING


@pytest.mark.parametrize("point", ["suspend", "suspend_paused", "suspend_saved"])
def test_a_failing_suspension_lets_the_machine_run_on(swarm, point):
    write(swarm, "work")
    before = swarm.show("fix-1").machine.pid
    faults(swarm, **{point: {"error": "disk-full", "times": 1}})
    with pytest.raises(MachineError):
        swarm.stop("fix-1", suspend=True)
    after = swarm.show("fix-1")
    assert (after.environment.status, after.machine.pid) == (Status.RUNNING, before)
    assert read(swarm) == ["work", "work"]


def test_memory_that_cannot_go_on_is_a_conflict_and_its_disk_can_be_booted(swarm):
    write(swarm, "work")
    swarm.stop("fix-1", suspend=True)
    faults(swarm, obstacle={"error": "machine"})
    with pytest.raises(ConflictError, match="cannot go on") as caught:
        swarm.start("fix-1")
    assert "agent-swarm start --cold fix-1" in caught.value.hint
    assert swarm.find("fix-1").status is Status.SUSPENDED
    assert swarm.start("fix-1", cold=True).status is Status.RUNNING
    assert read(swarm) == ["work"]


@pytest.mark.parametrize("point", ["start", "start_prepared", "start_running", "endpoint"])
def test_a_failing_start_loses_nothing_of_what_was_saved(swarm, point):
    write(swarm, "work")
    swarm.stop("fix-1", suspend=True)
    faults(swarm, **{point: {"error": "machine", "times": 1}})
    with pytest.raises(MachineError):
        swarm.start("fix-1")
    assert swarm.find("fix-1").status is Status.SUSPENDED
    swarm.start("fix-1")
    assert read(swarm) == ["work", "work"]


def test_a_suspended_task_can_be_deleted(swarm):
    swarm.stop("fix-1", suspend=True)
    swarm.delete("fix-1")
    assert [found.name for found in swarm.environments()] == ["web"]
    assert swarm.gc(dry_run=True) == []
