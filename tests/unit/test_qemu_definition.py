"""QEMU's command line, as data."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import msgspec
import pytest

from agent_swarm.errors import MachineError
from agent_swarm.model import EnvironmentId, Firmware, ImageDigest, Kind
from agent_swarm.paths import Paths
from agent_swarm.providers.qemu import definition as definitions
from agent_swarm.providers.qemu import layout
from agent_swarm.providers.qemu.definition import Launch, MachineDefinition, argv

ID = EnvironmentId("0123456789ab")

MACHINE = MachineDefinition(
    version=1,
    id=ID,
    architecture="x86_64",
    machine="pc-q35-7.2",
    cpus=3,
    memory_mib=1536,
    mac="52:54:00:aa:bb:cc",
    uuid="00000000-0000-0000-0000-000000000001",
    firmware=Firmware.DIRECT,
    image=ImageDigest("0" * 64),
    kernel="../kernel",
    initrd="../initrd",
    kernel_command_line="root=LABEL=x console=ttyS0",
    layer=2,
)
LAUNCH = Launch(
    binary="/usr/bin/qemu-system-x86_64",
    accelerator="tcg",
    netdev="user,hostfwd=tcp:127.0.0.1:4022-:22",
    disk=Path("/m/layers/0002.qcow2"),
    seed=Path("/m/seed.iso"),
    console=Path("/m/console.log"),
    qmp_socket=Path("/run/x.qmp"),
    agent_socket=Path("/run/x.agent"),
    pid_file=Path("/m/qemu.pid"),
    kernel=Path("/i/kernel"),
    initrd=Path("/i/initrd"),
)


def values(words: list[str], option: str) -> list[str]:
    return [words[index + 1] for index, word in enumerate(words) if word == option]


def value(words: list[str], option: str) -> str:
    (found,) = values(words, option)
    return found


def properties(text: str) -> dict[str, str]:
    return dict(part.partition("=")[::2] for part in text.split(","))


def devices(words: list[str]) -> list[dict[str, str]]:
    return [properties(f"driver={text}") for text in values(words, "-device")]


def test_the_machine_is_named_after_its_environment_so_that_its_process_can_be_told():
    words = argv(MACHINE, LAUNCH)
    assert words[0] == LAUNCH.binary
    assert value(words, "-name") == f"agent-swarm-{ID}"
    assert value(words, "-uuid") == MACHINE.uuid


def test_nothing_comes_from_qemus_defaults_or_the_users_configuration():
    words = argv(MACHINE, LAUNCH)
    assert {"-nodefaults", "-no-user-config"} <= set(words)
    assert value(words, "-display") == "none"


def test_resources_and_machine_type_are_the_definitions():
    words = argv(MACHINE, LAUNCH)
    assert properties(value(words, "-smp"))["cpus"] == "3"
    assert value(words, "-m") == "size=1536M"
    assert value(words, "-machine").startswith("pc-q35-7.2,memory-backend=ram0")
    assert "memory-backend-ram,id=ram0,size=1536M" in values(words, "-object")


@pytest.mark.parametrize(
    ("accelerator", "option", "cpu"),
    [("tcg", "tcg,thread=multi,tb-size=128", "max"), ("kvm", "kvm", "host"), ("hvf", "hvf", "host")],
)
def test_the_processor_model_follows_the_accelerator(accelerator, option, cpu):
    words = argv(MACHINE, dataclasses.replace(LAUNCH, accelerator=accelerator))
    assert value(words, "-accel") == option
    assert value(words, "-cpu") == cpu


def test_a_direct_boot_gives_kernel_initrd_and_command_line():
    words = argv(MACHINE, LAUNCH)
    assert value(words, "-kernel") == "/i/kernel"
    assert value(words, "-initrd") == "/i/initrd"
    assert value(words, "-append") == "root=LABEL=x console=ttyS0"


def test_a_bios_boot_gives_no_kernel_and_starts_from_the_disk():
    words = argv(MACHINE, dataclasses.replace(LAUNCH, kernel=None, initrd=None))
    assert not {"-kernel", "-initrd", "-append"} & set(words)
    assert [device["driver"] for device in devices(words) if device.get("bootindex") == "1"] == [
        "virtio-blk-pci"
    ]


def test_a_uefi_boot_has_read_only_code_and_variables_of_its_own():
    words = argv(
        MACHINE,
        dataclasses.replace(
            LAUNCH, kernel=None, initrd=None, uefi_code=Path("/fw/code.fd"), uefi_variables=Path("/m/vars.fd")
        ),
    )
    assert values(words, "-drive")[:2] == [
        "if=pflash,unit=0,format=raw,readonly=on,file=/fw/code.fd",
        "if=pflash,unit=1,format=raw,file=/m/vars.fd",
    ]


def test_the_disk_gives_freed_blocks_back_and_its_format_is_never_guessed():
    drives = [properties(text) for text in values(argv(MACHINE, LAUNCH), "-drive")]
    root, seed = drives
    assert (root["format"], root["file"], root["discard"]) == ("qcow2", "/m/layers/0002.qcow2", "unmap")
    assert (seed["format"], seed["file"], seed["readonly"]) == ("raw", "/m/seed.iso", "on")


def test_every_device_has_its_own_id_and_every_pci_device_its_own_fixed_address():
    found = devices(argv(MACHINE, LAUNCH))
    identifiers = [device["id"] for device in found]
    assert len(set(identifiers)) == len(found)
    addresses = [device["addr"] for device in found if device["driver"].endswith("-pci")]
    assert addresses == ["0x2", "0x3", "0x4", "0x5", "0x6"]


def test_the_device_list_is_the_same_whatever_boots_and_whatever_network_is_used():
    plain = argv(MACHINE, LAUNCH)
    other = argv(
        MACHINE,
        dataclasses.replace(LAUNCH, kernel=None, initrd=None, netdev="stream,addr.str=5", paused=True),
    )
    assert values(plain, "-device") == values(other, "-device")


def test_the_guest_agent_has_a_port_of_its_own():
    words = argv(MACHINE, LAUNCH)
    assert "socket,id=agent0,path=/run/x.agent,server=on,wait=off" in values(words, "-chardev")
    (port,) = [device for device in devices(words) if device["driver"] == "virtserialport"]
    assert (port["chardev"], port["name"]) == ("agent0", "org.qemu.guest_agent.0")


def test_the_serial_console_goes_to_a_file():
    words = argv(MACHINE, LAUNCH)
    assert "file,id=console0,path=/m/console.log,append=on" in values(words, "-chardev")
    assert value(words, "-serial") == "chardev:console0"


def test_the_control_channel_is_a_unix_socket():
    words = argv(MACHINE, LAUNCH)
    assert "socket,id=qmp0,path=/run/x.qmp,server=on,wait=off" in values(words, "-chardev")
    assert value(words, "-mon") == "chardev=qmp0,mode=control"


@pytest.mark.parametrize(
    ("given", "option"),
    [
        ("user,hostfwd=tcp:127.0.0.1:4022-:22", "user,id=net0,hostfwd=tcp:127.0.0.1:4022-:22"),
        ("user", "user,id=net0"),
    ],
)
def test_the_network_device_uses_the_launchs_network(given, option):
    words = argv(MACHINE, dataclasses.replace(LAUNCH, netdev=given))
    assert value(words, "-netdev") == option
    (device,) = [device for device in devices(words) if device["driver"] == "virtio-net-pci"]
    assert (device["netdev"], device["mac"]) == ("net0", MACHINE.mac)


def test_a_sandboxed_qemu_can_start_no_program_and_gain_no_rights():
    words = argv(MACHINE, dataclasses.replace(LAUNCH, sandbox=True))
    assert properties(value(words, "-sandbox"))["spawn"] == "deny"
    assert properties(value(words, "-sandbox"))["elevateprivileges"] == "deny"
    assert "-sandbox" not in argv(MACHINE, LAUNCH)


def test_a_paused_start_adds_one_word():
    assert argv(MACHINE, dataclasses.replace(LAUNCH, paused=True)) == [*argv(MACHINE, LAUNCH), "-S"]


@pytest.mark.parametrize("field", ["disk", "seed", "console", "qmp_socket", "agent_socket"])
def test_commas_in_paths_are_doubled_inside_options(field):
    words = argv(MACHINE, dataclasses.replace(LAUNCH, **{field: Path("/a,b/c,,d")}))
    assert sum("/a,,b/c,,,,d" in word for word in words) == 1


def test_commas_in_paths_that_are_words_of_their_own_stay():
    words = argv(
        MACHINE,
        dataclasses.replace(LAUNCH, kernel=Path("/a,b/k"), initrd=Path("/a,b/i"), pid_file=Path("/a,b/p")),
    )
    assert {"/a,b/k", "/a,b/i", "/a,b/p"} <= set(words)


def test_an_arm_machine_has_no_pc_parts():
    arm = msgspec.structs.replace(MACHINE, architecture="aarch64", machine="virt-7.2")
    words = argv(arm, LAUNCH)
    assert value(words, "-machine") == "virt-7.2,memory-backend=ram0"
    assert "vmgenid" in str(argv(MACHINE, LAUNCH))
    assert "vmgenid" not in str(words)


def test_addresses_and_uuids_are_stable_and_differ_between_machines():
    other = EnvironmentId("ba9876543210")
    assert definitions.mac_address(ID) == definitions.mac_address(ID) != definitions.mac_address(other)
    assert definitions.mac_address(ID).startswith("52:54:00:")
    assert definitions.machine_uuid(ID) == definitions.machine_uuid(ID) != definitions.machine_uuid(other)


def test_a_definition_survives_its_file(tmp_path):
    files = layout.MachineFiles.of(Paths.at(tmp_path), Kind.TASK, ID)
    files.directory.mkdir(parents=True)
    layout.write(files.definition, MACHINE)
    assert definitions.load(files) == MACHINE


def test_a_machine_without_a_definition_is_not_complete(tmp_path):
    assert definitions.load(layout.MachineFiles.of(Paths.at(tmp_path), Kind.TASK, ID)) is None


def test_a_definition_of_a_newer_version_is_refused(tmp_path):
    files = layout.MachineFiles.of(Paths.at(tmp_path), Kind.TASK, ID)
    files.directory.mkdir(parents=True)
    layout.write(files.definition, msgspec.structs.replace(MACHINE, version=2))
    with pytest.raises(MachineError, match="newer version"):
        definitions.load(files)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"version": 1}', b"\xff\xfe"])
def test_a_definition_that_is_none_is_a_machine_error(tmp_path, content):
    files = layout.MachineFiles.of(Paths.at(tmp_path), Kind.TASK, ID)
    files.directory.mkdir(parents=True)
    files.definition.write_bytes(content)
    with pytest.raises(MachineError, match="cannot be read"):
        definitions.load(files)
