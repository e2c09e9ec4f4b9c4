"""`cp` with places on this computer and in machines that are local directories."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from agent_swarm.config import Config
from agent_swarm.errors import MachineError, NotFoundError, UsageError
from agent_swarm.guest.copy import Address, Place, copy, parse_place
from agent_swarm.guest.target import Target
from agent_swarm.model import EnvironmentId, LocalEndpoint
from agent_swarm.paths import Paths

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("fix-1:src/a b", Address("fix-1", "src/a b")),
        ("fix-1:", Address("fix-1", "")),
        ("fix-1:a:b", Address("fix-1", "a:b")),
        ("./a:b", Address(None, "./a:b")),
        ("/tmp/a:b", Address(None, "/tmp/a:b")),
        ("plain", Address(None, "plain")),
        (":x", Address(None, ":x")),
        ("-x:y", Address(None, "-x:y")),
    ],
)
def test_a_machine_s_name_stands_before_the_first_colon(text: str, expected: Address) -> None:
    assert parse_place(text) == expected


def test_an_empty_place_is_refused() -> None:
    with pytest.raises(UsageError, match="empty path"):
        parse_place("")


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    return Paths.at(tmp_path / "state")


def machine(tmp_path: Path, name: str) -> tuple[Target, Path]:
    root = tmp_path / name
    root.mkdir()
    return Target(EnvironmentId("0123456789ab"), f"task {name}", f"{name}.swarm", LocalEndpoint(root)), root


def test_a_file_goes_in_and_comes_back(tmp_path: Path, paths: Paths) -> None:
    target, root = machine(tmp_path, "one")
    source = tmp_path / "it's a * file"
    source.write_bytes(b"content\0")
    source.chmod(0o750)
    copy(paths, Config(), Place(None, str(source)), Place(target, "kept: it"))
    assert (root / "kept: it").read_bytes() == b"content\0"
    assert (root / "kept: it").stat().st_mode & 0o777 == 0o750
    copy(paths, Config(), Place(target, "kept: it"), Place(None, str(tmp_path / "back")))
    assert (tmp_path / "back").read_bytes() == b"content\0"


def test_a_directory_goes_into_one_that_exists_and_becomes_one_that_does_not(
    tmp_path: Path, paths: Paths
) -> None:
    target, root = machine(tmp_path, "one")
    tree = tmp_path / "tree"
    (tree / "deep").mkdir(parents=True)
    (tree / "deep" / "leaf").write_text("x")
    copy(paths, Config(), Place(None, str(tree)), Place(target, ""))
    assert (root / "tree" / "deep" / "leaf").read_text() == "x"
    copy(paths, Config(), Place(None, str(tree)), Place(target, "new"))
    assert (root / "new" / "deep" / "leaf").read_text() == "x"


def test_from_machine_to_machine(tmp_path: Path, paths: Paths) -> None:
    one, root_of_one = machine(tmp_path, "one")
    two, root_of_two = machine(tmp_path, "two")
    (root_of_one / "a").write_text("x")
    copy(paths, Config(), Place(one, "a"), Place(two, "b"))
    assert (root_of_two / "b").read_text() == "x"


@pytest.mark.parametrize("path", ["/etc/x", "etc/x", "../../etc/x", "/../etc/x", "~/etc/x"])
def test_no_path_leaves_the_machine_s_directory(tmp_path: Path, paths: Paths, path: str) -> None:
    target, root = machine(tmp_path, "one")
    (root / "etc").mkdir()
    source = tmp_path / "source"
    source.write_text("x")
    copy(paths, Config(), Place(None, str(source)), Place(target, path))
    assert (root / "etc" / "x").read_text() == "x"


def test_a_missing_source_is_named(tmp_path: Path, paths: Paths) -> None:
    target, _ = machine(tmp_path, "one")
    with pytest.raises(NotFoundError, match="there is no task one:nothing"):
        copy(paths, Config(), Place(target, "nothing"), Place(None, str(tmp_path)))
    with pytest.raises(NotFoundError, match=r"there is no .*/nothing"):
        copy(paths, Config(), Place(None, str(tmp_path / "nothing")), Place(target, ""))


def test_a_copy_that_fails_says_why(tmp_path: Path, paths: Paths) -> None:
    target, root = machine(tmp_path, "one")
    (root / "file").write_text("x")
    with pytest.raises(MachineError, match="could not be copied") as caught:
        copy(paths, Config(), Place(target, "file"), Place(target, "no/such/directory"))
    assert "No such file or directory" in caught.value.details
