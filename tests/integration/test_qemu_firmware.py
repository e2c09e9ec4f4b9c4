"""Machines that start by firmware, as downloaded images do. The disks hold no system, only what tells that the
firmware came to them."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

from agent_swarm import runner
from agent_swarm.errors import ProviderUnavailableError
from agent_swarm.events import ignore
from agent_swarm.files import remove_tree
from agent_swarm.model import Firmware
from agent_swarm.providers.base import FromImage
from agent_swarm.providers.qemu import host
from agent_swarm.providers.qemu.provider import QemuProvider
from tests.support.qemu import empty_image, emulated, spec

if TYPE_CHECKING:
    from pathlib import Path

WORDS = b"the disk was started"

# a boot sector at 0x7C00 that writes to the first serial port: cli; xor ax,ax; mov ds,ax; mov dx,3f8h; mov si,text;
# next: lodsb; test al,al; jz end; out dx,al; jmp next; end: hlt; jmp end
BOOT_SECTOR = bytes.fromhex("FA31C08ED8BAF803BE167CAC84C07403EEEBF8F4EBFD") + WORDS + b"\0"


@pytest.fixture
def provider(tmp_path):
    context = emulated(tmp_path / "state")
    made = QemuProvider(context)
    yield made
    for machine in list(made.list_owned()):
        made.delete(machine.handle)
    remove_tree(context.paths.run)


def console_shows(console: Path, words: bytes, *, within_s: float) -> bool:
    deadline = time.monotonic() + within_s
    while words not in console.read_bytes():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


def test_the_bios_starts_the_disk(provider, tmp_path):
    raw = tmp_path / "raw"
    raw.write_bytes(BOOT_SECTOR.ljust(510, b"\0") + b"\x55\xaa" + bytes(1 << 20))
    image = empty_image(tmp_path)
    image.disk.unlink()
    runner.run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, image.disk], timeout_s=60)
    handle = provider.create(spec(FromImage(image)), ignore)
    provider.start(handle, ignore)
    assert console_shows(provider.console(handle), WORDS, within_s=60)


@pytest.mark.parametrize("architecture", ["x86_64", "aarch64"])
def test_uefi_looks_for_a_system_on_the_first_disk(provider, tmp_path, architecture):
    image = empty_image(tmp_path, architecture=architecture, firmware=Firmware.UEFI)
    try:
        handle = provider.create(spec(FromImage(image)), ignore)
    except ProviderUnavailableError as error:
        pytest.skip(f"{error.message}; {error.hint}")
    provider.start(handle, ignore)
    # what EDK II says of a disk without a system: `BdsDxe: failed to load Boot0001 "UEFI Misc Device" from ...`
    assert console_shows(provider.console(handle), b"PciRoot(0x0)/Pci(0x2,0x0)", within_s=120)


def test_each_uefi_machine_has_variables_of_its_own(provider, tmp_path):
    image = empty_image(tmp_path, firmware=Firmware.UEFI)
    try:
        template = host.find_uefi("x86_64", "pc-q35-7.2").variables
    except ProviderUnavailableError as error:
        pytest.skip(f"{error.message}; {error.hint}")
    handles = [provider.create(spec(FromImage(image)), ignore) for _ in range(2)]
    kept = list((tmp_path / "state" / "projects").glob("*/uefi-vars.fd"))
    assert len(kept) == len(handles)
    assert {path.read_bytes() for path in kept} == {template.read_bytes()}
