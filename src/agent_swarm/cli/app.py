"""The entry point: parse, run, and turn whatever happens into a message and an exit code.

    0 ok   1 failure   2 usage   3 not found   4 conflict or busy   5 provider unavailable
    6 refused by a resource limit   130 interrupted   143 terminated   141 the reader of stdout went away

`run` and `ssh` end with the code of what they ran, 255 where the machine could not be reached.
"""

from __future__ import annotations

import gc
import os
import signal
import sys
from typing import TYPE_CHECKING, NoReturn

import click

from agent_swarm.cli.table import PROGRAM, root
from agent_swarm.errors import SwarmError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import FrameType, TracebackType

COMPLETION_VARIABLE = "_AGENT_SWARM_COMPLETE"
INTERRUPTED = 130
BROKEN_PIPE = 128 + signal.SIGPIPE


def main() -> NoReturn:
    """The console script."""
    sys.excepthook = report_bug
    gc.set_threshold(50_000, 20, 20)  # 10 ms of a `list` with 1,000 environments went into finding no garbage
    signal.signal(signal.SIGTERM, _terminate)  # undo what is half done, as after Ctrl-C
    if hasattr(signal, "SIGHUP"):
        signal.signal(signal.SIGHUP, _terminate)
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    code = execute(sys.argv[1:])
    gc.freeze()  # nor does the interpreter look for it at its end
    sys.exit(code)


def execute(arguments: Sequence[str]) -> int:
    """Run one command line and return its exit code. What is no error of the user's, or of the world's,
    is raised: a bug."""
    try:
        code = _dispatch(list(arguments))
        sys.stdout.flush()
    except click.exceptions.Exit as end:
        return _flushed(end.exit_code)
    except SwarmError as error:
        _show(error)
        return error.exit_code
    except click.UsageError as error:
        _show(as_usage_error(error))
        return 2
    except (KeyboardInterrupt, click.Abort):
        click.echo("interrupted", err=True)
        return INTERRUPTED
    except BrokenPipeError:
        return _pipe_is_gone()
    return code


def _dispatch(arguments: list[str]) -> int:
    program = root()
    instruction = os.environ.get(COMPLETION_VARIABLE)
    if instruction:
        from click.shell_completion import shell_complete

        return shell_complete(program, {}, PROGRAM, COMPLETION_VARIABLE, instruction)
    with program.make_context(PROGRAM, arguments) as context:
        result = program.invoke(context)
    return result if isinstance(result, int) else 0


def as_usage_error(error: click.UsageError) -> SwarmError:
    """click's error in our form: lower-case clause, and a hint with the nearest name or where to look."""
    from agent_swarm.errors import UsageError

    path = error.ctx.command_path if error.ctx else PROGRAM
    near = getattr(error, "possibilities", None)
    if isinstance(error, click.NoSuchOption):
        message = f"`{path}` has no option {error.option_name!r}"
    else:
        text = error.format_message().strip().rstrip(".")
        message = text[:1].lower() + text[1:]
    hint = f"Did you mean {near[0]!r}?" if near else f"See `{path} --help`."
    return UsageError(message, hint=hint)


def report_bug(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:  # pragma: no cover - run by the interpreter
    """sys.excepthook: the traceback goes to the log, a short message to the user. Python then exits with 1."""
    import traceback

    text = "".join(traceback.format_exception(kind, error, trace))
    from agent_swarm.cli.logs import append_to_log

    where = append_to_log(text)
    if where is None:
        click.echo(text, err=True)
    _show(
        SwarmError(
            f"unexpected: {kind.__name__}: {error}",
            details=f"The traceback is in {where}" if where else "",
            hint="This is a bug in agent-swarm; please report it with the traceback.",
        )
    )


def _show(error: SwarmError) -> None:
    from agent_swarm.cli.render import error_lines

    try:
        for line in error_lines(error, sys.stderr):
            click.echo(line, err=True)
    except OSError:
        return  # stderr is gone too: there is nobody to tell


def _flushed(code: int) -> int:
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        return _pipe_is_gone()
    return code


def _pipe_is_gone() -> int:
    """`agent-swarm list | head -1`: say nothing, also not when the interpreter flushes at its end.

    Source: https://docs.python.org/3/library/signal.html#note-on-sigpipe
    """
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return BROKEN_PIPE


def _terminate(number: int, _frame: FrameType | None) -> NoReturn:
    raise SystemExit(128 + number)
