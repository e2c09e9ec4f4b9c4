"""What commands share: options, parameter types, the opened Swarm, questions."""

from __future__ import annotations

import contextlib
import re
import sys
from typing import TYPE_CHECKING, Any, TypeVar

import click

from agent_swarm.cli.progress import Display, Notices
from agent_swarm.cli.render import shown
from agent_swarm.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from click.shell_completion import CompletionItem

    from agent_swarm.operations.requests import ResourceRequest
    from agent_swarm.swarm import Swarm

    TextType = click.ParamType[str]
    NumberType = click.ParamType[int]
else:
    TextType = NumberType = click.ParamType  # not generic before click 8.2

MIB_OF: Mapping[str, int] = {"M": 1, "G": 1024, "T": 1024 * 1024}

Decorated = TypeVar("Decorated", bound="Callable[..., Any]")


class Command(click.Command):
    """A command whose docstring is its help and whose `example` ends it."""

    def __init__(self, *args: Any, example: str, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.example = example

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        lines = self.example.splitlines()
        with formatter.section("Examples" if len(lines) > 1 else "Example"):
            for line in lines:
                formatter.write(f"{'':>{formatter.current_indent}}{line}\n")


class Name(TextType):
    """The name of a task or project; completed from the registry."""

    def __init__(self, kind: str) -> None:
        self.name = kind
        self._kind = kind

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        from click.shell_completion import CompletionItem

        from agent_swarm.cli.completion import registered_names

        given = ctx.params.get(param.name or "") or ()
        return [
            CompletionItem(name)
            for name in registered_names(self._kind)
            if name.startswith(incomplete) and name not in given
        ]


class CheckpointName(TextType):
    """The name of a checkpoint of the task that stands before it; completed from the registry."""

    name = "checkpoint"

    def shell_complete(
        self,
        ctx: click.Context,
        param: click.Parameter,  # noqa: ARG002
        incomplete: str,
    ) -> list[CompletionItem]:
        from click.shell_completion import CompletionItem

        from agent_swarm.cli.completion import registered_checkpoints

        found = registered_checkpoints(ctx.params.get("task") or "")
        return [CompletionItem(name) for name in found if name.startswith(incomplete)]


TASK = Name("task")
PROJECT = Name("project")
CHECKPOINT = CheckpointName()


class Amount(NumberType):
    """A size: a whole number of `unit`, or a number with a suffix ("4G", "1.5T"). Converts to `unit`s."""

    def __init__(self, unit: str, *, least: int, most: int) -> None:
        self.name = "size"
        self._unit = unit
        self._least = least
        self._most = most

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        found = re.fullmatch(
            r"([0-9]{1,9}(?:\.[0-9]{1,3})?)\s*(?:([MGT])(?:i?B)?)?", str(value).strip(), re.IGNORECASE
        )
        if found is None:
            self.fail(f"{value!r} is no size: write 4096, 4G or 512M", param, ctx)
        factor = MIB_OF[(found[2] or self._unit).upper()] / MIB_OF[self._unit]
        amount = float(found[1]) * factor
        if amount != int(amount) or not self._least <= amount <= self._most:
            self.fail(
                f"{value!r} is not a whole number of {self._unit}iB from {self._least} to {self._most}",
                param,
                ctx,
            )
        return int(amount)


def resources(decorated: Decorated) -> Decorated:
    """--cpus, --memory, --disk and --force."""
    for option in (
        click.option("--force", is_flag=True, help="Go on where the host's memory or disk would not do."),
        click.option(
            "--disk",
            "disk_gib",
            type=Amount("G", least=1, most=65_536),
            metavar="SIZE",
            help="Disk in GiB, or with a suffix: 20, 20G. Only what is written takes space.",
        ),
        click.option(
            "--memory",
            "memory_mib",
            type=Amount("M", least=256, most=4_194_304),
            metavar="SIZE",
            help="Memory in MiB, or with a suffix: 4096, 4G, 512M.",
        ),
        click.option("--cpus", type=click.IntRange(1, 512), metavar="N", help="Virtual CPUs."),
    ):
        decorated = option(decorated)
    return decorated


def request(cpus: int | None, memory_mib: int | None, disk_gib: int | None) -> ResourceRequest:
    from agent_swarm.operations.requests import ResourceRequest

    return ResourceRequest(cpus=cpus, memory_mib=memory_mib, disk_gib=disk_gib)


json_option = click.option(
    "--json", "as_json", is_flag=True, help="Print JSON (docs/json.md) instead of a table."
)
cold_option = click.option(
    "--cold", is_flag=True, help="Boot, also where saved memory is there to go on from."
)
suspend_option = click.option(
    "--suspend", is_flag=True, help="Save its memory, and go on from there at the next start."
)
yes_option = click.option("-y", "--yes", is_flag=True, help="Do it without asking.")
parallel_option = click.option(
    "--parallel",
    type=click.IntRange(1, 256),
    metavar="N",
    help="Machines to work on at the same time; default: the setting limits.parallel.",
)


@contextlib.contextmanager
def working() -> Iterator[Swarm]:
    """A Swarm whose progress is drawn for as long as the block lasts. Print results after it."""
    verbose = is_verbose()
    with Display(live=False if verbose else None) as display, _opened(display, verbose=verbose) as swarm:
        yield swarm


@contextlib.contextmanager
def looking() -> Iterator[Swarm]:
    """A Swarm for commands that show something, or hand the terminal to a session."""
    with _opened(Notices(), verbose=is_verbose()) as swarm:
        yield swarm


@contextlib.contextmanager
def _opened(progress: Display | Notices, *, verbose: bool) -> Iterator[Swarm]:
    from agent_swarm.cli import logs
    from agent_swarm.paths import Paths
    from agent_swarm.swarm import Swarm

    paths = Paths.from_environment()
    logs.configure(paths, verbose=verbose)
    with Swarm(paths=paths, progress=progress) as swarm:
        yield swarm


def is_verbose() -> bool:
    return bool((click.get_current_context().find_root().obj or {}).get("verbose"))


def confirm(question: str, *, yes: bool) -> None:
    """Return where the user agrees. Off a terminal nobody can be asked: UsageError without --yes.

    Raises click.exceptions.Exit(1) for a no.
    """
    if yes:
        return
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        message = "this needs a confirmation, and there is no terminal to ask on"
        raise UsageError(message, details=question, hint="Add --yes to do it without asking.")
    if not click.confirm(shown(question), default=False, err=True):
        say("nothing was changed")
        raise click.exceptions.Exit(1)


def say(message: str) -> None:
    """A message for the user, on stderr."""
    click.echo(shown(message), err=True)


def simulated_note(provider: str) -> str:
    """What stands below every listing of machines that are not real ones."""
    return f"machines of the provider {provider} are simulated: they isolate nothing"
