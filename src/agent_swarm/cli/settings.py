"""config get, set, list, path."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from agent_swarm import config
from agent_swarm.cli import render, shapes
from agent_swarm.cli.options import Command, TextType, json_option, say
from agent_swarm.paths import Paths

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

_COLUMNS = (
    render.Column("SETTING"),
    render.Column("VALUE", least=12),
    render.Column("DEFAULT", rank=1, least=12),
)


class Key(TextType):
    """A setting's dotted path."""

    name = "key"

    def shell_complete(
        self,
        ctx: click.Context,  # noqa: ARG002
        param: click.Parameter,  # noqa: ARG002
        incomplete: str,
    ) -> list[CompletionItem]:
        from click.shell_completion import CompletionItem

        return [
            CompletionItem(key, help=text) for key, text in config.settings() if key.startswith(incomplete)
        ]


@click.command(cls=Command, example="agent-swarm config get resources.memory_mib")
@click.argument("key", type=Key())
def get(key: str) -> None:
    """Print the value of one setting, its default where it is not set."""
    click.echo(_text(config.get(config.load(Paths.from_environment()), key)))


@click.command(
    "set",
    cls=Command,
    example="agent-swarm config set resources.cpus 4\nagent-swarm config set editor codium",
)
@click.argument("key", type=Key())
@click.argument("value")
def set_value(key: str, value: str) -> None:
    """Change one setting in config.json. Nothing is written unless the whole file is valid afterwards."""
    paths = Paths.from_environment()
    paths.prepare()
    config.set_value(paths, key, value)
    say(f"{key} is {_text(config.get(config.load(paths), key))}")


@click.command("list", cls=Command, example="agent-swarm config list")
@json_option
def list_all(as_json: bool) -> None:
    """List every setting with its value and its default. docs/config.md says what each one does."""
    current, default = config.load(Paths.from_environment()), config.Config()
    if as_json:
        shapes.write(
            {
                "settings": [
                    {
                        "key": key,
                        "value": config.get(current, key),
                        "default": config.get(default, key),
                        "description": text,
                    }
                    for key, text in config.settings()
                ]
            }
        )
        return
    rows = [
        (key, _text(config.get(current, key)), _text(config.get(default, key)))
        for key, _ in config.settings()
    ]
    click.echo("\n".join(render.table(_COLUMNS, rows)))


@click.command(cls=Command, example='"$EDITOR" "$(agent-swarm config path)"')
def path() -> None:
    """Print the name of the settings file. It need not exist: every setting has a default."""
    click.echo(render.shown(str(Paths.from_environment().config)))


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    return f"{value:g}" if isinstance(value, float) else json.dumps(value)
