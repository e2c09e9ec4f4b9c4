"""Typed access to the registry. Every method is one statement or one transaction; none does I/O elsewhere.

One `Registry` serves many threads: each thread has a connection of its own.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from agent_swarm.errors import ConflictError, NotFoundError
from agent_swarm.model import (
    Baseline,
    BaselineId,
    Endpoint,
    Environment,
    EnvironmentId,
    ImageDigest,
    InstallationId,
    Kind,
    LocalEndpoint,
    Operation,
    OperationId,
    OperationKind,
    OperationState,
    Resources,
    SshEndpoint,
    Status,
)
from agent_swarm.registry import database

if TYPE_CHECKING:
    from collections.abc import Iterator


def new_environment_id() -> EnvironmentId:
    return EnvironmentId(_new_id())


def new_baseline_id() -> BaselineId:
    return BaselineId(_new_id())


class Registry:
    """The registry file. Opened, and made where it is missing, at first use."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._local = threading.local()
        self._connections: list[sqlite3.Connection] = []
        self._guard = threading.Lock()

    @property
    def _connection(self) -> sqlite3.Connection:
        connection: sqlite3.Connection | None = getattr(self._local, "connection", None)
        if connection is None:
            connection = database.connect(self.path)
            connection.row_factory = sqlite3.Row
            self._local.connection = connection
            with self._guard:
                self._connections.append(connection)
        return connection

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """Everything inside is committed together, or not at all. Nested use is an error."""
        with database.transaction(self._connection, self.path):
            yield

    def _read(self, statement: str, *values: object) -> list[sqlite3.Row]:
        with database.translated(self.path):
            return self._connection.execute(statement, values).fetchall()

    def _write(self, statement: str, *values: object) -> sqlite3.Cursor:
        connection = self._connection
        with database.translated(self.path):
            return connection.execute(statement, values)

    # --- the installation -------------------------------------------------------------------------

    def installation(self) -> InstallationId:
        """This state directory's id; made at the first call."""
        rows = self._read("SELECT id FROM installation")
        if not rows:
            with self.transaction():
                if not self._read("SELECT id FROM installation"):
                    self._write("INSERT INTO installation VALUES (?, ?)", _new_id(), _now())
            rows = self._read("SELECT id FROM installation")
        return InstallationId(rows[0]["id"])

    # --- environments -----------------------------------------------------------------------------

    def environments(
        self, *, kind: Kind | None = None, parent: EnvironmentId | None = None
    ) -> list[Environment]:
        """All environments, or those of a kind or of a project; projects first, then by name."""
        rows = self._read(
            "SELECT * FROM environments WHERE (?1 IS NULL OR kind = ?1) AND (?2 IS NULL OR parent_id = ?2)"
            " ORDER BY kind, name",
            kind,
            parent,
        )
        return [_environment(row) for row in rows]

    def environment(self, kind: Kind, name: str) -> Environment:
        """Raises NotFoundError, whose hint names the nearest."""
        rows = self._read("SELECT * FROM environments WHERE kind = ? AND name = ?", kind, name)
        if rows:
            return _environment(rows[0])
        names = [row["name"] for row in self._read("SELECT name FROM environments WHERE kind = ?", kind)]
        import difflib

        near = difflib.get_close_matches(name, names, n=1)
        other = "" if near else self._elsewhere(kind, name)
        hint = f"Did you mean {near[0]!r}?" if near else other
        shown = name if len(name) <= 80 else name[:77] + "..."
        message = f"there is no {kind} named {shown!r}"
        raise NotFoundError(
            message, hint=hint or "`agent-swarm list` and `agent-swarm project list` show what there is."
        )

    def _elsewhere(self, kind: Kind, name: str) -> str:
        other = Kind.TASK if kind is Kind.PROJECT else Kind.PROJECT
        if not self._read("SELECT 1 FROM environments WHERE kind = ? AND name = ?", other, name):
            return ""
        return f"There is a {other} of that name" + (
            "; its commands start with `agent-swarm project`."
            if other is Kind.PROJECT
            else "; leave out `project`."
        )

    def by_id(self, environment: EnvironmentId) -> Environment | None:
        rows = self._read("SELECT * FROM environments WHERE id = ?", environment)
        return _environment(rows[0]) if rows else None

    def ids(self) -> set[EnvironmentId]:
        return {EnvironmentId(row["id"]) for row in self._read("SELECT id FROM environments")}

    def insert(self, environment: Environment) -> None:
        """Add a new environment. Raises ConflictError where its name is taken."""
        try:
            self._write(
                "INSERT INTO environments (id, kind, name, provider, handle, image, baseline_id, parent_id, cpus,"
                " memory_mib, disk_gib, status, reason, endpoint, created_at, updated_at, started_at)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                environment.id,
                environment.kind,
                environment.name,
                environment.provider,
                environment.handle,
                environment.image,
                environment.baseline_id,
                environment.parent_id,
                environment.resources.cpus,
                environment.resources.memory_mib,
                environment.resources.disk_gib,
                environment.status,
                environment.reason,
                _endpoint_text(environment.endpoint),
                _text(environment.created_at),
                _text(environment.updated_at),
                _text(environment.started_at),
            )
        except sqlite3.IntegrityError as error:
            if "environments.kind, environments.name" not in str(error):
                raise
            message = f"there is already a {environment.kind} named {environment.name!r}"
            raise ConflictError(message, hint="Choose another name, or delete that one first.") from error

    def set_handle(self, environment: EnvironmentId, handle: str) -> None:
        self._write(
            "UPDATE environments SET handle = ?, updated_at = ? WHERE id = ?", handle, _now(), environment
        )

    def set_status(
        self, environment: EnvironmentId, status: Status, *, reason: str = "", only_if: Status | None = None
    ) -> None:
        """Change the status; with `only_if`, only where it still is that. Leaving RUNNING clears `started_at`."""
        self._write(
            "UPDATE environments SET status = ?1, reason = ?2, updated_at = ?3,"
            " started_at = CASE WHEN ?1 IN ('running', 'failed') THEN started_at END"
            " WHERE id = ?4 AND (?5 IS NULL OR status = ?5)",
            status,
            reason,
            _now(),
            environment,
            only_if,
        )

    def set_running(self, environment: EnvironmentId, endpoint: Endpoint, *, status: Status) -> None:
        """Record where a started machine is reached. `status` is what it is called from now on."""
        self._write(
            "UPDATE environments SET status = ?1, reason = '', endpoint = ?2, updated_at = ?3, started_at = ?3 WHERE id = ?4",
            status,
            _endpoint_text(endpoint),
            _now(),
            environment,
        )

    def remove(self, environment: EnvironmentId) -> None:
        """Forget an environment and its baselines."""
        self._write("DELETE FROM baselines WHERE project_id = ?", environment)
        self._write("DELETE FROM environments WHERE id = ?", environment)

    # --- baselines --------------------------------------------------------------------------------

    def baselines(self, project: EnvironmentId) -> list[Baseline]:
        """A project's baselines, the newest first, unfinished ones included."""
        rows = self._read("SELECT * FROM baselines WHERE project_id = ? ORDER BY generation DESC", project)
        return [_baseline(row) for row in rows]

    def all_baselines(self) -> dict[BaselineId, Baseline]:
        return {found.id: found for found in map(_baseline, self._read("SELECT * FROM baselines"))}

    def newest_baseline(self, project: EnvironmentId) -> Baseline | None:
        return next((baseline for baseline in self.baselines(project) if baseline.ready), None)

    def add_baseline(self, project: EnvironmentId) -> Baseline:
        """Record the intent to make a project's next generation."""
        identifier = new_baseline_id()
        self._write(
            "INSERT INTO baselines (id, project_id, generation, created_at)"
            " SELECT ?1, ?2, coalesce(max(generation), 0) + 1, ?3 FROM baselines WHERE project_id = ?2",
            identifier,
            project,
            _now(),
        )
        return _baseline(self._read("SELECT * FROM baselines WHERE id = ?", identifier)[0])

    def finish_baseline(self, baseline: BaselineId, handle: str) -> None:
        self._write("UPDATE baselines SET handle = ?, ready = 1 WHERE id = ?", handle, baseline)

    def remove_baseline(self, baseline: BaselineId) -> None:
        self._write("DELETE FROM baselines WHERE id = ?", baseline)

    # --- the journal ------------------------------------------------------------------------------

    def begin(self, environment: EnvironmentId, kind: OperationKind) -> OperationId:
        """Open an operation. An environment has at most one that is open."""
        try:
            cursor = self._write(
                "INSERT INTO operations (environment_id, kind, state, started_at) VALUES (?, ?, 'open', ?)",
                environment,
                kind,
                _now(),
            )
        except sqlite3.IntegrityError as error:
            message = "an earlier change of this machine is not finished"
            raise ConflictError(message, hint="Run `agent-swarm doctor`.") from error
        assert cursor.lastrowid is not None
        return OperationId(cursor.lastrowid)

    def step(self, operation: OperationId, step: str) -> None:
        self._write("UPDATE operations SET step = ? WHERE id = ?", step, operation)

    def end(self, operation: OperationId, state: OperationState, *, error: str = "") -> None:
        self._write(
            "UPDATE operations SET state = ?, ended_at = ?, error = ? WHERE id = ?",
            state,
            _now(),
            error,
            operation,
        )

    def open_operations(self) -> list[Operation]:
        return [
            _operation(row) for row in self._read("SELECT * FROM operations WHERE state = 'open' ORDER BY id")
        ]

    def operations(self, environment: EnvironmentId) -> list[Operation]:
        """The journal of one environment, the oldest first."""
        rows = self._read("SELECT * FROM operations WHERE environment_id = ? ORDER BY id", environment)
        return [_operation(row) for row in rows]

    def check(self) -> str:
        """SQLite's own integrity check: "ok", or what is wrong."""
        rows = self._read("PRAGMA integrity_check(5)")
        return "; ".join(str(row[0]) for row in rows)

    def close(self) -> None:
        """Close every thread's connection. No other thread may be inside a call."""
        with self._guard:
            for connection in self._connections:
                connection.close()
            self._connections.clear()
        self._local = threading.local()


