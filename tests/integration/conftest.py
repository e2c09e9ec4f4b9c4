"""The shared machines as the guest layer sees them: targets, without the facade around."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from agent_swarm.guest.target import Target, target_of
from agent_swarm.model import Kind

if TYPE_CHECKING:
    from agent_swarm.model import Environment
    from agent_swarm.paths import Paths
    from tests.conftest import Guest


@pytest.fixture(scope="session")
def guest_paths(guest: Guest) -> Paths:
    return guest.swarm.paths


@pytest.fixture(scope="session")
def guest_target(guest: Guest) -> Target:
    """The shared task. Tests may close its connection; the next session opens it again."""
    return target_of(guest.swarm.find(guest.name))


@pytest.fixture(scope="session")
def second_target(guest: Guest, project: Environment) -> Target:
    """Another machine: the shared project."""
    return target_of(guest.swarm.find(project.name, kind=Kind.PROJECT))
