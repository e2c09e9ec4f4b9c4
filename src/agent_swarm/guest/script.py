"""Commands whose output is read here, line by line: set-up scripts and checks."""

from __future__ import annotations

import os
import select
import subprocess
import tempfile
import time
from typing import TYPE_CHECKING

from agent_swarm.errors import MachineError
from agent_swarm.guest import connection
from agent_swarm.guest.session import CONNECT_TIMEOUT_S
from agent_swarm.guest.spawn import Command, Streams

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from agent_swarm.config import Config
    from agent_swarm.guest.target import Target
    from agent_swarm.paths import Paths

LINE_MAX_BYTES = 1 << 16
UPLOAD_TIMEOUT_S = 60.0
SCRIPT_PATH = ".agent-swarm-setup.sh"
"""Where a script lies in the guest's home directory; left there for a look after a failure."""


def collect(
    paths: Paths,
    config: Config,
    target: Target,
    argv: Sequence[str],
    *,
    timeout_s: float,
    on_line: Callable[[str], None],
    stdin: bytes = b"",
) -> int:
    """Run a command in the machine and give each line that it writes, on either stream, to `on_line`.

    Lines come without their end, undecodable bytes replaced, longer ones than 64 KiB in pieces. Returns
    the exit code as `session.run`. Raises MachineError after `timeout_s`, UnreachableError when the
    connection is lost; then, and when `on_line` raises or the user interrupts, the command is killed.
    """
    deadline = time.monotonic() + timeout_s
    connection.open_shared(
        paths, config, target, timeout_s=min(timeout_s, CONNECT_TIMEOUT_S), alive=lambda: True
    )
    with tempfile.TemporaryFile() as source:
        source.write(stdin)
        source.seek(0)
        streams = Streams(source.fileno(), subprocess.PIPE, subprocess.STDOUT)
        with Command(paths, target, argv, streams, tty=False) as command:
            assert command.process.stdout is not None
            with command.process.stdout as output:
                try:
                    _read_lines(output.fileno(), deadline, on_line)
                    command.process.wait(max(0.0, deadline - time.monotonic()))
                except (TimeoutError, subprocess.TimeoutExpired):
                    command.kill()
                    message = f"{argv[0]} did not end within {timeout_s:.0f} s in {target.label}"
                    raise MachineError(message) from None
                except BaseException:
                    command.kill()
                    raise
            return command.exit_code()


def run_script(
    paths: Paths,
    config: Config,
    target: Target,
    script: bytes,
    *,
    timeout_s: float,
    on_line: Callable[[str], None],
) -> int:
    """Run a script in the machine, from a file and with an empty stdin, so that it cannot eat itself.

    Its first line decides what runs it; without a `#!` bash does. Returns and raises as `collect`.
    """
    said: list[str] = []
    code = collect(
        paths,
        config,
        target,
        ["sh", "-c", 'umask 077 && cat >"$0.new" && chmod 700 "$0.new" && mv -f "$0.new" "$0"', SCRIPT_PATH],
        stdin=script,
        timeout_s=min(timeout_s, UPLOAD_TIMEOUT_S),
        on_line=said.append,
    )
    if code != 0:
        message = f"the script could not be written in {target.label}"
        raise MachineError(message, details="\n".join(said[-20:]), hint="Is its disk full?")
    return collect(paths, config, target, [f"./{SCRIPT_PATH}"], timeout_s=timeout_s, on_line=on_line)


def _read_lines(descriptor: int, deadline: float, on_line: Callable[[str], None]) -> None:
    pending = b""
    while True:
        # the bounded wait notices a deadline; data and the end of the stream wake it at once
        left_s = deadline - time.monotonic()
        if left_s <= 0:
            raise TimeoutError
        if not select.select([descriptor], [], [], left_s)[0]:
            continue
        data = os.read(descriptor, 1 << 16)
        if not data:
            break
        *lines, pending = (pending + data).split(b"\n")
        for line in lines:
            on_line(_text(line))
        while len(pending) > LINE_MAX_BYTES:
            on_line(_text(pending[:LINE_MAX_BYTES]))
            pending = pending[LINE_MAX_BYTES:]
    if pending:
        on_line(_text(pending))


def _text(line: bytes) -> str:
    return line.decode("utf-8", "replace").removesuffix("\r")
