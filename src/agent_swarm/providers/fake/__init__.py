"""The fake provider: directories for disks, local processes for machines.

It needs nothing installed, keeps the whole provider contract, kill -9 included, and fails on demand
(faults.py). A machine's memory is a directory, kept in points and while it is suspended (memory.py).
It is what operations are tested on, and it isolates nothing: a "machine" is this host.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from agent_swarm.providers.base import Provider, ProviderContext


def create_provider(context: ProviderContext) -> Provider:
    """The entry point "fake" of the group `agent_swarm.providers`."""
    from agent_swarm.providers.fake.provider import FakeProvider

    return FakeProvider(context)
