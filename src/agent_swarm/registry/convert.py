"""The registry's rows as values of the model, and back."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from agent_swarm.model import (
    Baseline,
    BaselineId,
    Checkpoint,
    CheckpointId,
    Endpoint,
    Environment,
    EnvironmentId,
    ImageDigest,
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

if TYPE_CHECKING:
    import sqlite3


def now() -> str:
    return text(datetime.now(UTC)) or ""


def text(moment: datetime | None) -> str | None:
    return moment.isoformat(timespec="milliseconds") if moment else None


def _moment(text: str) -> datetime:
    return datetime.fromisoformat(text)


def endpoint_text(endpoint: Endpoint | None) -> str | None:
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


def environment(row: sqlite3.Row) -> Environment:
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
        origin=row["origin"],
        checkpoint_id=CheckpointId(row["checkpoint_id"]) if row["checkpoint_id"] else None,
    )


def baseline(row: sqlite3.Row) -> Baseline:
    return Baseline(
        id=BaselineId(row["id"]),
        project_id=EnvironmentId(row["project_id"]),
        generation=row["generation"],
        handle=row["handle"],
        ready=bool(row["ready"]),
        created_at=_moment(row["created_at"]),
        memory=bool(row["memory"]),
    )


def checkpoint(row: sqlite3.Row) -> Checkpoint:
    return Checkpoint(
        id=CheckpointId(row["id"]),
        environment_id=EnvironmentId(row["environment_id"]),
        name=row["name"],
        parent_id=CheckpointId(row["parent_id"]) if row["parent_id"] else None,
        handle=row["handle"],
        ready=bool(row["ready"]),
        memory=bool(row["memory"]),
        automatic=bool(row["automatic"]),
        created_at=_moment(row["created_at"]),
    )


def operation(row: sqlite3.Row) -> Operation:
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
