"""Drawing on a terminal: tables, blocks of facts, errors.

Everything that came from outside (guests, other programs, files) passes `shown` on its way: no control
character reaches the terminal. Colour repeats what a word says already, and is left out where NO_COLOR is
set, TERM is dumb, or the stream is no terminal.
"""

from __future__ import annotations

import os
import re
import sys
import unicodedata
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, TextIO

import click

from agent_swarm.text import printable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from agent_swarm.errors import SwarmError

GAP = "  "
ELLIPSIS = "…"
MINIMUM_CELL = 8

# ECMA-48: CSI sequences, and OSC strings up to BEL or ST
_ESCAPE_SEQUENCES = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)")

COLOURS = {
    "running": "green",
    "ok": "green",
    "done": "green",
    "usable": "green",
    "creating": "yellow",
    "deleting": "yellow",
    "open": "yellow",
    "warning": "yellow",
    "rolled-back": "yellow",
    "failed": "red",
    "broken": "red",
    "problem": "red",
    "not usable": "red",
}


def shown(text: str) -> str:
    """`text` on one line, safe for a terminal."""
    return text if text.isprintable() else printable(text)


def without_escapes(text: str) -> str:
    """A line of a console or a build as it was meant to be read: colours and cursor moves taken out, what
    is left of control characters made visible."""
    if "\x1b" in text:
        text = _ESCAPE_SEQUENCES.sub("", text)
    return shown(text.rstrip("\r\n").rpartition("\r")[2])


def coloured(
    text: str, stream: TextIO, *, fg: str | None = None, bold: bool = False, dim: bool = False
) -> str:
    """`text` with a style where `stream` shows colours."""
    if not has_colour(stream) or not (fg or bold or dim):
        return text
    return click.style(text, fg=fg, bold=bold or None, dim=dim or None)


def has_colour(stream: TextIO) -> bool:
    return stream.isatty() and "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"


def width_of(stream: TextIO) -> int | None:
    """Columns of the terminal; None where output is not for a screen and nothing is cut."""
    if not stream.isatty():
        return None
    import shutil

    return shutil.get_terminal_size().columns


@dataclass(frozen=True, slots=True)
class Column:
    """How a column gives way on a narrow terminal: cells longer than `least` are shortened to that, then the
    column of the highest `rank` is left out, and so on; `rank` 0 is always drawn. What may be shortened
    at all is shortened further where nothing else is left."""

    title: str
    rank: int = 0
    right: bool = False
    least: int | None = None
    colour: Callable[[str], str | None] | None = None


def status_colour(text: str) -> str | None:
    return COLOURS.get(text)


def table(
    columns: Sequence[Column], rows: Iterable[Sequence[str]], stream: TextIO | None = None
) -> Iterator[str]:
    """The lines of a table that fits the terminal. The heading is drawn for no rows, too."""
    stream = stream or sys.stdout
    cells = [[shown(cell) for cell in row] for row in rows]
    widths = [
        max([cell_width(column.title), *(cell_width(row[index]) for row in cells)])
        for index, column in enumerate(columns)
    ]
    kept = _fit(columns, widths, width_of(stream))
    colour = has_colour(stream)
    heading = _line([columns[i].title for i in kept], [columns[i] for i in kept], [widths[i] for i in kept])
    yield coloured(heading, stream, bold=True)
    for row in cells:
        yield _line(
            [row[i] for i in kept], [columns[i] for i in kept], [widths[i] for i in kept], colour=colour
        )


def _fit(columns: Sequence[Column], widths: list[int], available: int | None) -> list[int]:
    """Indexes of the columns to draw. Shortens `widths` of flexible ones."""
    kept = list(range(len(columns)))
    if available is None:
        return kept

    def excess() -> int:
        return sum(widths[i] for i in kept) + len(GAP) * (len(kept) - 1) - available

    def shorten(to: int | None) -> None:
        for i in sorted(kept, key=lambda index: -widths[index]):
            least = columns[i].least
            if least is not None:
                floor = max(to or least, cell_width(columns[i].title))
                widths[i] -= max(min(excess(), widths[i] - floor), 0)

    while excess() > 0:
        before = list(widths)
        shorten(None)
        droppable = [i for i in kept if columns[i].rank > 0]
        if excess() <= 0 or not droppable:
            break
        widths[:] = before
        kept.remove(max(droppable, key=lambda index: columns[index].rank))
    shorten(MINIMUM_CELL)
    return kept


