"""Looking for what is wrong, and removing what nobody needs."""

from __future__ import annotations

import shutil
import sys
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from typing import TYPE_CHECKING

from agent_swarm import locks
from agent_swarm.errors import ProviderUnavailableError, UsageError
from agent_swarm.files import allocated_bytes
from agent_swarm.guest import ssh_config
from agent_swarm.model import Status
from agent_swarm.operations import capacity, observe, recovery, retention
from agent_swarm.providers import discovery

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from agent_swarm.operations.context import Context
    from agent_swarm.providers.base import OwnedMachine, Provider


class Level(StrEnum):
    OK = "ok"
    WARNING = "warning"
    PROBLEM = "problem"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at. `hint` is what to do about it, "" where nothing needs doing."""

    level: Level
    subject: str
    message: str
    hint: str = ""


@dataclass(frozen=True, slots=True)
class Garbage:
    """Something that nothing refers to. `remove` takes it away; it is checked again before that."""

    what: str
    reason: str
    size_bytes: int
    remove: Callable[[], object]


def doctor(context: Context) -> list[Finding]:
    """Look at everything that a machine's life depends on. Ends abandoned operations; changes nothing else."""
    return [finding for look in _LOOKS for finding in look(context)]


def _look_at_python(_context: Context) -> Iterator[Finding]:
    yield Finding(Level.OK, "python", sys.version.split()[0])


def _look_at_registry(context: Context) -> Iterator[Finding]:
    verdict = context.registry.check()
    if verdict == "ok":
        yield Finding(Level.OK, "registry", f"{context.paths.registry} is sound")
    else:
        yield Finding(
            Level.PROBLEM,
            "registry",
            f"{context.paths.registry}: {verdict}",
            "Restore it from a backup, or move it away.",
        )


def _look_at_operations(context: Context) -> Iterator[Finding]:
    for ended in recovery.recover(context):
        yield Finding(Level.OK, "operations", f"ended an interrupted {ended.kind}")
    for left in context.registry.open_operations():
        busy = not locks.is_free(context.paths.lock(f"{left.environment_id}.change"))
        yield Finding(
            Level.OK if busy else Level.PROBLEM,
            "operations",
            f"{left.kind} is at step {left.step!r}" + ("" if busy else " and could not be ended"),
        )


def _look_at_providers(context: Context) -> Iterator[Finding]:
    for name, provider in _loadable(context):
        if provider.simulated:
            continue
        readiness = provider.probe()
        level = Level.OK if readiness.usable else Level.PROBLEM
        yield Finding(
            level,
            f"provider {name}",
            "; ".join([readiness.summary, *readiness.missing]),
            f"Run: {readiness.install_command}" if readiness.install_command else "",
        )
        for warning in readiness.warnings:
            yield Finding(Level.WARNING, f"provider {name}", warning)


def _look_at_programs(_context: Context) -> Iterator[Finding]:
    for program in ("ssh", "scp", "ssh-keygen"):
        if shutil.which(program) is None:
            yield Finding(Level.PROBLEM, program, "is not installed", "Install the OpenSSH client.")


def _look_at_images(context: Context) -> Iterator[Finding]:
    images = context.images.list()
    for name, problem in context.images.problems().items():
        yield Finding(
            Level.PROBLEM, f"image {name[:12]}", problem, "Make it again with `agent-swarm init-base`."
        )
    if images:
        yield Finding(Level.OK, "images", f"{len(images)} base image(s), the newest is {images[0].name}")
    else:
        yield Finding(Level.WARNING, "images", "there is no base image yet", "Run `agent-swarm init-base`.")


def _look_at_machines(context: Context) -> Iterator[Finding]:
    environments = observe.observe(context, context.registry.environments())
    for found in environments:
        if found.status is Status.BROKEN:
            yield Finding(Level.PROBLEM, found.label, found.reason, "Restore what is missing, or delete it.")
        elif found.status is Status.FAILED:
            yield Finding(
                Level.WARNING, found.label, found.reason, "Look into it with `project ssh`, or delete it."
            )
    yield Finding(Level.OK, "machines", f"{len(environments)} registered")
    garbage = find_garbage(context)
    if garbage:
        size = sum(item.size_bytes for item in garbage) / capacity.MIB
        yield Finding(
            Level.WARNING,
            "garbage",
            f"{len(garbage)} thing(s) that nothing refers to, {size:.0f} MiB",
            "Run `agent-swarm gc`.",
        )


