"""A program that is `agent-swarm run` without registry and provider: for tests that send it signals.

python run_in_target.py JSON ARGV...    JSON: home, id, and root or host, port, user, host_key
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from pathlib import Path
from typing import IO, TYPE_CHECKING

from agent_swarm.config import Config
from agent_swarm.errors import SwarmError
from agent_swarm.guest import session
from agent_swarm.guest.target import Target
from agent_swarm.model import EnvironmentId, LocalEndpoint, SshEndpoint
from agent_swarm.paths import Paths

if TYPE_CHECKING:
    from collections.abc import Iterator


def command(paths: Paths, target: Target, *argv: str) -> list[str]:
    """The command line of this program for a target."""
    endpoint = target.endpoint
    if isinstance(endpoint, LocalEndpoint):
        where: dict[str, object] = {"root": str(endpoint.root)}
    else:
        where = {
            "host": endpoint.host,
            "port": endpoint.port,
            "user": endpoint.user,
            "host_key": endpoint.host_key,
        }
    given = json.dumps({"home": str(paths.home), "id": target.environment_id, **where})
    return [sys.executable, __file__, given, *argv]


@contextlib.contextmanager
def started(paths: Paths, target: Target, *argv: str) -> Iterator[tuple[subprocess.Popen[bytes], IO[bytes]]]:
    """This program, running, with its stdout; killed at the end where it still runs."""
    process = subprocess.Popen(
        command(paths, target, *argv),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    with process.stdout, process.stderr:
        try:
            yield process, process.stdout
        finally:
            process.kill()
            process.wait()


def main() -> int:
    given = json.loads(sys.argv[1])
    paths = Paths.at(Path(given.pop("home")))
    environment = EnvironmentId(given.pop("id"))
    endpoint = LocalEndpoint(Path(given["root"])) if "root" in given else SshEndpoint(**given)
    target = Target(environment, "task child", "child.swarm", endpoint)
    try:
        if not sys.argv[2:]:
            return session.shell(paths, target)
        return session.run(paths, Config(), target, sys.argv[2:])
    except SwarmError as error:
        sys.stderr.write(f"{error.message}\n{error.details}\n")
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
