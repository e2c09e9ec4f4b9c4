"""Named points of a task, which it can be put back to and forked from."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from agent_swarm.errors import BusyError, ConflictError, NotFoundError
from agent_swarm.model import Checkpoint, Environment, Kind, OperationKind, Status, validate_name
from agent_swarm.operations import observe, points, recovery, retention
from agent_swarm.operations.journal import Change

if TYPE_CHECKING:
    from collections.abc import Sequence

    from agent_swarm.operations.context import Context
    from agent_swarm.providers.base import PointSize, Provider, Snapshots

CAPTURED = frozenset({Status.RUNNING, Status.STOPPED})


@dataclass(frozen=True, slots=True)
class ListedCheckpoint:
    """A checkpoint as `checkpoints` shows it. `parent` is a name, "" for a first one."""

    checkpoint: Checkpoint
    parent: str
    size: PointSize
    current: bool
    """The task's present state descends from it."""


def checkpoint(
    context: Context, task: str, name: str | None = None, *, disk_only: bool = False
) -> Checkpoint:
    """A new checkpoint of the task as it is now; a running task goes on, its sessions too.

    It holds the memory of a running task, where the provider can, unless `disk_only`. `name` None: the time.
    """
    if name is not None:
        validate_name(name, what="checkpoint name")
    recovery.recover(context)
    retention.tidy(context)
    named = context.registry.environment(Kind.TASK, task)
    with context.changing(named) as current:
        environment = observe.observe(context, [current])[0]
        return capture(context, environment, name=name, disk_only=disk_only)


def capture(
    context: Context,
    environment: Environment,
    *,
    name: str | None = None,
    prefix: str = "",
    disk_only: bool = False,
    automatic: bool = False,
) -> Checkpoint:
    """`checkpoint` of a task whose change lock the caller holds. `name` None: `prefix` and the time."""
    provider = context.provider(environment.provider)
    require_snapshots(provider)
    require_capturable(environment)
    chosen = name or points.free_name(context, environment.id, prefix)
    memory = environment.status is Status.RUNNING and points.saves_memory(provider) and not disk_only
    intended: list[Checkpoint] = []

    def intend() -> None:
        intended.append(
            context.registry.add_checkpoint(environment.id, chosen, memory=memory, automatic=automatic)
        )

    with Change.begin(context, environment, OperationKind.CHECKPOINT, intend) as change:
        with change.step("capture checkpoint"):
            made = points.capture_checkpoint(context, change, provider, intended[0])
        change.done(lambda: context.registry.finish_checkpoint(made.id, made.handle))
    return made


def checkpoints(context: Context, task: str) -> Sequence[ListedCheckpoint]:
    """A task's checkpoints, the oldest first. Ends abandoned operations."""
    recovery.recover(context)
    environment = context.registry.environment(Kind.TASK, task)
    snapshots = require_snapshots(context.provider(environment.provider))
    found = [entry for entry in context.registry.checkpoints(environment.id) if entry.ready]
    names = {entry.id: entry.name for entry in found}
    return [
        ListedCheckpoint(
            entry,
            parent=names.get(entry.parent_id, "") if entry.parent_id else "",
            size=snapshots.size(entry.handle),
            current=entry.id == environment.checkpoint_id,
        )
        for entry in found
    ]


def delete_checkpoint(context: Context, task: str, name: str) -> None:
    """Remove one checkpoint. What descended from it, forks included, is not harmed.

    Once begun it is not undone: what a failure or a kill left is finished by the next command.
    """
    recovery.recover(context)
    named = context.registry.environment(Kind.TASK, task)
    with context.changing(named) as environment:
        remove(context, environment, find(context, environment, name))


def remove(context: Context, environment: Environment, found: Checkpoint) -> None:
    """`delete_checkpoint` of a task whose change lock the caller holds."""
    provider = context.provider(environment.provider)

    def intend() -> None:
        require_no_fork_in_the_making(context, environment, found)
        context.registry.retire_checkpoint(found.id)

    with Change.begin(context, environment, OperationKind.CHECKPOINT, intend, forward_only=True) as change:
        with change.step("discard checkpoint"):
            provider.discard(environment.handle, found.id)
        change.done(lambda: context.registry.remove_checkpoint(found.id))


def find(context: Context, environment: Environment, name: str) -> Checkpoint:
    """Raises NotFoundError, whose hint names the nearest."""
    found = {entry.name: entry for entry in context.registry.checkpoints(environment.id) if entry.ready}
    if name in found:
        return found[name]
    near = difflib.get_close_matches(name, found, n=1)
    shown = name if len(name) <= 80 else name[:77] + "..."
    message = f"{environment.label} has no checkpoint named {shown!r}"
    raise NotFoundError(
        message,
        hint=f"Did you mean {near[0]!r}?"
        if near
        else f"`agent-swarm checkpoints {environment.name}` shows what there is.",
    )


def require_snapshots(provider: Provider) -> Snapshots:
    """Raises ConflictError where the provider has no checkpoints."""
    if provider.snapshots is None:
        message = f"the provider {provider.name} has no checkpoints"
        raise ConflictError(message, hint="`agent-swarm providers` shows what each of them can do.")
    return provider.snapshots


def require_capturable(environment: Environment) -> None:
    """Raises ConflictError where no checkpoint can be made of the machine's present state."""
    if environment.status in CAPTURED:
        return
    message = f"{environment.label} is {environment.status}: its state cannot be captured"
    raise ConflictError(
        message,
        details=environment.reason,
        hint=f"Start it with `agent-swarm start {environment.name}`."
        if environment.status is Status.SUSPENDED
        else "",
    )


def require_no_fork_in_the_making(
    context: Context, environment: Environment, found: Checkpoint | None = None
) -> None:
    """Raises BusyError where a machine is being made from the checkpoint, or from any of the task."""
    for other in context.registry.environments(kind=Kind.TASK):
        source, _, point = other.origin.partition("@")
        if (
            other.status is Status.CREATING
            and not other.handle
            and source == environment.name
            and (found is None or point == found.name)
        ):
            message = f"{other.label} is being made from {other.origin}"
            raise BusyError(message, hint="Wait until it is made, and try again.")
