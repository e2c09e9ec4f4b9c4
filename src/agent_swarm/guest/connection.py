"""The shared SSH connection of a machine: opened once, used by every session.

OpenSSH's multiplexing (ControlMaster, ssh(1) -M): a process in the background holds the connection, and a
session through it costs no new handshake; in emulation that is 0.04 s instead of 0.6 s. It ends by
itself `ssh.keep_open_s` after its last session, or with `close`.
"""

from __future__ import annotations

import contextlib
import socket
import time
from typing import TYPE_CHECKING

from agent_swarm import locks, runner
from agent_swarm.errors import BusyError, CommandError, UnreachableError
from agent_swarm.guest.ssh_config import percent_escaped, quoted
from agent_swarm.model import LocalEndpoint

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from agent_swarm.config import Config
    from agent_swarm.guest.target import Target
    from agent_swarm.paths import Paths

CONNECT_TIMEOUT_S = 15
POLL_S = 0.1
# sshd 9.8 and later shuts out an address that fails to log in too often (PerSourcePenalties)
REFUSED_POLL_S = 1.0
HELLO_TIMEOUT_S = 5.0
CLOSE_TIMEOUT_S = 10.0
TRIES = "1 2 3 4 5 6 7 8 9 10"
"""Of a connection in the background: for a second at least."""


def open_shared(
    paths: Paths, config: Config, target: Target, *, timeout_s: float, alive: Callable[[], bool]
) -> None:
    """Have the shared connection open; at once where it is. Blocks while the machine boots.

    The machine's entry is in `paths.ssh_config`. `alive` says whether the machine still runs: when it
    does not, waiting ends early. Raises UnreachableError after `timeout_s`, and at once when the
    machine shows another host key than the one that the provider told.
    """
    if isinstance(target.endpoint, LocalEndpoint) or is_open(paths, target):
        return
    deadline = time.monotonic() + timeout_s
    with locks.hold(
        paths.lock(f"{target.environment_id}.ssh"),
        wait_s=timeout_s,
        busy=f"another command is connecting to {target.label}",
    ):
        while not is_open(paths, target):
            # a socket in the way makes ssh connect without sharing, and stay
            close(paths, target)
            problem = _try_to_open(paths, config, target, max(1.0, deadline - time.monotonic()))
            if problem is None:
                return
            if "HOST IDENTIFICATION HAS CHANGED" in problem or "Host key verification failed" in problem:
                raise _changed_key(target, problem)
            refused = "Permission denied" in problem
            if time.monotonic() >= deadline:
                raise _unreachable(target, f"no session within {timeout_s:.0f} s", problem)
            if not alive():
                raise _unreachable(target, "the machine has stopped", problem)
            time.sleep(REFUSED_POLL_S if refused else POLL_S)


def open_in_background(paths: Paths, config: Config, target: Target) -> None:
    """Begin to open the shared connection, and return at once; nobody hears whether it could be opened.

    An `open_shared` that comes meanwhile waits for it, and uses it: a small shell holds the lock for as long
    as ssh connects. (ssh itself closes what it inherits, ssh(1)'s closefrom, and so cannot hold it.)
    """
    if isinstance(target.endpoint, LocalEndpoint) or is_open(paths, target):
        return
    try:
        with locks.hold(paths.lock(f"{target.environment_id}.ssh"), busy="it is being opened") as descriptor:
            close(paths, target)
            # sshd starts itself anew with its new keys just now, and refuses for a moment
            script = f'for try in {TRIES}; do "$@" && break; sleep 0.1; done </dev/null >/dev/null 2>&1 &'
            runner.run(
                ["sh", "-c", script, "sh", *_master(paths, config, target, CONNECT_TIMEOUT_S)],
                timeout_s=CLOSE_TIMEOUT_S,
                pass_fds=(descriptor,),
                new_session=True,
            )
    except BusyError:
        return  # somebody opens it already


