"""The journal: every change of an environment is written down before it is done.

    begin ──► open ──► step, step, ... ──► done          the change was made
                 │                     ├─► failed        it was not, and says why; nothing is left half-way
                 │                     └─► rolled-back   its undoing was completed, here or by recovery
                 └─ the process died: the row stays open, and `recovery` ends it

A `Change` is used like this; leaving the block by an exception undoes what `undo` was told, the last
first, and ends the operation:

    with Change.begin(context, environment, OperationKind.STOP) as change:
        with change.step("stop machine"):
            ...
        change.done(lambda: registry.set_status(...))

The order never varies: intent committed, then the world is touched, then one transaction closes it.
"""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING

from agent_swarm.errors import SwarmError
from agent_swarm.events import Notice, StepDone, StepStarted
from agent_swarm.model import OperationState

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import TracebackType

    from agent_swarm.model import Environment, OperationId, OperationKind
    from agent_swarm.operations.context import Context


class Change:
    """One open operation. Made by `begin`, whose caller holds the environment's change lock."""

    def __init__(
        self,
        context: Context,
        environment: Environment,
        operation: OperationId,
        *,
        forward_only: bool = False,
    ) -> None:
        self.context = context
        self.environment = environment
        self.operation = operation
        self.undo = contextlib.ExitStack()
        """Callbacks that take back what was done to the world, run when the block is left by an exception."""
        self.at = ""
        """The last step that was begun."""
        self._undone: Callable[[], None] | None = None
        self._forward_only = forward_only
        self._ended = False

    @classmethod
    def begin(
        cls,
        context: Context,
        environment: Environment,
        kind: OperationKind,
        intent: Callable[[], None] = lambda: None,
        *,
        forward_only: bool = False,
    ) -> Change:
        """Commit the intent: the operation and what `intent` writes to the registry, in one transaction.

        A `forward_only` change is never undone: an exception leaves it open, for recovery to finish.
        """
        with context.registry.transaction():
            intent()
            operation = context.registry.begin(environment.id, kind)
        return cls(context, environment, operation, forward_only=forward_only)

    def __enter__(self) -> Change:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            assert self._ended, "a change was left without done() or failed()"
            return
        if self._ended or self._forward_only:
            return
        try:
            self.undo.close()
        except SwarmError as second:
            self.context.progress(
                Notice(
                    f"undoing the change of {self.environment.label} failed ({second.message}); "
                    "the next command, or `agent-swarm doctor`, tries again"
                )
            )
            return
        state = OperationState.FAILED if self._undone is None else OperationState.ROLLED_BACK
        with self.context.registry.transaction():
            if self._undone is not None:
                self._undone()
            self.context.registry.end(self.operation, state, error=str(error) or type(error).__name__)

    def when_undone(self, write: Callable[[], None]) -> None:
        """What the registry shall say once `undo` has run; committed together with the operation's end."""
        self._undone = write

    @contextlib.contextmanager
    def step(self, name: str, write: Callable[[], None] = lambda: None) -> Iterator[None]:
        """Journal that `name` begins, together with what `write` says to the registry, then do it. The name is
        shown to the user."""
        self.at = name
        with self.context.registry.transaction():
            write()
            self.context.registry.step(self.operation, name)
        self.context.progress(StepStarted(self.environment.name, name))
        started = time.monotonic()
        yield
        self.context.progress(StepDone(self.environment.name, name, time.monotonic() - started))

    def done(self, write: Callable[[], None]) -> None:
        """Close the operation together with what `write` says to the registry."""
        with self.context.registry.transaction():
            write()
            self.context.registry.end(self.operation, OperationState.DONE)
        self._ended = True

    def failed(self, error: SwarmError, write: Callable[[], None]) -> None:
        """Close it as failed, with a registry that tells how things stand; nothing is undone."""
        with self.context.registry.transaction():
            write()
            self.context.registry.end(self.operation, OperationState.FAILED, error=error.message)
        self._ended = True
