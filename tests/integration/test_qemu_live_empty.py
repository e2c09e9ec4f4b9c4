"""Saving memory and going on from it, on real QEMU processes that have no guest, and so no guest agent."""

from __future__ import annotations

import dataclasses
import os
import resource
import signal

import pytest

from agent_swarm import processes, runner
from agent_swarm.errors import MachineError, SwarmError
from agent_swarm.events import ignore
from agent_swarm.files import allocated_bytes, remove_tree
from agent_swarm.model import MachineState, PointId
from agent_swarm.providers.base import FromImage, FromPoint
from agent_swarm.providers.qemu import definition, layout, memory, process, resume
from agent_swarm.providers.qemu.monitor import Monitor
from agent_swarm.providers.qemu.provider import QemuProvider
from tests.integration.test_qemu_empty import active, files_of, holds, write
from tests.support.qemu import RESOURCES, empty_image, emulated, spec

ONE, TWO = PointId("1" * 12), PointId("2" * 12)
OVERLAY_BYTES = 1 << 20
"""More than an empty layer takes, and less than any memory."""


@pytest.fixture
def context(tmp_path):
    found = emulated(tmp_path / "state")
    yield found
    remove_tree(found.paths.run)


@pytest.fixture
def image(tmp_path):
    return empty_image(tmp_path)


@pytest.fixture
def provider(context):
    made = QemuProvider(context)
    yield made
    for machine in list(made.list_owned()):
        made.delete(machine.handle)


@pytest.fixture
def running(provider, image):
    project = provider.create(spec(FromImage(image)), ignore)
    provider.start(project, ignore)
    return project


@pytest.fixture
def files(context, running):
    return files_of(context, running)


@pytest.fixture
def hurried(monkeypatch):
    """Nobody waits long for an agent that there is none of."""
    monkeypatch.setattr(resume, "AGENT_TIMEOUT_S", 1.0)


@pytest.fixture
def no_room():
    """Two functions: no file of ours, or of a program that we start, can grow past a size; and the end of that."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    previous = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

    def fill(limit_bytes: int) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, hard))

    def free() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    yield fill, free
    free()
    signal.signal(signal.SIGXFSZ, previous)


def flush(files) -> None:
    """What a guest would do: have the disk's writes so far survive a power cut."""
    with Monitor(files.qmp_socket) as monitor:
        line = f'qemu-io {definition.ROOT_DRIVE} "flush"'
        assert not monitor._execute("human-monitor-command", {"command-line": line}), line


def run_state(files) -> str:
    with Monitor(files.qmp_socket) as monitor:
        return monitor.status()


def active_node(files) -> str:
    with Monitor(files.qmp_socket) as monitor:
        return monitor.active_node(definition.ROOT_DRIVE)


def names(files) -> set[str]:
    """Everything of the machine that outlives a command."""
    return {os.fspath(path.relative_to(files.directory)) for path in files.directory.rglob("*")}


def runs_on(provider, files) -> None:
    """The machine runs, and nothing is left of the memory that was to be saved."""
    assert provider.inspect(files.handle).state is MachineState.RUNNING
    assert run_state(files) == "running"
    assert list(next(provider.list_owned()).points) == []
    assert not files.saving.exists()
    assert not files.saved.exists()
    found = definition.load(files)
    assert found.pending_layer is None
    assert found.resume is None
    assert active_node(files) == definition.layer_node(found.layer)
    assert {path for path in files.layers.iterdir() if int(path.stem) > found.layer} == set()


# Capturing with memory


def test_a_machine_runs_on_after_its_memory_was_captured(provider, files, running):
    before = provider.inspect(running).pid
    provider.capture(running, ONE, ignore, memory=True)
    assert provider.inspect(running).pid == before
    assert run_state(files) == "running"
    assert next(provider.list_owned()).points == [ONE]


def test_what_is_written_after_a_capture_with_memory_goes_to_the_new_layer(
    context, provider, files, running, image
):
    write(context, running, 0x41)
    point = provider.capture(running, ONE, ignore, memory=True)
    frozen = files.layer(layout.read(files.point_record(ONE), layout.PointRecord).layer)
    written = frozen.read_bytes()
    write(context, running, 0x42)
    assert active_node(files) == definition.layer_node(definition.load(files).layer)
    task = provider.create(spec(FromPoint(point, image, memory=True)), ignore)
    provider.stop(running, force=True)
    assert frozen.read_bytes() == written
    assert holds(active(context, running), 0x42)
    assert holds(active(context, task), 0x41)


def test_memory_can_be_captured_again_and_again(provider, files, running, image):
    handles = [provider.capture(running, point, ignore, memory=True) for point in (ONE, TWO)]
    assert next(provider.list_owned()).points == [ONE, TWO]
    assert [provider.live_fork.obstacle(handle, RESOURCES) for handle in handles] == ["", ""]
    assert run_state(files) == "running"


