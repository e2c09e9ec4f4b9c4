"""Long work on the screen.

On a terminal: a line for each machine that is being worked on, with its step, seconds, bytes and the last
line of its set-up's output, redrawn below the steps that are done. Elsewhere: plain lines on stderr.

Events come from many threads. They only change what is to be drawn; one thread of our own writes to the
terminal, so that a slow one delays nobody.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TextIO

from agent_swarm.cli.render import size, without_escapes
from agent_swarm.events import Event, Notice, OutputLine, StepDone, StepStarted, Transferred

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from rich.console import Console, RenderableType
    from rich.live import Live

INTERVAL_S = 0.125
PLAIN_SHARE = 10
"""Off a terminal a transfer is reported each time that this many percent more are done."""
PLAIN_BYTES = 64 * 1024 * 1024
"""... or this many bytes, where the total is not known."""
FRAMES = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"
ASCII_FRAMES = "|/-\\"


@dataclass(slots=True)
class _Subject:
    """What is known of one machine or image. `steps` are the ones under way, the innermost last."""

    steps: list[tuple[str, float]] = field(default_factory=list)
    transferred: Transferred | None = None
    output: str = ""
    reported: int = 0


class Display:
    """A Progress, open for the length of a `with` block. Draws nothing before the first event.

    Leaving the block writes what is pending and removes the live lines: errors, results and
    interactive sessions come after it.
    """

    def __init__(
        self,
        stream: TextIO | None = None,
        *,
        live: bool | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._stream = stream or sys.stderr
        dumb = os.environ.get("TERM") == "dumb"
        self._live = (self._stream.isatty() and not dumb) if live is None else live
        self._clock = clock
        self._guard = threading.Lock()
        self._subjects: dict[str, _Subject] = {}
        self._pending: list[tuple[str, str]] = []
        self._open_line: tuple[str, str] | None = None
        self._wake = threading.Event()
        self._drawer: threading.Thread | None = None
        self._closed = False

    def __enter__(self) -> Display:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __call__(self, event: Event, /) -> None:
        with self._guard:
            if self._closed:
                return
            if not self._live:
                self._write_plainly(event)
                return
            self._note(event)
            if self._drawer is None:
                self._drawer = threading.Thread(target=self._draw, name="progress", daemon=True)
                self._drawer.start()

    def close(self) -> None:
        """Finish drawing. Idempotent; later events are dropped."""
        with self._guard:
            self._closed = True
            if self._open_line is not None:
                self._put("\n")
                self._open_line = None
        self._wake.set()
        if self._drawer is not None:
            self._drawer.join()

    def _begin(self, name: str, step: str) -> bool:
        """Note a step; whether it is no part of another one. Parts show while they last, and are not listed."""
        subject = self._subjects.setdefault(name, _Subject())
        subject.steps.append((step, self._clock()))
        subject.transferred, subject.reported = None, 0
        return len(subject.steps) == 1

    def _end(self, name: str, step: str) -> bool:
        """Forget a step, and its subject after the last; whether it was no part of another one."""
        subject = self._subjects.setdefault(name, _Subject())
        subject.steps = [found for found in subject.steps if found[0] != step]
        subject.transferred, subject.output = None, ""
        if subject.steps:
            return False
        del self._subjects[name]
        return True

    # --- on a terminal ----------------------------------------------------------------------------

    def _note(self, event: Event) -> None:
        match event:
            case StepStarted(name, step):
                self._begin(name, step)
            case StepDone(name, step, duration_s):
                if self._end(name, step):
                    self._pending.append(
                        (f"{without_escapes(name)}: {without_escapes(step)}", f"{duration_s:.1f} s")
                    )
            case Transferred(name):
                self._subjects.setdefault(name, _Subject()).transferred = event
            case OutputLine(name, line):
                self._subjects.setdefault(name, _Subject()).output = without_escapes(line)
            case Notice(message):
                self._pending.append((f"note: {without_escapes(message)}", ""))

    def _draw(self) -> None:
        from rich.console import Console
        from rich.live import Live

        class PatientConsole(Console):
            def on_broken_pipe(self) -> None:
                """rich would redirect stdout and exit; all that is gone is the place to draw on."""
                self.quiet = True

        console = PatientConsole(
            file=self._stream, force_terminal=True, highlight=False, markup=False, emoji=False
        )
        live = Live(
            get_renderable=lambda: self._picture(console),
            console=console,
            auto_refresh=False,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        try:
            with live:
                while not self._wake.wait(INTERVAL_S):
                    self._print_pending(live)
                    live.refresh()
                self._print_pending(live)
                with self._guard:
                    self._subjects.clear()
                live.refresh()
        except OSError:
            return  # the terminal is gone; the work goes on

    def _print_pending(self, live: Live) -> None:
        from rich.text import Text

        with self._guard:
            pending, self._pending = self._pending, []
        for text, duration in pending:
            line = Text(text, style="" if duration else "bold")
            line.append(f"  {duration}" if duration else "", style="dim")
            live.console.print(line, overflow="fold")

    def _picture(self, console: Console) -> RenderableType:
        from rich.console import Group
        from rich.text import Text

        frames = ASCII_FRAMES if console.options.ascii_only else FRAMES
        now = self._clock()
        lines: list[Text] = []
        with self._guard:
            width = max((len(name) for name in self._subjects), default=0)
            for name, subject in self._subjects.items():
                step, since = subject.steps[-1] if subject.steps else ("", now)
                if subject.transferred is not None:
                    step = subject.transferred.step
                line = Text(no_wrap=True, overflow="ellipsis")
                line.append(f"{frames[int(now / INTERVAL_S) % len(frames)]} ", style="cyan")
                line.append(without_escapes(name).ljust(width), style="bold")
                line.append(f"  {without_escapes(step)}")
                if subject.transferred is not None:
                    line.append(f"  {_amount(subject.transferred)}")
                line.append(f"  {now - since:.0f} s" if subject.steps else "")
                if subject.output:
                    line.append(f"  {subject.output}", style="dim")
                lines.append(line)
        return Group(*lines)

    # --- elsewhere --------------------------------------------------------------------------------

    def _write_plainly(self, event: Event) -> None:
        """A step is "fix-1: boot ... done in 39.1 s": its begin is written at once, and its end on the same
        line where nothing came between."""
        match event:
            case StepStarted(name, step):
                if self._begin(name, step):
                    self._put_line(f"{without_escapes(name)}: {without_escapes(step)} ...", end="")
                    self._open_line = (name, step)
            case StepDone(name, step, duration_s):
                if not self._end(name, step):
                    return
                if self._open_line == (name, step):
                    self._put(f" done in {duration_s:.1f} s\n")
                    self._open_line = None
                else:
                    self._put_line(
                        f"{without_escapes(name)}: {without_escapes(step)} ... done in {duration_s:.1f} s"
                    )
            case Transferred(name, step, done_bytes, total_bytes):
                subject = self._subjects.setdefault(name, _Subject())
                part = (
                    100 * done_bytes // total_bytes // PLAIN_SHARE
                    if total_bytes
                    else done_bytes // PLAIN_BYTES
                )
                if part > subject.reported:
                    subject.reported = part
                    self._put_line(f"{without_escapes(name)}: {without_escapes(step)}: {_amount(event)}")
            case OutputLine(name, line):
                self._put_line(f"{without_escapes(name)} | {without_escapes(line)}")
            case Notice(message):
                self._put_line(f"note: {without_escapes(message)}")

    def _put_line(self, text: str, *, end: str = "\n") -> None:
        if self._open_line is not None:
            self._open_line = None
            self._put("\n")
        self._put(text + end)

    def _put(self, text: str) -> None:
        try:
            self._stream.write(text)
            self._stream.flush()
        except OSError:
            self._closed = True  # nobody reads it any more; the work goes on


class Notices:
    """A Progress that writes notices alone: for sessions, which own the terminal."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._plain = Display(stream, live=False)

    def __call__(self, event: Event, /) -> None:
        if isinstance(event, Notice):
            self._plain(event)


def _amount(transferred: Transferred) -> str:
    done = size(transferred.done_bytes)
    if not transferred.total_bytes:
        return done
    share = min(100, 100 * transferred.done_bytes // transferred.total_bytes)
    return f"{share} % of {size(transferred.total_bytes)}"
