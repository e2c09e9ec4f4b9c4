"""Shell completion: the script, and the names that are completed from the registry."""

from __future__ import annotations

import os

import click

from agent_swarm.cli.options import Command
from agent_swarm.errors import UsageError


@click.command(
    cls=Command,
    example=(
        'eval "$(agent-swarm completion bash)"     # in ~/.bashrc\n'
        'eval "$(agent-swarm completion zsh)"      # in ~/.zshrc\n'
        "agent-swarm completion fish > ~/.config/fish/completions/agent-swarm.fish"
    ),
)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the script that makes a shell complete commands, options, and names of tasks and projects."""
    from click.shell_completion import get_completion_class

    from agent_swarm.cli.app import COMPLETION_VARIABLE
    from agent_swarm.cli.table import PROGRAM, root

    kind = get_completion_class(shell)
    assert kind is not None
    try:
        script = kind(root(), {}, PROGRAM, COMPLETION_VARIABLE).source()
    except RuntimeError as error:  # click asks bash for its version
        message = f"no completion for {shell} here"
        raise UsageError(message, details=str(error)) from error
    click.echo(script)


def registered_names(kind: str) -> list[str]:
    """The names of all tasks or projects."""
    return _names("SELECT name FROM environments WHERE kind = ? ORDER BY name", kind)


def registered_checkpoints(task: str) -> list[str]:
    """The names of a task's checkpoints."""
    return _names(
        "SELECT c.name FROM checkpoints c JOIN environments e ON e.id = c.environment_id"
        " WHERE e.kind = 'task' AND e.name = ? AND c.ready = 1 ORDER BY c.name",
        task,
    )


def _names(query: str, value: str) -> list[str]:
    """What the registry answers; nothing where it cannot be read: a completion that fails must not write into the
    user's command line.

    Reads the file directly, and only reads: `Registry` would migrate it, and imports more than a key
    press may cost.
    """
    import sqlite3

    from agent_swarm.errors import SwarmError
    from agent_swarm.paths import Paths

    try:
        path = Paths.from_environment(os.environ).registry
        connection = sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True, timeout=0.2)
        try:
            return [str(row[0]) for row in connection.execute(query, (value,))]
        finally:
            connection.close()
    except (sqlite3.Error, OSError, SwarmError):
        return []
