"""quickstart: the first minutes."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from agent_swarm.cli import render, shapes
from agent_swarm.cli.options import Command, simulated_note, working

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from agent_swarm.operations.quickstart import TaskShown

_COLUMNS = (
    render.Column("TASK"),
    render.Column("STATUS", colour=render.status_colour),
    render.Column("SSH", rank=1),
    render.Column("ITS COMMAND WROTE", least=20),
)

_NEXT = (
    ("agent-swarm ssh {task}", "a shell in the first task"),
    ("agent-swarm run {task} -- uname -a", "a command in it"),
    ("agent-swarm create {project} fix-1", "one more task"),
    ("agent-swarm list", "what there is"),
    ("agent-swarm bulk delete --project {project}", "away with the tasks"),
)


@click.command(cls=Command, example="agent-swarm quickstart")
@click.option(
    "--image", metavar="SOURCE", help="The base image, as for `init-base --from`; default: what is there."
)
def quickstart(image: str | None) -> int:
    """Make what is missing of a base image, the project `demo` and the tasks `demo-1` and `demo-2`, run a
    command in both tasks at the same time, and say what to type next. A second run reuses what is there."""
    with working() as swarm:
        found = swarm.quickstart(image=image)
        providers = {entry.environment.provider for entry in found}
        simulated = sorted(name for name in providers if swarm.is_simulated(name))
        project = swarm.show(found[0].environment.name).parent
    click.echo("\n".join(_lines(found, project.name if project else "", simulated=simulated)))
    return max(entry.run.exit_code for entry in found)


def _lines(found: Sequence[TaskShown], project: str, *, simulated: Sequence[str]) -> Iterator[str]:
    yield from render.table(_COLUMNS, [row for entry in found for row in _rows(entry)])
    yield from (simulated_note(name) for name in simulated)
    yield ""
    yield render.coloured("What to type next:", sys.stdout, bold=True)
    commands = [
        (command.format(task=found[0].environment.name, project=project), what) for command, what in _NEXT
    ]
    width = max(len(command) for command, _ in commands)
    wide = (render.width_of(sys.stdout) or 80) >= width + 30
    for command, what in commands:
        yield f"  {command.ljust(width)}  # {what}" if wide else f"  {command}"


def _rows(entry: TaskShown) -> Iterator[tuple[str, str, str, str]]:
    environment = entry.environment
    reach = shapes.ssh(environment)
    written = (entry.run.stdout + entry.run.stderr).decode("utf-8", "replace").splitlines() or [""]
    first, *others = [render.without_escapes(line) for line in written]
    yield environment.name, environment.status.value, str(reach["port"]) if reach else "-", first
    for line in others:
        yield "", "", "", line
