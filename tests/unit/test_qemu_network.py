from __future__ import annotations

import pytest

from agent_swarm.providers.qemu.network import Slirp, dns_options, loopback_name_server, passt_argv


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
    ("text", "server"),
    [
        ("nameserver 127.0.0.53\noptions edns0\n", "127.0.0.53"),
        ("nameserver ::1\nnameserver 127.0.0.1\n", "127.0.0.1"),
        ("nameserver 192.0.2.1\nnameserver 127.0.0.1\n", None),
        ("nameserver 2001:db8::1\nnameserver 127.0.0.1\n", None),
        ("nameserver fe80::1%eth0\n", None),
        ("nameserver ::1\n", None),
        ("# nameserver 127.0.0.1\nnameserver\nnameserver nonsense\n", None),
        ("", None),
    ],
)
def test_a_name_server_is_lent_only_where_all_of_them_are_on_the_loopback(tmp_path, text, server):
    (tmp_path / "resolv.conf").write_text(text)
    assert loopback_name_server(tmp_path / "resolv.conf") == server


def test_no_resolv_conf_means_no_name_server(tmp_path):
    assert loopback_name_server(tmp_path / "resolv.conf") is None


@pytest.fixture
def local_resolver(tmp_path):
    (tmp_path / "resolv.conf").write_text("nameserver 127.0.0.53\n")
    return tmp_path / "resolv.conf"


def fake_passt(folder, usage: str) -> str:
    program = folder / "passt"
    program.write_text(f"#!/bin/sh\necho '{usage}' >&2\n")
    program.chmod(0o755)
    return str(program)


def test_a_new_passt_offers_the_forwarded_name_server_by_itself(tmp_path, local_resolver):
    options = dns_options(fake_passt(tmp_path, "  --dns-host ADDR"), local_resolver)
    assert options == ["--dns-forward", "10.0.2.2"]


def test_an_old_passt_is_told_what_to_offer(tmp_path, local_resolver):
    options = dns_options(fake_passt(tmp_path, "  --dns-forward ADDR"), local_resolver)
    assert options == ["--dns", "127.0.0.53", "--dns", "10.0.2.2", "--dns-forward", "10.0.2.2"]


def test_name_servers_that_the_guest_can_reach_need_nothing(tmp_path):
    (tmp_path / "resolv.conf").write_text("nameserver 192.0.2.1\n")
    assert dns_options("passt", tmp_path / "resolv.conf") == []
