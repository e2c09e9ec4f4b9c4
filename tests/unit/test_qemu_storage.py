"""Which layers are needed. The layers are headers alone, written by hand: nothing else of them is looked at."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec
import pytest

from agent_swarm.errors import MachineError
from agent_swarm.model import EnvironmentId, Firmware, ImageDigest, InstallationId, Kind, PointId
from agent_swarm.paths import Paths
from agent_swarm.providers.qemu import definition, layout, storage
from agent_swarm.providers.qemu.chain import LONGEST_CHAIN
from agent_swarm.providers.qemu.layout import MachineFiles
from tests.unit.test_qemu_chain import write_header

if TYPE_CHECKING:
    from pathlib import Path

OURS = InstallationId("0123456789ab")
ONE, TWO = PointId("1" * 12), PointId("2" * 12)


@dataclass(frozen=True)
class World:
    """A state directory with machines, as their files alone."""

    paths: Paths

    def machine(self, name: str, *, on: Path | None = None, kind: Kind = Kind.TASK) -> MachineFiles:
        """A machine with its first layer, on another machine's layer or on an image."""
        files = MachineFiles.of(self.paths, kind, EnvironmentId(name))
        files.layers.mkdir(parents=True)
        owner = layout.Owner(installation=OURS, environment=files.id, kind=kind)
        layout.write(files.owner, owner)
        self.layer(files, 1, on or self.paths.images / "image" / "disk.qcow2")
        self.define(files)
        files.seed.write_text("seed")
        return files

    def layer(self, files: MachineFiles, number: int, on: Path | int) -> Path:
        backing = files.layer(on) if isinstance(on, int) else on
        name = os.path.relpath(backing, files.layers)
        write_header(files.layer(number), name if os.sep in name else f"./{name}")
        return files.layer(number)

    def define(self, files: MachineFiles, *, layer: int = 1, pending: int | None = None) -> None:
        made = definition.MachineDefinition(
            version=layout.FORMAT_VERSION,
            id=files.id,
            architecture="x86_64",
            machine="pc-q35-7.2",
            cpus=1,
            memory_mib=256,
            mac="52:54:00:00:00:01",
            uuid="00000000-0000-0000-0000-000000000001",
            firmware=Firmware.BIOS,
            image=ImageDigest("0" * 64),
            kernel=None,
            initrd=None,
            kernel_command_line="",
            layer=layer,
            pending_layer=pending,
        )
        layout.write(files.definition, made)

    def point(self, files: MachineFiles, point: PointId, layer: int) -> Path:
        files.point(point).mkdir(parents=True)
        (files.point(point) / "memory").write_text("memory")
        layout.write(files.point_record(point), layout.PointRecord(layer=layer, created_at="now"))
        return files.layer(layer)

    def captured(self, name: str, *, on: Path | None = None) -> tuple[MachineFiles, Path]:
        """A machine with the point ONE, its first layer, and a second one that it writes to."""
        files = self.machine(name, on=on)
        self.layer(files, 2, 1)
        self.define(files, layer=2)
        return files, self.point(files, ONE, 1)

    def remove(self, files: MachineFiles) -> None:
        with storage.changing(self.paths):
            storage.remove(files, OURS)

    @property
    def names(self) -> list[str]:
        """Every machine's, and every remains', directory."""
        return sorted(path.name for path in self.paths.tasks.iterdir())


@pytest.fixture
def world(tmp_path):
    paths = Paths.at(tmp_path / "state")
    paths.prepare()
    return World(paths)


def numbers(layers: set[Path] | list[Path]) -> list[int]:
    return sorted(int(layer.stem) for layer in layers)


def there(files: MachineFiles) -> list[int]:
    return numbers(list(files.layers.iterdir()))


# Needed


def test_the_active_layer_and_what_it_builds_on_are_needed_and_no_other(world):
    files = world.machine("a")
    world.layer(files, 2, 1)
    world.layer(files, 3, 1)
    world.layer(files, 4, 3)
    world.define(files, layer=4)
    assert numbers(storage.needed(files)) == [1, 3, 4]


def test_a_layer_that_a_capture_is_about_to_make_active_is_needed(world):
    files = world.machine("a")
    world.layer(files, 2, 1)
    world.define(files, pending=2)
    assert numbers(storage.needed(files)) == [1, 2]


