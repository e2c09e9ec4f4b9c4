"""How long the command line takes before it does anything: `--help`, and `list` with 1,000 machines."""

from __future__ import annotations

import dataclasses
import os
import resource
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from agent_swarm.config import Config
from agent_swarm.model import (
    Environment,
    Firmware,
    Image,
    ImageDigest,
    Kind,
    Resources,
    Seed,
    Status,
)
from agent_swarm.paths import Paths
from agent_swarm.providers.base import FromImage, FromPoint, MachineSpec, ProviderContext
from agent_swarm.providers.discovery import load
from agent_swarm.registry import Registry
from agent_swarm.registry.registry import new_environment_id
from bench.results import Measurement

if TYPE_CHECKING:
    from collections.abc import Sequence

    from agent_swarm.model import EnvironmentId

MACHINES = 1000
RESOURCES = Resources(cpus=2, memory_mib=1024, disk_gib=1)
QCOW2_CLUSTER_BYTES = 1 << 16
"""The header and the backing file's name are in the first."""
COMMAND = Path(sys.executable).with_name("agent-swarm")


def timed(argv: Sequence[str], home: Path) -> float:
    """Run agent-swarm with these arguments to its end; return the seconds. Raises CalledProcessError.

    Python may keep its bytecode, as pip does when it installs: else every run compiles all our modules.
    """
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    started = time.perf_counter()
    subprocess.run(
        [COMMAND, *argv],
        env={**inherited, "AGENT_SWARM_HOME": str(home)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        check=True,
    )
    return time.perf_counter() - started


def repeated(argv: Sequence[str], home: Path, runs: int) -> list[float]:
    """`timed`, `runs` times, after two that warm the caches."""
    return [timed(argv, home) for _ in range(runs + 2)][2:]


def processor_s(argv: Sequence[str], home: Path) -> float:
    """Processor time of one run: what it takes on a machine that does nothing else, nearly."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    timed(argv, home)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def measure(home: Path, runs: int) -> list[Measurement]:
    """`home` is an empty directory of this measurement's own; it holds 1,000 stopped machines afterwards."""
    python = []
    for _ in range(runs):
        started = time.perf_counter()
        subprocess.run([sys.executable, "-c", "pass"], check=True)
        python.append(time.perf_counter() - started)
    fill(Paths.at(home), MACHINES)
    return [
        Measurement("an empty Python program", python, note="no program of ours can be faster"),
        _command("agent-swarm --help", ["--help"], home, runs, budget=0.12),
        _command(f"agent-swarm list, {MACHINES:,} machines", ["list"], home, runs, budget=0.2),
    ]


def _command(name: str, argv: Sequence[str], home: Path, runs: int, budget: float) -> Measurement:
    samples = repeated(argv, home, runs)
    used = min(processor_s(argv, home) for _ in range(5))
    return Measurement(name, samples, budget=budget, note=f"{used * 1000:.0f} ms of processor time")


def fill(paths: Paths, count: int) -> None:
    """A project and its tasks, `count` machines in all, stopped, as `list` finds them: records in the
    registry and the qemu provider's files on the disk.

    One task is made by the provider, the others are copies of its files under ids of their own.
    """
    paths.prepare()
    registry = Registry(paths.registry)
    provider = load(
        "qemu", ProviderContext(paths=paths, config=Config(), installation=registry.installation())
    )
    image = _small_image(paths)
    project = _environment(Kind.PROJECT, "bench", image.digest)
    project = dataclasses.replace(
        project, handle=provider.create(_spec(project, FromImage(image)), lambda _: None)
    )
    with registry.transaction():
        registry.insert(project)
        baseline = registry.add_baseline(project.id)
    handle = provider.capture(project.handle, baseline.id, lambda _: None)
    registry.finish_baseline(baseline.id, handle)
    model = dataclasses.replace(
        _environment(Kind.TASK, "task-0001", image.digest), baseline_id=baseline.id, parent_id=project.id
    )
    made = provider.create(_spec(model, FromPoint(handle, image)), lambda _: None)
    tasks = [dataclasses.replace(model, handle=made)]
    for number in range(2, count):
        identifier = new_environment_id()
        _copy(paths, model.id, identifier)
        tasks.append(
            dataclasses.replace(
                model,
                id=identifier,
                name=f"task-{number:04d}",
                handle=made.replace(model.id, identifier),
            )
        )
    with registry.transaction():
        for task in tasks:
            registry.insert(task)
    registry.close()


def _copy(paths: Paths, source: EnvironmentId, target: EnvironmentId) -> None:
    origin = paths.machine(Kind.TASK, source)
    for path in sorted(origin.rglob("*")):
        copy = paths.machine(Kind.TASK, target) / path.relative_to(origin)
        copy.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if path.suffix == ".json":
            copy.write_bytes(path.read_bytes().replace(source.encode(), target.encode()))
        elif path.suffix == ".qcow2":  # a file of its own: shared ones are read once
            copy.write_bytes(path.read_bytes()[:QCOW2_CLUSTER_BYTES])
            os.truncate(copy, path.stat().st_size)
        elif path.is_file():
            copy.hardlink_to(path)


def _small_image(paths: Paths) -> Image:
    digest = ImageDigest("0" * 64)
    disk = paths.image(digest) / "disk.qcow2"
    disk.parent.mkdir(mode=0o700)
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", disk, "1G"], check=True)
    kernel, initrd = disk.with_name("vmlinuz"), disk.with_name("initrd")
    for path in (kernel, initrd):  # `list` looks whether they are there
        path.touch(mode=0o600)
    return Image(
        digest=digest,
        name="bench",
        architecture=os.uname().machine,
        firmware=Firmware.DIRECT,
        disk=disk,
        kernel=kernel,
        initrd=initrd,
        kernel_command_line="",
        virtual_size_bytes=1 << 30,
        size_bytes=disk.stat().st_size,
        has_guest_agent=True,
        created_at=datetime.now(UTC),
    )


def _environment(kind: Kind, name: str, image: ImageDigest) -> Environment:
    now = datetime.now(UTC)
    return Environment(
        id=new_environment_id(),
        kind=kind,
        name=name,
        provider="qemu",
        handle="",
        image=image,
        baseline_id=None,
        parent_id=None,
        resources=RESOURCES,
        status=Status.STOPPED,
        endpoint=None,
        created_at=now,
        updated_at=now,
        started_at=None,
    )


def _spec(environment: Environment, source: FromImage | FromPoint) -> MachineSpec:
    return MachineSpec(
        id=environment.id,
        kind=environment.kind,
        host_name=environment.name,
        source=source,
        resources=environment.resources,
        seed=Seed(instance_id=environment.id, user_data="", meta_data="", network_config=""),
    )
