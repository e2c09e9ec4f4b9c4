"""What the installed `agent-swarm` shows: listings, JSON, logs, its own errors and completions."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.cli import PROGRAM, Cli

DOCS = Path(__file__).parents[2] / "docs"

# --- what is shown --------------------------------------------------------------------------------


def documented(command):
    page = (DOCS / "json.md").read_text()
    section = page.split(f"## agent-swarm {command}\n", 1)[1]
    return json.loads(re.search(r"```json\n(.*?)```", section, re.DOTALL)[1])


def shape(value, example, where=""):
    """Assert that two documents have the same fields, and values of the same types where both have any."""
    if value is None or example is None:
        return
    if isinstance(example, dict):
        assert set(value) == set(example), where
        for key in example:
            shape(value[key], example[key], f"{where}.{key}")
    elif isinstance(example, list):
        for entry in value:
            if example:
                shape(entry, example[0], f"{where}[]")
    elif not where.endswith((".value", ".default")):
        numbers = (int, float)
        assert isinstance(value, numbers if isinstance(example, numbers) else type(example)), where


@pytest.mark.parametrize(
    "command",
    [
        "list",
        "project list",
        "show fix-1",
        "project show web",
        "status",
        "providers",
        "image list",
        "doctor",
        "gc --dry-run",
        "config list",
        "bulk create web x",
        "bulk delete --yes fix-1 nobody",
        "checkpoints fix-1",
        "fork fix-1 x",
    ],
)
def test_json_has_the_documented_shape(task, command):
    (task.home / "base-images" / ".partial" / "stray").mkdir()  # something for gc to find
    task.ok("checkpoint", "fix-1")
    done = task(*command.split(), "--json")
    name = re.sub(r" (fix-1|web|-).*", "", command)
    document = json.loads(done.stdout)
    shape(document, documented(name), name)
    assert document["version"] == 1
    assert [] not in document.values(), "an empty list has no shape"


def test_times_are_iso_8601_in_utc(task):
    assert re.fullmatch(
        r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", task.json("show", "fix-1")["task"]["created_at"]
    )


def test_every_listing_says_that_fake_machines_are_simulated(task):
    for words in (["list"], ["project", "list"], ["show", "fix-1"], ["status"], ["providers"]):
        done = task(*words)
        assert b"simulated" in done.stdout + done.stderr, words
    assert task.json("list")["tasks"][0]["simulated"] is True
    assert task.json("status")["machines"][0]["simulated"] is True


def test_list_can_be_narrowed_to_a_project_or_widened_to_all(task):
    task.ok("project", "create", "api")
    task.ok("create", "api", "other")
    assert [entry["name"] for entry in task.json("list", "--project", "api")["tasks"]] == ["other"]
    everything = task.json("list", "--all")
    assert {entry["name"] for entry in everything["projects"]} == {"api", "web"}
    assert {entry["name"]: entry["project"] for entry in everything["tasks"]} == {
        "fix-1": "web",
        "other": "api",
    }


def test_a_broken_task_is_listed_with_its_reason(task):
    identifier = task.json("show", "fix-1")["task"]["id"]
    disk = task.home / "fake" / identifier / "disk"
    shutil.rmtree(disk)
    done = task("list")
    assert done.returncode == 0
    assert b"broken" in done.stdout
    assert b"task fix-1 is broken: its disk is missing" in done.stderr
    doctor = task("doctor")
    assert doctor.returncode == 1
    assert b"task fix-1" in doctor.stdout


def test_control_characters_of_a_guest_do_not_reach_the_terminal(task):
    identifier = task.json("show", "fix-1")["task"]["id"]
    with (task.home / "fake" / identifier / "console.log").open("ab") as console:
        console.write(b"\x1b]0;owned\x07 login\x08\x9b: \x00\r\n")
    shown = task("logs", "fix-1", "-n", "1").stdout
    assert shown == b" login\\x08\xef\xbf\xbd: \\x00\n"


def test_logs_shows_as_many_lines_as_asked_for(task):
    task.ok("create", "web", "cold", "--cold")  # one that booted, and said so
    assert len(task.ok("logs", "cold", "-n", "1").splitlines()) == 1
    assert task.ok("logs", "cold", "-n", "0") == ""


def test_a_reader_that_goes_away_is_no_error(task):
    program = f"{PROGRAM} config list | head -n 1; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", program], capture_output=True, env=task.environ, check=True)
    assert done.stderr == b""
    assert done.stdout.splitlines()[-1] in {b"0", b"141"}


def test_config_is_read_and_changed(cli):
    assert cli.ok("config", "get", "resources.cpus") == "1\n"
    cli.ok("config", "set", "editor", "codium")
    assert cli.ok("config", "get", "editor") == "codium\n"
    assert cli.ok("config", "path") == f"{cli.home / 'config.json'}\n"
    settings = {entry["key"]: entry for entry in cli.json("config", "list")["settings"]}
    assert settings["editor"]["value"] == "codium"
    assert settings["editor"]["default"] == "code"


def test_a_bad_config_names_the_key_and_the_nearest_valid_one(cli):
    (cli.home / "config.json").write_text('{"resources": {"cpu": 2}}')
    error = cli.fails(2, "list")
    assert "cpu" in error
    assert "resources.cpus" in error
    assert cli.ok("config", "path")


def test_verbose_shows_the_debug_log_that_the_private_log_file_has(cli):
    done = cli("-v", "project", "create", "web")
    assert done.returncode == 0
    assert re.search(rb"\d+ ms agent_swarm\.runner: run ssh-keygen", done.stderr)
    log = cli.home / "logs" / "agent-swarm.log"
    assert "agent_swarm.runner: run ssh-keygen" in log.read_text()
    assert log.stat().st_mode & 0o777 == 0o600


def test_a_bug_is_reported_shortly_and_its_traceback_is_in_the_log(cli):
    script = (
        "import agent_swarm.cli.app as app\n"
        "def broken(arguments): raise ZeroDivisionError('oops')\n"
        "app.execute = broken\n"
        "app.main()"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, env=cli.environ, check=False)
    assert done.returncode == 1
    error = done.stderr.decode()
    assert error.startswith("error: unexpected: ZeroDivisionError: oops\n")
    assert "Traceback" not in error
    log = cli.home / "logs" / "agent-swarm.log"
    assert str(log) in error
    assert "ZeroDivisionError: oops" in log.read_text()


# --- completion -----------------------------------------------------------------------------------


def complete(cli, *words, shell="bash", **environ):
    line = " ".join(["agent-swarm", *words])
    done = cli(
        _AGENT_SWARM_COMPLETE=f"{shell}_complete", COMP_WORDS=line, COMP_CWORD=str(len(words)), **environ
    )
    assert done.returncode == 0
    assert done.stderr == b""
    return [line.partition(",")[2] for line in done.stdout.decode().splitlines() if line]


def test_completion_knows_commands_options_tasks_and_projects(task):
    task.ok("create", "web", "fix-2")
    assert "create" in complete(task, "cr")
    assert "--project" in complete(task, "list", "--p")
    assert complete(task, "ssh", "f") == ["fix-1", "fix-2"]
    assert complete(task, "create", "w") == ["web"]
    assert complete(task, "list", "--project", "") == ["web"]
    assert complete(task, "bulk", "delete", "fix-1", "f") == ["fix-2"]
    assert complete(task, "config", "get", "resources.c") == ["resources.cpus"]


def test_completion_of_run_ends_after_the_task(task):
    assert complete(task, "run", "f") == ["fix-1"]
    assert complete(task, "run", "fix-1", "") == []
    assert complete(task, "run", "fix-1", "--") == []
    assert complete(task, "run", "fix-1", "-") == []


def test_completion_is_silent_without_a_registry_and_makes_none(tmp_path):
    cli = Cli(tmp_path / "nothing here")
    assert complete(cli, "ssh", "") == []
    assert not cli.home.exists()


def test_completion_is_silent_where_the_registry_is_damaged(cli):
    (cli.home / "registry.db").write_bytes(b"this is not a database" * 100)
    assert complete(cli, "ssh", "") == []
    (cli.home / "registry.db").unlink()


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_completion_script_names_the_program(cli, shell):
    assert "_AGENT_SWARM_COMPLETE" in cli.ok("completion", shell)


def test_the_bash_script_completes_in_a_real_shell(task):
    script = (
        f'PATH="{PROGRAM.parent}:$PATH"; eval "$(agent-swarm completion bash)"; '
        "COMP_WORDS=(agent-swarm ssh f); COMP_CWORD=2; "
        "_agent_swarm_completion agent-swarm f ssh; echo ${COMPREPLY[@]}"
    )
    done = subprocess.run(["bash", "-c", script], capture_output=True, env=task.environ, check=True)
    assert done.stdout == b"fix-1\n"
