"""Saving the memory of a running machine, and whether it can be loaded here.

The machine is migrated, live, to ourselves. While its last changes are sent it stands still, for some hundredths of
a second; then it goes on. What is left:

    memory        the guest's memory, byte by byte, with holes where it is zero (stream.py)
    state         the rest of the stream: the devices, a MiB or less
    memory.json   what the memory is from; it can be loaded into exactly that

A machine that goes on from it maps `memory` privately: pages that it does not change are shared by all that do,
and none is read before it is used. The file never changes once it is written.

The emulator (TCG) needs care. It notes a page as changed when a store begins, so a store that is under way while the
notes are collected, and whose thread loses the processor, can land after the page was sent, and is lost: one fork in
ten had a corrupt kernel on a busy host. So there the notes are never collected while the guest runs: it stands still
when the migration begins, runs while every page is sent once, and stands still again just before the end of that.

What a kill of the caller leaves: files, which `discard` removes, and the machine, perhaps standing still, which
`release` lets go on.

Source: https://www.qemu.org/docs/master/devel/migration/main.html, and pause-before-switchover in
https://www.qemu.org/docs/master/interop/qemu-qmp-ref.html
"""

from __future__ import annotations

import logging
import os
import platform
import socket
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from agent_swarm.errors import MachineError, SwarmError
from agent_swarm.events import Notice
from agent_swarm.files import remove_tree, sync_directory
from agent_swarm.providers.qemu import definition as definitions
from agent_swarm.providers.qemu import layout
from agent_swarm.providers.qemu.definition import MachineDefinition  # noqa: TC001 - msgspec resolves it
from agent_swarm.providers.qemu.monitor import Monitor
from agent_swarm.providers.qemu.stream import Splitter

if TYPE_CHECKING:
    from collections.abc import Callable

    from agent_swarm.events import Progress
    from agent_swarm.model import Resources
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
NOT_SENT = "it is not sent"
SAVE_TIMEOUT_S = 300.0
RELEASE_TIMEOUT_S = 60.0
POLL_S = 0.003
READ_AHEAD_BYTES = 2 << 20
CPU_FIELDS = (
    *("model name", "stepping", "microcode"),
    *("CPU implementer", "CPU architecture", "CPU variant", "CPU part", "CPU revision"),
)
"""Of /proc/cpuinfo: first x86, then arm64."""


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
    progress: Progress,
    *,
    at_switch: Callable[[Monitor], None],
    then: Callable[[Monitor], None],
) -> Path:
    """Save the running machine's memory; return the directory that holds it, durable: `files.saving`.

    `at_switch` is called in the instant that is saved, the guest standing still; `then` when its memory has been
    sent. Raises MachineError, and then nothing is left, and the machine goes on.
    """
    runtime = layout.read(files.runtime, layout.Runtime)
    if runtime is None:
        message = "the record of how the machine was started is gone"
        raise MachineError(message, details=str(files.runtime), hint="Stop the machine and start it again.")
    with ExitStack() as undo:
        undo.callback(discard, files)
        _read_ahead(files.saved / MEMORY)
        with Monitor(files.qmp_socket) as source, ExitStack() as paused:
            paused.callback(_let_go, source)
            version = source.version()  # of what runs: the host's may have been updated since
            receiver = _send(source, files, machine, runtime, progress)
            source.mark_pause()
            at_switch(source)
            source.continue_migration()
            receiver.wait(source, "completed")
            then(source)
            paused.pop_all()
            logger.debug("%s stood still for %.1f ms at most", files.handle, source.longest_pause_s * 1000)
        receiver.finish()
        record = MemoryRecord(
            machine=machine,
            qemu=version,
            accelerator=runtime.accelerator,
            cpu=cpu_identity(runtime.accelerator),
            network=runtime.network,
        )
        layout.write(files.saving / RECORD, record)
        undo.pop_all()
    return files.saving


def discard(files: MachineFiles) -> None:
    """Remove memory of a machine that was not saved to the end."""
    remove_tree(files.saving)


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
        first = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").split("\n\n")[0]
    except OSError:
        return platform.processor() or platform.machine()
    pairs = (line.split(":", 1) for line in first.splitlines() if ":" in line)
    found = {name.strip(): value.strip() for name, value in pairs}
    return " ".join(found[name] for name in CPU_FIELDS if name in found)


