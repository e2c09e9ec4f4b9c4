"""Forks of tasks and tasks of warm baselines, on the fake provider: `run/` is a machine's memory."""

from __future__ import annotations

import json

import pytest

from agent_swarm.config import BaselineSettings
from agent_swarm.errors import (
    BusyError,
    ConflictError,
    NotFoundError,
    ResourceLimitError,
    UsageError,
)
from agent_swarm.events import Notice, StepDone, StepStarted
from agent_swarm.model import Kind, Status
from agent_swarm.operations.requests import ResourceRequest
from tests.support.swarms import faults, sh, with_limits, with_settings

pytestmark = pytest.mark.usefixtures("task")


def write(swarm, text, name="fix-1", kind=Kind.TASK):
    """A file on the disk, and a running process."""
    sh(swarm, name, f"echo {text} >file; echo {text} >run/process", kind)


def read(swarm, name):
    return sh(swarm, name, "cat file run/process 2>/dev/null || true").split()


def identity(swarm, name):
    return json.loads(sh(swarm, name, "cat run/identity.json"))


def errors(results):
    return {result.name: type(result.error).__name__ for result in results}


# --- forks -------------------------------------------------------------------------------------------


def test_forks_of_a_running_task_go_on_where_it_is_with_identities_of_their_own(swarm, task):
    write(swarm, "work")
    before = swarm.show("fix-1").machine.pid
    results = swarm.fork("fix-1", ["try-1", "try-2"])
    assert errors(results) == {"try-1": "NoneType", "try-2": "NoneType"}
    assert [read(swarm, name) for name in ("try-1", "try-2")] == [["work", "work"]] * 2
    assert len({identity(swarm, name)["machine_id"] for name in ("fix-1", "try-1", "try-2")}) == 3
    assert swarm.show("fix-1").machine.pid == before
    [saved] = swarm.checkpoints("fix-1")
    assert (saved.checkpoint.automatic, saved.checkpoint.memory) == (True, True)
    for name in ("try-1", "try-2"):
        fork = swarm.find(name)
        assert fork.status is Status.RUNNING
        assert fork.origin == f"fix-1@{saved.checkpoint.name}"
        assert saved.checkpoint.name.startswith("fork-")
        assert (fork.parent_id, fork.baseline_id, fork.image, fork.resources) == (
            task.parent_id,
            task.baseline_id,
            task.image,
            task.resources,
        )


def test_writes_of_a_fork_show_nowhere_else(swarm):
    write(swarm, "work")
    swarm.fork("fix-1", ["try-1", "try-2"])
    write(swarm, "other", "try-1")
    assert [read(swarm, name) for name in ("fix-1", "try-2")] == [["work", "work"]] * 2


def test_a_fork_of_a_checkpoint_is_as_that_was_and_makes_no_other(swarm):
    write(swarm, "old")
    swarm.checkpoint("fix-1", "before")
    write(swarm, "new")
    swarm.fork("fix-1@before", ["try-1"])
    assert read(swarm, "try-1") == ["old", "old"]
    assert swarm.find("try-1").origin == "fix-1@before"
    assert [entry.checkpoint.name for entry in swarm.checkpoints("fix-1")] == ["before"]


def test_a_fork_of_a_stopped_task_boots_from_its_disk(swarm):
    write(swarm, "work")
    swarm.stop("fix-1")
    swarm.fork("fix-1", ["try-1"])
    assert read(swarm, "try-1") == ["work"]
    assert swarm.find("fix-1").status is Status.STOPPED


def test_a_suspended_task_is_forked_from_its_checkpoints_alone(swarm):
    swarm.checkpoint("fix-1", "before")
    swarm.stop("fix-1", suspend=True)
    with pytest.raises(ConflictError, match="suspended"):
        swarm.fork("fix-1", ["try-1"])
    assert errors(swarm.fork("fix-1@before", ["try-1"])) == {"try-1": "NoneType"}


