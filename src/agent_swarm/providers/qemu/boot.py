"""Waiting until a started machine can be reached: its guest agent tells the SSH host key."""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING

from agent_swarm.errors import BootError, MachineError
from agent_swarm.guest.agent import GuestAgent
from agent_swarm.model import SshEndpoint
from agent_swarm.providers.qemu import console, daemon, layout, network, process

if TYPE_CHECKING:
    from agent_swarm.providers.qemu.layout import MachineFiles

USER = "worker"
POLL_S = 0.2
HOST_KEY = "/etc/ssh/ssh_host_ed25519_key.pub"

_HOST_KEY_LINE = re.compile(r"ssh-ed25519 [A-Za-z0-9+/]{60,100}={0,2}")


def wait_for_endpoint(files: MachineFiles, *, timeout_s: float) -> SshEndpoint:
    """How to reach the machine, once its guest has made this instance's own host keys.

    Raises BootError, with the console's last lines, when the machine ends or `timeout_s` passes.
    """
    deadline = time.monotonic() + timeout_s
    runtime = layout.read(files.runtime, layout.Runtime)
    line = runtime.host_key if runtime is not None else None
    while not line:
        if process.find(files) is None:
            message = "the machine ended while it started"
            raise BootError(message, details=_evidence(files), hint=_hint(files))
        line = _host_key(files)
        if line is not None:
            break
        if time.monotonic() >= deadline:
            message = f"the machine was not up within {timeout_s:.0f} s"
            raise BootError(message, details=_evidence(files), hint=_hint(files))
        time.sleep(POLL_S)
    if runtime is None:
        message = "the record of the machine's SSH port is gone"
        raise MachineError(message, details=str(files.runtime), hint="Stop the machine and start it again.")
    return SshEndpoint(host=network.LOOPBACK, port=runtime.ssh_port, user=USER, host_key=line)


def _host_key(files: MachineFiles) -> str | None:
    """The public host key, None as long as the guest has not told it."""
    # written when cloud-init's ssh module has run for this instance; a clone's disk holds its parent's key until then
    made = f"/var/lib/cloud/instances/{files.id}/sem/config_ssh"
    try:
        with GuestAgent(files.agent_socket) as agent:
            if not agent.ping():
                return None
            agent.read_file(made)
            found = agent.read_file(HOST_KEY).decode("ascii", "replace")
    except MachineError:
        return None  # not there yet: the deadline decides when that is an error
    return parse_host_key(found)


def parse_host_key(content: str) -> str | None:
    """Type and key of a public key file's one line, without its comment; None where it is anything else."""
    lines = content.splitlines()
    if len(lines) != 1:
        return None
    line = " ".join(lines[0].split()[:2])
    return line if _HOST_KEY_LINE.fullmatch(line) else None


def _evidence(files: MachineFiles) -> str:
    parts = [daemon.tail(files.qemu_log), console.tail(files.console)]
    return "\n".join(part for part in parts if part) or "its serial console is empty"


def _hint(files: MachineFiles) -> str:
    return f"The whole console is in {files.console}; a slow host may need a larger `timeouts.boot_s`."
