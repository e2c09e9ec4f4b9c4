"""Finding providers: our own, and those of the entry-point group `agent_swarm.providers`.

    [project.entry-points."agent_swarm.providers"]
    mycloud = "my_package.provider:create_provider [mycloud]"

The value is a `create_provider(context: ProviderContext) -> Provider`; the extra in brackets, where there
is one, installs what it needs. Names are listed without importing anything, and only the named
provider is imported. Our own stand in a table here: no other package can take their names, and a
command that uses them does not search what is installed.
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING

from agent_swarm.errors import ProviderUnavailableError, UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from importlib import metadata

    from agent_swarm.config import Config
    from agent_swarm.providers.base import Provider, ProviderContext

GROUP = "agent_swarm.providers"
DISTRIBUTION = "agent-swarm"
ENVIRONMENT_VARIABLE = "AGENT_SWARM_PROVIDER"

OWN = {"fake": "agent_swarm.providers.fake", "qemu": "agent_swarm.providers.qemu"}
"""Our own providers: the module that has their `create_provider`."""

AUTO_ORDER = ("qemu",)
"""What `auto` tries, first to last. The fake is never in it: it isolates nothing."""


def names() -> list[str]:
    """The names of all installed providers, sorted. Imports none of them."""
    from importlib import metadata

    return sorted({*OWN, *(entry.name for entry in metadata.entry_points(group=GROUP))})


def load(name: str, context: ProviderContext) -> Provider:
    """The named provider.

    Raises UsageError where there is none of that name, and ProviderUnavailableError, with the command
    that installs what is missing, where it cannot be imported.
    """
    if name in OWN:
        own: Provider = import_module(OWN[name]).create_provider(context)
        return own
    entry = _entry_point(name)
    try:
        create_provider = entry.load()
        provider: Provider = create_provider(context)
    except ModuleNotFoundError as error:
        raise _missing(entry, error) from error
    return provider


def choose(
    config: Config,
    context: ProviderContext,
    *,
    requested: str | None = None,
    environ: Mapping[str, str] = os.environ,
    order: Sequence[str] = AUTO_ORDER,
) -> Provider:
    """The provider for a new project: `requested`, else AGENT_SWARM_PROVIDER, else the setting `provider`.

    "auto" takes the first of `order` that its probe says is usable. Raises as `load` does, and
    ProviderUnavailableError, saying what is missing, where the one that was asked for, or each that auto
    tried, is not usable.
    """
    wanted = requested or environ.get(ENVIRONMENT_VARIABLE) or config.provider
    problems: list[str] = []
    commands: list[str] = []
    for name in order if wanted == "auto" else (wanted,):
        try:
            provider = load(name, context)
        except ProviderUnavailableError as error:
            if wanted != "auto":
                raise
            problems.append(f"{name}: {error.message}")
            commands.append(error.hint)
            continue
        readiness = provider.probe()
        if readiness.usable:
            return provider
        problems += [f"{name}: {line}" for line in readiness.missing or (readiness.summary,)]
        if readiness.install_command:
            commands.append(f"Run `{readiness.install_command}`.")
    if wanted == "auto":
        message = "no provider is usable on this host"
    else:
        message = f"the provider {wanted} is not usable on this host"
    raise ProviderUnavailableError(
        message,
        details="\n".join(problems),
        hint=" ".join(commands) or "`agent-swarm providers` shows what each of them needs.",
    )


def _entry_point(name: str) -> metadata.EntryPoint:
    from importlib import metadata

    for entry in metadata.entry_points(group=GROUP, name=name):
        return entry
    import difflib

    known = names()
    near = difflib.get_close_matches(name, known, n=1)
    message = f"there is no provider {name!r}"
    hint = f"Did you mean {near[0]!r}?" if near else f"Installed providers: {', '.join(known)}."
    raise UsageError(message, hint=hint)


def _missing(entry: metadata.EntryPoint, error: ModuleNotFoundError) -> ProviderUnavailableError:
    package = entry.dist.name if entry.dist is not None else DISTRIBUTION
    message = f"the provider {entry.name} needs the Python module {error.name}, which is not installed"
    if entry.extras:
        command = f"pip install '{package}[{','.join(entry.extras)}]'"
    else:
        command = f"pip install --force-reinstall {package}"
    return ProviderUnavailableError(message, hint=f"Run `{command}`.")