@pytest.mark.parametrize(("keep", "left"), [(False, []), (True, ["token"])])
def test_secrets_of_a_session_are_in_a_fork_only_on_request(swarm, keep, left):
    sh(swarm, "fix-1", "echo token >run/session.secret")
    swarm.fork("fix-1", ["try-1"], keep_secrets=keep)
    assert sh(swarm, "try-1", "cat run/*.secret 2>/dev/null || true").split() == left


def test_memory_that_cannot_go_on_lets_a_fork_boot_and_says_why(swarm, recorder):
    write(swarm, "work")
    faults(swarm, obstacle={"error": "machine"})
    assert errors(swarm.fork("fix-1", ["try-1"])) == {"try-1": "NoneType"}
    assert read(swarm, "try-1") == ["work"]
    assert any("boots instead" in event.message for event in recorder.of(Notice))


def test_names_are_checked_before_anything_happens(swarm, recorder):
    recorder.clear()
    for source, names in (("fix-1", ["good", "../bad"]), ("fix-1", ["a", "a"]), ("fix-1@", ["a"])):
        with pytest.raises(UsageError):
            swarm.fork(source, names)
    with pytest.raises(NotFoundError):
        swarm.fork("fix-1@nothing", ["a"])
    with pytest.raises(NotFoundError):
        swarm.fork("nobody", ["a"])
    assert recorder.of(StepStarted) == []


def test_one_failure_neither_hides_nor_stops_the_others(swarm):
    swarm.create("web", "b")
    assert errors(swarm.fork("fix-1", ["a", "b", "c"])) == {
        "a": "NoneType",
        "b": "ConflictError",
        "c": "NoneType",
    }


def test_a_fork_needs_as_much_of_the_host_as_a_new_task(swarm):
    reserve = swarm.status().capacity.memory_mib - 2 * 256 - 128
    with with_limits(swarm, memory_reserve_mib=reserve) as tight:
        [result] = tight.fork("fix-1", ["try-1"])
        assert isinstance(result.error, ResourceLimitError)
        assert errors(tight.fork("fix-1", ["try-1"], force=True)) == {"try-1": "NoneType"}


def test_forks_outlive_the_task_and_the_checkpoint_that_they_were_made_from(swarm):
    write(swarm, "work")
    swarm.checkpoint("fix-1", "before")
    swarm.fork("fix-1@before", ["try-1", "try-2"])
    swarm.delete_checkpoint("fix-1", "before")
    swarm.delete("fix-1")
    assert swarm.gc(dry_run=True) == []
    assert "garbage" not in {finding.subject for finding in swarm.doctor()}
    swarm.stop("try-1")
    swarm.start("try-1")
    assert read(swarm, "try-1") == ["work"]
    assert read(swarm, "try-2") == ["work", "work"]


def test_forks_of_forks_work(swarm):
    write(swarm, "work")
    swarm.fork("fix-1", ["child"])
    write(swarm, "more", "child")
    swarm.fork("child", ["grandchild"])
    assert read(swarm, "grandchild") == ["more", "more"]


@pytest.mark.parametrize("what", ["checkpoint", "task"])
def test_a_checkpoint_is_not_deleted_while_a_fork_is_made_from_it(swarm, what):
    swarm.checkpoint("fix-1", "before")
    refused = []

    def delete(event):
        if isinstance(event, StepStarted) and (event.subject, event.step) == ("try-1", "make machine"):
            with pytest.raises(BusyError, match="task try-1 is being made") as caught:
                swarm.delete_checkpoint("fix-1", "before") if what == "checkpoint" else swarm.delete("fix-1")
            refused.append(caught.value)

    swarm._context.progress = delete
    assert errors(swarm.fork("fix-1@before", ["try-1"])) == {"try-1": "NoneType"}
    assert len(refused) == 1


def test_a_checkpoint_that_is_deleted_before_a_fork_is_begun_fails_it(swarm):
    swarm.checkpoint("fix-1", "before")

    def delete(event):
        if isinstance(event, StepDone) and (event.subject, event.step) == ("try-1", "resume machine"):
            swarm.delete_checkpoint("fix-1", "before")

    swarm._context.progress = delete
    assert errors(swarm.fork("fix-1@before", ["try-1", "try-2"], parallel=1)) == {
        "try-1": "NoneType",
        "try-2": "NotFoundError",
    }


