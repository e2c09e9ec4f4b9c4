"""QEMU machines without a guest: their disk is empty, and the BIOS finds nothing to start."""

from __future__ import annotations

import secrets
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from agent_swarm import runner
from agent_swarm.config import Config, QemuSettings
from agent_swarm.model import (
    EnvironmentId,
    Firmware,
    Image,
    ImageDigest,
    InstallationId,
    Kind,
    Resources,
    Seed,
)
from agent_swarm.paths import Paths
from agent_swarm.providers.base import FromImage, FromPoint, MachineSpec, ProviderContext

if TYPE_CHECKING:
    from pathlib import Path

RESOURCES = Resources(cpus=1, memory_mib=256, disk_gib=1)


def empty_image(folder: Path, *, firmware: Firmware = Firmware.BIOS, architecture: str = "x86_64") -> Image:
    """A disk without an operating system."""
    disk = folder / "disk.qcow2"
    runner.run(["qemu-img", "create", "-q", "-f", "qcow2", disk, "64M"], timeout_s=60)
    return Image(
        digest=ImageDigest("0" * 64),
        name="test:empty",
        architecture=architecture,
        firmware=firmware,
        disk=disk,
        kernel=None,
        initrd=None,
        kernel_command_line="",
        virtual_size_bytes=64 << 20,
        size_bytes=disk.stat().st_size,
        has_guest_agent=True,
        created_at=datetime(2025, 1, 1, tzinfo=UTC),
    )


def emulated(home: Path) -> ProviderContext:
    """A prepared state directory whose machines are emulated, so that nothing is tried out first."""
    paths = Paths.at(home)
    paths.prepare()
    config = Config(qemu=QemuSettings(accelerator="tcg"))
    return ProviderContext(paths=paths, config=config, installation=InstallationId("0123456789ab"))


def spec(source: FromImage | FromPoint) -> MachineSpec:
    """A new machine: a project from an image, a task from a point."""
    identifier = EnvironmentId(secrets.token_hex(6))
    return MachineSpec(
        id=identifier,
        kind=Kind.PROJECT if isinstance(source, FromImage) else Kind.TASK,
        host_name="empty",
        source=source,
        resources=RESOURCES,
        seed=Seed(identifier, "#cloud-config\n{}\n", f"instance-id: {identifier}\n", "version: 2\n"),
    )
