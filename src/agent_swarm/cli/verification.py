"""verify."""

from __future__ import annotations

import click

from agent_swarm.cli import render, shapes
from agent_swarm.cli.options import TASK, Command, json_option, say, working

_COLUMNS = (
    render.Column("CHECK"),
    render.Column("RESULT", colour=render.status_colour),
    render.Column("EVIDENCE", least=30),
)


@click.command(cls=Command, example="agent-swarm verify fix-1")
@click.argument("task", type=TASK)
@json_option
def verify(task: str, as_json: bool) -> int:
    """Show that a task is a machine of its own, though it may go on from another's memory: clock, host name, SSH host
    key, machine-id and random numbers, read inside and compared with its project and its siblings that run.

    Exit code 1 where something does not hold.
    """
    with working() as swarm:
        checks = swarm.verify(task)
    failed = sum(1 for check in checks if not check.holds)
    if as_json:
        shapes.write({"checks": [shapes.check(found) for found in checks]})
        return min(failed, 1)
    rows = [(check.subject, "ok" if check.holds else "problem", check.evidence) for check in checks]
    click.echo("\n".join(render.table(_COLUMNS, rows)))
    say(f"{failed} check(s) failed" if failed else f"task {task} is itself")
    return min(failed, 1)