@pytest.mark.parametrize("point", ["create", "start", "start_running", "endpoint"])
def test_a_failing_fork_leaves_nothing(swarm, point):
    faults(swarm, **{point: {"error": "machine", "times": 1}})
    [result] = swarm.fork("fix-1", ["try-1"])
    assert result.error is not None
    assert {found.name for found in swarm.environments()} == {"web", "fix-1"}
    assert swarm.gc(dry_run=True) == []


# --- warm baselines ----------------------------------------------------------------------------------


def test_a_task_goes_on_from_the_projects_memory(swarm):
    write(swarm, "service", "web", Kind.PROJECT)
    assert swarm.baseline("web").memory
    swarm.create("web", "new")
    assert read(swarm, "new") == ["service", "service"]
    assert identity(swarm, "new")["host_name"] == "new"
    swarm.create("web", "Fix_1.b")
    assert identity(swarm, "Fix_1.b")["host_name"] == "fix-1-b"
    assert swarm.find("web", kind=Kind.PROJECT).status is Status.RUNNING


def test_a_cold_task_boots_from_the_same_baseline(swarm):
    write(swarm, "service", "web", Kind.PROJECT)
    swarm.baseline("web")
    swarm.create("web", "new", cold=True)
    swarm.bulk_create("web", ["newer"], cold=True)
    assert [read(swarm, name) for name in ("new", "newer")] == [["service"]] * 2


def test_stopping_a_project_keeps_its_memory_for_tasks(swarm):
    write(swarm, "service", "web", Kind.PROJECT)
    swarm.stop("web", kind=Kind.PROJECT)
    swarm.create("web", "new")
    assert read(swarm, "new") == ["service", "service"]


def test_a_task_of_other_resources_boots_and_says_why(swarm, recorder):
    write(swarm, "service", "web", Kind.PROJECT)
    swarm.baseline("web")
    swarm.create("web", "new", request=ResourceRequest(memory_mib=512))
    assert read(swarm, "new") == ["service"]
    [notice] = recorder.of(Notice)
    assert notice.message.startswith("task new boots instead of going on from saved memory: ")


def test_the_setting_turns_memory_off(swarm):
    with with_settings(swarm, baselines=BaselineSettings(memory=False)) as other:
        assert not other.baseline("web").memory
        other.stop("web", kind=Kind.PROJECT)
        assert [found.memory for found in other.show("web", kind=Kind.PROJECT).baselines] == [
            False,
            False,
            True,
        ]


def test_a_project_that_does_not_run_has_no_memory_to_keep(swarm):
    swarm.stop("web", kind=Kind.PROJECT)
    assert not swarm.baseline("web").memory


@pytest.mark.parametrize("point", ["capture", "capture_paused", "capture_copied"])
def test_memory_that_cannot_be_saved_costs_neither_project_nor_baseline(swarm, recorder, point):
    write(swarm, "service", "web", Kind.PROJECT)
    faults(swarm, **{point: {"error": "disk-full", "times": 1}})
    swarm.stop("web", kind=Kind.PROJECT)
    newest = swarm.show("web", kind=Kind.PROJECT).baselines[0]
    assert (newest.memory, swarm.find("web", kind=Kind.PROJECT).status) == (False, Status.STOPPED)
    assert any("holds no memory" in event.message for event in recorder.of(Notice))
    swarm.create("web", "new")
    assert read(swarm, "new") == ["service"]


def test_a_new_project_whose_memory_cannot_be_saved_is_made_all_the_same(swarm):
    faults(swarm, capture={"error": "disk-full", "times": 1})
    assert swarm.create_project("api").status is Status.RUNNING
    assert [found.memory for found in swarm.show("api", kind=Kind.PROJECT).baselines] == [False]
