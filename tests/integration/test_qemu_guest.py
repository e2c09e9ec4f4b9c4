"""What real guests see of the host, and a clone of its project. On the shared machines."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from typing import TYPE_CHECKING

import psutil
import pytest

from agent_swarm.model import Kind, SshEndpoint

if TYPE_CHECKING:
    from collections.abc import Iterator

    from agent_swarm.model import Environment
    from tests.conftest import Guest

pytestmark = pytest.mark.machine


class Listener:
    """A service on one address of the host, which remembers that somebody came."""

    def __init__(self, family: socket.AddressFamily, address: str) -> None:
        self._socket = socket.socket(family)
        self._socket.bind((address, 0))
        self._socket.listen()
        self.port: int = self._socket.getsockname()[1]
        self.visits = 0
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):  # closed
            while True:
                visitor, _ = self._socket.accept()
                self.visits += 1
                visitor.close()

    def close(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()


@pytest.fixture(params=[(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")], ids=["IPv4", "IPv6"])
def service(request) -> Iterator[Listener]:
    try:
        listener = Listener(*request.param)
    except OSError as error:
        pytest.skip(f"this host has no loopback of that family: {error}")
    yield listener
    listener.close()


def connects(guest: Guest, address: str, port: int) -> bool:
    """Whether a program in the guest can open a TCP connection."""
    code, _, _ = guest.run("timeout", "5", "bash", "-c", f"exec 3<>/dev/tcp/{address}/{port}")
    return code == 0


def gateways(guest: Guest) -> set[str]:
    found = set()
    for family in ("-4", "-6"):
        _, output, _ = guest.run("ip", "-json", family, "route", "show", "default")
        for route in json.loads(output or b"[]"):
            if "gateway" in route:
                scope = f"%{route['dev']}" if route["gateway"].startswith("fe80") else ""
                found.add(route["gateway"] + scope)
    return found


def host_addresses() -> set[str]:
    families = (socket.AF_INET, socket.AF_INET6)
    every = [each for addresses in psutil.net_if_addrs().values() for each in addresses]
    return {each.address for each in every if each.family in families and not each.address.startswith("fe80")}


def test_a_guest_cannot_reach_a_service_on_the_hosts_loopback(guest: Guest, service: Listener):
    known = {"10.0.2.2", "10.0.2.3", "127.0.0.1", "::1", "::ffff:127.0.0.1"}
    tried = known | gateways(guest) | host_addresses()
    assert len(tried) > len(known), "neither a gateway nor an address of the host was found"
    assert [address for address in sorted(tried) if connects(guest, address, service.port)] == []
    assert service.visits == 0


def test_a_guest_reaches_what_the_host_offers_to_its_network(guest: Guest):
    """The other side of the test above: the way it tries to connect does work."""
    addresses = [address for address in host_addresses() if "." in address and not address.startswith("127.")]
    if not addresses:
        pytest.skip("this host has no IPv4 address but its loopback's")
    listener = Listener(socket.AF_INET, addresses[0])
    try:
        assert connects(guest, addresses[0], listener.port)
        assert listener.visits == 1
    finally:
        listener.close()


def test_the_ssh_port_is_on_the_hosts_loopback_alone(guest: Guest):
    endpoint = guest.swarm.find(guest.name).endpoint
    assert isinstance(endpoint, SshEndpoint)
    assert endpoint.host == "127.0.0.1"
    listening = {
        each.laddr.ip
        for each in psutil.net_connections("tcp")
        if each.status == psutil.CONN_LISTEN and each.laddr.port == endpoint.port
    }
    assert listening == {"127.0.0.1"}


def in_both(guest: Guest, project: Environment, *argv: str) -> tuple[bytes, bytes]:
    theirs = guest.swarm.run_captured(project.name, argv, kind=Kind.PROJECT)
    code, ours, errors = guest.run(*argv)
    assert (code, theirs.exit_code) == (0, 0), errors + theirs.stderr
    assert ours.strip()
    return ours, theirs.stdout


def test_a_clone_has_a_host_key_of_its_own(guest: Guest, project: Environment):
    ours, theirs = in_both(guest, project, "cat", "/etc/ssh/ssh_host_ed25519_key.pub")
    assert ours.split()[1] != theirs.split()[1]
    endpoint = guest.swarm.find(guest.name).endpoint
    assert isinstance(endpoint, SshEndpoint)
    assert endpoint.host_key.encode().split() == ours.split()[:2]


@pytest.mark.parametrize("what", ["hostname", "cat /etc/machine-id", "cat /proc/sys/kernel/random/boot_id"])
def test_a_clone_has_an_identity_of_its_own(guest: Guest, project: Environment, what: str):
    ours, theirs = in_both(guest, project, *what.split())
    assert ours != theirs


def test_a_clones_file_systems_needed_no_repair(guest: Guest):
    """Its point was frozen while the project ran: clean, and not as after a power cut."""
    code, output, errors = guest.run("sudo", "dmesg")
    assert code == 0, errors
    assert b"EXT4-fs" in output
    assert b"recovery complete" not in output


def test_the_guest_gives_freed_blocks_back(guest: Guest):
    code, output, errors = guest.run("lsblk", "--json", "--discard", "--bytes", "/dev/vda")
    assert code == 0, errors
    assert json.loads(output)["blockdevices"][0]["disc-max"] not in (0, "0", "0B")
