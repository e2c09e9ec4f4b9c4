"""Warm baselines, checkpoints, forks and suspension on real machines, through the facade."""

from __future__ import annotations

import os
import random
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from agent_swarm.model import Environment, Kind, Status

if TYPE_CHECKING:
    from collections.abc import Iterator

    from agent_swarm.swarm import Swarm

pytestmark = pytest.mark.machine

BUFFER_MIB = 256
COUNTER = "setsid sh -c 'while :; do i=$((i+1)); echo $i >/dev/shm/count; sleep 0.5; done' >/dev/null 2>&1 &"
# every line is on the disk before the next begins; its number shows a gap
WRITER = "setsid sh -c 'while :; do i=$((i+1)); echo $i >>~/written; sync; sleep 0.2; done' >/dev/null 2>&1 &"


def sh(swarm: Swarm, name: str, script: str, kind: Kind = Kind.TASK) -> str:
    done = swarm.run_captured(name, ["sh", "-c", script], kind=kind)
    assert done.exit_code == 0, done.stderr
    return done.stdout.decode()


def count(swarm: Swarm, name: str) -> int:
    return int(sh(swarm, name, "cat /dev/shm/count"))


def counts_on(swarm: Swarm, name: str) -> bool:
    """Whether the process in the task lives and does its work; each look takes as long as a command does."""
    before = count(swarm, name)
    return any(count(swarm, name) > before for _ in range(100))


@pytest.fixture(scope="module")
def live(machines: Swarm, project: Environment) -> Iterator[str]:
    """A project whose newest baseline was made while a process counted."""
    sh(machines, project.name, COUNTER, Kind.PROJECT)
    machines.baseline(project.name)
    yield project.name
    sh(machines, project.name, "pkill -f dev/shm/coun[t]", Kind.PROJECT)
    machines.baseline(project.name)


@pytest.fixture(scope="module")
def task(machines: Swarm, live: str) -> Iterator[str]:
    machines.create(live, "live")
    yield "live"
    machines.delete("live", force=True)


def test_a_task_goes_on_from_the_projects_memory(machines: Swarm, live: str, task: str):
    assert machines.show(task).baseline.memory
    assert count(machines, task) > 0
    assert counts_on(machines, task)
    assert "up 0 min" not in sh(machines, task, "uptime")
    assert sh(machines, task, "hostname").strip() == task


def test_verify_shows_that_siblings_and_the_project_are_told_apart(machines: Swarm, live: str, task: str):
    machines.create(live, "sibling")
    checks = machines.verify(task)
    assert [check.subject for check in checks if not check.holds] == []
    compared = next(check.evidence for check in checks if check.subject == "own machine-id")
    assert int(re.findall(r"(\d+) other", compared)[0]) >= 2, "there was nothing to compare with"
    machines.delete("sibling")


def test_verify_tells_of_a_machine_that_is_not_itself(machines: Swarm, live: str, task: str):
    machines.create(live, "twin")
    theirs = sh(machines, task, "cat /etc/machine-id")
    sh(
        machines,
        "twin",
        f"echo {theirs.strip()} | sudo tee /etc/machine-id; sudo date -s '-1 hour'; sudo hostname odd",
    )
    failed = {check.subject for check in machines.verify("twin") if not check.holds}
    assert failed == {"own machine-id", "clock", "host name"}
    machines.delete("twin")


def test_restore_goes_back_in_memory_and_on_disk_and_can_be_taken_back(machines: Swarm, task: str):
    sh(machines, task, "echo before >~/note; sync")
    made = machines.checkpoint(task, "first")
    assert made.memory
    counted = count(machines, task)
    sh(machines, task, "echo after >~/note; sync")
    after = count(machines, task)
    machines.restore(task, "first")
    assert sh(machines, task, "cat ~/note") == "before\n"
    assert count(machines, task) >= counted - 50  # it counted on while the checkpoint was made
    assert counts_on(machines, task)
    undo = next(found.checkpoint.name for found in machines.checkpoints(task) if found.checkpoint.automatic)
    machines.restore(task, undo)
    assert sh(machines, task, "cat ~/note") == "after\n"
    assert count(machines, task) >= after