def test_saved_memory_has_holes_and_the_machines_size(provider, files, running):
    point = provider.capture(running, ONE, ignore, memory=True)
    saved = files.point(ONE) / memory.MEMORY
    assert saved.stat().st_size == RESOURCES.memory_mib << 20
    assert 0 < allocated_bytes(saved) < 64 << 20
    assert provider.snapshots.size(point).memory_bytes >= allocated_bytes(saved)
    assert (files.point(ONE) / memory.STATE).stat().st_size < 16 << 20


def test_saved_memory_is_private(provider, files, running, hurried, image):
    previous = os.umask(0)
    try:
        point = provider.capture(running, ONE, ignore, memory=True)
        task = provider.create(spec(FromPoint(point, image, memory=True)), ignore)
        provider.suspend.suspend(running, ignore)
    finally:
        os.umask(previous)
    others = layout.parse_handle(files.paths, task)
    for directory in (files.point(ONE), files.saved, others.saved):
        assert directory.stat().st_mode & 0o777 == 0o700
        modes = {path.name: oct(path.stat().st_mode & 0o777) for path in directory.iterdir()}
        assert {memory.MEMORY, memory.STATE, memory.RECORD} <= set(modes)
        assert set(modes.values()) == {"0o600"}
    for machine in (files, others):
        readable = [path for path in machine.directory.rglob("*") if path.stat().st_mode & 0o077]
        assert [path.name for path in readable if path != machine.pid_file] == []


def test_a_machine_that_does_not_run_has_no_memory_to_save(provider, files, running):
    provider.stop(running, force=True)
    before = names(files)
    with pytest.raises(MachineError, match="does not run"):
        provider.capture(running, ONE, ignore, memory=True)
    with pytest.raises(MachineError, match="does not run"):
        provider.suspend.suspend(running, ignore)
    assert names(files) == before


# A full disk


@pytest.mark.parametrize("limit_bytes", [100_000, OVERLAY_BYTES], ids=["layer", "memory"])
def test_a_full_disk_during_a_capture_with_memory_leaves_the_machine_running(
    provider, files, running, no_room, limit_bytes
):
    fill, free = no_room
    pid, before = provider.inspect(running).pid, names(files)
    fill(limit_bytes)
    with pytest.raises(SwarmError):
        provider.capture(running, ONE, ignore, memory=True)
    free()
    runs_on(provider, files)
    assert provider.inspect(running).pid == pid
    assert names(files) == before
    provider.capture(running, ONE, ignore, memory=True)
    assert next(provider.list_owned()).points == [ONE]


def test_a_full_disk_during_a_suspension_leaves_the_machine_running(provider, files, running, no_room):
    fill, free = no_room
    pid, before = provider.inspect(running).pid, names(files)
    fill(OVERLAY_BYTES)
    with pytest.raises(MachineError, match="could not be saved") as caught:
        provider.suspend.suspend(running, ignore)
    free()
    assert "File too large" in caught.value.details
    runs_on(provider, files)
    assert provider.inspect(running).pid == pid
    assert names(files) == before
    provider.suspend.suspend(running, ignore)
    assert provider.inspect(running).state is MachineState.SUSPENDED


# QEMU ends meanwhile


def killing(monkeypatch, files, step: str) -> None:
    """QEMU is killed just before the first `step` of the monitor, which is then tried."""
    original = getattr(Monitor, step)

    def kill(self, *args, **named):
        record = process.find(files)
        if record is not None:
            os.kill(record.pid, signal.SIGKILL)
            assert processes.wait_for_end(record, timeout_s=20)
        return original(self, *args, **named)

    monkeypatch.setattr(Monitor, step, kill)


@pytest.mark.parametrize(
    "step", ["pause", "migrate_to", "resume", "sent", "switch_to_overlay", "continue_migration"]
)
def test_a_qemu_that_is_killed_while_its_memory_is_captured_leaves_a_stopped_machine(
    context, provider, files, running, step
):
    write(context, running, 0x45)
    flush(files)
    with pytest.MonkeyPatch.context() as patch:
        killing(patch, files, step)
        with pytest.raises(MachineError):
            provider.capture(running, ONE, ignore, memory=True)
    assert provider.inspect(running).state is MachineState.STOPPED
    assert list(next(provider.list_owned()).points) == []
    assert not files.saving.exists()
    assert holds(active(context, running), 0x45)
    provider.start(running, ignore)
    provider.capture(running, ONE, ignore, memory=True)
    runs = provider.inspect(running)
    assert runs.state is MachineState.RUNNING
    assert next(provider.list_owned()).points == [ONE]


@pytest.mark.parametrize("step", ["migrate_to", "continue_migration"])
def test_a_qemu_that_is_killed_while_it_is_suspended_leaves_a_stopped_machine(
    context, provider, files, running, step
):
    write(context, running, 0x46)
    flush(files)
    with pytest.MonkeyPatch.context() as patch:
        killing(patch, files, step)
        with pytest.raises(MachineError):
            provider.suspend.suspend(running, ignore)
    assert provider.inspect(running).state is MachineState.STOPPED
    assert not files.saving.exists()
    assert not files.saved.exists()
    assert holds(active(context, running), 0x46)
    provider.start(running, ignore)
    assert provider.inspect(running).state is MachineState.RUNNING


