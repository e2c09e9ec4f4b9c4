"""Small, careful file operations: atomic writes, private modes, checks of the file system."""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path


def write_atomically(path: Path, content: bytes, *, mode: int = 0o600) -> None:
    """Replace `path` by `content`: a reader, and a restart after a power cut, see the old or the new file.

    Raises OSError, and then leaves the old file as it was.
    """
    import tempfile

    descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fchmod(stream.fileno(), mode)
            os.fsync(stream.fileno())
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


def read_bytes(path: str | os.PathLike[str]) -> bytes:
    """The content of a small file. Cheaper than `Path.read_bytes`: `list` reads thousands. Raises OSError."""
    with open(path, "rb", buffering=0) as stream:  # noqa: PTH123 - see above
        return stream.read()


def sync_directory(path: Path) -> None:
    """Make renames and removals in a directory durable, where the system can."""
    with contextlib.suppress(OSError):  # some systems cannot open or sync a directory
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def remove_tree(path: Path) -> None:
    """Remove a directory and all below it, or nothing where it is gone. Raises OSError.

    Others may remove files below it meanwhile.
    """
    import shutil

    while path.exists():
        with contextlib.suppress(FileNotFoundError):  # a file that was gone before its turn: go on
            shutil.rmtree(path)


def allocated_bytes(path: Path) -> int:
    """Bytes that a file, or every file below a directory, takes on the disk; 0 where it is gone."""
    try:
        found = path.lstat()
    except FileNotFoundError:
        return 0
    # st_blocks is in units of 512 bytes everywhere; it is 0 for a file of holes, whatever its size
    total = found.st_blocks * 512 if hasattr(found, "st_blocks") else found.st_size
    if path.is_dir() and not path.is_symlink():
        with contextlib.suppress(FileNotFoundError):
            total += sum(allocated_bytes(child) for child in path.iterdir())
    return total


_OCTAL = re.compile(r"\\([0-7]{3})")
"""How proc(5) writes space, tab, newline and backslash in a path; all other bytes stand for themselves."""


def file_system_type(path: Path, mount_table: Path = Path("/proc/self/mountinfo")) -> str:
    """The type of the file system that holds `path` ("ext4", "nfs4"), "" where it cannot be told."""
    try:
        mounts = mount_table.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        return ""
    target = os.path.realpath(path)
    best, found = "", ""
    for line in mounts:  # proc(5): fields, " - ", file system type, source, options
        left, _, right = line.partition(" - ")
        point = _OCTAL.sub(lambda escape: chr(int(escape[1], 8)), left.split(" ")[4])
        inside = target == point or target.startswith(point.rstrip("/") + "/")
        if inside and len(point) >= len(best):
            best, found = point, right.split()[0]
    return found


NETWORK_FILE_SYSTEMS = frozenset(
    {
        "nfs",
        "nfs4",
        "cifs",
        "smb3",
        "smbfs",
        "afs",
        "9p",
        "fuse.sshfs",
        "glusterfs",
        "fuse.glusterfs",
        "ceph",
        "lustre",
    }
)
"""Where SQLite's locks and WAL cannot be trusted (https://www.sqlite.org/wal.html)."""
