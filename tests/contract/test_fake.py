from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

from agent_swarm.providers.fake import create_provider
from agent_swarm.testing.provider_contract import ProviderContract, ProviderSubject, RunningMachineContract

if TYPE_CHECKING:
    from agent_swarm.model import EnvironmentId
    from agent_swarm.providers.base import ProviderContext


class FakeSubject(ProviderSubject):
    create_provider = staticmethod(create_provider)

    @classmethod
    def damage(cls, context: ProviderContext, identifier: EnvironmentId) -> None:
        shutil.rmtree(context.paths.fake / identifier / "disk")


class TestFake(FakeSubject, ProviderContract):
    kill_instants = None


class TestRunningFake(FakeSubject, RunningMachineContract):
    pass
