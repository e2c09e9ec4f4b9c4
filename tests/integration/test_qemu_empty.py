"""The qemu provider on real QEMU processes that have no guest: fast, and every file and process is real."""

from __future__ import annotations

import concurrent.futures
import contextlib
import os
import resource
import signal
import socket
import time
from pathlib import Path

import msgspec
import pytest

from agent_swarm import processes, runner
from agent_swarm.errors import BootError, MachineError, ProviderUnavailableError, SwarmError
from agent_swarm.events import Notice, ignore
from agent_swarm.files import remove_tree
from agent_swarm.images import qcow2
from agent_swarm.model import Firmware, MachineState, PointId
from agent_swarm.providers.base import FromImage, FromPoint, ProviderContext
from agent_swarm.providers.qemu import capture, definition, host, launch, layout, network, process
from agent_swarm.providers.qemu.monitor import Monitor, NotListeningError
from agent_swarm.providers.qemu.provider import QemuProvider
from agent_swarm.testing import child
from tests.support.qemu import empty_image, emulated, spec

ONE, TWO = PointId("1" * 12), PointId("2" * 12)


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
def project(provider, image):
    return provider.create(spec(FromImage(image)), ignore)


@pytest.fixture
def running(provider, project):
    provider.start(project, ignore)
    return project


def files_of(context, handle):
    return layout.parse_handle(context.paths, handle)


def write(context, handle: str, pattern: int, *, offset: int = 0) -> None:
    """What a guest would do: write 64 KiB of one byte to its disk, through the running QEMU."""
    with Monitor(files_of(context, handle).qmp_socket) as monitor:
        line = f'qemu-io {definition.ROOT_DRIVE} "write -P {pattern} {offset} 64k"'
        assert not monitor._execute("human-monitor-command", {"command-line": line}), line


def holds(disk: Path, pattern: int, *, offset: int = 0) -> bool:
    """Whether the 64 KiB of a disk that nobody writes to are all this byte."""
    command = f"read -P {pattern} {offset} 64k"
    done = runner.run(["qemu-io", "-r", "-U", "-f", "qcow2", "-c", command, disk], timeout_s=60, check=False)
    return done.returncode == 0 and b"verification failed" not in done.stdout


def active(context, handle: str) -> Path:
    """The disk that the stopped machine would start from."""
    files = files_of(context, handle)
    found = definition.load(files)
    assert found is not None
    return files.layer(capture.settle(files, found).layer)


# Processes, ports, files


