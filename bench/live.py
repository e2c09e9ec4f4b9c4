"""Live features: creates from a warm baseline, checkpoints, restores, forks, suspension, and what an idle fork takes."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

from agent_swarm import Swarm
from agent_swarm.guest import connection
from agent_swarm.guest.target import target_of
from bench.results import Measurement
from bench.startup import timed

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from agent_swarm.paths import Paths

MIB = 1 << 20
BULK = 8
SIBLINGS = 16
IDLE_S = 20.0
SETTLE_S = 20.0


def measure(home: Path, paths: Paths, project: str, boot_s: float, runs: int) -> Iterator[list[Measurement]]:
    """From a warm baseline of `project`; `boot_s` is what a plain boot of the same image took in the same run."""
    timed(["project", "baseline", project], home)
    yield _creates(home, project, boot_s, runs)
    yield [_bulk(home, project)]
    yield _points(home, paths, "warm-0", runs)
    yield _density(home, paths, project)


def _creates(home: Path, project: str, boot_s: float, runs: int) -> list[Measurement]:
    made, used, first = [], [], []
    for number in range(runs):
        name = f"warm-{number}"
        made.append(timed(["create", project, name], home))
        first.append(timed(["run", name, "--", "true"], home))
        used.append(made[-1] + first[-1])
        if number:
            timed(["delete", name, "--yes"], home)
    usable = Measurement("create from a warm baseline", made, budget=1.0, note="whole process; hygiene done")
    return [
        usable,
        Measurement("the first run -- true after it", first, note="waits for the connection"),
        Measurement("create, then run -- true", used, budget=1.8, note="both processes"),
        Measurement(
            "a plain boot is longer by", [boot_s / usable.median], unit="times", note="to usable; aim: 40"
        ),
    ]


def _bulk(home: Path, project: str) -> Measurement:
    names = [f"bulk-{number}" for number in range(BULK)]
    seconds = timed(["bulk", "create", project, *names, "--parallel", str(BULK), "--force"], home)
    timed(["bulk", "delete", *names, "--yes"], home)
    return Measurement(f"bulk create, {BULK} tasks", [seconds], budget=4.0)


def _points(home: Path, paths: Paths, task: str, runs: int) -> list[Measurement]:
    saved, restored, suspended, resumed, forked = [], [], [], [], []
    with Swarm(paths=paths) as swarm, Pauses() as pauses:
        for number in range(runs):
            swarm.checkpoint(task, f"pause-{number}")
    for number in range(runs):
        saved.append(timed(["checkpoint", task, f"point-{number}"], home))
        restored.append(timed(["restore", task, f"point-{number}"], home))
        suspended.append(timed(["stop", "--suspend", task], home))
        resumed.append(timed(["start", task], home))
        forked.append(timed(["fork", f"{task}@point-{number}", f"fork-{number}"], home))
        timed(["delete", f"fork-{number}", "--yes"], home)
    return [
        Measurement("checkpoint, with memory", saved, budget=1.2, note="whole process"),
        Measurement(
            "the guest's pause in it",
            [found / 1000 for found in pauses.milliseconds],
            budget=0.05,
            note="between stop and cont",
        ),
        Measurement("restore, its own checkpoint included", restored, budget=1.5),
        Measurement("stop --suspend", suspended),
        Measurement("start of a suspended task", resumed),
        Measurement("fork of a checkpoint", forked),
    ]


class Pauses(logging.Handler):
    """How long machines stood still while their memory was saved, in ms, from the debug log."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.milliseconds: list[float] = []
        self.logger = logging.getLogger("agent_swarm.providers.qemu.memory")

    def __enter__(self) -> Pauses:
        self.logger.addHandler(self)
        self.logger.setLevel(logging.DEBUG)
        return self

    def __exit__(self, *_: object) -> None:
        self.logger.removeHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        if "stood still" in record.msg and isinstance(record.args, tuple):
            self.milliseconds.append(float(str(record.args[1])))


def _density(home: Path, paths: Paths, project: str) -> list[Measurement]:
    names = [f"many-{number}" for number in range(SIBLINGS)]
    seconds = timed(["bulk", "create", project, *names, "--parallel", "4", "--force"], home)
    with Swarm(paths=paths) as swarm:
        for name in names:
            connection.close(paths, target_of(swarm.find(name)))
        time.sleep(SETTLE_S)
        before = {name: _processor_s(swarm, name) for name in names}
        time.sleep(IDLE_S)
        shares = [100 * (_processor_s(swarm, name) - before[name]) / IDLE_S for name in names]
        used = [(swarm.show(name).machine.memory_bytes or 0) / MIB for name in names]
    timed(["bulk", "delete", *names, "--yes"], home)
    return [
        Measurement(f"{SIBLINGS} tasks side by side, made in", [seconds]),
        Measurement(
            "memory of each (PSS)",
            used,
            budget=110.0,
            unit="MiB",
            note="what is shared is divided among them",
        ),
        Measurement("processor of an idle one", shares, unit="% of a core"),
    ]


def _processor_s(swarm: Swarm, name: str) -> float:
    import psutil

    times = psutil.Process(swarm.show(name).machine.pid).cpu_times()
    return float(times.user + times.system)
