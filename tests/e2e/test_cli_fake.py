"""What commands of the installed `agent-swarm` do and refuse, on the fake provider."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

from agent_swarm.providers.fake.faults import Fault
from tests.support.cli import PROGRAM

# --- the life of a task ---------------------------------------------------------------------------


def test_from_project_to_a_command_and_back_to_nothing(cli):
    cli.ok("project", "create", "web", "--cpus", "2", "--memory", "512M", "--disk", "2G")
    cli.ok("create", "web", "fix-1")
    assert cli.ok("run", "fix-1", "echo", "hello") == "hello\n"
    cli.ok("stop", "fix-1")
    assert [task["status"] for task in cli.json("list")["tasks"]] == ["stopped"]
    cli.ok("start", "fix-1")
    assert [task["status"] for task in cli.json("list")["tasks"]] == ["running"]
    cli.ok("delete", "fix-1", "--yes")
    cli.ok("project", "delete", "web", "-y")
    assert cli.json("list", "--all") == {"version": 1, "tasks": [], "projects": []}


def test_messages_and_progress_go_to_stderr(cli):
    done = cli("project", "create", "web")
    assert done.stdout == b""
    lines = done.stderr.decode().splitlines()
    assert any(re.fullmatch(r"web: make machine \.\.\. done in \d+\.\d s", line) for line in lines)
    assert any(line.startswith("web | ") for line in lines), "the set-up's output"
    assert lines[-1].startswith("project web is running")


def test_resources_come_from_the_flag_then_the_project_then_the_config(cli):
    cli.ok("project", "create", "web", "--cpus", "2")
    cli.ok("create", "web", "fix-1")
    cli.ok("create", "web", "fix-2", "--memory", "1G")
    given = {task["name"]: task["resources"] for task in cli.json("list")["tasks"]}
    assert given == {
        "fix-1": {"cpus": 2, "memory_mib": 256, "disk_gib": 1},
        "fix-2": {"cpus": 2, "memory_mib": 1024, "disk_gib": 1},
    }


def test_stopping_a_project_makes_the_next_baseline_and_tasks_keep_theirs(task):
    assert "generation 2" in task("project", "stop", "web").stderr.decode()
    task.ok("create", "web", "fix-2")
    assert task.json("show", "fix-1")["task"]["baseline"]["generation"] == 1
    assert task.json("show", "fix-2")["task"]["baseline"]["generation"] == 2
    task.ok("project", "start", "web")
    task.ok("project", "baseline", "web")
    generations = [
        entry["generation"] for entry in task.json("project", "show", "web")["project"]["baselines"]
    ]
    assert generations == [3, 2, 1]


def test_a_project_with_tasks_is_not_deleted_and_they_are_named(task):
    assert "fix-1" in task.fails(4, "project", "delete", "web", "--yes")


def test_a_failed_setup_shows_its_last_lines_and_keeps_the_machine(cli):
    (cli.home / "setup.sh").write_text(
        "#!/bin/bash\necho before; printf 'bad \\033[2J thing\\n' >&2; exit 3\n"
    )
    error = cli("project", "create", "web").stderr.decode()
    assert "error: setup.sh failed in project web with exit code 3" in error
    assert "project ssh web" in error
    assert "\x1b" not in error
    assert cli.ok("project", "run", "web", "echo", "still here") == "still here\n"
    assert "before\n" in cli.ok("logs", "web", "--project", "--setup")
    shown = cli("project", "list")
    assert "failed" in shown.stdout.decode()
    assert "setup.sh failed" in shown.stderr.decode()


def test_sigterm_undoes_what_is_half_done(cli):
    cli.ok("project", "create", "web")
    cli.arrange(start=Fault(delay_s=60))
    process = subprocess.Popen([PROGRAM, "create", "web", "fix-1"], env=cli.environ, stderr=subprocess.PIPE)
    assert process.stderr is not None
    for line in process.stderr:
        if b"make machine ... done" in line:
            break
    process.terminate()
    process.stderr.close()
    assert process.wait(30) == 143
    cli.arrange()
    assert cli.json("list")["tasks"] == []
    assert len(list((cli.home / "fake").glob("*/owner.json"))) == 1


def test_quickstart_ends_with_both_tasks_and_what_to_type_next_and_can_be_repeated(cli):
    (cli.home / "config.json").write_text('{"limits": {"memory_reserve_mib": 0}}')
    for _ in range(2):
        done = cli("quickstart")
        assert done.returncode == 0, done.stderr
        shown = done.stdout.decode()
        assert re.search(r"^demo-1 +running .* runs Linux", shown, re.MULTILINE)
        assert re.search(r"^demo-2 +running .* runs Linux", shown, re.MULTILINE)
        assert "agent-swarm ssh demo-1" in shown


# --- run ------------------------------------------------------------------------------------------

ARGUMENTS = [
    "",
    " a  b ",
    "'",
    '"',
    "$HOME",
    "*",
    "a\nb",
    "-x",
    "--",
    "--help",
    "ünï",
    "\\",
    "`id`",
    "é\udcff",
]


@pytest.mark.parametrize("separator", [[], ["--"]])
def test_run_passes_every_argument_byte_for_byte(task, separator):
    script = "import os, sys; os.write(1, b'\\0'.join(map(os.fsencode, sys.argv[1:])))"
    done = task("run", "fix-1", *separator, sys.executable, "-c", script, *ARGUMENTS)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split(b"\0") == [os.fsencode(word) for word in ARGUMENTS]


def test_only_the_first_separator_is_ours(task):
    done = task("run", "fix-1", "--", "--", "x")
    assert done.returncode == 127, "a command named --"


@pytest.mark.parametrize("code", [0, 1, 2, 77, 255])
def test_run_ends_with_the_commands_exit_code(task, code):
    assert task("run", "fix-1", "sh", "-c", f"exit {code}").returncode == code


def test_run_keeps_the_streams_apart_and_forwards_stdin(task):
    done = task("run", "fix-1", "--", "sh", "-c", "cat; echo problem >&2", stdin=b"\0input\xff")
    assert done.stdout == b"\0input\xff"
    assert done.stderr == b"problem\n"


def test_run_without_a_command_says_how(task):
    assert "agent-swarm run --help" in task.fails(2, "run", "fix-1")
    task.fails(2, "run", "fix-1", "--")


def test_run_in_a_stopped_task_says_how_to_start_it(task):
    task.ok("stop", "fix-1")
    assert "agent-swarm start fix-1" in task.fails(4, "run", "fix-1", "true")


def test_cp_goes_both_ways_and_between_tasks(task, tmp_path):
    task.ok("create", "web", "fix-2")
    folder = tmp_path / "a folder"
    folder.mkdir()
    (folder / "file").write_bytes(b"\0content")
    task.ok("cp", str(folder), "fix-1:copy")
    task.ok("cp", "fix-1:copy", "fix-2:copy")
    task.ok("cp", "fix-2:copy", str(tmp_path / "back"))
    assert (tmp_path / "back" / "file").read_bytes() == b"\0content"


# --- many at once ---------------------------------------------------------------------------------


def test_one_failure_of_bulk_create_neither_hides_nor_stops_the_others(task):
    done = task("bulk", "create", "web", "a", "fix-1", "b", "--parallel", "2")
    assert done.returncode == 4
    assert [line.split()[:2] for line in done.stdout.decode().splitlines()[1:]] == [
        ["a", "created"],
        ["fix-1", "failed"],
        ["b", "created"],
    ]
    assert "error: fix-1: there is already a task named 'fix-1'" in done.stderr.decode()
    assert {entry["name"] for entry in task.json("list")["tasks"]} == {"a", "b", "fix-1"}


def test_bulk_errors_of_several_kinds_end_with_1(task):
    task.arrange(delete=Fault(error="machine", times=1))
    assert task("bulk", "delete", "fix-1", "nobody", "--yes", "--parallel", "1").returncode == 1


def test_bulk_delete_by_project_leaves_the_project(task):
    task.ok("create", "web", "fix-2")
    task.ok("bulk", "delete", "--project", "web", "--yes")
    assert task.json("list")["tasks"] == []
    assert len(task.json("project", "list")["projects"]) == 1


# --- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["../x", "", "x" * 300, "a/b", ".hidden", "a b", "x.lock", "\x1b[31m"])
def test_a_bad_name_is_refused_before_anything_happens(cli, name):
    cli.ok("project", "create", "web")
    error = cli.fails(2, "create", "web", name)
    assert "1 to 63 letters" in error
    assert "\x1b" not in error
    cli.fails(2, "bulk", "create", "web", "good", name)
    cli.fails(2, "project", "create", name)
    assert cli.json("list", "--all")["tasks"] == []


def test_a_name_with_a_leading_dash_is_an_unknown_option_or_a_bad_name(cli):
    cli.fails(2, "create", "web", "-x")
    cli.ok("project", "create", "web")
    assert "not a valid task name" in cli.fails(2, "create", "web", "--", "-x")


def test_a_name_that_exists_is_a_conflict(task):
    task.fails(4, "create", "web", "fix-1")
    task.fails(4, "project", "create", "web")


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (2, ["create", "--memory", "1", "web", "x"]),
        (2, ["create", "--cpus", "0", "web", "x"]),
        (2, ["bulk", "delete"]),
        (2, ["bulk", "delete", "fix-1", "--project", "web", "--yes"]),
        (2, ["config", "set", "resources.cpu", "2"]),
        (2, ["config", "set", "resources.cpus", "many"]),
        (2, ["completion", "tcsh"]),
        (2, ["cp", "a", "b"]),
        (2, ["project", "create", "y", "--provider", "fak"]),
        (3, ["show", "fix"]),
        (3, ["create", "wep", "x"]),
        (3, ["delete", "nobody", "--yes"]),
        (3, ["project", "create", "y", "--image", "nothing"]),
        (3, ["logs", "fix-1", "--setup"]),
        (6, ["create", "web", "x", "--memory", "4000G"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else str(value),
)
def test_wrong_input_ends_with_its_code_and_a_hint(task, code, words):
    assert "\nhint: " in task.fails(code, *words)


def test_a_provider_that_cannot_be_used_ends_with_5(cli):
    cli.arrange(probe=Fault(error="unavailable"))
    cli.fails(5, "project", "create", "web")
    assert cli.json("project", "list")["projects"] == []


def test_force_overrides_a_resource_limit(task):
    task.ok("create", "web", "big", "--memory", "4000G", "--force")


@pytest.mark.parametrize(
    "words",
    [
        ["delete", "fix-1"],
        ["project", "delete", "web"],
        ["bulk", "delete", "fix-1"],
        ["bulk", "delete", "--project", "web"],
    ],
    ids=" ".join,
)
def test_off_a_terminal_deleting_needs_yes(task, words):
    assert "hint: Add --yes" in task.fails(2, *words)
    assert len(task.json("list")["tasks"]) == 1


def test_gc_removes_a_stray_after_yes_and_shows_it_in_a_dry_run(cli):
    leftover = cli.home / "base-images" / ".partial" / "stray"
    leftover.mkdir()
    assert "unfinished image stray" in cli.ok("gc", "--dry-run")
    assert cli("gc").returncode == 2
    assert leftover.exists()
    cli.ok("gc", "--yes")
    assert not leftover.exists()
    assert "nothing to remove" in cli("gc").stderr.decode()
