"""The cloud-init seed: what a machine is told at its first boot.

A machine reads it from a small ISO 9660 volume named CIDATA (the NoCloud data source). It carries a
public key and names, never a secret. A clone's disk is its project's, with the project's identity on
it: a new `instance-id` makes cloud-init treat the first boot as a new machine, which makes new host
keys, host name and machine-id before sshd listens.

Sources: https://docs.cloud-init.io/en/latest/reference/datasources/nocloud.html,
https://docs.cloud-init.io/en/latest/reference/modules.html,
https://docs.cloud-init.io/en/latest/reference/network-config-format-v2.html
"""

from __future__ import annotations

import io
import json
import os
import re
from typing import TYPE_CHECKING

from agent_swarm.errors import MachineError
from agent_swarm.files import write_atomically
from agent_swarm.model import Seed

if TYPE_CHECKING:
    from pathlib import Path

    from agent_swarm.model import EnvironmentId

USER = "worker"
"""The account that every session uses: passwordless sudo, no password, our client key."""

HOST_NAME_MAX = 63

# Without this one, two clones share the id that journald, D-Bus and DHCP know them by (machine-id(5)).
# journald keeps the id it read at its start: without the restart `journalctl` would show nothing.
NEW_MACHINE_ID = """\
tr -d - </proc/sys/kernel/random/uuid >/etc/machine-id.new &&
chmod 444 /etc/machine-id.new && mv -f /etc/machine-id.new /etc/machine-id &&
if [ -d /var/lib/dbus ]; then ln -sf /etc/machine-id /var/lib/dbus/machine-id; fi &&
systemctl restart systemd-journald.service
"""

# MaxSessions counts the sessions of one connection, and all of a machine's `run`s share one.
SSHD_CONFIG = """\
# written by agent-swarm
PermitRootLogin no
PasswordAuthentication no
KbdInteractiveAuthentication no
UseDNS no
MaxSessions 512
MaxStartups 128
"""


def host_name(name: str) -> str:
    """The host name of a machine that the user named `name`: one label as RFC 1123 wants it."""
    label = re.sub(r"[^a-z0-9]+", "-", name.lower())[:HOST_NAME_MAX].strip("-")
    return label or "machine"


def make_seed(
    *, environment: EnvironmentId, host_name: str, authorized_key: str, install_agent: bool
) -> Seed:
    """The seed of one machine. `authorized_key` is the line of id_ed25519.pub.

    With `install_agent` the first boot installs qemu-guest-agent, which needs the network and takes
    minutes; without it the image has the agent already.
    """
    user_data: dict[str, object] = {
        "hostname": host_name,
        "preserve_hostname": False,
        "manage_etc_hosts": True,
        "users": [
            {
                "name": USER,
                "sudo": "ALL=(ALL) NOPASSWD:ALL",
                "shell": "/bin/bash",
                "lock_passwd": True,
                "ssh_authorized_keys": [authorized_key.strip()],
            }
        ],
        "ssh_pwauth": False,
        "disable_root": True,
        # the machine makes its own key; we only ever read the public half
        "ssh_deletekeys": True,
        "ssh_genkeytypes": ["ed25519"],
        "bootcmd": [["cloud-init-per", "instance", "machine-id", "sh", "-c", NEW_MACHINE_ID]],
        "write_files": [
            {
                "path": "/etc/ssh/sshd_config.d/10-agent-swarm.conf",
                "content": SSHD_CONFIG,
                "permissions": "0644",
            }
        ],
        "growpart": {"mode": "auto", "devices": ["/"]},
        "resize_rootfs": True,
        "package_update": install_agent,
        "package_upgrade": False,
    }
    if install_agent:
        user_data["packages"] = ["qemu-guest-agent"]
        user_data["runcmd"] = [["systemctl", "start", "qemu-guest-agent.service"]]
    network = {"version": 2, "ethernets": {"all": {"match": {"name": "e*"}, "dhcp4": True}}}
    # JSON is YAML (https://yaml.org/spec/1.2.2/#102-json-schema): no quoting rules to get wrong
    return Seed(
        instance_id=environment,
        user_data="#cloud-config\n" + json.dumps(user_data, indent=1) + "\n",
        meta_data=json.dumps({"instance-id": environment, "local-hostname": host_name}) + "\n",
        network_config=json.dumps(network) + "\n",
    )


def write_iso(seed: Seed, path: Path) -> None:
    """Write the seed as an ISO 9660 file with Joliet and Rock Ridge names. Replaces `path` atomically.

    Raises MachineError where the file cannot be written.
    """
    import pycdlib

    iso = pycdlib.PyCdlib()
    iso.new(interchange_level=3, joliet=3, rock_ridge="1.09", vol_ident="CIDATA")
    contents = {
        "user-data": seed.user_data,
        "meta-data": seed.meta_data,
        "network-config": seed.network_config,
    }
    for number, (name, text) in enumerate(contents.items()):
        data = text.encode()
        iso.add_fp(io.BytesIO(data), len(data), f"/FILE{number}.;1", rr_name=name, joliet_path=f"/{name}")
    image = io.BytesIO()
    iso.write_fp(image)
    iso.close()
    try:
        write_atomically(path, image.getvalue())
    except OSError as error:
        message = f"the cloud-init seed cannot be written: {os.fspath(path)}"
        raise MachineError(message, details=str(error), hint="Free space on that disk.") from error
