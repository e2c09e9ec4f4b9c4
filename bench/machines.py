"""Real machines: the image, a project, cold creates split by step, and commands in them."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import msgspec

from agent_swarm import ResourceRequest, Swarm
from agent_swarm.events import StepDone
from agent_swarm.guest import connection
from agent_swarm.guest.target import target_of
from agent_swarm.model import Kind, Resources
from agent_swarm.paths import Paths
from bench import live, plain_boot
from bench.results import Measurement
from bench.startup import repeated, timed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from agent_swarm.events import Event

PROJECT = "bench"
REQUEST = ResourceRequest(cpus=2, memory_mib=1024, disk_gib=10)
RESOURCES = Resources(cpus=2, memory_mib=1024, disk_gib=10)
ADDED_TO_A_BOOT_S = 2.0
MIB = 1 << 20


class Steps:
    """A Progress that keeps how long each step took."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def __call__(self, event: Event, /) -> None:
        if isinstance(event, StepDone):
            self.seconds[event.step] = self.seconds.get(event.step, 0.0) + event.duration_s


def measure(work: Path, source: str, runs: int, tell: Callable[[str], None]) -> Iterator[list[Measurement]]:
    """Yields each group of measurements as soon as it is there.

    `work` is an empty directory; all machines that are made in it are deleted by the product's own
    commands, also after a failure.
    """
    home = work / "home"
    paths = Paths.at(home)
    try:
        tell(f"base image {source}")
        yield _image(home, paths, source)
        tell("project: first boot, setup.sh, baseline")
        yield _create(paths, "project create", lambda swarm: swarm.create_project(PROJECT, request=REQUEST))
        tell("the same image, started by hand with QEMU")
        reference = _plain_boot(paths, work)
        yield [reference]
        tell("task: cold create by the Python API")
        yield _create(
            paths,
            "create, cold",
            lambda swarm: swarm.create(PROJECT, "bench-1", cold=True),
            budget=reference.median + ADDED_TO_A_BOOT_S,
        )
        tell("task: cold create by the command line")
        yield [
            Measurement(
                "agent-swarm create, cold",
                [timed(["create", "--cold", PROJECT, "bench-2"], home)],
                budget=reference.median + ADDED_TO_A_BOOT_S,
                note="whole process",
            )
        ]
        tell("commands")
        yield _runs(home, paths, "bench-2", runs)
        with Swarm(paths=paths) as swarm:
            used = swarm.show("bench-1").machine
        yield [
            Measurement("memory of an idle task (PSS)", [(used.memory_bytes or 0) / MIB], unit="MiB"),
            Measurement("disk of a fresh task", [(used.disk_bytes or 0) / MIB], unit="MiB"),
        ]
        with Swarm(paths=paths) as swarm:
            swarm.bulk_delete(["bench-1", "bench-2"])
        tell("live: warm creates, checkpoints, forks, 16 tasks side by side")
        yield from live.measure(home, paths, PROJECT, reference.median, max(3, runs // 3))
    finally:
        tell("cleaning up")
        _delete_all(paths)


def _image(home: Path, paths: Paths, source: str) -> list[Measurement]:
    seconds = timed(["init-base", "--from", source], home)
    with Swarm(paths=paths) as swarm:
        image = swarm.images()[0]
    return [
        Measurement("init-base", [seconds], note=image.name),
        Measurement("image on the disk", [image.size_bytes / MIB], unit="MiB"),
    ]


def _create(
    paths: Paths, name: str, act: Callable[[Swarm], object], budget: float | None = None
) -> list[Measurement]:
    steps = Steps()
    started = time.perf_counter()
    with Swarm(paths=paths, progress=steps) as swarm:
        act(swarm)
    whole = time.perf_counter() - started
    return [
        Measurement(name, [whole], budget=budget, note="a plain boot + 2 s" if budget else ""),
        *[Measurement(step, [seconds], part_of=name) for step, seconds in steps.seconds.items()],
    ]


def _plain_boot(paths: Paths, work: Path) -> Measurement:
    with Swarm(paths=paths) as swarm:
        project = swarm.find(PROJECT, kind=Kind.PROJECT)
        image = swarm.images()[0]
    runtime = msgspec.json.decode((paths.machine(Kind.PROJECT, project.id) / "runtime.json").read_bytes())
    accelerator: str = runtime["accelerator"]
    seconds = plain_boot.measure(image, RESOURCES, accelerator, paths, work / "plain")
    return Measurement("a plain boot, QEMU by hand", [seconds], note=accelerator)


def _runs(home: Path, paths: Paths, task: str, runs: int) -> list[Measurement]:
    argv = ["run", task, "--", "true"]
    first = timed(argv, home)
    again = repeated(argv, home, runs)
    anew = []
    with Swarm(paths=paths) as swarm:
        target = target_of(swarm.find(task))
    for _ in range(max(3, runs // 4)):
        connection.close(paths, target)
        anew.append(timed(argv, home))
    return [
        Measurement("run -- true, the first after create", [first]),
        Measurement("run -- true, again", again),
        Measurement("run -- true, connection closed before", anew, note="a new SSH handshake"),
    ]


def _delete_all(paths: Paths) -> None:
    with Swarm(paths=paths) as swarm:
        for result in swarm.bulk_delete(project=PROJECT, force=True) if swarm.environments() else ():
            if result.error is not None:
                raise result.error
        for project in swarm.environments(kind=Kind.PROJECT):
            swarm.delete(project.name, kind=Kind.PROJECT, force=True)
