"""What long work tells its caller while it goes on.

Library code takes a `Progress` and sends events; the command line draws them, tests collect them.
Events carry facts, never formatted text or terminal codes. Guest output in `OutputLine` is raw: the
renderer makes it printable.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class StepStarted:
    """A step began. `subject` is the environment or image it is about ("fix-1"), `step` what is done."""

    subject: str
    step: str


@dataclass(frozen=True, slots=True)
class StepDone:
    subject: str
    step: str
    duration_s: float


@dataclass(frozen=True, slots=True)
class Transferred:
    """Bytes done of a step; `total_bytes` is None where it is not known."""

    subject: str
    step: str
    done_bytes: int
    total_bytes: int | None


@dataclass(frozen=True, slots=True)
class OutputLine:
    """One line that a set-up script or a build wrote, without its newline."""

    subject: str
    line: str


@dataclass(frozen=True, slots=True)
class Notice:
    """Something the user should know that is no error: a fallback, a repair, a default that was taken."""

    message: str


Event = StepStarted | StepDone | Transferred | OutputLine | Notice


class Progress(Protocol):
    """A sink of events. Called from several threads at once; must not raise and must not block long."""

    def __call__(self, event: Event, /) -> None: ...


def ignore(event: Event, /) -> None:
    """A Progress that drops everything."""
