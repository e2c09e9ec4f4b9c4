"""Saving the memory of a running machine, and whether it can be loaded here.

The machine is migrated, live, to a second QEMU of the same definition on this host, the saver, whose memory we
hold too. While the machine's last changes are sent it stands still, for some hundredths of a second; then it goes
on, the saver writes its devices' state and ends, and we write the memory. What is left:

    memory        the guest's memory, byte by byte, with holes where it is zero
    state         the devices' state, below a MiB (QEMU's capability x-ignore-shared leaves the memory out)
    memory.json   what the memory is from; it can be loaded into exactly that

The emulator (TCG) needs care. It notes a page as changed when a store begins, so a store that is under way while the
notes are collected, and its thread loses the processor, can land after the page was sent, and is lost: one fork in
ten had a corrupt kernel on a busy host. So there the notes are never collected while the guest runs: it stands still
when the migration begins, runs while every page is sent once, and stands still again just before the end of that.

A machine that goes on from it maps `memory` privately: pages that it does not change are shared by all that do,
and none is read before it is used. The file never changes once it is written.

What a kill of the caller leaves: the saver, which `discard` ends, and the machine, standing still, which
`release` lets go on.

Source: https://www.qemu.org/docs/master/devel/migration/main.html, capabilities pause-before-switchover and
x-ignore-shared in https://www.qemu.org/docs/master/interop/qemu-qmp-ref.html
"""

from __future__ import annotations

import logging
import os
import platform
import socket
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from agent_swarm.errors import MachineError
from agent_swarm.events import Notice
from agent_swarm.files import remove_tree, sync_directory
from agent_swarm.providers.qemu import definition as definitions
from agent_swarm.providers.qemu import launch, layout, process
from agent_swarm.providers.qemu.daemon import Daemon
from agent_swarm.providers.qemu.definition import MachineDefinition  # noqa: TC001 - msgspec resolves it
from agent_swarm.providers.qemu.monitor import Monitor

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from agent_swarm.events import Progress
    from agent_swarm.model import Resources
    from agent_swarm.providers.qemu.host import Qemu
    from agent_swarm.providers.qemu.layout import MachineFiles

logger = logging.getLogger(__name__)

MEMORY = "memory"
STATE = "state"
RECORD = "memory.json"

LAST_BYTES = 16 << 20
"""So much of an emulated guest's memory is sent while it stands still: time enough to notice that it is the last."""
PAUSE_MS = 50
"""How long the machine may stand still at most, as far as its memory's changes allow."""
CONVERGE_S = 20.0
"""A guest that changes memory quicker than it is sent for so long is made to stand still while the rest is sent."""
SAVE_TIMEOUT_S = 300.0
START_TIMEOUT_S = 60.0
POLL_S = 0.003
CHUNK_BYTES = 4 << 20
PAGE_BYTES = 4096
ZERO_PAGE = bytes(PAGE_BYTES)


class MemoryRecord(msgspec.Struct, frozen=True):
    """memory.json: what saved memory fits into."""

    machine: MachineDefinition
    qemu: str
    accelerator: str
    cpu: str
    network: str


def save(
    files: MachineFiles,
    machine: MachineDefinition,
    qemu: Qemu,
    progress: Progress,
    *,
    at_switch: Callable[[Monitor], None],
    then: Callable[[Monitor], None],
) -> Path:
    """Save the running machine's memory; return the directory that holds it, durable, in `files.saver`.

    `at_switch` is called in the instant that is saved, the guest standing still; `then` when its memory is safe in
    the saver. Raises MachineError, and then nothing is left, and the machine goes on.
    """
    runtime = layout.read(files.runtime, layout.Runtime)
    if runtime is None:
        message = "the record of how the machine was started is gone"
        raise MachineError(message, details=str(files.runtime), hint="Stop the machine and start it again.")
    try:
        return _save(files, machine, qemu, runtime, progress, at_switch, then, running=True)
    except _RunningCollectionError:
        logger.debug("%s stands still while all of its memory is sent", files.handle)
        return _save(files, machine, qemu, runtime, progress, at_switch, then, running=False)


