"""The commands on real machines: side by side, apart from each other, and broken on purpose.

Four tasks are booted at once for the whole file; each test that breaks one takes another.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from agent_swarm.errors import ConflictError, SwarmError
from agent_swarm.model import Environment, Kind, SshEndpoint, Status

if TYPE_CHECKING:
    from collections.abc import Iterator

    from agent_swarm.model import Image
    from agent_swarm.swarm import Swarm

pytestmark = pytest.mark.machine

ROOT = Path(__file__).parents[2]
NAMES = ("one", "two", "three", "four")


@pytest.fixture(scope="module")
def four(machines: Swarm, project: Environment) -> Iterator[dict[str, Environment]]:
    results = machines.bulk_create(project.name, NAMES, parallel=4)
    assert [result.error for result in results] == [None] * 4
    yield {name: machines.find(name) for name in NAMES}
    machines.bulk_delete([task.name for task in machines.environments(kind=Kind.TASK) if task.name in NAMES])


def sh(swarm: Swarm, name: str, script: str, kind: Kind = Kind.TASK) -> str:
    done = swarm.run_captured(name, ["sh", "-c", script], kind=kind)
    assert done.exit_code == 0, done.stderr
    return done.stdout.decode()


def states(swarm: Swarm) -> dict[str, tuple[Status, str]]:
    return {found.name: (found.status, found.reason) for found in swarm.environments()}


def killed(swarm: Swarm, when: str, number: int, *command: str) -> None:
    """Run a command of the facade and kill it at its N-th commit (tests/support/killed.py)."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.killed", when, str(number), *command],
        cwd=ROOT,
        env={**os.environ, "AGENT_SWARM_HOME": str(swarm.paths.home), "AGENT_SWARM_PROVIDER": "qemu"},
        capture_output=True,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr


def qemu_processes(swarm: Swarm) -> set[str]:
    """Ids of this home's machines, those deleted since included, that a QEMU runs for."""
    rows = swarm._context.registry._read("SELECT DISTINCT environment_id FROM operations")
    lines = [
        entry.read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
        for entry in Path("/proc").glob("[0-9]*/cmdline")
        if entry.exists()
    ]
    return {row[0] for row in rows if any(f"agent-swarm-{row[0]}" in line for line in lines)}


def assert_nothing_orphaned(swarm: Swarm) -> None:
    environments = swarm.environments()
    running = {found.id for found in environments if found.status is Status.RUNNING}
    assert qemu_processes(swarm) == running
    directories = {
        path.name for parent in (swarm.paths.projects, swarm.paths.tasks) for path in parent.iterdir()
    }
    assert directories == {found.id for found in environments}
    assert {path.name.partition(".")[0] for path in swarm.paths.run.iterdir()} <= running
    assert swarm._context.registry.open_operations() == []
    assert swarm.gc(dry_run=True) == []


def test_four_at_once_are_four_different_machines(machines: Swarm, four: dict[str, Environment]) -> None:
    seen = [
        sh(machines, name, "hostname; cat /etc/machine-id; cat /proc/sys/kernel/random/boot_id")
        for name in NAMES
    ]
    assert [lines.split()[0] for lines in seen] == list(NAMES)
    assert len({lines.split()[1] for lines in seen}) == 4
    assert len({lines.split()[2] for lines in seen}) == 4
    endpoints = [task.endpoint for task in four.values()]
    assert all(isinstance(endpoint, SshEndpoint) for endpoint in endpoints)
    assert len({(endpoint.port, endpoint.host_key) for endpoint in endpoints}) == 4
    assert len({endpoint.host_key for endpoint in endpoints}) == 4


def test_all_have_what_set_up_made(machines: Swarm, four: dict[str, Environment]) -> None:
    for name in four:
        assert sh(machines, name, "cat /etc/made-by-setup") == "from-the-project\n"


def test_writes_of_a_task_show_in_no_other_machine_and_not_in_the_image(
    machines: Swarm, four: dict[str, Environment], project: Environment, base_image: Image
) -> None:
    sh(machines, "one", "echo mine >~/file; sudo rm /etc/made-by-setup; sync")
    assert sh(machines, "two", "ls ~; cat /etc/made-by-setup") == "from-the-project\n"
    assert sh(
        machines, project.name, "ls ~/file 2>&1 || true; cat /etc/made-by-setup", Kind.PROJECT
    ).endswith("from-the-project\n")
    machines._context.images.verify(base_image)  # raises where the disk changed


def test_a_machine_outlives_the_command_that_made_it_and_stops_in_order(
    machines: Swarm, four: dict[str, Environment]
) -> None:
    sh(machines, "one", "echo kept >~/kept; sudo sh -c 'echo marker >/var/lib/marker'")  # not synced
    machines.stop("one")
    assert states(machines)["one"] == (Status.STOPPED, "")
    console = machines.show("one").console
    assert console is not None
    assert "reboot: Power down" in console.read_text(errors="replace") or "System is powered down" in (
        console.read_text(errors="replace")
    )
    machines.start("one")
    assert sh(machines, "one", "cat ~/kept /var/lib/marker") == "kept\nmarker\n"


