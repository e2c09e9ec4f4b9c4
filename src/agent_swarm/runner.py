"""Every program that agent-swarm runs for its own purposes is run from here.

The argument vector is logged (passwords in URLs, the one secret that a setting may bring into it, are
redacted), output is captured, there is always a time limit, and a failure is a CommandError with the
end of stderr. Interactive sessions are guest/session.py's.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import shlex
import signal
import subprocess
from typing import TYPE_CHECKING

from agent_swarm.errors import CommandError, ProviderUnavailableError, SwarmError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

logger = logging.getLogger(__name__)

STDERR_KEPT_LINES = 20
ENDING_S = 10.0

_URL_PASSWORD = re.compile(r"(\w://[^/\s:@]*:)[^/\s@]*@")


def run(
    argv: Sequence[str | os.PathLike[str]],
    *,
    timeout_s: float,
    stdin: bytes = b"",
    cwd: Path | None = None,
    environ: Mapping[str, str] | None = None,
    pass_fds: Sequence[int] = (),
    new_session: bool = False,
    check: bool = True,
) -> subprocess.CompletedProcess[bytes]:
    """Run a program to its end and return its output.

    `environ` is added to our own environment. With `new_session` what the program leaves running outlives the
    terminal and its Ctrl-C. Raises CommandError when the program fails (unless
    `check` is False) or passes `timeout_s`, ProviderUnavailableError when there is no such program.
    """
    words = [os.fspath(word) for word in argv]
    logger.debug("run %s", _shown(words))
    try:
        done = subprocess.run(
            words,
            input=stdin,
            capture_output=True,
            timeout=timeout_s,
            cwd=cwd,
            env={**os.environ, **environ} if environ else None,
            pass_fds=tuple(pass_fds),
            start_new_session=new_session,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        message = f"{words[0]} did not end within {timeout_s:.0f} s"
        raise CommandError(message, details=_tail(error.stderr or b"")) from error
    except OSError as error:
        raise _not_started(words[0], error) from error
    if check and done.returncode != 0:
        message = _failed(words[0], done.returncode)
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

    For builds that take minutes; the caller's Ctrl-C ends it: SIGTERM, and SIGKILL after ENDING_S.
    Raises as `run` does.
    """
    words = [os.fspath(word) for word in argv]
    logger.debug("stream %s", _shown(words))
    kept: list[str] = []
    try:
        process = subprocess.Popen(
            words,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd=cwd,
            env={**os.environ, **environ} if environ else None,
            # a group of its own: it can be ended whole, and mmdebstrap, which signals its group, cannot end us
            start_new_session=True,
        )
    except OSError as error:
        raise _not_started(words[0], error) from error
    with process:
        assert process.stdout is not None
        try:
            for raw in process.stdout:
                line = raw.decode("utf-8", "replace").rstrip("\r\n")
                kept = [*kept[-STDERR_KEPT_LINES + 1 :], line]
                on_line(line)
        except BaseException:
            _signal_group(process, signal.SIGTERM)
            try:
                process.wait(ENDING_S)
            except subprocess.TimeoutExpired:
                _signal_group(process, signal.SIGKILL)  # `with` waits for its end
            raise
    if process.returncode != 0:
        message = _failed(words[0], process.returncode)
        raise CommandError(message, returncode=process.returncode, details="\n".join(kept))


def _signal_group(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    if process.poll() is None:  # not reaped, so the group's number is still its own
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)


def _not_started(program: str, error: OSError) -> SwarmError:
    if isinstance(error, FileNotFoundError) and error.filename == program:  # else it is `cwd` that is gone
        message = f"the program {program!r} is not installed"
        return ProviderUnavailableError(
            message, hint="`agent-swarm providers` shows the command that installs what is missing."
        )
    message = f"{program} could not be started"
    return CommandError(message, details=str(error))


def _failed(program: str, returncode: int) -> str:
    if returncode < 0:
        return f"{program} was ended by signal {-returncode}"
    return f"{program} failed with exit code {returncode}"


def _shown(words: Sequence[str]) -> str:
    return _URL_PASSWORD.sub(r"\1***@", shlex.join(words))


def _tail(output: bytes) -> str:
    return "\n".join(output.decode("utf-8", "replace").strip().splitlines()[-STDERR_KEPT_LINES:])
