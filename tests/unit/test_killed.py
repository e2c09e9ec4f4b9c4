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
from agent_swarm.providers.fake.faults import Fault, Faults
from agent_swarm.swarm import Swarm
from tests.support.images import tiny_image

ROOT = Path(__file__).parents[2]
SETTLED = {Status.RUNNING, Status.STOPPED, Status.SUSPENDED}
PROJECT = {"kind": "project"}
SUSPEND = {"suspend": True}
A_TASK = [("create_project", "web"), ("create", "web", "fix-1")]

WRITE = ("write",)

# what is done first, then what is killed; files are written at WRITE, or at the end
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
    "make a checkpoint": (A_TASK, ("checkpoint", "fix-1", "mine")),
    "make a checkpoint of a stopped task": ([*A_TASK, ("stop", "fix-1")], ("checkpoint", "fix-1", "mine")),
    "delete a checkpoint": (
        [*A_TASK, ("checkpoint", "fix-1", "mine"), ("checkpoint", "fix-1", "other")],
        ("delete_checkpoint", "fix-1", "mine"),
    ),
    "restore": ([*A_TASK, ("checkpoint", "fix-1", "mine")], ("restore", "fix-1", "mine")),
    "restore a stopped task": (
        [*A_TASK, ("checkpoint", "fix-1", "mine"), ("stop", "fix-1")],
        ("restore", "fix-1", "mine"),
    ),
    "restore a disk": (
        [*A_TASK, ("checkpoint", "fix-1", "mine", {"disk_only": True})],
        ("restore", "fix-1", "mine"),
    ),
    "fork": (A_TASK, ("fork", "fix-1", ["try-1"])),
    "fork a checkpoint": (
        [*A_TASK, WRITE, ("checkpoint", "fix-1", "mine")],
        ("fork", "fix-1@mine", ["try-1"]),
    ),
    "suspend": (A_TASK, ("stop", "fix-1", SUSPEND)),
    "suspend a project": ([("create_project", "web")], ("stop", "web", {**PROJECT, **SUSPEND})),
    "start a suspended task": ([*A_TASK, WRITE, ("stop", "fix-1", SUSPEND)], ("start", "fix-1")),
    "start a suspended task cold": (
        [*A_TASK, WRITE, ("stop", "fix-1", SUSPEND)],
        ("start", "fix-1", {"cold": True}),
    ),
}
KEEPS_MEMORY = {
    "make a baseline",
    "make a checkpoint",
    "delete a checkpoint",
    "restore",
    "fork",
    "fork a checkpoint",
    "suspend",
    "suspend a project",
    "start a suspended task",
}
"""What costs no machine its memory, however it is killed."""


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("case", CASES)
def test_a_kill_at_every_commit_orphans_and_loses_nothing(case, when, tmp_path, monkeypatch):
    monkeypatch.setenv("AGENT_SWARM_PROVIDER", "fake")
    preparation, command = CASES[case]
    for number in range(1, 40):
        home = tmp_path / str(number)
        monkeypatch.setenv("AGENT_SWARM_HOME", str(home))
        with Swarm() as swarm:
            prepare(swarm, preparation)
        done = run_killed(when, number, command)
        check(case)
        if done.returncode == 0:
            assert number > 2, "no commit was killed"
            return
        assert done.returncode == -signal.SIGKILL, done.stderr
    pytest.fail("the command never came to its end")


INSIDE = {
    "create a task": ["create:copied", "start:prepared", "start:running"],
    "stop a project": ["capture:paused", "capture:copied", "capture:renamed", "stop:ended"],
    "make a checkpoint": ["capture:paused", "capture:copied", "capture:renamed"],
    "delete a checkpoint": ["discard", "discard:renamed"],
    "restore": ["restore", "restore:copied", "restore:prepared", "restore:switched", "start:running"],
    "restore a stopped task": ["restore", "restore:copied", "restore:switched", "start:running"],
    "restore a disk": ["restore:switched", "start:running"],
    "fork": ["capture:paused", "create:copied", "start:prepared", "start:running"],
    "suspend": ["suspend", "suspend:paused", "suspend:saved", "suspend:renamed"],
    "start a suspended task": ["start", "start:prepared", "start:running"],
    "start a suspended task cold": ["forget", "start:running"],
}


@pytest.mark.parametrize(("case", "point"), [(case, point) for case in INSIDE for point in INSIDE[case]])
def test_a_kill_inside_the_provider_orphans_and_loses_nothing(case, point, tmp_path, monkeypatch):
    monkeypatch.setenv("AGENT_SWARM_PROVIDER", "fake")
    monkeypatch.setenv("AGENT_SWARM_HOME", str(tmp_path))
    preparation, command = CASES[case]
    with Swarm() as swarm:
        prepare(swarm, preparation)
        Faults(swarm.paths.fake / "faults.json").arrange({point: Fault(error="killed", times=1)})
    done = run_killed("after", 1000, command)
    assert done.returncode == -signal.SIGKILL, done.stderr
    check(case)


def prepare(swarm, preparation):
    tiny_image(swarm)
    for method, *arguments in preparation:
        if method == "write":
            write(swarm, "kept")
        else:
            call(swarm, method, arguments)
    if WRITE not in preparation:
        write(swarm, "kept")


def check(case):
    with Swarm() as swarm:
        assert_sound(swarm)
        assert_nothing_lost(swarm, case)
        assert_all_can_be_deleted(swarm)


def assert_all_can_be_deleted(swarm):
    for environment in reversed(swarm.environments()):  # tasks first
        swarm.delete(environment.name, kind=environment.kind)
    assert_sound(swarm)
    assert processes_of(swarm) == []


