"""Freezing a machine as it is now into a point, without stopping it; with its memory, if wanted.

The active layer n becomes the point's, and an empty layer m on top of it becomes active. What a kill of the
caller leaves at each step, and why it is safe:

    1. machine.json gets pending_layer = m          layer n is still active, m does not exist
    2. layers/m is made, empty                      whoever takes it for the active one sees what n holds
    3. QEMU, if it runs, switches to m              from here on n is never written again
       with memory: in the instant that is saved, the guest standing still (memory.py)
    4. points/<id> is there                         the point exists
    5. machine.json gets layer = m                  done

`settle` finishes or forgets a pending layer: a running QEMU says what it writes to; a stopped machine
takes m where it exists, since m is then either what QEMU wrote to last or still empty. It also lets a machine go
on that stands still, and ends a QEMU that had not gone on from saved memory yet: what it did counts for nothing.
"""

from __future__ import annotations

import logging
from contextlib import ExitStack
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import msgspec

from agent_swarm.errors import MachineError
from agent_swarm.events import Notice
from agent_swarm.files import remove_tree, sync_directory
from agent_swarm.guest import identity
from agent_swarm.guest.agent import AgentRefusedError, GuestAgent
from agent_swarm.images import qcow2
from agent_swarm.providers.qemu import definition as definitions
from agent_swarm.providers.qemu import layout, memory, process, storage
from agent_swarm.providers.qemu.definition import AGENT_CHANNEL, ROOT_DRIVE, Resume, layer_node
from agent_swarm.providers.qemu.monitor import Monitor

if TYPE_CHECKING:
    from pathlib import Path

    from agent_swarm.events import Progress
    from agent_swarm.model import PointId
    from agent_swarm.providers.qemu.definition import MachineDefinition
    from agent_swarm.providers.qemu.layout import MachineFiles

logger = logging.getLogger(__name__)

PING_TIMEOUT_S = 3.0
SYNC_TIMEOUT_S = 30.0
THAW_ATTEMPTS = 3
NO_AGENT = "no guest agent runs in it"
NOT_FROZEN = "the guest's file systems were not frozen: the point's are as after a power cut"


def capture(
    files: MachineFiles,
    definition: MachineDefinition,
    point: PointId,
    progress: Progress,
    *,
    with_memory: bool,
) -> None:
    """Make the point. The caller has made sure that the chain is sound.

    Raises MachineError; then the machine is as it was.
    """
    definition = settle(files, definition)
    storage.require_room(files.layer(definition.layer))
    frozen, following = definition.layer, storage.highest_layer(files) + 1
    layout.write(files.definition, msgspec.structs.replace(definition, pending_layer=following))
    made: Path | None = None
    with ExitStack() as undo:
        undo.callback(_settle_again, files, definition, following)
        qcow2.create_overlay(files.layer(following), backing=files.layer(frozen), size_bytes=None)
        if with_memory:
            undo.callback(memory.discard, files)
            _ready_guest(files)
            made = memory.save(
                files,
                definition,
                progress,
                at_switch=lambda monitor: _switch(monitor, files, following),
                then=Monitor.resume,
            )
        elif process.find(files) is not None:
            _switch_frozen(files, following, progress)
        _publish(files, point, frozen, made)
        undo.pop_all()
    settled = msgspec.structs.replace(definition, layer=following, pending_layer=None)
    layout.write(files.definition, settled)


def suspend(files: MachineFiles, definition: MachineDefinition, progress: Progress) -> None:
    """Save the running machine's memory and end its QEMU. Raises MachineError; then the machine runs on.

    From the moment that machine.json says so it is suspended, whatever becomes of QEMU, which stands still.
    """
    definition = settle(files, definition)
    storage.require_room(files.layer(definition.layer))
    following = storage.highest_layer(files) + 1
    _ready_guest(files)
    with ExitStack() as undo:
        undo.callback(memory.release, files)
        undo.callback(memory.discard, files)
        made = memory.save(files, definition, progress, at_switch=lambda _: None, then=lambda _: None)
        remove_tree(files.saved)
        made.rename(files.saved)
        undo.callback(remove_tree, files.saved)
        layer = files.layer(following)
        undo.callback(layer.unlink, missing_ok=True)
        qcow2.create_overlay(layer, backing=files.layer(definition.layer), size_bytes=None)
        suspended = msgspec.structs.replace(definition, layer=following, resume=Resume(own=True))
        layout.write(files.definition, suspended)
        undo.pop_all()
    settle(files, suspended)


def restore(
    files: MachineFiles, definition: MachineDefinition, point: PointId, record: layout.PointRecord
) -> None:
    """Put the machine, which does not run, back to one of its points. Raises MachineError."""
    source = files.point(point)
    variables = source / files.uefi_variables.name
    with storage.changing(files.paths):
        # what `saved/` holds from here on is not what it would go on from
        definition = definitions.save(files, definition, resume=None)
        resume = None
        if memory.load_record(source) is not None:
            memory.link(source, files.saved)
            resume = Resume(own=True)
        if variables.exists():
            files.uefi_variables.write_bytes(variables.read_bytes())
        files.runtime.unlink(missing_ok=True)
        following = storage.highest_layer(files) + 1
        qcow2.create_overlay(files.layer(following), backing=files.layer(record.layer), size_bytes=None)
        restored = msgspec.structs.replace(definition, layer=following, pending_layer=None, resume=resume)
        layout.write(files.definition, restored)
        if resume is None:
            remove_tree(files.saved)
        storage.prune(files)