def test_a_killed_qemu_is_seen_and_disturbs_nobody(machines: Swarm, four: dict[str, Environment]) -> None:
    sh(machines, "two", "echo kept >~/kept; sync")
    pid = machines.show("two").machine.pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    deadline = time.monotonic() + 30
    while states(machines)["two"][0] is Status.RUNNING and time.monotonic() < deadline:
        pass
    status, reason = states(machines)["two"]
    assert (status, "ended by itself" in reason) == (Status.STOPPED, True)
    assert sh(machines, "three", "echo fine") == "fine\n"
    with pytest.raises(ConflictError, match="stopped"):
        machines.run_captured("two", ["true"])
    assert machines.start("two").status is Status.RUNNING
    assert sh(machines, "two", "cat ~/kept") == "kept\n"


def test_a_corrupt_overlay_is_a_broken_task_that_can_be_deleted(
    machines: Swarm, four: dict[str, Environment]
) -> None:
    machines.stop("three")
    [overlay] = (machines.paths.tasks / four["three"].id).rglob("*.qcow2")
    with overlay.open("r+b") as stream:
        stream.write(b"garbage!")
    status, reason = states(machines)["three"]
    assert (status, "damaged" in reason) == (Status.BROKEN, True)
    with pytest.raises(ConflictError, match="broken"):
        machines.start("three")
    assert sh(machines, "four", "echo fine") == "fine\n"
    machines.delete("three")
    assert "three" not in states(machines)


def test_a_missing_base_image_is_said_and_repaired_by_putting_it_back(
    machines: Swarm, four: dict[str, Environment]
) -> None:
    machines.stop("one")
    link = machines.paths.images
    away = link.with_name("images-away")
    link.rename(away)
    try:
        link.mkdir()
        status, reason = states(machines)["one"]
        assert (status, "missing" in reason) == (Status.BROKEN, True)
        assert states(machines)["four"][0] is Status.RUNNING
        assert sh(machines, "four", "echo fine") == "fine\n"
        with pytest.raises(SwarmError, match="missing"):
            machines.create("shared", "new")
        assert "new" not in states(machines)
    finally:
        link.rmdir()
        away.rename(link)
    assert states(machines)["one"] == (Status.STOPPED, "")


@pytest.mark.parametrize("number", [1, 2, 3, 4, 5])
def test_a_killed_create_leaves_nothing(machines: Swarm, four: dict[str, Environment], number: int) -> None:
    """Commits 1 to 5: intent, disk, handle, start, QEMU runs."""
    killed(machines, "after", number, "create", "shared", "victim")
    assert "victim" not in states(machines)
    assert_nothing_orphaned(machines)


def test_a_create_without_room_on_the_disk_leaves_nothing(
    machines: Swarm, four: dict[str, Environment]
) -> None:
    code = (
        "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (150_000, 150_000))\n"
        "from agent_swarm import Swarm, SwarmError\n"
        "with Swarm() as swarm:\n"
        "    try: swarm.create('shared', 'full')\n"
        "    except SwarmError as error: print(error.message, error.details)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "AGENT_SWARM_HOME": str(machines.paths.home)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.strip(), done.stderr
    assert "full" not in states(machines)
    assert_nothing_orphaned(machines)


@pytest.mark.parametrize("number", [2, 3])
def test_a_killed_stop_ends_with_a_machine_that_is_stopped_or_runs(
    machines: Swarm, four: dict[str, Environment], number: int
) -> None:
    if states(machines)["four"][0] is Status.STOPPED:
        machines.start("four")
    killed(machines, "after", number, "stop", "four")
    assert states(machines)["four"][0] in {Status.RUNNING, Status.STOPPED}
    assert_nothing_orphaned(machines)


def test_a_killed_delete_is_finished(machines: Swarm, four: dict[str, Environment]) -> None:
    killed(machines, "after", 1, "delete", "two")
    assert "two" not in states(machines)
    assert_nothing_orphaned(machines)


def test_a_stopped_project_makes_a_generation_that_new_tasks_get(
    machines: Swarm, four: dict[str, Environment], project: Environment
) -> None:
    before = machines.show(project.name, kind=Kind.PROJECT).baselines[0].generation
    sh(machines, project.name, "echo later | sudo tee /etc/later", Kind.PROJECT)
    made = machines.baseline(project.name)
    assert made.generation == before + 1
    assert machines.find(project.name, kind=Kind.PROJECT).status is Status.RUNNING
    machines.create(project.name, "newer")
    try:
        assert sh(machines, "newer", "cat /etc/later") == "later\n"
        assert machines.show("newer").baseline.generation == made.generation
    finally:
        machines.delete("newer")
