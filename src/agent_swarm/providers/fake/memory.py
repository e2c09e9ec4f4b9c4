"""A fake machine's memory: the directory `run` on its disk, as a tmpfs is in a real one.

It is empty when the machine starts from its disk, holds whatever is written into it while the machine runs, and is
lost when that stops. A point with memory keeps a copy, and so does a suspended machine (`memory/`, layout.py);
a start from saved memory brings it back.

Each start writes, as the hygiene contract of providers/base.py has it:

- `run/entropy`, what the random number generator was seeded with: 32 new bytes, as hexadecimal digits;
- `run/clock`, the host's time in seconds since 1970;
- `run/identity.json`, host name, machine-id and a random token. A start from memory that was the machine's own
  leaves it; one from another machine's writes it anew.

A process that was given a session's secrets is a file `run/<name>.secret`: a start from memory that was
another machine's removes it, unless the machine was asked to keep secrets.
"""

from __future__ import annotations

import hashlib
import secrets
import time
from typing import TYPE_CHECKING

import msgspec

from agent_swarm.errors import MachineError
from agent_swarm.files import remove_tree, sync_directory, write_atomically
from agent_swarm.model import Resources  # noqa: TC001 - msgspec reads the annotation
from agent_swarm.providers.fake import trees
from agent_swarm.providers.fake.layout import DISK, MEMORY

if TYPE_CHECKING:
    from pathlib import Path

    from agent_swarm.providers.fake.layout import Owner

RUN = "run"
_SAVED = "saved.json"


class Identity(msgspec.Struct, frozen=True):
    """What `run/identity.json` holds."""

    host_name: str
    machine_id: str
    random: str


class Saved(msgspec.Struct, frozen=True):
    """What saved memory belongs to: it can go on only in a machine of the same resources."""

    machine: str
    resources: Resources
    keep_secrets: bool = False


def suspended(machine: Path) -> bool:
    return (machine / MEMORY).is_dir()


def boot(machine: Path, owner: Owner) -> None:
    """Make the memory of a machine that is about to start from its disk."""
    empty(machine)
    run = machine / DISK / RUN
    run.mkdir(mode=0o700)
    _identify(run, owner)
    _refresh(run)


def bring_back(machine: Path, owner: Owner) -> None:
    """Put a copy of the saved memory in its place, with what the hygiene contract asks. The saved memory stays."""
    saved = read(machine / MEMORY)
    empty(machine)
    run = machine / DISK / RUN
    trees.copy(machine / MEMORY / RUN, run)
    if saved.machine != owner.environment:
        _identify(run, owner)
        if not saved.keep_secrets:
            for path in run.glob("*.secret"):
                path.unlink()
    _refresh(run)


def empty(machine: Path) -> None:
    """Lose what memory holds: the machine does not run."""
    run = machine / DISK / RUN
    if run.is_symlink() or run.is_file():
        run.unlink()
    else:
        remove_tree(run)


def save(machine: Path, owner: Owner, target: Path) -> None:
    """Copy the running machine's memory to `target`, which is absent."""
    target.mkdir(mode=0o700)
    run = machine / DISK / RUN
    if run.is_dir() and not run.is_symlink():
        trees.copy(run, target / RUN)
    else:
        (target / RUN).mkdir(mode=0o700)  # what runs in a machine may do this to its memory, and lives on
    _write(target, Saved(owner.environment, owner.resources))


def hand_on(source: Path, target: Path, *, keep_secrets: bool) -> None:
    """Copy saved memory to `target`, which is absent, for a machine that goes on from it."""
    trees.copy(source, target)
    _write(target, msgspec.structs.replace(read(target), keep_secrets=keep_secrets))


def drop(machine: Path) -> None:
    """Forget saved memory: at once, and then its files."""
    partial = machine / f"{MEMORY}.partial"
    remove_tree(partial)
    if suspended(machine):
        (machine / MEMORY).rename(partial)
        sync_directory(machine)
        remove_tree(partial)


def take_back(machine: Path) -> None:
    """After a start from memory that failed: SUSPENDED again."""
    resumed = machine / f"{MEMORY}.resumed"
    if resumed.is_dir() and not suspended(machine):
        resumed.rename(machine / MEMORY)
        sync_directory(machine)


def clean_up(machine: Path) -> None:
    """Remove what interrupted saves and finished starts left."""
    for stage in ("partial", "resumed"):
        remove_tree(machine / f"{MEMORY}.{stage}")


def read(memory: Path) -> Saved:
    """What saved memory belongs to. Raises MachineError where it is missing or damaged."""
    try:
        return msgspec.json.decode((memory / _SAVED).read_bytes(), type=Saved)
    except (OSError, msgspec.DecodeError) as error:
        message = "saved memory is missing or damaged"
        raise MachineError(message, details=str(error), hint="Start from the disk.") from error


def obstacle(memory: Path, resources: Resources) -> str:
    """Why a machine of these resources cannot go on from saved memory; "" where it can."""
    try:
        saved = read(memory)
    except MachineError:
        return "its saved memory is missing or damaged"
    if saved.resources != resources:
        had, has = (
            f"{r.cpus} CPUs, {r.memory_mib} MiB and {r.disk_gib} GiB" for r in (saved.resources, resources)
        )
        return f"it was saved with {had}, and the machine would have {has}"
    return ""


def _identify(run: Path, owner: Owner) -> None:
    identity = Identity(
        host_name=owner.host_name,
        machine_id=hashlib.sha256(owner.environment.encode()).hexdigest()[:32],
        random=secrets.token_hex(16),
    )
    write_atomically(run / "identity.json", msgspec.json.encode(identity))


def _refresh(run: Path) -> None:
    write_atomically(run / "entropy", secrets.token_hex(32).encode())
    write_atomically(run / "clock", f"{time.time():.3f}".encode())


def _write(memory: Path, saved: Saved) -> None:
    write_atomically(memory / _SAVED, msgspec.json.encode(saved))
