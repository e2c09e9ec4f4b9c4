"""qcow2 headers, written by hand from the specification."""

from __future__ import annotations

import os
import struct

import pytest

from agent_swarm.providers.qemu.chain import Chain, read_backing


def write_header(path, backing: str | None = None, *, version: int = 3) -> None:
    name = (backing or "").encode()
    offset = 104 if backing is not None else 0
    header = struct.pack(">4sIQI", b"QFI\xfb", version, offset, len(name))
    path.write_bytes(header.ljust(104, b"\0") + name)


def test_a_chain_whose_files_are_all_there_has_no_problem(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "task").mkdir()
    write_header(tmp_path / "images" / "base")
    write_header(tmp_path / "task" / "disk", "../images/base")
    assert Chain().problem(tmp_path / "task" / "disk") == ""


def test_a_missing_disk_is_named(tmp_path):
    assert Chain().problem(tmp_path / "disk").endswith("disk is missing")


def test_a_missing_base_is_named(tmp_path):
    write_header(tmp_path / "disk", "base")
    assert Chain().problem(tmp_path / "disk").endswith("/base is missing")


@pytest.mark.parametrize(
    "content",
    [b"", b"QFI", b"\0" * 512, b"x" * 512, struct.pack(">4sIQI", b"QFI\xfb", 9, 0, 0).ljust(512, b"\0")],
    ids=["empty", "short", "zeros", "text", "version"],
)
def test_a_disk_that_is_no_qcow2_is_damaged(tmp_path, content):
    (tmp_path / "disk").write_bytes(content)
    assert "disk is damaged: " in Chain().problem(tmp_path / "disk")


def test_a_backing_name_of_absurd_length_is_damage(tmp_path):
    (tmp_path / "disk").write_bytes(struct.pack(">4sIQI", b"QFI\xfb", 3, 104, 1 << 30).ljust(512, b"\0"))
    assert "header is not valid" in Chain().problem(tmp_path / "disk")


def test_a_backing_name_beyond_any_file_is_damage(tmp_path):
    header = struct.pack(">4sIQI", b"QFI\xfb", 3, (1 << 64) - 1, 20)
    (tmp_path / "disk").write_bytes(header.ljust(512, b"\0"))
    assert "header is not valid" in Chain().problem(tmp_path / "disk")


def test_a_header_that_is_cut_off_is_damage(tmp_path):
    (tmp_path / "disk").write_bytes(struct.pack(">4sIQI", b"QFI\xfb", 3, 104, 20).ljust(110, b"\0"))
    assert "cut off" in Chain().problem(tmp_path / "disk")


def test_a_chain_that_bites_its_tail_ends(tmp_path):
    write_header(tmp_path / "disk", "disk")
    assert "more than" in Chain().problem(tmp_path / "disk")


def test_a_chain_sees_that_a_file_has_changed(tmp_path):
    chain = Chain()
    write_header(tmp_path / "disk")
    assert chain.problem(tmp_path / "disk") == ""
    (tmp_path / "disk").write_bytes(b"damaged")
    assert chain.problem(tmp_path / "disk") != ""


def test_a_file_that_chains_share_is_read_once_by_whatever_path(tmp_path):
    chain, base = Chain(), tmp_path / "base"
    write_header(base)
    for task in ("first", "second"):
        (tmp_path / task).mkdir()
        write_header(tmp_path / task / "disk", "../base")
    assert chain.problem(tmp_path / "first" / "disk") == ""
    times = base.stat().st_atime_ns, base.stat().st_mtime_ns
    base.write_bytes(b"x" * base.stat().st_size)  # that it is not seen shows that it is not read again
    os.utime(base, ns=times)
    assert chain.problem(tmp_path / "second" / "disk") == ""


def test_unreadable_is_damage_not_a_crash(tmp_path):
    (tmp_path / "disk").mkdir()
    assert "damaged" in Chain().problem(tmp_path / "disk")


def test_a_backing_name_of_any_bytes_is_kept(tmp_path):
    name = os.fsdecode(b"caf\xe9, base")
    content = struct.pack(">4sIQI", b"QFI\xfb", 3, 104, len(os.fsencode(name))).ljust(104, b"\0")
    (tmp_path / "disk").write_bytes(content + os.fsencode(name))
    assert read_backing(tmp_path / "disk") == name
