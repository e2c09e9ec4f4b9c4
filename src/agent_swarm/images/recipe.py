"""What is inside an image that we build from Debian packages, and why.

A recipe is data: the packages, the files put into the tree before they are installed, and a script run
in the tree at the end. `Recipe.key` changes whenever any of it does, so that an image built from an
older recipe is not taken for a new one. `build.py` carries it out.

The image is made for quick boots under emulation, where every Python import and every unit counts:
figures are in docs/performance.md.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass

FORMAT = 1
ROOT_LABEL = "swarm-root"
VIRTUAL_SIZE_BYTES = 4 << 30
"""The smallest disk a machine can have; systemd-growfs grows the file system to the disk at every boot."""

SUITES = ("trixie", "bookworm")
DEBIAN_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}

PACKAGES = (
    "systemd-sysv",
    "systemd-resolved",
    "systemd-timesyncd",  # a laptop's sleep stops the guest's clock
    "dbus",  # without it neither guest shutdown nor systemctl as a user works
    "udev",
    "initramfs-tools",
    "zstd",
    "e2fsprogs",
    "openssh-server",
    "openssh-sftp-server",
    "cloud-init",
    "qemu-guest-agent",
    "sudo",
    "iproute2",
    "netbase",
    "procps",
    "ca-certificates",
    "curl",
    "git",
    "less",
)

DPKG_OPTIONS = (
    # a machine for programs: no manuals, translations or changelogs; licences stay
    "path-exclude=/usr/share/man/*",
    "path-exclude=/usr/share/info/*",
    "path-exclude=/usr/share/locale/*",
    "path-exclude=/usr/share/doc/*",
    "path-include=/usr/share/doc/*/copyright",
    "path-exclude=/usr/share/bug/*",
    "path-exclude=/usr/share/lintian/*",
    "path-exclude=/usr/lib/binfmt.d/python3*",
    "force-unsafe-io",
)

APT_OPTIONS = (
    'Acquire::Languages "none"',
    'APT::Install-Recommends "false"',
)

MASKED_UNITS = (
    # upkeep of machines that live for years; under emulation each costs seconds in the first minutes
    "apt-daily.timer",
    "apt-daily-upgrade.timer",
    "dpkg-db-backup.timer",
    "e2scrub_all.timer",
    "e2scrub_reap.service",
    "fstrim.timer",
    "man-db.timer",
    "systemd-tmpfiles-clean.timer",
    # the serial console is the boot log; there is no password to log in with
    "getty@tty1.service",
    "serial-getty@ttyS0.service",
    "serial-getty@ttyAMA0.service",
    "cloud-init-hotplugd.socket",
    "systemd-pstore.service",
    "systemd-hwdb-update.service",
    "systemd-network-generator.service",
    "systemd-udev-load-credentials.service",
    # mounts for debugging and for drivers that no virtual machine has; each loads a module
    "sys-kernel-tracing.mount",
    "sys-kernel-debug.mount",
    "sys-kernel-config.mount",
    "sys-fs-fuse-connections.mount",
    "dev-hugepages.mount",
    "modprobe@drm.service",
)

CLOUD_INIT = """\
# Written by agent-swarm. Modules that have no use in a machine with one disk, one user and one seed are
# left out: each costs an import at every boot. The file system is grown by systemd-growfs.
datasource_list: [ NoCloud, None ]
manual_cache_clean: false
disable_root: true
ssh_pwauth: false
users: []
preserve_hostname: false
# every provider's network has DHCP, and a clone's card has another address than its project's: one fixed
# networkd file serves all of them, without netplan's and the renderer's seconds
network: { config: disabled }
cloud_init_modules:
  - bootcmd
  - write_files
  - set_hostname
  - update_hostname
  - update_etc_hosts
  - users_groups
  - ssh
cloud_config_modules:
  - runcmd
cloud_final_modules:
  - package_update_upgrade_install
  - write_files_deferred
  - scripts_per_once
  - scripts_per_boot
  - scripts_per_instance
  - scripts_user
  - final_message
"""

SSHD_CONFIG = """\
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin no
UseDNS no
MaxSessions 100
MaxStartups 100
"""

# The client is known by its address, not its machine-id: a clone would pass for its project until it has
# an id of its own.
NETWORK = """\
[Match]
Type=ether
Name=e*

