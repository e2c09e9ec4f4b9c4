"""The cloud-init seed: what a new machine is told, and that it is all on the volume."""

from __future__ import annotations

import io
import json
from typing import TYPE_CHECKING, Any

import pycdlib
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent_swarm.errors import MachineError
from agent_swarm.guest.cloudinit import host_name, make_seed, write_iso
from agent_swarm.model import EnvironmentId, Seed

if TYPE_CHECKING:
    from pathlib import Path

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIKey agent-swarm"


def seed(*, install_agent: bool = False) -> Seed:
    return make_seed(
        environment=EnvironmentId("0123456789ab"),
        host_name="fix-1",
        authorized_key=KEY + "\n",
        install_agent=install_agent,
    )


def user_data(found: Seed) -> dict[str, Any]:
    first, _, rest = found.user_data.partition("\n")
    assert first == "#cloud-config"
    parsed: dict[str, Any] = json.loads(rest)
    return parsed


def test_the_instance_is_the_environment_so_that_a_clone_boots_as_a_new_machine() -> None:
    assert seed().instance_id == "0123456789ab"
    assert json.loads(seed().meta_data) == {"instance-id": "0123456789ab", "local-hostname": "fix-1"}


def test_the_only_account_has_our_key_and_no_password() -> None:
    data = user_data(seed())
    assert [user["name"] for user in data["users"]] == ["worker"]
    assert data["users"][0]["ssh_authorized_keys"] == [KEY]
    assert data["users"][0]["lock_passwd"] is True
    assert data["users"][0]["sudo"] == "ALL=(ALL) NOPASSWD:ALL"


def test_passwords_and_root_cannot_log_in() -> None:
    data = user_data(seed())
    assert data["ssh_pwauth"] is False
    assert data["disable_root"] is True
    sshd = data["write_files"][0]["content"].splitlines()
    assert {"PasswordAuthentication no", "KbdInteractiveAuthentication no", "PermitRootLogin no"} <= set(sshd)


def test_a_machine_makes_host_keys_and_a_machine_id_of_its_own() -> None:
    data = user_data(seed())
    assert data["ssh_deletekeys"] is True
    assert data["ssh_genkeytypes"] == ["ed25519"]
    assert data["bootcmd"][0][:3] == ["cloud-init-per", "instance", "machine-id"]
    assert "/etc/machine-id" in data["bootcmd"][0][-1]


def test_nothing_is_installed_unless_the_agent_is_missing() -> None:
    assert "packages" not in user_data(seed())
    assert user_data(seed())["package_update"] is False
    with_agent = user_data(seed(install_agent=True))
    assert with_agent["packages"] == ["qemu-guest-agent"]
    assert with_agent["package_update"] is True


def test_every_ethernet_interface_asks_for_an_address() -> None:
    network = json.loads(seed().network_config)
    assert network == {"version": 2, "ethernets": {"all": {"match": {"name": "e*"}, "dhcp4": True}}}


@given(st.text(max_size=80))
def test_a_host_name_is_one_label_whatever_the_machine_is_called(name: str) -> None:
    label = host_name(name)
    assert 1 <= len(label) <= 63
    assert set(label) <= set("abcdefghijklmnopqrstuvwxyz0123456789-")
    assert not label.startswith("-")
    assert not label.endswith("-")


def test_a_host_name_stays_recognisable() -> None:
    assert host_name("Fix_1.2") == "fix-1-2"


def test_the_volume_holds_the_three_files_under_their_names(tmp_path: Path) -> None:
    path = tmp_path / "seed.iso"
    write_iso(seed(), path)
    iso = pycdlib.PyCdlib()
    iso.open(str(path))
    assert iso.pvd.volume_identifier.strip() == b"CIDATA"
    for kind in ("joliet_path", "rr_path"):
        for name, expected in (
            ("user-data", seed().user_data),
            ("meta-data", seed().meta_data),
            ("network-config", seed().network_config),
        ):
            content = io.BytesIO()
            iso.get_file_from_iso_fp(content, **{kind: f"/{name}"})
            assert content.getvalue().decode() == expected
    iso.close()
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_volume_that_cannot_be_written_is_an_error_with_its_path(tmp_path: Path) -> None:
    with pytest.raises(MachineError, match="missing"):
        write_iso(seed(), tmp_path / "missing" / "seed.iso")
