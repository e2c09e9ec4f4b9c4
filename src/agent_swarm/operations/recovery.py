"""Ending what a killed command left open.

An operation that is open while nobody holds its environment's change lock was abandoned: its process was
killed, or the host went down. Every changing command, and `doctor`, ends these first:

    create            rolled back: the machine, or what there is of it, is removed, and so is its record
    start             rolled back: the machine is stopped
    stop, baseline    rolled back to what is so: the status is what the provider sees, an unfinished
                      baseline is discarded
    delete            finished
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from agent_swarm import locks
from agent_swarm.errors import BusyError, SwarmError
from agent_swarm.events import Notice
from agent_swarm.files import remove_tree
from agent_swarm.model import EnvironmentId, MachineState, Operation, OperationKind, OperationState, Status
from agent_swarm.operations import observe

if TYPE_CHECKING:
    from agent_swarm.model import Environment
    from agent_swarm.operations.context import Context


def recover(context: Context) -> list[Operation]:
    """End every abandoned operation; return those that were ended.

    One that cannot be ended now (its provider is unavailable, say) is reported as a Notice and kept.
    """
    ended = []
    for operation in context.registry.open_operations():
        try:
            with locks.hold(context.paths.lock(f"{operation.environment_id}.change"), busy="in progress"):
                if operation not in context.registry.open_operations():
                    continue  # its owner ended it between our look and our lock
                _end(context, operation)
        except BusyError:
            continue
        except SwarmError as error:
            context.progress(
                Notice(
                    f"an interrupted {operation.kind} could not be ended yet: {error.message} {error.hint}".strip()
                )
            )
            continue
        ended.append(operation)
    if ended:
        context.publish_hosts()
    _sweep(context)
    return ended


def _sweep(context: Context) -> None:
    """Remove the lock files and logs that a kill left of a machine that has no record, or none any more."""
    locked = [path for path in context.paths.locks.iterdir() if path.suffix in {".change", ".use", ".ssh"}]
    logged = [path for path in context.paths.logs.iterdir() if path.is_dir()]
    owners = {EnvironmentId(path.stem) for path in (*locked, *logged)}
    for owner in owners - context.registry.ids():
        try:
            with locks.hold(context.paths.lock(f"{owner}.change"), busy="it is being made"):
                if context.registry.by_id(owner) is None:
                    forget_files(context, owner)
        except BusyError:
            continue


def _end(context: Context, operation: Operation) -> None:
    registry = context.registry
    environment = registry.by_id(operation.environment_id)
    if environment is None:
        registry.end(operation.id, OperationState.ROLLED_BACK, error="its environment is gone")
        return
    gone = operation.kind in {OperationKind.CREATE, OperationKind.DELETE}
    if gone:
        remove_machine(context, environment)
        forget_files(context, environment.id)
    else:
        _settle(context, operation, environment)
    finished = operation.kind is OperationKind.DELETE
    with registry.transaction():
        if gone:
            registry.remove(environment.id)
        registry.end(
            operation.id,
            OperationState.DONE if finished else OperationState.ROLLED_BACK,
            error="" if finished else "interrupted",
        )
    verb = "finished" if finished else "rolled back"
    context.progress(Notice(f"{verb} an interrupted {operation.kind} of {environment.label}"))


def _settle(context: Context, operation: Operation, environment: Environment) -> None:
    """Make the record of a machine that stays say what is so."""
    provider = context.provider(environment.provider)
    if operation.kind is OperationKind.START:
        context.disconnect(environment)
        provider.stop(environment.handle, force=True)
    for baseline in context.registry.baselines(environment.id):
        if not baseline.ready:
            provider.discard(environment.handle, baseline.id)
            context.registry.remove_baseline(baseline.id)
    found = observe.inspect(context, environment)
    if found.state is MachineState.RUNNING:
        context.registry.set_status(environment.id, Status.RUNNING)
    elif found.state is MachineState.STOPPED:
        context.registry.set_status(environment.id, Status.STOPPED)
    else:
        context.registry.set_status(environment.id, Status.BROKEN, reason=found.reason)


def remove_machine(context: Context, environment: Environment) -> None:
    """Remove what a provider holds of an environment, found by its tag where no handle was recorded."""
    provider = context.provider(environment.provider)
    current = context.registry.by_id(environment.id)
    handles = {current.handle} if current is not None and current.handle else set()
    if not handles:
        handles = {found.handle for found in provider.list_owned() if found.id == environment.id}
    context.disconnect(current or environment)
    for handle in handles:
        provider.delete(handle)


def forget_files(context: Context, environment: EnvironmentId) -> None:
    """Remove the logs and lock files of an environment that is no more. The caller holds its change lock."""
    remove_tree(context.paths.setup_log(environment).parent)
    for name in ("use", "ssh", "change"):
        locks.forget(context.paths.lock(f"{environment}.{name}"))
