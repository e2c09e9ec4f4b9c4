"""Every command's name, one-line help and place; none is imported before it runs or its own help is shown.

`agent-swarm --help` and completion read this page alone, which keeps them fast (docs/performance.md).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from importlib import import_module
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from click.shell_completion import CompletionItem

PROGRAM = "agent-swarm"


@dataclass(frozen=True, slots=True)
class Entry:
    """One command: a click command "module:attribute" below `agent_swarm.cli`, or a group of `commands`. One with
    both is the command, unless its first word is one of the group's."""

    section: str
    help: str
    target: str = ""
    commands: Mapping[str, Entry] = field(default_factory=dict)


def _group(section: str, help_text: str, commands: Mapping[str, tuple[str, str]], target: str = "") -> Entry:
    return Entry(
        section,
        help_text,
        target,
        commands={name: Entry("Commands", text, target) for name, (text, target) in commands.items()},
    )


SECTIONS = ("Start here", "Projects", "Tasks", "Checkpoints", "Sessions", "Images", "Maintenance")

COMMANDS: Mapping[str, Entry] = {
    "quickstart": Entry(
        "Start here", "Make an image, a project and two tasks, and run a command in each.", "tour:quickstart"
    ),
    "project": _group(
        "Projects",
        "Prepare the machines that tasks are cloned from.",
        {
            "create": ("Make a project machine from a base image.", "projects:create"),
            "list": ("List projects.", "listings:project_list"),
            "show": ("Show everything about a project.", "listings:project_show"),
            "ssh": ("Open a shell in a project machine.", "sessions:project_ssh"),
            "run": ("Run a command in a project machine.", "sessions:project_run"),
            "code": ("Open the editor on a project machine.", "sessions:project_code"),
            "start": ("Start a project machine.", "projects:start"),
            "stop": ("Stop a project machine and make its next baseline.", "projects:stop"),
            "baseline": ("Make the next baseline without stopping.", "projects:baseline"),
            "delete": ("Delete a project that has no tasks.", "projects:delete"),
        },
    ),
    "create": Entry("Tasks", "Make a task: a machine cloned from a project.", "tasks:create"),
    "list": Entry("Tasks", "List tasks.", "listings:task_list"),
    "show": Entry("Tasks", "Show everything about a task.", "listings:task_show"),
    "start": Entry("Tasks", "Start a stopped task.", "tasks:start"),
    "stop": Entry("Tasks", "Stop a task; its disk is kept.", "tasks:stop"),
    "delete": Entry("Tasks", "Delete a task and its disk.", "tasks:delete"),
    "bulk": _group(
        "Tasks",
        "Create or delete many tasks side by side.",
        {
            "create": ("Make several tasks of one project.", "bulk:create"),
            "delete": ("Delete several tasks, or all of a project.", "bulk:delete"),
        },
    ),
    "checkpoint": _group(
        "Checkpoints",
        "Save a task as it is now, or delete what was saved.",
        {"delete": ("Delete a checkpoint.", "checkpoints:delete")},
        "checkpoints:checkpoint",
    ),
    "checkpoints": Entry("Checkpoints", "List a task's checkpoints as a tree.", "checkpoints:checkpoints"),
    "restore": Entry("Checkpoints", "Put a task back to a checkpoint.", "checkpoints:restore"),
    "fork": Entry("Checkpoints", "Make new tasks from a task as it is now.", "checkpoints:fork"),
    "ssh": Entry("Sessions", "Open a shell in a task.", "sessions:task_ssh"),
    "run": Entry("Sessions", "Run a command in a task.", "sessions:task_run"),
    "code": Entry("Sessions", "Open the editor on a task.", "sessions:task_code"),
    "cp": Entry("Sessions", "Copy files to, from or between tasks.", "sessions:cp"),
    "verify": Entry("Tasks", "Show that a task is a machine of its own.", "verification:verify"),
    "logs": Entry("Sessions", "Show a machine's console or set-up log.", "machine_logs:logs"),
    "init-base": Entry("Images", "Download, build or convert a base image.", "images:init_base"),
    "image": _group("Images", "Look at base images.", {"list": ("List base images.", "images:image_list")}),
    "status": Entry("Maintenance", "Show what machines use, and what the host has left.", "house:status"),
    "providers": Entry("Maintenance", "Show back ends, and what they lack here.", "house:providers"),
    "doctor": Entry("Maintenance", "Look for what is wrong.", "house:doctor"),
    "gc": Entry("Maintenance", "Remove what nothing refers to.", "house:gc"),
    "config": _group(
        "Maintenance",
        "Read and change settings.",
        {
            "get": ("Print one setting.", "settings:get"),
            "set": ("Change one setting.", "settings:set_value"),
            "list": ("List all settings.", "settings:list_all"),
            "path": ("Print the name of the settings file.", "settings:path"),
        },
    ),
    "completion": Entry("Maintenance", "Print a shell's completion script.", "completion:completion"),
}


