"""Directory trees as disks: copied whole or not at all, and made durable."""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
from pathlib import Path

from agent_swarm.files import sync_directory


def copy(source: Path, target: Path, *, leave_out: str = "") -> None:
    """Copy a tree to `target`, which must not exist, and make the copy durable; without the entry `leave_out`.

    Files may change or vanish meanwhile: each is copied as it is found, as a disk captured from a
    running machine. Sockets, pipes and devices are left out: they mean nothing in a copy. Raises
    OSError; the caller removes what is there by then.
    """
    if not source.is_dir():
        raise NotADirectoryError(source)

    def left_out(directory: str, _: list[str]) -> list[str]:
        return [leave_out] if Path(directory) == source else []

    shutil.copytree(source, target, symlinks=True, copy_function=_copy_file, ignore=left_out)
    sync(target)


def sync(tree: Path) -> None:
    """Make all files and directory entries of a tree durable."""
    for directory, _, files in os.walk(tree):
        for name in files:
            path = Path(directory, name)
            if not path.is_symlink():
                descriptor = os.open(path, os.O_RDONLY)
                try:
                    os.fsync(descriptor)
                finally:
                    os.close(descriptor)
        sync_directory(Path(directory))


def _copy_file(source: str, target: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        if stat.S_ISREG(Path(source).lstat().st_mode):
            shutil.copy2(source, target)
