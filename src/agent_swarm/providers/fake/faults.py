"""Faults on demand, in whichever process works on the machine: fake/faults.json.

The file maps a point to a fault. A point is a method of the provider ("start"), or one of the method's
steps ("create:copied"), from POINTS; a fault has

    error     what happens there, from ERRORS; "" or absent: nothing
    times     how often, over all processes together; absent: always
    delay_s   seconds to wait there first

    {"start": {"error": "machine", "times": 1},
     "create": {"delay_s": 0.5},
     "capture:copied": {"error": "disk-full"},
     "delete:renamed": {"error": "killed", "times": 1}}

"killed" sends SIGKILL to the process that came to the point: what a crash there leaves is what recovery
then finds. `inspect` and `usage` turn an error into BROKEN, `probe` into "not usable", `obstacle` into the
obstacle: they never raise.
"""

from __future__ import annotations

import errno
import os
import signal
import time
from typing import TYPE_CHECKING, Literal

import msgspec

from agent_swarm import locks
from agent_swarm.errors import (
    BootError,
    ConfigError,
    MachineError,
    ProviderUnavailableError,
    ResourceLimitError,
)
from agent_swarm.files import write_atomically

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

POINTS = (
    "probe",
    "create",
    "create:tagged",
    "create:copied",
    "create:renamed",
    "start",
    "start:prepared",
    "start:spawned",
    "start:recorded",
    "start:running",
    "endpoint",
    "stop",
    "stop:ended",
    "delete",
    "delete:ended",
    "delete:renamed",
    "capture",
    "capture:paused",
    "capture:copied",
    "capture:renamed",
    "discard",
    "discard:renamed",
    "restore",
    "restore:copied",
    "restore:prepared",
    "restore:switched",
    "suspend",
    "suspend:paused",
    "suspend:saved",
    "suspend:renamed",
    "forget",
    "settle",
    "obstacle",
    "inspect",
    "usage",
)
"""In the order in which a method comes to them. A bare method name is its beginning. "capture:paused" is met with memory
alone; "obstacle" is that of both facets."""

FaultError = Literal["", "machine", "boot", "unavailable", "limit", "disk-full", "killed"]

HINT = "Change or remove the fake provider's faults.json."


class Fault(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    error: FaultError = ""
    times: int | None = None
    delay_s: float = 0.0


class Faults:
    """The faults of one state directory. `sleep` waits for a number of seconds."""

    def __init__(self, path: Path, sleep: Callable[[float], None] = time.sleep) -> None:
        self._path = path
        self._sleep = sleep

    def arrange(self, faults: Mapping[str, Fault]) -> None:
        """Replace all faults: what a test calls. Unknown points raise ConfigError."""
        content = msgspec.json.encode(dict(faults))
        _parse(content)
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_atomically(self._path, content)

    def meet(self, point: str) -> None:
        """Come to a point: do what is arranged for it, which is mostly nothing.

        Raises the arranged error ("disk-full": the OSError that a full disk gives), or ConfigError when
        the file is not valid.
        """
        fault = self._take(point)
        if fault is None:
            return
        if fault.delay_s:
            self._sleep(fault.delay_s)
        message = f"{point} failed because faults.json says so"
        match fault.error:
            case "machine":
                raise MachineError(message, hint=HINT)
            case "boot":
                raise BootError(message, hint=HINT)
            case "unavailable":
                raise ProviderUnavailableError(message, hint=HINT)
            case "limit":
                raise ResourceLimitError(message, hint=HINT)
            case "disk-full":
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._path.parent))
            case "killed":
                os.kill(os.getpid(), signal.SIGKILL)

    def _take(self, point: str) -> Fault | None:
        """The fault of a point, counted down when it is limited. Exactly `times` callers get it."""
        if not self._path.exists():
            return None
        with locks.hold(self._path.with_suffix(".lock"), wait_s=10, busy="faults.json is held"):
            try:
                faults = _parse(self._path.read_bytes())
            except FileNotFoundError:
                return None
            fault = faults.get(point)
            if fault is None or fault.times is None:
                return fault
            if fault.times <= 0:
                return None
            left = msgspec.structs.replace(fault, times=fault.times - 1)
            write_atomically(self._path, msgspec.json.encode({**faults, point: left}))
            return fault


def _parse(content: bytes) -> dict[str, Fault]:
    try:
        faults = msgspec.json.decode(content, type=dict[str, Fault])
    except msgspec.DecodeError as error:
        message = "the fake provider's faults.json is not valid"
        raise ConfigError(message, details=str(error), hint=HINT) from error
    unknown = sorted(set(faults) - set(POINTS))
    if unknown:
        message = f"faults.json names no point of the fake provider: {', '.join(unknown)}"
        raise ConfigError(message, hint=f"Points are {', '.join(POINTS)}.")
    return faults
