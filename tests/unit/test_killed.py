"""kill -9 at every commit of every change, on the fake provider: nothing orphaned, nothing lost."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from agent_swarm.errors import ConflictError
from agent_swarm.model import Kind, Status
from agent_swarm.swarm import Swarm
from tests.support.images import tiny_image

ROOT = Path(__file__).parents[2]
SETTLED = {Status.RUNNING, Status.STOPPED}
PROJECT = {"kind": "project"}

# what is done first, then what is killed
CASES = {
    "create a project": ([], ("create_project", "web")),
    "create a task": ([("create_project", "web")], ("create", "web", "fix-1")),
    "stop a task": ([("create_project", "web"), ("create", "web", "fix-1")], ("stop", "fix-1")),
    "start a task": (
        [("create_project", "web"), ("create", "web", "fix-1"), ("stop", "fix-1")],
        ("start", "fix-1"),
    ),
    "delete a task": ([("create_project", "web"), ("create", "web", "fix-1")], ("delete", "fix-1")),
    "stop a project": ([("create_project", "web"), ("create", "web", "fix-1")], ("stop", "web", PROJECT)),
    "make a baseline": ([("create_project", "web")], ("baseline", "web")),
    "delete a project": ([("create_project", "web")], ("delete", "web", PROJECT)),
}


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("case", CASES)
def test_a_kill_at_every_commit_orphans_and_loses_nothing(case, when, tmp_path, monkeypatch):
    monkeypatch.setenv("AGENT_SWARM_PROVIDER", "fake")
    preparation, command = CASES[case]
    for number in range(1, 40):
        home = tmp_path / str(number)
        monkeypatch.setenv("AGENT_SWARM_HOME", str(home))
        with Swarm() as swarm:
            tiny_image(swarm)
            for method, *arguments in preparation:
                call(swarm, method, arguments)
            write(swarm, "kept")
        done = run_killed(when, number, command)
        with Swarm() as swarm:
            assert_sound(swarm)
            assert_nothing_lost(swarm, command)
            for environment in reversed(swarm.environments()):  # tasks first
                swarm.delete(environment.name, kind=environment.kind)
            assert_sound(swarm)
            assert processes_of(swarm) == []
        if done.returncode == 0:
            assert number > 2, "no commit was killed"
            return
        assert done.returncode == -signal.SIGKILL, done.stderr
    pytest.fail("the command never came to its end")


def call(swarm, method, arguments):
    keywords = {}
    if arguments and isinstance(arguments[-1], dict):
        *arguments, keywords = arguments
        keywords = {"kind": Kind(keywords["kind"])}
    return getattr(swarm, method)(*arguments, **keywords)


def run_killed(when, number, command):
    words = [json.dumps(word) if isinstance(word, dict) else word for word in command]
    return subprocess.run(
        [sys.executable, "-m", "tests.support.killed", when, str(number), *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


def write(swarm, text):
    """Put a file into every machine, whose loss would be noticed."""
    for environment in swarm.environments():
        stopped = environment.status is Status.STOPPED
        if stopped:
            swarm.start(environment.name, kind=environment.kind)
        done = swarm.run_captured(
            environment.name, ["sh", "-c", 'printf %s "$0" >kept', text], kind=environment.kind
        )
        assert done.exit_code == 0
        if stopped:
            swarm.stop(environment.name, kind=environment.kind)


def assert_sound(swarm):
    """The registry, the provider and the processes tell the same story, and nothing is open."""
    environments = swarm.environments()  # any command ends what was left open
    assert {found.status for found in environments} <= SETTLED
    context = swarm._context
    assert context.registry.open_operations() == []
    provider = context.provider("fake")
    owned = {machine.id: machine for machine in provider.list_owned()}
    assert set(owned) == {found.id for found in environments}
    for found in environments:
        known = {baseline.id for baseline in context.registry.baselines(found.id)}
        assert set(owned[found.id].points) == known
    running = {found.id for found in environments if found.status is Status.RUNNING}
    assert {owner for owner, _pid in processes_of(swarm)} == running
    remains = list(swarm.paths.fake.rglob("*.partial")) + list(swarm.paths.fake.rglob("*.deleting"))
    assert remains == []
    assert [item.what for item in swarm.gc(dry_run=True)] == []


def assert_nothing_lost(swarm, command):
    """What had been there is there, unless deleting it was the command."""
    for environment in swarm.environments():
        if command[0].startswith("create") and environment.name == command[-1]:
            continue
        try:
            swarm.start(environment.name, kind=environment.kind)
        except ConflictError as error:
            pytest.fail(f"{environment.label} cannot be started: {error.message}")
        done = swarm.run_captured(environment.name, ["cat", "kept"], kind=environment.kind)
        assert done.stdout == b"kept"
    names = {environment.name for environment in swarm.environments()}
    if command[0] in {"stop", "start", "baseline"}:
        assert {command[1], "web"} <= names
    if command[0] == "stop" and command[-1] == PROJECT:
        assert swarm._context.registry.newest_baseline(swarm.find("web", kind=Kind.PROJECT).id) is not None


def processes_of(swarm):
    """(environment id, pid) of every live process that carries an id this home ever used."""
    rows = swarm._context.registry._read("SELECT DISTINCT environment_id FROM operations")
    ids = {row["environment_id"] for row in rows}
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            words = (entry / "cmdline").read_text(errors="replace")
            state = (entry / "stat").read_text(errors="replace").rpartition(")")[2].split()[0]
        except OSError:
            continue
        found += [(owner, int(entry.name)) for owner in ids if owner in words and state != "Z"]
    return found
