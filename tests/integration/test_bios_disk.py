"""A disk that somebody downloaded: the BIOS starts its GRUB, and cloud-init installs the guest agent."""

from __future__ import annotations

import platform
from typing import TYPE_CHECKING

import pytest

from agent_swarm.config import Config, TimeoutSettings
from agent_swarm.guest.agent import GuestAgent
from agent_swarm.model import Firmware, Kind, Status
from agent_swarm.paths import Paths
from agent_swarm.swarm import Swarm
from tests.conftest import BOOT_S, SMALL, show
from tests.support import bios_disk

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = [
    pytest.mark.machine,
    pytest.mark.skipif(platform.machine() != "x86_64", reason="a disk for the BIOS starts on x86-64 alone"),
    pytest.mark.needs(*bios_disk.PROGRAMS),
]


@pytest.fixture
def swarm(tmp_path: Path) -> Iterator[Swarm]:
    """With an image store of its own: the shared machines are made from the newest image of theirs."""
    config = Config(provider="qemu", timeouts=TimeoutSettings(boot_s=BOOT_S))
    with Swarm(paths=Paths.at(tmp_path / "state"), config=config, progress=show) as made:
        yield made
        for environment in made.environments():
            made.delete(environment.name, kind=environment.kind, force=True)


def test_a_downloaded_disk_becomes_a_project_with_the_guest_agent(swarm: Swarm, test_cache: Path) -> None:
    given = bios_disk.bios_disk(test_cache, show)

    image = swarm.init_base(str(given))
    assert (image.firmware, image.has_guest_agent) == (Firmware.BIOS, False)

    project = swarm.create_project("web", request=SMALL)
    assert swarm.find("web", kind=Kind.PROJECT).status is Status.RUNNING
    with GuestAgent(swarm.paths.agent_socket(project.id)) as agent:
        assert agent.ping(timeout_s=30)

    def output(*argv: str) -> str:
        done = swarm.run_captured("web", argv, kind=Kind.PROJECT)
        assert done.exit_code == 0, done.stderr
        return done.stdout.decode()

    assert output("id", "-un") == "worker\n"
    assert output("systemctl", "is-active", "qemu-guest-agent") == "active\n"
    # GRUB tells the kernel which file it is; a kernel that QEMU loads is not told
    assert output("cat", "/proc/cmdline").startswith("BOOT_IMAGE=/boot/vmlinuz-")
    assert "efi" not in output("ls", "/sys/firmware").split()
    root_bytes = int(output("findmnt", "--noheadings", "--bytes", "--output", "SIZE", "/"))
    assert root_bytes > image.virtual_size_bytes, "the file system was not grown to the machine's disk"
