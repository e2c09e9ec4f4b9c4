"""OpenSSH's client configuration of all our machines: `ssh fix-1.swarm`, editors and scp work by it.

The two files are generated as a whole from the registry; nothing in them is edited by hand. Sessions of
our own use the same file, so that what works here works outside too.

Source: ssh_config(5), and for known_hosts "SSH_KNOWN_HOSTS FILE FORMAT" in sshd(8).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from agent_swarm import runner
from agent_swarm.errors import MachineError, UsageError
from agent_swarm.files import write_atomically
from agent_swarm.guest.target import host_alias, id_alias

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from agent_swarm.config import Config
    from agent_swarm.model import EnvironmentId, Kind, SshEndpoint
    from agent_swarm.paths import Paths

HOST_KEY_PATTERN = re.compile(r"ssh-ed25519 [A-Za-z0-9+/]{43,120}={0,2}")
HOST_PATTERN = re.compile(r"[A-Za-z0-9._:%-]{1,255}")

# measured in emulation (DESIGN section 6): a quarter less time to the first command than the defaults
KEY_EXCHANGE = "curve25519-sha256,curve25519-sha256@libssh.org"
CIPHERS = "aes128-gcm@openssh.com,aes256-gcm@openssh.com,chacha20-poly1305@openssh.com,aes128-ctr,aes256-ctr"


@dataclass(frozen=True, slots=True)
class Host:
    """One machine as the configuration needs it."""

    environment_id: EnvironmentId
    kind: Kind
    name: str
    endpoint: SshEndpoint


def write(paths: Paths, config: Config, hosts: Sequence[Host]) -> None:
    """Replace both files, each atomically. The caller serialises writers.

    A machine is reachable as NAME.swarm (task) or NAME.project.swarm (project) and by its id. Where a
    task's name makes an alias that is a project's ("web.project"), the project has it. Raises
    MachineError for an endpoint that cannot be written down, OSError when the disk is full.
    """
    # keys first: an entry of the config never lacks its key
    write_atomically(paths.known_hosts, known_hosts(hosts).encode())
    write_atomically(paths.ssh_config, render(paths, config, hosts).encode())


def render(paths: Paths, config: Config, hosts: Sequence[Host]) -> str:
    """The text of the configuration."""
    blocks = ["# Written by agent-swarm; changes are lost. Include it from ~/.ssh/config to use the names.\n"]
    for host in sorted(hosts, key=lambda host: (host.kind, host.name)):  # "project" before "task"
        # of two entries with one alias ssh takes the first
        aliases = f"{host_alias(host.kind, host.name)} {id_alias(host.environment_id)}"
        blocks.append(
            f"Host {aliases}\n"
            f"  HostName {_checked(host)}\n"
            f"  Port {host.endpoint.port}\n"
            f"  User {host.endpoint.user}\n"
            f"  HostKeyAlias {host.environment_id}\n"
        )
    blocks.append(
        "Host *.swarm\n"
        f"  IdentityFile {quoted(paths.ssh_key)}\n"
        "  IdentitiesOnly yes\n"
        f"  UserKnownHostsFile {quoted(paths.known_hosts)}\n"
        "  StrictHostKeyChecking yes\n"
        "  HostKeyAlgorithms ssh-ed25519\n"
        "  CheckHostIP no\n"
        "  UpdateHostKeys no\n"
        "  PreferredAuthentications publickey\n"
        "  PasswordAuthentication no\n"
        "  KbdInteractiveAuthentication no\n"
        f"  ForwardAgent {'yes' if config.ssh.forward_agent else 'no'}\n"
        "  ControlMaster no\n"
        "  ControlPath none\n"
        "  ServerAliveInterval 15\n"
        "  ServerAliveCountMax 4\n"
        f"  KexAlgorithms {KEY_EXCHANGE}\n"
        f"  Ciphers {CIPHERS}\n"
        "  LogLevel ERROR\n"
    )
    return "\n".join(blocks)


def known_hosts(hosts: Sequence[Host]) -> str:
    """One line per machine, by its id: a changed port or name does not change whose key it is."""
    for host in hosts:
        _checked(host)
    return "".join(f"{host.environment_id} {host.endpoint.host_key}\n" for host in hosts)


def included_by_user(paths: Paths) -> bool:
    """Whether the user's own SSH configuration includes ours, so that `ssh NAME.swarm` and editors work."""
    seen = runner.run(["ssh", "-G", "any.swarm"], timeout_s=10, check=False)
    return f"userknownhostsfile {paths.known_hosts}" in seen.stdout.decode("utf-8", "replace").splitlines()


def quoted(path: Path) -> str:
    """A path as an argument of ssh_config, taken literally.

    Raises UsageError for the few paths that the format cannot hold.
    """
    text = str(path)
    if "${" in text or "\n" in text or "\r" in text:
        message = f"OpenSSH cannot use files below {text!r}"
        raise UsageError(message, hint="Set AGENT_SWARM_HOME to a path without '${' and line breaks.")
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return '"' + percent_escaped(escaped) + '"'


def percent_escaped(text: str) -> str:
    """`text` where OpenSSH expands %-tokens, taken literally."""
    return text.replace("%", "%%")


def _checked(host: Host) -> str:
    """The address, once it is sure that the endpoint holds no more than one; a provider may have read
    the key from the guest."""
    endpoint = host.endpoint
    if HOST_KEY_PATTERN.fullmatch(endpoint.host_key) is None:
        message = f"the host key of {host.kind} {host.name} is not an ed25519 public key"
        raise MachineError(message, details=endpoint.host_key[:200])
    if (
        HOST_PATTERN.fullmatch(endpoint.host) is None
        or re.fullmatch(r"[a-z][a-z0-9_-]*", endpoint.user) is None
    ):
        message = f"the address of {host.kind} {host.name} is not valid"
        raise MachineError(message, details=f"{endpoint.user}@{endpoint.host}"[:200])
    return percent_escaped(endpoint.host)
