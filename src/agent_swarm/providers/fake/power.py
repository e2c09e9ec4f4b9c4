"""A fake machine's process: started detached, recorded before it counts as running, ended by record.

The process does nothing but live. It forks away from its starter, says its pid, and waits for a line
on stdin, which the starter writes when the record is on the disk. A starter that is killed before that
closes the pipe, and the process ends: there is never one that runs without a record. A machine whose
directory is removed under it switches itself off.

A start from saved memory is made by the process itself, which takes the memory out of its place when it
may go on (`MEMORY` to `MEMORY.resumed`): before that rename the machine is SUSPENDED, whoever was killed,
and after it the machine runs.
"""

from __future__ import annotations

import signal
import subprocess
import sys
from typing import TYPE_CHECKING

from agent_swarm import processes
from agent_swarm.errors import MachineError
from agent_swarm.providers.fake.layout import MEMORY

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

KILL_TIMEOUT_S = 10.0

RECORD = "process.json"
CONSOLE = "console.log"

_SCRIPT = f"""
import os, signal, sys, time
def power_button(number, frame):
    os.write(2, b"reboot: Power down\\n")
    os._exit(0)
signal.signal(signal.SIGTERM, power_button)
pid = os.fork()
if pid:
    os.write(1, b"%d\\n" % pid)
    os._exit(0)
os.setsid()
if not os.read(0, 1):
    os._exit(1)
if os.path.isdir({MEMORY!r}):
    os.rename({MEMORY!r}, {MEMORY + ".resumed"!r})
else:
    os.write(2, b"Linux version 0.0.0 (simulated)\\nsystemd[1]: Reached target multi-user.target\\n")
null = os.open(os.devnull, os.O_RDWR)
os.dup2(null, 0)
os.dup2(null, 1)
while os.path.exists({RECORD!r}):
    time.sleep(1)
"""


def on(directory: Path, marker: str, reached: Callable[[str], None]) -> processes.ProcessRecord:
    """Start the process of the machine in `directory`; return when it runs and its record is saved.

    `reached` is told each step. Raises MachineError when it does not come up, OSError when files cannot
    be written; nothing runs then.
    """
    with (
        (directory / CONSOLE).open("ab") as console,
        subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _SCRIPT, marker],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=console,
            cwd=directory,
        ) as launcher,
    ):
        assert launcher.stdin is not None
        assert launcher.stdout is not None
        said = launcher.stdout.readline()
        record = processes.describe(int(said), marker) if said else None
        if record is None:
            message = "the fake machine's process did not start"
            raise MachineError(message, details=console_tail(directory))
        reached("spawned")
        processes.save(directory / RECORD, record)
        reached("recorded")
        launcher.stdin.write(b"\n")
        launcher.stdin.flush()
        launcher.stdout.read()  # it lets go of its stdout when it is up
    reached("running")
    return record


def running(directory: Path) -> processes.ProcessRecord | None:
    """The record of the process that runs now, None where none does."""
    record = processes.load(directory / RECORD)
    return record if processes.alive(record) else None


def pause(directory: Path) -> None:
    """Halt the process; it stays halted when the caller is killed, until `go_on` or `off`."""
    record = running(directory)
    if record is not None:
        processes.send(record, signal.SIGSTOP)


def go_on(directory: Path) -> None:
    """Let a halted process go on. Silent where none is."""
    record = running(directory)
    if record is not None:
        processes.send(record, signal.SIGCONT)


def off(directory: Path, *, timeout_s: float) -> None:
    """End the process: asked at first, after `timeout_s` by force. Silent where there is none.

    Raises MachineError when it cannot be ended.
    """
    record = running(directory)
    if record is not None:
        if timeout_s > 0:
            processes.send(record, signal.SIGCONT)  # one that is halted would not hear that it is asked
        processes.kill(record, timeout_s=2 * timeout_s)
        if not processes.wait_for_end(record, timeout_s=KILL_TIMEOUT_S):
            message = f"process {record.pid} does not end, not even by SIGKILL"
            raise MachineError(message, hint=f"See what holds it: `cat /proc/{record.pid}/wchan`.")
    (directory / RECORD).unlink(missing_ok=True)


def console_tail(directory: Path, lines: int = 20) -> str:
    """The last lines of the console, "" where there is none."""
    try:
        text = (directory / CONSOLE).read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return ""
    return "\n".join(text.splitlines()[-lines:])
