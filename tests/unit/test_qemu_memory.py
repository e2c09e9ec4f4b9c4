"""What saved memory fits into, and the directory that holds it."""

from __future__ import annotations

import msgspec
import pytest

from agent_swarm.errors import MachineError
from agent_swarm.model import EnvironmentId, Firmware, ImageDigest, Resources
from agent_swarm.providers.qemu import layout, memory
from agent_swarm.providers.qemu.definition import MachineDefinition

MACHINE = MachineDefinition(
    version=layout.FORMAT_VERSION,
    id=EnvironmentId("0123456789ab"),
    architecture="x86_64",
    machine="pc-q35-7.2",
    cpus=2,
    memory_mib=1024,
    mac="52:54:00:00:00:01",
    uuid="00000000-0000-0000-0000-000000000001",
    firmware=Firmware.BIOS,
    image=ImageDigest("0" * 64),
    kernel=None,
    initrd=None,
    kernel_command_line="",
    layer=1,
)
RECORD = memory.MemoryRecord(
    machine=MACHINE, qemu="7.2.22", accelerator="tcg", cpu=memory.cpu_identity("tcg"), network="passt"
)
HERE = {"qemu": "7.2.22", "accelerator": "tcg", "network": "passt"}
SAME = Resources(cpus=2, memory_mib=1024, disk_gib=20)


def obstacle(record: memory.MemoryRecord = RECORD, resources: Resources | None = SAME, **here: str) -> str:
    return memory.obstacle(record, **{**HERE, **here}, resources=resources)


@pytest.fixture
def saved(tmp_path):
    """A directory with saved memory."""
    found = tmp_path / "point"
    found.mkdir(mode=0o700)
    for name in (memory.MEMORY, memory.STATE):
        (found / name).write_text(name)
    layout.write(found / memory.RECORD, RECORD)
    return found


def content(directory) -> dict[str, str]:
    return {path.name: path.read_text() for path in directory.iterdir()}


# What it fits into


def test_nothing_stands_in_the_way_where_all_is_as_it_was():
    assert obstacle() == ""
    assert obstacle(resources=None) == ""


def test_a_disk_of_another_size_stands_in_no_way():
    assert obstacle(resources=Resources(cpus=2, memory_mib=1024, disk_gib=99)) == ""


@pytest.mark.parametrize(
    ("here", "said"),
    [
        ({"qemu": "10.0.2"}, "saved with QEMU 7.2.22, and here it is 10.0.2"),
        ({"accelerator": "kvm"}, "saved with the accelerator tcg, and here it is kvm"),
        ({"network": "slirp"}, "saved with the network passt, and here it is slirp"),
    ],
    ids=["qemu", "accelerator", "network"],
)
def test_another_host_program_stands_in_the_way(here, said):
    assert obstacle(**here).endswith(said)
    assert obstacle(resources=None, **here).endswith(said)


def test_another_processor_stands_in_the_way():
    record = msgspec.structs.replace(RECORD, cpu="Zilog Z80 1 0x1")
    assert obstacle(record).endswith("saved with the processor Zilog Z80 1 0x1, and here it is max")


@pytest.mark.parametrize(
    "resources",
    [Resources(cpus=4, memory_mib=1024, disk_gib=20), Resources(cpus=2, memory_mib=2048, disk_gib=20)],
    ids=["cpus", "memory"],
)
def test_other_resources_stand_in_the_way(resources):
    assert obstacle(resources=resources) == "its memory is that of a machine with 2 CPUs and 1024 MiB"


def test_emulated_processors_are_the_same_everywhere_and_not_the_hosts():
    assert memory.cpu_identity("tcg") == "max"
    assert memory.cpu_identity("kvm") not in ("", "max", "host")


# The record


def test_a_record_is_read_as_it_was_written(saved):
    assert memory.load_record(saved) == RECORD


def test_a_point_without_memory_has_no_record(tmp_path):
    assert memory.load_record(tmp_path) is None
    assert memory.load_record(tmp_path / "nowhere") is None


@pytest.mark.parametrize(
    "damaged",
    [b"", b"{", b"[]", b'{"qemu": "7.2.22"}', b"\0" * 512, b"\xff\xfe"],
    ids=["empty", "cut off", "list", "fields", "zeros", "bytes"],
)
def test_a_damaged_record_is_an_error_that_names_the_file(saved, damaged):
    (saved / memory.RECORD).write_bytes(damaged)
    with pytest.raises(MachineError, match=r"memory\.json") as caught:
        memory.load_record(saved)
    assert str(saved / memory.RECORD) in caught.value.details
    assert caught.value.hint


# Links


def test_a_link_holds_the_same_files_at_no_cost(saved, tmp_path):
    memory.link(saved, tmp_path / "saved")
    assert content(tmp_path / "saved") == content(saved)
    for path in saved.iterdir():
        assert (tmp_path / "saved" / path.name).samefile(path)


def test_a_link_is_a_private_directory(saved, tmp_path):
    memory.link(saved, tmp_path / "saved")
    assert (tmp_path / "saved").stat().st_mode & 0o777 == 0o700


def test_only_memory_is_linked(saved, tmp_path):
    (saved / layout.POINT_RECORD).write_text("{}")
    memory.link(saved, tmp_path / "saved")
    assert set(content(tmp_path / "saved")) == {memory.MEMORY, memory.STATE, memory.RECORD}


def test_a_link_outlives_what_it_was_made_from(saved, tmp_path):
    before = content(saved)
    memory.link(saved, tmp_path / "saved")
    memory.remove_tree(saved)
    assert content(tmp_path / "saved") == before


def test_a_link_replaces_what_was_there_and_what_a_killed_one_left(saved, tmp_path):
    for name in ("saved", ".saved"):
        (tmp_path / name).mkdir()
        (tmp_path / name / memory.MEMORY).write_text("old")
        (tmp_path / name / "more").write_text("old")
    memory.link(saved, tmp_path / "saved")
    assert content(tmp_path / "saved") == content(saved)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["point", "saved"]


@pytest.mark.parametrize("name", [memory.MEMORY, memory.STATE, memory.RECORD])
def test_a_link_to_memory_that_is_not_whole_leaves_what_was_there(saved, tmp_path, name):
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved" / memory.MEMORY).write_text("old")
    (saved / name).unlink()
    with pytest.raises(FileNotFoundError):
        memory.link(saved, tmp_path / "saved")
    assert content(tmp_path / "saved") == {memory.MEMORY: "old"}