[Network]
DHCP=yes

[DHCPv4]
ClientIdentifier=mac
"""

# one card is enough to be online
WAIT_ONLINE = """\
[Service]
ExecStart=
ExecStart=/usr/lib/systemd/systemd-networkd-wait-online --any --timeout=30
"""

FILES: tuple[tuple[str, str], ...] = (
    ("etc/cloud/cloud.cfg.d/90_agent_swarm.cfg", CLOUD_INIT),
    # NoCloud reads a disk labelled CIDATA and nothing else: no search for clouds at boot
    ("etc/cloud/ds-identify.cfg", "policy: search,found=all,maybe=none,notfound=disabled\n"),
    ("etc/ssh/sshd_config.d/agent-swarm.conf", SSHD_CONFIG),
    ("etc/fstab", f"LABEL={ROOT_LABEL} / ext4 rw,relatime,errors=remount-ro,x-systemd.growfs 0 0\n"),
    ("etc/default/locale", "LANG=C.UTF-8\n"),
    ("etc/hostname", "localhost\n"),
    # the root file system is the one disk on virtio; ext4 and the PCI bus are built into the kernel
    ("etc/initramfs-tools/conf.d/agent-swarm", "MODULES=list\nCOMPRESS=zstd\nFSTYPE=ext4\nRESUME=none\n"),
    ("usr/share/initramfs-tools/modules.d/agent-swarm", "virtio_pci\nvirtio_blk\next4\n"),
    ("etc/systemd/network/80-dhcp.network", NETWORK),
    ("etc/systemd/journald.conf.d/agent-swarm.conf", "[Journal]\nSystemMaxUse=64M\n"),
    ("etc/systemd/system/systemd-networkd-wait-online.service.d/agent-swarm.conf", WAIT_ONLINE),
)

FINISH = """\
set -e
systemctl enable --quiet systemd-networkd.service systemd-resolved.service
systemctl mask --quiet {masked}
passwd --quiet --lock root
# what must differ between machines is made at the first boot
rm -f /etc/ssh/ssh_host_* /var/lib/dbus/machine-id /var/lib/systemd/random-seed
: > /etc/machine-id
rm -rf /var/lib/apt/lists/* /var/cache/apt/*.bin /var/cache/apt/archives/*.deb /var/cache/debconf/*-old
rm -rf /var/log/apt /var/log/*.log /var/lib/dpkg/*-old /usr/share/doc/*/changelog* /boot/System.map-*
# newer than /usr: no unit with ConditionNeedsUpdate= runs at the first boot
touch /etc/.updated /var/.updated
"""


@dataclass(frozen=True, slots=True)
class Recipe:
    """One image to build. `mirror` "" means deb.debian.org with its security and update archives."""

    suite: str
    architecture: str
    mirror: str = ""

    @property
    def debian_architecture(self) -> str:
        return DEBIAN_ARCHITECTURES[self.architecture]

    @property
    def packages(self) -> tuple[str, ...]:
        return (f"linux-image-cloud-{self.debian_architecture}", *PACKAGES)

    @property
    def files(self) -> tuple[tuple[str, str], ...]:
        return FILES

    @property
    def finish(self) -> str:
        """The shell script that is run in the tree at the end."""
        return FINISH.format(masked=" ".join(MASKED_UNITS))

    @property
    def kernel_command_line(self) -> str:
        """`panic=1`: QEMU before 8.1 loses a race over patched kernel text now and then when it emulates
        several CPUs (https://bugzilla.redhat.com/show_bug.cgi?id=2216496); the machine then starts anew."""
        console = "ttyAMA0" if self.architecture == "aarch64" else "ttyS0"
        return f"root=LABEL={ROOT_LABEL} rw rootfstype=ext4 console={console} quiet panic=1"

    @property
    def key(self) -> str:
        """16 hex digits that stand for everything the recipe says."""
        everything = (
            FORMAT,
            self.suite,
            self.architecture,
            self.mirror,
            self.packages,
            self.files,
            self.finish,
            self.kernel_command_line,
            DPKG_OPTIONS,
            APT_OPTIONS,
            VIRTUAL_SIZE_BYTES,
        )
        return hashlib.sha256(json.dumps(everything).encode()).hexdigest()[:16]
