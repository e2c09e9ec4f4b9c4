"""Images built from Debian packages: what is in one, and builds that fail or are killed."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from agent_swarm.config import Config, ImageSettings
from agent_swarm.errors import ImageError
from agent_swarm.events import Event, OutputLine, ignore
from agent_swarm.images import build, qcow2, recipe, scratch
from agent_swarm.images.obtain import obtain
from agent_swarm.images.store import ImageStore
from agent_swarm.model import Firmware
from agent_swarm.paths import Paths
from tests.support.image_server import ImageServer, Served

if TYPE_CHECKING:
    from pathlib import Path

    from agent_swarm.model import Image

OBTAIN = """\
import sys
from pathlib import Path
from agent_swarm.config import Config, ImageSettings
from agent_swarm.images.obtain import obtain
from agent_swarm.paths import Paths
obtain("build:trixie", paths=Paths.at(Path(sys.argv[1])),
       config=Config(images=ImageSettings(package_mirror=sys.argv[2])),
       progress=lambda event: print(event, flush=True))
"""


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    found = Paths.at(tmp_path / "home")
    found.prepare()
    return found


def from_mirror(mirror: str) -> Config:
    return Config(images=ImageSettings(package_mirror=mirror))


def test_an_unreachable_mirror_fails_the_build_with_what_apt_said(paths: Paths) -> None:
    with ImageServer() as closed:
        mirror = closed.url("/debian")
    events: list[Event] = []
    with pytest.raises(ImageError, match="building build:trixie failed") as caught:
        obtain("build:trixie", paths=paths, config=from_mirror(mirror), progress=events.append)
    assert "127.0.0.1" in caught.value.details + "".join(
        event.line for event in events if isinstance(event, OutputLine)
    )
    assert ImageStore(paths).list() == []
    assert list(paths.partial_images.iterdir()) == []


def test_a_killed_build_is_no_image_and_its_remains_can_be_removed(paths: Paths) -> None:
    with ImageServer() as server:
        server.files["/debian/dists/trixie/InRelease"] = Served(bytes(1 << 20), hang_after=0)
        argv = [sys.executable, "-c", OBTAIN, str(paths.home), server.url("/debian")]
        with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as child:
            assert child.stdout is not None
            for line in child.stdout:
                if "running apt-get update" in line:
                    break
            child.send_signal(signal.SIGKILL)
    store = ImageStore(paths)
    (left,) = store.partials()
    place = scratch.scratch_directory(left)
    assert place.is_dir()
    assert store.list() == []
    assert store.remove_partials() == [left]
    assert not place.exists()
    assert list(paths.partial_images.iterdir()) == []


def test_missing_tools_are_named_with_the_command_that_installs_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "SYSTEM_PATH", "")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ImageError, match="mmdebstrap") as caught:
        build.build(recipe.Recipe("trixie", "x86_64"), tmp_path, subject="x", progress=ignore)
    assert re.search(r"sudo apt-get install mmdebstrap e2fsprogs qemu-utils", caught.value.hint)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def disk(base_image: Image, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The image's file system as a raw file, for debugfs."""
    raw = tmp_path_factory.mktemp("disk") / "disk.raw"
    argv = ["qemu-img", "convert", "-f", "qcow2", "-O", "raw", str(base_image.disk), str(raw)]
    subprocess.run(argv, check=True, timeout=300)
    return raw


def debugfs(disk: Path, request: str) -> str:
    done = subprocess.run(
        ["debugfs", "-R", request, str(disk)], check=True, capture_output=True, text=True, timeout=60
    )
    return done.stdout + done.stderr.partition("\n")[2]


machine = pytest.mark.machine


@machine
def test_a_built_image_boots_directly_and_has_the_agent(base_image: Image) -> None:
    assert base_image.firmware is Firmware.DIRECT
    assert base_image.has_guest_agent
    assert base_image.kernel is not None
    assert base_image.initrd is not None
    assert "root=LABEL=swarm-root" in base_image.kernel_command_line
    assert qcow2.check(base_image.disk) == ""
    assert qcow2.info(base_image.disk).virtual_size_bytes == base_image.virtual_size_bytes


@machine
def test_a_built_image_has_a_whole_file_system_with_the_label_that_its_kernel_wants(disk: Path) -> None:
    subprocess.run(["e2fsck", "-fn", str(disk)], check=True, capture_output=True, timeout=120)
    assert "swarm-root" in debugfs(disk, "show_super_stats -h")


@machine
def test_a_built_image_holds_no_identity(disk: Path) -> None:
    assert "ssh_host_" not in debugfs(disk, "ls -p /etc/ssh")
    assert debugfs(disk, "cat /etc/machine-id").strip() == ""
    assert "machine-id" not in debugfs(disk, "ls -p /var/lib/dbus")
    assert "random-seed" not in debugfs(disk, "ls -p /var/lib/systemd")


@machine
def test_nobody_can_log_in_to_a_built_image_with_a_password(disk: Path) -> None:
    passwords = [line.split(":")[1] for line in debugfs(disk, "cat /etc/shadow").splitlines() if ":" in line]
    assert passwords
    assert all(password.startswith(("*", "!")) for password in passwords)
    settings = debugfs(disk, "cat /etc/ssh/sshd_config.d/agent-swarm.conf")
    assert "PasswordAuthentication no" in settings
    assert "PermitRootLogin no" in settings


@machine
def test_files_of_a_built_image_have_their_owners_and_modes(disk: Path) -> None:
    assert re.search(r"Mode:\s+04755", debugfs(disk, "stat /usr/bin/sudo"))
    for path in ("/", "/usr/bin/sudo", "/etc/cloud/cloud.cfg.d/90_agent_swarm.cfg", "/etc/systemd"):
        assert re.search(r"User:\s+0\s+Group:\s+0", debugfs(disk, f"stat {path}")), path
    assert re.search(r"Mode:\s+0644", debugfs(disk, "stat /etc/cloud/cloud.cfg.d/90_agent_swarm.cfg"))


@machine
def test_a_built_image_carries_no_package_lists_and_no_manuals(disk: Path) -> None:
    assert "deb.debian.org" not in debugfs(disk, "ls -p /var/lib/apt/lists")
    assert "man1" not in debugfs(disk, "ls -p /usr/share/man")
