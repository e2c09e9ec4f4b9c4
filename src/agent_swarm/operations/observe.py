"""What is so, as against what the registry last heard: machines die, hosts reboot."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from agent_swarm.errors import ProviderUnavailableError, UsageError
from agent_swarm.model import Environment, MachineState, MachineStatus, Status

if TYPE_CHECKING:
    from collections.abc import Iterable

    from agent_swarm.operations.context import Context

SETTLED = frozenset({Status.RUNNING, Status.STOPPED, Status.SUSPENDED, Status.BROKEN})

STATUS = {
    MachineState.RUNNING: Status.RUNNING,
    MachineState.STOPPED: Status.STOPPED,
    MachineState.SUSPENDED: Status.SUSPENDED,
    MachineState.BROKEN: Status.BROKEN,
    MachineState.ABSENT: Status.BROKEN,
}


def inspect(context: Context, environment: Environment) -> MachineStatus:
    """What the provider says of one machine. Never raises: a provider that cannot be loaded is a reason."""
    try:
        provider = context.provider(environment.provider)
    except (ProviderUnavailableError, UsageError) as error:
        return MachineStatus(MachineState.BROKEN, reason=f"provider {environment.provider}: {error.message}")
    found = provider.inspect(environment.handle)
    if found.state is MachineState.ABSENT:
        return dataclasses.replace(found, reason=found.reason or "its files are gone")
    return found


def observe(context: Context, environments: Iterable[Environment]) -> list[Environment]:
    """The same environments with the status that is so now; the registry is brought up to date.

    Environments that an open operation works on are left as they are. A registry that cannot be written
    (a full disk) does not stop a listing: what was seen is returned all the same.
    """
    seen = []
    for environment in environments:
        now = environment
        if environment.status in SETTLED:
            found = inspect(context, environment)
            status = STATUS[found.state]
            if (status, found.reason) != (environment.status, environment.reason) and (
                status is not environment.status or status is Status.BROKEN
            ):
                reason = found.reason
                if environment.status is Status.RUNNING and status is Status.STOPPED:
                    reason = reason or "it ended by itself, or the host was restarted"
                now = dataclasses.replace(
                    environment,
                    status=status,
                    reason=reason,
                    started_at=environment.started_at if status is Status.RUNNING else None,
                )
                context.record(environment, now)
        seen.append(now)
    return seen
