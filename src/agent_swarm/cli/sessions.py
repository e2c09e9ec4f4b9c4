"""ssh, run, code and cp: what uses a running machine."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from agent_swarm.cli.options import PROJECT, TASK, Command, looking
from agent_swarm.model import Kind

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

HOME_FOLDER = "/home/worker"


class RunCommand(Command):
    """Options are ours only before the machine's name; what follows it belongs to the command, `-h` too."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, context_settings={"allow_interspersed_args": False}, **settings)

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        if any(ctx.params.values()):
            return []  # the guest's words: nothing here knows them
        return super().shell_complete(ctx, incomplete)


_command = click.argument(
    "command", nargs=-1, required=True, type=click.UNPROCESSED, metavar="[--] CMD [ARGS]..."
)
_folder = click.option(
    "--folder",
    default=HOME_FOLDER,
    show_default=True,
    metavar="PATH",
    help="The folder to open in the machine.",
)


@click.command(cls=Command, example="agent-swarm ssh fix-1")
@click.argument("task", type=TASK)
def task_ssh(task: str) -> int:
    """Open a shell in a task. Ends with the shell's exit code, 255 where the task cannot be reached.

    From outside, `ssh TASK.swarm` does the same once ~/.ssh/config includes ~/.agent-swarm/ssh/config.
    """
    return _shell(task, Kind.TASK)


@click.command(cls=Command, example="agent-swarm project ssh web")
@click.argument("project", type=PROJECT)
def project_ssh(project: str) -> int:
    """Open a shell in a project machine, to prepare what its tasks shall have."""
    return _shell(project, Kind.PROJECT)


@click.command(
    cls=RunCommand,
    example=(
        "agent-swarm run fix-1 make test\n"
        "agent-swarm run fix-1 -- sh -c 'cd project && git status | head'\n"
        "tar c src | agent-swarm run fix-1 tar x"
    ),
)
@click.argument("task", type=TASK)
@_command
def task_run(task: str, command: tuple[str, ...]) -> int:
    """Run a command in a task, on this terminal's streams.

    The words after the task's name (and after one `--` directly behind it) reach the command byte for byte; no
    shell reads them. stdin is forwarded, stdout and stderr stay apart, signals are passed on, and the exit
    code is the command's; 255 where the task cannot be reached.
    """
    return _run(task, command, Kind.TASK)


@click.command(cls=RunCommand, example="agent-swarm project run web -- sudo apt-get install -y redis-server")
@click.argument("project", type=PROJECT)
@_command
def project_run(project: str, command: tuple[str, ...]) -> int:
    """Run a command in a project machine, as `agent-swarm run` does in a task."""
    return _run(project, command, Kind.PROJECT)


@click.command(cls=Command, example="agent-swarm code fix-1 --folder /home/worker/project")
@click.argument("task", type=TASK)
@_folder
def task_code(task: str, folder: str) -> None:
    """Open the editor (the setting `editor`) on a task, over SSH."""
    with looking() as swarm:
        swarm.code(task, folder=folder)


@click.command(cls=Command, example="agent-swarm project code web")
@click.argument("project", type=PROJECT)
@_folder
def project_code(project: str, folder: str) -> None:
    """Open the editor (the setting `editor`) on a project machine, over SSH."""
    with looking() as swarm:
        swarm.code(project, kind=Kind.PROJECT, folder=folder)


@click.command(
    cls=Command,
    example=(
        "agent-swarm cp ./src fix-1:project/\n"
        "agent-swarm cp fix-1:project/report.html .\n"
        "agent-swarm cp fix-1:data.sql fix-2:"
    ),
)
@click.argument("source", metavar="SRC")
@click.argument("destination", metavar="DST")
def cp(source: str, destination: str) -> None:
    """Copy a file or directory to, from or between tasks, as `cp -r` would.

    A place in a task is TASK:PATH; a relative PATH starts in the home directory there. A local path
    with a colon starts with ./
    """
    with looking() as swarm:
        swarm.copy(source, destination)


def _shell(name: str, kind: Kind) -> int:
    with looking() as swarm:
        return swarm.shell(name, kind=kind)


def _run(name: str, command: tuple[str, ...], kind: Kind) -> int:
    words = command[1:] if command[0] == "--" else command
    with looking() as swarm:
        return swarm.run(name, words, kind=kind)
