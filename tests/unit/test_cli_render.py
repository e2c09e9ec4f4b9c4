"""Tables, facts and errors: what fits, and what never reaches a terminal."""

from __future__ import annotations

import io
import unicodedata
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent_swarm.cli import render
from agent_swarm.errors import SwarmError

COLUMNS = (
    render.Column("NAME", least=13),
    render.Column("STATUS", colour=render.status_colour),
    render.Column("PROJECT", rank=1),
    render.Column("CPUS", rank=2, right=True),
)
ROWS = [("fix-1", "running", "web", "2"), ("a-longer-name", "stopped", "web", "16")]


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def terminal(monkeypatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")

    def of_width(columns):
        monkeypatch.setenv("COLUMNS", str(columns))
        return Terminal()

    return of_width


def test_columns_stand_below_their_titles():
    assert list(render.table(COLUMNS, ROWS, io.StringIO())) == [
        "NAME           STATUS   PROJECT  CPUS",
        "fix-1          running  web         2",
        "a-longer-name  stopped  web        16",
    ]


def test_a_table_without_rows_is_its_heading():
    assert list(render.table(COLUMNS, [], io.StringIO())) == ["NAME  STATUS  PROJECT  CPUS"]


@pytest.mark.parametrize(("columns", "titles"), [(37, 4), (36, 3), (31, 3), (30, 2)])
def test_a_narrow_terminal_loses_the_least_important_columns_first(terminal, monkeypatch, columns, titles):
    monkeypatch.setenv("NO_COLOR", "1")
    heading = next(iter(render.table(COLUMNS, ROWS, terminal(columns))))
    assert heading.split() == ["NAME", "STATUS", "PROJECT", "CPUS"][:titles]


def test_a_cell_is_shortened_where_leaving_out_is_not_enough(terminal, monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    lines = list(render.table(COLUMNS, ROWS, terminal(18)))
    assert lines[2] == "a-longer…  stopped"


def test_nothing_is_cut_off_a_terminal(monkeypatch):
    monkeypatch.setenv("COLUMNS", "10")
    assert "a-longer-name  stopped  web        16" in list(render.table(COLUMNS, ROWS, io.StringIO()))


words = st.text(max_size=60)


@settings(deadline=None)
@given(st.lists(st.tuples(words, words, words, words), max_size=5), st.integers(20, 200))
def test_no_line_is_wider_than_the_terminal_and_none_holds_a_control_character(rows, columns):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COLUMNS", str(columns))
        patch.setenv("NO_COLOR", "1")
        some = (
            render.Column("NAME", least=12),
            render.Column("STATUS", least=12),
            render.Column("PROJECT", rank=1),
            render.Column("WHY", rank=2, least=12),
        )
        for line in render.table(some, rows, Terminal()):
            assert not any(unicodedata.category(character).startswith("C") for character in line)
            assert render.cell_width(line) <= columns


def test_colour_is_given_to_a_terminal_alone(terminal):
    assert "\x1b[32mrunning\x1b[0m" in "\n".join(render.table(COLUMNS, ROWS, terminal(80)))
    assert "\x1b" not in "\n".join(render.table(COLUMNS, ROWS, io.StringIO()))


@pytest.mark.parametrize(("name", "value"), [("NO_COLOR", ""), ("NO_COLOR", "1"), ("TERM", "dumb")])
def test_colour_is_left_out_where_the_environment_says_so(terminal, monkeypatch, name, value):
    stream = terminal(80)
    monkeypatch.setenv(name, value)
    assert "\x1b" not in "\n".join(render.table(COLUMNS, ROWS, stream))


def test_wide_characters_count_twice():
    assert render.cell_width("日本") == 4
    assert render.shortened("日本語の名前", 7) == "日本語…"


def test_an_error_says_what_why_and_what_next_and_is_safe_to_print():
    error = SwarmError("it \x1b]0;evil\x07broke", details="line 1\x1b[2J\nline 2\x00", hint="Try \x9bmore.")
    assert list(render.error_lines(error, io.StringIO())) == [
        "error: it \\x1b]0;evil\\x07broke",
        "  line 1",
        "  line 2\\x00",
        "hint: Try \\x9bmore.",
    ]


def test_console_lines_lose_colours_and_overwritten_text():
    assert render.without_escapes("[\x1b[0;32m  OK  \x1b[0m] Reached target\r\n") == "[  OK  ] Reached target"
    assert render.without_escapes("10 %\r50 %\rdone\n") == "done"


def test_facts_leave_out_what_is_empty_and_align_the_rest():
    pairs = [("task", "fix-1"), ("reason", ""), ("ssh", "one\ntwo")]
    assert list(render.facts(pairs, io.StringIO())) == ["task:  fix-1", "ssh:   one", "       two"]


@pytest.mark.parametrize(
    ("seconds", "text"), [(-5, "0s"), (0, "0s"), (59, "59s"), (60, "1m"), (7200, "2h"), (3 * 86_400, "3d")]
)
def test_an_age_is_given_in_its_largest_unit(seconds, text):
    now = datetime(2026, 7, 1, tzinfo=UTC)
    assert render.age(now - timedelta(seconds=seconds), now) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (None, "-"),
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (200 * 2**20, "200 MiB"),
        (3 * 2**40, "3.0 TiB"),
    ],
)
def test_sizes_are_short(count, text):
    assert render.size(count) == text