def _publish(files: MachineFiles, point: PointId, layer: int, made: Path | None) -> None:
    """Have the point appear, whole."""
    files.points.mkdir(mode=0o700, exist_ok=True)
    directory = made
    if directory is None:
        directory = files.points / f".{point}"
        remove_tree(directory)
        directory.mkdir(mode=0o700)
    if files.uefi_variables.exists():
        copy = directory / files.uefi_variables.name
        copy.write_bytes(files.uefi_variables.read_bytes())
        copy.chmod(0o600)
    record = layout.PointRecord(layer=layer, created_at=datetime.now(UTC).isoformat())
    layout.write(directory / layout.POINT_RECORD, record)
    directory.rename(files.point(point))
    sync_directory(files.points)


def settle(files: MachineFiles, definition: MachineDefinition) -> MachineDefinition:
    """The definition with nothing pending, written where it changes. Raises MachineError."""
    memory.discard(files)
    if definition.resume is not None:
        if process.find(files) is not None:
            process.end(files)
    elif process.find(files) is not None:
        memory.release(files)
    pending = definition.pending_layer
    if pending is None:
        return definition
    layer = files.layer(pending)
    if process.find(files) is not None:
        with Monitor(files.qmp_socket) as monitor:
            active = monitor.active_node(ROOT_DRIVE)
            listens = monitor.is_opened_by_guest(AGENT_CHANNEL)
        adopted = active == layer_node(pending)
        if not adopted and active != layer_node(definition.layer):
            message = f"machine {files.handle} writes to {active}, which is none of its layers"
            raise MachineError(message, hint="Stop the machine and start it again.")
        if listens:
            _thaw_after_kill(files)
    else:
        adopted = layer.exists()
    if not adopted:
        layer.unlink(missing_ok=True)
    for remains in files.layers.glob(".*"):  # an overlay that was being made when its maker was killed
        remains.unlink(missing_ok=True)
    settled = msgspec.structs.replace(
        definition, layer=pending if adopted else definition.layer, pending_layer=None
    )
    layout.write(files.definition, settled)
    return settled


def _settle_again(files: MachineFiles, definition: MachineDefinition, following: int) -> None:
    pending = msgspec.structs.replace(definition, pending_layer=following)
    try:
        settle(files, pending)
    except MachineError as error:  # QEMU is gone or hangs: the next use of the machine settles it
        logger.debug("layer %s stays pending: %s", pending.pending_layer, error)


def _switch(monitor: Monitor, files: MachineFiles, following: int) -> None:
    monitor.switch_to_overlay(ROOT_DRIVE, files.layer(following), layer_node(following))


def _switch_frozen(files: MachineFiles, following: int, progress: Progress) -> None:
    with Monitor(files.qmp_socket) as monitor, ExitStack() as frozen:
        try:
            if not monitor.is_opened_by_guest(AGENT_CHANNEL):
                raise MachineError(NO_AGENT)
            agent = frozen.enter_context(GuestAgent(files.agent_socket))
            agent.call("guest-ping", timeout_s=PING_TIMEOUT_S)  # freezing has a long time limit
            frozen.callback(_thaw, agent)  # also after a freeze that failed half-way
            agent.freeze()
        except MachineError as error:
            progress(Notice(f"{NOT_FROZEN} ({error.details or error.message})"))
        _switch(monitor, files, following)


def _ready_guest(files: MachineFiles) -> None:
    """Have the guest write out what it holds, so that a boot from the disk alone finds it: as well as can be.

    Raises MachineError for a guest that could never go on from its memory, as it has no Perl.
    """
    try:
        with GuestAgent(files.agent_socket) as agent:
            if not agent.ping(timeout_s=PING_TIMEOUT_S):
                return
            agent.execute(["/bin/sync"], timeout_s=SYNC_TIMEOUT_S)
            agent.execute(
                identity.PERL_CHECK, timeout_s=SYNC_TIMEOUT_S
            )  # and its file is in the guest's cache
    except AgentRefusedError as error:
        message = "the guest has no Perl, which gives it an identity when it goes on from saved memory"
        raise MachineError(message, details=error.details, hint="Install perl-base in it.") from error
    except MachineError as error:
        logger.debug("the guest was not flushed: %s %s", error, error.details)


def _thaw_after_kill(files: MachineFiles) -> None:
    """The one who left the layer pending may have been killed while the guest was frozen."""
    try:
        with GuestAgent(files.agent_socket) as agent:
            _thaw(agent)
    except MachineError as error:
        logger.warning("the guest's agent cannot be reached: %s %s", error, error.details)


def _thaw(agent: GuestAgent) -> None:
    for _ in range(THAW_ATTEMPTS):  # nobody else would ever thaw it
        try:
            agent.thaw()
        except MachineError as error:
            logger.warning("the guest did not confirm the thaw: %s %s", error, error.details)
        else:
            return
