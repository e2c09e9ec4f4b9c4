"""docs/commands.md, docs/config.md and docs/config.schema.json, made from the code that they describe.

    python -m agent_swarm.cli.reference docs

A test compares them, so that no command, option or setting is undocumented or documented in vain.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from agent_swarm import config
from agent_swarm.cli.options import Command
from agent_swarm.cli.table import PROGRAM, SECTIONS, Entry, command, every_command, root

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_GENERATED = "<!-- Made by `python -m agent_swarm.cli.reference docs`; a test keeps it current. -->"

_COMMANDS_INTRO = """\
Every command explains itself: `agent-swarm COMMAND --help`. Messages and progress go to stderr, data to
stdout; listings have `--json` ([json.md](json.md)). `-v`/`--verbose` and `--version` stand before the command.

Deleting commands ask on a terminal; off one they need `--yes`.

| exit code | meaning |
|---|---|
| 0 | it went well |
| 1 | something failed; also a "no" to a question, and problems that `doctor` found |
| 2 | the request is wrong: a name, an option, a setting |
| 3 | there is no such task, project or image |
| 4 | it exists already, its state does not allow this, or another command holds it |
| 5 | the back end cannot be used; `agent-swarm providers` says what is missing |
| 6 | the host cannot carry it; `--force` overrides |
| 130 | interrupted by Ctrl-C; 129 and 143: by the terminal's end, by SIGTERM |
| 141 | the reader of stdout went away |
| any | `run` and `ssh` end with the code of what they ran: 128 + n after signal n, 255 where the machine could not be reached |

Names of projects and tasks are 1 to 63 letters, digits, `.`, `_` or `-`, start with a letter or digit,
do not end in `.` or `.lock`, and do not contain `..`. A project and a task may have the same name.
"""

_CONFIG_INTRO = """\
`~/.agent-swarm/config.json` holds what differs from the defaults; it may be missing. Every key is checked: an
unknown or ill-typed one is an error that names it and the nearest valid one. Its JSON Schema is
[config.schema.json](config.schema.json).

    agent-swarm config set resources.memory_mib 8192
    agent-swarm config list

writes

    {"resources": {"memory_mib": 8192}}

Flags go before settings, settings before defaults.
"""

_ENVIRONMENT = """\
## Environment variables

| variable | what it does |
|---|---|
| `AGENT_SWARM_HOME` | The state directory, instead of `~/.agent-swarm`. |
| `AGENT_SWARM_PROVIDER` | The back end for new projects; goes before the setting `provider`. |
| `AGENT_SWARM_ACCEL` | What runs guest code; goes before the setting `qemu.accelerator`. |
| `NO_COLOR` | No colours. |
| `COLUMNS` | The width that tables are fitted to on a terminal. |
"""


def commands_page() -> str:
    """docs/commands.md."""
    return "\n".join([_GENERATED, "# Commands", "", _COMMANDS_INTRO, *_sections()])


def config_page() -> str:
    """docs/config.md."""
    defaults = config.Config()
    rows = [f"| `{key}` | {_default(defaults, key)} | {text} |" for key, text in config.settings()]
    table = "\n".join(["| setting | default | what it does |", "|---|---|---|", *rows, ""])
    return "\n".join(
        [_GENERATED, "# Settings", "", _CONFIG_INTRO, "## All settings", "", table, _ENVIRONMENT]
    )


def pages() -> dict[str, bytes]:
    """Every generated page's content by its name in docs/."""
    return {
        "commands.md": commands_page().encode(),
        "config.md": config_page().encode(),
        "config.schema.json": config.json_schema(),
    }


def _sections() -> Iterator[str]:
    program = click.Context(root(), info_name=PROGRAM)
    for section in SECTIONS:
        yield f"## {section}\n"
        for name, entry in root().entries.items():
            if entry.section == section:
                for words, found in every_command({name: entry}):
                    yield from _command(program, words, found)


def _command(program: click.Context, words: Sequence[str], entry: Entry) -> Iterator[str]:
    found = command(words[-1], entry)
    assert isinstance(found, Command)
    context = click.Context(found, info_name=" ".join(words), parent=program)
    usage = " ".join([PROGRAM, *words, *found.collect_usage_pieces(context)])
    yield f"### {PROGRAM} {' '.join(words)}\n"
    yield f"    {usage}\n"
    for paragraph in (found.help or "").split("\n\n"):
        yield " ".join(paragraph.split()) + "\n"
    rows = []
    for parameter in found.params:
        record = parameter.get_help_record(context) if isinstance(parameter, click.Option) else None
        if record is not None:
            rows.append(f"| `{record[0]}` | {record[1]} |")
    if rows:
        yield "\n".join(["| option | |", "|---|---|", *rows, ""])
    yield from (f"    {line}" for line in found.example.splitlines())
    yield ""


def _default(defaults: config.Config, key: str) -> str:
    value = config.get(defaults, key)
    if value == "":
        return "empty"
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def write_to(folder: Path) -> None:
    """Bring the pages in `folder` up to date."""
    for name, content in pages().items():
        (folder / name).write_bytes(content)


if __name__ == "__main__":
    write_to(Path(sys.argv[1]))