def call(swarm, method, arguments):
    keywords = {}
    if arguments and isinstance(arguments[-1], dict):
        *arguments, keywords = arguments
        keywords = {key: Kind(value) if key == "kind" else value for key, value in keywords.items()}
    return getattr(swarm, method)(*arguments, **keywords)


def run_killed(when, number, command):
    words = [word if isinstance(word, str) else json.dumps(word) for word in command]
    return subprocess.run(
        [sys.executable, "-m", "tests.support.killed", when, str(number), *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


def write(swarm, text):
    """Put a file on every machine's disk, and into its memory, whose loss would be noticed."""
    for environment in swarm.environments():
        stopped = environment.status is Status.STOPPED
        if stopped:
            swarm.start(environment.name, kind=environment.kind)
        done = swarm.run_captured(
            environment.name,
            ["sh", "-c", 'printf %s "$0" >kept; printf %s "$0" >run/kept', text],
            kind=environment.kind,
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
        checkpoints = context.registry.checkpoints(found.id)
        assert all(checkpoint.ready for checkpoint in checkpoints)
        known |= {checkpoint.id for checkpoint in checkpoints}
        assert found.checkpoint_id in {None, *known}
        assert set(owned[found.id].points) == known
    running = {found.id for found in environments if found.status is Status.RUNNING}
    assert {owner for owner, _pid in processes_of(swarm)} == running
    remains = list(swarm.paths.fake.rglob("*.partial")) + list(swarm.paths.fake.rglob("*.deleting"))
    assert remains == []
    assert [item.what for item in swarm.gc(dry_run=True)] == []


def assert_nothing_lost(swarm, case):
    """What had been there is there, unless deleting it was the command."""
    _preparation, (method, *arguments) = CASES[case]
    for environment in swarm.environments():
        if method.startswith("create") and environment.name == arguments[-1]:
            continue
        name, kind = environment.name, environment.kind
        if method == "restore" and kind is Kind.TASK:
            undo_restore(swarm, name)
        try:
            swarm.start(name, kind=kind)
        except ConflictError as error:
            pytest.fail(f"{environment.label} cannot be started: {error.message}")
        assert swarm.run_captured(name, ["cat", "kept"], kind=kind).stdout == b"kept"
        if case in KEEPS_MEMORY:
            assert swarm.run_captured(name, ["cat", "run/kept"], kind=kind).stdout == b"kept"
    names = {environment.name for environment in swarm.environments()}
    if not method.startswith(("create", "delete")):
        assert {arguments[0].partition("@")[0], "web"} <= names
    if case == "stop a project":
        assert swarm._context.registry.newest_baseline(swarm.find("web", kind=Kind.PROJECT).id) is not None
    if case == "delete a checkpoint":
        assert {entry.checkpoint.name for entry in swarm.checkpoints("fix-1")} - {"mine"} == {"other"}


def undo_restore(swarm, name):
    """Where the restore was completed, take it back by the checkpoint that it made."""
    checkpoints = {entry.checkpoint.name: entry for entry in swarm.checkpoints(name)}
    assert "mine" in checkpoints
    if checkpoints["mine"].current and len(checkpoints) > 1:
        [saved] = set(checkpoints) - {"mine"}
        swarm.restore(name, saved)


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


def test_what_was_done_after_a_kill_that_came_before_the_restore_is_not_lost(tmp_path, monkeypatch):
    monkeypatch.setenv("AGENT_SWARM_PROVIDER", "fake")
    monkeypatch.setenv("AGENT_SWARM_HOME", str(tmp_path))
    with Swarm() as swarm:
        prepare(swarm, [*A_TASK, ("checkpoint", "fix-1", "mine")])
        Faults(swarm.paths.fake / "faults.json").arrange({"restore": Fault(error="killed", times=1)})
    assert run_killed("after", 1000, ("restore", "fix-1", "mine")).returncode == -signal.SIGKILL
    with Swarm() as swarm:
        assert swarm.run_captured("fix-1", ["sh", "-c", "echo later >run/later"]).exit_code == 0
        [task] = swarm.environments(kind=Kind.TASK)
        assert task.status is Status.RUNNING
        assert swarm.run_captured("fix-1", ["cat", "run/later"]).stdout == b"later\n"
    check("restore")


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_restore_that_saved_nothing_is_not_begun_or_goes_forward(when, tmp_path, monkeypatch):
    monkeypatch.setenv("AGENT_SWARM_PROVIDER", "fake")
    for number in range(1, 40):
        home = tmp_path / str(number)
        home.mkdir()
        monkeypatch.setenv("AGENT_SWARM_HOME", str(home))
        (home / "config.json").write_text('{"checkpoints": {"automatic": false}}')
        with Swarm() as swarm:
            checkpoint = ("checkpoint", "fix-1", "other"), ("checkpoint", "fix-1", "mine")
            prepare(swarm, [*A_TASK, *checkpoint, ("restore", "fix-1", "other"), WRITE, ("stop", "fix-1")])
        done = run_killed(when, number, ("restore", "fix-1", "mine"))
        with Swarm() as swarm:
            assert_sound(swarm)
            [current] = [entry.checkpoint.name for entry in swarm.checkpoints("fix-1") if entry.current]
            swarm.start("fix-1")
            kept = swarm.run_captured("fix-1", ["cat", "kept"]).stdout
            assert (kept, current) in {(b"kept", "other"), (b"", "mine")}
            assert_all_can_be_deleted(swarm)
        if done.returncode == 0:
            assert current == "mine"
            return
    pytest.fail("the command never came to its end")
