"""The qemu provider: QEMU started directly, as the user, with no daemon in between. See provider.py."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from agent_swarm.providers.base import Provider, ProviderContext


def create_provider(context: ProviderContext) -> Provider:
    """The entry point `agent_swarm.providers: qemu`. Looks at nothing on the host yet."""
    from agent_swarm.providers.qemu.provider import QemuProvider

    return QemuProvider(context)
