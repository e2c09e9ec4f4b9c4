"""The debug log: ~/.agent-swarm/logs/agent-swarm.log, 1 MiB and three older ones, 0600.

The file is opened at the first record: most commands write none.
"""

from __future__ import annotations

import logging
import os
import sys
from typing import TYPE_CHECKING

from agent_swarm.errors import SwarmError
from agent_swarm.paths import Paths

if TYPE_CHECKING:
    from pathlib import Path

MAX_BYTES = 1024 * 1024
KEPT = 3
FORMAT = "%(asctime)s %(process)d %(levelname)s %(name)s: %(message)s"


class LazyFileHandler(logging.Handler):
    """A rotating file that is made when there is something to write.

    A record that cannot be written is dropped: a full disk must not stop the command that it describes.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(logging.DEBUG)
        self._path = path
        self._file: logging.Handler | None = None

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._opened().emit(record)
        except OSError:
            return

    def _opened(self) -> logging.Handler:
        if self._file is None:
            from logging.handlers import RotatingFileHandler

            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)

            class PrivateFileHandler(RotatingFileHandler):
                def _open(self):  # type: ignore[no-untyped-def]
                    stream = super()._open()
                    os.fchmod(stream.fileno(), 0o600)
                    return stream

                def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's name
                    """Say nothing: see LazyFileHandler."""

            self._file = PrivateFileHandler(
                self._path, maxBytes=MAX_BYTES, backupCount=KEPT, encoding="utf-8", errors="backslashreplace"
            )
            self._file.setFormatter(logging.Formatter(FORMAT))
        return self._file

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
        super().close()


def configure(paths: Paths, *, verbose: bool) -> None:
    """Send our records to the log, and to stderr where the user asked for them. Once per process."""
    logger = logging.getLogger("agent_swarm")
    logger.setLevel(logging.DEBUG)
    logger.propagate = False
    logger.addHandler(LazyFileHandler(paths.log))
    if verbose:
        shown = logging.StreamHandler(sys.stderr)
        shown.setFormatter(PrintableFormatter("%(relativeCreated)6.0f ms %(name)s: %(message)s"))
        logger.addHandler(shown)


class PrintableFormatter(logging.Formatter):
    """Records quote argument vectors and guests' words: neither may reach the terminal raw."""

    def format(self, record: logging.LogRecord) -> str:
        from agent_swarm.text import printable

        return printable(super().format(record), keep_newlines=True)


def append_to_log(text: str) -> Path | None:
    """Write a traceback to the log; its path, or None where that is not possible."""
    try:
        path = Paths.from_environment().log
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8", errors="backslashreplace") as stream:
            os.fchmod(stream.fileno(), 0o600)
            stream.write(text)
    except (OSError, SwarmError):
        return None
    return path
