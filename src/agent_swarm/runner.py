"""Every program that agent-swarm runs for its own purposes is run from here.

The argument vector is logged with secrets redacted, output is captured, there is always a time limit,
and a failure is a CommandError with the end of stderr. Interactive sessions are guest/session.py's.
"""

from __future__ import annotations

import logging
import os
import shlex
import subprocess
from typing import TYPE_CHECKING

from agent_swarm.errors import CommandError, ProviderUnavailableError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

logger = logging.getLogger(__name__)

STDERR_KEPT_LINES = 20


def run(
    argv: Sequence[str | os.PathLike[str]],
    *,
    timeout_s: float,
    stdin: bytes = b"",
    cwd: Path | None = None,
    environ: Mapping[str, str] | None = None,
    pass_fds: Sequence[int] = (),
    check: bool = True,
) -> subprocess.CompletedProcess[bytes]:
    """Run a program to its end and return its output.

    `environ` is added to our own environment. Raises CommandError when the program fails (unless
    `check` is False) or passes `timeout_s`, ProviderUnavailableError when there is no such program.
    """
    words = [os.fspath(word) for word in argv]
    logger.debug("run %s", shlex.join(words))
    try:
        done = subprocess.run(
            words,
            input=stdin,
            capture_output=True,
            timeout=timeout_s,
            cwd=cwd,
            env={**os.environ, **environ} if environ else None,
            pass_fds=tuple(pass_fds),
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        message = f"{words[0]} did not end within {timeout_s:.0f} s"
        raise CommandError(message, details=_tail(error.stderr or b"")) from error
    except FileNotFoundError as error:
        raise _missing(words[0]) from error
    if check and done.returncode != 0:
        message = f"{words[0]} failed with exit code {done.returncode}"
        raise CommandError(message, returncode=done.returncode, details=_tail(done.stderr or done.stdout))
    return done


def stream(
    argv: Sequence[str | os.PathLike[str]],
    *,
    on_line: Callable[[str], None],
    cwd: Path | None = None,
    environ: Mapping[str, str] | None = None,
) -> None:
    """Run a program to its end and give every line that it writes, on either stream, to `on_line`.

    For builds that take minutes; the caller's Ctrl-C ends it. Raises as `run` does.
    """
    words = [os.fspath(word) for word in argv]
    logger.debug("stream %s", shlex.join(words))
    kept: list[str] = []
    try:
        process = subprocess.Popen(
            words,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd=cwd,
            env={**os.environ, **environ} if environ else None,
        )
    except FileNotFoundError as error:
        raise _missing(words[0]) from error
    with process:
        assert process.stdout is not None
        try:
            for raw in process.stdout:
                line = raw.decode("utf-8", "replace").rstrip("\r\n")
                kept = [*kept[-STDERR_KEPT_LINES + 1 :], line]
                on_line(line)
        except BaseException:
            process.terminate()
            raise
    if process.returncode != 0:
        message = f"{words[0]} failed with exit code {process.returncode}"
        raise CommandError(message, returncode=process.returncode, details="\n".join(kept))


def _missing(program: str) -> ProviderUnavailableError:
    message = f"the program {program!r} is not installed"
    return ProviderUnavailableError(
        message, hint="`agent-swarm providers` shows the command that installs what is missing."
    )


def _tail(output: bytes) -> str:
    return "\n".join(output.decode("utf-8", "replace").strip().splitlines()[-STDERR_KEPT_LINES:])
