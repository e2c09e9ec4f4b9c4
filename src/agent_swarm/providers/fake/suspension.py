"""Memory to disk and back, for fake machines. recovery.py says what an interrupted suspension leaves."""

from __future__ import annotations

from typing import TYPE_CHECKING

from agent_swarm.errors import MachineError, SwarmError
from agent_swarm.files import sync_directory
from agent_swarm.providers.fake import memory, power, recovery
from agent_swarm.providers.fake.layout import MEMORY, owner, owner_or_fail, typed
from agent_swarm.providers.fake.steps import Step

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from agent_swarm.events import Progress
    from agent_swarm.providers.fake.layout import Layout


class FakeSuspend:
    """The facet `suspend`. `meet` comes to a fault's point."""

    def __init__(self, layout: Layout, meet: Callable[[str], None]) -> None:
        self._layout = layout
        self._meet = meet

    def suspend(self, handle: str, progress: Progress) -> None:
        machine = self._layout.existing(handle)
        self._meet("suspend")
        if memory.suspended(machine) or power.running(machine) is None:
            message = f"machine {handle} does not run: there is nothing to suspend"
            raise MachineError(message)
        try:
            with Step(progress, handle, "save the memory"):
                self._save(machine)
        except (SwarmError, OSError) as error:
            memory.drop(machine)
            power.go_on(machine)
            raise typed(error, f"machine {handle} could not be suspended") from error

    def _save(self, machine: Path) -> None:
        partial = machine / f"{MEMORY}.partial"
        memory.clean_up(machine)
        power.pause(machine)
        self._meet("suspend:paused")
        memory.save(machine, owner_or_fail(machine), partial)
        self._meet("suspend:saved")
        partial.rename(machine / MEMORY)
        sync_directory(machine)
        self._meet("suspend:renamed")
        power.off(machine, timeout_s=0)

    def forget(self, handle: str) -> None:
        machine = self._layout.directory(handle)
        self._meet("forget")
        try:
            recovery.settle(machine)
            memory.drop(machine)
        except OSError as error:
            raise typed(error, f"the memory of machine {handle} could not be removed") from error

    def obstacle(self, handle: str) -> str:
        try:
            self._meet("obstacle")
            machine = self._layout.directory(handle)
        except SwarmError as error:
            return str(error)
        tag = owner(machine)
        if tag is None or not memory.suspended(machine):
            return ""
        return memory.obstacle(machine / MEMORY, tag.resources)
