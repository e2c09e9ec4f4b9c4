from __future__ import annotations

import pytest

from agent_swarm.providers.qemu.network import Slirp, dns_options, name_servers, passt_argv


def words_after(words: list[str], option: str) -> list[str]:
    return [words[index + 1] for index, word in enumerate(words) if word == option]


def test_passt_maps_no_address_to_the_hosts_loopback():
    assert "--no-map-gw" in passt_argv("passt", descriptor=5, ssh_port=4022, dns=[])


def test_passt_forwards_one_port_of_the_loopback_and_nothing_else():
    words = passt_argv("passt", descriptor=5, ssh_port=4022, dns=[])
    assert words_after(words, "--tcp-ports") == ["127.0.0.1/4022:22"]
    assert words_after(words, "--udp-ports") == ["none"]


def test_passt_gets_its_socket_and_stays_in_the_foreground():
    words = passt_argv("passt", descriptor=5, ssh_port=4022, dns=[])
    assert words_after(words, "--fd") == ["5"]
    assert "--foreground" in words


def test_slirp_forwards_from_the_loopback_alone():
    assert Slirp(ssh_port=4022).netdev == "user,hostfwd=tcp:127.0.0.1:4022-:22"


@pytest.mark.parametrize(
    ("text", "servers"),
    [
        ("nameserver 127.0.0.53\noptions edns0\n", ["127.0.0.53"]),
        ("nameserver ::1\nnameserver 192.0.2.1\n", ["::1", "192.0.2.1"]),
        ("nameserver fe80::1%eth0\n", ["fe80::1"]),
        ("# nameserver 127.0.0.1\nnameserver\nnameserver nonsense\nsearch nameserver\n", []),
        ("", []),
    ],
)
def test_name_servers_are_read_as_the_resolver_reads_them(tmp_path, text, servers):
    (tmp_path / "resolv.conf").write_text(text)
    assert [str(server) for server in name_servers(tmp_path / "resolv.conf")] == servers


def test_no_resolv_conf_means_no_name_server(tmp_path):
    assert name_servers(tmp_path / "resolv.conf") == []


OLD, NEW = "  --dns-forward ADDR", "  --dns-host ADDR"
FORWARD = ["--dns-forward", "10.0.2.2"]


@pytest.mark.parametrize(
    ("resolv_conf", "upstream", "usage", "options"),
    [
        pytest.param("192.0.2.1", "", OLD, [], id="the guest can reach it"),
        pytest.param("127.0.0.1 2001:db8::1", "", OLD, [], id="the guest can reach one"),
        pytest.param("", "", OLD, [], id="the host has none"),
        pytest.param("127.0.0.53", "192.0.2.1", NEW, FORWARD, id="a new passt lends the service"),
        pytest.param(
            "127.0.0.53",
            "192.0.2.1 127.0.0.1 2001:db8::1",
            OLD,
            ["--dns", "192.0.2.1", "--dns", "2001:db8::1"],
            id="an old passt offers what systemd-resolved asks",
        ),
        pytest.param(
            "127.0.0.1", "", OLD, ["--dns", "10.0.2.2", *FORWARD], id="an old passt lends 127.0.0.1"
        ),
        pytest.param("::1", "", NEW, FORWARD, id="a loopback of IPv6"),
    ],
)
def test_a_guest_has_a_name_server_wherever_the_host_has_one(tmp_path, resolv_conf, upstream, usage, options):
    program = tmp_path / "passt"
    program.write_text(f"#!/bin/sh\necho '{usage}' >&2\n")
    program.chmod(0o755)
    for name, servers in (("resolv.conf", resolv_conf), ("upstream", upstream)):
        (tmp_path / name).write_text("".join(f"nameserver {server}\n" for server in servers.split()))
    assert dns_options(str(program), tmp_path / "resolv.conf", tmp_path / "upstream") == options
