"""A disk as distributions offer it for download, made here from the packages that images are built from.

Debian 13 with an MBR partition table, GRUB for the BIOS, cloud-init as its package has it, and no guest
agent. Nothing of it is the image recipe's but the way to the packages.

Sources: https://www.gnu.org/software/grub/manual/grub/html_node/BIOS-installation.html,
https://www.gnu.org/software/grub/manual/grub/html_node/Invoking-grub_002dmkimage.html
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from agent_swarm import locks, runner
from agent_swarm.config import Config
from agent_swarm.events import OutputLine
from agent_swarm.files import remove_tree
from agent_swarm.images import build, qcow2
from agent_swarm.images.recipe import Recipe
from agent_swarm.images.scratch import as_mapped_root, contained, scratch
from agent_swarm.paths import Paths

if TYPE_CHECKING:
    from pathlib import Path

    from agent_swarm.events import Progress

NAME = "debian-13-bios"
BOOT_SECTOR = "/usr/lib/grub/i386-pc/boot.img"
PROGRAMS = ("grub-mkimage", "sfdisk", BOOT_SECTOR)
"""What a host needs besides the programs of an image build; the table in script/lib.sh has the packages."""

SIZE_BYTES = 3 << 30
LABEL = "cloudimg-root"
WAIT_FOR_OTHER_S = 1500.0

PACKAGES = (
    "linux-image-cloud-amd64",
    "systemd-sysv",
    "systemd-resolved",
    "dbus",
    "udev",
    "initramfs-tools",
    "zstd",
    "netplan.io",
    "cloud-init",
    "cloud-guest-utils",  # growpart
    "fdisk",
    "e2fsprogs",
    "openssh-server",
    "sudo",
    "iproute2",
    "netbase",
    "ca-certificates",
)

FINISH = """\
set -e
mkdir -p /boot/grub
cat >/boot/grub/grub.cfg <<END
serial --unit=0 --speed=115200
terminal_output serial
linux $(echo /boot/vmlinuz-*) {command_line}
initrd $(echo /boot/initrd.img-*)
boot
END
passwd --quiet --lock root
rm -f /etc/ssh/ssh_host_* /var/lib/dbus/machine-id /var/lib/systemd/random-seed
: >/etc/machine-id
rm -rf /var/lib/apt/lists/* /var/cache/apt/archives/*.deb
"""

# $1: directory to work in, $2: size, $3: label. The file system begins at sector 2048; GRUB's boot sector
# loads its core image from sector 1, and that lies in the gap before the partition. metadata_csum_seed:
# GRUB before 2.12 does not read it.
DISK = f"""\
set -e
umask 022
cd "$1"
mkdir -m 0755 root
tar --exclude='./dev/*' -xf ../root.tar -C root
truncate -s "$2" disk.raw
mke2fs -q -F -t ext4 -L "$3" -O ^metadata_csum_seed \\
    -E offset=1048576,lazy_itable_init=0,lazy_journal_init=0 -d root disk.raw "$(($2 / 1024 - 1024))k"
rm -rf root
echo '2048,,83,*' | sfdisk --quiet --label dos --wipe never --wipe-partitions never disk.raw
grub-mkimage -O i386-pc -p '(hd0,msdos1)/boot/grub' -o core.img \\
    biosdisk part_msdos ext2 linux normal configfile serial boot
dd if={BOOT_SECTOR} of=disk.raw bs=440 count=1 conv=notrunc status=none
dd if=core.img of=disk.raw bs=512 seek=1 conv=notrunc status=none
"""


@dataclass(frozen=True, slots=True)
class CloudDisk(Recipe):
    """What is in the tree, in the words of the image build."""

    @property
    def packages(self) -> tuple[str, ...]:
        return PACKAGES

    @property
    def files(self) -> tuple[tuple[str, str], ...]:
        return (
            ("etc/fstab", f"LABEL={LABEL} / ext4 rw,relatime 0 1\n"),
            ("etc/hostname", "localhost\n"),
        )

    @property
    def finish(self) -> str:
        return FINISH.format(command_line=self.kernel_command_line)

    @property
    def kernel_command_line(self) -> str:
        return f"root=LABEL={LABEL} rw console=ttyS0 panic=1"


def bios_disk(cache: Path, progress: Progress) -> Path:
    """The disk as a qcow2 file in `cache`, a state directory; made there once per recipe. Blocks for minutes."""
    recipe = CloudDisk("trixie", "x86_64", Config().images.package_mirror)
    key = hashlib.sha256(f"{recipe.key}\0{DISK}\0{SIZE_BYTES}".encode()).hexdigest()[:16]
    paths = Paths.at(cache)
    paths.prepare()
    downloads = cache / "downloads"
    downloads.mkdir(exist_ok=True)
    found = downloads / f"{NAME}-{key}.qcow2"
    lock = paths.lock(f"download-{NAME}-{key}")
    with locks.hold(lock, wait_s=WAIT_FOR_OTHER_S, busy=f"{found.name} is being made"):
        if not found.exists():
            work = downloads / f".partial-{key}"
            work.mkdir(exist_ok=True)
            _make(recipe, work, progress).rename(found)
            remove_tree(work)
    return found


def _make(recipe: Recipe, work: Path, progress: Progress) -> Path:
    build.require_tools()
    made = work / "disk.qcow2"
    with scratch(work) as place:
        build._bootstrap(recipe, place, lambda line: progress(OutputLine(NAME, line)))
        script = ["sh", "-c", DISK, "sh", place / "work", str(SIZE_BYTES), LABEL]
        argv = [*contained(), *as_mapped_root(), *script]
        runner.run(argv, timeout_s=1200.0, environ=build._environ())
        qcow2.convert(place / "work" / "disk.raw", made, source_format="raw")
    return made
