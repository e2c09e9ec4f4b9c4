"""What tests of the command line share."""

from __future__ import annotations

import msgspec
import pytest

from agent_swarm.config import Config, ResourceSettings
from agent_swarm.paths import Paths
from agent_swarm.swarm import Swarm
from tests.support.cli import Cli
from tests.support.images import tiny_image

SMALL = {"resources": {"cpus": 1, "memory_mib": 256, "disk_gib": 1}, "limits": {"memory_reserve_mib": 0}}


@pytest.fixture
def home(tmp_path):
    """An empty state directory with one tiny image."""
    found = tmp_path / "state"
    with Swarm(paths=Paths.at(found)) as swarm:
        tiny_image(swarm)
    (found / "config.json").write_bytes(msgspec.json.encode(SMALL))
    return found


@pytest.fixture
def cli(home):
    made = Cli(home)
    yield made
    with Swarm(paths=Paths.at(home), config=Config()) as swarm:
        for environment in reversed(swarm.environments()):
            swarm.delete(environment.name, kind=environment.kind, force=True)


@pytest.fixture
def task(cli):
    """A running task `fix-1` of the project `web`."""
    small = ResourceSettings(cpus=1, memory_mib=256, disk_gib=1)
    with Swarm(paths=Paths.at(cli.home), config=Config(provider="fake", resources=small)) as swarm:
        swarm.create_project("web", force=True)
        swarm.create("web", "fix-1", force=True)
    return cli
