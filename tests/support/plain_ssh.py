"""SSH to an endpoint without the product's own session code: what any user's client does."""

from __future__ import annotations

import shlex
import time
from typing import TYPE_CHECKING

from agent_swarm import runner

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Sequence
    from pathlib import Path

    from agent_swarm.model import SshEndpoint

SERVER_TIMEOUT_S = 60.0


def ssh(key: Path, endpoint: SshEndpoint, argv: Sequence[str]) -> subprocess.CompletedProcess[bytes]:
    """Run a command by SSH, which accepts the endpoint's host key and no other.

    A guest tells its key a moment before its server listens: refused connections are tried again.
    """
    known = key.with_name(f"known-{endpoint.port}")
    known.write_text(f"[{endpoint.host}]:{endpoint.port} {endpoint.host_key}\n")
    options = [
        "StrictHostKeyChecking=yes",
        f'UserKnownHostsFile="{known}"',
        "BatchMode=yes",
        "IdentitiesOnly=yes",
    ]
    options += ["ConnectTimeout=20", "LogLevel=ERROR", "ControlPath=none"]
    words = ["ssh", "-F", "none", "-i", str(key), "-p", str(endpoint.port)]
    words += [word for option in options for word in ("-o", option)]
    words += [f"{endpoint.user}@{endpoint.host}", "--", shlex.join(argv)]
    deadline = time.monotonic() + SERVER_TIMEOUT_S
    while True:
        done = runner.run(words, timeout_s=120, check=False)
        if done.returncode != 255 or b"Connection" not in done.stderr or time.monotonic() > deadline:
            return done
