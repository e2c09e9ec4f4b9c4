from __future__ import annotations

import contextlib
import struct
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent_swarm.errors import ImageError
from agent_swarm.images import formats

if TYPE_CHECKING:
    from pathlib import Path

EXTENSION_DATA_FILE = 0x44415441


def qcow2_header(
    *, version: int = 3, backing: int = 0, crypt: int = 0, incompatible: int = 0, extensions: bytes = bytes(8)
) -> bytes:
    """A header as the qcow2 specification lays it out, big-endian."""
    head = struct.pack(">4sIQIIQI", b"QFI\xfb", version, backing, 0, 16, 1 << 30, crypt)
    return head.ljust(72, b"\0") + struct.pack(">QQQII", incompatible, 0, 0, 4, 104) + extensions + bytes(512)


def vmdk_header(*, capacity: int = 2048, descriptor: bytes = b"# Disk DescriptorFile\n") -> bytes:
    head = struct.pack("<4sIIQQQQ", b"KDMV", 1, 3, capacity, 128, 1, 20).ljust(512, b"\0")
    return head + descriptor.ljust(20 * 512, b"\0")


def mbr(*, at: int = 510, length: int = 4096) -> bytes:
    content = bytearray(length)
    content[at : at + 2] = b"\x55\xaa"
    return bytes(content)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (qcow2_header(), "qcow2"),
        (qcow2_header(version=2), "qcow2"),
        (vmdk_header(), "vmdk"),
        (b"vhdxfile" + bytes(600), "vhdx"),
        (mbr(), "raw"),
    ],
)
def test_a_self_contained_disk_is_told_by_its_first_bytes(
    content: bytes, expected: str, tmp_path: Path
) -> None:
    path = tmp_path / "misleading.vmdk.raw.qcow2"
    path.write_bytes(content)
    assert formats.inspect_foreign(path) == expected


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (qcow2_header(backing=200), "backing file"),
        (qcow2_header(version=2, backing=200), "backing file"),
        (qcow2_header(incompatible=4), "external data file"),
        (
            qcow2_header(extensions=struct.pack(">II8s", EXTENSION_DATA_FILE, 5, b"/etc/") + bytes(8)),
            "external data file",
        ),
        (qcow2_header(crypt=2), "encrypted"),
        (qcow2_header(version=9), "damaged"),
        (qcow2_header()[:80], "damaged"),
        (b"QFI\xfb", "damaged"),
        (vmdk_header(capacity=0), "other files"),
        (b'# Disk DescriptorFile\nRW 1 FLAT "/etc/shadow" 0\n' + bytes(512), "other files"),
        (vmdk_header(descriptor=b'# Disk DescriptorFile\nParentFileNameHint="/x"\n'), "parent disk"),
    ],
)
def test_an_image_that_refers_to_other_files_or_cannot_be_read_is_refused(
    content: bytes, reason: str, tmp_path: Path
) -> None:
    path = tmp_path / "hostile.img"
    path.write_bytes(content)
    with pytest.raises(ImageError, match=reason):
        formats.inspect_foreign(path)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"\x1f\x8b\x08" + bytes(1024), "gzip"),
        (b"\xfd7zXZ\0" + bytes(1024), "xz"),
        (bytes(0x8001) + b"CD001" + bytes(512), "ISO image"),
        (b"<html>404 not found</html>", "no disk image"),
        (b"", "no disk image"),
        (bytes(4096), "no disk image"),
    ],
)
def test_what_is_no_disk_is_refused_with_what_it_is(content: bytes, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)
    with pytest.raises(ImageError, match=reason) as caught:
        formats.inspect_foreign(path)
    assert caught.value.hint


def test_a_missing_file_is_an_image_error(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="cannot be read"):
        formats.detect(tmp_path / "gone")


@given(
    st.sampled_from([b"QFI\xfb\0\0\0\3", b"KDMV", b"vhdxfile", b"# Disk DescriptorFile", b""]),
    st.binary(max_size=1024),
)
def test_any_content_is_a_format_or_a_clean_error(
    tmp_path_factory: pytest.TempPathFactory, magic: bytes, rest: bytes
) -> None:
    path = tmp_path_factory.mktemp("any") / "file"
    path.write_bytes(magic + rest)
    with contextlib.suppress(ImageError):
        assert formats.inspect_foreign(path) in ("qcow2", "vmdk", "vhdx", "raw")