class LazyGroup(click.Group):
    """A group whose commands are imported when they are used."""

    def __init__(self, name: str, entries: Mapping[str, Entry], **settings: Any) -> None:
        super().__init__(name=name, **settings)
        self.entries = entries

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        return list(self.entries)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        entry = self.entries.get(cmd_name)
        return None if entry is None else command(cmd_name, entry)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        # a bare group is a question: its help, on stdout
        return super().parse_args(ctx, args if args or ctx.resilient_parsing else ["--help"])

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args[0] not in self.entries and not ctx.resilient_parsing:
            raise NoSuchCommandError(args[0], ctx, self.entries)
        entry = self.entries.get(args[0])
        if entry is not None and entry.target and not (args[1:] and args[1] in entry.commands):
            return args[0], _leaf(entry), args[1:]
        return super().resolve_command(ctx, args)

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        from click.shell_completion import CompletionItem

        found = [
            CompletionItem(name, help=entry.help)
            for name, entry in self.entries.items()
            if name.startswith(incomplete)
        ]
        return found + click.Command.shell_complete(self, ctx, incomplete)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        sections = list(dict.fromkeys(entry.section for entry in self.entries.values()))
        for section in sections:
            with formatter.section(section):
                formatter.write_dl(
                    [(name, entry.help) for name, entry in self.entries.items() if entry.section == section]
                )


class NoSuchCommandError(click.UsageError):
    """`possibilities` are the nearest names, the best first."""

    def __init__(self, name: str, ctx: click.Context, entries: Mapping[str, Entry]) -> None:
        super().__init__(f"{ctx.command_path} has no command {name!r}", ctx)
        from difflib import get_close_matches

        self.possibilities = get_close_matches(name, entries)


def command(name: str, entry: Entry) -> click.Command:
    """The click command of an entry; imports its module, where it is no group."""
    if entry.commands:
        return LazyGroup(name, entry.commands, help=entry.help)
    return _leaf(entry)


def _leaf(entry: Entry) -> click.Command:
    module, _, attribute = entry.target.partition(":")
    found: click.Command = getattr(import_module(f"agent_swarm.cli.{module}"), attribute)
    return found


def every_command(
    entries: Mapping[str, Entry] = COMMANDS, prefix: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], Entry]]:
    """The words of every command that is no mere group ("project", "create"), in the order of the help."""
    for name, entry in entries.items():
        if entry.target:
            yield (*prefix, name), replace(entry, commands={})
        yield from every_command(entry.commands, (*prefix, name))


def root() -> LazyGroup:
    """The program."""
    ordered = {
        name: entry for section in SECTIONS for name, entry in COMMANDS.items() if entry.section == section
    }
    return LazyGroup(
        PROGRAM,
        ordered,
        help=(
            "A full Linux machine of its own for every coding agent's task.\n\n"
            "Prepare a project machine once, clone it for every task, and work in the clones side by side."
        ),
        epilog="Files live in ~/.agent-swarm, or in AGENT_SWARM_HOME.",
        params=[
            click.Option(["-v", "--verbose"], is_flag=True, help="Show the debug log on stderr."),
            click.Option(
                ["--version"],
                is_flag=True,
                is_eager=True,
                expose_value=False,
                callback=_show_version,
                help="Show the version and exit.",
            ),
        ],
        callback=_remember,
        context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    )


def _remember(verbose: bool) -> None:
    click.get_current_context().obj = {"verbose": verbose}


def _show_version(ctx: click.Context, _parameter: click.Parameter, wanted: bool) -> None:
    if wanted and not ctx.resilient_parsing:
        from agent_swarm import __version__

        click.echo(f"{PROGRAM} {__version__}")
        ctx.exit()
