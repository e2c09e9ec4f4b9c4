"""A provider's method in a process of its own, which can be killed at every instant that matters.

What a crash leaves can only differ between two changes of the world: files made, renamed or removed,
programs started, signals sent. Python announces each as an audit event before it happens
(https://docs.python.org/3/library/audit_events.html), so counting events gives every instant, and the
n-th one can be hit again. Changes that other programs make count with the start of the program.
"""

from __future__ import annotations

import multiprocessing
import operator
import os
import signal
import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from multiprocessing.connection import Connection

    from agent_swarm.providers.base import Provider, ProviderContext

_CHANGES = frozenset(
    {
        "os.chmod",
        "os.exec",
        "os.kill",
        "os.link",
        "os.mkdir",
        "os.posix_spawn",
        "os.remove",
        "os.rename",
        "os.rmdir",
        "os.symlink",
        "os.truncate",
        "signal.pthread_kill",
        "socket.connect",
        "sqlite3.connect",
        "subprocess.Popen",
    }
)
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT


@dataclass(frozen=True, slots=True)
class Call:
    """One call of a provider's method; everything in it can be pickled."""

    create_provider: Callable[[ProviderContext], Provider]
    context: ProviderContext
    method: str
    """Its name, or a facet's with its method: "suspend.suspend"."""
    arguments: tuple[object, ...]
    named: Mapping[str, object] = field(default_factory=dict)


def run(call: Call) -> int:
    """Make the call in a new process, to its end; how many changes it made. Its error is raised here."""
    outcome = _run(call, die_before=None)
    if isinstance(outcome, Exception):
        raise outcome
    if outcome is None:
        message = f"{call.method} ended its process"
        raise RuntimeError(message)
    return outcome


def killed(call: Call, *, before: int) -> bool:
    """Make the call in a new process that gets SIGKILL before its `before`-th change, counted from 1.

    False where the call came to its end, well or with an error, and was not killed.
    """
    return _run(call, die_before=before) is None


def _run(call: Call, *, die_before: int | None) -> int | Exception | None:
    spawn = multiprocessing.get_context("spawn")
    ours, theirs = spawn.Pipe(duplex=False)
    process = spawn.Process(target=_child, args=(call, die_before, theirs))
    process.start()
    theirs.close()
    try:
        outcome: int | Exception | None = ours.recv()
    except EOFError:
        outcome = None
    finally:
        ours.close()
        process.join()
        process.close()
    return outcome


def _child(call: Call, die_before: int | None, result: Connection) -> None:
    sys.dont_write_bytecode = True  # an import is no change of the world
    provider = call.create_provider(call.context)
    changes = 0
    counting = True

    def count(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal changes
        if not counting or not _changes_the_world(event, arguments):
            return
        changes += 1
        if changes == die_before:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(count)
    outcome: int | Exception
    try:
        operator.attrgetter(call.method)(provider)(*call.arguments, **call.named)
    except Exception as error:  # noqa: BLE001 - raised again in the parent
        outcome = error
    else:
        outcome = changes
    counting = False
    result.send(outcome)


def _changes_the_world(event: str, arguments: tuple[Any, ...]) -> bool:
    if event == "open":
        flags = arguments[2]
        return isinstance(flags, int) and bool(flags & _WRITING)
    return event in _CHANGES
