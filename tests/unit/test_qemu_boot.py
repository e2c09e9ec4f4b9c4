from __future__ import annotations

import pytest

from agent_swarm.providers.qemu import console
from agent_swarm.providers.qemu.boot import parse_host_key

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAILPFapo0xf6lfgCNs4NSwL5INkSJYnEtCdZ2UQ3Qe6K1"


def test_a_public_host_key_loses_its_comment():
    assert parse_host_key(f"{KEY} root@fix-1\n") == KEY


@pytest.mark.parametrize(
    "text",
    [
        "",
        "\n",
        KEY[:40],
        f"{KEY}\n{KEY}\n",
        KEY.replace("ed25519", "rsa"),
        f"{KEY.split()[0]} {'A' * 5000}",
        f"{KEY.split()[0]} AAAA*AAAA{'A' * 60}",
        f"command=x {KEY}",
        f"{KEY}\n@cert-authority * {KEY}",
    ],
)
def test_anything_else_that_a_guest_says_is_no_host_key(text):
    assert parse_host_key(text) is None


@pytest.mark.parametrize(
    ("raw", "shown"),
    [
        ("\x1b[0;32m  OK  \x1b[0m Started sshd.", "  OK   Started sshd."),
        ("\x1b]0;title\x07plain", "plain"),
        ("\x1b]0;never ended", ""),
        ("a\x07b\x00c", "a\\x07b\\x00c"),
        ("\x9b31mred", "\\x9b31mred"),
        ("Grüße ✓", "Grüße ✓"),
    ],
)
def test_a_console_line_cannot_command_the_terminal(raw, shown):
    assert console.printable(raw) == shown


def test_the_tail_of_a_console_is_its_last_lines_that_hold_something(tmp_path):
    (tmp_path / "console").write_bytes(b"one\r\n\r\n\x1b[0m\r\ntwo\r\nthree")
    assert console.tail(tmp_path / "console", lines=2) == "two\nthree"


def test_a_huge_console_is_read_from_its_end_alone(tmp_path):
    with (tmp_path / "console").open("wb") as stream:
        stream.truncate(1 << 40)
        stream.seek(0, 2)
        stream.write(b"\nlast words\n")
    assert console.tail(tmp_path / "console").endswith("last words")


def test_no_console_has_no_tail(tmp_path):
    assert console.tail(tmp_path / "console") == ""
