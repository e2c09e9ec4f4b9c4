"""Commands, shells, editors and copies: what uses a running machine without changing its record."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from typing import TYPE_CHECKING

from agent_swarm.errors import (
    ConflictError,
    ProviderUnavailableError,
    SwarmError,
    UnreachableError,
    UsageError,
)
from agent_swarm.guest import connection, copy, session, ssh_config
from agent_swarm.model import Kind, LocalEndpoint, MachineState, SshEndpoint, Status
from agent_swarm.operations import observe

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from agent_swarm.guest.target import Target
    from agent_swarm.model import Environment
    from agent_swarm.operations.context import Context

CONNECT_TIMEOUT_S = 30.0


@dataclass(frozen=True, slots=True)
class CapturedRun:
    """What a command in a machine wrote, and how it ended."""

    exit_code: int
    stdout: bytes
    stderr: bytes


def run(context: Context, kind: Kind, name: str, argv: Sequence[str]) -> int:
    """Run a command in the machine on our own stdin, stdout and stderr; return its exit code.

    The words of `argv` arrive byte for byte; nothing is interpreted by a shell. Signals that we get are
    passed on to the command. Raises UnreachableError where the machine cannot be reached.
    """
    if not argv:
        message = "there is no command to run"
        raise UsageError(message, hint=f"For example: agent-swarm run {name} -- uname -a")
    with opened(context, kind, name) as target:
        return session.run(context.paths, context.config, target, argv)


def run_captured(
    context: Context, kind: Kind, name: str, argv: Sequence[str], *, stdin: bytes = b""
) -> CapturedRun:
    """Run a command in the machine and return what it wrote, apart, and its exit code."""
    with opened(context, kind, name) as target, contextlib.ExitStack() as stack:
        given, stdout, stderr = (stack.enter_context(tempfile.TemporaryFile()) for _ in range(3))
        given.write(stdin)
        given.seek(0)
        exit_code = session.run(
            context.paths,
            context.config,
            target,
            argv,
            stdin=given.fileno(),
            stdout=stdout.fileno(),
            stderr=stderr.fileno(),
            tty=False,
        )
        stdout.seek(0)
        stderr.seek(0)
        return CapturedRun(exit_code, stdout.read(), stderr.read())


def shell(context: Context, kind: Kind, name: str) -> int:
    """An interactive shell in the machine; returns its exit code when the user leaves it."""
    with opened(context, kind, name) as target:
        return session.shell(context.paths, target)


def code(context: Context, kind: Kind, name: str, *, folder: str) -> None:
    """Open the configured editor on a folder of the machine, through ssh/config.

    Raises ProviderUnavailableError where the editor is not installed, ConflictError where the user's own
    SSH config does not include ours: the editor reads that one.
    """
    editor = context.config.editor
    program = shutil.which(editor)
    if program is None:
        message = f"the editor {editor!r} is not installed"
        raise ProviderUnavailableError(
            message, hint="Install it, or choose another with `agent-swarm config set editor NAME`."
        )
    with opened(context, kind, name) as target:
        if isinstance(target.endpoint, LocalEndpoint):
            message = f"{target.label} is simulated: there is no SSH server to open an editor on"
            raise ConflictError(message)
        include = f"Include {context.paths.ssh_config}"
        if not ssh_config.included_by_user(context.paths):
            message = f"your SSH config does not know {target.host_alias}"
            raise ConflictError(message, hint=f"Put this line at the top of ~/.ssh/config: {include}")
        finished = subprocess.run(
            [program, "--remote", f"ssh-remote+{target.host_alias}", folder],
            stdin=subprocess.DEVNULL,
            check=False,
        )
    if finished.returncode != 0:
        message = f"{editor} ended with exit code {finished.returncode}"
        raise SwarmError(message)


def copy_files(context: Context, source: str, destination: str) -> None:
    """Copy a file or directory; each place is a local path, or NAME:PATH in a running task.

    Follows `cp -r`: into a directory that exists, else to that name. Times and modes are kept.
    """
    addresses = [copy.parse_place(text) for text in (source, destination)]
    if not any(address.machine for address in addresses):
        message = "neither place is in a machine"
        raise UsageError(
            message, hint="Write NAME:PATH for a place in a task; a local path with a colon starts with ./"
        )
    with contextlib.ExitStack() as stack:
        targets = {
            address.machine: stack.enter_context(opened(context, *_named(context, address.machine)))
            for address in addresses
            if address.machine is not None
        }
        here, there = (
            copy.Place(targets[address.machine] if address.machine is not None else None, address.path)
            for address in addresses
        )
        copy.copy(context.paths, context.config, here, there)


def _named(context: Context, name: str) -> tuple[Kind, str]:
    """A task of that name, else a project of it."""
    kinds = {found.kind for found in context.registry.environments() if found.name == name}
    return (Kind.PROJECT if kinds == {Kind.PROJECT} else Kind.TASK), name


@contextlib.contextmanager
def opened(context: Context, kind: Kind, name: str) -> Iterator[Target]:
    """A machine that answers, kept from being stopped for as long as the block lasts.

    Raises ConflictError where it does not run, UnreachableError where it runs and does not answer.
    """
    environment = context.registry.environment(kind, name)
    with context.using(environment):
        target = context.target(environment)
        if isinstance(target.endpoint, SshEndpoint):
            _connect(context, environment, target)
        elif observe.inspect(context, environment).state is not MachineState.RUNNING:
            _explain(context, environment)
        yield target


def _connect(context: Context, environment: Environment, target: Target) -> None:
    if connection.is_open(context.paths, target):
        return
    try:
        connection.open_shared(
            context.paths,
            context.config,
            target,
            timeout_s=CONNECT_TIMEOUT_S,
            alive=lambda: observe.inspect(context, environment).state is MachineState.RUNNING,
        )
    except UnreachableError:
        _explain(context, environment)
        raise


def _explain(context: Context, environment: Environment) -> None:
    """Raise ConflictError where the machine does not run at all; else return."""
    seen = observe.observe(context, [environment])[0]
    if seen.status is not Status.RUNNING and seen.status is not Status.FAILED:
        message = f"{seen.label} is {seen.status}"
        prefix = "project " if seen.kind is Kind.PROJECT else ""
        hint = (
            f"Start it with `agent-swarm {prefix}start {seen.name}`."
            if seen.status in {Status.STOPPED, Status.SUSPENDED}
            else ""
        )
        raise ConflictError(message, details=seen.reason, hint=hint)
