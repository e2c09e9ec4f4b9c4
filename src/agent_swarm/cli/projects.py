"""project create, start, stop, baseline, delete."""

from __future__ import annotations

import click

from agent_swarm.cli.options import (
    PROJECT,
    Command,
    confirm,
    request,
    resources,
    say,
    suspend_option,
    working,
    yes_option,
)
from agent_swarm.model import Kind


@click.command(
    cls=Command,
    example="agent-swarm project create web\nagent-swarm project create web --cpus 4 --memory 8G --image ubuntu:24.04",
)
@click.argument("name")
@click.option(
    "--image", metavar="NAME", help="Base image: a name or digest of `image list`; default: the newest."
)
@click.option("--provider", metavar="NAME", help="Back end; default: the setting `provider`.")
@resources
def create(
    name: str,
    image: str | None,
    provider: str | None,
    cpus: int | None,
    memory_mib: int | None,
    disk_gib: int | None,
    force: bool,
) -> None:
    """Make a project machine: boot it from a base image, run ~/.agent-swarm/setup.sh inside, and make
    baseline generation 1, which tasks are cloned from.

    Where setup.sh fails, the machine is left running for you to look at.
    """
    with working() as swarm:
        made = swarm.create_project(
            name, image=image, provider=provider, request=request(cpus, memory_mib, disk_gib), force=force
        )
    say(f"project {made.name} is {made.status}; make a task with: agent-swarm create {made.name} TASK")


@click.command(cls=Command, example="agent-swarm project start web")
@click.argument("project", type=PROJECT)
@click.option("--force", is_flag=True, help="Go on where the host's memory or disk would not do.")
@click.option(
    "--cold", is_flag=True, help="Boot a suspended project from its disk; what was in its memory is lost."
)
def start(project: str, force: bool, cold: bool) -> None:
    """Start a project machine, to work on what its tasks will be cloned from. A suspended one goes on where it was."""
    with working() as swarm:
        started = swarm.start(project, kind=Kind.PROJECT, force=force, cold=cold)
    say(f"project {started.name} is {started.status}")


@click.command(cls=Command, example="agent-swarm project stop web\nagent-swarm project stop web --suspend")
@click.argument("project", type=PROJECT)
@click.option("--force", is_flag=True, help="Do it while sessions use the machine.")
@suspend_option
def stop(project: str, force: bool, suspend: bool) -> None:
    """Stop a project machine; its last state becomes the next baseline generation, with its memory where the
    back end can save it (setting baselines.memory).

    New tasks are cloned from that one; existing tasks keep the generation that they came from. With --suspend no
    baseline is made: `project start` goes on where it was.
    """
    with working() as swarm:
        stopped = swarm.stop(project, kind=Kind.PROJECT, force=force, suspend=suspend)
        newest = swarm.show(project, kind=Kind.PROJECT).baselines[:1]
    generation = "".join(f"; new tasks come from generation {entry.generation}" for entry in newest)
    say(f"project {stopped.name} is {stopped.status}{generation}")


@click.command(cls=Command, example="agent-swarm project baseline web")
@click.argument("project", type=PROJECT)
def baseline(project: str) -> None:
    """Make the next baseline generation from the project as it is now, without stopping it."""
    with working() as swarm:
        made = swarm.baseline(project)
    say(f"new tasks of {project} come from generation {made.generation}")


@click.command(cls=Command, example="agent-swarm project delete web --yes")
@click.argument("project", type=PROJECT)
@click.option("--force", is_flag=True, help="Do it while sessions use the machine.")
@yes_option
def delete(project: str, force: bool, yes: bool) -> None:
    """Delete a project: its machine and its baselines. Refused while it has tasks."""
    with working() as swarm:
        found = swarm.find(project, kind=Kind.PROJECT)
        confirm(f"Delete project {found.name}, its machine and its baselines?", yes=yes)
        swarm.delete(found.name, kind=Kind.PROJECT, force=force)
    say(f"project {found.name} is deleted")
