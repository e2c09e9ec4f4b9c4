"""The fake provider as a subject of the contract suites."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING

from agent_swarm.model import LocalEndpoint
from agent_swarm.providers.fake import create_provider
from agent_swarm.testing.subject import Identity, ProviderSubject

if TYPE_CHECKING:
    from pathlib import Path

    from agent_swarm.model import Endpoint, EnvironmentId
    from agent_swarm.providers.base import ProviderContext


def memory(endpoint: Endpoint) -> Path:
    assert isinstance(endpoint, LocalEndpoint)
    return endpoint.root / "run"


class FakeSubject(ProviderSubject):
    create_provider = staticmethod(create_provider)

    @classmethod
    def damage(cls, context: ProviderContext, identifier: EnvironmentId) -> None:
        shutil.rmtree(context.paths.fake / identifier / "disk")

    @classmethod
    def write_disk(cls, context: ProviderContext, identifier: EnvironmentId, text: str) -> None:
        (context.paths.fake / identifier / "disk" / "content").write_text(text)

    @classmethod
    def read_disk(cls, context: ProviderContext, identifier: EnvironmentId) -> str:
        path = context.paths.fake / identifier / "disk" / "content"
        return path.read_text() if path.exists() else ""

    @classmethod
    def identity(cls, endpoint: Endpoint) -> Identity:
        """Random is what the last start drew."""
        found = json.loads((memory(endpoint) / "identity.json").read_text())
        return Identity(found["host_name"], found["machine_id"], (memory(endpoint) / "entropy").read_text())

    @classmethod
    def remember(cls, endpoint: Endpoint, text: str) -> None:
        (memory(endpoint) / "remembered").write_text(text)

    @classmethod
    def recall(cls, endpoint: Endpoint) -> str:
        path = memory(endpoint) / "remembered"
        return path.read_text() if path.exists() else ""

    @classmethod
    def run_process(cls, endpoint: Endpoint, name: str, *, secret: bool = False) -> None:
        """A process is a file, which counts when it is looked at."""
        (memory(endpoint) / f"{name}.{'secret' if secret else 'process'}").write_text("1")

    @classmethod
    def count(cls, endpoint: Endpoint, name: str) -> int | None:
        for path in memory(endpoint).glob(f"{name}.*"):
            counted = int(path.read_text()) + 1
            path.write_text(str(counted))
            return counted
        return None