def _save(
    files: MachineFiles,
    machine: MachineDefinition,
    qemu: Qemu,
    runtime: layout.Runtime,
    progress: Progress,
    at_switch: Callable[[Monitor], None],
    then: Callable[[Monitor], None],
    *,
    running: bool,
) -> Path:
    saver = files.saver
    discard(files)
    saver.directory.mkdir(mode=0o700)
    with ExitStack() as undo:
        undo.callback(discard, files)
        scratch = _scratch(undo)
        ours, theirs = socket.socketpair()
        with ours:
            with theirs:
                daemon = _start_saver(files, machine, qemu, runtime, incoming=theirs, scratch=scratch)
            undo.callback(_end, daemon)
            with launch.connected(saver.qmp_socket, daemon) as target:
                with Monitor(files.qmp_socket) as source, ExitStack() as paused:
                    paused.callback(_let_go, source)
                    if not running:
                        source.pause()
                    if running and runtime.accelerator == "tcg":
                        _send_emulated(source, ours, daemon)
                    else:
                        source.migrate_to(ours, downtime_ms=PAUSE_MS)
                    _wait_for_switch(source, daemon, progress)
                    at_switch(source)
                    source.continue_migration()
                    _wait(source, daemon, "completed")
                    _wait_until_loaded(target, daemon)
                    then(source)
                    paused.pop_all()
                target.write_state(saver.directory / STATE)
                _wait(target, daemon, "completed")
                target.quit()
        if not daemon.ended(within_s=START_TIMEOUT_S):
            raise _failed(daemon, "it does not end")
        record = MemoryRecord(
            machine=machine,
            qemu=qemu.version,
            accelerator=runtime.accelerator,
            cpu=cpu_identity(runtime.accelerator),
            network=runtime.network,
        )
        _write_out(scratch, saver.directory / MEMORY, machine.memory_mib << 20)
        for name in (MEMORY, STATE):
            _sync(saver.directory / name)
        layout.write(saver.directory / RECORD, record)
        process.forget(saver)
        for leftover in (saver.lock, saver.qemu_log):
            leftover.unlink(missing_ok=True)
        undo.pop_all()
        if scratch is not None:
            os.close(scratch)
    return saver.directory


def discard(files: MachineFiles) -> None:
    """End the saver of a machine, if there is one, and remove what it left."""
    saver = files.saver
    if saver.directory.is_dir():
        process.end(saver)
        remove_tree(saver.directory)
    process.forget(saver)


def release(files: MachineFiles) -> None:
    """Let a machine go on that stands still because the one who saved its memory was killed."""
    with Monitor(files.qmp_socket) as monitor:
        _let_go(monitor)


def load_record(directory: Path) -> MemoryRecord | None:
    """What the memory in a directory is from; None where there is none. Raises MachineError."""
    return layout.read(directory / RECORD, MemoryRecord)


def link(source: Path, target: Path) -> None:
    """Make `target` a directory that holds the same saved memory as `source`, at no cost; replaces it."""
    fresh = target.with_name(f".{target.name}")
    remove_tree(fresh)
    fresh.mkdir(mode=0o700)
    for name in (MEMORY, STATE, RECORD):
        (fresh / name).hardlink_to(source / name)
    remove_tree(target)
    fresh.rename(target)
    sync_directory(target.parent)


def obstacle(
    record: MemoryRecord, *, qemu: str, accelerator: str, network: str, resources: Resources | None
) -> str:
    """Why the memory cannot be loaded into a machine of `resources` (None: of its own) here, "" where it can."""
    saved = record.machine
    for what, then, now in (
        ("QEMU", record.qemu, qemu),
        ("the accelerator", record.accelerator, accelerator),
        ("the processor", record.cpu, cpu_identity(accelerator)),
        ("the network", record.network, network),
    ):
        if then != now:
            return f"its memory was saved with {what} {then}, and here it is {now}"
    if resources is not None and (resources.cpus, resources.memory_mib) != (saved.cpus, saved.memory_mib):
        return f"its memory is that of a machine with {saved.cpus} CPUs and {saved.memory_mib} MiB"
    return ""


def cpu_identity(accelerator: str) -> str:
    """What a guest sees as its processor: the emulator's, or the host's own."""
    model = definitions.cpu_model(accelerator)
    if model != "host":
        return model
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as stream:  # noqa: PTH123 - reads two lines
            lines = dict(
                line.split(":", 1) for line in stream.read().split("\n\n")[0].splitlines() if ":" in line
            )
    except OSError:
        return platform.processor() or platform.machine()
    found = {name.strip(): value.strip() for name, value in lines.items()}
    return " ".join(filter(None, (found.get("model name"), found.get("stepping"), found.get("microcode"))))


def _start_saver(
    files: MachineFiles,
    machine: MachineDefinition,
    qemu: Qemu,
    runtime: layout.Runtime,
    *,
    incoming: socket.socket,
    scratch: int | None,
) -> Daemon:
    saver = files.saver
    held = process.claim(saver)
    assert held is not None, "a saver runs that was ended"
    try:
        words = definitions.argv(
            msgspec.structs.replace(machine, id=saver.id),
            definitions.Launch(
                binary=qemu.binary,
                accelerator=runtime.accelerator,
                netdev="user" if runtime.network == "slirp" else "hubport,hubid=0",
                disk=None,
                seed=None,
                console=None,
                agent_socket=None,
                qmp_socket=saver.qmp_socket,
                pid_file=saver.pid_file,
                sandbox=qemu.sandbox,
                paused=True,
                memory=saver.directory / MEMORY if scratch is None else Path(f"/proc/self/fd/{scratch}"),
                write_memory=True,
                incoming=f"fd:{incoming.fileno()}",
                kernel=launch.boot_file(files, machine.kernel),
                initrd=launch.boot_file(files, machine.initrd),
            ),
        )
        inherited = [held, incoming.fileno(), *([] if scratch is None else [scratch])]
        return Daemon(words, log=saver.qemu_log, pass_fds=inherited)
    finally:
        os.close(held)


