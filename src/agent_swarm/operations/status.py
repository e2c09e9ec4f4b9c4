"""How things stand: one machine in full, and what all of them take of the host."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

from agent_swarm.errors import ImageError, ProviderUnavailableError, UsageError
from agent_swarm.model import Baseline, Checkpoint, Environment, Kind, MachineStatus, Operation, Status
from agent_swarm.operations import capacity, observe
from agent_swarm.operations.listing import listing
from agent_swarm.providers import discovery
from agent_swarm.providers.base import Readiness

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from agent_swarm.operations.context import Context


@dataclass(frozen=True, slots=True)
class Usage:
    """One machine and what it takes of the host now."""

    environment: Environment
    machine: MachineStatus


@dataclass(frozen=True, slots=True)
class HostStatus:
    """The host's figures and every machine's usage. Sizes in bytes where the name says so."""

    capacity: capacity.Capacity
    memory_available_mib: int
    load_average_1min: float | None
    images_bytes: int
    machines: Sequence[Usage]


@dataclass(frozen=True, slots=True)
class Details:
    """Everything that is known of one environment."""

    environment: Environment
    machine: MachineStatus
    image_name: str | None
    """None where the image is gone from the store."""
    parent: Environment | None
    baseline: Baseline | None
    checkpoint: Checkpoint | None
    """The one that its present state descends from."""
    baselines: Sequence[Baseline]
    tasks: Sequence[Environment]
    operations: Sequence[Operation]
    simulated: bool
    console: Path | None
    setup_log: Path | None


@dataclass(frozen=True, slots=True)
class ProviderStatus:
    """A provider as `providers` shows it."""

    name: str
    readiness: Readiness
    simulated: bool
    facets: Sequence[str]
    """Names of the optional abilities that it has."""
    machines: int


FACETS = ("snapshots", "live_fork", "suspend", "pricing")


def provider_statuses(context: Context) -> list[ProviderStatus]:
    """Every installed provider; one that cannot be loaded is listed with what it lacks."""
    environments = context.registry.environments()
    found = []
    for name in discovery.names():
        machines = sum(1 for environment in environments if environment.provider == name)
        try:
            provider = context.provider(name)
        except (ProviderUnavailableError, UsageError) as error:
            readiness = Readiness(
                usable=False, summary=error.message, missing=[error.message], install_command=error.hint
            )
            found.append(ProviderStatus(name, readiness, simulated=False, facets=(), machines=machines))
            continue
        facets = [facet for facet in FACETS if getattr(provider, facet) is not None]
        found.append(ProviderStatus(name, provider.probe(), provider.simulated, facets, machines))
    return found


def details(context: Context, kind: Kind, name: str) -> Details:
    environment = observe.observe(context, [context.registry.environment(kind, name)])[0]
    baselines = context.registry.all_baselines()
    image_name = None
    if environment.image is not None:
        try:
            image_name = context.images.get(environment.image).name
        except ImageError:
            image_name = None
    console, simulated = None, False
    try:
        provider = context.provider(environment.provider)
        console, simulated = provider.console(environment.handle), provider.simulated
    except (ProviderUnavailableError, UsageError):
        pass  # `machine` says so: its reason names the provider
    setup_log = context.paths.setup_log(environment.id)
    return Details(
        environment=environment,
        machine=usage(context, environment),
        image_name=image_name,
        parent=context.registry.by_id(environment.parent_id) if environment.parent_id else None,
        baseline=baselines.get(environment.baseline_id) if environment.baseline_id else None,
        checkpoint=context.registry.checkpoint(environment.checkpoint_id)
        if environment.checkpoint_id
        else None,
        baselines=[found for found in context.registry.baselines(environment.id) if found.ready],
        tasks=context.registry.environments(parent=environment.id),
        operations=context.registry.operations(environment.id),
        simulated=simulated,
        console=console if console is not None and console.exists() else None,
        setup_log=setup_log if setup_log.exists() else None,
    )


def host_status(context: Context) -> HostStatus:
    """What the machines were promised, what they take, and what is left."""
    import psutil

    environments = listing(context)
    with ThreadPoolExecutor(max_workers=8) as pool:
        used = list(pool.map(lambda found: Usage(found, usage(context, found)), environments))
    memory = psutil.virtual_memory()
    load = psutil.getloadavg()[0] if hasattr(psutil, "getloadavg") else None
    return HostStatus(
        capacity=capacity.measure(context),
        memory_available_mib=memory.available // capacity.MIB,
        load_average_1min=load,
        images_bytes=sum(image.size_bytes for image in context.images.list()),
        machines=used,
    )


def usage(context: Context, environment: Environment) -> MachineStatus:
    """What one machine takes of the host. Never raises, as `observe.inspect`."""
    if environment.status is Status.CREATING and not environment.handle:
        return observe.inspect(context, environment)
    try:
        return context.provider(environment.provider).usage(environment.handle)
    except (ProviderUnavailableError, UsageError):
        return observe.inspect(context, environment)
