"""What a killed call left half done, carried through or taken back.

A restore is prepared as a directory `restoring/`, which appears by a rename; from then on it is carried
through, by its own call or by the next `settle`. Each step is one rename, and what is there tells which were made.
A suspension is made by the rename that makes `memory/`: before it the machine runs on, after it the machine is
SUSPENDED and what is left of its process ends.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from agent_swarm.files import remove_tree, sync_directory
from agent_swarm.providers.fake import memory, power
from agent_swarm.providers.fake.layout import DISK, MEMORY

if TYPE_CHECKING:
    from pathlib import Path

RESTORING = "restoring"


def settle(machine: Path) -> None:
    """Bring the machine to one of its states. Silent where it is in one, or gone."""
    if not machine.is_dir():
        return
    finish_restore(machine)
    if memory.suspended(machine):
        power.off(machine, timeout_s=0)
    else:
        power.go_on(machine)
    memory.clean_up(machine)


def finish_restore(machine: Path) -> None:
    """Carry a prepared restore through; nothing where there is none. May be interrupted and called again."""
    restoring = machine / RESTORING
    old = machine / f"{DISK}.old"
    if (restoring / DISK).is_dir():
        power.off(machine, timeout_s=0)
        memory.drop(machine)  # it belongs to the old disk
        if (machine / DISK).is_dir():
            remove_tree(old)
            (machine / DISK).rename(old)
        (restoring / DISK).rename(machine / DISK)
        sync_directory(machine)
    if (restoring / MEMORY).is_dir():
        (restoring / MEMORY).rename(machine / MEMORY)
        sync_directory(machine)
    for left in (restoring, machine / f"{RESTORING}.partial", old):
        remove_tree(left)
