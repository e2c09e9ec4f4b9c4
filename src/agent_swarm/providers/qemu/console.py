"""What a guest wrote to its serial console, for people to read."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from agent_swarm import text

if TYPE_CHECKING:
    from pathlib import Path

LINES = 20
TAIL_BYTES = 16_384

# colours and cursor movements, which systemd and firmware use, would only be clutter when made visible
_CONTROL_SEQUENCE = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|.)")


def tail(console: Path, lines: int = LINES) -> str:
    """The last lines of a serial console, made safe to print; "" where there is none."""
    try:
        with console.open("rb") as stream:
            size = stream.seek(0, 2)
            stream.seek(max(0, size - TAIL_BYTES))
            output = stream.read().decode("utf-8", "replace")
    except OSError:
        return ""
    return "\n".join([line for line in map(printable, re.split(r"[\r\n]+", output)) if line][-lines:])


def printable(line: str) -> str:
    """A line without terminal control sequences, and with other control characters made visible."""
    return text.printable(_CONTROL_SEQUENCE.sub("", line)).rstrip()
