"""What the commands promise, on the fake provider."""

from __future__ import annotations

import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from agent_swarm import processes
from agent_swarm.config import Config
from agent_swarm.errors import (
    BusyError,
    ConflictError,
    MachineError,
    NotFoundError,
    ResourceLimitError,
    SetupError,
    SwarmError,
    UsageError,
)
from agent_swarm.events import Notice, OutputLine, StepDone, StepStarted
from agent_swarm.model import Kind, OperationState, Status
from agent_swarm.operations.requests import ResourceRequest
from agent_swarm.paths import Paths
from agent_swarm.swarm import Swarm
from tests.support.swarms import faults, sh, with_limits

ROOT = Path(__file__).parents[2]


# --- projects and tasks ------------------------------------------------------------------------------


def test_a_task_has_what_the_project_had(swarm):
    swarm.paths.setup_script.write_text("#!/bin/sh\necho installed >tool\n")
    swarm.create_project("web")
    swarm.create("web", "fix-1")
    assert sh(swarm, "fix-1", "cat tool") == "installed\n"


def test_writes_of_a_task_show_nowhere_else(swarm):
    swarm.create_project("web")
    swarm.create("web", "a")
    swarm.create("web", "b")
    sh(swarm, "a", "echo mine >file")
    assert sh(swarm, "b", "ls | grep -v ^run$ || true") == ""
    assert sh(swarm, "web", "ls file 2>/dev/null || echo none", Kind.PROJECT) == "none\n"


def test_creating_from_a_running_project_does_not_stop_it(swarm):
    before = swarm.create_project("web")
    swarm.create("web", "fix-1")
    after = swarm.show("web", kind=Kind.PROJECT).environment
    assert after.status is Status.RUNNING
    assert after.started_at == before.started_at


def test_stopping_a_project_makes_the_next_generation_and_tasks_keep_theirs(swarm):
    swarm.create_project("web")
    swarm.create("web", "old")
    sh(swarm, "web", "echo new >added", Kind.PROJECT)
    swarm.stop("web", kind=Kind.PROJECT)
    swarm.create("web", "new")
    generations = {task: swarm.show(task).baseline.generation for task in ("old", "new")}
    assert generations == {"old": 1, "new": 2}
    assert sh(swarm, "new", "cat added") == "new\n"
    assert sh(swarm, "old", "ls added 2>/dev/null || echo none") == "none\n"


def test_a_baseline_can_be_made_of_a_running_project(swarm):
    swarm.create_project("web")
    sh(swarm, "web", "echo new >added", Kind.PROJECT)
    assert swarm.baseline("web").generation == 2
    swarm.create("web", "fix-1")
    assert sh(swarm, "fix-1", "cat added") == "new\n"
    assert swarm.find("web", kind=Kind.PROJECT).status is Status.RUNNING


def test_a_project_with_tasks_is_not_deleted_and_they_are_named(swarm):
    swarm.create_project("web")
    swarm.create("web", "fix-1")
    with pytest.raises(ConflictError, match="fix-1"):
        swarm.delete("web", kind=Kind.PROJECT)
    assert swarm.find("web", kind=Kind.PROJECT).status is Status.RUNNING


@pytest.mark.parametrize(
    "name", ["", "../x", "a/b", "-x", "x" * 300, "a b", "ä", "a\nb", "x.lock", "a..b", "x."]
)
def test_a_bad_name_is_refused_before_anything_happens(swarm, name, recorder):
    swarm.create_project("web")
    recorder.clear()
    before = sorted(path.name for path in swarm.paths.home.rglob("*"))
    with pytest.raises(UsageError, match="not a valid"):
        swarm.create("web", name)
    with pytest.raises(UsageError, match="not a valid"):
        swarm.create_project(name)
    assert recorder.of(StepStarted) == []
    assert sorted(path.name for path in swarm.paths.home.rglob("*")) == before


def test_a_name_that_exists_is_refused_and_the_machine_is_untouched(swarm):
    swarm.create_project("web")
    swarm.create("web", "fix-1")
    sh(swarm, "fix-1", "echo mine >file")
    with pytest.raises(ConflictError, match="already"):
        swarm.create("web", "fix-1")
    assert sh(swarm, "fix-1", "cat file") == "mine\n"


