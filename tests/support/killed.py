"""Run one method of the facade and die by SIGKILL at its N-th commit to the registry.

    python -m tests.support.killed before|after N METHOD [ARGUMENT...]

"after" dies when the N-th commit is on disk and nothing has followed; "before" dies when all that leads
to it was done in the world, and the commit was not. Ends with 0 when there was no N-th commit.
A last argument that looks like a JSON object has the keyword arguments; a JSON array is a list.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys

from agent_swarm.model import Kind
from agent_swarm.registry import Registry
from agent_swarm.swarm import Swarm


def arm(when: str, number: int) -> None:
    """Make this process die at its `number`-th commit."""
    count = 0
    plain_write, plain_transaction = Registry._write, Registry.transaction

    def point(moment: str) -> None:
        nonlocal count
        count += moment == when
        if moment == when and count == number:
            os.kill(os.getpid(), signal.SIGKILL)

    def write(self, statement, *values):
        alone = not self._connection.in_transaction
        if alone:
            point("before")
        result = plain_write(self, statement, *values)
        if alone:
            point("after")
        return result

    @contextlib.contextmanager
    def transaction(self):
        with plain_transaction(self):
            yield
            point("before")
        point("after")

    Registry._write, Registry.transaction = write, transaction


def main() -> None:
    when, number, method, *arguments = sys.argv[1:]
    keywords = {}
    if arguments and arguments[-1].startswith("{"):
        keywords = json.loads(arguments.pop())
    if "kind" in keywords:
        keywords["kind"] = Kind(keywords["kind"])
    with Swarm() as swarm:
        arm(when, int(number))
        words = [json.loads(word) if word.startswith("[") else word for word in arguments]
        getattr(swarm, method)(*words, **keywords)


if __name__ == "__main__":
    main()
