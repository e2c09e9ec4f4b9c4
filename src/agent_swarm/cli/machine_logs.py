"""logs: a machine's console, or the output of its set-up."""

from __future__ import annotations

import os
import time
from collections import deque
from typing import TYPE_CHECKING, BinaryIO

import click

from agent_swarm.cli.options import TASK, Command, looking
from agent_swarm.cli.render import without_escapes
from agent_swarm.errors import NotFoundError
from agent_swarm.model import Kind

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

POLL_S = 0.25
DEFAULT_LINES = 100


@click.command(
    cls=Command,
    example="agent-swarm logs fix-1 --follow\nagent-swarm logs web --project --setup -n 20",
)
@click.argument("name", type=TASK)
@click.option("--project", is_flag=True, help="NAME is a project, not a task.")
@click.option(
    "--setup", is_flag=True, help="The output of setup.sh instead of the console; projects have one."
)
@click.option("-f", "--follow", is_flag=True, help="Go on with what is written from now on, until Ctrl-C.")
@click.option(
    "-n",
    "--lines",
    type=click.IntRange(min=0),
    default=DEFAULT_LINES,
    show_default=True,
    metavar="LINES",
    help="How many of the last lines to show.",
)
def logs(name: str, project: bool, setup: bool, follow: bool, lines: int) -> None:
    """Show the last lines of a machine's serial console: what its kernel and services said while booting.

    Colours and cursor movements are taken out, other control characters are made visible.
    """
    kind = Kind.PROJECT if project else Kind.TASK
    with looking() as swarm:
        found = swarm.show(name, kind=kind)
    path = found.setup_log if setup else found.console
    if path is None:
        message = f"{found.environment.label} has no {'set-up' if setup else 'console'} log"
        hint = "Projects have one: use --project." if setup and not project else ""
        raise NotFoundError(message, hint=hint)
    for line in read(path, lines=lines, follow=follow, wait=time.sleep):
        click.echo(line)


def read(path: Path, *, lines: int, follow: bool, wait: Callable[[float], None]) -> Iterator[str]:
    """The last `lines` lines, printable; with `follow` every later one, also when the file is made anew (a
    machine that starts again). `wait` is called between looks."""
    stream = path.open("rb")
    try:
        for raw in deque(stream, maxlen=lines):
            yield _clean(raw)
        while follow:
            for raw in _new_lines(stream):
                yield _clean(raw)
            if _was_replaced(stream, path):
                stream.close()
                stream = path.open("rb")
                continue
            wait(POLL_S)
    finally:
        stream.close()


def _new_lines(stream: BinaryIO) -> Iterator[bytes]:
    """Whole lines that were written since; a half one is left for later."""
    while True:
        start = stream.tell()
        raw = stream.readline()
        if not raw.endswith(b"\n"):
            stream.seek(start)
            return
        yield raw


def _was_replaced(stream: BinaryIO, path: Path) -> bool:
    ours = os.fstat(stream.fileno())
    try:
        current = path.stat()
    except FileNotFoundError:
        return False
    return (ours.st_dev, ours.st_ino) != (current.st_dev, current.st_ino) or current.st_size < stream.tell()


def _clean(raw: bytes) -> str:
    return without_escapes(raw.decode("utf-8", "replace"))
