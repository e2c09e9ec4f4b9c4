"""Starting a command in a machine, and reaching its processes with signals.

A command is a child process of ours: an ssh client that uses the machine's shared connection, or, for a
LocalEndpoint, a shell in the machine's directory. Both run the same command line (command_line.py).
"""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import subprocess
import tempfile
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from agent_swarm.errors import ProviderUnavailableError, UnreachableError
from agent_swarm.guest import connection
from agent_swarm.guest.command_line import command_line, signal_line
from agent_swarm.model import LocalEndpoint

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType

    from agent_swarm.guest.target import Target
    from agent_swarm.paths import Paths

FIRST_CHILD_S = 2.0
POLL_S = 0.02
SIGNAL_TIMEOUT_S = 10.0
OWN_FAILURE = 255
"""What ssh ends with when it fails itself (ssh(1), EXIT STATUS)."""


@dataclass(frozen=True, slots=True)
class Streams:
    """File descriptors, or subprocess.PIPE and the like; None is our own."""

    stdin: int | None = None
    stdout: int | None = None
    stderr: int | None = None


class Command:
    """One command in a machine; a context manager that never leaves the local process behind."""

    def __init__(
        self, paths: Paths, target: Target, argv: Sequence[str], streams: Streams, *, tty: bool
    ) -> None:
        """Start it. UsageError for an argument vector that no program can be given."""
        self._paths = paths
        self._target = target
        self._tty = tty
        self._token = secrets.token_hex(12)
        self._signallers: list[subprocess.Popen[bytes]] = []
        line = command_line(argv, self._token)
        # a name, not a descriptor: ssh closes what it inherits
        self._log = tempfile.NamedTemporaryFile(dir=paths.run, prefix="ssh-", suffix=".log")  # noqa: SIM115 - closed by __exit__
        try:
            self.process = self._spawn(line, streams)
        except FileNotFoundError as error:
            self._log.close()
            message = f"{error.filename!r} is not installed"
            raise ProviderUnavailableError(message, hint="Install the OpenSSH client and bash.") from error
        except BaseException:
            self._log.close()
            raise

    def __enter__(self) -> Command:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        for signaller in self._signallers:
            if signaller.poll() is None:
                signaller.kill()
            signaller.wait()
        self._log.close()

    def send_signal(self, number: int) -> None:
        """Send a signal to the command's processes in the machine. Returns before it has arrived.

        Does nothing where the command has ended.
        """
        if isinstance(self._target.endpoint, LocalEndpoint):
            self._signal_local(number)
            return
        self._signallers.append(
            subprocess.Popen(
                [
                    *self._client(),
                    "-n",
                    self._target.id_alias,
                    signal_line(self._token, signal.Signals(number).name[3:]),
                ],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
        )

    def kill(self) -> None:
        """End the command's processes in the machine by SIGKILL, and the local process; wait for both."""
        self.send_signal(signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired):  # a machine that does not react
            self.process.wait(SIGNAL_TIMEOUT_S)
        self.process.kill()
        self.process.wait()

    def exit_code(self) -> int:
        """The exit code of the ended command, 128 + n for a death by signal n.

        Raises UnreachableError when it was not the command that ended but the connection.
        """
        code = self.process.wait()
        if code < 0:
            return 128 - code
        if code != OWN_FAILURE or isinstance(self._target.endpoint, LocalEndpoint):
            return code
        if connection.is_open(self._paths, self._target):
            return code
        self._log.seek(0)
        said = self._log.read(4000).decode("utf-8", "replace").strip()
        message = f"the connection to {self._target.label} was lost; whether the command ended is not known"
        raise UnreachableError(
            message,
            details=said,
            hint="`agent-swarm list` shows whether it still runs; `agent-swarm logs` its console.",
        )

    def _spawn(self, line: str, streams: Streams) -> subprocess.Popen[bytes]:
        if isinstance(self._target.endpoint, LocalEndpoint):
            root = self._target.endpoint.root
            environ = {**os.environ, "HOME": str(root)}
            environ.pop("BASH_ENV", None)
            return subprocess.Popen(
                ["bash", "-c", line],
                stdin=streams.stdin,
                stdout=streams.stdout,
                stderr=streams.stderr,
                cwd=root,
                env=environ,
                start_new_session=not self._tty,
            )
        argv = [
            *self._client(),
            # ssh's own messages apart from the command's stderr
            *("-E", self._log.name),
            *(("-tt", "-e", "none") if self._tty else ("-T",)),
            self._target.id_alias,
            line,
        ]
        # with a terminal, ssh must be in its foreground; without, Ctrl-C must reach us and not ssh
        return subprocess.Popen(
            argv,
            stdin=streams.stdin,
            stdout=streams.stdout,
            stderr=streams.stderr,
            start_new_session=not self._tty,
        )

    def _client(self) -> list[str]:
        # without a shared connection ssh would make one of its own: then 255 could not be told apart
        return [
            *connection.ssh(self._paths),
            *connection.through_shared(self._paths),
            *("-o", "ProxyCommand=false"),
        ]

    def _signal_local(self, number: int) -> None:
        import psutil

        deadline = time.monotonic() + FIRST_CHILD_S
        while self.process.poll() is None and time.monotonic() < deadline:
            children: list[psutil.Process] = []
            with contextlib.suppress(psutil.Error):
                children = psutil.Process(self.process.pid).children(recursive=True)
            if children:
                self._signal_tree(number, [child.pid for child in children])
                return
            time.sleep(POLL_S)  # the shell has not started the command yet

    def _signal_tree(self, number: int, pids: Sequence[int]) -> None:
        group = None if self._tty else self.process.pid
        for pid in pids:
            # gone meanwhile, or another user's
            with contextlib.suppress(ProcessLookupError, PermissionError):
                if group is None or os.getpgid(pid) != group:
                    os.kill(pid, number)
        if group is not None:
            # in one step: nobody in the group can start another process between
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(group, number)
