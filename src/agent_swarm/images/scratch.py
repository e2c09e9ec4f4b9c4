"""Where a build's tree is made, how its programs are contained there, and how all of it is removed.

A build that was killed can leave processes, and, run by root without a mount namespace of its own, mounted
file systems below its tree. Nothing here ever crosses into another file system when it removes.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
import time
from pathlib import Path
from typing import TYPE_CHECKING

from agent_swarm import processes, runner
from agent_swarm.errors import CommandError, ImageError
from agent_swarm.images import failures

if TYPE_CHECKING:
    from collections.abc import Iterator

BUILDER = "mmdebstrap"
ENDING_S = 30.0
"""How long the processes of a build whose caller was just killed may take to go away."""


def is_root() -> bool:
    return os.geteuid() == 0


def as_mapped_root() -> list[str]:
    """What runs a command as the owner of the tree: root itself, or the user namespace's root."""
    return [] if is_root() else [BUILDER, "--unshare-helper"]


def contained() -> list[str]:
    """What to put before the builder so that root's mounts stay out of the host's mount table and
    everything dies with us, even when we are killed.

    Empty for an ordinary user, whose builder makes its own namespaces, and where root may not make any
    (a container without CAP_SYS_ADMIN): it cannot mount there either.
    """
    prefix = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
    if not is_root() or runner.run([*prefix, "true"], timeout_s=60.0, check=False).returncode != 0:
        return []
    return ["setpriv", "--pdeathsig", "KILL", *prefix]


@contextlib.contextmanager
def scratch(directory: Path) -> Iterator[Path]:
    """A directory that the build's root, mapped or real, can work in; removed at the end.

    In it lies `work`, which the mapped root can write to. The name follows from `directory`, so that a
    build that was killed is cleaned up by the next one. Raises ImageError.
    """
    discard_scratch(directory)
    made = scratch_directory(directory)
    try:
        made.mkdir()
        made.chmod(0o755)  # the mapped root must see what is in it to remove it
        # the mapped root is another user to the host; sticky, so that no third user can touch its files
        (made / "work").mkdir()
        (made / "work").chmod(0o1777)
    except OSError as error:
        raise failures.write_failed(error, doing="preparing the build", where=made.parent) from error
    try:
        yield made
    finally:
        discard_scratch(directory)


def scratch_directory(directory: Path) -> Path:
    """Where the build for `directory` keeps its tree."""
    if is_root():
        return directory / "scratch"
    tag = hashlib.sha256(os.fsencode(directory)).hexdigest()[:12]
    given = Path(os.environ.get("TMPDIR") or "/var/tmp").absolute()
    # every directory on the way must let the mapped root pass
    passable = given.is_dir() and all(part.stat().st_mode & stat.S_IXOTH for part in (given, *given.parents))
    return (given if passable else Path("/var/tmp")) / f"agent-swarm-build-{os.getuid()}-{tag}"


def discard_scratch(directory: Path) -> None:
    """End what an interrupted build for `directory` left running, and remove what it left behind.

    Silent where there is nothing. The caller holds the lock of the build. Raises ImageError.
    """
    found = scratch_directory(directory)
    if not found.is_dir():
        return
    if found.is_symlink() or found.stat().st_uid != os.getuid():
        message = f"{found} belongs to somebody else"
        raise ImageError(message, hint="Remove it, or set TMPDIR to another directory.")
    deadline = time.monotonic() + ENDING_S
    while True:
        _end_builders(found)
        try:
            _remove(found)
        except CommandError as error:
            if time.monotonic() >= deadline:
                message = f"{found}, left by an interrupted build, could not be removed"
                hint = "See with `mount` whether something is mounted below it, unmount that, and try again."
                raise ImageError(message, details=error.details, hint=hint) from error
            time.sleep(0.2)
        else:
            return


def _remove(found: Path) -> None:
    """`find` instead of rmtree: it never enters a mounted file system. Raises CommandError."""
    if not is_root():
        # below our own two levels all belongs to the mapped root
        inner = ["find", os.fspath(found), "-xdev", "-mindepth", "2", "-depth", "-delete"]
        runner.run([*as_mapped_root(), *inner], timeout_s=600.0, check=False)
    runner.run(["find", found, "-xdev", "-depth", "-delete"], timeout_s=600.0)


def _end_builders(found: Path) -> None:
    """Kill the builder processes that were given this scratch directory. A user may signal the processes of
    a user namespace of his own (user_namespaces(7)), and with its first process all of it dies."""
    for entry in Path("/proc").glob("[0-9]*"):
        record = processes.describe(int(entry.name), os.fspath(found))
        if record is not None and processes.describe(record.pid, BUILDER) == processes.ProcessRecord(
            record.pid, record.start_time, record.boot_id, BUILDER
        ):
            processes.kill(record, timeout_s=2.0)
