"""A base image for the fake provider: real store, real manifest, nothing to boot."""

from __future__ import annotations

from typing import TYPE_CHECKING

from agent_swarm.images.store import Description, Origin
from agent_swarm.model import Firmware, Image

if TYPE_CHECKING:
    from agent_swarm.swarm import Swarm


def tiny_image(swarm: Swarm) -> Image:
    """Publish an image of one sector; the same each time."""
    store = swarm._context.images
    partial = swarm.paths.partial_images / "tiny"
    partial.mkdir()
    (partial / "disk.qcow2").write_bytes(b"QFI\xfb" + bytes(508))
    return store.publish(
        partial,
        Description(
            origin=Origin(key="tiny", name="tiny"),
            architecture="x86_64",
            firmware=Firmware.BIOS,
            kernel_command_line="",
            virtual_size_bytes=512,
            has_guest_agent=True,
        ),
    )
