"""bulk create, bulk delete."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from agent_swarm.cli import render, shapes
from agent_swarm.cli.options import (
    PROJECT,
    TASK,
    Command,
    cold_option,
    confirm,
    json_option,
    parallel_option,
    request,
    resources,
    say,
    working,
    yes_option,
)
from agent_swarm.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from agent_swarm.operations.bulk import BulkResult

NAMES_SHOWN = 10

_COLUMNS = (
    render.Column("NAME", least=24),
    render.Column("RESULT", colour=render.status_colour),
    render.Column("SECONDS", rank=1, right=True),
    render.Column("ERROR", least=20),
)


@click.command(
    cls=Command,
    example="agent-swarm bulk create web fix-1 fix-2 fix-3\nagent-swarm bulk create web fix-{1..8} --parallel 8",
)
@click.argument("project", type=PROJECT)
@click.argument("tasks", nargs=-1, required=True)
@resources
@cold_option
@parallel_option
@json_option
def create(
    project: str,
    tasks: tuple[str, ...],
    cpus: int | None,
    memory_mib: int | None,
    disk_gib: int | None,
    force: bool,
    cold: bool,
    parallel: int | None,
    as_json: bool,
) -> int:
    """Make several tasks of one project side by side.

    Each result is reported by itself; one failure neither hides nor stops the others. The exit code is 0
    when all went well, the errors' own when they agree on one, else 1.
    """
    with working() as swarm:
        results = swarm.bulk_create(
            project,
            tasks,
            request=request(cpus, memory_mib, disk_gib),
            force=force,
            cold=cold,
            parallel=parallel,
        )
    return report(results, "created", as_json=as_json)


@click.command(
    cls=Command, example="agent-swarm bulk delete fix-1 fix-2 --yes\nagent-swarm bulk delete --project web"
)
@click.argument("tasks", nargs=-1, type=TASK)
@click.option("--project", type=PROJECT, metavar="NAME", help="All tasks of this project.")
@click.option("--force", is_flag=True, help="Do it while sessions use the machines.")
@parallel_option
@yes_option
@json_option
def delete(
    tasks: tuple[str, ...], project: str | None, force: bool, parallel: int | None, yes: bool, as_json: bool
) -> int:
    """Delete several tasks side by side, by name or all of one project.

    Each result is reported by itself; one failure neither hides nor stops the others. Exit codes are those
    of `bulk create`.
    """
    if bool(tasks) == (project is not None):
        message = "give the names of tasks, or --project"
        raise UsageError(message, hint="For example: agent-swarm bulk delete fix-1 fix-2")
    with working() as swarm:
        names = tasks
        if project is not None:
            names = tuple(found.name for found in swarm.environments(project=project))
            if not names:
                say(f"project {project} has no tasks")
        if names:
            confirm(f"Delete {len(names)} task(s) and everything on their disks: {_some(names)}?", yes=yes)
        results = swarm.bulk_delete(names, force=force, parallel=parallel) if names else []
    return report(results, "deleted", as_json=as_json)


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:NAMES_SHOWN]) + (", ..." if len(names) > NAMES_SHOWN else "")


def report(results: Sequence[BulkResult], done: str, *, as_json: bool) -> int:
    """Print how it went for each, and return the exit code."""
    if as_json:
        shapes.write({"results": [shapes.bulk_result(result) for result in results]})
    elif results:
        rows = [
            (
                result.name,
                "failed" if result.error else done,
                f"{result.duration_s:.1f}",
                result.error.message if result.error else "",
            )
            for result in results
        ]
        click.echo("\n".join(render.table(_COLUMNS, rows)))
    for result in results:
        if result.error is not None:
            click.echo("\n".join(render.error_lines(result.error, sys.stderr, about=result.name)), err=True)
    codes = {result.error.exit_code for result in results if result.error}
    return codes.pop() if len(codes) == 1 else min(len(codes), 1)
