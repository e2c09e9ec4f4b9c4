"""QEMU's control channel (QMP), made synchronous. The only file that knows asyncio.

Source: https://www.qemu.org/docs/master/interop/qemu-qmp-ref.html
"""

from __future__ import annotations

import logging
import os
import socket
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self, TypeVar

from agent_swarm.errors import MachineError

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Coroutine
    from pathlib import Path
    from types import TracebackType

    from qemu.qmp import QMPClient

Result = TypeVar("Result")

BUSY_POLL_S = 0.05
UNLIMITED = 1 << 34
"""Bytes a second: more than any channel carries."""
CONNECT_ATTEMPTS = 3


@dataclass(frozen=True, slots=True)
class Sent:
    """The progress of a migration: see `Monitor.sent`."""

    remaining_bytes: int
    collections: int


class NotListeningError(MachineError):
    """No QEMU listens on the socket: not yet, or not any more."""


def dial(path: Path, timeout_s: float) -> socket.socket:
    """Connect to a Unix socket; wait for a place in its queue, which a QEMU that serves another keeps short.

    asyncio takes the refusal of a full queue (EAGAIN) for a connection under way, and fails later: hence this.

    Raises: NotListeningError, MachineError after `timeout_s`.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.setblocking(False)
        try:
            connection.connect(str(path))
        except (FileNotFoundError, ConnectionRefusedError) as error:
            connection.close()
            message = "QEMU's control channel is closed"
            raise NotListeningError(message, details=str(error)) from error
        except BlockingIOError as error:
            connection.close()
            if time.monotonic() > deadline:
                message = f"QEMU was busy with others for {timeout_s:.0f} s"
                raise MachineError(message, hint="Try again in a moment.") from error
            time.sleep(BUSY_POLL_S)
        except BaseException:
            connection.close()
            raise
        else:
            return connection


class Monitor:
    """One connection to a running QEMU; a context manager. QEMU serves one at a time.

    Every method raises MachineError when QEMU refuses, is gone, or does not answer within `timeout_s`.
    """

    def __init__(self, path: Path, *, timeout_s: float = 10.0) -> None:
        self._path = path
        self._timeout_s = timeout_s
        self._runner: asyncio.Runner | None = None
        self._client: QMPClient | None = None
        self._paused_at: float | None = None
        self.longest_pause_s = 0.0
        """How long the guest stood still at most, between a pause and the resume after it."""

    def __enter__(self) -> Self:
        import asyncio

        from qemu.qmp import QMPClient

        logging.getLogger("qemu.qmp").setLevel(logging.CRITICAL)  # it logs what it also raises
        for attempt in range(CONNECT_ATTEMPTS):
            connection = dial(self._path, self._timeout_s)
            self._runner = asyncio.Runner()
            self._client = QMPClient("agent-swarm")
            try:
                self._run(self._client.connect(connection), "connect")
            except MachineError as error:
                self._close()
                connection.close()
                # the answer to one who was killed meanwhile may come instead of our greeting
                if attempt == CONNECT_ATTEMPTS - 1 or isinstance(error.__cause__, TimeoutError):
                    raise
            except BaseException:
                self._close()
                connection.close()
                raise
            else:
                break
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._close()

    def status(self) -> str:
        """QEMU's run state: "running", "paused", "prelaunch", "shutdown", ..."""
        return str(self._execute("query-status")["status"])

    def version(self) -> str:
        """Of the QEMU that runs: "7.2.22"."""
        found = self._execute("query-version")["qemu"]
        return f"{found['major']}.{found['minor']}.{found['micro']}"

    def power_down(self) -> None:
        """Press the machine's power button (ACPI)."""
        self._execute("system_powerdown")

    def quit(self) -> None:
        """Flush the disks and end QEMU at once."""
        self._execute("quit")

    def pause(self) -> None:
        self.mark_pause()
        self._execute("stop")

    def mark_pause(self) -> None:
        """The guest stands still now."""
        self._paused_at = self._paused_at or time.monotonic()

    def resume(self) -> None:
        self._execute("cont")
        if self._paused_at is not None:
            self.longest_pause_s = max(self.longest_pause_s, time.monotonic() - self._paused_at)
            self._paused_at = None

    def migrate_to(self, connection: socket.socket, *, downtime_ms: int) -> None:
        """Begin to send memory and devices while the guest runs; it stops in "pre-switchover", until
        `continue_migration`, when what is left takes at most `downtime_ms` to send."""
        capability = {"capability": "pause-before-switchover", "state": True}
        self._execute("migrate-set-capabilities", {"capabilities": [capability]})
        self._execute("migrate-set-parameters", {"max-bandwidth": UNLIMITED, "downtime-limit": downtime_ms})
        self._give("migration", connection.fileno())
        self._execute("migrate", {"uri": "fd:migration"})

    def continue_migration(self) -> None:
        """Send the rest. The disks are let go of; `resume` takes them again."""
        self._execute("migrate-continue", {"state": "pre-switchover"})

    def cancel_migration(self) -> None:
        self._execute("migrate_cancel")

    def migration(self) -> tuple[str, str]:
        """How far it has got ("none", "active", "pre-switchover", "completed", "cancelled", "failed", ...), and what
        went wrong."""
        found = self._execute("query-migrate")
        return str(found.get("status", "none")), str(found.get("error-desc", ""))

    def sent(self) -> Sent:
        """What there is still to send in this round, and how often changed pages were collected (once at the start)."""
        ram = self._execute("query-migrate").get("ram", {})
        return Sent(int(ram.get("remaining", 1 << 62)), int(ram.get("dirty-sync-count", 0)))

    def read_state(self, path: Path) -> None:
        """Begin to load a saved state, in a QEMU that was started with "-incoming defer"."""
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            self._give("state", descriptor)
        finally:
            os.close(descriptor)
        self._execute("migrate-incoming", {"uri": "fd:state"})

    def _give(self, name: str, descriptor: int) -> None:
        """Pass a file descriptor, which QEMU then knows by name."""
        assert self._client is not None
        self._client.send_fd_scm(descriptor)
        self._execute("getfd", {"fdname": name})

    def active_node(self, drive: str) -> str:
        """The name of the block node that a drive writes to now: as given at the start, or by a switch."""
        for block in self._execute("query-block"):
            if block["device"] == drive:
                return str(block["inserted"]["node-name"])
        message = f"QEMU has no drive {drive!r}"
        raise MachineError(message)

    def is_opened_by_guest(self, chardev: str) -> bool:
        """Whether a program in the guest has the port of this character device open now."""
        return any(
            found["label"] == chardev and found["frontend-open"] for found in self._execute("query-chardev")
        )

    def switch_to_overlay(self, drive: str, overlay: Path, node: str) -> None:
        """Have the drive write to `overlay` from now on, an empty qcow2 file that builds on its present file.

        `node` is the name of the new block node. Atomic for the guest: every write goes to the one or the
        other, none is lost.
        """
        arguments = {"device": drive, "snapshot-file": str(overlay), "snapshot-node-name": node}
        self._execute("blockdev-snapshot-sync", {**arguments, "format": "qcow2", "mode": "existing"})

    def _execute(self, command: str, arguments: dict[str, object] | None = None) -> Any:
        assert self._client is not None
        return self._run(self._client.execute(command, arguments), command)

    def _run(self, work: Coroutine[Any, Any, Result], what: str) -> Result:
        import asyncio

        from qemu.qmp import QMPError

        async def limited() -> Result:
            return await asyncio.wait_for(work, self._timeout_s)

        assert self._runner is not None
        try:
            return self._runner.run(limited())
        except TimeoutError as error:
            message = f"QEMU did not answer {what!r} within {self._timeout_s:.0f} s"
            raise MachineError(message, hint="Stop it with `stop --force`.") from error
        except (QMPError, OSError, EOFError) as error:
            message = f"QEMU could not {what!r}" if what == "connect" else f"QEMU refused {what!r}"
            raise MachineError(message, details=str(error)) from error

    def _close(self) -> None:
        if self._runner is None:
            return
        import asyncio

        from qemu.qmp import QMPError

        try:
            if self._client is not None:
                self._runner.run(asyncio.wait_for(self._client.disconnect(), self._timeout_s))
        except (QMPError, OSError, EOFError, TimeoutError):
            logging.getLogger(__name__).debug("QEMU hung up first")  # after `quit` it may
        finally:
            self._runner.close()
            self._runner = None