def is_open(paths: Paths, target: Target) -> bool:
    """Whether the shared connection is there and its process answers. Costs no process of our own.

    The greeting is OpenSSH's PROTOCOL.mux: a length, then MUX_MSG_HELLO (1).
    """
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(HELLO_TIMEOUT_S)
        try:
            client.connect(str(paths.ssh_socket(target.environment_id)))
            greeting = client.recv(8, socket.MSG_WAITALL)
        except OSError:
            return False
    return greeting[4:] == b"\0\0\0\1"


def close(paths: Paths, target: Target) -> None:
    """End the shared connection, and with it the sessions that use it. Silent where there is none."""
    path = paths.ssh_socket(target.environment_id)
    if isinstance(target.endpoint, LocalEndpoint) or not path.exists():
        return
    # by its socket and without our configuration: the machine's entry may be gone already
    argv = ["ssh", "-F", "none", "-S", percent_escaped(str(path)), "-O", "exit", target.id_alias]
    with contextlib.suppress(CommandError):  # a holder that hangs ends with the machine
        runner.run(argv, timeout_s=CLOSE_TIMEOUT_S, check=False)
    path.unlink(missing_ok=True)


def is_included(paths: Paths, target: Target) -> bool:
    """Whether the user's own `ssh NAME.swarm` reaches this machine: their configuration includes ours.

    Editors and other programs need that; our own commands do not.
    """
    done = runner.run(["ssh", "-G", target.host_alias], timeout_s=CLOSE_TIMEOUT_S, check=False)
    lines = done.stdout.decode("utf-8", "surrogateescape").replace("%%", "%").splitlines()
    # two installations may have a machine of the same name
    wanted = {f"hostkeyalias {target.environment_id}", f"userknownhostsfile {paths.known_hosts}"}
    return wanted <= set(lines)


def ssh(paths: Paths) -> list[str]:
    """The ssh client with our configuration and nothing of the user's; it never asks anything."""
    return ["ssh", "-F", str(paths.ssh_config), "-o", "BatchMode=yes"]


def through_shared(paths: Paths) -> list[str]:
    """Options of ssh and scp that use a machine's shared connection, whatever machine they name.

    %k is the host key alias, which is the environment's id.
    """
    return ["-o", f"ControlPath={control_path(paths.run)}", "-o", "ControlMaster=no"]


def control_path(run: Path) -> str:
    """The value of the option ControlPath; quoted, as the path may hold spaces."""
    return quoted(run).removesuffix('"') + '/%k.ssh"'


def _try_to_open(paths: Paths, config: Config, target: Target, left_s: float) -> str | None:
    """None when the connection is open, else what ssh said."""
    connect_s = max(1, min(CONNECT_TIMEOUT_S, round(left_s)))
    try:
        done = runner.run(_master(paths, config, target, connect_s), timeout_s=4 * connect_s, check=False)
    except CommandError as error:  # it hung after the connection was made: a guest that stalls
        return error.message
    if done.returncode == 0 and is_open(paths, target):
        return None
    said = done.stderr.decode("utf-8", "replace").strip()
    return said[-2000:] or f"ssh ended with exit code {done.returncode}"


def _master(paths: Paths, config: Config, target: Target, connect_s: int) -> list[str]:
    """The command that opens the connection and ends when it is open, leaving its holder in the background."""
    return [
        *ssh(paths),
        *("-M", "-N", "-f"),
        *("-o", f"ControlPath={control_path(paths.run)}"),
        # 0 would mean "for ever" to ssh
        *("-o", f"ControlPersist={max(1, config.ssh.keep_open_s)}"),
        *("-o", f"ConnectTimeout={connect_s}"),
        target.id_alias,
    ]


def _changed_key(target: Target, problem: str) -> UnreachableError:
    message = f"the SSH host key of {target.label} has changed: the connection is refused"
    return UnreachableError(
        message,
        details=problem,
        hint="Something else answers in its place, or its key was replaced inside. If you trust it, stop and start it: the key is read anew.",
    )


def _unreachable(target: Target, why: str, problem: str) -> UnreachableError:
    message = f"{target.label} cannot be reached: {why}"
    return UnreachableError(
        message,
        details=problem,
        hint="`agent-swarm logs` shows its console, `agent-swarm doctor` looks for the cause.",
    )