# Going on without a guest agent


def change(files, pattern: int) -> None:
    """What a guest may have done to its disk in a start that came to nothing."""
    layer = files.layer(definition.load(files).layer)
    runner.run(["qemu-io", "-f", "qcow2", "-c", f"write -P {pattern} 0 64k", layer], timeout_s=60)


def fails_closed(provider, files) -> None:
    """A start finds no agent; then nothing runs, and the machine is suspended as before."""
    before, disk = definition.load(files), files.layer(definition.load(files).layer)
    with pytest.raises(
        MachineError, match="guest agent does not answer after the memory was loaded"
    ) as caught:
        provider.start(files.handle, ignore)
    assert caught.value.hint
    assert process.find(files) is None
    held = process.claim(files)
    assert held is not None, "a QEMU still runs"
    os.close(held)
    assert provider.inspect(files.handle).state is MachineState.SUSPENDED
    assert definition.load(files) == before
    assert disk.exists()
    assert memory.load_record(files.saved) is not None


def test_a_fork_without_an_agent_does_not_run_and_is_suspended_as_before(
    context, provider, running, image, hurried
):
    write(context, running, 0x47)
    point = provider.capture(running, ONE, ignore, memory=True)
    task = provider.create(spec(FromPoint(point, image, memory=True)), ignore)
    forked = files_of(context, task)
    assert provider.inspect(task).state is MachineState.SUSPENDED
    fails_closed(provider, forked)
    fails_closed(provider, forked)  # what the first start left is no trouble for the second
    provider.suspend.forget(task)
    assert provider.inspect(task).state is MachineState.STOPPED
    assert not forked.saved.exists()
    provider.start(task, ignore)
    assert provider.inspect(task).state is MachineState.RUNNING
    assert run_state(forked) == "running"
    provider.stop(task, force=True)
    assert holds(active(context, task), 0x47)
    assert provider.live_fork.obstacle(point, RESOURCES) == ""


def test_a_suspended_machine_without_an_agent_does_not_run_and_is_suspended_as_before(
    context, provider, files, running, hurried
):
    write(context, running, 0x48)
    provider.suspend.suspend(running, ignore)
    assert provider.inspect(running).state is MachineState.SUSPENDED
    assert process.find(files) is None
    fails_closed(provider, files)
    change(files, 0x99)
    provider.suspend.forget(running)
    assert provider.inspect(running).state is MachineState.STOPPED
    provider.start(running, ignore)
    provider.stop(running, force=True)
    assert holds(active(context, running), 0x48)


def test_a_machine_that_is_put_back_without_an_agent_is_suspended_as_before(
    context, provider, files, running, hurried
):
    write(context, running, 0x49)
    point = provider.capture(running, ONE, ignore, memory=True)
    write(context, running, 0x4A)
    provider.snapshots.restore(running, point, ignore)
    fails_closed(provider, files)
    provider.suspend.forget(running)
    assert holds(active(context, running), 0x49)
    assert next(provider.list_owned()).points == [ONE]


def test_memory_that_is_cut_off_is_not_gone_on_from(provider, files, running, hurried):
    provider.suspend.suspend(running, ignore)
    state = files.saved / memory.STATE
    content = state.read_bytes()
    state.write_bytes(content[: len(content) // 2])
    with pytest.raises(MachineError, match="could not load") as caught:
        provider.start(running, ignore)
    assert "--cold" in caught.value.hint
    assert process.find(files) is None
    assert provider.inspect(running).state is MachineState.SUSPENDED


def test_a_restore_that_fails_goes_on_from_no_other_points_memory(provider, files, running, no_room):
    first = provider.capture(running, ONE, ignore, memory=True)
    second = provider.capture(running, TWO, ignore, memory=True)
    provider.snapshots.restore(running, first, ignore)
    assert provider.inspect(running).state is MachineState.SUSPENDED
    fill, free = no_room
    fill(100_000)  # the new layer finds no room
    with pytest.raises(SwarmError):
        provider.snapshots.restore(running, second, ignore)
    free()
    assert provider.inspect(running).state is MachineState.STOPPED
    provider.snapshots.restore(running, second, ignore)
    assert provider.inspect(running).state is MachineState.SUSPENDED


def test_another_disk_size_is_an_obstacle(provider, running):
    point = provider.capture(running, ONE, ignore, memory=True)
    assert provider.live_fork.obstacle(point, RESOURCES) == ""
    larger = dataclasses.replace(RESOURCES, disk_gib=RESOURCES.disk_gib + 1)
    assert "disk" in provider.live_fork.obstacle(point, larger)
