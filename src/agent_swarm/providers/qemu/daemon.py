"""Starting the programs that outlive us: QEMU and passt.

They run in a session of their own, so that the terminal's Ctrl-C and hang-up do not reach them, with an
environment that holds nothing of the user's, and with standard error in a log file.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shlex
import signal
import subprocess
import threading
from typing import TYPE_CHECKING

from agent_swarm.errors import ProviderUnavailableError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

logger = logging.getLogger(__name__)

KEPT_ENVIRONMENT = ("PATH", "TMPDIR")
LOG_TAIL_BYTES = 4000


class Daemon:
    """A started program, as long as we are there to watch it. Letting go of the object ends nothing."""

    def __init__(self, argv: Sequence[str], *, log: Path, pass_fds: Sequence[int] = ()) -> None:
        """Start it. Raises ProviderUnavailableError when there is no such program."""
        logger.debug("start %s", shlex.join(argv))
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            process = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=descriptor,
                stderr=descriptor,
                cwd="/",
                env={name: os.environ[name] for name in KEPT_ENVIRONMENT if name in os.environ},
                pass_fds=tuple(pass_fds),
                start_new_session=True,
            )
        except FileNotFoundError as error:
            message = f"the program {argv[0]!r} is not installed"
            raise ProviderUnavailableError(message) from error
        finally:
            os.close(descriptor)
        self.pid = process.pid
        self.log = log
        self._ended = threading.Event()
        # while we live it is our child, and somebody has to collect it when it ends
        threading.Thread(target=self._collect, args=(process,), daemon=True).start()

    def _collect(self, process: subprocess.Popen[bytes]) -> None:
        process.wait()
        self._ended.set()

    def ended(self, *, within_s: float = 0.0) -> bool:
        """Whether it has ended; waits up to `within_s` for that."""
        return self._ended.wait(within_s)

    def terminate(self, *, force: bool = False) -> None:
        """Ask it to end, or end it; silent where it has."""
        if not self._ended.is_set():  # not collected yet, so the pid is still its own
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL if force else signal.SIGTERM)

    def complaint(self) -> str:
        """The end of what it wrote."""
        return tail(self.log)


def tail(log: Path) -> str:
    """The end of a program's log, "" where there is none."""
    try:
        text = log.read_bytes()[-LOG_TAIL_BYTES:].decode("utf-8", "replace")
    except OSError:
        return ""
    # passt without a syslog says so for every line that it wanted to log
    return "\n".join(line for line in text.splitlines() if " to syslog" not in line).strip()
