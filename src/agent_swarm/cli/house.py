"""status, providers, doctor, gc."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from agent_swarm.cli import render, shapes
from agent_swarm.cli.options import (
    Command,
    confirm,
    json_option,
    looking,
    say,
    simulated_note,
    working,
    yes_option,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from agent_swarm.operations.doctor import Garbage
    from agent_swarm.operations.status import HostStatus, ProviderStatus

MIB = 1024**2
GIB = 1024**3

_HOST = (
    render.Column("HOST"),
    render.Column("TOTAL", right=True),
    render.Column("ALLOCATED", rank=1, right=True),
    render.Column("USED", rank=2, right=True),
    render.Column("FREE", right=True),
)
_MACHINES = (
    render.Column("NAME", least=24),
    render.Column("KIND", rank=4),
    render.Column("STATUS", colour=render.status_colour),
    render.Column("CPUS", rank=3, right=True),
    render.Column("MEMORY", rank=2, right=True),
    render.Column("USED", rank=1, right=True),
    render.Column("DISK USED", right=True),
)
_FINDINGS = (
    render.Column("LEVEL", colour=render.status_colour),
    render.Column("SUBJECT"),
    render.Column("FINDING"),  # never cut: it is what doctor was asked for
)
_GARBAGE = (
    render.Column("SIZE", right=True),
    render.Column("WHAT", least=20),
    render.Column("WHY", rank=1, least=12),
)


@click.command(cls=Command, example="agent-swarm status")
@json_option
def status(as_json: bool) -> None:
    """Show what the host has, what machines were promised (allocated), what is used, by whomever, and what is
    free; then what each machine uses now.

    CPUs in use are the load average of the last minute. Disks are sparse: more may be allocated than there is.
    """
    with looking() as swarm:
        found = swarm.status()
        simulated = {name for name in _provider_names(found) if swarm.is_simulated(name)}
    if as_json:
        shapes.write(shapes.status(found, simulated=simulated))
        return
    click.echo("\n".join(_status_lines(found)))
    for name in sorted(simulated):
        say(simulated_note(name))


@click.command(cls=Command, example="agent-swarm providers")
@json_option
def providers(as_json: bool) -> None:
    """Show every installed back end: what it can do here, or what it lacks and the command that installs it.

    `project create --provider NAME` or the setting `provider` chooses one.
    """
    with looking() as swarm:
        found = swarm.providers()
    if as_json:
        shapes.write({"providers": [shapes.provider(entry) for entry in found]})
        return
    for entry in found:
        click.echo("\n".join(_provider_lines(entry)))


@click.command(cls=Command, example="agent-swarm doctor")
@json_option
def doctor(as_json: bool) -> int:
    """Look at everything that machines depend on, end what an interrupted command left open, and say what
    is wrong and what to do about it. Exit code 1 where there is a problem."""
    with looking() as swarm:
        found = swarm.doctor()
    problems = sum(1 for entry in found if entry.level.value == "problem")
    if as_json:
        shapes.write({"findings": [shapes.finding(entry) for entry in found]})
        return min(problems, 1)
    click.echo(
        "\n".join(
            render.table(_FINDINGS, [(entry.level.value, entry.subject, entry.message) for entry in found])
        )
    )
    for entry in found:
        if entry.hint:
            say(f"{entry.subject}: {entry.hint}")
    say(f"{problems} problem(s)" if problems else "nothing is broken")
    return min(problems, 1)


@click.command(cls=Command, example="agent-swarm gc --dry-run\nagent-swarm gc --yes")
@click.option("--dry-run", is_flag=True, help="Only show what would be removed.")
@yes_option
@json_option
def gc(dry_run: bool, yes: bool, as_json: bool) -> None:
    """Remove what nothing refers to: machines that the registry does not know, and what interrupted downloads
    and builds left. Tasks, projects and images are never touched."""
    with working() as swarm:
        found = swarm.gc(dry_run=True)
        if found and not dry_run:
            if not as_json:
                _show_garbage(found)
            confirm(f"Remove {len(found)} thing(s), {_total(found)}?", yes=yes)
            found = swarm.gc()
    if as_json:
        shapes.write({"removed": not dry_run, "garbage": [shapes.garbage(item) for item in found]})
        return
    if dry_run and found:
        _show_garbage(found)
    if not found:
        say("there is nothing to remove")
    elif not dry_run:
        say(f"{len(found)} thing(s) removed, {_total(found)}")


def _provider_names(found: HostStatus) -> set[str]:
    return {entry.environment.provider for entry in found.machines}


def _show_garbage(found: Sequence[Garbage]) -> None:
    rows = [(render.size(item.size_bytes), item.what, item.reason) for item in found]
    click.echo("\n".join(render.table(_GARBAGE, rows)))


def _total(found: Sequence[Garbage]) -> str:
    return render.size(sum(item.size_bytes for item in found))


def _status_lines(found: HostStatus) -> Iterator[str]:
    host = found.capacity
    load = found.load_average_1min
    disk_allocated = sum(entry.environment.resources.disk_gib for entry in found.machines) * GIB
    rows = [
        (
            "CPU",
            str(host.cpus),
            str(host.cpus_promised),
            "-" if load is None else f"{load:.1f}",
            "-" if load is None else f"{max(host.cpus - load, 0):.1f}",
        ),
        (
            "memory",
            render.size(host.memory_mib * MIB),
            render.size(host.memory_promised_mib * MIB),
            render.size((host.memory_mib - found.memory_available_mib) * MIB),
            render.size(found.memory_available_mib * MIB),
        ),
        (
            "disk",
            render.size(host.disk_total_bytes),
            render.size(disk_allocated),
            render.size(host.disk_total_bytes - host.disk_free_bytes),
            render.size(host.disk_free_bytes),
        ),
    ]
    yield from render.table(_HOST, rows)
    if not found.machines:
        return
    yield ""
    yield from render.table(
        _MACHINES,
        [
            (
                entry.environment.name,
                entry.environment.kind.value,
                entry.environment.status.value,
                str(entry.environment.resources.cpus),
                render.memory(entry.environment.resources.memory_mib),
                render.size(entry.machine.memory_bytes),
                render.size(entry.machine.disk_bytes),
            )
            for entry in found.machines
        ],
    )


def _provider_lines(found: ProviderStatus) -> Iterator[str]:
    readiness = found.readiness
    verdict = "usable" if readiness.usable else "not usable"
    mark = " (simulated)" if found.simulated else ""
    name = render.coloured(render.shown(found.name), sys.stdout, bold=True)
    yield f"{name}{mark}: {render.coloured(verdict, sys.stdout, fg=render.COLOURS[verdict])}"
    for line in render.facts(
        [
            ("is", readiness.summary if readiness.usable else ""),
            ("can", ", ".join(facet.replace("_", " ") for facet in found.facets)),
            ("lacks", "\n".join(readiness.missing)),
            ("install", readiness.install_command),
            ("warning", "\n".join(readiness.warnings)),
            ("machines", str(found.machines) if found.machines else ""),
        ]
    ):
        yield f"  {line}"