def test_a_pending_layer_that_is_not_there_yet_is_no_trouble(world):
    files = world.machine("a")
    world.layer(files, 2, 1)
    world.define(files, pending=3)
    assert 2 not in numbers(storage.needed(files))


def test_a_points_layer_is_needed_with_what_it_builds_on(world):
    files = world.machine("a")
    for number, on in ((2, 1), (3, 2), (4, 1)):
        world.layer(files, number, on)
    world.define(files, layer=4)
    world.point(files, ONE, 3)
    assert numbers(storage.needed(files)) == [1, 2, 3, 4]
    assert numbers(storage.needed(files, without=ONE)) == [1, 4]
    assert numbers(storage.needed(files, without=TWO)) == [1, 2, 3, 4]


def test_a_point_in_the_making_needs_nothing(world):
    files = world.machine("a")
    world.layer(files, 2, 1)
    world.point(files, PointId(f".{ONE}"), 2)
    assert numbers(storage.needed(files)) == [1]


def test_what_another_machine_builds_on_is_needed(world):
    files, frozen = world.captured("a")
    world.layer(files, 3, 2)
    world.machine("b", on=files.layer(3))
    storage.remove_tree(files.points)
    world.define(files, layer=1)
    assert numbers(storage.needed(files)) == [1, 2, 3]
    assert frozen in storage.needed(files)


def test_a_deleted_machine_writes_to_no_layer(world):
    files, _ = world.captured("a")
    layout.write(files.kept, storage.Kept())
    assert numbers(storage.needed(files)) == [1]


def test_what_a_project_builds_on_counts_as_a_tasks(world):
    files = world.machine("a")
    world.layer(files, 2, 1)
    world.machine("p", on=files.layer(2), kind=Kind.PROJECT)
    assert numbers(storage.needed(files)) == [1, 2]


def test_what_only_a_point_needs_is_freed_by_it(world):
    files, _ = world.captured("a")
    world.layer(files, 3, 1)
    frozen = world.point(files, TWO, 3)
    assert storage.freed_by(files, TWO) == frozen.stat().st_blocks * 512
    assert storage.freed_by(files, ONE) == 0


def test_the_first_layer_says_what_the_machine_builds_on(world):
    files, frozen = world.captured("a")
    assert storage.base_of(world.machine("b", on=frozen)) == frozen
    assert storage.base_of(files) == world.paths.images / "image" / "disk.qcow2"
    files.layer(1).unlink()
    assert storage.base_of(files) is None


# What cannot be told


def _own_layer(world: World, files: MachineFiles) -> None:
    files.layer(2).write_bytes(b"\0" * 512)


def _another_machines_layer(world: World, files: MachineFiles) -> None:
    world.machine("b").layer(1).write_bytes(b"")


def _a_point(world: World, files: MachineFiles) -> None:
    files.point_record(ONE).write_text("{")


def _the_definition(world: World, files: MachineFiles) -> None:
    files.definition.write_text("")


def _a_newer_definition(world: World, files: MachineFiles) -> None:
    found = definition.load(files)
    assert found is not None
    layout.write(files.definition, msgspec.structs.replace(found, version=layout.FORMAT_VERSION + 1))


@pytest.mark.parametrize(
    "damage", [_own_layer, _another_machines_layer, _a_point, _the_definition, _a_newer_definition]
)
def test_where_a_file_is_damaged_every_layer_is_needed(world, damage):
    files, _ = world.captured("a")
    world.layer(files, 3, 1)
    assert numbers(storage.needed(files)) == [1, 2]
    damage(world, files)
    assert numbers(storage.needed(files)) == [1, 2, 3]
    storage.prune(files)
    assert there(files) == [1, 2, 3]


# Removing


def test_pruning_removes_what_nobody_needs_and_nothing_else(world):
    files, _ = world.captured("a")
    other, _ = world.captured("b")
    world.layer(files, 3, 1)
    world.layer(other, 3, 1)
    (files.layers / ".0004.qcow2.half").write_text("in the making")
    storage.prune(files)
    assert sorted(path.name for path in files.layers.iterdir()) == [
        ".0004.qcow2.half",
        "0001.qcow2",
        "0002.qcow2",
    ]
    assert there(other) == [1, 2, 3]


def test_a_machine_that_nobody_builds_on_goes_with_its_points(world):
    files, _ = world.captured("a")
    world.machine("b")
    world.remove(files)
    assert world.names == ["b"]


