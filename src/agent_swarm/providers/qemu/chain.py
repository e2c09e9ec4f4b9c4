"""Reading a qcow2 file's header without a program: cheap enough for every `list`.

Source: https://www.qemu.org/docs/master/interop/qcow2.html ("Header"): magic, version, backing file offset
(8 bytes) and size (4 bytes), all big-endian.
"""

from __future__ import annotations

import struct
from pathlib import Path

MAGIC = b"QFI\xfb"
HEADER = struct.Struct(">4sIQI")
BACKING_NAME_MAX_BYTES = 1023
LONGEST_CHAIN = 256


class Chain:
    """Walks backing chains; remembers each header by the file's identity and time, since chains share files."""

    def __init__(self) -> None:
        self._seen: dict[Path, tuple[tuple[int, int, int], str | None]] = {}

    def problem(self, disk: Path) -> str:
        """Why the disk, or a file that it builds on, cannot be used; "" where all headers are good."""
        path = disk
        for _ in range(LONGEST_CHAIN):
            try:
                backing = self.backing(path)
            except FileNotFoundError:
                return f"{_name(path)} is missing"
            except (OSError, ValueError) as error:
                return f"{_name(path)} is damaged: {error}"
            if backing is None:
                return ""
            path = Path(path.parent, backing)
        return f"{_name(disk)} builds on more than {LONGEST_CHAIN} files"

    def backing(self, path: Path) -> str | None:
        """The name of the file that a qcow2 file builds on, as written in it; None where it stands alone.

        Raises OSError where it cannot be read, ValueError where it is no qcow2 file.
        """
        found = path.stat()
        identity = (found.st_ino, found.st_mtime_ns, found.st_size)
        seen = self._seen.get(path)
        if seen is None or seen[0] != identity:
            seen = self._seen[path] = (identity, read_backing(path))
        return seen[1]


def read_backing(path: Path) -> str | None:
    """As `Chain.backing`, always from the file."""
    with path.open("rb") as stream:
        head = stream.read(HEADER.size)
        if len(head) < HEADER.size or not head.startswith(MAGIC):
            message = "it is not a qcow2 file"
            raise ValueError(message)
        _, version, offset, size = HEADER.unpack(head)
        if version not in (2, 3) or size > BACKING_NAME_MAX_BYTES:
            message = "its qcow2 header is not valid"
            raise ValueError(message)
        if offset == 0:
            return None
        stream.seek(offset)
        name = stream.read(size)
    if len(name) < size:
        message = "its qcow2 header is cut off"
        raise ValueError(message)
    return name.decode("utf-8", "surrogateescape")


def _name(path: Path) -> str:
    return "/".join(Path(path).resolve().parts[-3:])
