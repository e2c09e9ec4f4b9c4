"""Reading a qcow2 file's header without a program: cheap enough for every `list`.

Source: https://www.qemu.org/docs/master/interop/qcow2.html ("Header"): magic, version, backing file offset
(8 bytes) and size (4 bytes), all big-endian.
"""

from __future__ import annotations

import os
import struct
from pathlib import Path

MAGIC = b"QFI\xfb"
HEADER = struct.Struct(">4sIQI")
SIZE_AT = 24
"""Offset of the virtual size, 8 bytes."""
BACKING_NAME_MAX_BYTES = 1023
CLUSTER_MAX_BYTES = 1 << 21
"""The backing file's name is in the first cluster, as QEMU demands, too."""
LONGEST_CHAIN = 256


class Chain:
    """Walks backing chains; reads each header once for as long as its file is the same, since chains share files.

    Names are plain strings here: with 1,000 machines, making `Path`s took longer than reading the files.
    """

    def __init__(self) -> None:
        self._seen: dict[tuple[int, int, int, int], str | None] = {}

    def problem(self, disk: str | os.PathLike[str]) -> str:
        """Why the disk, or a file that it builds on, cannot be used; "" where all headers are good."""
        path = os.fspath(disk)
        for _ in range(LONGEST_CHAIN):
            try:
                backing = self.backing(path)
            except FileNotFoundError:
                return f"{_name(path)} is missing"
            except (OSError, ValueError) as error:
                return f"{_name(path)} is damaged: {error}"
            if backing is None:
                return ""
            path = os.path.join(os.path.dirname(path), backing)  # noqa: PTH118, PTH120 - see above
        return f"{_name(disk)} builds on more than {LONGEST_CHAIN} files"

    def backing(self, path: str | os.PathLike[str]) -> str | None:
        """The name of the file that a qcow2 file builds on, as written in it; None where it stands alone.

        Raises OSError where it cannot be read, ValueError where it is no qcow2 file.
        """
        found = os.stat(path)  # noqa: PTH116 - see above
        identity = (found.st_dev, found.st_ino, found.st_mtime_ns, found.st_size)
        if identity not in self._seen:
            self._seen[identity] = read_backing(path)
        return self._seen[identity]


def read_backing(path: str | os.PathLike[str]) -> str | None:
    """As `Chain.backing`, always from the file."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        head = os.pread(descriptor, HEADER.size, 0)
        if len(head) < HEADER.size or not head.startswith(MAGIC):
            message = "it is not a qcow2 file"
            raise ValueError(message)
        _, version, offset, size = HEADER.unpack(head)
        if version not in (2, 3) or size > BACKING_NAME_MAX_BYTES or offset > CLUSTER_MAX_BYTES:
            message = "its qcow2 header is not valid"
            raise ValueError(message)
        if offset == 0:
            return None
        name = os.pread(descriptor, size, offset)
    finally:
        os.close(descriptor)
    if len(name) < size:
        message = "its qcow2 header is cut off"
        raise ValueError(message)
    return name.decode("utf-8", "surrogateescape")


def virtual_size(path: Path) -> int:
    """The size of the disk that a qcow2 file is, in bytes. Raises OSError, ValueError."""
    with path.open("rb") as stream:
        head = stream.read(SIZE_AT + 8)
    if len(head) < SIZE_AT + 8 or not head.startswith(MAGIC):
        message = "it is not a qcow2 file"
        raise ValueError(message)
    return int.from_bytes(head[SIZE_AT:], "big")


def _name(path: str | os.PathLike[str]) -> str:
    return "/".join(Path(path).resolve().parts[-3:])
