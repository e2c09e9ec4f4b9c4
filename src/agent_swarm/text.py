"""Text from places that are not trusted: guests, consoles, logs."""

from __future__ import annotations

import os
import unicodedata
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

TAIL_BYTES = 65_536


def printable(text: str, *, keep_newlines: bool = False) -> str:
    """`text` with everything that a terminal could take for a command made visible.

    Control characters (C0, DEL, C1), format characters such as bidirectional overrides, and lone
    surrogates become escapes like \\x1b. Tabs become spaces. Letters of every language stay.
    """
    return "".join(
        character
        if (keep_newlines and character == "\n") or unicodedata.category(character) not in _HIDDEN
        else " "
        if character == "\t"
        else character.encode("unicode_escape", "surrogatepass").decode("ascii")
        for character in text
    )


_HIDDEN = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})


def tail(path: Path | None, *, lines: int = 20) -> str:
    """The last lines of a log, printable; "" where there is none. Reads at most TAIL_BYTES."""
    if path is None:
        return ""
    try:
        with path.open("rb") as stream:
            size = stream.seek(0, os.SEEK_END)
            stream.seek(max(size - TAIL_BYTES, 0))
            content = stream.read(TAIL_BYTES)
    except OSError:
        return ""
    shown = [printable(line.strip("\r")) for line in content.decode("utf-8", "replace").split("\n")]
    return "\n".join([line for line in shown if line.strip()][-lines:])
