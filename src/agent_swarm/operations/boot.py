"""From a made machine to one that answers: shared by create, start, restore and fork."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from agent_swarm.errors import BootError, UnreachableError
from agent_swarm.guest import connection
from agent_swarm.model import MachineState, SshEndpoint, Status
from agent_swarm.text import tail

if TYPE_CHECKING:
    from agent_swarm.operations.context import Context
    from agent_swarm.operations.journal import Change
    from agent_swarm.providers.base import Provider


INSTALL_AGENT_S = 600.0
"""What a first boot may take longer when cloud-init has to install the guest agent from the network."""

RESUME = "resume machine"
"""The one step of a start that goes on from saved memory; recovery saves the memory again."""


def bring_up(
    context: Context, change: Change, provider: Provider, handle: str, *, installs_agent: bool = False
) -> None:
    """Boot the machine and return when a first session works.

    The registry then holds its endpoint, ssh/config names it, and the shared connection is open.
    Raises BootError with the end of the console log.
    """
    environment = change.environment
    limit_s = context.config.timeouts.boot_s + (INSTALL_AGENT_S if installs_agent else 0.0)
    deadline = time.monotonic() + limit_s
    with change.step("start machine"):
        provider.start(handle, context.progress)
    with change.step("boot"):
        endpoint = provider.endpoint(
            handle, timeout_s=max(deadline - time.monotonic(), 1.0), progress=context.progress
        )
        context.registry.set_running(environment.id, endpoint, status=Status.CREATING)
    if not isinstance(endpoint, SshEndpoint):
        return
    context.publish_hosts()
    with change.step("connect"):
        current = context.registry.by_id(environment.id)
        assert current is not None
        try:
            connection.open_shared(
                context.paths,
                context.config,
                context.target(current),
                timeout_s=max(deadline - time.monotonic(), 10.0),
                alive=lambda: provider.inspect(handle).state is MachineState.RUNNING,
            )
        except UnreachableError as error:
            message = f"{environment.label} started, but no SSH session could be opened"
            raise BootError(
                message,
                details="\n".join(
                    filter(None, [error.message, error.details, tail(provider.console(handle))])
                ),
                hint="A slow host may need more time: see the setting timeouts.boot_s.",
            ) from error


def resume(context: Context, change: Change, provider: Provider, handle: str) -> None:
    """Let a SUSPENDED machine go on, and return when it runs: its services do already.

    The registry then holds its endpoint, and ssh/config names it. The shared connection is being opened in the
    background: a first session waits for that. Raises MachineError, BootError.
    """
    environment = change.environment
    with change.step(RESUME):
        provider.start(handle, context.progress)
        endpoint = provider.endpoint(
            handle, timeout_s=context.config.timeouts.boot_s, progress=context.progress
        )
        context.registry.set_running(environment.id, endpoint, status=Status.CREATING)
        if isinstance(endpoint, SshEndpoint):
            context.publish_hosts()
            current = context.registry.by_id(environment.id)
            assert current is not None
            connection.open_in_background(context.paths, context.config, context.target(current))
