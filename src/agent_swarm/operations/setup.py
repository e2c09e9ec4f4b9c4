"""The project's set-up: ~/.agent-swarm/setup.sh, run inside every new project machine."""

from __future__ import annotations

from typing import TYPE_CHECKING

from agent_swarm.errors import SetupError
from agent_swarm.events import OutputLine
from agent_swarm.files import write_atomically
from agent_swarm.guest import script as guest_script

if TYPE_CHECKING:
    from agent_swarm.model import Environment
    from agent_swarm.operations.context import Context
    from agent_swarm.paths import Paths

LAST_LINES = 15

DEFAULT_SCRIPT = b"""\
#!/bin/bash
# agent-swarm runs this once inside every new project machine, as user `worker` (sudo needs no password).
# Its output is shown and kept; a failure fails `agent-swarm project create`, and the machine stays
# for inspection. Tasks are clones of the finished machine, so what is installed here, they have.
#
# This file was generated once and is yours now. Examples:
#
#   sudo apt-get update
#   sudo apt-get install -y postgresql redis-server
#   git clone https://example.org/your/project.git ~/project
set -euo pipefail

echo "set-up of $(hostname): nothing to do; edit setup.sh to install what your project needs"
"""


def ensure_script(paths: Paths) -> bytes:
    """The set-up script's text; made at the first call, the user's from then on."""
    if not paths.setup_script.exists():
        write_atomically(paths.setup_script, DEFAULT_SCRIPT, mode=0o600)
    return paths.setup_script.read_bytes()


def run_setup(context: Context, environment: Environment, script: bytes) -> None:
    """Run the script in the machine to its end; its output becomes progress and the set-up log.

    Raises SetupError with the last lines when it fails or takes longer than timeouts.setup_s.
    """
    current = context.registry.by_id(environment.id)
    assert current is not None
    target = context.target(current)
    log = context.paths.setup_log(environment.id)
    log.parent.mkdir(mode=0o700, exist_ok=True)
    last: list[str] = []
    with log.open("w", encoding="utf-8", errors="surrogateescape") as stream:
        log.chmod(0o600)

        def on_line(line: str) -> None:
            stream.write(line + "\n")
            stream.flush()
            last[:] = [*last[-LAST_LINES + 1 :], line]
            context.progress(OutputLine(environment.name, line))

        code = guest_script.run_script(
            context.paths,
            context.config,
            target,
            script,
            on_line=on_line,
            timeout_s=context.config.timeouts.setup_s,
        )
    if code != 0:
        message = f"setup.sh failed in {environment.label} with exit code {code}"
        raise SetupError(
            message,
            details="\n".join(last),
            hint=(
                f"The machine is left running: look with `agent-swarm project ssh {environment.name}`, read all output "
                f"with `agent-swarm logs --setup --project {environment.name}`, and delete it to try again."
            ),
        )
