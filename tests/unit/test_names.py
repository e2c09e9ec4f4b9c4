from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent_swarm.errors import UsageError
from agent_swarm.model import validate_name


@pytest.mark.parametrize("name", ["a", "fix-1", "Fix_2.0", "0", "a" * 63, "v1.2.3"])
def test_allowed_names(name: str) -> None:
    assert validate_name(name) == name


@pytest.mark.parametrize(
    "name",
    [
        "",
        "-x",
        ".x",
        "_x",
        "../x",
        "a/b",
        "a..b",
        "a.",
        "a.lock",
        "a b",
        "a\n",
        "a\x1b[2J",
        "é",
        "a" * 64,
        "a" * 300,
        "$HOME",
        "a\x00",
    ],
)
def test_refused_names(name: str) -> None:
    with pytest.raises(UsageError, match="is not a valid name") as caught:
        validate_name(name)
    assert "Use 1 to 63" in caught.value.hint


def test_a_refusal_says_what_kind_of_name_and_shows_it_short_and_printable() -> None:
    with pytest.raises(UsageError) as caught:
        validate_name("\x1b" * 300, what="task name")
    assert caught.value.message.endswith("is not a valid task name")
    assert caught.value.message.isprintable()
    assert len(caught.value.message) < 200


@given(st.text(max_size=70))
def test_every_allowed_name_is_one_path_component_and_one_shell_word(name: str) -> None:
    try:
        validate_name(name)
    except UsageError:
        return
    assert re.fullmatch(r"[A-Za-z0-9._-]+", name)
    assert name not in {".", ".."}
    assert not name.startswith("-")
