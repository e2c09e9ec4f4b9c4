"""What a machine is, and the QEMU command line that this comes to.

The device list, its order, every id and every PCI address are fixed here, and so is the versioned
machine type: a machine's memory can only be loaded into exactly the machine that it was saved from.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

from agent_swarm.errors import MachineError
from agent_swarm.model import EnvironmentId, Firmware, ImageDigest  # noqa: TC001 - msgspec resolves them
from agent_swarm.providers.qemu import layout

if TYPE_CHECKING:
    from pathlib import Path

ROOT_DRIVE = "root"
"""The id of the disk's drive; it stays the same when a snapshot puts a new file under it."""

TCG = "tcg,thread=multi,tb-size=128"
"""The emulator, with 128 MiB for translated code. QEMU's default, 1 GiB, fills during one boot: 1,480 MB of the
host for a machine of 1 GiB instead of 450, at the same speed (measured: 60 s of CPU for a boot either way)."""

AGENT_CHANNEL = "agent0"
"""The id of the guest agent's character device."""


class Resume(msgspec.Struct, frozen=True):
    """How a machine goes on from saved memory."""

    own: bool
    """The memory is this machine's: it keeps its identity."""
    keep_secrets: bool = False


class MachineDefinition(msgspec.Struct, frozen=True):
    """machine.json. Paths are relative to the machine's directory."""

    version: int
    id: EnvironmentId
    architecture: str
    machine: str
    """QEMU's versioned machine type: "pc-q35-7.2", "virt-7.2"."""
    cpus: int
    memory_mib: int
    mac: str
    uuid: str
    firmware: Firmware
    image: ImageDigest
    kernel: str | None
    initrd: str | None
    kernel_command_line: str
    layer: int
    """The active layer, which the machine writes to."""
    pending_layer: int | None = None
    """A layer that a capture is about to make active, or has: see capture.py."""
    host_name: str = ""
    resume: Resume | None = None
    """The next start goes on from the memory in `saved/`; the active layer is then of no worth, and empty."""


def load(files: layout.MachineFiles) -> MachineDefinition | None:
    """The machine's definition, None where the machine is not there or not complete.

    Raises MachineError where it cannot be read or a newer version wrote it.
    """
    found = layout.read(files.definition, MachineDefinition)
    if found is not None and found.version > layout.FORMAT_VERSION:
        message = f"machine {files.id} was made by a newer version of agent-swarm"
        raise MachineError(message, hint="Update agent-swarm.")
    return found


def save(files: layout.MachineFiles, machine: MachineDefinition, **changes: object) -> MachineDefinition:
    """Write the definition with some fields changed, durable; return it."""
    changed = msgspec.structs.replace(machine, **changes)
    layout.write(files.definition, changed)
    return changed


def mac_address(environment: EnvironmentId) -> str:
    """A stable address in QEMU's own prefix."""
    import hashlib

    digest = hashlib.sha256(environment.encode()).digest()
    return "52:54:00:" + ":".join(f"{byte:02x}" for byte in digest[:3])


def machine_uuid(environment: EnvironmentId) -> str:
    import uuid

    return str(uuid.uuid5(uuid.NAMESPACE_URL, f"agent-swarm:{environment}"))


@dataclass(frozen=True, slots=True)
class Launch:
    """What one start adds to the definition. Paths are absolute."""

    binary: str
    accelerator: str
    netdev: str
    """The value of -netdev after its type's id: "user,hostfwd=..." or "stream,addr.str=3,..."."""
    disk: Path
    seed: Path
    console: Path
    qmp_socket: Path
    agent_socket: Path
    pid_file: Path
    kernel: Path | None = None
    initrd: Path | None = None
    uefi_code: Path | None = None
    uefi_variables: Path | None = None
    sandbox: bool = False
    paused: bool = False
    memory: Path | None = None
    """The file of saved memory that the machine goes on from, once it is given the state; None: it starts anew."""