def _new_id() -> str:
    return os.urandom(6).hex()


def _now() -> str:
    return _text(datetime.now(UTC)) or ""


def _text(moment: datetime | None) -> str | None:
    return moment.isoformat(timespec="milliseconds") if moment else None


def _moment(text: str) -> datetime:
    return datetime.fromisoformat(text)


def _endpoint_text(endpoint: Endpoint | None) -> str | None:
    if endpoint is None:
        return None
    if isinstance(endpoint, LocalEndpoint):
        return msgspec.json.encode({"root": str(endpoint.root)}).decode()
    return msgspec.json.encode(endpoint).decode()


def _endpoint(text: str | None) -> Endpoint | None:
    if text is None:
        return None
    fields: dict[str, Any] = msgspec.json.decode(text)
    return LocalEndpoint(root=Path(fields["root"])) if "root" in fields else SshEndpoint(**fields)


def _environment(row: sqlite3.Row) -> Environment:
    return Environment(
        id=EnvironmentId(row["id"]),
        kind=Kind(row["kind"]),
        name=row["name"],
        provider=row["provider"],
        handle=row["handle"],
        image=ImageDigest(row["image"]) if row["image"] else None,
        baseline_id=BaselineId(row["baseline_id"]) if row["baseline_id"] else None,
        parent_id=EnvironmentId(row["parent_id"]) if row["parent_id"] else None,
        resources=Resources(cpus=row["cpus"], memory_mib=row["memory_mib"], disk_gib=row["disk_gib"]),
        status=Status(row["status"]),
        endpoint=_endpoint(row["endpoint"]),
        created_at=_moment(row["created_at"]),
        updated_at=_moment(row["updated_at"]),
        started_at=_moment(row["started_at"]) if row["started_at"] else None,
        reason=row["reason"],
    )


def _baseline(row: sqlite3.Row) -> Baseline:
    return Baseline(
        id=BaselineId(row["id"]),
        project_id=EnvironmentId(row["project_id"]),
        generation=row["generation"],
        handle=row["handle"],
        ready=bool(row["ready"]),
        created_at=_moment(row["created_at"]),
    )


def _operation(row: sqlite3.Row) -> Operation:
    return Operation(
        id=OperationId(row["id"]),
        environment_id=EnvironmentId(row["environment_id"]),
        kind=OperationKind(row["kind"]),
        state=OperationState(row["state"]),
        step=row["step"],
        started_at=_moment(row["started_at"]),
        ended_at=_moment(row["ended_at"]) if row["ended_at"] else None,
        error=row["error"],
    )
