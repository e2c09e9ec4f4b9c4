"""The shapes of `--json`, documented in docs/json.md. Every document is an object with "version": 1; a field
may be added within a version, none changes or goes.

Times are ISO 8601 in UTC, sizes carry their unit in the name, what is not known is null.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from agent_swarm.model import Environment, SshEndpoint

if TYPE_CHECKING:
    from datetime import datetime

    from agent_swarm.errors import SwarmError
    from agent_swarm.model import Baseline, Image, Operation
    from agent_swarm.operations.bulk import BulkResult
    from agent_swarm.operations.checkpoint import ListedCheckpoint
    from agent_swarm.operations.doctor import Finding, Garbage
    from agent_swarm.operations.status import Details, HostStatus, ProviderStatus, Usage
    from agent_swarm.operations.verify import Check

VERSION = 1

Shape = dict[str, Any]


def write(document: Shape) -> None:
    """Print a document on stdout. ASCII: what is special to a terminal is escaped."""
    import json

    click.echo(json.dumps({"version": VERSION, **document}, indent=2))


def time(when: datetime | None) -> str | None:
    return when.isoformat(timespec="milliseconds").replace("+00:00", "Z") if when else None


def environment(found: Environment, *, project: str | None, checkpoint: str | None, simulated: bool) -> Shape:
    return {
        "id": found.id,
        "kind": found.kind.value,
        "name": found.name,
        "project": project,
        "status": found.status.value,
        "reason": found.reason,
        "provider": found.provider,
        "simulated": simulated,
        "image": found.image,
        "origin": found.origin,
        "checkpoint": checkpoint,
        "resources": {
            "cpus": found.resources.cpus,
            "memory_mib": found.resources.memory_mib,
            "disk_gib": found.resources.disk_gib,
        },
        "ssh": ssh(found),
        "created_at": time(found.created_at),
        "updated_at": time(found.updated_at),
        "started_at": time(found.started_at),
    }


def check(found: Check) -> Shape:
    return {"subject": found.subject, "holds": found.holds, "evidence": found.evidence}


def ssh(found: Environment) -> Shape | None:
    """Null where the machine does not run, or has no SSH server: it is simulated."""
    if found.started_at is None or not isinstance(found.endpoint, SshEndpoint):
        return None
    return {"host": found.endpoint.host, "port": found.endpoint.port, "user": found.endpoint.user}


def baseline(found: Baseline) -> Shape:
    return {
        "id": found.id,
        "generation": found.generation,
        "memory": found.memory,
        "created_at": time(found.created_at),
    }


def checkpoint(found: ListedCheckpoint) -> Shape:
    return {
        "id": found.checkpoint.id,
        "name": found.checkpoint.name,
        "parent": found.parent or None,
        "current": found.current,
        "memory": found.checkpoint.memory,
        "automatic": found.checkpoint.automatic,
        "disk_bytes": found.size.disk_bytes,
        "memory_bytes": found.size.memory_bytes,
        "created_at": time(found.checkpoint.created_at),
    }


def operation(found: Operation) -> Shape:
    return {
        "kind": found.kind.value,
        "state": found.state.value,
        "step": found.step,
        "error": found.error,
        "started_at": time(found.started_at),
        "ended_at": time(found.ended_at),
    }


def details(found: Details) -> Shape:
    return {
        **environment(
            found.environment,
            project=found.parent.name if found.parent else None,
            checkpoint=found.checkpoint.name if found.checkpoint else None,
            simulated=found.simulated,
        ),
        "image_name": found.image_name,
        "baseline": baseline(found.baseline) if found.baseline else None,
        "baselines": [baseline(entry) for entry in found.baselines],
        "tasks": [task.name for task in found.tasks],
        "memory_used_bytes": found.machine.memory_bytes,
        "disk_used_bytes": found.machine.disk_bytes,
        "process_id": found.machine.pid,
        "operations": [operation(entry) for entry in found.operations],
        "console_log": str(found.console) if found.console else None,
        "setup_log": str(found.setup_log) if found.setup_log else None,
    }


def status(found: HostStatus, *, simulated: set[str]) -> Shape:
    host = found.capacity
    return {
        "host": {
            "cpus": host.cpus,
            "cpus_allocated": host.cpus_promised,
            "load_average_1min": found.load_average_1min,
            "memory_mib": host.memory_mib,
            "memory_allocated_mib": host.memory_promised_mib,
            "memory_available_mib": found.memory_available_mib,
            "disk_allocated_gib": sum(entry.environment.resources.disk_gib for entry in found.machines),
            "disk_total_bytes": host.disk_total_bytes,
            "disk_free_bytes": host.disk_free_bytes,
            "images_bytes": found.images_bytes,
            "running_machines": host.running,
        },
        "machines": [
            usage(entry, simulated=entry.environment.provider in simulated) for entry in found.machines
        ],
    }


def usage(found: Usage, *, simulated: bool) -> Shape:
    return {
        "kind": found.environment.kind.value,
        "name": found.environment.name,
        "status": found.environment.status.value,
        "provider": found.environment.provider,
        "simulated": simulated,
        "cpus": found.environment.resources.cpus,
        "memory_mib": found.environment.resources.memory_mib,
        "disk_gib": found.environment.resources.disk_gib,
        "memory_used_bytes": found.machine.memory_bytes,
        "disk_used_bytes": found.machine.disk_bytes,
    }


def provider(found: ProviderStatus) -> Shape:
    return {
        "name": found.name,
        "usable": found.readiness.usable,
        "simulated": found.simulated,
        "summary": found.readiness.summary,
        "facets": list(found.facets),
        "missing": list(found.readiness.missing),
        "install_command": found.readiness.install_command,
        "warnings": list(found.readiness.warnings),
        "machines": found.machines,
    }


def image(found: Image) -> Shape:
    return {
        "digest": found.digest,
        "name": found.name,
        "architecture": found.architecture,
        "firmware": found.firmware.value,
        "size_bytes": found.size_bytes,
        "virtual_size_bytes": found.virtual_size_bytes,
        "created_at": time(found.created_at),
    }


def finding(found: Finding) -> Shape:
    return {
        "level": found.level.value,
        "subject": found.subject,
        "message": found.message,
        "hint": found.hint,
    }


def garbage(found: Garbage) -> Shape:
    return {"what": found.what, "reason": found.reason, "size_bytes": found.size_bytes}


def error(found: SwarmError) -> Shape:
    return {
        "message": found.message,
        "details": found.details,
        "hint": found.hint,
        "exit_code": found.exit_code,
    }


def bulk_result(found: BulkResult) -> Shape:
    return {
        "name": found.name,
        "ok": found.error is None,
        "duration_s": round(found.duration_s, 3),
        "error": error(found.error) if found.error else None,
    }
