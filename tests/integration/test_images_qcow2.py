"""qcow2.py against the real qemu-img."""

from __future__ import annotations

import os
import subprocess
from typing import TYPE_CHECKING

import pytest

from agent_swarm.errors import ImageError
from agent_swarm.images import formats, qcow2

if TYPE_CHECKING:
    from pathlib import Path

MIB = 1 << 20


def make(
    path: Path, *, size: str = "16M", image_format: str = "qcow2", options: tuple[str, ...] = ()
) -> Path:
    subprocess.run(
        ["qemu-img", "create", "-q", "-f", image_format, *options, str(path), size], check=True, timeout=60
    )
    return path


def write(path: Path, pattern: int, *, offset: str = "0", length: str = "1M") -> None:
    subprocess.run(
        ["qemu-io", "-f", "qcow2", "-c", f"write -P {pattern} {offset} {length}", str(path)],
        check=True,
        timeout=60,
        capture_output=True,
    )


def holds(path: Path, pattern: int, *, offset: str = "0", length: str = "1M") -> bool:
    done = subprocess.run(
        ["qemu-io", "-r", "-f", "qcow2", "-c", f"read -P {pattern} {offset} {length}", str(path)],
        check=False,
        timeout=60,
        capture_output=True,
        text=True,
    )
    return done.returncode == 0 and "verification failed" not in done.stdout


def test_info_tells_format_size_and_backing_file(tmp_path: Path) -> None:
    found = qcow2.info(make(tmp_path / "base.qcow2"))
    assert (found.format, found.virtual_size_bytes, found.backing) == ("qcow2", 16 * MIB, None)


def test_info_never_probes_a_raw_file(tmp_path: Path) -> None:
    path = tmp_path / "disk.qcow2"
    path.write_bytes(bytes(MIB))
    assert qcow2.info(path).format == "raw"


def test_info_of_a_broken_header_is_an_image_error(tmp_path: Path) -> None:
    path = tmp_path / "x.qcow2"
    path.write_bytes(b"QFI\xfb" + bytes(100))
    with pytest.raises(ImageError, match=r"reading x\.qcow2 failed"):
        qcow2.info(path)


def test_an_overlay_reads_its_backing_file_and_keeps_its_writes_to_itself(tmp_path: Path) -> None:
    base = make(tmp_path / "base.qcow2")
    write(base, 1)
    overlay = tmp_path / "overlay.qcow2"
    qcow2.create_overlay(overlay, backing=base, size_bytes=None)
    assert holds(overlay, 1)
    write(overlay, 2)
    assert holds(overlay, 2)
    assert holds(base, 1)


def test_an_overlay_can_be_larger_than_its_backing_file(tmp_path: Path) -> None:
    overlay = tmp_path / "overlay.qcow2"
    qcow2.create_overlay(overlay, backing=make(tmp_path / "base.qcow2"), size_bytes=64 * MIB)
    assert qcow2.info(overlay).virtual_size_bytes == 64 * MIB


def test_an_overlay_smaller_than_its_backing_file_is_refused(tmp_path: Path) -> None:
    overlay = tmp_path / "overlay.qcow2"
    with pytest.raises(ImageError, match="too small") as caught:
        qcow2.create_overlay(overlay, backing=make(tmp_path / "base.qcow2"), size_bytes=MIB)
    assert "at least 1 GiB" in caught.value.hint
    assert not overlay.exists()


def test_the_state_directory_can_be_moved(tmp_path: Path) -> None:
    (tmp_path / "home/images").mkdir(parents=True)
    (tmp_path / "home/tasks").mkdir()
    base = make(tmp_path / "home/images/base.qcow2")
    write(base, 7)
    qcow2.create_overlay(tmp_path / "home/tasks/disk.qcow2", backing=base, size_bytes=None)
    (tmp_path / "home").rename(tmp_path / "moved")
    assert holds(tmp_path / "moved/tasks/disk.qcow2", 7)
    assert qcow2.info(tmp_path / "moved/tasks/disk.qcow2").backing == "../images/base.qcow2"


def test_names_that_look_like_protocols_and_options_are_names(tmp_path: Path) -> None:
    base = make(tmp_path / "base.qcow2").rename(tmp_path / "nbd:x,y=json:{}")
    overlay = tmp_path / "a:b, c.qcow2"
    qcow2.create_overlay(overlay, backing=base, size_bytes=None)
    assert holds(overlay, 0)
    assert qcow2.info(overlay).backing == "./nbd:x,y=json:{}"


def test_an_existing_disk_is_never_overwritten(tmp_path: Path) -> None:
    base, overlay = make(tmp_path / "base.qcow2"), tmp_path / "overlay.qcow2"
    overlay.write_bytes(b"precious")
    with pytest.raises(ImageError, match="exists already"):
        qcow2.create_overlay(overlay, backing=base, size_bytes=None)
    assert overlay.read_bytes() == b"precious"


