"""Make new tasks from a task as it is now, its processes included, or from one of its checkpoints."""

from __future__ import annotations

from typing import TYPE_CHECKING

from agent_swarm.errors import NotFoundError, UsageError
from agent_swarm.events import Notice
from agent_swarm.model import Checkpoint, Environment, Kind, Status
from agent_swarm.operations import checkpoint, observe, points, recovery, retention
from agent_swarm.operations.bulk import BulkResult, check_names, side_by_side
from agent_swarm.operations.make import make, new
from agent_swarm.providers.base import FromPoint

if TYPE_CHECKING:
    from collections.abc import Sequence

    from agent_swarm.operations.context import Context


def fork(
    context: Context,
    source: str,
    names: Sequence[str],
    *,
    keep_secrets: bool = False,
    force: bool = False,
    parallel: int | None = None,
) -> list[BulkResult]:
    """New tasks from `source`, "TASK" or "TASK@CHECKPOINT", side by side; results as of `bulk_create`.

    A task's present state becomes an automatic checkpoint first; a running one goes on. Where the checkpoint holds
    memory the new tasks go on from it, else they boot from its disk. Processes that were given a session's
    secrets do not live on in them, unless `keep_secrets`. `force` passes over the host's limits.
    """
    check_names(names)
    task, at, point = source.partition("@")
    if at and not point:
        message = f"{source!r} names no checkpoint"
        raise UsageError(message, hint=f"Write {task}@CHECKPOINT, or {task} for its present state.")
    recovery.recover(context)
    retention.tidy(context)
    parent = context.registry.environment(Kind.TASK, task)
    provider = context.provider(parent.provider)
    checkpoint.require_snapshots(provider)
    if point:
        found = checkpoint.find(context, parent, point)
    else:
        with context.changing(parent) as current:
            now = observe.observe(context, [current])[0]
            found = checkpoint.capture(context, now, prefix="fork-", automatic=True)
    memory = found.memory
    if memory and (
        notice := points.boots_because(
            provider, found.handle, parent.resources, what=f"a fork of {parent.label}"
        )
    ):
        memory = False
        context.progress(Notice(notice))
    return side_by_side(
        context,
        names,
        lambda name: _fork(
            context, parent, found, name, memory=memory, keep_secrets=keep_secrets, force=force
        ),
        parallel,
    )


def _fork(
    context: Context,
    parent: Environment,
    found: Checkpoint,
    name: str,
    *,
    memory: bool,
    keep_secrets: bool,
    force: bool,
) -> Environment:
    assert parent.image is not None
    assert parent.parent_id is not None
    image = context.images.get(parent.image)
    project = context.registry.by_id(parent.parent_id)
    origin = f"{parent.name}@{found.name}"

    def still_there() -> None:
        owner, point = context.registry.by_id(parent.id), context.registry.checkpoint(found.id)
        if owner is None or owner.status is Status.DELETING or point is None or not point.ready:
            message = f"checkpoint {origin} was deleted meanwhile"
            raise NotFoundError(message)

    return make(
        context,
        new(
            Kind.TASK,
            name,
            provider=parent.provider,
            image=image,
            resources=parent.resources,
            parent=project,
            baseline=parent.baseline_id,
            origin=origin,
        ),
        FromPoint(found.handle, image, memory=memory, keep_secrets=keep_secrets),
        image,
        parent=project,
        still_there=still_there,
        force=force,
    )