def test_ssh_is_forwarded_on_the_loopback_alone(context, running):
    port = layout.read(files_of(context, running).runtime, layout.Runtime).ssh_port
    listening = [line.split()[1] for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    assert f"0100007F:{port:04X}" in listening
    assert f"00000000:{port:04X}" not in listening
    sixes = [line.split()[1] for line in Path("/proc/net/tcp6").read_text().splitlines()[1:]]
    assert not [address for address in sixes if address.endswith(f":{port:04X}")]


def test_stop_frees_the_port_and_removes_the_sockets(context, provider, running):
    files = files_of(context, running)
    port = layout.read(files.runtime, layout.Runtime).ssh_port
    provider.stop(running, force=True)
    assert not files.qmp_socket.exists()
    assert not files.agent_socket.exists()
    deadline = time.monotonic() + 20
    while not network.is_free(port):  # passt ends when it sees that QEMU has
        assert time.monotonic() < deadline


def test_every_file_of_a_machine_is_private(context, running):
    paths = [path for path in files_of(context, running).directory.rglob("*") if path.name != "qemu.pid"]
    assert len(paths) > 5
    assert [path for path in paths if path.stat().st_mode & 0o077] == []


def test_a_killed_qemu_leaves_a_stopped_machine_that_starts_with_stale_sockets_around(
    context, provider, running
):
    record = process.find(files_of(context, running))
    os.kill(record.pid, signal.SIGKILL)
    assert processes.wait_for_end(record, timeout_s=20)
    assert files_of(context, running).qmp_socket.exists()
    assert provider.inspect(running).state is MachineState.STOPPED
    provider.start(running, ignore)
    assert provider.inspect(running).state is MachineState.RUNNING


def test_after_a_reboot_of_the_host_a_machine_is_stopped_and_starts(context, provider, running):
    files = files_of(context, running)
    record = process.find(files)
    assert processes.kill(record)
    # the record of an earlier boot, of a pid that runs something else by now
    stale = processes.ProcessRecord(os.getpid(), record.start_time, "another-boot", record.marker)
    processes.save(files.process_record, stale)
    files.pid_file.write_text(f"{os.getpid()}\n")
    assert provider.inspect(running).state is MachineState.STOPPED
    provider.start(running, ignore)
    assert provider.inspect(running).state is MachineState.RUNNING


def test_a_process_that_took_over_the_pid_is_never_signalled(context, provider, project):
    files = files_of(context, project)
    files.pid_file.write_text(f"{os.getpid()}\n")
    provider.stop(project, force=True)
    provider.delete(project)
    assert provider.inspect(project).state is MachineState.ABSENT


def test_a_qemu_whose_record_was_lost_is_found_by_its_pid_file(context, provider, running):
    pid = provider.inspect(running).pid
    files_of(context, running).process_record.unlink()
    assert provider.inspect(running).pid == pid
    provider.start(running, ignore)
    assert provider.inspect(running).pid == pid


def test_the_console_starts_anew_with_the_machine(context, provider, project):
    files_of(context, project).console.write_text("of the last time")
    provider.start(project, ignore)
    assert "last time" not in provider.console(project).read_text()


def test_a_qemu_that_refuses_to_start_gives_its_own_words_and_leaves_nothing(context, provider, project):
    files = files_of(context, project)
    found = definition.load(files)
    layout.write(files.definition, msgspec.structs.replace(found, machine="pc-q35-99.9"))
    with pytest.raises(MachineError, match="could not start") as caught:
        provider.start(project, ignore)
    assert "unsupported machine type" in caught.value.details
    assert provider.inspect(project).state is MachineState.STOPPED
    held = process.claim(files)
    assert held is not None
    os.close(held)


def test_the_end_of_a_machine_while_it_boots_is_an_error_with_the_console(context, provider, running):
    files = files_of(context, running)
    with files.console.open("a") as stream:
        stream.write("\n\x1b[31mKernel panic\x1b[0m\n")
    assert processes.kill(process.find(files))
    with pytest.raises(BootError, match="ended while") as caught:
        provider.endpoint(running, timeout_s=1000, progress=ignore)
    assert "Kernel panic" in caught.value.details.splitlines()


def test_a_guest_that_never_answers_is_an_error_at_the_deadline(provider, running):
    with pytest.raises(BootError, match="was not up within 0 s"):
        provider.endpoint(running, timeout_s=0.0, progress=ignore)


def test_a_machine_that_ignores_its_power_button_is_cut_off_in_the_end(provider, running):
    provider.stop(running, timeout_s=0.5)
    assert provider.inspect(running).state is MachineState.STOPPED


# Slirp


@pytest.fixture
def slirp(context):
    settings = msgspec.structs.replace(context.config.qemu, network="slirp")
    config = msgspec.structs.replace(context.config, qemu=settings)
    return QemuProvider(ProviderContext(context.paths, config, context.installation))


def test_slirp_works_and_says_what_it_leaves_open(context, slirp, project, provider):
    events = []
    slirp.start(project, events.append)
    assert any("loopback" in event.message for event in events if isinstance(event, Notice))
    assert any("loopback" in warning for warning in slirp.probe().warnings)
    assert layout.read(files_of(context, project).runtime, layout.Runtime).network == "slirp"
    assert not any("loopback" in warning for warning in provider.probe().warnings)


# Damage


def test_a_disk_whose_header_is_overwritten_is_broken(context, provider, project):
    with files_of(context, project).layer(1).open("r+b") as stream:
        stream.write(b"\0" * 512)
    seen = provider.inspect(project)
    assert seen.state is MachineState.BROKEN
    assert "0001.qcow2 is damaged" in seen.reason


def test_a_missing_base_breaks_project_and_task_and_no_other(context, provider, project, image, tmp_path):
    (tmp_path / "other").mkdir()
    sound = provider.create(spec(FromImage(empty_image(tmp_path / "other"))), ignore)
    task = provider.create(spec(FromPoint(provider.capture(project, ONE, ignore), image)), ignore)
    image.disk.rename(image.disk.with_name("moved"))
    assert provider.inspect(project).state is MachineState.BROKEN
    assert provider.inspect(task).reason.endswith("disk.qcow2 is missing")
    assert provider.inspect(sound).state is MachineState.STOPPED
    with pytest.raises(MachineError, match="is broken") as caught:
        provider.start(task, ignore)
    assert caught.value.hint
    with pytest.raises(MachineError, match="is broken"):
        provider.create(spec(FromImage(image)), ignore)


def test_a_definition_that_cannot_be_read_is_broken_and_deletable(context, provider, project):
    files_of(context, project).definition.write_text("{")
    assert provider.inspect(project).state is MachineState.BROKEN
    provider.delete(project)
    assert provider.inspect(project).state is MachineState.ABSENT


@contextlib.contextmanager
def full_disk():
    """No file of ours, or of a program that we start, can grow past 100 KB."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    previous = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, previous)


def test_a_full_disk_during_create_leaves_nothing(context, provider, image):
    made = spec(FromImage(image))
    with pytest.raises(SwarmError), full_disk():
        provider.create(made, ignore)
    assert list(provider.list_owned()) == []


@pytest.mark.parametrize("runs", [False, True], ids=["stopped", "running"])
def test_a_full_disk_during_a_capture_leaves_the_machine_as_it_was(context, provider, project, runs):
    if runs:
        provider.start(project, ignore)
    before = definition.load(files_of(context, project))
    with pytest.raises(SwarmError), full_disk():
        provider.capture(project, ONE, ignore)
    assert next(provider.list_owned()).points == []
    assert definition.load(files_of(context, project)) == before
    assert provider.inspect(project).state is (MachineState.RUNNING if runs else MachineState.STOPPED)
    provider.capture(project, ONE, ignore)
    assert next(provider.list_owned()).points == [ONE]
    provider.stop(project, force=True)


# The state directory moves


def test_the_state_directory_can_be_moved(context, provider, image, tmp_path):
    (tmp_path / "state" / "base-images" / "x").mkdir()
    inside = empty_image(tmp_path / "state" / "base-images" / "x")
    project = provider.create(spec(FromImage(inside)), ignore)
    point = provider.capture(project, ONE, ignore)
    task = provider.create(spec(FromPoint(point, inside)), ignore)
    context.paths.home.rename(tmp_path / "elsewhere")
    moved = QemuProvider(emulated(tmp_path / "elsewhere"))
    assert moved.inspect(task).state is MachineState.STOPPED
    moved.start(task, ignore)
    assert moved.inspect(task).state is MachineState.RUNNING
    moved.delete(task)
    moved.delete(project)


# Capture


def test_a_live_capture_holds_what_was_written_before_and_not_what_came_after(
    context, provider, running, image
):
    write(context, running, 0x41)
    point = provider.capture(running, ONE, ignore)
    write(context, running, 0x42)
    task = provider.create(spec(FromPoint(point, image)), ignore)
    provider.stop(running, force=True)
    assert holds(active(context, running), 0x42)
    assert holds(active(context, task), 0x41)


def test_generations_stay_as_they_were(context, provider, running, image):
    handles = []
    for number, point in enumerate((ONE, TWO), start=1):
        write(context, running, number)
        handles.append(provider.capture(running, point, ignore))
    write(context, running, 9)
    tasks = [provider.create(spec(FromPoint(handle, image)), ignore) for handle in handles]
    provider.stop(running, force=True)
    assert [holds(active(context, task), number) for number, task in enumerate(tasks, start=1)] == [
        True,
        True,
    ]


def test_a_capture_without_a_guest_agent_says_that_it_is_as_after_a_power_cut(provider, running):
    events = []
    provider.capture(running, ONE, events.append)
    assert [event for event in events if isinstance(event, Notice) and "power cut" in event.message]


def test_a_capture_of_a_broken_machine_changes_nothing(context, provider, project, image):
    image.disk.rename(image.disk.with_name("moved"))
    before = files_of(context, project).definition.read_bytes()
    with pytest.raises(MachineError, match="is broken"):
        provider.capture(project, ONE, ignore)
    assert files_of(context, project).definition.read_bytes() == before


def test_a_capture_that_qemu_refuses_leaves_the_machine_as_it_was(context, provider, running):
    files = files_of(context, running)
    before = definition.load(files)
    with Monitor(files.qmp_socket) as monitor:  # QEMU serves one at a time
        assert monitor.status() == "running"
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Monitor.__init__, "__kwdefaults__", {"timeout_s": 0.3})
            with pytest.raises(MachineError):
                provider.capture(running, ONE, ignore)
    assert next(provider.list_owned()).points == []
    write(context, running, 0x43)
    provider.stop(running, force=True)
    assert holds(active(context, running), 0x43)
    assert definition.load(files).layer in (before.layer, before.layer + 1)


def make_provider(context):
    return QemuProvider(context)


def test_a_kill_at_any_instant_of_a_live_capture_loses_nothing(context, provider, running, image):
    """Whatever the killed capture came to, the guest's writes before and after it are on its disk, and the
    next capture freezes exactly what was written until then."""
    call = child.Call(make_provider, context, "capture", (running, PointId("0" * 12), ignore))
    changes = child.run(call)
    assert changes > 10
    for instant in range(1, changes + 1):
        killed, following = PointId(f"{instant:012x}"), PointId(f"a{instant:011x}")
        write(context, running, instant)
        assert child.killed(
            child.Call(make_provider, context, "capture", (running, killed, ignore)), before=instant
        )
        assert provider.inspect(running).state is MachineState.RUNNING
        write(context, running, instant + 1, offset=65536)
        handle = provider.capture(running, following, ignore)
        write(context, running, 0xEE)
        task = provider.create(spec(FromPoint(handle, image)), ignore)
        disk = active(context, task)
        assert holds(disk, instant), instant
        assert holds(disk, instant + 1, offset=65536), instant
        provider.delete(task)
        if instant % 4 == 0:  # the same, when the machine is stopped with a capture half done
            assert child.killed(
                child.Call(make_provider, context, "capture", (running, PointId("f" * 12), ignore)),
                before=instant,
            )
            write(context, running, 0xDD)
            provider.stop(running, force=True)
            assert holds(active(context, running), 0xDD), instant
            provider.discard(running, PointId("f" * 12))
            provider.start(running, ignore)
    provider.stop(running, force=True)
    assert holds(active(context, running), 0xEE) or holds(active(context, running), 0xDD)
    assert qcow2.check(active(context, running)) == ""


def test_a_kill_between_overlay_and_switch_leaves_an_overlay_that_is_harmless(context, provider, running):
    files = files_of(context, running)
    found = definition.load(files)
    layout.write(files.definition, msgspec.structs.replace(found, pending_layer=2))
    qcow2.create_overlay(files.layer(2), backing=files.layer(1), size_bytes=None)
    write(context, running, 0x44)  # goes to layer 1, which QEMU still uses
    provider.stop(running, force=True)
    assert active(context, running) == files.layer(2)
    assert holds(files.layer(2), 0x44)


# Definition and monitor


@pytest.mark.parametrize("architecture", ["x86_64", "aarch64"])
def test_the_whole_definition_is_accepted_by_the_real_qemu(context, provider, tmp_path, architecture):
    try:
        qemu = host.find_qemu(architecture)
        firmware = Firmware.BIOS
        if architecture == "aarch64":
            host.find_uefi(architecture, host.machine_type(qemu, architecture))
            firmware = Firmware.UEFI
    except ProviderUnavailableError as error:
        pytest.skip(f"{error.message}; {error.hint}")
    image = empty_image(tmp_path, architecture=architecture, firmware=firmware)
    handle = provider.create(spec(FromImage(image)), ignore)
    files = files_of(context, handle)
    found = definition.load(files)
    launch.start(
        files,
        found,
        qemu=qemu,
        accelerator="tcg",
        network_kind="auto",
        progress=ignore,
        paused=True,
    )
    with Monitor(files.qmp_socket) as monitor:
        assert monitor.status() == "prelaunch"
        assert monitor.active_node(definition.ROOT_DRIVE) == definition.layer_node(1)
        monitor.quit()


def test_no_monitor_listens_for_a_stopped_machine(context, project):
    with pytest.raises(NotListeningError), Monitor(files_of(context, project).qmp_socket):
        pass


def test_a_full_queue_before_the_monitor_is_waited_for(context, running):
    path = files_of(context, running).qmp_socket

    def status() -> str:
        with Monitor(path) as monitor:
            return monitor.status()

    with concurrent.futures.ThreadPoolExecutor(1) as pool, contextlib.ExitStack() as waiting:
        with Monitor(path):  # QEMU serves one at a time
            for _ in range(50):
                another = waiting.enter_context(socket.socket(socket.AF_UNIX))
                another.setblocking(False)
                try:
                    another.connect(str(path))
                except BlockingIOError:
                    break
            else:
                pytest.fail("the queue never got full")
            with pytest.raises(MachineError, match="busy"), Monitor(path, timeout_s=0.3):
                pass
            late = pool.submit(status)
            waiting.close()
        assert late.result(timeout=60) == "running"


def test_what_qemu_refuses_is_a_machine_error_with_its_words(context, running):
    with Monitor(files_of(context, running).qmp_socket) as monitor:
        with pytest.raises(MachineError) as caught:
            monitor.switch_to_overlay(definition.ROOT_DRIVE, Path("/nowhere/at/all.qcow2"), "x")
        assert "/nowhere/at/all.qcow2" in caught.value.details
        with pytest.raises(MachineError, match="no drive 'other'"):
            monitor.active_node("other")
        assert monitor.status() == "running"


def test_starting_at_the_same_time_starts_one_qemu(context, project):
    providers = [QemuProvider(context) for _ in range(4)]
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda each: each.start(project, ignore), providers))
    pids = {each.inspect(project).pid for each in providers}
    assert len(pids) == 1
    with contextlib.suppress(MachineError):
        providers[0].stop(project, force=True)