def test_a_failing_setup_leaves_the_machine_for_inspection(swarm, recorder):
    swarm.paths.setup_script.write_text("#!/bin/sh\necho one\necho two >&2\nexit 7\n")
    with pytest.raises(SetupError, match="exit code 7") as caught:
        swarm.create_project("web")
    assert caught.value.details == "one\ntwo"
    assert [event.line for event in recorder.of(OutputLine)] == ["one", "two"]
    assert swarm.find("web", kind=Kind.PROJECT).status is Status.FAILED
    assert swarm.show("web", kind=Kind.PROJECT).setup_log.read_text() == "one\ntwo\n"
    assert sh(swarm, "web", "echo in", Kind.PROJECT) == "in\n"
    with pytest.raises(ConflictError, match="no baseline"):
        swarm.create("web", "fix-1")


def test_a_repaired_project_is_an_ordinary_one_once_stopped(swarm):
    swarm.paths.setup_script.write_text("#!/bin/sh\nexit 1\n")
    with pytest.raises(SetupError):
        swarm.create_project("web")
    swarm.stop("web", kind=Kind.PROJECT)
    swarm.create("web", "fix-1")
    assert swarm.find("fix-1").status is Status.RUNNING


def test_the_setup_script_is_generated_once_and_then_the_users(swarm):
    swarm.create_project("one")
    swarm.paths.setup_script.write_text("#!/bin/sh\necho edited >mark\n")
    swarm.create_project("two")
    assert sh(swarm, "two", "cat mark", Kind.PROJECT) == "edited\n"


@pytest.mark.parametrize("step", ["create", "start", "endpoint"])
def test_a_failing_create_leaves_nothing(swarm, step):
    swarm.create_project("web")
    faults(swarm, **{step: {"error": "machine", "times": 1}})
    with pytest.raises(SwarmError):
        swarm.create("web", "fix-1")
    assert [found.name for found in swarm.environments()] == ["web"]
    assert swarm.gc(dry_run=True) == []
    swarm.create("web", "fix-1")


def test_a_failing_baseline_leaves_the_stopped_project_and_can_be_made_later(swarm):
    swarm.create_project("web")
    faults(swarm, capture={"error": "disk-full", "times": 2})  # with its memory, then the disk alone
    with pytest.raises(SwarmError) as caught:
        swarm.stop("web", kind=Kind.PROJECT)
    assert caught.value.hint
    project = swarm.find("web", kind=Kind.PROJECT)
    assert project.status is Status.STOPPED
    assert [found.generation for found in swarm.show("web", kind=Kind.PROJECT).baselines] == [1]
    assert swarm.baseline("web").generation == 2


def test_a_failing_delete_is_finished_by_the_next_command(swarm):
    swarm.create_project("web")
    swarm.create("web", "fix-1")
    faults(swarm, delete={"error": "machine", "times": 1})
    with pytest.raises(MachineError):
        swarm.delete("fix-1")
    assert [found.name for found in swarm.environments()] == ["web"]


def test_a_machine_that_died_is_stopped_and_says_so_and_starts_again(swarm):
    swarm.create_project("web")
    swarm.create("web", "fix-1")
    process = processes.describe(swarm.show("fix-1").machine.pid, "")
    subprocess.run(["kill", "-9", str(process.pid)], check=True)
    assert processes.wait_for_end(process, timeout_s=20)
    [task] = [found for found in swarm.environments() if found.name == "fix-1"]
    assert task.status is Status.STOPPED
    assert "ended by itself" in task.reason
    with pytest.raises(ConflictError, match="stopped"):
        swarm.run_captured("fix-1", ["true"])
    assert swarm.start("fix-1").status is Status.RUNNING


def test_start_and_stop_of_what_is_so_already_change_nothing(swarm):
    swarm.create_project("web")
    swarm.create("web", "fix-1")
    journal = swarm.show("fix-1").operations
    swarm.start("fix-1")
    assert swarm.show("fix-1").operations == journal
    swarm.stop("fix-1")
    journal = swarm.show("fix-1").operations
    swarm.stop("fix-1")
    assert swarm.show("fix-1").operations == journal


def test_the_journal_tells_what_was_done(swarm):
    swarm.create_project("web")
    swarm.stop("web", kind=Kind.PROJECT)
    told = [(found.kind, found.state) for found in swarm.show("web", kind=Kind.PROJECT).operations]
    assert told == [("create", OperationState.DONE), ("stop", OperationState.DONE)]


# --- in use, side by side ----------------------------------------------------------------------------


def test_a_machine_in_use_is_stopped_only_with_force(swarm):
    swarm.create_project("web")
    swarm.create("web", "fix-1")
    context = swarm._context
    with context.using(swarm.find("fix-1")):
        with pytest.raises(BusyError, match="in use"):
            swarm.stop("fix-1")
        with pytest.raises(BusyError):
            swarm.delete("fix-1")
        swarm.stop("fix-1", force=True)