def test_removing_what_is_not_there_is_silent_and_removes_the_remains(world):
    files = world.machine("a")
    files.directory.rename(files.remains(OURS))
    world.machine("b")
    world.remove(files)
    world.remove(files)
    assert world.names == ["b"]


def test_a_machine_that_others_build_on_keeps_just_the_layers_that_serve_them(world):
    files, frozen = world.captured("a")
    world.layer(files, 3, 1)
    world.point(files, TWO, 3)
    for name in ("memory", "state"):
        files.saved.mkdir(exist_ok=True)
        (files.saved / name).write_text("memory")
    task = world.machine("b", on=frozen)
    world.remove(files)
    assert storage.is_kept(files)
    assert there(files) == [1]
    assert sorted(path.name for path in files.directory.iterdir()) == ["kept.json", "layers", "owner.json"]
    assert storage.base_of(task) == frozen
    assert frozen.exists()


def test_a_kept_machine_goes_with_the_last_that_builds_on_it(world):
    files, frozen = world.captured("a")
    first, second = world.machine("b", on=frozen), world.machine("c", on=frozen)
    world.remove(files)
    world.remove(first)
    assert world.names == ["a", "c"]
    world.remove(second)
    assert world.names == []


@pytest.mark.parametrize("names", ["abcd", "dcba", "bdac"])
def test_forks_of_forks_go_with_the_last_of_them_whatever_the_order_of_their_names(world, names):
    chain, frozen = [], None
    for name in names:
        files, frozen = world.captured(name, on=frozen)
        chain.append(files)
    for files in chain[:-1]:
        world.remove(files)
    assert world.names == ["a", "b", "c", "d"]
    assert [there(files) for files in chain] == [[1], [1], [1], [1, 2]]
    world.remove(chain[-1])
    assert world.names == []


def test_a_fork_whose_origin_is_deleted_can_be_forked_and_deleted(world):
    origin, frozen = world.captured("a")
    middle, again = world.captured("b", on=frozen)
    world.remove(origin)
    last = world.machine("c", on=again)
    world.remove(middle)
    assert world.names == ["a", "b", "c"]
    assert storage.base_of(last) == again
    world.remove(last)
    assert world.names == []


def test_a_branch_that_ends_frees_what_only_it_needed(world):
    origin, _ = world.captured("a")
    world.layer(origin, 3, 2)
    world.define(origin, layer=3)
    world.point(origin, TWO, 2)
    early, late = world.machine("b", on=origin.layer(1)), world.machine("c", on=origin.layer(2))
    world.remove(origin)
    assert there(origin) == [1, 2]
    world.remove(late)
    assert there(origin) == [1]
    world.remove(early)
    assert world.names == []


def test_a_machine_that_lives_is_not_removed_with_its_last_fork(world):
    files, frozen = world.captured("a")
    world.remove(world.machine("b", on=frozen))
    assert world.names == ["a"]
    assert there(files) == [1, 2]
    assert files.point_record(ONE).exists()


def test_a_damaged_machine_holds_what_it_may_build_on_until_it_is_deleted_too(world):
    files, _ = world.captured("a")
    damaged = world.machine("b")
    damaged.layer(1).write_bytes(b"x" * 512)
    world.remove(files)
    assert world.names == ["a", "b"]
    assert there(files) == [1, 2]
    world.remove(damaged)
    assert world.names == []


def test_a_machine_with_damaged_files_can_be_deleted(world):
    files, _ = world.captured("a")
    files.definition.write_text("{")
    files.point_record(ONE).write_text("{")
    files.layer(2).write_bytes(b"")
    world.remove(files)
    assert world.names == []


def test_a_removal_that_was_killed_is_finished_by_the_next(world):
    files, frozen = world.captured("a")
    task = world.machine("b", on=frozen)
    layout.write(files.kept, storage.Kept())
    files.definition.unlink()
    world.remove(files)
    assert there(files) == [1]
    assert not files.points.exists()
    world.remove(task)
    assert world.names == []


def test_a_chain_that_could_not_be_read_any_more_gets_no_further_layer(world):
    files = world.machine("long")
    most = LONGEST_CHAIN - storage.SPARE_LAYERS
    for number in range(2, most + 1):
        world.layer(files, number, number - 1)
    storage.require_room(files.layer(most - 1))
    world.layer(files, most + 1, most)
    with pytest.raises(MachineError, match="layers"):
        storage.require_room(files.layer(most + 1))