def test_a_missing_backing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"gone\.qcow2 is missing"):
        qcow2.create_overlay(tmp_path / "x.qcow2", backing=tmp_path / "gone.qcow2", size_bytes=None)


def test_a_backing_file_that_is_not_qcow2_is_refused(tmp_path: Path) -> None:
    raw = tmp_path / "raw.img"
    raw.write_bytes(bytes(MIB))
    with pytest.raises(ImageError, match="not qcow2"):
        qcow2.create_overlay(tmp_path / "x.qcow2", backing=raw, size_bytes=None)


def test_a_failed_overlay_leaves_nothing(tmp_path: Path) -> None:
    base = make(tmp_path / "base.qcow2")
    with pytest.raises(ImageError, match=r"creating .*missing"):
        qcow2.create_overlay(tmp_path / "gone" / "missing.qcow2", backing=base, size_bytes=None)
    assert list(tmp_path.iterdir()) == [base]


def test_a_disk_is_private(tmp_path: Path) -> None:
    overlay = tmp_path / "overlay.qcow2"
    qcow2.create_overlay(overlay, backing=make(tmp_path / "base.qcow2"), size_bytes=None)
    assert overlay.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    ("image_format", "options"),
    [
        ("vmdk", ()),
        ("vmdk", ("-o", "subformat=streamOptimized")),
        ("vhdx", ()),
        ("qcow2", ("-o", "compat=0.10")),
        ("qcow2", ("-o", "cluster_size=4k")),
    ],
)
def test_disks_of_every_format_are_converted_with_their_content(
    image_format: str, options: tuple[str, ...], tmp_path: Path
) -> None:
    content = tmp_path / "content.raw"
    content.write_bytes((b"\x05" * MIB + bytes(3 * MIB))[:510] + b"\x55\xaa" + b"\x05" * MIB + bytes(3 * MIB))
    os.truncate(content, 4 * MIB)
    source, target = tmp_path / f"source.{image_format}", tmp_path / "target.qcow2"
    subprocess.run(
        ["qemu-img", "convert", "-f", "raw", "-O", image_format, *options, str(content), str(source)],
        check=True,
        timeout=60,
    )
    found = formats.inspect_foreign(source)
    assert found == image_format
    qcow2.convert(source, target, source_format=found)
    subprocess.run(
        ["qemu-img", "compare", "-q", "-f", "raw", "-F", "qcow2", str(content), str(target)],
        check=True,
        timeout=60,
    )
    assert qcow2.info(target).backing is None


def test_a_real_overlay_from_outside_is_refused(tmp_path: Path) -> None:
    overlay = tmp_path / "overlay.qcow2"
    qcow2.create_overlay(overlay, backing=make(tmp_path / "base.qcow2"), size_bytes=None)
    with pytest.raises(ImageError, match="backing file"):
        formats.inspect_foreign(overlay)


def test_a_real_external_data_file_is_refused(tmp_path: Path) -> None:
    options = ("-o", f"data_file={tmp_path / 'data.raw'},data_file_raw=on")
    path = make(tmp_path / "x.qcow2", options=options)
    with pytest.raises(ImageError, match="external data file"):
        formats.inspect_foreign(path)


@pytest.mark.parametrize("subformat", ["monolithicFlat", "twoGbMaxExtentSparse"])
def test_a_real_vmdk_of_several_files_is_refused(tmp_path: Path, subformat: str) -> None:
    path = make(tmp_path / "x.vmdk", image_format="vmdk", options=("-o", f"subformat={subformat}"))
    with pytest.raises(ImageError, match="other files"):
        formats.inspect_foreign(path)


def test_a_real_vmdk_with_a_parent_is_refused(tmp_path: Path) -> None:
    parent = make(tmp_path / "parent.vmdk", image_format="vmdk")
    child = tmp_path / "child.vmdk"
    argv = ["qemu-img", "create", "-q", "-f", "vmdk", "-F", "vmdk", "-b", str(parent), str(child)]
    subprocess.run(argv, check=True, timeout=60)
    with pytest.raises(ImageError, match="parent disk"):
        formats.inspect_foreign(child)


def test_a_whole_disk_has_nothing_wrong(tmp_path: Path) -> None:
    path = make(tmp_path / "x.qcow2")
    write(path, 3)
    assert qcow2.check(path) == ""


def test_a_corrupt_disk_is_described(tmp_path: Path) -> None:
    path = make(tmp_path / "x.qcow2")
    write(path, 3)
    content = bytearray(path.read_bytes())
    table = int.from_bytes(content[40:48], "big")  # l1_table_offset
    content[table : table + 8] = (1 << 63 | 0x7FFF0000).to_bytes(8, "big")
    path.write_bytes(content)
    assert qcow2.check(path) != ""


def test_a_missing_or_foreign_disk_is_described(tmp_path: Path) -> None:
    assert "missing" in qcow2.check(tmp_path / "gone.qcow2")
    (tmp_path / "x.qcow2").write_bytes(b"no qcow2")
    assert qcow2.check(tmp_path / "x.qcow2") != ""
