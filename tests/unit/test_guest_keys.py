"""The client key of an installation."""

from __future__ import annotations

import concurrent.futures
import subprocess
from typing import TYPE_CHECKING

import pytest

from agent_swarm.errors import SwarmError
from agent_swarm.guest.keys import ensure_client_key
from agent_swarm.paths import Paths

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    found = Paths.at(tmp_path)
    found.prepare()
    return found


def test_the_key_is_private_and_its_public_half_belongs_to_it(paths: Paths) -> None:
    line = ensure_client_key(paths)
    derived = subprocess.run(
        ["ssh-keygen", "-y", "-f", paths.ssh_key], capture_output=True, check=True
    ).stdout
    assert line.split()[:2] == derived.decode().split()[:2]
    assert paths.ssh_key.stat().st_mode & 0o777 == 0o600


def test_the_key_is_made_once(paths: Paths) -> None:
    assert ensure_client_key(paths) == ensure_client_key(paths)


def test_many_callers_at_once_get_the_same_key(paths: Paths) -> None:
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(lambda _: ensure_client_key(paths), range(8)))) == 1


def test_a_lost_public_half_is_made_again(paths: Paths) -> None:
    line = ensure_client_key(paths)
    paths.ssh_key.with_name("id_ed25519.pub").unlink()
    assert ensure_client_key(paths).split()[:2] == line.split()[:2]


def test_nothing_else_is_left_behind(paths: Paths) -> None:
    ensure_client_key(paths)
    assert sorted(path.name for path in paths.ssh.iterdir()) == ["id_ed25519", "id_ed25519.pub"]


def test_a_damaged_public_half_is_named(paths: Paths) -> None:
    ensure_client_key(paths)
    public = paths.ssh_key.with_name("id_ed25519.pub")
    public.write_text("ssh-rsa AAAA\nmore")
    with pytest.raises(SwarmError, match=r"id_ed25519\.pub is not an ed25519 public key"):
        ensure_client_key(paths)


def test_a_public_half_without_its_key_is_not_believed(paths: Paths) -> None:
    old = ensure_client_key(paths)
    paths.ssh_key.unlink()
    new = ensure_client_key(paths)
    assert new.split()[1] != old.split()[1]
    derived = subprocess.run(
        ["ssh-keygen", "-y", "-f", paths.ssh_key], capture_output=True, check=True
    ).stdout
    assert new.split()[:2] == derived.decode().split()[:2]
