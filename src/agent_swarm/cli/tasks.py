"""create, start, stop, delete."""

from __future__ import annotations

import click

from agent_swarm.cli.options import (
    PROJECT,
    TASK,
    Command,
    cold_option,
    confirm,
    request,
    resources,
    say,
    suspend_option,
    working,
    yes_option,
)


@click.command(
    cls=Command, example="agent-swarm create web fix-1\nagent-swarm create web fix-2 --cpus 4 --memory 8G"
)
@click.argument("project", type=PROJECT)
@click.argument("task")
@resources
@cold_option
def create(
    project: str,
    task: str,
    cpus: int | None,
    memory_mib: int | None,
    disk_gib: int | None,
    force: bool,
    cold: bool,
) -> None:
    """Make a task: a machine of its own, cloned from the project's newest baseline, and running.

    Where that holds memory the task goes on from it, with the project's services; else it boots. A name is 1 to 63 letters, digits, '.', '_' or '-', starting with a letter or digit. Resources are the
    project's unless given.
    """
    with working() as swarm:
        made = swarm.create(
            project, task, request=request(cpus, memory_mib, disk_gib), force=force, cold=cold
        )
    say(f"task {made.name} is {made.status}; work in it with: agent-swarm ssh {made.name}")


@click.command(cls=Command, example="agent-swarm start fix-1")
@click.argument("task", type=TASK)
@click.option("--force", is_flag=True, help="Go on where the host's memory or disk would not do.")
@click.option(
    "--cold", is_flag=True, help="Boot a suspended task from its disk; what was in its memory is lost."
)
def start(task: str, force: bool, cold: bool) -> None:
    """Start a stopped task, and wait until it answers. A suspended one goes on where it was."""
    with working() as swarm:
        started = swarm.start(task, force=force, cold=cold)
    say(f"task {started.name} is {started.status}")


@click.command(cls=Command, example="agent-swarm stop fix-1\nagent-swarm stop fix-1 --suspend")
@click.argument("task", type=TASK)
@click.option("--force", is_flag=True, help="Do it while sessions use the machine.")
@suspend_option
def stop(task: str, force: bool, suspend: bool) -> None:
    """Stop a task's machine; its disk is kept, and `start` boots it again.

    With --suspend its memory is kept, too, and `start` goes on where it was. The host's memory is free then.
    """
    with working() as swarm:
        stopped = swarm.stop(task, force=force, suspend=suspend)
    say(f"task {stopped.name} is {stopped.status}")


@click.command(cls=Command, example="agent-swarm delete fix-1 --yes")
@click.argument("task", type=TASK)
@click.option("--force", is_flag=True, help="Do it while sessions use the machine.")
@yes_option
def delete(task: str, force: bool, yes: bool) -> None:
    """Delete a task: its machine and everything on its disk. This cannot be taken back."""
    with working() as swarm:
        found = swarm.find(task)
        confirm(f"Delete task {found.name} and everything on its disk?", yes=yes)
        swarm.delete(found.name, force=force)
    say(f"task {found.name} is deleted")
