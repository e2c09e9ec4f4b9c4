"""Checkpoints and restores, on the fake provider: `run/` is a machine's memory."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

import pytest

from agent_swarm.config import CheckpointSettings
from agent_swarm.errors import (
    BusyError,
    ConflictError,
    MachineError,
    NotFoundError,
    ResourceLimitError,
    SwarmError,
    UsageError,
)
from agent_swarm.events import Notice, StepStarted
from agent_swarm.model import OperationState, Status
from tests.support.swarms import faults, sh, with_limits, with_settings

pytestmark = pytest.mark.usefixtures("task")


def named(swarm, name="fix-1"):
    return {entry.checkpoint.name: entry for entry in swarm.checkpoints(name)}


def write(swarm, text, name="fix-1"):
    """A file on the disk, and a running process."""
    sh(swarm, name, f"echo {text} >file; echo {text} >run/process")


def read(swarm, name="fix-1"):
    return sh(swarm, name, "cat file run/process 2>/dev/null || true").split()


# --- making, listing, deleting -----------------------------------------------------------------------


def test_a_checkpoint_of_a_running_task_holds_its_memory_and_the_task_goes_on(swarm, task):
    pid = swarm.show("fix-1").machine.pid
    made = swarm.checkpoint("fix-1", "before")
    assert (made.memory, made.automatic, made.ready) == (True, False, True)
    assert swarm.show("fix-1").machine.pid == pid
    assert swarm.find("fix-1").started_at == task.started_at


def test_a_checkpoint_of_the_disk_alone_is_made_on_request_and_of_a_stopped_task(swarm):
    assert not swarm.checkpoint("fix-1", "while-it-runs", disk_only=True).memory
    swarm.stop("fix-1")
    assert not swarm.checkpoint("fix-1", "stopped").memory
    assert swarm.find("fix-1").status is Status.STOPPED


def test_without_a_name_it_is_called_by_its_time_and_two_do_not_collide(swarm):
    names = {swarm.checkpoint("fix-1", disk_only=True).name for _ in range(3)}
    assert len(names) == 3
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d-\d\d-\d\d(-\d)?", name) for name in names)


@pytest.mark.parametrize("name", ["", "a@b", "a/b", "-x", "x.lock", "x" * 64])
def test_a_bad_name_is_refused_before_anything_happens(swarm, recorder, name):
    recorder.clear()
    with pytest.raises(UsageError, match="not a valid checkpoint name"):
        swarm.checkpoint("fix-1", name)
    assert recorder.of(StepStarted) == []


def test_a_name_that_exists_is_refused_and_the_checkpoint_is_untouched(swarm):
    before = swarm.checkpoint("fix-1", "before")
    with pytest.raises(ConflictError, match="already a checkpoint named 'before'"):
        swarm.checkpoint("fix-1", "before")
    assert [entry.checkpoint for entry in swarm.checkpoints("fix-1")] == [before]
    assert swarm.checkpoint("fix-1", "after").parent_id == before.id


def test_a_suspended_task_has_to_be_started_for_a_checkpoint(swarm):
    swarm.stop("fix-1", suspend=True)
    with pytest.raises(ConflictError, match="suspended") as caught:
        swarm.checkpoint("fix-1")
    assert "agent-swarm start fix-1" in caught.value.hint


def test_checkpoints_form_a_tree_and_one_is_current(swarm):
    swarm.checkpoint("fix-1", "root")
    swarm.checkpoint("fix-1", "left")
    swarm.restore("fix-1", "root")
    swarm.checkpoint("fix-1", "right")
    found = named(swarm)
    assert {name: entry.parent for name, entry in found.items() if not entry.checkpoint.automatic} == {
        "root": "",
        "left": "root",
        "right": "root",
    }
    assert [name for name, entry in found.items() if entry.current] == ["right"]
    [saved] = [entry for entry in found.values() if entry.checkpoint.automatic]
    assert (saved.parent, saved.checkpoint.name[:15]) == ("left", "before-restore-")


def test_a_checkpoint_has_a_size(swarm):
    sh(swarm, "fix-1", "head -c 100000 /dev/urandom >run/process; head -c 300000 /dev/urandom >file")
    swarm.checkpoint("fix-1", "both")
    size = named(swarm)["both"].size
    assert size.disk_bytes >= 300_000
    assert 100_000 <= size.memory_bytes < 300_000


def test_what_descended_from_a_deleted_checkpoint_descends_from_its_parent(swarm):
    for name in ("first", "second", "third"):
        swarm.checkpoint("fix-1", name)
    swarm.delete_checkpoint("fix-1", "second")
    assert {name: entry.parent for name, entry in named(swarm).items()} == {"first": "", "third": "first"}
    swarm.restore("fix-1", "third")
    assert swarm.find("fix-1").status is Status.RUNNING


def test_a_missing_checkpoint_is_answered_with_the_nearest(swarm):
    swarm.checkpoint("fix-1", "before")
    for method in (swarm.delete_checkpoint, swarm.restore):
        with pytest.raises(NotFoundError) as caught:
            method("fix-1", "befor")
        assert "'before'" in caught.value.hint


@pytest.mark.parametrize("point", ["capture", "capture_paused", "capture_copied", "capture_renamed"])
def test_a_failing_checkpoint_leaves_no_trace_and_the_task_running(swarm, point):
    write(swarm, "kept")
    faults(swarm, **{point: {"error": "disk-full", "times": 1}})
    with pytest.raises(SwarmError):
        swarm.checkpoint("fix-1", "before")
    assert swarm.checkpoints("fix-1") == []
    assert read(swarm) == ["kept", "kept"]
    assert swarm.find("fix-1").checkpoint_id is None
    swarm.checkpoint("fix-1", "before")


def test_a_failing_deletion_is_finished_by_the_next_command(swarm):
    swarm.checkpoint("fix-1", "before")
    faults(swarm, discard={"error": "machine", "times": 1})
    with pytest.raises(MachineError):
        swarm.delete_checkpoint("fix-1", "before")
    assert swarm.checkpoints("fix-1") == []
    [machine] = [entry for entry in swarm._context.provider("fake").list_owned() if entry.points == ()]
    assert machine.id == swarm.find("fix-1").id


# --- going back --------------------------------------------------------------------------------------


def test_a_restore_brings_back_disk_and_memory(swarm):
    write(swarm, "old")
    made = swarm.checkpoint("fix-1", "before")
    write(swarm, "new")
    restored = swarm.restore("fix-1", "before")
    assert (restored.status, restored.checkpoint_id) == (Status.RUNNING, made.id)
    assert read(swarm) == ["old", "old"]


def test_a_restore_can_be_taken_back(swarm):
    swarm.checkpoint("fix-1", "before")
    write(swarm, "new")
    swarm.restore("fix-1", "before")
    assert read(swarm) == []
    [saved] = [name for name in named(swarm) if name.startswith("before-restore-")]
    swarm.restore("fix-1", saved)
    assert read(swarm) == ["new", "new"]


def test_without_a_name_it_goes_to_the_newest_that_was_asked_for(swarm):
    with pytest.raises(NotFoundError, match="no checkpoint"):
        swarm.restore("fix-1")
    swarm.checkpoint("fix-1", "first")
    second = swarm.checkpoint("fix-1", "second")
    for _ in range(2):  # the second time an automatic one is newer
        assert swarm.restore("fix-1").checkpoint_id == second.id


def test_the_present_state_is_not_saved_where_the_setting_says_so(swarm):
    swarm.checkpoint("fix-1", "before")
    with with_settings(swarm, checkpoints=CheckpointSettings(automatic=False)) as other:
        other.restore("fix-1", "before")
    assert list(named(swarm)) == ["before"]


def test_a_disk_checkpoint_boots_a_task_that_ran_and_leaves_a_stopped_one_stopped(swarm):
    write(swarm, "old")
    swarm.checkpoint("fix-1", "disk", disk_only=True)
    write(swarm, "new")
    assert swarm.restore("fix-1", "disk").status is Status.RUNNING
    assert read(swarm) == ["old"]
    swarm.stop("fix-1")
    assert swarm.restore("fix-1", "disk").status is Status.STOPPED


def test_a_stopped_task_goes_on_from_a_checkpoint_with_memory(swarm):
    write(swarm, "old")
    swarm.checkpoint("fix-1", "before")
    swarm.stop("fix-1")
    assert swarm.restore("fix-1", "before").status is Status.RUNNING
    assert read(swarm) == ["old", "old"]


def test_a_stopped_task_is_not_brought_back_where_the_host_has_no_memory_left(swarm):
    swarm.checkpoint("fix-1", "before")
    swarm.stop("fix-1")
    reserve = swarm.status().capacity.memory_mib - 256 - 128
    with with_limits(swarm, memory_reserve_mib=reserve) as tight:
        with pytest.raises(ResourceLimitError):
            tight.restore("fix-1", "before")
        assert list(named(swarm)) == ["before"]
        assert tight.restore("fix-1", "before", force=True).status is Status.RUNNING


def test_a_task_in_use_is_restored_only_with_force(swarm):
    swarm.checkpoint("fix-1", "before")
    with swarm._context.using(swarm.find("fix-1")):
        with pytest.raises(BusyError, match="in use"):
            swarm.restore("fix-1", "before")
        swarm.checkpoint("fix-1", "in-use")
        assert swarm.restore("fix-1", "before", force=True).status is Status.RUNNING


def test_memory_that_cannot_go_on_is_a_conflict_and_its_disk_can_be_had(swarm):
    write(swarm, "old")
    swarm.checkpoint("fix-1", "before")
    write(swarm, "new")
    faults(swarm, obstacle={"error": "machine"})
    with pytest.raises(ConflictError, match="cannot go on") as caught:
        swarm.restore("fix-1", "before")
    assert "restore --cold fix-1 before" in caught.value.hint
    assert read(swarm) == ["new", "new"]
    assert list(named(swarm)) == ["before"]
    assert swarm.restore("fix-1", "before", cold=True).status is Status.RUNNING
    assert read(swarm) == ["old"]


def test_a_cold_restore_leaves_a_stopped_task_stopped(swarm):
    swarm.checkpoint("fix-1", "before")
    swarm.stop("fix-1")
    assert swarm.restore("fix-1", "before", cold=True).status is Status.STOPPED


def test_a_suspended_task_has_to_be_started_before_it_is_restored(swarm):
    swarm.checkpoint("fix-1", "before")
    write(swarm, "kept")
    swarm.stop("fix-1", suspend=True)
    with pytest.raises(ConflictError, match="suspended"):
        swarm.restore("fix-1", "before")
    swarm.start("fix-1")
    assert read(swarm) == ["kept", "kept"]


@pytest.mark.parametrize("runs", [True, False], ids=["running", "stopped"])
@pytest.mark.parametrize(
    "point",
    ["capture", "restore", "restore_copied", "restore_switched", "start", "start_running", "endpoint"],
)
def test_a_failing_restore_leaves_the_task_as_it_was(swarm, point, runs):
    swarm.checkpoint("fix-1", "before")
    write(swarm, "kept")
    if not runs:
        swarm.stop("fix-1")
    faults(swarm, **{point: {"error": "machine", "times": 1}})
    with pytest.raises(SwarmError):
        swarm.restore("fix-1", "before")
    assert swarm.find("fix-1").status is (Status.RUNNING if runs else Status.STOPPED)
    assert swarm.show("fix-1").operations[-1].state in {OperationState.ROLLED_BACK, OperationState.FAILED}
    if not runs:
        swarm.start("fix-1")
    assert read(swarm) == (["kept", "kept"] if runs else ["kept"])
    assert set(named(swarm)) >= {"before"}


def test_what_the_undoing_could_not_do_the_next_command_does_and_says_so(swarm, recorder):
    swarm.checkpoint("fix-1", "before")
    write(swarm, "kept")
    faults(swarm, start={"error": "machine", "times": 2})
    with pytest.raises(MachineError):
        swarm.restore("fix-1", "before")
    [task] = swarm.environments(project="web")
    assert task.status is Status.SUSPENDED
    assert any(
        "`agent-swarm start fix-1` goes on from there" in event.message for event in recorder.of(Notice)
    )
    swarm.start("fix-1")
    assert read(swarm) == ["kept", "kept"]


def test_a_restore_that_nobody_can_undo_does_not_block_the_task(swarm, recorder):
    swarm.checkpoint("fix-1", "before")

    def break_when_restored(event):
        recorder(event)
        if isinstance(event, StepStarted) and event.step == "resume machine":
            faults(swarm, start={"error": "machine", "times": 1}, restore={"error": "machine"})

    swarm._context.progress = break_when_restored
    with pytest.raises(MachineError):
        swarm.restore("fix-1", "before")
    [task] = swarm.environments(project="web")
    assert task.status is Status.SUSPENDED
    assert any("could not be put back" in event.message for event in recorder.of(Notice))
    swarm._context.progress = recorder
    faults(swarm)
    swarm.start("fix-1")
    [saved] = [name for name in named(swarm) if name != "before"]
    assert swarm.restore("fix-1", saved).status is Status.RUNNING


# --- what is made by itself is removed by itself ---------------------------------------------------------


def age(swarm, hours):
    """Make every checkpoint older than it is."""
    then = (datetime.now(UTC) - timedelta(hours=hours)).isoformat(timespec="milliseconds")
    swarm._context.registry._write("UPDATE checkpoints SET created_at = ?", then)


def test_old_automatic_checkpoints_are_removed_by_the_next_change_and_no_others(swarm):
    swarm.checkpoint("fix-1", "before")
    swarm.restore("fix-1", "before")
    age(swarm, 23)
    swarm.checkpoint("fix-1", "after")
    assert len(named(swarm)) == 3
    age(swarm, 25)
    swarm.stop("fix-1")
    assert set(named(swarm)) == {"before", "after"}


def test_gc_removes_them_and_tells(swarm):
    swarm.checkpoint("fix-1", "before")
    swarm.restore("fix-1", "before")
    age(swarm, 25)
    [item] = swarm.gc(dry_run=True)
    assert item.what.startswith("checkpoint fix-1@before-restore-")
    assert item.size_bytes > 0
    assert len(named(swarm)) == 2
    swarm.gc()
    assert list(named(swarm)) == ["before"]


def test_one_that_cannot_be_removed_does_not_fail_the_command(swarm, recorder):
    swarm.checkpoint("fix-1", "before")
    swarm.restore("fix-1", "before")
    age(swarm, 25)
    faults(swarm, discard={"error": "machine", "times": 1})
    swarm.create("web", "fix-2")
    assert any("could not be removed" in event.message for event in recorder.of(Notice))
    assert list(named(swarm)) == ["before"], "the next command finished it"
