"""The generated SSH configuration, as OpenSSH itself reads it (`ssh -G`)."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

import pytest

from agent_swarm.config import Config, SshSettings
from agent_swarm.errors import MachineError, UnreachableError, UsageError
from agent_swarm.guest import connection, ssh_config
from agent_swarm.guest.ssh_config import Host
from agent_swarm.guest.target import Target
from agent_swarm.model import EnvironmentId, Kind, SshEndpoint
from agent_swarm.paths import Paths

if TYPE_CHECKING:
    from pathlib import Path

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGmPqZ8AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"


def host(
    name: str, *, number: int = 1, kind: Kind = Kind.TASK, key: str = KEY, address: str = "127.0.0.1"
) -> Host:
    return Host(
        EnvironmentId(f"{number:012x}"), kind, name, SshEndpoint(address, 40_000 + number, "worker", key)
    )


def at(home: Path) -> Paths:
    paths = Paths.at(home)
    paths.prepare()
    return paths


def effective(paths: Paths, alias: str) -> dict[str, str]:
    """What OpenSSH makes of the file for one name, refusing the file where it has an error."""
    done = subprocess.run(
        ["ssh", "-G", "-F", paths.ssh_config, alias], capture_output=True, check=True, text=True
    )
    return dict(line.partition(" ")[::2] for line in done.stdout.splitlines())


def test_a_task_and_a_project_have_names_of_their_own(tmp_path: Path) -> None:
    paths = at(tmp_path)
    ssh_config.write(paths, Config(), [host("web"), host("web", number=2, kind=Kind.PROJECT)])
    assert effective(paths, "web.swarm")["port"] == "40001"
    assert effective(paths, "web.project.swarm")["port"] == "40002"


def test_every_machine_has_its_id_as_a_name(tmp_path: Path) -> None:
    paths = at(tmp_path)
    ssh_config.write(paths, Config(), [host("web"), host("api", number=2)])
    assert effective(paths, "000000000002.swarm")["port"] == "40002"


def test_a_task_named_like_a_project_s_alias_does_not_take_it(tmp_path: Path) -> None:
    paths = at(tmp_path)
    hosts = [host("web.project", number=1), host("web", number=2, kind=Kind.PROJECT)]
    ssh_config.write(paths, Config(), hosts)
    assert effective(paths, "web.project.swarm")["hostkeyalias"] == "000000000002"
    assert effective(paths, "000000000001.swarm")["hostkeyalias"] == "000000000001"


def test_sessions_are_strict_and_use_the_key_alone(tmp_path: Path) -> None:
    paths = at(tmp_path)
    ssh_config.write(paths, Config(), [host("web")])
    found = effective(paths, "web.swarm")
    assert found["stricthostkeychecking"] in ("true", "yes")
    assert found["identitiesonly"] == "yes"
    assert found["passwordauthentication"] == "no"
    assert found["kbdinteractiveauthentication"] == "no"
    assert found["preferredauthentications"] == "publickey"
    assert found["user"] == "worker"
    assert found["hostkeyalias"] == "000000000001"
    assert found["updatehostkeys"] in ("false", "no")
    assert found["ciphers"].startswith("aes128-gcm@openssh.com")


@pytest.mark.parametrize("forward", [True, False])
def test_the_agent_is_forwarded_as_the_setting_says(tmp_path: Path, forward: bool) -> None:
    paths = at(tmp_path)
    ssh_config.write(paths, Config(ssh=SshSettings(forward_agent=forward)), [host("web")])
    assert effective(paths, "web.swarm")["forwardagent"] == ("yes" if forward else "no")


@pytest.mark.parametrize(
    "directory", ["with space", "100%d", "back\\slash", 'quo"te', "ünïcode", "#hash", "a'b"]
)
def test_any_state_directory_is_taken_literally(tmp_path: Path, directory: str) -> None:
    paths = at(tmp_path / directory)
    ssh_config.write(paths, Config(), [host("web")])
    found = effective(paths, "web.swarm")
    # ssh -G prints the value before %% is expanded to % (ssh_config(5), TOKENS)
    assert found["identityfile"].replace("%%", "%") == str(paths.ssh_key)
    assert found["userknownhostsfile"].replace("%%", "%") == str(paths.known_hosts)


def test_a_state_directory_that_the_format_cannot_hold_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="OpenSSH cannot use files below"):
        ssh_config.write(at(tmp_path / "${HOME}"), Config(), [host("web")])


def test_known_hosts_has_each_machine_s_key_by_its_id(tmp_path: Path) -> None:
    paths = at(tmp_path)
    ssh_config.write(paths, Config(), [host("web")])
    found = subprocess.run(
        ["ssh-keygen", "-F", "000000000001", "-f", paths.known_hosts],
        capture_output=True,
        check=True,
        text=True,
    )
    assert KEY in found.stdout


@pytest.mark.parametrize("key", ["", "ssh-rsa AAAA", KEY + "\n* " + KEY, KEY + " comment", "ssh-ed25519 x"])
def test_a_key_that_is_more_or_less_than_a_key_is_refused(tmp_path: Path, key: str) -> None:
    with pytest.raises(MachineError, match="is not an ed25519 public key"):
        ssh_config.write(at(tmp_path), Config(), [host("web", key=key)])


def test_an_address_that_holds_more_than_an_address_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MachineError, match="address of task web is not valid"):
        ssh_config.write(at(tmp_path), Config(), [host("web", address="127.0.0.1\n  ProxyCommand id")])


def test_both_files_are_private(tmp_path: Path) -> None:
    paths = at(tmp_path)
    ssh_config.write(paths, Config(), [host("web")])
    assert {path.stat().st_mode & 0o777 for path in (paths.ssh_config, paths.known_hosts)} == {0o600}


def test_no_machines_is_a_valid_configuration(tmp_path: Path) -> None:
    paths = at(tmp_path)
    ssh_config.write(paths, Config(), [])
    assert effective(paths, "elsewhere.example")["user"] != "worker"


def test_the_control_path_of_a_machine_is_its_socket(tmp_path: Path) -> None:
    paths = at(tmp_path / "a b%c")
    ssh_config.write(paths, Config(), [host("web")])
    done = subprocess.run(
        [*connection.ssh(paths), *connection.through_shared(paths), "-G", "web.swarm"],
        capture_output=True,
        check=True,
        text=True,
    )
    assert f"controlpath {paths.ssh_socket(EnvironmentId('000000000001'))}\n" in done.stdout


def test_a_machine_that_stopped_ends_the_waiting(tmp_path: Path) -> None:
    paths = at(tmp_path)
    gone = host("web")
    ssh_config.write(paths, Config(), [gone])
    target = Target(gone.environment_id, "task web", "web.swarm", SshEndpoint("127.0.0.1", 1, "worker", KEY))
    ssh_config.write(paths, Config(), [Host(gone.environment_id, Kind.TASK, "web", target.endpoint)])
    with pytest.raises(
        UnreachableError, match="task web cannot be reached: the machine has stopped"
    ) as caught:
        connection.open_shared(paths, Config(), target, timeout_s=600, alive=lambda: False)
    assert "refused" in caught.value.details


def test_a_closed_connection_is_closed_silently(tmp_path: Path) -> None:
    paths = at(tmp_path)
    gone = host("web")
    target = Target(gone.environment_id, "task web", "web.swarm", gone.endpoint)
    connection.close(paths, target)
    assert not connection.is_open(paths, target)