def test_a_session_and_its_connection_live_through_a_checkpoint(machines: Swarm, task: str):
    words = [
        sys.executable,
        "-m",
        "agent_swarm",
        "run",
        task,
        "--",
        "sh",
        "-c",
        "while read word; do echo $word; done",
    ]
    environ = {"AGENT_SWARM_HOME": str(machines.paths.home), "PATH": os.environ["PATH"]}
    with subprocess.Popen(words, env=environ, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as session:
        assert session.stdin is not None
        assert session.stdout is not None
        for word in (b"one\n", b"two\n", b"three\n"):
            session.stdin.write(word)
            session.stdin.flush()
            assert session.stdout.readline() == word
            machines.checkpoint(task)
        session.stdin.close()
        assert session.wait(60) == 0


def test_the_clock_is_right_after_a_checkpoint_of_yesterday(machines: Swarm, task: str):
    sh(machines, task, "sudo date -s '-1 day'")
    machines.checkpoint(task, "yesterday")
    machines.restore(task, "yesterday")
    assert next(check.holds for check in machines.verify(task) if check.subject == "clock")


def test_memory_is_whole_after_many_suspensions_and_in_a_tree_of_forks(machines: Swarm, task: str):
    made = f"head -c {BUFFER_MIB}M /dev/urandom >/dev/shm/buffer && sha256sum </dev/shm/buffer"
    check = "sha256sum </dev/shm/buffer"
    machines.restore(task, "first")
    expected = sh(machines, task, made)
    for _ in range(10):
        machines.stop(task, suspend=True)
        assert machines.find(task).status is Status.SUSPENDED
        machines.start(task)
    assert sh(machines, task, check) == expected
    parent, tree = task, []
    for child in ("child", "grandchild", "great-grandchild"):
        results = machines.fork(parent, [child])
        assert [result.error for result in results] == [None]
        tree.append(child)
        assert sh(machines, child, check) == expected
        parent = child
    machines.delete("child", force=True)
    assert sh(machines, "grandchild", check) == expected
    machines.bulk_delete(tree[1:], force=True)


def test_disk_and_file_system_are_whole_after_random_rounds_with_a_writer(machines: Swarm, live: str):
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    dice = random.Random(seed)
    machines.create(live, "writer")
    sh(machines, "writer", WRITER)
    names, current = [machines.checkpoint("writer").name], "writer"
    for number in range(10):
        move = dice.choice(["checkpoint", "restore", "fork"])
        if move == "checkpoint":
            names.append(machines.checkpoint(current).name)
        elif move == "restore" and names:
            machines.restore(current, dice.choice(names), force=True)
        else:
            following = f"writer-{number}"
            results = machines.fork(current, [following])
            assert [result.error for result in results] == [None]
            machines.delete(current, force=True)
            current, names = following, [machines.checkpoint(following).name]
        written = [int(line) for line in sh(machines, current, "cat ~/written").split()]
        assert written == list(range(1, len(written) + 1)), (seed, number, move)
    sh(machines, current, "n=$(wc -l <~/written); while [ $(wc -l <~/written) -le $n ]; do :; done")
    machines.stop(current)
    assert file_system_problems(machines, current) == "", seed
    machines.delete(current)


def test_sixteen_forks_run_side_by_side(machines: Swarm, live: str):
    names = [f"many-{number}" for number in range(16)]
    results = machines.bulk_create(live, names, force=True)
    assert [result.error for result in results] == [None] * 16
    identities = {sh(machines, name, "hostname; cat /etc/machine-id") for name in names}
    assert len(identities) == 16
    used = {usage.environment.name: usage.machine.memory_bytes for usage in machines.status().machines}
    total = sum(used[name] or 0 for name in names)
    print(f"16 forks use {total >> 20} MiB")
    assert 0 < total < 16 * (600 << 20), "nothing of their memory is shared"
    assert all(result.error is None for result in machines.bulk_delete(names, force=True))


def test_a_warm_baseline_that_does_not_fit_boots_cold_and_says_why(machines: Swarm, live: str):
    from agent_swarm.operations.requests import ResourceRequest

    machines.create(live, "larger", request=ResourceRequest(memory_mib=1280), force=True)
    assert sh(machines, "larger", "grep -c . /etc/made-by-setup").strip() == "1"
    assert machines.run_captured("larger", ["test", "-e", "/dev/shm/count"]).exit_code == 1
    machines.delete("larger")


def file_system_problems(swarm: Swarm, name: str) -> str:
    """What e2fsck finds on the stopped task's disk, "" for nothing."""
    directory = swarm.paths.machine(Kind.TASK, swarm.find(name).id)
    layer = max(directory.glob("layers/0*.qcow2"))
    raw = Path(swarm.paths.home, f"{name}.raw")
    try:
        subprocess.run(["qemu-img", "convert", "-f", "qcow2", "-O", "raw", layer, raw], check=True)
        done = subprocess.run(["/sbin/e2fsck", "-f", "-n", raw], capture_output=True, text=True, check=False)
    finally:
        raw.unlink(missing_ok=True)
    return "" if done.returncode == 0 else done.stdout + done.stderr
