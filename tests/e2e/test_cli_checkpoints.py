"""checkpoint, checkpoints, restore, fork, suspension and warm baselines as users call them, on the fake provider."""

from __future__ import annotations

import re

import pytest

from agent_swarm.providers.fake.faults import Fault
from tests.e2e.test_cli_shown import complete


def write(task, text, name="fix-1"):
    """A file on the disk, and a running process."""
    task.ok("run", name, "sh", "-c", f"echo {text} >file; echo {text} >run/process")


def read(task, name="fix-1"):
    return task.ok("run", name, "sh", "-c", "cat file run/process 2>/dev/null || true").split()


def names(task, name="fix-1"):
    return [entry["name"] for entry in task.json("checkpoints", name)["checkpoints"]]


def test_a_checkpoint_is_made_listed_restored_and_deleted(task):
    write(task, "old")
    assert (
        b"checkpoint before of task fix-1 holds disk and memory"
        in task("checkpoint", "fix-1", "before").stderr
    )
    write(task, "new")
    assert b"task fix-1 is running, as at checkpoint before" in task("restore", "fix-1").stderr
    assert read(task) == ["old", "old"]
    assert task.json("show", "fix-1")["task"]["checkpoint"] == "before"
    assert "checkpoint:" in task.ok("show", "fix-1")
    task.ok("checkpoint", "delete", "fix-1", "before", "--yes")
    assert all(name.startswith("before-restore-") for name in names(task))


def test_checkpoints_are_drawn_as_a_tree_with_the_current_one_marked(task):
    for words in (
        ["checkpoint", "fix-1", "root"],
        ["checkpoint", "fix-1", "left"],
        ["restore", "fix-1", "root"],
        ["checkpoint", "fix-1", "right", "--disk-only"],
    ):
        task.ok(*words)
    heading, *rows = task.ok("checkpoints", "fix-1").splitlines()
    assert heading.split() == ["CHECKPOINT", "AGE", "HOLDS", "SIZE", "NOTE"]
    line = re.compile(r"(.*\S) +\d+[sm]  (disk|disk and memory) +[0-9.]+ \w+(.*)")
    drawn, holds, notes = zip(*(line.fullmatch(row).groups() for row in rows), strict=True)
    assert (drawn[0], drawn[1], drawn[3]) == ("root", "├─ left", "└─ right")
    assert drawn[2].startswith("│  └─ before-restore-")
    assert holds == ("disk and memory",) * 3 + ("disk",)
    assert notes == ("", "", "  automatic", "  current")


def test_the_first_word_of_checkpoint_is_a_task_unless_it_is_a_subcommand(task):
    assert "agent-swarm checkpoint [OPTIONS] TASK [NAME]" in task.ok("checkpoint", "--help")
    assert "agent-swarm checkpoint delete" in task.ok("checkpoint", "delete", "--help")
    assert "there is no task named 'remove'" in task.fails(3, "checkpoint", "remove", "fix-1")
    task.fails(2, "checkpoint", "delete", "fix-1")
    assert "TASK" in task.fails(2, "checkpoint")


def test_a_fork_goes_on_where_its_source_is(task):
    write(task, "work")
    task.ok("fork", "fix-1", "try-1", "try-2", "--parallel", "2")
    assert [read(task, name) for name in ("try-1", "try-2")] == [["work", "work"]] * 2
    origin = task.json("show", "try-1")["task"]["origin"]
    assert re.fullmatch(r"fix-1@fork-\d{4}-\d\d-\d\dT\d\d-\d\d-\d\d", origin)
    assert {entry["name"]: entry["origin"] for entry in task.json("list")["tasks"]} == {
        "fix-1": "",
        "try-1": origin,
        "try-2": origin,
    }
    assert f"made from:    {origin}" in task.ok("show", "try-1")


def test_a_fork_of_a_checkpoint_reports_each_by_itself(task):
    task.ok("checkpoint", "fix-1", "before")
    done = task("fork", "fix-1@before", "try-1", "fix-1", "--keep-secrets")
    assert done.returncode == 4
    assert [line.split()[:2] for line in done.stdout.decode().splitlines()[1:]] == [
        ["try-1", "created"],
        ["fix-1", "failed"],
    ]


