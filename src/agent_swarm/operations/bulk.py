"""The same change to many machines, side by side."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

from agent_swarm.errors import SwarmError, UsageError
from agent_swarm.model import Kind, validate_name
from agent_swarm.operations.create import create_task
from agent_swarm.operations.delete import delete
from agent_swarm.operations.requests import ResourceRequest

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from agent_swarm.operations.context import Context


@dataclass(frozen=True, slots=True)
class BulkResult:
    """How it went for one name: `error` is None where it went well."""

    name: str
    error: SwarmError | None
    duration_s: float


def bulk_create(
    context: Context,
    project: str,
    names: Sequence[str],
    *,
    request: ResourceRequest = ResourceRequest(),
    force: bool = False,
    cold: bool = False,
    parallel: int | None = None,
) -> list[BulkResult]:
    """Create many tasks of a project; the results are in the order of `names`.

    Names are checked before the first machine is made. One failure neither hides nor stops the others.
    """
    check_names(names)
    context.registry.environment(Kind.PROJECT, project)
    return side_by_side(
        context,
        names,
        lambda name: create_task(context, project, name, request=request, force=force, cold=cold),
        parallel,
    )


def bulk_delete(
    context: Context,
    names: Sequence[str] = (),
    *,
    project: str | None = None,
    force: bool = False,
    parallel: int | None = None,
) -> list[BulkResult]:
    """Delete tasks by name, or all tasks of a project; results as of `bulk_create`."""
    if project is not None:
        if names:
            message = "give names or --project, not both"
            raise UsageError(message)
        owner = context.registry.environment(Kind.PROJECT, project)
        names = [task.name for task in context.registry.environments(parent=owner.id)]
    _no_doubles(names)
    return side_by_side(context, names, lambda name: delete(context, Kind.TASK, name, force=force), parallel)


def side_by_side(
    context: Context, names: Sequence[str], work: Callable[[str], object], parallel: int | None = None
) -> list[BulkResult]:
    """Do `work` for each name, at most `parallel` (limits.parallel) at a time.

    Ctrl-C starts no further ones; those under way come to their end, or undo themselves.
    """

    def one(name: str) -> BulkResult:
        started = time.monotonic()
        try:
            work(name)
        except SwarmError as error:
            return BulkResult(name, error, time.monotonic() - started)
        return BulkResult(name, None, time.monotonic() - started)

    pool = ThreadPoolExecutor(
        max_workers=parallel or context.config.limits.parallel, thread_name_prefix="bulk"
    )
    try:
        return list(pool.map(one, names))
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def check_names(names: Sequence[str]) -> None:
    """Raise UsageError for a name that no task can have, and for one that is given twice."""
    for name in names:
        validate_name(name, what="task name")
    _no_doubles(names)


def _no_doubles(names: Sequence[str]) -> None:
    doubles = sorted({name for name in names if names.count(name) > 1})
    if doubles:
        message = f"named twice: {', '.join(doubles)}"
        raise UsageError(message, hint="Give each name once.")
