"""`cp`: files and directories between this computer and machines, and from machine to machine.

As `cp -RpL` and `scp -rp`: a directory is copied with all below it, into the destination where that is a
directory; times and modes are kept; symbolic links are followed. Names are literal, whatever they hold.
"""

from __future__ import annotations

import os
import posixpath
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from agent_swarm import runner
from agent_swarm.errors import MachineError, NotFoundError, SwarmError, UnreachableError, UsageError
from agent_swarm.guest import connection
from agent_swarm.guest.script import collect
from agent_swarm.model import NAME_PATTERN, LocalEndpoint

if TYPE_CHECKING:
    from agent_swarm.config import Config
    from agent_swarm.guest.target import Target
    from agent_swarm.paths import Paths

COPY_TIMEOUT_S = 24 * 3600.0
CHECK_TIMEOUT_S = 60.0
TEST_FALSE = 1


@dataclass(frozen=True, slots=True)
class Address:
    """What the user wrote: a path here (`machine` is None), or in the machine of that name."""

    machine: str | None
    path: str


@dataclass(frozen=True, slots=True)
class Place:
    """An Address whose machine was looked up. A relative path in a machine starts at the home directory."""

    target: Target | None
    path: str

    def __str__(self) -> str:
        return self.path if self.target is None else f"{self.target.label}:{self.path}"


def parse_place(text: str) -> Address:
    """ "TASK:path" where the part before the first ':' can be a name; everything else is a path here.

    A file whose name looks like that is written with its directory: "./a:b".
    """
    before, colon, after = text.partition(":")
    if colon and NAME_PATTERN.fullmatch(before):
        return Address(machine=before, path=after)
    if not text:
        message = "an empty path was given"
        raise UsageError(message, hint="Name a file, or MACHINE:path.")
    return Address(machine=None, path=text)


def copy(paths: Paths, config: Config, source: Place, destination: Place) -> None:
    """Copy `source` to `destination`. Either or both may be in a machine that runs.

    Raises NotFoundError where the source does not exist, UnreachableError for a machine that cannot be
    reached, MachineError when copying fails; then part of it may have been copied.
    """
    for place in (source, destination):
        if place.target is not None:
            connection.open_shared(paths, config, place.target, timeout_s=CHECK_TIMEOUT_S, alive=lambda: True)
    here, there = _local(source), _local(destination)
    if here is not None and not os.path.lexists(here):
        raise _missing(source)
    if here is not None and there is not None:
        argv = ["cp", "-RpL", "--", str(here), str(there)]
    else:
        argv = [
            # -s: the SFTP protocol, in which no remote shell reads the names (scp(1), since OpenSSH 8.7)
            *("scp", "-s", "-q", "-r", "-p", "-3", "-F", str(paths.ssh_config), "-o", "BatchMode=yes"),
            *connection.through_shared(paths),
            _word(source, is_source=True),
            _word(destination, is_source=False),
        ]
    done = runner.run(argv, timeout_s=COPY_TIMEOUT_S, check=False)
    if done.returncode != 0:
        raise _explained(paths, config, source, destination, done.stderr.decode("utf-8", "replace"))


def _local(place: Place) -> Path | None:
    """The path on this computer, None for one behind SSH."""
    if place.target is None:
        return Path(place.path)
    if isinstance(place.target.endpoint, LocalEndpoint):
        # normalised against "/": ".." cannot leave the machine's directory
        inside = posixpath.normpath("/" + place.path.removeprefix("~/")).lstrip("/")
        slash = "/" if place.path.endswith("/") else ""
        return Path(f"{place.target.endpoint.root}/{inside}{slash}")
    return None


def _word(place: Place, *, is_source: bool) -> str:
    """The place as an argument of scp."""
    local = _local(place)
    if local is not None:
        # never taken for HOST:PATH, scp://, or an option
        return str(local) if local.is_absolute() else f"./{local}"
    assert place.target is not None
    path = place.path or "."
    if is_source:
        # scp matches a remote source as a pattern (glob(7)); it has no option against that
        path = re.sub(r"([\\*?\[\]])", r"\\\1", path)
    return f"{place.target.id_alias}:{path}"


def _explained(paths: Paths, config: Config, source: Place, destination: Place, said: str) -> SwarmError:
    details = said.strip()[-2000:]
    for place in (source, destination):
        if place.target is None or isinstance(place.target.endpoint, LocalEndpoint):
            continue
        details = details.replace(place.target.id_alias, place.target.label)
        if not connection.is_open(paths, place.target):
            message = f"the connection to {place.target.label} was lost while copying"
            return UnreachableError(message, details=details)
    if source.target is not None and _local(source) is None:
        path = source.path.removeprefix("~/") or "."
        test = ["test", "-e", path if path.startswith("/") else f"./{path}"]
        code = collect(
            paths, config, source.target, test, timeout_s=CHECK_TIMEOUT_S, on_line=lambda _line: None
        )
        if code == TEST_FALSE:
            return _missing(source)
    message = f"{source} could not be copied to {destination}"
    return MachineError(message, details=details)


def _missing(place: Place) -> NotFoundError:
    message = f"there is no {place}"
    return NotFoundError(message, hint="Paths in a machine start at its home directory.")
