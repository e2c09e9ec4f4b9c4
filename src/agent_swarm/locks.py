"""Locks between processes: one file each, held by the kernel, so that a killed holder frees it.

Two locks guard an environment. `change` is exclusive: one command changes it at a time, and recovery
takes an open operation whose change lock is free as abandoned. `use` is shared by sessions and taken
exclusively by what would pull the machine away under them.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from typing import TYPE_CHECKING

from agent_swarm.errors import BusyError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

POLL_S = 0.05


@contextlib.contextmanager
def hold(
    path: Path, *, shared: bool = False, wait_s: float = 0.0, busy: str, hint: str = ""
) -> Iterator[int]:
    """Hold the lock `path`. Raises BusyError with the message `busy` when `wait_s` passes before it is free.

    Yields the lock's descriptor: a process that inherits it holds the lock, too, until it ends. The file is never removed while it may be waited for: `forget` does that.
    """
    deadline = time.monotonic() + wait_s
    operation = (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, operation)
        except OSError as error:
            os.close(descriptor)
            if not isinstance(error, BlockingIOError):
                raise
            if time.monotonic() >= deadline:
                raise BusyError(
                    busy, hint=hint or "Wait for the other command, or end it, and try again."
                ) from None
            time.sleep(POLL_S)
            continue
        if _is_current(descriptor, path):
            break
        os.close(descriptor)  # another process forgot this file between our open and our lock
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def is_free(path: Path) -> bool:
    """Whether nobody holds the lock just now. Makes no file; for the moment of the look, it holds the lock."""
    if not path.exists():
        return True
    try:
        with hold(path, busy=""):
            return True
    except BusyError:
        return False


def forget(path: Path) -> None:
    """Remove a lock file. The caller holds it exclusively, or knows that nobody will ever want it."""
    path.unlink(missing_ok=True)


def _is_current(descriptor: int, path: Path) -> bool:
    try:
        found = path.stat()
    except FileNotFoundError:
        return False
    ours = os.fstat(descriptor)
    return (found.st_dev, found.st_ino) == (ours.st_dev, ours.st_ino)
