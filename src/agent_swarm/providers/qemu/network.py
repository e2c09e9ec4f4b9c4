"""A machine's way to the network, and SSH's way to the machine. No privileges needed.

passt (Linux) translates at the socket level; it is told not to map the gateway's address to the host, so
services on the host's loopback stay out of the guest's reach. slirp, which is built into QEMU, cannot be told
so. SSH is forwarded from a port of 127.0.0.1 that the kernel chose.
"""

from __future__ import annotations

import ipaddress
import socket
import struct
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from agent_swarm import runner
from agent_swarm.errors import MachineError
from agent_swarm.providers.qemu.daemon import Daemon

LOOPBACK = "127.0.0.1"
GUEST_ADDRESS = "10.0.2.15"
GATEWAY = "10.0.2.2"
NAME_SERVER = GATEWAY
"""The address under which a name server of the host's loopback is lent to the guest. The gateway's, because passt
of 2023 lets every answer from the loopback come from there."""
NAME_SERVERS_MAX = 3
START_TIMEOUT_S = 10.0

SLIRP_WARNING = "with slirp networking a guest can reach services on the host's loopback; install passt"


@dataclass(frozen=True, slots=True)
class Slirp:
    """QEMU's built-in network."""

    ssh_port: int

    name: ClassVar[str] = "slirp"
    descriptors: ClassVar[tuple[int, ...]] = ()

    @property
    def netdev(self) -> str:
        return f"user,hostfwd=tcp:{LOOPBACK}:{self.ssh_port}-:22"

    def check(self) -> None:
        """It lives as long as QEMU does."""

    def close(self) -> None:
        """There is nothing to let go of."""


class Passt:
    """A running passt and our end of its socket, which QEMU inherits.

    passt ends when the last holder of that end is gone: QEMU, or we before QEMU runs. So it cannot be left behind.
    """

    name: ClassVar[str] = "passt"

    def __init__(self, binary: str, *, ssh_port: int, mac: str, log: Path) -> None:
        """Start passt for the guest with this address; return when it serves.

        Raises MachineError with passt's complaint, for one when the port was taken meanwhile.
        """
        self.ssh_port = ssh_port
        with ExitStack() as stack:
            theirs, self._ours = socket.socketpair()
            stack.callback(self._ours.close)
            with theirs:
                dns = dns_options(binary)
                words = passt_argv(binary, descriptor=theirs.fileno(), ssh_port=ssh_port, dns=dns)
                self._daemon = Daemon(words, log=log, pass_fds=[theirs.fileno()])
            try:
                _ask_for_gateway(self._ours, mac)
            except (OSError, EOFError) as error:
                self._daemon.terminate()
                self._daemon.ended(within_s=START_TIMEOUT_S)
                raise self._failed() from error
            stack.pop_all()

    @property
    def descriptors(self) -> tuple[int, ...]:
        """What QEMU has to inherit."""
        return (self._ours.fileno(),)

    @property
    def netdev(self) -> str:
        return f"stream,server=off,addr.type=fd,addr.str={self._ours.fileno()}"

    def check(self) -> None:
        """Raises MachineError when passt has ended meanwhile."""
        if self._daemon.ended():
            raise self._failed()

    def close(self) -> None:
        """Let go of our end: QEMU has its own by now, or passt ends."""
        self._ours.close()

    def _failed(self) -> MachineError:
        message = "passt, the machine's network, could not start"
        return MachineError(
            message,
            details=self._daemon.complaint(),
            hint="`agent-swarm config set qemu.network slirp` does without it, but then guests can reach "
            "services on the host's loopback.",
        )


def passt_argv(binary: str, *, descriptor: int, ssh_port: int, dns: list[str]) -> list[str]:
    """passt's command line. Pure. Source: passt(1)."""
    return [
        binary,
        *("--foreground", "--quiet", "--fd", str(descriptor)),
        *("--address", GUEST_ADDRESS, "--netmask", "24", "--gateway", GATEWAY),
        "--no-map-gw",  # else the gateway's address, in IPv4 and IPv6, is the host's loopback
        *("--tcp-ports", f"{LOOPBACK}/{ssh_port}:22", "--udp-ports", "none"),
        *dns,
    ]


def dns_options(
    binary: str,
    resolv_conf: Path = Path("/etc/resolv.conf"),
    upstream: Path = Path("/run/systemd/resolve/resolv.conf"),
) -> list[str]:
    """What gives the guest a name server where the host's own are all on its loopback (systemd-resolved, dnsmasq).

    [] where the guest can reach one of the host's by itself. `upstream` is where systemd-resolved lists the
    servers that it asks in turn.
    """
    found = name_servers(resolv_conf)
    if not found or any(not server.is_loopback for server in found):
        return []
    usage = runner.run([binary, "--help"], timeout_s=10, check=False)
    if b"--dns-host" in usage.stdout + usage.stderr:  # since 2024_10: lends the guest that one service
        return ["--dns-forward", NAME_SERVER]
    asked = [server for server in name_servers(upstream) if not server.is_loopback]
    if asked:
        return [word for server in asked[:NAME_SERVERS_MAX] for word in ("--dns", str(server))]
    # an older passt forwards to 127.0.0.1, whatever it is told, when it is told what to offer
    return ["--dns", NAME_SERVER, "--dns-forward", NAME_SERVER]


def name_servers(resolv_conf: Path) -> list[ipaddress.IPv4Address | ipaddress.IPv6Address]:
    """The name servers of a file in resolv.conf(5)'s format, in its order; [] where there is no file."""
    try:
        lines = resolv_conf.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    found = []
    for words in (line.split() for line in lines):
        if len(words) >= 2 and words[0] == "nameserver":
            try:
                found.append(ipaddress.ip_address(words[1].partition("%")[0]))
            except ValueError:
                continue  # what cannot be parsed is ignored, as the resolver does
    return found


def free_port() -> int:
    """A TCP port of 127.0.0.1 that was free just now."""
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        port: int = probe.getsockname()[1]
        return port


def is_free(port: int) -> bool:
    """Whether nobody listens on this port of 127.0.0.1 now."""
    with socket.socket() as probe:
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
    return True


def _ask_for_gateway(connection: socket.socket, mac: str) -> None:
    """Return when passt has answered an ARP request, as the guest would send it: by then its ports are bound.

    Frames on the socket are preceded by their length (QEMU's `-netdev stream`), ARP is RFC 826. Raises OSError
    or EOFError when passt hangs up or is silent.
    """
    guest = bytes.fromhex(mac.replace(":", ""))
    question = (
        b"\xff" * 6 + guest + bytes.fromhex("0806 0001 0800 06 04 0001")
        + guest + socket.inet_aton(GUEST_ADDRESS)
        + bytes(6) + socket.inet_aton(GATEWAY)
    )  # fmt: skip
    answer = bytes.fromhex("0806 0001 0800 06 04 0002")
    connection.settimeout(START_TIMEOUT_S)
    connection.sendall(struct.pack(">I", len(question)) + question)
    while True:
        (length,) = struct.unpack(">I", _exactly(connection, 4))
        if _exactly(connection, length)[12:22] == answer:
            connection.settimeout(None)
            return


def _exactly(connection: socket.socket, size: int) -> bytes:
    """The next bytes and not one more: what follows is QEMU's to read."""
    received = b""
    while len(received) < size:
        part = connection.recv(size - len(received))
        if not part:
            message = "passt hung up"
            raise EOFError(message)
        received += part
    return received