def _scratch(stack: ExitStack) -> int | None:
    """Where the saver's memory is until it is written out: nowhere on a disk, where the system can. In a mapped
    file every page that is touched costs the file system's journal: 3 s for 280 MiB on ext4 instead of 1."""
    if not hasattr(os, "memfd_create"):
        return None
    descriptor = os.memfd_create("agent-swarm-saver", os.MFD_CLOEXEC)
    stack.callback(os.close, descriptor)
    return descriptor


def _write_out(scratch: int | None, path: Path, size: int) -> None:
    """Write the saver's memory to a new file with holes where it is zero."""
    if scratch is None:
        return
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        os.ftruncate(descriptor, size)
        for base in range(0, size, CHUNK_BYTES):
            chunk = os.pread(scratch, CHUNK_BYTES, base)
            used = [at for at in range(0, len(chunk), PAGE_BYTES) if not chunk.startswith(ZERO_PAGE, at)]
            for first, last in _runs(used):
                _write_all(descriptor, memoryview(chunk)[first : last + PAGE_BYTES], base + first)
    finally:
        os.close(descriptor)


def _runs(pages: list[int]) -> Iterator[tuple[int, int]]:
    """The first and last of each row of adjacent pages."""
    first = 0
    for number, page in enumerate(pages):
        if number + 1 == len(pages) or pages[number + 1] != page + PAGE_BYTES:
            yield pages[first], page
            first = number + 1


def _write_all(descriptor: int, data: memoryview, offset: int) -> None:
    while data:
        written = os.pwrite(descriptor, data, offset)
        data, offset = data[written:], offset + written


def _send_emulated(source: Monitor, connection: socket.socket, daemon: Daemon) -> None:
    """Send all memory once while the guest runs; on return it stands still, and what changed is still to be sent."""
    source.pause()
    source.migrate_to(connection, downtime_ms=1)
    source.resume()
    deadline = time.monotonic() + SAVE_TIMEOUT_S
    while (sent := source.sent()).remaining_bytes > LAST_BYTES and sent.collections <= 1:
        if daemon.ended() or time.monotonic() >= deadline:
            raise _failed(daemon, "its memory is not taken over")
        time.sleep(POLL_S)
    source.pause()
    if source.sent().collections > 1:  # too late
        raise _RunningCollectionError


def _wait_for_switch(source: Monitor, daemon: Daemon, progress: Progress) -> None:
    deadline = time.monotonic() + CONVERGE_S
    try:
        _wait(source, daemon, "pre-switchover", until=deadline)
    except _LateError:
        progress(
            Notice("the guest changes its memory quicker than it can be saved: it stands still meanwhile")
        )
        source.pause()
        _wait(source, daemon, "pre-switchover")


def _wait(monitor: Monitor, daemon: Daemon, wanted: str, *, until: float | None = None) -> None:
    deadline = time.monotonic() + SAVE_TIMEOUT_S
    while True:
        status, why = monitor.migration()
        if status == wanted:
            return
        if status in ("failed", "cancelled"):
            raise _failed(daemon, why or status)
        if until is not None and time.monotonic() >= until:
            raise _LateError
        if daemon.ended() or time.monotonic() >= deadline:
            raise _failed(daemon, f"its saving came to {status!r} only")
        time.sleep(POLL_S)


def _wait_until_loaded(target: Monitor, daemon: Daemon) -> None:
    deadline = time.monotonic() + SAVE_TIMEOUT_S
    while target.status() == "inmigrate":
        if daemon.ended() or time.monotonic() >= deadline:
            raise _failed(daemon, "the saver did not take over the memory")
        time.sleep(POLL_S)


def _let_go(source: Monitor) -> None:
    """Have the guest run, wherever a migration has got to."""
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        if source.migration()[0] in ("setup", "active", "pre-switchover", "device", "cancelling"):
            source.cancel_migration()
        elif source.status() in ("paused", "postmigrate", "finish-migrate"):
            source.resume()
        else:
            return
        time.sleep(POLL_S)


def _end(daemon: Daemon) -> None:
    daemon.terminate(force=True)
    daemon.ended(within_s=START_TIMEOUT_S)


def _sync(path: Path) -> None:
    path.chmod(0o600)
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class _RunningCollectionError(Exception):
    """Changed pages were collected while an emulated guest ran: what was sent cannot be trusted."""


class _LateError(Exception):
    """Something did not come about in its time, which is no failure yet."""


def _failed(daemon: Daemon, why: str) -> MachineError:
    message = f"the machine's memory could not be saved: {why}"
    return MachineError(message, details=daemon.complaint(), hint="Free space on the disk, or try again.")
