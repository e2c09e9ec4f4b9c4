"""`run` and `ssh`: a command, or a shell, in a machine with our own streams, terminal and signals."""

from __future__ import annotations

import contextlib
import os
import queue
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
    events: queue.SimpleQueue[int | None] = queue.SimpleQueue()
    streams = Streams(_usable(stdin, 0), _usable(stdout, 1), _usable(stderr, 2))
    with _receiving(events), Command(paths, target, argv, streams, tty=terminal) as command:
        threading.Thread(target=_report_end, args=(command.process, events), daemon=True).start()
        received: list[int] = []
        while (number := events.get()) is not None:
            if number == signal.SIGINT and signal.SIGINT in received:
                _give_up(command, events)
                return INTERRUPTED
            received.append(number)
            command.send_signal(number)
        if terminal and received and command.process.returncode in (OWN_FAILURE, -received[0]):
            return 128 + received[0]  # the terminal's Ctrl-C reached ssh before it had made it raw
        return command.exit_code()


def shell(paths: Paths, target: Target) -> int:
    """An interactive login shell with a connection of its own; return its exit code, 255 where ssh failed.

    ssh has the terminal, and says itself what is wrong. For a LocalEndpoint: $SHELL, or bash, in its directory.
    """
    with _receiving(queue.SimpleQueue()):  # the terminal's signals are the shell's
        if isinstance(target.endpoint, LocalEndpoint):
            root = target.endpoint.root
            environ = {**os.environ, "HOME": str(root)}
            return _code(
                subprocess.run([os.environ.get("SHELL") or "bash"], cwd=root, env=environ, check=False)
            )
        return _code(subprocess.run([*connection.ssh(paths), target.id_alias], check=False))


def _code(done: subprocess.CompletedProcess[bytes]) -> int:
    return 128 - done.returncode if done.returncode < 0 else done.returncode


def _report_end(process: subprocess.Popen[bytes], events: queue.SimpleQueue[int | None]) -> None:
    process.wait()
    events.put(None)


def _give_up(command: Command, events: queue.SimpleQueue[int | None]) -> None:
    """Kill what still runs; a third signal, or a machine that does not react, ends the waiting."""
    command.send_signal(signal.SIGKILL)
    with contextlib.suppress(queue.Empty):
        events.get(timeout=SIGNAL_TIMEOUT_S)


@contextlib.contextmanager
def _receiving(events: queue.SimpleQueue[int | None]) -> Iterator[None]:
    """Put the signals that we receive into `events`; those that are ignored stay so (nohup).

    Only the main thread can: elsewhere nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def receive(number: int, _frame: FrameType | None) -> None:
        events.put(number)  # SimpleQueue.put is reentrant, made for this

    before = {number: signal.getsignal(number) for number in FORWARDED}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:
            signal.signal(number, receive)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


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
