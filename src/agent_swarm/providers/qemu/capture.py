"""Freezing a project's disk into a point, without stopping the project.

The active layer n becomes the point, and an empty layer n+1 on top of it becomes active. What a kill of the
caller leaves at each step, and why it is safe:

    1. machine.json gets pending_layer = n+1        layer n is still active, n+1 does not exist
    2. layers/n+1 is made, empty                    whoever takes it for the active one sees what n holds
    3. QEMU, if it runs, switches to n+1            from here on n is never written again
    4. points/<id>.json is written               the point exists
    5. machine.json gets layer = n+1                done

`settle` finishes or forgets a pending layer: a running QEMU says what it writes to; a stopped machine
takes n+1 where it exists, since n+1 is then either what QEMU wrote to last or still empty.
"""

from __future__ import annotations

import logging
from contextlib import ExitStack
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import msgspec

from agent_swarm.errors import MachineError
from agent_swarm.events import Notice
from agent_swarm.guest.agent import GuestAgent
from agent_swarm.images import qcow2
from agent_swarm.providers.qemu import layout, process
from agent_swarm.providers.qemu.definition import AGENT_CHANNEL, ROOT_DRIVE, layer_node
from agent_swarm.providers.qemu.monitor import Monitor

if TYPE_CHECKING:
    from agent_swarm.events import Progress
    from agent_swarm.model import PointId
    from agent_swarm.providers.qemu.definition import MachineDefinition
    from agent_swarm.providers.qemu.layout import MachineFiles

logger = logging.getLogger(__name__)

PING_TIMEOUT_S = 3.0
THAW_ATTEMPTS = 3
NO_AGENT = "no guest agent runs in it"
NOT_FROZEN = "the guest's file systems were not frozen: the point's are as after a power cut"


def capture(files: MachineFiles, definition: MachineDefinition, point: PointId, progress: Progress) -> None:
    """Make the point; nothing happens where it exists. The caller has made sure that the chain is sound.

    Raises MachineError; then the machine is as it was.
    """
    if files.point(point).exists():
        return
    definition = settle(files, definition)
    frozen, following = definition.layer, definition.layer + 1
    layout.write(files.definition, msgspec.structs.replace(definition, pending_layer=following))
    with ExitStack() as undo:
        undo.callback(_settle_again, files, definition)
        qcow2.create_overlay(files.layer(following), backing=files.layer(frozen), size_bytes=None)
        if process.find(files) is not None:
            _switch(files, following, progress)
        undo.pop_all()
    files.points.mkdir(mode=0o700, exist_ok=True)
    created_at = datetime.now(UTC).isoformat()
    layout.write(files.point(point), layout.PointRecord(layer=frozen, created_at=created_at))
    settled = msgspec.structs.replace(definition, layer=following, pending_layer=None)
    layout.write(files.definition, settled)


def settle(files: MachineFiles, definition: MachineDefinition) -> MachineDefinition:
    """The definition with no layer pending, written where it changes. Raises MachineError."""
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


def _settle_again(files: MachineFiles, definition: MachineDefinition) -> None:
    pending = msgspec.structs.replace(definition, pending_layer=definition.layer + 1)
    try:
        settle(files, pending)
    except MachineError as error:  # QEMU is gone or hangs: the next use of the machine settles it
        logger.debug("layer %s stays pending: %s", pending.pending_layer, error)


def _switch(files: MachineFiles, following: int, progress: Progress) -> None:
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
        monitor.switch_to_overlay(ROOT_DRIVE, files.layer(following), layer_node(following))


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