def test_a_suspended_task_is_listed_as_such_and_goes_on_where_it_was(task):
    write(task, "work")
    assert b"task fix-1 is suspended" in task("stop", "fix-1", "--suspend").stderr
    assert task.json("list")["tasks"][0]["status"] == "suspended"
    assert task.json("show", "fix-1")["task"]["ssh"] is None
    assert task.json("status")["host"]["running_machines"] == 1
    assert "agent-swarm start fix-1" in task.fails(4, "run", "fix-1", "true")
    assert b"suspended already" in task("stop", "fix-1").stderr
    task.ok("start", "fix-1")
    assert read(task) == ["work", "work"]


def test_a_suspended_project_goes_on_where_it_was_and_makes_no_baseline(task):
    assert b"project web is suspended" in task("project", "stop", "web", "--suspend").stderr
    shown = task.json("project", "show", "web")["project"]
    assert [entry["generation"] for entry in shown["baselines"]] == [1]
    task.ok("project", "start", "web")


def test_memory_that_cannot_go_on_names_the_way_without_it(task):
    write(task, "work")
    task.ok("checkpoint", "fix-1", "before")
    task.ok("stop", "fix-1", "--suspend")
    task.arrange(obstacle=Fault(error="machine"))
    assert "agent-swarm start --cold fix-1" in task.fails(4, "start", "fix-1")
    task.ok("start", "fix-1", "--cold")
    assert read(task) == ["work"]
    assert "agent-swarm restore --cold fix-1 before" in task.fails(4, "restore", "fix-1", "before")
    task.ok("restore", "--cold", "fix-1", "before")


def test_create_goes_on_from_the_projects_memory_unless_cold(task):
    task.ok("project", "run", "web", "sh", "-c", "echo service >run/process")
    task.ok("project", "stop", "web")
    baseline = task.json("project", "show", "web")["project"]["baselines"][0]
    assert (baseline["generation"], baseline["memory"]) == (2, True)
    assert "disk and memory" in task.ok("project", "show", "web")
    task.ok("create", "web", "warm")
    task.ok("create", "web", "cold", "--cold")
    task.ok("bulk", "create", "web", "cold-2", "--cold")
    assert [read(task, name) for name in ("warm", "cold", "cold-2")] == [["service"], [], []]
    assert task.json("show", "warm")["task"]["baseline"]["memory"] is True


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (2, ["checkpoint", "fix-1", "a/b"]),
        (2, ["checkpoint", "fix-1", "a@b"]),
        (2, ["checkpoint", "fix-1", "a", "b"]),
        (2, ["checkpoints"]),
        (2, ["fork", "fix-1"]),
        (2, ["fork", "fix-1@", "x"]),
        (2, ["fork", "fix-1", "../x"]),
        (2, ["fork", "fix-1", "x", "x"]),
        (2, ["checkpoint", "delete", "fix-1", "before"]),
        (3, ["checkpoint", "nobody"]),
        (3, ["checkpoints", "nobody"]),
        (3, ["restore", "nobody"]),
        (3, ["restore", "fix-1", "befor"]),
        (3, ["fork", "nobody", "x"]),
        (3, ["fork", "fix-1@befor", "x"]),
        (3, ["checkpoint", "delete", "fix-1", "befor", "--yes"]),
        (4, ["checkpoint", "fix-1", "before"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else str(value),
)
def test_wrong_input_ends_with_its_code_and_a_hint_and_changes_nothing(task, code, words):
    task.ok("checkpoint", "fix-1", "before")
    assert "\nhint: " in task.fails(code, *words)
    assert names(task) == ["before"]
    assert [entry["name"] for entry in task.json("list")["tasks"]] == ["fix-1"]


def test_without_checkpoints_the_way_to_one_is_shown(task):
    assert b"agent-swarm checkpoint fix-1" in task("checkpoints", "fix-1").stderr
    assert "agent-swarm checkpoint fix-1" in task.fails(3, "restore", "fix-1")


def test_completion_knows_a_tasks_checkpoints(task):
    task.ok("checkpoint", "fix-1", "before")
    assert complete(task, "checkpoint", "f") == ["fix-1"]
    assert complete(task, "restore", "fix-1", "b") == ["before"]
    assert complete(task, "checkpoint", "delete", "fix-1", "") == ["before"]
    assert complete(task, "restore", "fix-2", "") == []
