"""What sessions and copies are given: one machine and how to reach it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from agent_swarm.errors import UnreachableError
from agent_swarm.model import Environment, Kind, SshEndpoint

if TYPE_CHECKING:
    from agent_swarm.model import Endpoint, EnvironmentId


@dataclass(frozen=True, slots=True)
class Target:
    """A machine that runs. `label` is for messages ("task fix-1"), `host_alias` for people and editors."""

    environment_id: EnvironmentId
    label: str
    host_alias: str
    endpoint: Endpoint

    @property
    def id_alias(self) -> str:
        """The host alias that we use ourselves: unlike names, ids cannot collide."""
        return id_alias(self.environment_id)


def id_alias(environment: EnvironmentId) -> str:
    return f"{environment}.swarm"


def host_alias(kind: Kind, name: str) -> str:
    """What `ssh` calls a machine: "fix-1.swarm", "web.project.swarm"."""
    return f"{name}.project.swarm" if kind is Kind.PROJECT else f"{name}.swarm"


def target_of(environment: Environment) -> Target:
    """The target of an environment. UnreachableError while it has no endpoint, that is, does not run."""
    if environment.endpoint is None:
        message = f"{environment.label} is not running"
        project = "project " if environment.kind is Kind.PROJECT else ""
        raise UnreachableError(message, hint=f"`agent-swarm {project}start {environment.name}` starts it.")
    return Target(
        environment_id=environment.id,
        label=environment.label,
        host_alias=host_alias(environment.kind, environment.name),
        endpoint=environment.endpoint,
    )


def ssh_endpoint(target: Target) -> SshEndpoint | None:
    """The target's SSH endpoint; None where its commands are local processes."""
    return target.endpoint if isinstance(target.endpoint, SshEndpoint) else None
