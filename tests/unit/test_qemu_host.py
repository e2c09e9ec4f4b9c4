"""What is found on a host, with programs and descriptors made for the test."""

from __future__ import annotations

import json

import pytest

from agent_swarm.errors import ProviderUnavailableError
from agent_swarm.providers.qemu import host


@pytest.fixture
def programs(tmp_path, monkeypatch):
    """A PATH with nothing but what the test installs; `install(name, script)`."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))

    def install(name: str, script: str = "") -> None:
        (folder / name).write_text(f"#!/bin/sh\n{script}\n")
        (folder / name).chmod(0o755)

    return install


def qemu(version: str, *, seccomp: bool = True) -> str:
    refuse = "" if seccomp else 'if [ "$1" = -sandbox ]; then echo no >&2; exit 1; fi\n'
    return f"{refuse}echo 'QEMU emulator version {version} (Debian 1:{version}+dfsg-7)'"


def test_qemus_version_is_told(programs):
    programs("qemu-system-x86_64", qemu("7.2.22"))
    assert host.find_qemu("x86_64").version == "7.2.22"


@pytest.mark.parametrize("version", ["7.2.0", "8.0.50", "10.0.2"])
def test_versions_from_the_floor_on_are_taken(programs, version):
    programs("qemu-system-x86_64", qemu(version))
    assert host.find_qemu("x86_64").version == version


@pytest.mark.parametrize("version", ["7.1.0", "6.2.0", "2.11.1"])
def test_older_versions_are_refused_with_the_figures(programs, version):
    programs("qemu-system-x86_64", qemu(version))
    with pytest.raises(ProviderUnavailableError, match=rf"{version} is too old, 7.2 is needed"):
        host.find_qemu("x86_64")


def test_a_qemu_without_seccomp_is_used_without(programs):
    programs("qemu-system-x86_64", qemu("8.0.0", seccomp=False))
    assert not host.find_qemu("x86_64").sandbox


def test_a_qemu_that_tells_no_version_is_refused(programs):
    programs("qemu-system-x86_64", "echo hello")
    with pytest.raises(ProviderUnavailableError, match="does not tell its version"):
        host.find_qemu("x86_64")


@pytest.mark.parametrize(
    ("manager", "architecture", "command"),
    [
        ("apt-get", "x86_64", "sudo apt-get install -y qemu-system-x86"),
        ("apt-get", "aarch64", "sudo apt-get install -y qemu-system-arm"),
        ("dnf", "x86_64", "sudo dnf install -y qemu-system-x86"),
        ("brew", "aarch64", "brew install qemu"),
    ],
)
def test_a_missing_qemu_comes_with_the_command_that_installs_it(programs, manager, architecture, command):
    programs(manager)
    with pytest.raises(ProviderUnavailableError) as caught:
        host.find_qemu(architecture)
    assert caught.value.hint == f"Run: {command}"


def test_several_needs_are_one_command(programs):
    programs("apt-get")
    assert host.install_command(["qemu-x86_64", "qemu-img", "passt"]) == (
        "sudo apt-get install -y passt qemu-system-x86 qemu-utils"
    )


def test_without_a_known_package_manager_there_is_no_command(programs):
    assert host.install_command(["qemu-x86_64"]) == ""


def test_a_new_machine_is_pinned_to_the_versioned_type(programs):
    listing = "pc   Standard PC (alias of pc-i440fx-8.1)\nq35   Standard PC (Q35) (alias of pc-q35-8.1)\npc-q35-8.1  x"
    programs("qemu-system-x86_64", f"cat <<END\n{listing}\nEND")
    found = host.Qemu(binary="qemu-system-x86_64", version="8.1.0", sandbox=False)
    # cat is not on the test's PATH
    programs("cat", 'while IFS= read -r line; do echo "$line"; done')
    assert host.machine_type(found, "x86_64") == "pc-q35-8.1"


def descriptor(
    tmp_path, name: str, *, features=(), machines=("pc-q35-*",), device="flash", architecture="x86_64"
):
    for part in ("code", "vars"):
        (tmp_path / f"{name}-{part}.fd").write_bytes(b"firmware")
    return {
        "interface-types": ["uefi"],
        "mapping": {
            "device": device,
            "executable": {"filename": f"{tmp_path}/{name}-code.fd", "format": "raw"},
            "nvram-template": {"filename": f"{tmp_path}/{name}-vars.fd", "format": "raw"},
        },
        "targets": [{"architecture": architecture, "machines": list(machines)}],
        "features": list(features),
    }


@pytest.fixture
def firmware(programs, tmp_path):
    """Where a QEMU installed below tmp_path keeps its firmware descriptors."""
    programs("qemu-img")
    folder = tmp_path / "share" / "qemu" / "firmware"
    folder.mkdir(parents=True)
    return folder


def test_the_first_firmware_that_fits_the_machine_is_taken(firmware, tmp_path):
    (firmware / "10-arm.json").write_text(
        json.dumps(descriptor(tmp_path, "arm", architecture="arm-for-test"))
    )
    (firmware / "20-secure.json").write_text(
        json.dumps(descriptor(tmp_path, "secure", architecture="testarch", features=["secure-boot"]))
    )
    (firmware / "30-other.json").write_text(
        json.dumps(descriptor(tmp_path, "other", architecture="testarch", machines=["pc-i440fx-*"]))
    )
    good = descriptor(tmp_path, "good", architecture="testarch", features=["acpi-s3", "amd-sev"])
    (firmware / "40-good.json").write_text(json.dumps(good))
    found = host.find_uefi("testarch", "pc-q35-7.2")
    assert (found.code.name, found.variables.name) == ("good-code.fd", "good-vars.fd")


@pytest.mark.parametrize("broken", ["", "{", "[]", "{}", '{"mapping": 3}'])
def test_a_descriptor_that_cannot_be_understood_is_passed_over(firmware, tmp_path, broken):
    (firmware / "10-broken.json").write_text(broken)
    (firmware / "20-good.json").write_text(json.dumps(descriptor(tmp_path, "good", architecture="testarch")))
    assert host.find_uefi("testarch", "pc-q35-7.2").code.name == "good-code.fd"


def test_firmware_whose_file_is_gone_is_passed_over(firmware, tmp_path):
    (firmware / "10-gone.json").write_text(json.dumps(descriptor(tmp_path, "gone", architecture="testarch")))
    (tmp_path / "gone-code.fd").unlink()
    with pytest.raises(ProviderUnavailableError, match="no UEFI firmware for testarch"):
        host.find_uefi("testarch", "pc-q35-7.2")
