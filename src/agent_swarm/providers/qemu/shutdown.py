"""Stopping a machine: ask its guest, then press its power button, then cut the power."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

from agent_swarm import processes
from agent_swarm.errors import MachineError
from agent_swarm.guest.agent import GuestAgent
from agent_swarm.providers.qemu import process
from agent_swarm.providers.qemu.monitor import Monitor

if TYPE_CHECKING:
    from collections.abc import Callable

    from agent_swarm.providers.qemu.layout import MachineFiles

logger = logging.getLogger(__name__)

AGENT_TIMEOUT_S = 3.0
QUIT_TIMEOUT_S = 5.0


def stop(files: MachineFiles, *, force: bool, timeout_s: float) -> None:
    """Return when no QEMU of the machine runs. Raises MachineError where it cannot be ended."""
    record = process.find(files)
    if record is not None and not force:
        deadline = time.monotonic() + timeout_s
        for ask, share in ((_ask_guest, 0.5), (_press_button, 1.0)):
            left_s = deadline - time.monotonic()
            if left_s > 0 and ask(files) and processes.wait_for_end(record, timeout_s=left_s * share):
                break
    if record is not None and processes.alive(record):
        _quit(files)
        processes.wait_for_end(record, timeout_s=QUIT_TIMEOUT_S)
    process.end(files)


def _ask_guest(files: MachineFiles) -> bool:
    def ask() -> None:
        with GuestAgent(files.agent_socket) as agent:
            agent.shutdown(timeout_s=AGENT_TIMEOUT_S)

    return _done(ask)


def _press_button(files: MachineFiles) -> bool:
    def press() -> None:
        with Monitor(files.qmp_socket) as monitor:
            monitor.power_down()

    return _done(press)


def _quit(files: MachineFiles) -> bool:
    def leave() -> None:
        with Monitor(files.qmp_socket, timeout_s=QUIT_TIMEOUT_S) as monitor:
            monitor.quit()

    return _done(leave)


def _done(ask: Callable[[], None]) -> bool:
    try:
        ask()
    except MachineError as error:
        logger.debug("%s %s", error, error.details)  # the next, harder way follows
        return False
    return True
