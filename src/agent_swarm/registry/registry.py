"""Typed access to the registry. Every method is one statement or one transaction; none does I/O elsewhere.

One `Registry` serves many threads: each thread has a connection of its own.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
from typing import TYPE_CHECKING

from agent_swarm.errors import ConflictError, NotFoundError
from agent_swarm.model import (
    Baseline,
    BaselineId,
    Checkpoint,
    CheckpointId,
    Endpoint,
    Environment,
    EnvironmentId,
    InstallationId,
    Kind,
    Operation,
    OperationId,
    OperationKind,
    OperationState,
    PointId,
    Status,
)
from agent_swarm.registry import convert, database

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import datetime
    from pathlib import Path


def new_environment_id() -> EnvironmentId:
    return EnvironmentId(_new_id())


def new_point_id() -> PointId:
    return PointId(_new_id())


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
                    self._write("INSERT INTO installation VALUES (?, ?)", _new_id(), convert.now())
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
        return [convert.environment(row) for row in rows]

    def environment(self, kind: Kind, name: str) -> Environment:
        """Raises NotFoundError, whose hint names the nearest."""
        rows = self._read("SELECT * FROM environments WHERE kind = ? AND name = ?", kind, name)
        if rows:
            return convert.environment(rows[0])
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
        return convert.environment(rows[0]) if rows else None

    def ids(self) -> set[EnvironmentId]:
        return {EnvironmentId(row["id"]) for row in self._read("SELECT id FROM environments")}

    def insert(self, environment: Environment) -> None:
        """Add a new environment. Raises ConflictError where its name is taken."""
        try:
            self._write(
                "INSERT INTO environments (id, kind, name, provider, handle, image, baseline_id, parent_id, cpus,"
                " memory_mib, disk_gib, status, reason, endpoint, created_at, updated_at, started_at, origin, checkpoint_id)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
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
                convert.endpoint_text(environment.endpoint),
                convert.text(environment.created_at),
                convert.text(environment.updated_at),
                convert.text(environment.started_at),
                environment.origin,
                environment.checkpoint_id,
            )
        except sqlite3.IntegrityError as error:
            if "environments.kind, environments.name" not in str(error):
                raise
            message = f"there is already a {environment.kind} named {environment.name!r}"
            raise ConflictError(message, hint="Choose another name, or delete that one first.") from error

    def set_handle(self, environment: EnvironmentId, handle: str) -> None:
        self._write(
            "UPDATE environments SET handle = ?, updated_at = ? WHERE id = ?",
            handle,
            convert.now(),
            environment,
        )

    def set_status(
        self, environment: EnvironmentId, status: Status, *, reason: str = "", only_if: Status | None = None
    ) -> None:
        """Change the status; with `only_if`, only where it still is that. A machine that runs has a `started_at`,
        one that does not has none."""
        self._write(
            "UPDATE environments SET status = ?1, reason = ?2, updated_at = ?3,"
            " started_at = CASE WHEN ?1 IN ('running', 'failed') THEN coalesce(started_at, ?3)"
            " WHEN ?1 = 'creating' THEN started_at END"
            " WHERE id = ?4 AND (?5 IS NULL OR status = ?5)",
            status,
            reason,
            convert.now(),
            environment,
            only_if,
        )

    def set_running(self, environment: EnvironmentId, endpoint: Endpoint, *, status: Status) -> None:
        """Record where a started machine is reached. `status` is what it is called from now on."""
        self._write(
            "UPDATE environments SET status = ?1, reason = '', endpoint = ?2, updated_at = ?3, started_at = ?3 WHERE id = ?4",
            status,
            convert.endpoint_text(endpoint),
            convert.now(),
            environment,
        )

    def remove(self, environment: EnvironmentId) -> None:
        """Forget an environment, its baselines and its checkpoints."""
        self._write("DELETE FROM checkpoints WHERE environment_id = ?", environment)
        self._write("DELETE FROM baselines WHERE project_id = ?", environment)
        self._write("DELETE FROM environments WHERE id = ?", environment)

    # --- baselines --------------------------------------------------------------------------------

    def baselines(self, project: EnvironmentId) -> list[Baseline]:
        """A project's baselines, the newest first, unfinished ones included."""
        rows = self._read("SELECT * FROM baselines WHERE project_id = ? ORDER BY generation DESC", project)
        return [convert.baseline(row) for row in rows]

    def all_baselines(self) -> dict[BaselineId, Baseline]:
        return {found.id: found for found in map(convert.baseline, self._read("SELECT * FROM baselines"))}

    def newest_baseline(self, project: EnvironmentId) -> Baseline | None:
        return next((baseline for baseline in self.baselines(project) if baseline.ready), None)

    def add_baseline(self, project: EnvironmentId, *, memory: bool = False) -> Baseline:
        """Record the intent to make a project's next generation."""
        identifier = new_point_id()
        self._write(
            "INSERT INTO baselines (id, project_id, generation, created_at, memory)"
            " SELECT ?1, ?2, coalesce(max(generation), 0) + 1, ?3, ?4 FROM baselines WHERE project_id = ?2",
            identifier,
            project,
            convert.now(),
            memory,
        )
        return convert.baseline(self._read("SELECT * FROM baselines WHERE id = ?", identifier)[0])

    def finish_baseline(self, baseline: BaselineId, handle: str) -> None:
        self._write("UPDATE baselines SET handle = ?, ready = 1 WHERE id = ?", handle, baseline)

    def remove_baseline(self, baseline: BaselineId) -> None:
        self._write("DELETE FROM baselines WHERE id = ?", baseline)

    # --- checkpoints ------------------------------------------------------------------------------

    def checkpoints(self, environment: EnvironmentId) -> list[Checkpoint]:
        """A task's checkpoints, the oldest first, unfinished ones included."""
        rows = self._read("SELECT * FROM checkpoints WHERE environment_id = ? ORDER BY rowid", environment)
        return [convert.checkpoint(row) for row in rows]

    def checkpoint(self, checkpoint: CheckpointId) -> Checkpoint | None:
        rows = self._read("SELECT * FROM checkpoints WHERE id = ?", checkpoint)
        return convert.checkpoint(rows[0]) if rows else None

    def checkpoint_names(self) -> dict[CheckpointId, str]:
        return {
            CheckpointId(row["id"]): row["name"] for row in self._read("SELECT id, name FROM checkpoints")
        }

    def automatic_checkpoints(self, *, before: datetime) -> list[Checkpoint]:
        """Those that were made by themselves before a time, of all tasks, finished ones only."""
        rows = self._read(
            "SELECT * FROM checkpoints WHERE automatic = 1 AND ready = 1 AND created_at < ? ORDER BY rowid",
            convert.text(before),
        )
        return [convert.checkpoint(row) for row in rows]

    def add_checkpoint(
        self, environment: EnvironmentId, name: str, *, memory: bool, automatic: bool
    ) -> Checkpoint:
        """Record the intent to make a checkpoint of the present state. Raises ConflictError where its name
        is taken."""
        identifier = new_point_id()
        try:
            self._write(
                "INSERT INTO checkpoints (id, environment_id, name, parent_id, memory, automatic, created_at)"
                " SELECT ?1, id, ?3, checkpoint_id, ?4, ?5, ?6 FROM environments WHERE id = ?2",
                identifier,
                environment,
                name,
                memory,
                automatic,
                convert.now(),
            )
        except sqlite3.IntegrityError as error:
            message = f"there is already a checkpoint named {name!r}"
            raise ConflictError(message, hint="Choose another name, or delete that one first.") from error
        return convert.checkpoint(self._read("SELECT * FROM checkpoints WHERE id = ?", identifier)[0])

    def finish_checkpoint(self, checkpoint: CheckpointId, handle: str) -> None:
        """It is made, and the task goes on from it. Inside the caller's transaction."""
        self._write("UPDATE checkpoints SET handle = ?, ready = 1 WHERE id = ?", handle, checkpoint)
        self._write(
            "UPDATE environments SET checkpoint_id = ?1"
            " WHERE id = (SELECT environment_id FROM checkpoints WHERE id = ?1)",
            checkpoint,
        )

    def retire_checkpoint(self, checkpoint: CheckpointId) -> None:
        """Record the intent to delete it."""
        self._write("UPDATE checkpoints SET ready = 0 WHERE id = ?", checkpoint)

    def remove_checkpoint(self, checkpoint: CheckpointId) -> None:
        """Forget it; what descended from it descends from its parent now. Inside the caller's transaction."""
        for table, column in (("checkpoints", "parent_id"), ("environments", "checkpoint_id")):
            self._write(
                f"UPDATE {table} SET {column} = (SELECT parent_id FROM checkpoints WHERE id = ?1)"  # noqa: S608
                f" WHERE {column} = ?1",
                checkpoint,
            )
        self._write("DELETE FROM checkpoints WHERE id = ?", checkpoint)

    def set_checkpoint(self, environment: EnvironmentId, checkpoint: CheckpointId) -> None:
        """The task's present state descends from this one."""
        self._write("UPDATE environments SET checkpoint_id = ? WHERE id = ?", checkpoint, environment)

    # --- the journal ------------------------------------------------------------------------------

    def begin(self, environment: EnvironmentId, kind: OperationKind) -> OperationId:
        """Open an operation. An environment has at most one that is open."""
        try:
            cursor = self._write(
                "INSERT INTO operations (environment_id, kind, state, started_at) VALUES (?, ?, 'open', ?)",
                environment,
                kind,
                convert.now(),
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
            convert.now(),
            error,
            operation,
        )

    def open_operations(self) -> list[Operation]:
        return [
            convert.operation(row)
            for row in self._read("SELECT * FROM operations WHERE state = 'open' ORDER BY id")
        ]

    def operations(self, environment: EnvironmentId) -> list[Operation]:
        """The journal of one environment, the oldest first."""
        rows = self._read("SELECT * FROM operations WHERE environment_id = ? ORDER BY id", environment)
        return [convert.operation(row) for row in rows]

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