def argv(definition: MachineDefinition, launch: Launch) -> list[str]:
    """The command line that runs the machine in the foreground. Pure."""
    arm = definition.architecture == "aarch64"
    words = [launch.binary, "-name", f"agent-swarm-{definition.id}", "-uuid", definition.uuid]
    words += ["-no-user-config", "-nodefaults", "-display", "none"]
    if launch.sandbox:  # a guest that breaks out of QEMU finds no exec, no setuid and no scheduler calls
        words += ["-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"]
    words += ["-machine", f"{definition.machine},memory-backend=ram0" + ("" if arm else ",vmport=off")]
    words += ["-accel", TCG if launch.accelerator == "tcg" else launch.accelerator]
    words += ["-cpu", cpu_model(launch.accelerator)]
    words += ["-smp", f"cpus={definition.cpus},sockets=1,cores={definition.cpus},threads=1"]
    words += ["-m", f"size={definition.memory_mib}M"]
    words += ["-object", _memory(definition, launch)]
    words += _boot(definition, launch)
    words += ["-chardev", f"file,id=console0,path={escaped(launch.console)},append=on"]
    words += ["-serial", "chardev:console0"]
    words += ["-chardev", f"socket,id=qmp0,path={escaped(launch.qmp_socket)},server=on,wait=off"]
    words += ["-mon", "chardev=qmp0,mode=control"]
    words += [
        "-drive",
        f"id={ROOT_DRIVE},node-name={layer_node(definition.layer)},if=none,format=qcow2,file={escaped(launch.disk)},discard=unmap,detect-zeroes=unmap",
        "-device",
        f"virtio-blk-pci,id=root0,drive={ROOT_DRIVE},bus=pcie.0,addr=0x2,bootindex=1",
        "-drive",
        f"id=seed,if=none,format=raw,file={escaped(launch.seed)},readonly=on",
        "-device",
        "virtio-blk-pci,id=seed0,drive=seed,bus=pcie.0,addr=0x3",  # cloud kernels know no AHCI
        "-netdev",
        _netdev(launch.netdev),
        "-device",
        f"virtio-net-pci,id=network0,netdev=net0,mac={definition.mac},bus=pcie.0,addr=0x4,romfile=",
        "-device",
        "virtio-serial-pci,id=serial0,bus=pcie.0,addr=0x5",
        "-chardev",
        f"socket,id={AGENT_CHANNEL},path={escaped(launch.agent_socket)},server=on,wait=off",
        "-device",
        f"virtserialport,id=agentport0,bus=serial0.0,nr=1,chardev={AGENT_CHANNEL},name=org.qemu.guest_agent.0",
        "-object",
        "rng-builtin,id=entropy0",
        "-device",
        "virtio-rng-pci,id=rng0,rng=entropy0,bus=pcie.0,addr=0x6",
    ]
    if not arm:
        words += ["-device", "vmgenid,id=generation0,guid=auto"]
    words += ["-pidfile", os.fspath(launch.pid_file)]
    if launch.memory is not None:
        words += ["-incoming", "defer"]
    return [*words, "-S"] if launch.paused else words


def layer_node(layer: int) -> str:
    """The name of a layer's block node in QEMU: tells which layer a running machine writes to."""
    return f"layer-{layer}"


def cpu_model(accelerator: str) -> str:
    """`host` where the host's processor runs the guest, else all that the emulator can do."""
    return "max" if accelerator == "tcg" else "host"


def escaped(path: Path) -> str:
    """A path inside a QEMU option, where a comma is written twice."""
    return os.fspath(path).replace(",", ",,")


def _memory(definition: MachineDefinition, launch: Launch) -> str:
    # memory is known by the object's id: what was saved from one kind can be loaded into the other
    if launch.memory is None:
        return f"memory-backend-ram,id=ram0,size={definition.memory_mib}M"
    where = escaped(launch.memory)
    return f"memory-backend-file,id=ram0,size={definition.memory_mib}M,mem-path={where},share=off"


def _netdev(value: str) -> str:
    kind, _, rest = value.partition(",")
    return f"{kind},id=net0" + (f",{rest}" if rest else "")


def _boot(definition: MachineDefinition, launch: Launch) -> list[str]:
    words: list[str] = []
    if launch.uefi_code is not None and launch.uefi_variables is not None:
        words += ["-drive", f"if=pflash,unit=0,format=raw,readonly=on,file={escaped(launch.uefi_code)}"]
        words += ["-drive", f"if=pflash,unit=1,format=raw,file={escaped(launch.uefi_variables)}"]
    if launch.kernel is not None:
        words += ["-kernel", os.fspath(launch.kernel), "-append", definition.kernel_command_line]
    if launch.initrd is not None:
        words += ["-initrd", os.fspath(launch.initrd)]
    return words


def native_architecture() -> str:
    """What the host's processor is, in `uname -m`'s words."""
    machine = os.uname().machine
    return "aarch64" if sys.platform == "darwin" and machine == "arm64" else machine
