"""`cp` with real machines: files and directories, both ways and between two, and odd names."""

from __future__ import annotations

import hashlib
import os
import secrets
import tempfile
from typing import TYPE_CHECKING

import pytest

from agent_swarm.config import Config
from agent_swarm.errors import MachineError, NotFoundError
from agent_swarm.guest import connection, session
from agent_swarm.guest.copy import Place, copy

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from agent_swarm.guest.target import Target
    from agent_swarm.paths import Paths

pytestmark = pytest.mark.machine

ODD_NAMES = [
    "plain",
    "with space",
    "it's",
    'dou"ble',
    "star*",
    "que?ry",
    "[a]b",
    "back\\slash",
    "$HOME",
    "a:b",
    "ünï",
    "~",
    "-rf",
    "new\nline",
]


@pytest.fixture
def folder(guest_paths: Paths, guest_target: Target) -> Iterator[str]:
    """A fresh directory in the machine's home, and in the second one's."""
    name = f"copy-{secrets.token_hex(4)}"
    said(guest_paths, guest_target, "mkdir", name)
    yield name
    said(guest_paths, guest_target, "rm", "-rf", name)


def said(paths: Paths, target: Target, *argv: str) -> bytes:
    with tempfile.TemporaryFile() as out, open(os.devnull, "rb") as nothing:  # noqa: PTH123
        code = session.run(paths, Config(), target, argv, stdin=nothing.fileno(), stdout=out.fileno())
        assert code == 0
        out.seek(0)
        return out.read()


def test_a_file_arrives_whole_with_its_mode_and_time(
    guest_paths: Paths, guest_target: Target, folder: str, tmp_path: Path
) -> None:
    data = os.urandom(5_000_000)
    source = tmp_path / "data"
    source.write_bytes(data)
    source.chmod(0o741)
    os.utime(source, (1_000_000_000, 1_000_000_000))
    copy(guest_paths, Config(), Place(None, str(source)), Place(guest_target, f"{folder}/data"))
    there = said(guest_paths, guest_target, "sh", "-c", f"cd {folder}; stat -c '%a %Y' data; sha256sum <data")
    assert there.decode().split()[:3] == ["741", "1000000000", hashlib.sha256(data).hexdigest()]
    copy(guest_paths, Config(), Place(guest_target, f"{folder}/data"), Place(None, str(tmp_path / "back")))
    assert (tmp_path / "back").read_bytes() == data
    assert (tmp_path / "back").stat().st_mode & 0o777 == 0o741


@pytest.mark.parametrize("name", ODD_NAMES)
def test_names_are_literal_both_ways(
    guest_paths: Paths,
    guest_target: Target,
    folder: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).write_text(name)
    said(guest_paths, guest_target, "sh", "-c", 'cd "$1" && touch star1 query ab', "sh", folder)
    copy(guest_paths, Config(), Place(None, name), Place(guest_target, f"{folder}/{name}"))
    assert said(guest_paths, guest_target, "cat", f"{folder}/{name}") == name.encode()
    (tmp_path / "back").mkdir()
    copy(guest_paths, Config(), Place(guest_target, f"{folder}/{name}"), Place(None, "back"))
    assert {found.name: found.read_text() for found in (tmp_path / "back").iterdir()} == {name: name}


def test_a_directory_goes_into_one_that_exists_and_becomes_one_that_does_not(
    guest_paths: Paths, guest_target: Target, folder: str, tmp_path: Path
) -> None:
    (tmp_path / "tree" / "deep").mkdir(parents=True)
    (tmp_path / "tree" / "deep" / "leaf").write_text("x")
    here = Place(None, str(tmp_path / "tree"))
    copy(guest_paths, Config(), here, Place(guest_target, folder))
    copy(guest_paths, Config(), here, Place(guest_target, f"{folder}/new"))
    found = said(guest_paths, guest_target, "find", folder, "-type", "f").decode().split()
    assert sorted(found) == [f"{folder}/new/deep/leaf", f"{folder}/tree/deep/leaf"]
    copy(guest_paths, Config(), Place(guest_target, f"{folder}/new"), Place(None, str(tmp_path / "back")))
    assert (tmp_path / "back" / "deep" / "leaf").read_text() == "x"


def test_from_machine_to_machine(
    guest_paths: Paths, guest_target: Target, second_target: Target, folder: str
) -> None:
    said(guest_paths, guest_target, "sh", "-c", f"mkdir {folder}/a && echo x >{folder}/a/leaf")
    copy(guest_paths, Config(), Place(guest_target, f"{folder}/a"), Place(second_target, f"{folder}-b"))
    assert said(guest_paths, second_target, "cat", f"{folder}-b/leaf") == b"x\n"
    said(guest_paths, second_target, "rm", "-r", f"{folder}-b")


def test_an_empty_path_is_the_home_directory(
    guest_paths: Paths, guest_target: Target, tmp_path: Path
) -> None:
    name = f"copied-{secrets.token_hex(4)}"
    (tmp_path / name).write_text("x")
    copy(guest_paths, Config(), Place(None, str(tmp_path / name)), Place(guest_target, ""))
    assert said(guest_paths, guest_target, "cat", f"/home/worker/{name}") == b"x"
    said(guest_paths, guest_target, "rm", name)


def test_a_missing_source_is_named(guest_paths: Paths, guest_target: Target, tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=f"there is no {guest_target.label}:no/such file"):
        copy(guest_paths, Config(), Place(guest_target, "no/such file"), Place(None, str(tmp_path)))
    with pytest.raises(NotFoundError, match=r"there is no .*/nothing"):
        copy(guest_paths, Config(), Place(None, str(tmp_path / "nothing")), Place(guest_target, ""))


def test_a_copy_that_is_not_allowed_says_why(
    guest_paths: Paths, guest_target: Target, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(MachineError, match="could not be copied") as caught:
        copy(guest_paths, Config(), Place(None, str(tmp_path / "file")), Place(guest_target, "/etc/file"))
    assert "Permission denied" in caught.value.details


def test_copying_opens_the_connection_where_it_is_closed(
    guest_paths: Paths, guest_target: Target, tmp_path: Path
) -> None:
    connection.close(guest_paths, guest_target)
    copy(guest_paths, Config(), Place(guest_target, "/etc/hostname"), Place(None, str(tmp_path)))
    assert (tmp_path / "hostname").exists()
    assert connection.is_open(guest_paths, guest_target)
