"""What the host has installed: QEMU, passt, UEFI firmware; and the command that installs what is missing."""

from __future__ import annotations

import json
import re
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agent_swarm import runner
from agent_swarm.errors import CommandError, ProviderUnavailableError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

VERSION_FLOOR = (7, 2)
"""`-netdev stream`, which passt needs, came with QEMU 7.2."""

MACHINE_FAMILY = {"x86_64": "q35", "aarch64": "virt"}

# package of each need, by package manager
_PACKAGES = {
    "apt-get": {
        "qemu-x86_64": "qemu-system-x86",
        "qemu-aarch64": "qemu-system-arm",
        "qemu-img": "qemu-utils",
        "passt": "passt",
        "uefi-x86_64": "ovmf",
        "uefi-aarch64": "qemu-efi-aarch64",
    },
    "dnf": {
        "qemu-x86_64": "qemu-system-x86",
        "qemu-aarch64": "qemu-system-aarch64",
        "qemu-img": "qemu-img",
        "passt": "passt",
        "uefi-x86_64": "edk2-ovmf",
        "uefi-aarch64": "edk2-aarch64",
    },
    "brew": dict.fromkeys(("qemu-x86_64", "qemu-aarch64", "qemu-img", "uefi-x86_64", "uefi-aarch64"), "qemu"),
}


@dataclass(frozen=True, slots=True)
class Qemu:
    """An installed QEMU that meets the version floor."""

    binary: str
    version: str
    sandbox: bool
    """Whether it can lock itself up with seccomp."""


@dataclass(frozen=True, slots=True)
class Uefi:
    """Firmware of a machine: the read-only code, and the template of its variables."""

    code: Path
    variables: Path


def find_qemu(architecture: str) -> Qemu:
    """The QEMU that runs machines of this architecture.

    Raises ProviderUnavailableError, whose hint is the command that installs it.
    """
    name = f"qemu-system-{architecture}"
    binary = shutil.which(name)
    if binary is None:
        message = f"{name} is not installed"
        raise ProviderUnavailableError(message, hint=install_hint([f"qemu-{architecture}"]))
    sandbox = False
    if sys.platform == "linux":  # seccomp is Linux's; a QEMU built without it refuses the option
        done = runner.run([binary, "-sandbox", "on", "-version"], timeout_s=20, check=False)
        sandbox = done.returncode == 0
    if not sandbox:
        done = runner.run([binary, "-version"], timeout_s=20)
    text = done.stdout.decode("utf-8", "replace")
    found = re.search(r"version (\d+)\.(\d+)(?:\.\d+)*", text)
    if found is None:
        message = f"{binary} does not tell its version"
        raise ProviderUnavailableError(message, details=text[:200])
    if (int(found[1]), int(found[2])) < VERSION_FLOOR:
        floor = ".".join(map(str, VERSION_FLOOR))
        message = f"QEMU {found[0].removeprefix('version ')} is too old, {floor} is needed"
        raise ProviderUnavailableError(message, hint=install_hint([f"qemu-{architecture}"]))
    return Qemu(binary=binary, version=found[0].removeprefix("version "), sandbox=sandbox)


def machine_type(qemu: Qemu, architecture: str) -> str:
    """The versioned machine type that a new machine is pinned to ("pc-q35-7.2").

    Source: `qemu-system-* -machine help`, whose lines end in "(alias of ...)". Raises ProviderUnavailableError.
    """
    family = MACHINE_FAMILY[architecture]
    listing = runner.run([qemu.binary, "-machine", "help"], timeout_s=20).stdout.decode("utf-8", "replace")
    found = re.search(rf"^{family}\s.*\(alias of (\S+)\)", listing, re.MULTILINE)
    if found is None:
        message = f"{qemu.binary} has no machine type {family}"
        raise ProviderUnavailableError(message, hint=install_hint([f"qemu-{architecture}"]))
    return found[1]


def find_uefi(architecture: str, machine: str) -> Uefi:
    """The first installed UEFI firmware for the machine type that needs no secure boot.

    Source: the descriptors of https://gitlab.com/qemu-project/qemu/-/blob/master/docs/interop/firmware.json
    Raises ProviderUnavailableError, whose hint is the command that installs one.
    """
    for descriptor in _descriptors():
        found = _uefi_of(descriptor, architecture, machine)
        if found is not None:
            return found
    message = f"no UEFI firmware for {architecture} machines is installed"
    raise ProviderUnavailableError(message, hint=install_hint([f"uefi-{architecture}"]))


def _descriptors() -> Iterator[dict[str, Any]]:
    binary = shutil.which("qemu-img")
    prefix = [Path(binary).resolve().parent.parent] if binary else []
    folders = dict.fromkeys(
        folder / "qemu/firmware"
        for folder in (Path("/etc"), Path("/usr/share"), *[p / "share" for p in prefix])
    )
    for folder in folders:
        for path in sorted(folder.glob("*.json")):
            try:
                found = json.loads(path.read_bytes())
            except (OSError, ValueError):
                continue  # somebody else's broken file; the next one may serve
            if isinstance(found, dict):
                yield found


def _uefi_of(descriptor: dict[str, Any], architecture: str, machine: str) -> Uefi | None:
    try:
        flash = descriptor["mapping"]
        if "uefi" not in descriptor["interface-types"] or flash["device"] != "flash":
            return None
        if {"requires-smm", "secure-boot", "enrolled-keys"} & {*descriptor["features"]}:
            return None
        parts = (flash["executable"], flash["nvram-template"])
        if any(part["format"] != "raw" for part in parts):
            return None
        for target in descriptor["targets"]:
            fits = any(re.fullmatch(name.replace("*", ".*"), machine) for name in target["machines"])
            code, variables = (Path(part["filename"]) for part in parts)
            if target["architecture"] == architecture and fits and code.is_file() and variables.is_file():
                return Uefi(code=code, variables=variables)
    except (KeyError, TypeError):
        return None  # a descriptor of another shape (memory-mapped, stateless) is not for us
    return None


def install_command(needs: Sequence[str]) -> str:
    """The shell command that installs these needs here, "" where no known package manager is found."""
    for manager, packages in _PACKAGES.items():
        if shutil.which(manager) is None:
            continue
        names = sorted({packages[need] for need in needs if need in packages})
        if names:
            sudo = "" if manager == "brew" else "sudo "
            yes = "" if manager == "brew" else " -y"
            return f"{sudo}{manager} install{yes} {' '.join(names)}"
    return ""


def install_hint(needs: Sequence[str]) -> str:
    command = install_command(needs)
    return f"Run: {command}" if command else f"Install {', '.join(needs)} with the system's package manager."


def find_passt() -> str | None:
    """passt's path, None where it is not installed or the host is not Linux."""
    return shutil.which("passt") if sys.platform == "linux" else None


def has_disk_tool() -> bool:
    return shutil.which("qemu-img") is not None


def qemu_or_reason(architecture: str) -> Qemu | ProviderUnavailableError:
    """`find_qemu` for callers that report instead of raise."""
    try:
        return find_qemu(architecture)
    except ProviderUnavailableError as error:
        return error
    except CommandError as error:
        return ProviderUnavailableError(error.message, details=error.details)
