"""list, show, and the same for projects."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

import click

from agent_swarm.cli import render, shapes
from agent_swarm.cli.options import PROJECT, TASK, Command, json_option, looking, say, simulated_note
from agent_swarm.model import Environment, Kind, SshEndpoint, Status

if TYPE_CHECKING:
    from collections.abc import Sequence

    from agent_swarm.model import EnvironmentId
    from agent_swarm.operations.status import Details
    from agent_swarm.swarm import Swarm

LAST_OPERATIONS = 5

_COLUMNS = (
    render.Column("NAME", least=24),
    render.Column("KIND", rank=1),
    render.Column("STATUS", colour=render.status_colour),
    render.Column("PROJECT", rank=2, least=12),
    render.Column("PROVIDER", rank=4),
    render.Column("CPUS", rank=6, right=True),
    render.Column("MEMORY", rank=5, right=True),
    render.Column("AGE", rank=3, right=True),
    render.Column("SSH", rank=1),
)


@click.command(
    cls=Command, example="agent-swarm list --project web\nagent-swarm list --json | jq -r '.tasks[].name'"
)
@click.option("--project", type=PROJECT, metavar="NAME", help="Only the tasks of this project.")
@click.option("--all", "everything", is_flag=True, help="List projects, too.")
@json_option
def task_list(project: str | None, everything: bool, as_json: bool) -> None:
    """List tasks with their status, project, resources, age and SSH port.

    The status is looked up now: a machine that died, or a host that was restarted, shows.
    """
    with looking() as swarm:
        found = swarm.environments()
        if project is not None:
            owner = swarm.find(project, kind=Kind.PROJECT)
            found = [entry for entry in found if owner.id in {entry.id, entry.parent_id}]
        kept = [entry for entry in found if everything or entry.kind is Kind.TASK]
        if as_json:
            document: shapes.Shape = {"tasks": _shapes(swarm, kept, found, Kind.TASK)}
            if everything:
                document["projects"] = _shapes(swarm, kept, found, Kind.PROJECT)
            shapes.write(document)
            return
        _draw(swarm, kept, found, left_out=frozenset() if everything else frozenset({"KIND"}))
    if not kept:
        say("there are no tasks; `agent-swarm create PROJECT TASK` makes one")


@click.command(cls=Command, example="agent-swarm project list")
@json_option
def project_list(as_json: bool) -> None:
    """List projects with their status, resources, age and SSH port."""
    with looking() as swarm:
        found = swarm.environments(kind=Kind.PROJECT)
        if as_json:
            shapes.write({"projects": _shapes(swarm, found, found, Kind.PROJECT)})
            return
        _draw(swarm, found, found, left_out=frozenset({"KIND", "PROJECT"}))
    if not found:
        say("there are no projects; `agent-swarm project create NAME` makes one")


@click.command(cls=Command, example="agent-swarm show fix-1")
@click.argument("task", type=TASK)
@json_option
def task_show(task: str, as_json: bool) -> None:
    """Show everything about a task: its image, baseline, project, resources, how to reach it, what it
    uses, and what was done to it last."""
    _show(task, Kind.TASK, as_json=as_json)


@click.command(cls=Command, example="agent-swarm project show web")
@click.argument("project", type=PROJECT)
@json_option
def project_show(project: str, as_json: bool) -> None:
    """Show everything about a project: its image, baselines, tasks, resources, how to reach it, what it
    uses, and what was done to it last."""
    _show(project, Kind.PROJECT, as_json=as_json)


def _shapes(
    swarm: Swarm, kept: Sequence[Environment], known: Sequence[Environment], kind: Kind
) -> list[shapes.Shape]:
    names = {entry.id: entry.name for entry in known}
    checkpoints = swarm.checkpoint_names()
    return [
        shapes.environment(
            entry,
            project=_project(entry, names),
            checkpoint=checkpoints.get(entry.checkpoint_id) if entry.checkpoint_id else None,
            simulated=swarm.is_simulated(entry.provider),
        )
        for entry in kept
        if entry.kind is kind
    ]


def _project(entry: Environment, names: dict[EnvironmentId, str]) -> str | None:
    return names.get(entry.parent_id) if entry.parent_id else None


def _draw(
    swarm: Swarm, kept: Sequence[Environment], known: Sequence[Environment], *, left_out: frozenset[str]
) -> None:
    names = {entry.id: entry.name for entry in known}
    providers = {name: _provider(swarm, name) for name in {entry.provider for entry in kept}}
    rows = [
        (
            entry.name,
            entry.kind.value,
            entry.status.value,
            _project(entry, names) or "-",
            providers[entry.provider],
            str(entry.resources.cpus),
            render.memory(entry.resources.memory_mib),
            render.age(entry.created_at),
            _port(entry),
        )
        for entry in kept
    ]
    drawn = [index for index, column in enumerate(_COLUMNS) if column.title not in left_out]
    cells = [[row[index] for index in drawn] for row in rows]
    click.echo("\n".join(render.table([_COLUMNS[index] for index in drawn], cells)))
    for entry in kept:
        if entry.reason and entry.status in {Status.BROKEN, Status.FAILED}:
            say(f"{entry.label} is {entry.status}: {entry.reason}")
    for name in sorted(name for name in providers if swarm.is_simulated(name)):
        say(simulated_note(name))


def _provider(swarm: Swarm, name: str) -> str:
    return f"{name} (simulated)" if swarm.is_simulated(name) else name


def _port(entry: Environment) -> str:
    reach = shapes.ssh(entry)
    return str(reach["port"]) if reach else "-"


def _show(name: str, kind: Kind, *, as_json: bool) -> None:
    with looking() as swarm:
        found = swarm.show(name, kind=kind)
    if as_json:
        shapes.write({kind.value: shapes.details(found)})
        return
    click.echo("\n".join(render.facts(_facts(found))))


def _facts(found: Details) -> list[tuple[str, str]]:
    entry = found.environment
    given = entry.resources
    return [
        (entry.kind.value, entry.name),
        ("status", entry.status.value + (f": {entry.reason}" if entry.reason else "")),
        ("provider", entry.provider + (" (simulated)" if found.simulated else "")),
        ("project", found.parent.name if found.parent else ""),
        ("image", _image(found)),
        ("baseline", f"generation {found.baseline.generation}" if found.baseline else ""),
        ("made from", entry.origin),
        ("checkpoint", found.checkpoint.name if found.checkpoint else ""),
        ("baselines", "\n".join(_generation(found, index) for index in range(len(found.baselines)))),
        ("tasks", ", ".join(task.name for task in found.tasks)),
        (
            "resources",
            f"{given.cpus} CPUs, {render.memory(given.memory_mib)} memory, {given.disk_gib} GiB disk",
        ),
        ("memory used", render.size(found.machine.memory_bytes) if found.machine.memory_bytes else ""),
        ("disk used", render.size(found.machine.disk_bytes) if found.machine.disk_bytes else ""),
        ("ssh", _ssh(entry)),
        ("up", render.age(entry.started_at) if entry.started_at else ""),
        ("created", render.moment(entry.created_at)),
        ("id", entry.id),
        ("console log", str(found.console) if found.console else ""),
        ("set-up log", str(found.setup_log) if found.setup_log else ""),
        ("operations", "\n".join(_operations(found))),
    ]


def _image(found: Details) -> str:
    digest = found.environment.image
    if digest is None:
        return ""
    return f"{found.image_name or 'not in the store any more'} ({digest[:12]})"


def _generation(found: Details, index: int) -> str:
    entry = found.baselines[index]
    cloned = sum(1 for task in found.tasks if task.baseline_id == entry.id)
    holds = "disk and memory" if entry.memory else "disk"
    newest = ", cloned by `create`" if index == 0 else ""
    return (
        f"generation {entry.generation}, {render.moment(entry.created_at)}, {holds}, {cloned} task(s){newest}"
    )


def _ssh(entry: Environment) -> str:
    if shapes.ssh(entry) is None or not isinstance(entry.endpoint, SshEndpoint):
        return ""
    prefix = "project ssh" if entry.kind is Kind.PROJECT else "ssh"
    where = f"{entry.endpoint.user}@{entry.endpoint.host} port {entry.endpoint.port}"
    return f"{where}\nagent-swarm {prefix} {shlex.quote(entry.name)}"


def _operations(found: Details) -> list[str]:
    lines = []
    for entry in found.operations[-LAST_OPERATIONS:]:
        at = f" at {entry.step!r}" if entry.step and entry.state.value != "done" else ""
        error = f": {entry.error}" if entry.error else ""
        lines.append(f"{render.moment(entry.started_at)} {entry.kind} {entry.state}{at}{error}")
    return lines
