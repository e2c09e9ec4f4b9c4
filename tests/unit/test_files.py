from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from agent_swarm import files

if TYPE_CHECKING:
    from pathlib import Path


def test_an_atomic_write_replaces_the_file_and_makes_it_private(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    path.chmod(0o644)
    files.write_atomically(path, b"new")
    assert path.read_bytes() == b"new"
    assert path.stat().st_mode & 0o777 == 0o600


def test_an_atomic_write_never_changes_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with path.open("rb") as reader:
        files.write_atomically(path, b"new")
        assert reader.read() == b"old"


def test_an_atomic_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "directory"
    (path / "child").mkdir(parents=True)
    with pytest.raises(OSError, match="directory"):
        files.write_atomically(path, b"new")
    assert [found.name for found in tmp_path.iterdir()] == ["directory"]


def test_remove_tree_removes_what_is_there_and_is_silent_where_nothing_is(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    (tree / "a" / "b").mkdir(parents=True)
    (tree / "a" / "file").write_text("x")
    files.remove_tree(tree)
    files.remove_tree(tree)
    assert list(tmp_path.iterdir()) == []


def test_remove_tree_does_not_follow_symlinks(tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "file").write_text("x")
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "link").symlink_to(tmp_path / "kept")
    files.remove_tree(tmp_path / "tree")
    assert (tmp_path / "kept" / "file").read_text() == "x"


def test_remove_tree_removes_all_though_a_file_vanishes_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    for number in range(5):
        (tree / str(number)).write_text("x")
    unlink, calls = os.unlink, []

    def others_are_faster(path: str, *, dir_fd: int | None = None) -> None:
        calls.append(path)
        unlink(path, dir_fd=dir_fd)
        if len(calls) == 2:
            unlink(path, dir_fd=dir_fd)

    monkeypatch.setattr(os, "unlink", others_are_faster)
    files.remove_tree(tree)
    assert not tree.exists()


def test_allocated_bytes_counts_what_is_written_not_the_size(tmp_path: Path) -> None:
    sparse = tmp_path / "sparse"
    with sparse.open("wb") as stream:
        stream.truncate(1 << 30)
    assert files.allocated_bytes(sparse) < 1 << 20
    sparse.write_bytes(os.urandom(1 << 20))
    os.sync()
    assert files.allocated_bytes(sparse) >= 1 << 20


def test_allocated_bytes_of_a_directory_includes_all_below_but_not_what_links_lead_to(tmp_path: Path) -> None:
    (tmp_path / "outside").write_bytes(os.urandom(1 << 20))
    (tmp_path / "tree" / "a").mkdir(parents=True)
    (tmp_path / "tree" / "a" / "file").write_bytes(os.urandom(1 << 18))
    (tmp_path / "tree" / "link").symlink_to(tmp_path / "outside")
    os.sync()
    assert 1 << 18 <= files.allocated_bytes(tmp_path / "tree") < 1 << 20


def test_allocated_bytes_of_what_is_gone_is_zero(tmp_path: Path) -> None:
    assert files.allocated_bytes(tmp_path / "gone") == 0


MOUNTS = r"""
20 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
21 20 0:20 / /mnt/with\040space rw - nfs4 server:/x rw
22 20 0:21 / /mnt/Größe rw - xfs /dev/sdb rw
23 20 0:22 / /home rw shared:3 master:1 - btrfs /dev/sdc rw
24 23 0:23 / /home rw - fuse.sshfs me@host: rw
"""


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/etc", "ext4"),
        ("/mnt/with space/deep/er", "nfs4"),
        ("/mnt/Größe", "xfs"),
        ("/mnt/Größenwahn", "ext4"),
        ("/home/me", "fuse.sshfs"),
    ],
)
def test_the_file_system_of_a_path_is_that_of_the_last_longest_mount(
    tmp_path: Path, path: str, expected: str
) -> None:
    table = tmp_path / "mountinfo"
    table.write_text(MOUNTS.strip(), encoding="utf-8")
    assert files.file_system_type(type(tmp_path)(path), table) == expected


def test_the_file_system_is_unknown_without_a_mount_table(tmp_path: Path) -> None:
    assert files.file_system_type(tmp_path, tmp_path / "missing") == ""
