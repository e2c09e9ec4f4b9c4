"""What a disk image file is, and whether it is safe to give to qemu-img.

An image can name other files: a backing file, a data file, extents. qemu-img would open them with our
rights, so that a downloaded image could carry off any file of the user's into a guest. Images that come
from outside are therefore read here first, byte by byte, and only self-contained ones go on.

Sources: https://www.qemu.org/docs/master/interop/qcow2.html,
https://learn.microsoft.com/openspecs/windows_protocols/ms-vhdx,
"Virtual Disk Format 5.0" (VMware, 2011).
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from agent_swarm.errors import ImageError

if TYPE_CHECKING:
    from pathlib import Path

SELF_CONTAINED_HINT = (
    "Make it one self-contained file first: qemu-img convert -O qcow2 {name} standalone.qcow2"
)
_QCOW2 = b"QFI\xfb"
_VMDK = b"KDMV"
_VHDX = b"vhdxfile"
_VMDK_DESCRIPTOR = b"# Disk DescriptorFile"
_COMPRESSED = {
    b"\x1f\x8b": "gzip",
    b"\xfd7zXZ\0": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"BZh": "bzip2",
    b"PK\x03\x04": "zip",
}

_SECTOR = 512
_HEADER_BYTES = 64 << 10
_MBR_SIGNATURE_AT = 510
_ISO_SIGNATURE_AT = 0x8001
_VMDK_DESCRIPTOR_MAX_BYTES = 20 * _SECTOR

_DATA_FILE_BIT = 1 << 2
_EXTENSION_END = 0
_EXTENSION_DATA_FILE = 0x44415441


def detect(path: Path) -> str:
    """ "qcow2", "vmdk", "vhdx" or, for everything else, "raw". Raises ImageError where it cannot be read."""
    head = _head(path)
    if head.startswith(_QCOW2):
        return "qcow2"
    if head.startswith((_VMDK, _VMDK_DESCRIPTOR)):
        return "vmdk"
    if head.startswith(_VHDX):
        return "vhdx"
    return "raw"


def inspect_foreign(path: Path) -> str:
    """The format of an image that came from outside, once it is known to be self-contained and a disk.

    Raises ImageError for one that refers to other files, is encrypted, compressed or no disk at all.
    """
    head = _head(path)
    found = detect(path)
    if found == "qcow2":
        _require_plain_qcow2(path, head)
    elif found == "vmdk":
        _require_single_vmdk(path, head)
    elif found == "raw":
        _require_disk(path, head)
    return found


def _head(path: Path) -> bytes:
    try:
        with path.open("rb") as stream:
            return stream.read(_HEADER_BYTES)
    except OSError as error:
        message = f"{path} cannot be read"
        raise ImageError(message, details=str(error)) from error


def _require_plain_qcow2(path: Path, head: bytes) -> None:
    if len(head) < 72:
        raise _damaged(path)
    version, backing_offset = struct.unpack_from(">IQ", head, 4)
    crypt_method = struct.unpack_from(">I", head, 32)[0]
    if version not in (2, 3):
        raise _damaged(path)
    if backing_offset:
        raise _refers(path, "a backing file")
    if crypt_method:
        message = f"{path.name} is encrypted"
        raise ImageError(message, hint="Decrypt it first with qemu-img convert.")
    if version == 2:
        return
    if len(head) < 104:
        raise _damaged(path)
    incompatible = struct.unpack_from(">Q", head, 72)[0]
    at = struct.unpack_from(">I", head, 100)[0]
    if incompatible & _DATA_FILE_BIT:
        raise _refers(path, "an external data file")
    while at + 8 <= len(head):
        kind, length = struct.unpack_from(">II", head, at)
        if kind == _EXTENSION_END:
            return
        if kind == _EXTENSION_DATA_FILE:
            raise _refers(path, "an external data file")
        at += 8 + (length + 7) // 8 * 8
    raise _damaged(path)


def _require_single_vmdk(path: Path, head: bytes) -> None:
    if not head.startswith(_VMDK) or len(head) < _SECTOR:
        raise _refers(path, "extents in other files")
    capacity, _, descriptor_at, descriptor_sectors = struct.unpack_from("<QQQQ", head, 12)
    if capacity == 0:  # QEMU then reads a list of extents from the descriptor
        raise _refers(path, "extents in other files")
    if not descriptor_at:
        return
    with path.open("rb") as stream:
        stream.seek(min(descriptor_at * _SECTOR, 1 << 62))
        descriptor = stream.read(max(_VMDK_DESCRIPTOR_MAX_BYTES, min(descriptor_sectors * _SECTOR, 1 << 20)))
    if b"parentfilenamehint" in descriptor.lower():
        raise _refers(path, "a parent disk")


def _require_disk(path: Path, head: bytes) -> None:
    for magic, program in _COMPRESSED.items():
        if head.startswith(magic):
            message = f"{path.name} is compressed with {program}"
            raise ImageError(message, hint="Unpack it, and give the disk image inside.")
    if head[_ISO_SIGNATURE_AT : _ISO_SIGNATURE_AT + 5] == b"CD001":
        message = f"{path.name} is an ISO image, not a disk with an installed system"
        raise ImageError(message, hint="Use a distribution's cloud image (qcow2, raw, vmdk or vhdx).")
    if head[_MBR_SIGNATURE_AT : _MBR_SIGNATURE_AT + 2] != b"\x55\xaa":
        message = (
            f"{path.name} is no disk image: neither qcow2, vmdk or vhdx, nor a raw disk that can be booted"
        )
        raise ImageError(message, hint="Use a distribution's cloud image (qcow2, raw, vmdk or vhdx).")


def _refers(path: Path, what: str) -> ImageError:
    message = f"{path.name} refers to {what}; an image from outside must be one self-contained file"
    return ImageError(message, hint=SELF_CONTAINED_HINT.format(name=path.name))


def _damaged(path: Path) -> ImageError:
    message = f"{path.name} is a damaged qcow2 file"
    return ImageError(message, hint="Get it again.")