class _Receiver:
    """Our end of a migration: a thread that takes the stream apart, into `directory`."""

    def __init__(self, directory: Path, size_bytes: int) -> None:
        remove_tree(directory)
        directory.mkdir(mode=0o700)
        self._directory = directory
        self._size = size_bytes
        self._error: OSError | SwarmError | None = None
        self._complete = False
        self._ours, self.theirs = socket.socketpair()
        self._thread = threading.Thread(target=self._receive, name="memory", daemon=True)
        self._thread.start()

    def wait(self, monitor: Monitor, wanted: str, *, until: float | None = None) -> None:
        """Until the migration has come to a status. Raises MachineError, _LateError after the time `until`."""
        deadline = time.monotonic() + SAVE_TIMEOUT_S
        while True:
            status, why = monitor.migration()
            if status == wanted:
                return
            self.check(status if status in ("failed", "cancelled") else "", why)
            if until is not None and time.monotonic() >= until:
                raise _LateError
            if time.monotonic() >= deadline:
                late = f"it came to {status!r} only"
                raise _failed(late)
            time.sleep(POLL_S)

    def check(self, status: str = "", why: str = "") -> None:
        """Raise MachineError where receiving, or sending with this status, has failed."""
        if status and self._thread.is_alive():
            self._thread.join(timeout=1.0)  # our own trouble is the cause then
        if isinstance(self._error, SwarmError):
            raise self._error
        if self._error is not None or status:
            raise _failed(str(self._error) if self._error else why or status) from self._error

    def finish(self) -> None:
        """Return when all is received and durable. Raises MachineError."""
        self._thread.join()
        self.check()
        if not self._complete:
            raise _failed(NOT_SENT)
        for name in (MEMORY, STATE):
            descriptor = os.open(self._directory / name, os.O_RDONLY | os.O_CLOEXEC)
            try:
                os.fsync(descriptor)
            except OSError as error:
                raise _failed(str(error)) from error
            finally:
                os.close(descriptor)

    def _receive(self) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        try:
            with (
                self._ours,
                os.fdopen(os.open(self._directory / MEMORY, flags, 0o600), "wb", buffering=0) as memory,
                os.fdopen(os.open(self._directory / STATE, flags, 0o600), "wb") as rest,
            ):
                Splitter(self._ours, memory.fileno(), rest, block="ram0", size_bytes=self._size).run()
            self._complete = True
        except (OSError, SwarmError) as error:
            self._error = error


def _read_ahead(path: Path) -> None:
    """Have the memory that the machine maps in the host's cache, holes too: QEMU looks at every page, and finding each
    by a fault of its own took 8 s for 4 GiB of holes on ext4, this takes 1 to 2."""
    if not hasattr(os, "posix_fadvise"):
        return
    try:
        with path.open("rb") as stream:
            for offset in range(0, os.fstat(stream.fileno()).st_size, READ_AHEAD_BYTES):
                os.posix_fadvise(stream.fileno(), offset, READ_AHEAD_BYTES, os.POSIX_FADV_WILLNEED)
    except OSError:
        return  # it maps none


def _send(
    source: Monitor,
    files: MachineFiles,
    machine: MachineDefinition,
    runtime: layout.Runtime,
    progress: Progress,
) -> _Receiver:
    """Send the machine's memory, all but the last of it: the guest stands still on return."""
    size_bytes = machine.memory_mib << 20
    receiver = _Receiver(files.saving, size_bytes)
    if runtime.accelerator == "tcg":
        if _send_emulated(source, receiver):
            return receiver
        logger.debug("%s stands still while all of its memory is sent", files.handle)
        _let_go(source)
        source.pause()
        receiver = _Receiver(files.saving, size_bytes)
    with receiver.theirs:
        source.migrate_to(receiver.theirs, downtime_ms=PAUSE_MS)
    try:
        receiver.wait(source, "pre-switchover", until=time.monotonic() + CONVERGE_S)
    except _LateError:
        progress(
            Notice("the guest changes its memory quicker than it can be saved: it stands still meanwhile")
        )
        source.pause()
        receiver.wait(source, "pre-switchover")
    return receiver


def _send_emulated(source: Monitor, receiver: _Receiver) -> bool:
    """Send all memory once while the guest runs, then what changed; False where it cannot be trusted, because
    changed pages were collected while it ran."""
    with receiver.theirs:
        source.pause()
        source.migrate_to(receiver.theirs, downtime_ms=1)
    source.resume()
    deadline = time.monotonic() + SAVE_TIMEOUT_S
    while (sent := source.sent()).remaining_bytes > LAST_BYTES and sent.collections <= 1:
        receiver.check()
        if time.monotonic() >= deadline:
            raise _failed(NOT_SENT)
        time.sleep(POLL_S)
    source.pause()
    if source.sent().collections > 1:
        return False
    receiver.wait(source, "pre-switchover")
    return True


def _let_go(source: Monitor) -> None:
    """Have the guest run, wherever a migration has got to."""
    deadline = time.monotonic() + RELEASE_TIMEOUT_S
    while time.monotonic() < deadline:
        if source.migration()[0] in ("setup", "active", "pre-switchover", "device", "cancelling"):
            source.cancel_migration()
        elif source.status() in ("paused", "postmigrate", "finish-migrate"):
            source.resume()
        else:
            return
        time.sleep(POLL_S)


class _LateError(Exception):
    """Something did not come about in its time, which is no failure yet."""


def _failed(why: str) -> MachineError:
    message = "the machine's memory could not be saved"
    return MachineError(message, details=why, hint="Free space on the disk, or try again.")
