"""Tells the steps of a method to its `Progress`."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from agent_swarm.events import StepDone, StepStarted

if TYPE_CHECKING:
    from agent_swarm.events import Progress


class Step:
    """Tells a step's begin, and its end when it was reached."""

    def __init__(self, progress: Progress, subject: str, step: str) -> None:
        self._progress = progress
        self._subject = subject
        self._step = step

    def __enter__(self) -> None:
        self._began_s = time.monotonic()
        self._progress(StepStarted(self._subject, self._step))

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self._progress(StepDone(self._subject, self._step, time.monotonic() - self._began_s))
