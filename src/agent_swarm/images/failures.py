"""What a failed write or helper program means for an image, said once."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from agent_swarm.errors import ImageError

if TYPE_CHECKING:
    from pathlib import Path

    from agent_swarm.errors import CommandError

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_FULL_TEXTS = ("No space left on device", "Disk quota exceeded", "File too large")
FREE_SPACE_HINT = "Free some space there (`agent-swarm gc` removes what is not needed), then try again."


def write_failed(error: OSError, *, doing: str, where: Path) -> ImageError:
    """The error for an OSError while `doing` something below `where`; a full disk is named as such."""
    if error.errno in _FULL:
        return disk_full(doing=doing, where=where, details=str(error))
    message = f"{doing} failed"
    return ImageError(message, details=str(error), hint=f"Check that {where} can be written, and try again.")


def program_failed(error: CommandError, *, doing: str, where: Path) -> ImageError:
    """The error for a helper program that failed while `doing` something below `where`."""
    if any(text in error.details for text in _FULL_TEXTS):
        return disk_full(doing=doing, where=where, details=error.details)
    message = f"{doing} failed: {error.message}"
    return ImageError(message, details=error.details, hint=error.hint)


def disk_full(*, doing: str, where: Path, details: str) -> ImageError:
    message = f"{doing} failed: no space left on the disk of {where}"
    return ImageError(message, details=details, hint=FREE_SPACE_HINT)
