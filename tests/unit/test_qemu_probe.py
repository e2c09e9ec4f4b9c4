"""What `providers` says of qemu, on hosts that have more or less of what it needs."""

from __future__ import annotations

import subprocess
import sys

import pytest

from agent_swarm.config import Config, QemuSettings
from agent_swarm.model import InstallationId, MachineState
from agent_swarm.paths import Paths
from agent_swarm.providers.base import ProviderContext
from agent_swarm.providers.qemu.definition import native_architecture
from agent_swarm.providers.qemu.provider import QemuProvider

QEMU = f"qemu-system-{native_architecture()}"


@pytest.fixture
def install(tmp_path, monkeypatch):
    """A host with nothing on its PATH but apt-get; `install(name, words)` adds a program that says words."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))

    def add(name: str, words: str = "") -> None:
        (folder / name).write_text(f"#!/bin/sh\necho '{words}'\n")
        (folder / name).chmod(0o755)

    add("apt-get")
    return add


def provider(tmp_path, *, environ=None, **settings):
    config = Config(qemu=QemuSettings(**{"accelerator": "tcg", **settings}))
    context = ProviderContext(Paths.at(tmp_path / "home"), config, InstallationId("0" * 12))
    return QemuProvider(context, environ or {})


def test_without_qemu_it_says_what_is_missing_and_what_installs_it(install, tmp_path):
    readiness = provider(tmp_path).probe()
    assert not readiness.usable
    assert f"{QEMU} is not installed" in readiness.missing
    assert "qemu-img is not installed" in readiness.missing
    assert readiness.install_command.startswith("sudo apt-get install -y ")
    assert {"passt", "qemu-utils"} <= set(readiness.install_command.split())


def test_an_old_qemu_is_not_usable(install, tmp_path):
    install(QEMU, "QEMU emulator version 6.2.0")
    install("qemu-img")
    readiness = provider(tmp_path).probe()
    assert not readiness.usable
    assert "6.2.0" in readiness.missing[0]


def test_with_everything_it_is_usable_and_tells_version_and_accelerator(install, tmp_path):
    install(QEMU, "QEMU emulator version 8.1.2")
    install("qemu-img")
    install("passt")
    readiness = provider(tmp_path).probe()
    assert readiness.usable
    assert readiness.summary == "QEMU 8.1.2, TCG (software emulation)"
    assert list(readiness.missing) == []
    assert list(readiness.warnings) == []
    assert readiness.install_command == ""


@pytest.mark.skipif(sys.platform != "linux", reason="passt runs on Linux alone")
def test_without_passt_it_is_usable_with_a_warning_and_the_command(install, tmp_path):
    install(QEMU, "QEMU emulator version 8.1.2")
    install("qemu-img")
    readiness = provider(tmp_path).probe()
    assert readiness.usable
    assert "host's loopback" in readiness.warnings[0]
    assert readiness.install_command == "sudo apt-get install -y passt"


def test_slirp_by_choice_is_warned_of_too(install, tmp_path):
    install(QEMU, "QEMU emulator version 8.1.2")
    install("qemu-img")
    install("passt")
    readiness = provider(tmp_path, network="slirp").probe()
    assert "host's loopback" in readiness.warnings[0]
    assert readiness.install_command == ""


def test_a_wrong_override_is_named_and_not_raised(install, tmp_path):
    install(QEMU, "QEMU emulator version 8.1.2")
    install("qemu-img")
    readiness = provider(tmp_path, environ={"AGENT_SWARM_ACCEL": "xen"}).probe()
    assert not readiness.usable
    assert "AGENT_SWARM_ACCEL=xen" in readiness.missing[0]


@pytest.mark.parametrize("handle", ["", "nonsense", "task/../../etc", "project/x/y/z"])
def test_what_is_no_handle_is_broken_and_nothing_is_raised(tmp_path, handle):
    assert provider(tmp_path).inspect(handle).state is MachineState.BROKEN
    assert provider(tmp_path).usage(handle).state is MachineState.BROKEN


def test_listing_machines_needs_no_heavy_module():
    code = (
        "import sys, agent_swarm.providers.qemu.provider\n"
        "print(sorted({'asyncio', 'subprocess', 'pycdlib', 'psutil', 'qemu.qmp', 'httpx'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
