from __future__ import annotations

from agent_swarm.testing.provider_contract import (
    LiveMachineContract,
    ProviderContract,
    RunningMachineContract,
)
from tests.support.fake import FakeSubject


class TestFake(FakeSubject, ProviderContract):
    kill_instants = None


class TestRunningFake(FakeSubject, RunningMachineContract):
    pass


class TestLiveFake(FakeSubject, LiveMachineContract):
    kill_instants = None
