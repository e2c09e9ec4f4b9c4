"""Which QEMU runs a machine, told so that a kill of the caller at any instant cannot hide one.

Three things, from quick to certain: the process record that we save once QEMU runs, the pid file that QEMU
writes, and the lock on `qemu.lock` that QEMU inherits at its start and the kernel frees at its end.
"""

from __future__ import annotations

import fcntl
import os
import time
from typing import TYPE_CHECKING

from agent_swarm import processes
from agent_swarm.errors import MachineError
from agent_swarm.files import read_bytes

if TYPE_CHECKING:
    from agent_swarm.processes import ProcessRecord
    from agent_swarm.providers.qemu.layout import MachineFiles

SETTLE_TIMEOUT_S = 30.0
POLL_S = 0.02


def find(files: MachineFiles) -> ProcessRecord | None:
    """The machine's running QEMU. Cheap."""
    record = processes.load(files.process_record)
    if record is not None and processes.alive(record):
        return record
    try:
        pid = int(read_bytes(files.pid_file))
    except (OSError, ValueError):
        return None
    return processes.describe(pid, files.marker)


def claim(files: MachineFiles) -> int | None:
    """Take the machine's lock; None while a QEMU, or the command that starts it, holds it.

    The descriptor is the caller's to close, and inheritable only where it is passed on.
    """
    descriptor = os.open(files.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor


def claim_or_find(files: MachineFiles) -> int | ProcessRecord:
    """The lock where no QEMU runs, else the process that holds it; waits while one is being started.

    Raises MachineError where neither comes about: QEMU runs, but it cannot be told which process it is.
    """
    deadline = time.monotonic() + SETTLE_TIMEOUT_S
    while True:
        descriptor = claim(files)
        if descriptor is not None:
            return descriptor
        record = find(files)
        if record is not None:
            return record
        if time.monotonic() >= deadline:
            message = f"another process holds machine {files.id}"
            raise MachineError(
                message, details=f"{files.lock} is locked", hint="Wait for it, or find it with: fuser"
            )
        time.sleep(POLL_S)


def end(files: MachineFiles, *, timeout_s: float = 20.0) -> None:
    """End the machine's QEMU now, however far it has come, and remove what it left in the run directory.

    Silent where there is none. Raises MachineError where it cannot be ended.
    """
    while files.directory.is_dir():
        held = claim_or_find(files)
        if isinstance(held, int):
            forget(files)
            os.close(held)
            return
        if not processes.kill(held, timeout_s=timeout_s):
            message = f"QEMU (process {held.pid}) of machine {files.id} does not end"
            raise MachineError(message, hint="It hangs in the kernel; look at the host's disk and its log.")
    forget(files)


def forget(files: MachineFiles) -> None:
    """Remove the traces of a QEMU that has ended."""
    record = files.process_record
    half_written = record.parent.glob(f".{record.name}.*")  # by one who was killed while he saved it
    for path in (record, *half_written, files.pid_file, files.qmp_socket, files.agent_socket):
        path.unlink(missing_ok=True)
