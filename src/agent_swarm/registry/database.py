"""Opening the registry: file system checks, pragmas, migrations, and errors that say what to do.

WAL lets readers go on while one writer writes; synchronous=FULL makes a commit survive a power cut
(https://www.sqlite.org/pragma.html#pragma_synchronous). Migrations are numbered SQL files; the file's
`user_version` is the number of the last one applied.
"""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path
from typing import TYPE_CHECKING

from agent_swarm.errors import RegistryError
from agent_swarm.files import NETWORK_FILE_SYSTEMS, file_system_type

if TYPE_CHECKING:
    from collections.abc import Iterator

BUSY_TIMEOUT_S = 30.0


def connect(path: Path) -> sqlite3.Connection:
    """An open, migrated registry. Raises RegistryError, and then has changed nothing.

    The connection is in autocommit mode: `transaction` begins and ends transactions.
    """
    kind = file_system_type(path.parent)
    if kind in NETWORK_FILE_SYSTEMS:
        message = f"{path.parent} is on a network file system ({kind})"
        raise RegistryError(
            message,
            details="SQLite's locks do not work there, so the registry could be damaged.",
            hint="Set AGENT_SWARM_HOME to a directory on a local disk.",
        )
    with translated(path):
        # each thread has a connection of its own; closing them all is one thread's work
        connection = sqlite3.connect(
            path, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False
        )
        try:
            _migrate(connection, path)
            connection.execute("PRAGMA foreign_keys = ON")
            connection.execute("PRAGMA synchronous = FULL")
            path.chmod(0o600) if path.stat().st_mode & 0o077 else None
        except BaseException:
            connection.close()
            raise
    return connection


@contextlib.contextmanager
def transaction(connection: sqlite3.Connection, path: Path) -> Iterator[sqlite3.Connection]:
    """All or nothing, and alone among writers from its first line on.

    No call to a provider, a process or the network belongs inside.
    """
    with translated(path):
        connection.execute("BEGIN IMMEDIATE")
        try:
            yield connection
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:  # SQLite may have rolled back by itself, on a full disk for one
                connection.execute("ROLLBACK")
            raise


@contextlib.contextmanager
def translated(path: Path) -> Iterator[None]:
    """Turn SQLite's errors into a RegistryError with a next step."""
    try:
        yield
    except sqlite3.IntegrityError:
        raise  # a caller's business: a name that exists
    except sqlite3.Error as error:
        hints = {
            "SQLITE_READONLY": f"Make {path} and its directory writable for you.",
            "SQLITE_CANTOPEN": f"Make {path.parent} writable for you, or set AGENT_SWARM_HOME.",
            "SQLITE_FULL": f"Free space on the disk that holds {path.parent}; nothing was changed.",
            "SQLITE_IOERR": f"Check the disk that holds {path.parent}; nothing was changed.",
            "SQLITE_BUSY": "Another command writes for a long time; try again.",
            "SQLITE_CORRUPT": f"Move {path} away; `agent-swarm doctor` lists the machines that it spoke of.",
            "SQLITE_NOTADB": f"Move {path} away; `agent-swarm doctor` lists the machines that it spoke of.",
        }
        name = getattr(error, "sqlite_errorname", "")
        hint = next(
            (text for prefix, text in hints.items() if name.startswith(prefix)), "Run `agent-swarm doctor`."
        )
        message = f"the registry {path} cannot be used"
        raise RegistryError(message, details=str(error), hint=hint) from error


def _migrate(connection: sqlite3.Connection, path: Path) -> None:
    steps = _migrations()
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    if version > len(steps):
        message = f"the registry {path} was written by a newer agent-swarm (its version is {version})"
        raise RegistryError(
            message,
            details=f"This one knows versions up to {len(steps)}. Nothing was changed.",
            hint="Upgrade agent-swarm, or set AGENT_SWARM_HOME to another directory.",
        )
    if version == len(steps):
        return
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("BEGIN IMMEDIATE")
    try:
        version = connection.execute("PRAGMA user_version").fetchone()[
            0
        ]  # another process may have been first
        for script in steps[version:]:
            for statement in _statements(script.read_text(encoding="utf-8")):
                connection.execute(statement)
        connection.execute(f"PRAGMA user_version = {len(steps)}")
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def _migrations() -> list[Path]:
    return sorted(Path(__file__).with_name("migrations").glob("*.sql"))


def _statements(script: str) -> Iterator[str]:
    pending = ""
    for line in script.splitlines(keepends=True):
        pending += line
        if sqlite3.complete_statement(pending):
            yield pending
            pending = ""
