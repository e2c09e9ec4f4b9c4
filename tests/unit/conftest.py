"""What unit tests of operations share."""

from __future__ import annotations

import pytest

from agent_swarm.config import Config, ResourceSettings
from agent_swarm.paths import Paths
from agent_swarm.swarm import Swarm
from tests.support.images import tiny_image
from tests.support.swarms import Recorder


@pytest.fixture
def recorder():
    return Recorder()


@pytest.fixture
def swarm(tmp_path, recorder):
    """Nothing but a tiny image, on the fake provider. Everything that is made is deleted at the end."""
    config = Config(provider="fake", resources=ResourceSettings(cpus=1, memory_mib=256, disk_gib=1))
    with Swarm(paths=Paths.at(tmp_path / "home"), config=config, progress=recorder) as found:
        tiny_image(found)
        yield found
        (found.paths.fake / "faults.json").unlink(missing_ok=True)
        for environment in reversed(found.environments()):
            found.delete(environment.name, kind=environment.kind, force=True)


@pytest.fixture
def task(swarm):
    """The running task `fix-1` of the project `web`."""
    swarm.create_project("web")
    return swarm.create("web", "fix-1")
