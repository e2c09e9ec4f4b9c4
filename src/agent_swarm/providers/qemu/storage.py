"""Which layers are needed, by whom, and removing those that nobody needs.

A layer is needed where a chain of backing files leads to it from a machine's active layer, from a point's layer, or
from the first layer of another machine. Layers are only ever added and removed, never changed or moved, so a look
at the headers tells everything; every change of what builds on what is made under one lock (`changing`).

Deleting a machine that others build on leaves its directory with those layers and kept.json; the last of the
others takes it along. What cannot be told, because a file is damaged, counts as needed.
"""

from __future__ import annotations

import contextlib
import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from agent_swarm import locks
from agent_swarm.errors import MachineError
from agent_swarm.files import allocated_bytes, remove_tree, sync_directory
from agent_swarm.model import EnvironmentId, Kind, PointId
from agent_swarm.providers.qemu import definition, layout
from agent_swarm.providers.qemu.chain import LONGEST_CHAIN, read_backing

if TYPE_CHECKING:
    from collections.abc import Iterator

    from agent_swarm.model import InstallationId
    from agent_swarm.paths import Paths
    from agent_swarm.providers.qemu.layout import MachineFiles

logger = logging.getLogger(__name__)

LOCK_WAIT_S = 60.0
SPARE_LAYERS = 16
"""Below the longest chain, for restores and forks, which add a layer too."""


class Kept(msgspec.Struct, frozen=True):
    """kept.json: the machine is no more; its layers serve others."""

    version: int = layout.FORMAT_VERSION


@contextlib.contextmanager
def changing(paths: Paths) -> Iterator[None]:
    """Hold off others that change which layer builds on which. For moments only."""
    busy = "other commands are making or deleting machines"
    with locks.hold(paths.lock("qemu-layers"), wait_s=LOCK_WAIT_S, busy=busy):
        yield


def points(files: MachineFiles) -> list[PointId]:
    """The machine's points, by id."""
    return [PointId(path.parent.name) for path in sorted(files.points.glob(f"[!.]*/{layout.POINT_RECORD}"))]


def is_kept(files: MachineFiles) -> bool:
    return files.kept.exists()


def needed(files: MachineFiles, *, without: PointId | None = None) -> set[Path]:
    """The machine's layers that anything needs, `without` one of its points."""
    try:
        roots = [files.layer(record.layer) for record in _records(files, without)]
        machine = None if is_kept(files) else definition.load(files)
        if machine is not None:
            roots.append(files.layer(machine.layer))
            if machine.pending_layer is not None:
                roots.append(files.layer(machine.pending_layer))
        roots += _external(files)
        found: set[Path] = set()
        for root in roots:
            layer: Path | None = root
            while layer is not None and layer.parent == files.layers and layer not in found:
                found.add(layer)
                layer = _backing(layer)
    except MachineError as error:
        logger.warning("every layer of %s is kept: %s %s", files.id, error, error.details)
        return set(files.layers.glob("*"))
    return found


def prune(files: MachineFiles) -> None:
    """Remove the machine's layers that nobody needs. The caller holds `changing`."""
    wanted = needed(files)
    for layer in files.layers.glob("[!.]*.qcow2"):
        if layer not in wanted:
            layer.unlink(missing_ok=True)


def remove(files: MachineFiles, installation: InstallationId) -> None:
    """Remove a machine's files, as far as no other machine builds on them; then what was kept and is needed no more.

    The caller holds `changing`.
    """
    remove_tree(files.remains(installation))
    if not files.directory.is_dir():
        return
    layout.write(files.kept, Kept())
    _remove_unneeded(files, installation)
    while any(_remove_unneeded(kept, installation) for kept in machines(files.paths) if is_kept(kept)):
        pass  # what one kept machine builds on may be another


def _remove_unneeded(files: MachineFiles, installation: InstallationId) -> bool:
    """Remove of a deleted machine what nobody builds on; whether that was all of it."""
    prune(files)
    if any(files.layers.glob("[!.]*.qcow2")):
        for path in list(files.directory.iterdir()):
            if path not in (files.owner, files.kept, files.layers):
                remove_tree(path) if path.is_dir() else path.unlink(missing_ok=True)
        prune(files)  # its own points needed layers until now
        if any(files.layers.glob("[!.]*.qcow2")):
            return False
    remains = files.remains(installation)
    files.directory.rename(remains)
    sync_directory(files.directory.parent)
    remove_tree(remains)
    return True


def machines(paths: Paths) -> Iterator[MachineFiles]:
    """Every machine's files, kept ones included, whatever state they are in."""
    for kind in Kind:
        parent = paths.projects if kind is Kind.PROJECT else paths.tasks
        for path in sorted(parent.iterdir()) if parent.is_dir() else ():
            if path.is_dir() and not path.name.startswith("."):
                yield layout.MachineFiles.of(paths, kind, EnvironmentId(path.name))


def base_of(files: MachineFiles) -> Path | None:
    """What the machine's first layer builds on: a layer of another machine, or an image; None where it has none.

    Raises MachineError where that cannot be told.
    """
    return _backing(files.layer(1))


def freed_by(files: MachineFiles, point: PointId) -> int:
    """The bytes of layers that only this point needs."""
    return sum(map(allocated_bytes, needed(files) - needed(files, without=point)))


def require_room(layer: Path) -> None:
    """Raise MachineError where so many layers lie below this one that another would make too long a chain."""
    count, below = 1, _backing(layer)
    while below is not None and count < LONGEST_CHAIN - SPARE_LAYERS:
        count, below = count + 1, _backing(below)
    if below is not None:
        message = (
            f"the disk consists of more than {count} layers, one for each point that was captured on its way"
        )
        raise MachineError(message, hint="Take the work into a new task: layers cannot be joined yet.")


def highest_layer(files: MachineFiles) -> int:
    """The highest number that a layer of the machine has; 0 where it has none."""
    return max((int(path.stem) for path in files.layers.glob("[0-9]*.qcow2")), default=0)


def _external(files: MachineFiles) -> Iterator[Path]:
    """The machine's layers that other machines build on."""
    for other in machines(files.paths):
        base = base_of(other) if other.directory != files.directory else None
        if base is not None and base.parent == files.layers:
            yield base


def _records(files: MachineFiles, without: PointId | None) -> Iterator[layout.PointRecord]:
    for point in points(files):
        record = layout.read(files.point_record(point), layout.PointRecord) if point != without else None
        if record is not None:
            yield record


def _backing(layer: Path) -> Path | None:
    """The file that a layer builds on. Raises MachineError where that cannot be read."""
    try:
        name = read_backing(layer)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        message = f"{layer.name} of {layer.parent.parent.name} cannot be read"
        raise MachineError(
            message, details=str(error), hint="`agent-swarm doctor` shows what else is affected."
        ) from error
    return None if name is None else Path(os.path.normpath(layer.parent / name))
