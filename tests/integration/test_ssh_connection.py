"""The SSH server and our connection to it: who is let in, who is believed, what is shared."""

from __future__ import annotations

import concurrent.futures
import shutil
import subprocess
from typing import TYPE_CHECKING

import psutil
import pytest

from agent_swarm.config import Config
from agent_swarm.errors import UnreachableError
from agent_swarm.guest import connection, keys, ssh_config
from agent_swarm.guest.ssh_config import Host
from agent_swarm.model import Kind, SshEndpoint
from agent_swarm.paths import Paths

if TYPE_CHECKING:
    from pathlib import Path

    from agent_swarm.guest.target import Target

pytestmark = pytest.mark.machine


def plain_ssh(paths: Paths, target: Target, *options: str) -> subprocess.CompletedProcess[str]:
    """One attempt with a connection of its own."""
    return subprocess.run(
        [*connection.ssh(paths), *options, target.id_alias, "true"],
        capture_output=True,
        check=False,
        text=True,
        timeout=120,
    )


def elsewhere(directory: Path, original: Paths, target: Target, host_key: str) -> Paths:
    """Another state directory that knows the machine, with `host_key` for it."""
    assert isinstance(target.endpoint, SshEndpoint)
    paths = Paths.at(directory)
    paths.prepare()
    shutil.copy(original.ssh_key, paths.ssh_key)
    endpoint = SshEndpoint(target.endpoint.host, target.endpoint.port, target.endpoint.user, host_key)
    ssh_config.write(paths, Config(), [Host(target.environment_id, Kind.TASK, "other", endpoint)])
    return paths


def test_our_key_is_let_in(guest_paths: Paths, guest_target: Target) -> None:
    assert plain_ssh(guest_paths, guest_target).returncode == 0


@pytest.mark.parametrize("method", ["password", "keyboard-interactive"])
def test_there_is_no_login_by_password(guest_paths: Paths, guest_target: Target, method: str) -> None:
    done = plain_ssh(
        guest_paths,
        guest_target,
        *("-o", "PubkeyAuthentication=no", "-o", f"PreferredAuthentications={method}"),
        *("-o", "PasswordAuthentication=yes", "-o", "KbdInteractiveAuthentication=yes"),
    )
    assert done.returncode == 255
    # what the server offers, in parentheses
    assert "Permission denied (publickey)" in done.stderr


def test_root_and_other_keys_are_not_let_in(guest_paths: Paths, guest_target: Target, tmp_path: Path) -> None:
    assert "Permission denied" in plain_ssh(guest_paths, guest_target, "-l", "root").stderr
    stranger = Paths.at(tmp_path)
    stranger.prepare()
    keys.ensure_client_key(stranger)
    assert isinstance(guest_target.endpoint, SshEndpoint)
    ssh_config.write(
        stranger, Config(), [Host(guest_target.environment_id, Kind.TASK, "x", guest_target.endpoint)]
    )
    assert "Permission denied" in plain_ssh(stranger, guest_target).stderr


def test_a_changed_host_key_is_refused_at_once(
    guest_paths: Paths, guest_target: Target, tmp_path: Path
) -> None:
    false_key = " ".join(keys.ensure_client_key(guest_paths).split()[:2])
    paths = elsewhere(tmp_path, guest_paths, guest_target, false_key)
    with pytest.raises(UnreachableError, match=r"the SSH host key of .* has changed"):
        connection.open_shared(paths, Config(), guest_target, timeout_s=600, alive=lambda: True)
    assert not connection.is_open(paths, guest_target)


def test_many_that_open_at_once_share_one_connection(
    guest_paths: Paths, guest_target: Target, tmp_path: Path
) -> None:
    assert isinstance(guest_target.endpoint, SshEndpoint)
    paths = elsewhere(tmp_path / "a b", guest_paths, guest_target, guest_target.endpoint.host_key)

    def open_it(_: int) -> None:
        connection.open_shared(paths, Config(), guest_target, timeout_s=120, alive=lambda: True)

    with concurrent.futures.ThreadPoolExecutor(6) as pool:
        list(pool.map(open_it, range(6)))
    try:
        # no other installation's connection has this configuration
        ours = str(paths.ssh_config)
        holders = [process for process in psutil.process_iter() if ours in _command_line(process)]
        assert len(holders) == 1
    finally:
        connection.close(paths, guest_target)
    psutil.wait_procs(holders, timeout=60)
    assert not holders[0].is_running()
    assert not connection.is_open(paths, guest_target)


def test_a_connection_whose_holder_was_killed_is_opened_anew(
    guest_paths: Paths, guest_target: Target, tmp_path: Path
) -> None:
    assert isinstance(guest_target.endpoint, SshEndpoint)
    paths = elsewhere(tmp_path, guest_paths, guest_target, guest_target.endpoint.host_key)
    connection.open_shared(paths, Config(), guest_target, timeout_s=120, alive=lambda: True)
    ours = str(paths.ssh_config)
    for process in [found for found in psutil.process_iter() if ours in _command_line(found)]:
        process.kill()
        psutil.wait_procs([process], timeout=60)
    assert paths.ssh_socket(guest_target.environment_id).exists()
    assert not connection.is_open(paths, guest_target)
    connection.open_shared(paths, Config(), guest_target, timeout_s=120, alive=lambda: True)
    assert connection.is_open(paths, guest_target)
    paths.ssh_config.write_text("")  # closing works when the machine's entry is gone
    connection.close(paths, guest_target)
    assert not connection.is_open(paths, guest_target)


def test_an_outside_ssh_reaches_the_machine_by_its_name(guest_paths: Paths, guest_target: Target) -> None:
    done = subprocess.run(
        ["ssh", "-F", guest_paths.ssh_config, guest_target.host_alias, "id -un"],
        capture_output=True,
        check=False,
        text=True,
        timeout=120,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "worker\n", "")


def _command_line(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""