def _line(
    cells: Sequence[str], columns: Sequence[Column], widths: Sequence[int], *, colour: bool = False
) -> str:
    parts = []
    last = len(cells) - 1
    for index, (cell, column, width) in enumerate(zip(cells, columns, widths, strict=True)):
        text = cell if cell_width(cell) <= width else shortened(cell, width)
        padding = " " * (width - cell_width(text))
        if colour and column.colour is not None and (fg := column.colour(text)):
            text = click.style(text, fg=fg)
        if column.right:
            parts.append(padding + text)
        else:
            parts.append(text if index == last else text + padding)
    return GAP.join(parts).rstrip()


def cell_width(text: str) -> int:
    """Columns that a terminal gives to printable text: two for East Asian wide characters, none for marks."""
    if text.isascii():
        return len(text)
    return sum(
        0 if unicodedata.combining(character) else 2 if unicodedata.east_asian_width(character) in "WF" else 1
        for character in text
    )


def shortened(text: str, width: int) -> str:
    """`text` in at most `width` columns; what was cut off shows as an ellipsis."""
    if cell_width(text) <= width:
        return text
    kept = ""
    for character in text:
        if cell_width(kept + character) > width - 1:
            break
        kept += character
    return kept + ELLIPSIS if width > 0 else ""


def facts(pairs: Iterable[tuple[str, str]], stream: TextIO | None = None) -> Iterator[str]:
    """ "name:  value" lines with the values below each other; an empty value is left out, and lines of one
    value stand below each other."""
    stream = stream or sys.stdout
    given = [(name, value) for name, value in pairs if value]
    width = max((len(name) for name, _ in given), default=0) + 1
    for name, value in given:
        label = f"{name}:".ljust(width)
        for line in value.split("\n"):
            yield f"{coloured(label, stream, dim=True)}{GAP}{shown(line)}"
            label = " " * width


def error_lines(error: SwarmError, stream: TextIO, *, about: str = "") -> Iterator[str]:
    """An error as the user sees it: what happened (to whom), why, what to do next."""
    subject = f"{shown(about)}: " if about else ""
    yield f"{coloured('error:', stream, fg='red', bold=True)} {subject}{shown(error.message)}"
    for line in error.details.strip("\n").splitlines():
        yield f"  {without_escapes(line)}".rstrip()
    if error.hint:
        yield f"{coloured('hint:', stream, bold=True)} {shown(error.hint)}"


def size(count: int | None) -> str:
    """Bytes for people: "1.2 GiB"; "-" where not known."""
    if count is None:
        return "-"
    value = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" or value >= 100 else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"


def memory(mib: int) -> str:
    """MiB for people: "4 GiB", "512 MiB"."""
    return f"{mib // 1024} GiB" if mib >= 1024 and mib % 1024 == 0 else f"{mib} MiB"


def age(since: datetime | None, now: datetime | None = None) -> str:
    """Time passed, in its largest unit: "12s", "3m", "2h", "5d"; "-" for None."""
    if since is None:
        return "-"
    seconds = max(0, int(((now or datetime.now(UTC)) - since).total_seconds()))
    for unit, length in (("d", 86_400), ("h", 3_600), ("m", 60)):
        if seconds >= length:
            return f"{seconds // length}{unit}"
    return f"{seconds}s"


def moment(when: datetime | None) -> str:
    """A time for people, in their own zone: "2026-07-01 14:03:59"."""
    return when.astimezone().strftime("%Y-%m-%d %H:%M:%S") if when else ""