def test_twenty_creates_at_once_make_twenty_tasks(swarm):
    swarm.create_project("web")
    names = [f"t{number}" for number in range(20)]
    code = (
        "import sys; from agent_swarm import Swarm\nwith Swarm() as swarm: swarm.create('web', sys.argv[1])"
    )
    environ = {
        "AGENT_SWARM_HOME": str(swarm.paths.home),
        "AGENT_SWARM_PROVIDER": "fake",
        "PATH": "/usr/bin:/bin",
    }
    swarm.paths.config.write_text('{"resources": {"memory_mib": 256, "disk_gib": 1}}')
    workers = [subprocess.Popen([sys.executable, "-c", code, name], env=environ) for name in names]
    assert [worker.wait() for worker in workers] == [0] * 20
    found = [task for task in swarm.environments(project="web") if task.status is Status.RUNNING]
    assert sorted(task.name for task in found) == sorted(names)
    assert len({task.id for task in found}) == 20


def test_of_five_creates_of_one_name_one_wins(swarm):
    swarm.create_project("web")

    def attempt(_number):
        try:
            swarm.create("web", "same")
        except ConflictError as error:
            return error.message
        return "made"

    with ThreadPoolExecutor(5) as pool:
        results = list(pool.map(attempt, range(5)))
    assert results.count("made") == 1
    assert sum("already" in result for result in results) == 4
    assert swarm.gc(dry_run=True) == []


def test_bulk_create_reports_each_by_itself(swarm):
    swarm.create_project("web")
    swarm.create("web", "b")
    results = swarm.bulk_create("web", ["a", "b", "c"])
    assert [(result.name, type(result.error).__name__) for result in results] == [
        ("a", "NoneType"),
        ("b", "ConflictError"),
        ("c", "NoneType"),
    ]
    assert {task.name for task in swarm.environments(project="web")} == {"a", "b", "c"}


def test_bulk_create_refuses_a_bad_name_before_the_first_machine(swarm):
    swarm.create_project("web")
    with pytest.raises(UsageError):
        swarm.bulk_create("web", ["good", "../bad"])
    with pytest.raises(UsageError, match="twice"):
        swarm.bulk_create("web", ["good", "good"])
    assert swarm.environments(project="web") == []


def test_bulk_works_at_most_so_many_at_a_time(swarm):
    swarm.create_project("web")
    faults(swarm, create={"delay_s": 0.3})
    running = most = 0
    guard = threading.Lock()

    def count(event):
        nonlocal running, most
        if isinstance(event, StepStarted) and event.step == "make machine":
            with guard:
                running += 1
                most = max(most, running)
        elif isinstance(event, StepDone) and event.step == "make machine":
            with guard:
                running -= 1

    swarm._context.progress = count
    swarm.bulk_create("web", [f"t{number}" for number in range(6)], parallel=2)
    assert most == 2


def test_bulk_delete_takes_names_or_a_project(swarm):
    swarm.create_project("web")
    swarm.bulk_create("web", ["a", "b", "c"])
    results = swarm.bulk_delete(["a", "missing"])
    assert [type(result.error).__name__ for result in results] == ["NoneType", "NotFoundError"]
    swarm.bulk_delete(project="web")
    assert swarm.environments(project="web") == []


# --- limits --------------------------------------------------------------------------------------------


def test_more_memory_than_the_host_has_is_refused_with_the_figures_unless_forced(swarm):
    swarm.create_project("web")
    huge = ResourceRequest(memory_mib=4_000_000)
    with pytest.raises(ResourceLimitError, match="4000000 MiB") as caught:
        swarm.create("web", "fix-1", request=huge)
    assert "running machine" in caught.value.details
    assert [found.name for found in swarm.environments()] == ["web"]
    assert swarm.create("web", "fix-1", request=huge, force=True).status is Status.RUNNING


def test_a_stopped_machine_holds_no_memory(swarm):
    swarm.create_project("web")
    swarm.create("web", "a")
    reserve = swarm.status().capacity.memory_mib - 3 * 256 + 128  # room for two machines, not for three
    with with_limits(swarm, memory_reserve_mib=reserve) as tight:
        with pytest.raises(ResourceLimitError):
            tight.create("web", "b")
        tight.stop("a")
        tight.create("web", "b")
        with pytest.raises(ResourceLimitError):
            tight.start("a")
        assert tight.start("a", force=True).status is Status.RUNNING