def _look_at_host(context: Context) -> Iterator[Finding]:
    figures = capacity.measure(context)
    free_gib = figures.disk_free_bytes / capacity.GIB
    if free_gib < context.config.limits.disk_reserve_gib + context.config.limits.disk_growth_gib:
        yield Finding(
            Level.WARNING, "disk", f"{free_gib:.1f} GiB free: no new machine will be made", "Free some space."
        )
    else:
        yield Finding(Level.OK, "disk", f"{free_gib:.1f} GiB free at {context.paths.home}")
    included = ssh_config.included_by_user(context.paths)
    yield Finding(
        Level.OK if included else Level.WARNING,
        "ssh config",
        "`ssh TASK.swarm` works from anywhere"
        if included
        else "`ssh TASK.swarm` and editors do not know the machines",
        "" if included else f"Put this line at the top of ~/.ssh/config: Include {context.paths.ssh_config}",
    )


_LOOKS = (
    _look_at_python,
    _look_at_registry,
    _look_at_operations,
    _look_at_providers,
    _look_at_programs,
    _look_at_images,
    _look_at_machines,
    _look_at_host,
)


def gc(context: Context, *, dry_run: bool = False) -> list[Garbage]:
    """Remove what nothing refers to; return what that was. With `dry_run` only tell."""
    recovery.recover(context)
    found = find_garbage(context)
    if not dry_run:
        for item in found:
            item.remove()
    return found


def find_garbage(context: Context) -> list[Garbage]:
    """Strays of every provider, old automatic checkpoints, and downloads and builds that were abandoned."""
    return [*_strays(context), *_old_checkpoints(context), *_partial_images(context)]


def _strays(context: Context) -> Iterator[Garbage]:
    for name, provider in _loadable(context):
        for machine in list(provider.list_owned()):  # seen first: what is made from here on has a record
            if context.registry.by_id(machine.id) is None and not machine.kept:
                yield Garbage(
                    what=f"{name} machine {machine.handle}",
                    reason="the registry does not know it",
                    size_bytes=provider.usage(machine.handle).disk_bytes or 0,
                    remove=_remover(context, provider, machine),
                )


def _remover(context: Context, provider: Provider, machine: OwnedMachine) -> Callable[[], None]:
    def remove() -> None:
        lock = context.paths.lock(f"{machine.id}.change")
        with locks.hold(lock, busy=f"{machine.handle} is being worked on"):
            if context.registry.by_id(machine.id) is None:
                provider.delete(machine.handle)
            recovery.forget_files(context, machine.id)

    return remove


def _old_checkpoints(context: Context) -> Iterator[Garbage]:
    providers = dict(_loadable(context))
    for found in retention.expired(context):
        owner = context.registry.by_id(found.environment_id)
        provider = providers.get(owner.provider) if owner is not None else None
        if owner is not None and provider is not None and provider.snapshots is not None:
            size = provider.snapshots.size(found.handle)
            yield Garbage(
                what=f"checkpoint {owner.name}@{found.name}",
                reason=f"it was made automatically more than {context.config.checkpoints.keep_automatic_h:g} h ago",
                size_bytes=size.disk_bytes + size.memory_bytes,
                remove=partial(retention.remove, context, found),
            )


def _partial_images(context: Context) -> Iterator[Garbage]:
    for unfinished in context.images.partials():
        yield Garbage(
            what=f"unfinished image {unfinished.name}",
            reason="its download or build was interrupted",
            size_bytes=allocated_bytes(unfinished),
            remove=partial(context.images.remove_partial, unfinished),
        )


def _loadable(context: Context) -> Iterator[tuple[str, Provider]]:
    for name in discovery.names():
        try:
            yield name, context.provider(name)
        except (ProviderUnavailableError, UsageError):
            continue  # `providers` says what it lacks; it cannot have machines here
