"""What tests do with a Swarm of the fake provider."""

from __future__ import annotations

import json

import msgspec

from agent_swarm.config import LimitSettings
from agent_swarm.model import Kind
from agent_swarm.swarm import Swarm


class Recorder(list):
    """A Progress that keeps what it is told."""

    def __call__(self, event):
        self.append(event)

    def of(self, kind):
        return [event for event in self if isinstance(event, kind)]


def with_limits(swarm, **limits):
    return with_settings(swarm, limits=LimitSettings(**limits))


def with_settings(swarm, **sections):
    """The same machines under other settings."""
    config = msgspec.structs.replace(swarm.config, **sections)
    return Swarm(paths=swarm.paths, config=config, progress=swarm._context.progress)


def faults(swarm, **plan):
    """Let the fake provider fail; `_` in a name stands for `:`."""
    swarm.paths.fake.mkdir(exist_ok=True)
    named = {point.replace("_", ":"): fault for point, fault in plan.items()}
    (swarm.paths.fake / "faults.json").write_text(json.dumps(named))


def sh(swarm, name, script, kind=Kind.TASK):
    done = swarm.run_captured(name, ["sh", "-c", script], kind=kind)
    assert done.exit_code == 0, done.stderr
    return done.stdout.decode()
