"""What progress looks like, on a terminal and elsewhere."""

from __future__ import annotations

import io
import threading

import pytest

from agent_swarm.cli.progress import Display, Notices
from agent_swarm.events import Notice, OutputLine, StepDone, StepStarted, Transferred

MIB = 1024 * 1024


class Gone(io.StringIO):
    """A stream whose reader went away."""

    def write(self, text):
        raise BrokenPipeError

    def flush(self):
        raise BrokenPipeError


def plain(*events):
    stream = io.StringIO()
    with Display(stream, live=False) as display:
        for event in events:
            display(event)
    return stream.getvalue()


def live(*events):
    stream = io.StringIO()
    with Display(stream, live=True, clock=lambda: 0.0) as display:
        for event in events:
            display(event)
    return stream.getvalue()


def test_a_step_is_one_line():
    assert (
        plain(StepStarted("fix-1", "boot"), StepDone("fix-1", "boot", 39.14))
        == "fix-1: boot ... done in 39.1 s\n"
    )


def test_steps_of_several_machines_do_not_share_a_line():
    shown = plain(
        StepStarted("fix-1", "boot"),
        StepStarted("fix-2", "boot"),
        StepDone("fix-1", "boot", 1.0),
        StepDone("fix-2", "boot", 2.0),
    )
    assert shown.splitlines() == [
        "fix-1: boot ...",
        "fix-2: boot ...",
        "fix-1: boot ... done in 1.0 s",
        "fix-2: boot ... done in 2.0 s",
    ]


def test_parts_of_a_step_are_not_listed():
    shown = plain(
        StepStarted("fix-1", "make machine"),
        StepStarted("fix-1", "copy the disk"),
        StepDone("fix-1", "copy the disk", 1.0),
        StepDone("fix-1", "make machine", 2.0),
    )
    assert shown == "fix-1: make machine ... done in 2.0 s\n"


def test_a_step_that_ends_badly_leaves_a_whole_line_for_the_error():
    assert plain(StepStarted("fix-1", "boot")) == "fix-1: boot ...\n"


def test_a_transfer_is_told_in_steps_of_ten_percent():
    events = [Transferred("ubuntu:24.04", "download", done * MIB, 100 * MIB) for done in range(101)]
    lines = plain(*events).splitlines()
    assert len(lines) == 10
    assert lines[-1] == "ubuntu:24.04: download: 100 % of 100 MiB"


def test_a_transfer_of_unknown_size_is_told_in_bytes():
    assert plain(Transferred("x", "download", 70 * MIB, None)) == "x: download: 70.0 MiB\n"


@pytest.mark.parametrize("draw", [plain, live])
def test_guests_cannot_send_control_characters(draw):
    shown = draw(
        StepStarted("web", "run setup.sh"),
        OutputLine("web", "\x1b]0;title\x07\x1b[31mred\x1b[0m \x00\x9b"),
        Notice("told \x1b[2J by \x08 a guest"),
    )
    assert "title" not in shown
    assert "\x08" not in shown
    assert "\x00" not in shown
    assert "\x9b" not in shown
    assert "\x1b[31m" not in shown
    assert "\x1b[2J" not in shown


def test_a_terminal_keeps_the_finished_steps_and_removes_the_live_lines():
    shown = live(
        StepStarted("fix-1", "boot"), StepDone("fix-1", "boot", 39.1), StepStarted("fix-1", "connect")
    )
    assert "fix-1: boot" in shown
    assert "39.1 s" in shown
    assert shown.endswith("\r\x1b[2K\x1b[?25h\r\x1b[1A\x1b[2K") or "\r\x1b[2K\x1b[?25h" in shown


def test_what_came_just_before_the_end_is_still_drawn():
    assert "the last word" in live(Notice("the last word"))


def test_nothing_is_drawn_before_the_first_event():
    assert live() == ""
    assert plain() == ""


@pytest.mark.parametrize("is_live", [True, False])
def test_a_terminal_that_is_gone_stops_nothing(is_live):
    with Display(Gone(), live=is_live) as display:
        for _ in range(3):
            display(StepStarted("fix-1", "boot"))
            display(StepDone("fix-1", "boot", 1.0))


def test_a_slow_terminal_delays_no_work():
    released = threading.Event()

    class Slow(io.StringIO):
        def write(self, text):
            assert released.wait(30)
            return super().write(text)

    stream = Slow()
    with Display(stream, live=True) as display:
        for number in range(1000):
            display(StepStarted("fix-1", f"step {number}"))
            display(StepDone("fix-1", f"step {number}", 0.0))
        released.set()  # reached although nothing was written so far
    assert "step 999" in stream.getvalue()


def test_events_from_many_threads_are_all_told():
    stream = io.StringIO()
    with Display(stream, live=False) as display:

        def work(name):
            for number in range(100):
                display(StepStarted(name, str(number)))
                display(StepDone(name, str(number), 1.0))

        threads = [threading.Thread(target=work, args=(f"fix-{number}",)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert stream.getvalue().count("done in") == 800


def test_events_after_the_end_are_dropped():
    stream = io.StringIO()
    with Display(stream, live=False) as display:
        pass
    display(Notice("too late"))
    assert stream.getvalue() == ""


def test_sessions_see_notices_alone():
    stream = io.StringIO()
    progress = Notices(stream)
    progress(StepStarted("fix-1", "boot"))
    progress(Notice("something"))
    assert stream.getvalue() == "note: something\n"
