"""Processes that outlive us: recorded so that exactly they, and nothing else, is ever signalled.

A pid alone can be another process by now. A record holds the pid, the process's start time and the
host's boot, and a marker that must stand in its argument vector; a process counts as ours when all
agree.
"""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import time
from pathlib import Path

import msgspec

from agent_swarm.files import read_bytes, write_atomically

_PROC = Path("/proc/self")
EXEC_TIMEOUT_S = 1.0
PF_KTHREAD = 0x00200000
"""A thread of the kernel (include/linux/sched.h): it runs no program and never has arguments."""


class ProcessRecord(msgspec.Struct, frozen=True):
    """`start_time` is in the kernel's unit: clock ticks since boot on Linux, seconds since 1970 elsewhere."""

    pid: int
    start_time: float
    boot_id: str
    marker: str


def describe(pid: int, marker: str) -> ProcessRecord | None:
    """A record of a process that runs now and carries `marker`; None where there is none.

    A program that was started just now has no arguments to read for an instant: that is waited for.
    """
    deadline = time.monotonic() + EXEC_TIMEOUT_S
    while (seen := _look(pid)) is not None and not seen[1] and time.monotonic() < deadline:
        time.sleep(0.001)
    if seen is None or marker not in seen[1]:
        return None
    return ProcessRecord(pid=pid, start_time=seen[0], boot_id=_boot_id(), marker=marker)


def save(path: Path, record: ProcessRecord) -> None:
    write_atomically(path, msgspec.json.encode(record))


def load(path: Path) -> ProcessRecord | None:
    """The record in a file; None where there is none or it cannot be one."""
    try:
        return msgspec.json.decode(read_bytes(path), type=ProcessRecord)
    except (OSError, msgspec.DecodeError):
        return None


def alive(record: ProcessRecord | None) -> bool:
    """Whether the recorded process still runs. A zombie does not."""
    if record is None or record.boot_id != _boot_id():
        return False
    seen = _look(record.pid)
    return seen is not None and seen[0] == record.start_time and record.marker in seen[1]


def wait_for_end(record: ProcessRecord, *, timeout_s: float) -> bool:
    """Whether the process ended within `timeout_s`. Waits by polling: it is not our child."""
    deadline = time.monotonic() + timeout_s
    while alive(record):
        if time.monotonic() >= deadline:
            return False
        time.sleep(0.02)
    return True


def kill(record: ProcessRecord, *, timeout_s: float = 10.0) -> bool:
    """End the recorded process: SIGTERM, then SIGKILL; whether it is gone. Silent where it is already."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        if not alive(record):
            return True
        with contextlib.suppress(ProcessLookupError):
            os.kill(record.pid, number)
        if wait_for_end(record, timeout_s=timeout_s / 2):
            return True
    return not alive(record)


def send(record: ProcessRecord, number: signal.Signals) -> None:
    """Send the recorded process a signal. Silent where it is gone."""
    if alive(record):
        with contextlib.suppress(ProcessLookupError):
            os.kill(record.pid, number)


def memory_bytes(pid: int) -> int | None:
    """Proportional memory of a process where the system tells it (Linux), else resident; None if gone."""
    try:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    import psutil

    try:
        return int(psutil.Process(pid).memory_info().rss)
    except psutil.Error:
        return None


def _look(pid: int) -> tuple[float, str] | None:
    """Start time and argument vector of a live program; None for a dead one, a zombie, a kernel thread."""
    if _PROC.is_dir():
        try:
            stat = Path(f"/proc/{pid}/stat").read_bytes()
            arguments = Path(f"/proc/{pid}/cmdline").read_bytes()
        except OSError:
            return None
        fields = stat.rpartition(b")")[2].split()  # proc(5): the name, in parentheses, may hold anything
        if fields[0] in (b"Z", b"X") or int(fields[6]) & PF_KTHREAD:
            return None
        return float(fields[19]), arguments.replace(b"\0", b" ").decode("utf-8", "surrogateescape")
    return _look_elsewhere(pid)


def _look_elsewhere(pid: int) -> tuple[float, str] | None:
    import psutil

    try:
        process = psutil.Process(pid)
        if process.status() == psutil.STATUS_ZOMBIE:
            return None
        return process.create_time(), " ".join(process.cmdline())
    except psutil.Error:
        return None


@functools.cache
def _boot_id() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return ""  # start times are absolute where there is no boot id
