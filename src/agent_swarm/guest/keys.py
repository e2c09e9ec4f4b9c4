"""The installation's client key: what machines let us in by."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from agent_swarm import locks, runner
from agent_swarm.errors import SwarmError
from agent_swarm.files import write_atomically

if TYPE_CHECKING:
    from agent_swarm.paths import Paths

WAIT_S = 30.0


def ensure_client_key(paths: Paths) -> str:
    """The public key line ("ssh-ed25519 AAAA... agent-swarm"), of a key that is made when there is none.

    Safe to call from many processes at once: all of them get the same key. The private half stays in
    `paths.ssh_key`, 0600, without a passphrase, as commands use it unattended. Raises SwarmError where
    the key is damaged or cannot be written.
    """
    public = paths.ssh_key.with_name(paths.ssh_key.name + ".pub")
    with locks.hold(
        paths.lock("client-key"), wait_s=WAIT_S, busy="another command is making the SSH client key"
    ):
        try:
            if not paths.ssh_key.exists():
                _make(paths.ssh_key)
            if not public.exists():
                derived = runner.run(["ssh-keygen", "-y", "-f", paths.ssh_key], timeout_s=WAIT_S).stdout
                write_atomically(public, derived.strip() + b" agent-swarm\n")
            line = public.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            message = "the SSH client key cannot be read or written"
            raise SwarmError(
                message, details=str(error), hint=f"Check {paths.ssh} and its permissions."
            ) from error
    if len(line.splitlines()) != 1 or not line.startswith("ssh-ed25519 "):
        message = f"{public} is not an ed25519 public key"
        raise SwarmError(message, hint=f"Remove {public}; it is made again from {paths.ssh_key.name}.")
    return line


def _make(private: Path) -> None:
    # ssh-keygen writes in place: made aside, so that an interrupted run leaves no half of a key
    with tempfile.TemporaryDirectory(prefix=".new-key-", dir=private.parent) as directory:
        fresh = Path(directory) / "key"
        runner.run(
            ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "agent-swarm", "-f", fresh],
            timeout_s=WAIT_S,
        )
        # the public half is derived from what is in place, so it can never belong to another key
        private.with_name(private.name + ".pub").unlink(missing_ok=True)
        write_atomically(private, fresh.read_bytes())
