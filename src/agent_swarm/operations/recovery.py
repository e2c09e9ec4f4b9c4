"""Ending what a killed command left open.

An operation that is open while nobody holds its environment's change lock was abandoned: its process was
killed, or the host went down. Every changing command, and `doctor`, ends these first:

    create            rolled back: the machine, or what there is of it, is removed, and so is its record
    start             rolled back: the machine is stopped; one that went on from saved memory is suspended again
    stop, suspend,    ended as what is so: the status is what the provider sees, an unfinished
    baseline,         baseline or checkpoint, and one that was being deleted, is discarded
    checkpoint
    restore           rolled back: the machine is put to the state that was saved before, and not started
    delete            finished

A machine that stays is first asked to settle: one that was paused for a capture goes on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from agent_swarm import locks
from agent_swarm.errors import BusyError, MachineError, SwarmError
from agent_swarm.events import Notice
from agent_swarm.files import remove_tree
from agent_swarm.model import EnvironmentId, Operation, OperationKind, OperationState, Status
from agent_swarm.operations import boot, observe, points

if TYPE_CHECKING:
    from agent_swarm.model import Environment
    from agent_swarm.operations.context import Context


_ENDED = frozenset({OperationKind.SUSPEND, OperationKind.CHECKPOINT})


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
    verb = "finished" if finished else "ended" if operation.kind in _ENDED else "rolled back"
    context.progress(Notice(f"{verb} an interrupted {operation.kind} of {environment.label}"))


def _settle(context: Context, operation: Operation, environment: Environment) -> None:
    """Make the record of a machine that stays say what is so."""
    provider = context.provider(environment.provider)
    provider.settle(environment.handle)
    if operation.kind is OperationKind.START and operation.step == boot.RESUME:
        points.suspend_again(context, environment)
    elif operation.kind is OperationKind.START:
        context.disconnect(environment)
        provider.stop(environment.handle, force=True)
    points.discard_unfinished(context, environment)
    if operation.kind is OperationKind.RESTORE:
        _put_back(context, operation, environment)
    found = observe.inspect(context, environment)
    status = observe.STATUS[found.state]
    reason = found.reason if status is Status.BROKEN else ""
    context.registry.set_status(environment.id, status, reason=reason)


def _put_back(context: Context, operation: Operation, environment: Environment) -> None:
    try:
        found = points.put_back(context, environment, operation.step)
    except MachineError as error:  # its points are unharmed: the user can restore any of them
        context.progress(
            Notice(
                f"{environment.label} could not be put back to where it was before the restore: {error.message}; "
                f"that is a checkpoint still, see `agent-swarm checkpoints {environment.name}`"
            )
        )
        return
    if found is not None:
        context.progress(
            Notice(
                f"{environment.label} is at checkpoint {found.name}, and "
                f"`agent-swarm start {environment.name}` {'goes on' if found.memory else 'boots'} from there"
            )
        )


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
