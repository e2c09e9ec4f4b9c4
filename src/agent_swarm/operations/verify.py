"""Whether a machine is itself: the evidence for the hygiene contract (providers/base.py), read in the machine."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

from agent_swarm.errors import ConflictError, MachineError, SwarmError
from agent_swarm.guest import cloudinit
from agent_swarm.model import SESSION_SECRETS, Kind, SshEndpoint, Status
from agent_swarm.operations import observe
from agent_swarm.operations.sessions import run_captured

if TYPE_CHECKING:
    from collections.abc import Sequence

    from agent_swarm.model import Environment
    from agent_swarm.operations.context import Context

CLOCK_TOLERANCE_S = 1.0

# one line each, "name=value"; sudo, as environments and host keys are root's to read
PROBE = f"""
echo "clock_ns=$(date +%s%N)"
echo "host_name=$(cat /proc/sys/kernel/hostname)"
echo "machine_id=$(cat /etc/machine-id)"
echo "host_key=$(cut -d' ' -f1,2 /etc/ssh/ssh_host_ed25519_key.pub)"
echo "random=$(head -c 16 /dev/urandom | od -An -tx1 | tr -d ' \\n')"
echo "boot_id=$(cat /proc/sys/kernel/random/boot_id)"
echo "with_secrets=$(grep -las '^{SESSION_SECRETS}=' /proc/[0-9]*/environ | wc -l)"
"""
COMPARED = ("machine_id", "boot_id", "host_key", "random")


@dataclass(frozen=True, slots=True)
class Check:
    """One part of the contract. `evidence` is what was seen."""

    subject: str
    holds: bool
    evidence: str


@dataclass(frozen=True, slots=True)
class Probed:
    """What one machine said of itself, and the host's clock before and after, in seconds since 1970."""

    said: dict[str, str]
    asked_at: float
    answered_at: float


def verify(context: Context, name: str, *, kind: Kind = Kind.TASK) -> list[Check]:
    """What the machine says of itself, against the registry and against its running relatives: those of its project.

    Raises ConflictError where it does not run, or is simulated, UnreachableError where it does not answer.
    """
    environment = observe.observe(context, [context.registry.environment(kind, name)])[0]
    endpoint = environment.endpoint
    if environment.status is Status.RUNNING and not isinstance(endpoint, SshEndpoint):
        message = f"{environment.label} is simulated: it has no identity of its own"
        raise ConflictError(message)
    mine = _probe(context, environment)
    others = [found for found in _relatives(context, environment) if found.status is Status.RUNNING]
    with ThreadPoolExecutor(max_workers=context.config.limits.parallel) as pool:
        theirs = dict(
            zip(
                (found.name for found in others),
                pool.map(lambda found: _try(context, found), others),
                strict=True,
            )
        )
    host_key = endpoint.host_key if isinstance(endpoint, SshEndpoint) else ""
    return judge(
        mine,
        host_name=cloudinit.host_name(environment.name),
        host_key=host_key,
        others={label: probed for label, probed in theirs.items() if probed is not None},
    )


def judge(mine: Probed, *, host_name: str, host_key: str, others: dict[str, Probed]) -> list[Check]:
    """The checks, from what was probed. `others` by name."""
    said = mine.said
    clock = int(said["clock_ns"]) / 1e9
    early, late = mine.asked_at - CLOCK_TOLERANCE_S, mine.answered_at + CLOCK_TOLERANCE_S
    off = (
        0.0
        if mine.asked_at <= clock <= mine.answered_at
        else min(abs(clock - mine.asked_at), abs(clock - mine.answered_at))
    )
    checks = [
        Check("clock", early <= clock <= late, f"off by {off:.1f} s at most"),
        Check("host name", said["host_name"] == host_name, said["host_name"]),
        Check("host key", said["host_key"] == host_key, said["host_key"]),
        Check("machine-id", len(said["machine_id"]) == 32, said["machine_id"]),
    ]
    for field in COMPARED:
        same = [label for label, other in others.items() if other.said[field] == said[field]]
        evidence = (
            f"same as {', '.join(same)}" if same else f"differs from {len(others)} other(s): {said[field]}"
        )
        checks.append(Check(f"own {field.replace('_', '-')}", not same, evidence))
    checks.append(
        Check("processes with secrets", True, said["with_secrets"])
    )  # its own sessions may have some
    return checks


def _relatives(context: Context, environment: Environment) -> Sequence[Environment]:
    project = environment.parent_id or environment.id
    found = [other for other in context.registry.environments() if project in (other.id, other.parent_id)]
    return observe.observe(context, [other for other in found if other.id != environment.id])


def _probe(context: Context, environment: Environment) -> Probed:
    asked_at = time.time()
    done = run_captured(context, environment.kind, environment.name, ["sudo", "-n", "sh", "-c", PROBE])
    answered_at = time.time()
    said = dict(
        line.split("=", 1) for line in done.stdout.decode("utf-8", "replace").splitlines() if "=" in line
    )
    missing = {"clock_ns", "host_name", "host_key", "with_secrets", *COMPARED} - set(said)
    if done.exit_code != 0 or missing or not said["clock_ns"].isdigit():
        message = f"{environment.label} does not tell who it is"
        raise MachineError(message, details=done.stderr.decode("utf-8", "replace").strip())
    return Probed(said, asked_at, answered_at)


def _try(context: Context, environment: Environment) -> Probed | None:
    try:
        return _probe(context, environment)
    except SwarmError:
        return None  # stopped meanwhile, or busy: it cannot be compared with
