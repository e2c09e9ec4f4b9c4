"""Points of a machine's life, baselines and checkpoints alike: who can have memory, and what a failure leaves."""

from __future__ import annotations

import dataclasses
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from agent_swarm.model import MachineState

if TYPE_CHECKING:
    from agent_swarm.model import Checkpoint, Environment, EnvironmentId, Resources
    from agent_swarm.operations.context import Context
    from agent_swarm.operations.journal import Change
    from agent_swarm.providers.base import Provider


SAVE = "save present state"
RESTORE = "restore checkpoint"
"""The steps of a restore before which, and during which, its machine may still be as it was."""


def saves_memory(provider: Provider) -> bool:
    """Whether points of its running machines can hold their memory."""
    return provider.snapshots is not None and provider.snapshots.memory


def obstacle(provider: Provider, handle: str, resources: Resources) -> str:
    """Why no machine can go on from a point's memory, as half a sentence; "" where one can."""
    if provider.live_fork is None:
        return f"the provider {provider.name} cannot start from saved memory"
    return provider.live_fork.obstacle(handle, resources)


def boots_because(provider: Provider, handle: str, resources: Resources, *, what: str) -> str:
    """What to tell the user where no new machine can go on from the point's memory, "" where it can."""
    why_not = obstacle(provider, handle, resources)
    return f"{what} boots instead of going on from saved memory: {why_not}" if why_not else ""


def capture_checkpoint(
    context: Context, change: Change, provider: Provider, intended: Checkpoint
) -> Checkpoint:
    """Have the machine's present state captured. The caller records it, by `finish_checkpoint`, in a transaction;
    until then it is not listed, and an error, or recovery, discards it."""
    environment = change.environment
    change.undo.callback(discard_unfinished, context, environment)
    handle = provider.capture(environment.handle, intended.id, context.progress, memory=intended.memory)
    return dataclasses.replace(intended, handle=handle, ready=True)


def discard_unfinished(context: Context, environment: Environment) -> None:
    """Remove every point of the machine whose making, or deletion, did not come to its end."""
    provider = context.provider(environment.provider)
    registry = context.registry
    for baseline in registry.baselines(environment.id):
        if not baseline.ready:
            provider.discard(environment.handle, baseline.id)
            registry.remove_baseline(baseline.id)
    for checkpoint in registry.checkpoints(environment.id):
        if not checkpoint.ready:
            provider.discard(environment.handle, checkpoint.id)
            with registry.transaction():
                registry.remove_checkpoint(checkpoint.id)


def free_name(context: Context, environment: EnvironmentId, prefix: str = "") -> str:
    """A name for a new checkpoint: the time, in UTC. The caller holds the environment's change lock."""
    taken = {found.name for found in context.registry.checkpoints(environment)}
    name = wanted = prefix + datetime.now(UTC).strftime("%Y-%m-%dT%H-%M-%S")
    number = 1
    while name in taken:
        number += 1
        name = f"{wanted}-{number}"
    return name


def suspend_again(context: Context, environment: Environment) -> None:
    """Take back a start from saved memory: what ran on from there is saved anew."""
    provider = context.provider(environment.provider)
    if provider.suspend is not None and provider.inspect(environment.handle).state is MachineState.RUNNING:
        current = context.registry.by_id(environment.id)
        context.disconnect(current or environment)
        provider.suspend.suspend(environment.handle, context.progress)


def put_back(context: Context, environment: Environment, step: str) -> Checkpoint | None:
    """Take back a restore that came as far as `step`: the machine is put to the checkpoint that its record says it
    descends from, and does not run. None, and nothing is done, where the machine was not touched yet."""
    provider = context.provider(environment.provider)
    runs = provider.inspect(environment.handle).state is MachineState.RUNNING
    if step in {"", SAVE} or (step == RESTORE and runs):
        return None
    current = context.registry.by_id(environment.id)
    assert current is not None
    assert current.checkpoint_id is not None
    assert provider.snapshots is not None
    found = context.registry.checkpoint(current.checkpoint_id)
    assert found is not None
    context.disconnect(current)
    provider.snapshots.restore(environment.handle, found.handle, context.progress)
    return found