def test_a_disk_without_room_to_grow_is_refused(swarm):
    swarm.create_project("web")
    with (
        with_limits(swarm, disk_reserve_gib=1_000_000) as tight,
        pytest.raises(ResourceLimitError, match="disk"),
    ):
        tight.create("web", "fix-1")


def test_parallel_creates_cannot_promise_the_same_memory_twice(swarm):
    swarm.create_project("web")
    reserve = swarm.status().capacity.memory_mib - 256 - 2 * 256 - 128  # room for two more
    with with_limits(swarm, memory_reserve_mib=reserve) as tight:
        results = tight.bulk_create("web", [f"t{number}" for number in range(6)], parallel=6)
    assert [result.error is None for result in results].count(True) == 2
    assert {type(result.error) for result in results if result.error} == {ResourceLimitError}


def test_resources_come_from_the_request_then_the_project_then_the_config(swarm):
    project = swarm.create_project("web", request=ResourceRequest(cpus=3))
    assert (project.resources.cpus, project.resources.memory_mib) == (3, 256)
    task = swarm.create("web", "fix-1", request=ResourceRequest(memory_mib=300))
    assert (task.resources.cpus, task.resources.memory_mib) == (3, 300)


def test_a_disk_smaller_than_the_projects_is_refused(swarm):
    swarm.create_project("web", request=ResourceRequest(disk_gib=3))
    with pytest.raises(UsageError, match="smaller"):
        swarm.create("web", "fix-1", request=ResourceRequest(disk_gib=2))


# --- copies --------------------------------------------------------------------------------------------


def test_files_are_copied_both_ways_and_between_tasks(swarm, tmp_path):
    swarm.create_project("web")
    swarm.bulk_create("web", ["a", "b"])
    (tmp_path / "in").write_bytes(bytes(range(256)))
    swarm.copy(str(tmp_path / "in"), "a:data.bin")
    swarm.copy("a:data.bin", "b:copy.bin")
    swarm.copy("b:copy.bin", str(tmp_path / "out"))
    assert (tmp_path / "out").read_bytes() == bytes(range(256))


def test_a_copy_that_names_no_machine_is_refused(swarm, tmp_path):
    with pytest.raises(UsageError, match="neither"):
        swarm.copy(str(tmp_path / "a"), str(tmp_path / "b"))


# --- missing things --------------------------------------------------------------------------------------


def test_a_project_without_any_image_says_how_to_get_one(tmp_path):
    with Swarm(paths=Paths.at(tmp_path / "empty"), config=Config(provider="fake")) as swarm:
        with pytest.raises(NotFoundError) as caught:
            swarm.create_project("web")
        assert "init-base" in caught.value.hint


def test_a_machine_whose_files_are_gone_is_broken_and_can_be_deleted(swarm):
    swarm.create_project("web")
    task = swarm.create("web", "fix-1")
    swarm.stop("fix-1")
    (swarm.paths.fake / task.handle).rename(swarm.paths.home / "elsewhere")
    broken = swarm.show("fix-1").environment
    assert (broken.status, broken.reason != "") == (Status.BROKEN, True)
    assert [found.status for found in swarm.environments() if found.name == "web"] == [Status.RUNNING]
    with pytest.raises(ConflictError, match="broken"):
        swarm.start("fix-1")
    swarm.delete("fix-1")


def test_gc_removes_a_machine_that_the_registry_does_not_know(swarm):
    swarm.create_project("web")
    task = swarm.create("web", "fix-1")
    with swarm._context.registry.transaction():
        swarm._context.registry.remove(task.id)
    assert [item.what for item in swarm.gc(dry_run=True)] != []
    assert swarm._context.provider("fake").inspect(task.handle).pid is not None
    swarm.gc()
    assert swarm._context.provider("fake").inspect(task.handle).pid is None
    assert swarm.gc(dry_run=True) == []


def test_an_operation_in_progress_is_not_taken_for_an_abandoned_one(swarm, recorder):
    swarm.create_project("web")
    faults(swarm, create={"delay_s": 1.0, "times": 1})
    worker = threading.Thread(target=swarm.create, args=("web", "slow"))
    worker.start()
    while not any(isinstance(event, StepStarted) and event.subject == "slow" for event in recorder):
        pass
    with Swarm(paths=swarm.paths, config=swarm.config) as other:
        assert {found.name: found.status for found in other.environments()}["slow"] is Status.CREATING
    worker.join()
    assert swarm.find("slow").status is Status.RUNNING
    assert recorder.of(Notice) == []
