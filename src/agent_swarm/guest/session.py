"""`run` and `ssh`: a command, or a shell, in a machine with our own streams, terminal and signals."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import threading
from typing import TYPE_CHECKING

from agent_swarm.guest import connection
from agent_swarm.guest.spawn import OWN_FAILURE, SIGNAL_TIMEOUT_S, Command, Streams
from agent_swarm.model import LocalEndpoint

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from types import FrameType

    from agent_swarm.config import Config
    from agent_swarm.guest.target import Target
    from agent_swarm.paths import Paths

CONNECT_TIMEOUT_S = 60.0
INTERRUPTED = 130
ENDED = 0
"""No signal has this number."""
FORWARDED = (
    signal.SIGINT,
    signal.SIGTERM,
    signal.SIGHUP,
    signal.SIGQUIT,
    signal.SIGUSR1,
    signal.SIGUSR2,
)


def run(
    paths: Paths,
    config: Config,
    target: Target,
    argv: Sequence[str],
    *,
    stdin: int | None = None,
    stdout: int | None = None,
    stderr: int | None = None,
    tty: bool | None = None,
    connect_timeout_s: float = CONNECT_TIMEOUT_S,
    alive: Callable[[], bool] = lambda: True,
) -> int:
    """Run a command in the machine, in the home directory, to its end; return its exit code.

    `argv` arrives byte for byte, with no shell of the user's between: 127 is "no such program", 126 "not
    executable", 128 + n "killed by signal n". The streams are file descriptors, None our own; stdout and
    stderr stay apart. A terminal is allocated only when stdin is one, or by `tty`.

    Called from the main thread, signals that we receive meanwhile go to the command's processes; a
    second SIGINT kills them and returns 130. Raises UnreachableError when no session can be opened, and when
    the connection is lost before the command ends; UsageError for an impossible `argv`.
    """
    connection.open_shared(paths, config, target, timeout_s=connect_timeout_s, alive=alive)
    terminal = _is_terminal(stdin) if tty is None else tty
    streams = Streams(_usable(stdin, 0), _usable(stdout, 1), _usable(stderr, 2))
    with (
        _signals() as (events, end),
        Command(paths, target, argv, streams, tty=terminal) as command,
        _watched(command.process, end),
    ):
        received: list[int] = []
        while (number := os.read(events, 1)[0]) != ENDED:
            if number == signal.SIGINT and signal.SIGINT in received:
                # kill what still runs; another signal, or a machine that does not react, ends the waiting
                command.send_signal(signal.SIGKILL)
                select.select([events], [], [], SIGNAL_TIMEOUT_S)
                return INTERRUPTED
            if number in FORWARDED:
                received.append(number)
                command.send_signal(number)
        if terminal and received and command.process.wait() in (OWN_FAILURE, -received[0]):
            return 128 + received[0]  # the terminal's Ctrl-C reached ssh before it had made it raw
        return command.exit_code()


def shell(paths: Paths, target: Target) -> int:
    """An interactive login shell with a connection of its own; return its exit code, 255 where ssh failed.

    ssh has the terminal, and says itself what is wrong. For a LocalEndpoint: $SHELL, or bash, in its directory.
    """
    with _signals():  # the terminal's signals are the shell's
        if isinstance(target.endpoint, LocalEndpoint):
            root = target.endpoint.root
            environ = {**os.environ, "HOME": str(root)}
            return _code(
                subprocess.run([os.environ.get("SHELL") or "bash"], cwd=root, env=environ, check=False)
            )
        return _code(subprocess.run([*connection.ssh(paths), target.id_alias], check=False))


def _code(done: subprocess.CompletedProcess[bytes]) -> int:
    return 128 - done.returncode if done.returncode < 0 else done.returncode


@contextlib.contextmanager
def _watched(process: subprocess.Popen[bytes], end: int) -> Iterator[None]:
    """Write ENDED to the pipe `end` when the process ends; end it when the block does."""

    def watch() -> None:
        process.wait()
        os.write(end, bytes([ENDED]))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield
    finally:
        if process.poll() is None:
            process.kill()
        watcher.join()


@contextlib.contextmanager
def _signals() -> Iterator[tuple[int, int]]:
    """A pipe from which the numbers of the signals that we receive can be read, one byte each.

    A pipe, because a signal that comes just before a blocking wait would not end it, but what it wrote does
    (https://docs.python.org/3/library/signal.html#signal.set_wakeup_fd). Signals that are ignored stay so
    (nohup). Only the main thread can receive signals: elsewhere nothing comes.
    """
    reader, writer = os.pipe()
    with contextlib.ExitStack() as stack:
        stack.callback(os.close, reader)
        stack.callback(os.close, writer)
        if threading.current_thread() is threading.main_thread():
            os.set_blocking(writer, False)  # set_wakeup_fd insists
            before = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
            stack.callback(signal.set_wakeup_fd, before)
            for number in FORWARDED:
                handler = signal.getsignal(number)
                if handler not in (signal.SIG_IGN, None):
                    signal.signal(number, _noted)
                    stack.callback(signal.signal, number, handler)
        yield reader, writer


def _noted(_number: int, _frame: FrameType | None) -> None:
    """A handler: without one, a signal is not written to the wake-up descriptor."""


def _is_terminal(stdin: int | None) -> bool:
    try:
        return os.isatty(0 if stdin is None else stdin)
    except OSError:
        return False


def _usable(descriptor: int | None, standard: int) -> int | None:
    """`descriptor`, or /dev/null for one of our own streams that the caller of the program closed."""
    if descriptor is not None:
        return descriptor
    try:
        os.fstat(standard)
    except OSError:
        return subprocess.DEVNULL
    return None
