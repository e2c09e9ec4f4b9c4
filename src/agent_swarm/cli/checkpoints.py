"""checkpoint, checkpoint delete, checkpoints, restore, fork."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from agent_swarm.cli import render, shapes
from agent_swarm.cli.bulk import report
from agent_swarm.cli.options import (
    CHECKPOINT,
    TASK,
    Command,
    confirm,
    json_option,
    looking,
    parallel_option,
    say,
    working,
    yes_option,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from agent_swarm.operations.checkpoint import ListedCheckpoint

_COLUMNS = (
    render.Column("CHECKPOINT", least=24),
    render.Column("AGE", rank=1, right=True),
    render.Column("HOLDS"),
    render.Column("SIZE", rank=2, right=True),
    render.Column("NOTE", rank=3),
)


@click.command(
    cls=Command,
    example="agent-swarm checkpoint fix-1\nagent-swarm checkpoint fix-1 before-refactoring",
)
@click.argument("task", type=TASK)
@click.argument("name", required=False)
@click.option("--disk-only", is_flag=True, help="Leave the memory out: smaller, and restoring it boots.")
def checkpoint(task: str, name: str | None, disk_only: bool) -> None:
    """Save a task as it is now, its running processes included, without stopping it.

    NAME is the time unless given. `checkpoints` lists them, `restore` goes back to one, `fork` makes new tasks
    from one, `checkpoint delete` removes one. What runs in a task is in the saved memory, secrets too.
    """
    with working() as swarm:
        made = swarm.checkpoint(task, name, disk_only=disk_only)
    say(f"checkpoint {made.name} of task {task} holds {_holds(memory=made.memory)}")


@click.command(cls=Command, example="agent-swarm checkpoint delete fix-1 before-refactoring --yes")
@click.argument("task", type=TASK)
@click.argument("name", type=CHECKPOINT)
@yes_option
def delete(task: str, name: str, yes: bool) -> None:
    """Delete one checkpoint of a task. The task, its other checkpoints and forks are not harmed."""
    with working() as swarm:
        found = swarm.find(task)
        confirm(f"Delete checkpoint {name} of task {found.name}?", yes=yes)
        swarm.delete_checkpoint(found.name, name)
    say(f"checkpoint {name} of task {found.name} is deleted")


@click.command(cls=Command, example="agent-swarm checkpoints fix-1")
@click.argument("task", type=TASK)
@json_option
def checkpoints(task: str, as_json: bool) -> None:
    """List a task's checkpoints as a tree: each stands below the one that the task descended from when it was made.

    The current one is where the task's present state comes from. Those that `restore` and `fork` made by
    themselves are automatic: they are removed after checkpoints.keep_automatic_h.
    """
    with looking() as swarm:
        found = swarm.checkpoints(task)
    if as_json:
        shapes.write({"checkpoints": [shapes.checkpoint(entry) for entry in found]})
        return
    if not found:
        say(f"task {task} has no checkpoints; `agent-swarm checkpoint {task}` makes one")
        return
    rows = [
        (
            branch + entry.checkpoint.name,
            render.age(entry.checkpoint.created_at),
            _holds(memory=entry.checkpoint.memory),
            render.size(entry.size.disk_bytes + entry.size.memory_bytes),
            ", ".join(_notes(entry)),
        )
        for branch, entry in _tree(found)
    ]
    click.echo("\n".join(render.table(_COLUMNS, rows)))


@click.command(
    cls=Command,
    example="agent-swarm restore fix-1\nagent-swarm restore fix-1 before-refactoring",
)
@click.argument("task", type=TASK)
@click.argument("name", type=CHECKPOINT, required=False)
@click.option(
    "--force",
    is_flag=True,
    help="Do it while sessions use the task, and where the host's memory would not do.",
)
@click.option("--cold", is_flag=True, help="Restore the disk alone, and boot from it.")
def restore(task: str, name: str | None, force: bool, cold: bool) -> None:
    """Put a task back to a checkpoint, by default the newest that is not automatic.

    From one with memory it goes on where it was; from a disk it boots, if it ran. Its present state becomes
    an automatic checkpoint first, so that a restore can be taken back (setting checkpoints.automatic).
    """
    with working() as swarm:
        restored = swarm.restore(task, name, force=force, cold=cold)
        at = swarm.checkpoint_names().get(restored.checkpoint_id) if restored.checkpoint_id else None
    say(f"task {restored.name} is {restored.status}, as at checkpoint {at}")


@click.command(
    cls=Command,
    example=(
        "agent-swarm fork fix-1 try-1 try-2\n"
        "agent-swarm fork fix-1@before-refactoring other-way --keep-secrets"
    ),
)
@click.argument("source", type=TASK, metavar="TASK[@CHECKPOINT]")
@click.argument("new", nargs=-1, required=True)
@click.option(
    "--keep-secrets", is_flag=True, help="Let processes that were given secrets live on in the new tasks."
)
@click.option("--force", is_flag=True, help="Go on where the host's memory or disk would not do.")
@parallel_option
@json_option
def fork(
    source: str,
    new: tuple[str, ...],
    keep_secrets: bool,
    force: bool,
    parallel: int | None,
    as_json: bool,
) -> int:
    """Make new tasks from a task as it is now, its running processes included, or from one of its checkpoints.

    Each gets an identity of its own; the source goes on. From a stopped task, or a checkpoint without memory,
    they boot. Results and exit codes are those of `bulk create`.
    """
    with working() as swarm:
        results = swarm.fork(source, new, keep_secrets=keep_secrets, force=force, parallel=parallel)
    return report(results, "created", as_json=as_json)


def _holds(*, memory: bool) -> str:
    return "disk and memory" if memory else "disk"


def _notes(entry: ListedCheckpoint) -> Iterator[str]:
    if entry.current:
        yield "current"
    if entry.checkpoint.automatic:
        yield "automatic"


def _tree(
    found: Sequence[ListedCheckpoint], parent: str = "", indent: str | None = None
) -> Iterator[tuple[str, ListedCheckpoint]]:
    """Each with the branch that leads to it, in the order of drawing."""
    children = [entry for entry in found if entry.parent == parent]
    for entry in children:
        last = entry is children[-1]
        branch = "" if indent is None else indent + ("└─ " if last else "├─ ")
        below = "" if indent is None else indent + ("   " if last else "│  ")
        yield branch, entry
        yield from _tree(found, entry.checkpoint.name, below)
