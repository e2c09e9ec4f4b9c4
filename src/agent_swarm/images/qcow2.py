"""qemu-img, as far as it is needed. Formats are told by the file's first bytes and passed on with -f:
qemu-img's own probing would let a guest turn its raw disk into a qcow2 that names a file of the host.

Source: https://www.qemu.org/docs/master/tools/qemu-img.html
"""

from __future__ import annotations

import json
import os
import secrets
from dataclasses import dataclass
from pathlib import Path

from agent_swarm import runner
from agent_swarm.errors import CommandError, ImageError
from agent_swarm.images import failures, formats

QUICK_S = 60.0
LONG_S = 3600.0
_ENVIRON = {"LC_ALL": "C"}  # errors are recognised by their English text

CHECK_LEAKS = 3
"""qemu-img check's exit code for clusters that nobody refers to: wasted space, no damage."""


@dataclass(frozen=True, slots=True)
class DiskInfo:
    format: str
    virtual_size_bytes: int
    backing: str | None
    """The backing file as the image names it: relative to the image's own directory, or absolute."""


def info(path: Path) -> DiskInfo:
    """What the image says of itself; works while a machine runs on it. Raises ImageError."""
    path = _absolute(path)
    argv: list[str | Path] = ["qemu-img", "info", "-U", "-f", formats.detect(path), "--output=json", path]
    found = json.loads(_run(argv, doing=f"reading {path.name}", where=path.parent))
    return DiskInfo(
        format=found["format"],
        virtual_size_bytes=found["virtual-size"],
        backing=found.get("backing-filename"),
    )


def create_overlay(path: Path, *, backing: Path, size_bytes: int | None) -> None:
    """Make a qcow2 at `path` that holds only what differs from `backing`, itself a qcow2.

    `size_bytes` None: as large as the backing file. The backing file is named relative to the overlay's
    directory. Either the whole overlay is at `path` afterwards or nothing is. Raises ImageError, also
    where `path` exists, `backing` does not, or the disk would be smaller than what it builds on.
    """
    path, backing = _absolute(path), _absolute(backing)
    if path.exists():
        message = f"the disk {path} exists already"
        raise ImageError(message)
    if not backing.is_file():
        message = f"the backing file {backing} is missing"
        raise ImageError(message, hint="`agent-swarm doctor` shows what else is affected.")
    base = info(backing)
    if base.format != "qcow2":
        message = f"the backing file {backing} is {base.format}, not qcow2"
        raise ImageError(message)
    size = base.virtual_size_bytes if size_bytes is None else size_bytes
    if size < base.virtual_size_bytes:
        message = (
            f"a disk of {size} bytes is too small for {backing.name}, which has {base.virtual_size_bytes}"
        )
        raise ImageError(message, hint=f"Use a disk of at least {-(-base.virtual_size_bytes // 2**30)} GiB.")
    relative = os.path.relpath(backing, path.parent)
    if os.sep not in relative:
        relative = f"./{relative}"  # "a:b" would be protocol a
    temporary = path.parent / f".{path.name}.{secrets.token_hex(4)}"
    try:
        # -u: the backing file was looked at above, and may be in use
        argv: list[str | Path] = [
            "qemu-img",
            "create",
            "-q",
            "-u",
            "-f",
            "qcow2",
            "-F",
            "qcow2",
            "-b",
            relative,
            temporary,
        ]
        _run([*argv, str(size)], doing=f"creating {path.name}", where=path.parent)
        temporary.chmod(0o600)
        temporary.rename(path)
    finally:
        temporary.unlink(missing_ok=True)


def convert(source: Path, target: Path, *, source_format: str) -> None:
    """Write `source` as a plain qcow2 without a backing file to `target`, which must not exist.

    `source_format` is never guessed here. Raises ImageError; nothing is at `target` then.
    """
    source, target = _absolute(source), _absolute(target)
    argv: list[str | Path] = ["qemu-img", "convert", "-f", source_format, "-O", "qcow2", source, target]
    try:
        _run(argv, doing=f"converting {source.name}", where=target.parent, timeout_s=LONG_S)
        target.chmod(0o600)
    except BaseException:
        target.unlink(missing_ok=True)
        raise


def check(path: Path) -> str:
    """What is wrong with the qcow2's own structure, "" when nothing is.

    Reads all of its metadata: seconds for a large disk. Not for a disk that a machine writes to.
    """
    path = _absolute(path)
    if not path.is_file():
        return f"{path} is missing"
    argv: list[str | Path] = ["qemu-img", "check", "-q", "-U", "-f", "qcow2", path]
    done = runner.run(argv, timeout_s=LONG_S, environ=_ENVIRON, check=False)
    if done.returncode in (0, CHECK_LEAKS):
        return ""
    lines = (done.stderr + done.stdout).decode("utf-8", "replace").strip().splitlines()
    return lines[0] if lines else f"qemu-img check ended with exit code {done.returncode}"


def _absolute(path: Path) -> Path:
    return Path(os.path.abspath(path))  # noqa: PTH100 - "a:b" is a protocol to qemu-img, "/x/a:b" a file


def _run(argv: list[str | Path], *, doing: str, where: Path, timeout_s: float = QUICK_S) -> bytes:
    try:
        return runner.run(argv, timeout_s=timeout_s, environ=_ENVIRON).stdout
    except CommandError as error:
        raise failures.program_failed(error, doing=doing, where=where) from error
