"""What every operation works with: files, settings, registry, providers, and where progress goes."""

from __future__ import annotations

import contextlib
import functools
import threading
from typing import TYPE_CHECKING

from agent_swarm import locks
from agent_swarm.errors import ConflictError, NotFoundError, RegistryError
from agent_swarm.events import Progress, ignore
from agent_swarm.guest.target import Target, target_of
from agent_swarm.model import Environment, Kind, SshEndpoint, Status
from agent_swarm.providers import discovery
from agent_swarm.providers.base import Provider, ProviderContext
from agent_swarm.registry import Registry

if TYPE_CHECKING:
    from collections.abc import Iterator

    from agent_swarm.config import Config
    from agent_swarm.images.store import ImageStore
    from agent_swarm.paths import Paths

REACHABLE = frozenset({Status.CREATING, Status.RUNNING, Status.FAILED})
"""States in which a machine may have an SSH server that answers."""


class Context:
    """Shared by the threads of one command. Opens nothing until it is needed."""

    def __init__(self, paths: Paths, config: Config, progress: Progress = ignore) -> None:
        self.paths = paths
        self.config = config
        self.progress = progress
        self.registry = Registry(paths.registry)
        self._providers: dict[str, Provider] = {}
        self._guard = threading.Lock()

    # what `list` does not need is imported where it is used: 17 ms of the 200 that it has

    @functools.cached_property
    def images(self) -> ImageStore:
        from agent_swarm.images.store import ImageStore

        return ImageStore(self.paths)

    def provider_context(self) -> ProviderContext:
        return ProviderContext(
            paths=self.paths, config=self.config, installation=self.registry.installation()
        )

    def provider(self, name: str) -> Provider:
        """The provider of that name, made once. Raises as `discovery.load` does."""
        with self._guard:
            if name not in self._providers:
                self._providers[name] = discovery.load(name, self.provider_context())
            return self._providers[name]

    @contextlib.contextmanager
    def changing(self, environment: Environment, *, force: bool | None = None) -> Iterator[Environment]:
        """Hold an environment's change lock, and yield its record as it is now.

        `force` False also refuses while sessions use the machine; True pulls it away under them; None
        leaves sessions alone. Raises BusyError, or NotFoundError where it was deleted meanwhile.
        """
        with contextlib.ExitStack() as stack:
            stack.enter_context(
                locks.hold(
                    self.paths.lock(f"{environment.id}.change"),
                    busy=f"{environment.label} is being changed by another command",
                )
            )
            if force is False:
                stack.enter_context(
                    locks.hold(
                        self.paths.lock(f"{environment.id}.use"),
                        busy=f"{environment.label} is in use by a session or a command",
                        hint="Wait for it to end, or use --force to end it.",
                    )
                )
            current = self.registry.by_id(environment.id)
            if current is None:
                message = f"{environment.label} is gone: another command deleted it"
                raise NotFoundError(message)
            yield current

    @contextlib.contextmanager
    def using(self, environment: Environment) -> Iterator[None]:
        """Hold an environment's use lock, shared, for as long as a session lasts."""
        with locks.hold(
            self.paths.lock(f"{environment.id}.use"),
            shared=True,
            busy=f"{environment.label} is being stopped or deleted",
        ):
            yield

    def target(self, environment: Environment) -> Target:
        """How sessions address the machine. Raises ConflictError where it does not run."""
        if environment.endpoint is None or environment.status not in REACHABLE:
            message = f"{environment.label} is {environment.status}"
            prefix = "project " if environment.kind is Kind.PROJECT else ""
            raise ConflictError(
                message, hint=f"Start it with `agent-swarm {prefix}start {environment.name}`."
            )
        return target_of(environment)

    def disconnect(self, environment: Environment) -> None:
        """Close the shared connection to a machine, if there is one."""
        if environment.endpoint is not None:
            from agent_swarm.guest import connection

            connection.close(self.paths, target_of(environment))

    def publish_hosts(self) -> None:
        """Bring ssh/config and ssh/known_hosts up to date with the registry."""
        from agent_swarm.guest import ssh_config

        with locks.hold(
            self.paths.lock("ssh-config"), wait_s=30, busy="another command is writing the SSH config"
        ):
            ssh_config.write(
                self.paths,
                self.config,
                [
                    ssh_config.Host(found.id, found.kind, found.name, found.endpoint)
                    for found in self.registry.environments()
                    if isinstance(found.endpoint, SshEndpoint) and found.status in REACHABLE
                ],
            )

    def record(self, before: Environment, now: Environment) -> None:
        """Write a status that was observed, unless somebody changed it since, or the registry cannot be
        written: then the next observation will."""
        with contextlib.suppress(RegistryError):
            self.registry.set_status(now.id, now.status, reason=now.reason, only_if=before.status)

    def close(self) -> None:
        self.registry.close()
