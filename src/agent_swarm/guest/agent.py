"""A client of the QEMU guest agent: commands to a machine without network or SSH.

The agent speaks JSON, one object a line, over a virtio-serial port that QEMU shows as a UNIX socket.
The port has no notion of a connection: what an earlier client left unread is still there. So every
session begins with `guest-sync-delimited`, whose reply the agent puts behind a 0xFF byte, and drops
all that comes before.

A guest is not trusted: replies are bounded in size and their types are checked.

Source: https://www.qemu.org/docs/master/interop/qemu-ga-ref.html
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import json
import secrets
import socket
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from agent_swarm.errors import MachineError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path
    from types import TracebackType

T = TypeVar("T")

SENTINEL = b"\xff"
REPLY_MAX_BYTES = 1 << 20
OUTPUT_MAX_BYTES = 64 << 20
"""The agent keeps at most 16 MiB of each stream, which base64 makes 22 MiB each."""
FILE_MAX_BYTES = 1 << 20
FILE_CHUNK_BYTES = 1 << 16
CALL_TIMEOUT_S = 5.0
FREEZE_TIMEOUT_S = 30.0
STATUS_POLL_S = 0.02


class AgentSilentError(MachineError):
    """The agent did not answer: it is not installed, not started yet, or the machine hangs."""


class AgentRefusedError(MachineError):
    """The agent answered with an error: no such file, command switched off, not possible now."""


@dataclass(frozen=True, slots=True)
class Executed:
    """How a program in the guest ended. `returncode` is -n when signal n killed it."""

    returncode: int
    stdout: bytes
    stderr: bytes


class _Failure(msgspec.Struct):
    desc: str = ""
    class_: str = msgspec.field(name="class", default="")


class _Chunk(msgspec.Struct):
    count: int
    buf_b64: str = msgspec.field(name="buf-b64")
    eof: bool = False


class _Started(msgspec.Struct):
    pid: int


class _ExecStatus(msgspec.Struct):
    exited: bool
    exitcode: int | None = None
    signal: int | None = None
    out_data: str = msgspec.field(name="out-data", default="")
    err_data: str = msgspec.field(name="err-data", default="")


class GuestAgent:
    """One connection to a machine's agent. Not for several threads; QEMU serves one client at a time,
    and another's waits in `call` until this one is closed or its time is over."""

    def __init__(self, socket_path: Path) -> None:
        self._path = socket_path
        self._socket: socket.socket | None = None
        self._unread = bytearray()
        self._synced = False

    def __enter__(self) -> GuestAgent:
        """Connect. Returns at once whether or not the agent answers; AgentSilentError where QEMU does not
        listen on the socket."""
        connection = socket.socket(socket.AF_UNIX)
        try:
            connection.connect(str(self._path))
        except OSError as error:
            connection.close()
            message = "the machine's guest agent channel is closed"
            raise AgentSilentError(
                message, details=f"{self._path}: {error}", hint="Is the machine running?"
            ) from error
        self._socket = connection
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def call(self, command: str, *, timeout_s: float = CALL_TIMEOUT_S, **arguments: object) -> object:
        """Execute a command and return its reply, as JSON types. `read_at` becomes "read-at".

        Raises AgentSilentError when no valid reply comes within `timeout_s`, AgentRefusedError when the
        agent reports a failure.
        """
        return self._call(command, timeout_s=timeout_s, arguments=arguments)

    def ping(self, *, timeout_s: float = 1.0) -> bool:
        """Whether the agent answers within `timeout_s`."""
        try:
            self.call("guest-ping", timeout_s=timeout_s)
        except AgentSilentError:
            return False
        return True

    def read_file(
        self, path: str, *, limit_bytes: int = FILE_MAX_BYTES, timeout_s: float = CALL_TIMEOUT_S
    ) -> bytes:
        """The content of a file in the guest, as root. AgentRefusedError where it cannot be opened,
        MachineError where it is longer than `limit_bytes`."""
        deadline = time.monotonic() + timeout_s
        handle = self._typed("guest-file-open", int, timeout_s=timeout_s, path=path, mode="r")
        content = bytearray()
        try:
            while True:
                left_s = deadline - time.monotonic()
                chunk = self._typed(
                    "guest-file-read", _Chunk, timeout_s=left_s, handle=handle, count=FILE_CHUNK_BYTES
                )
                content += _decoded(chunk.buf_b64)
                if len(content) > limit_bytes:
                    message = f"the guest's file {path} is longer than {limit_bytes} bytes"
                    raise MachineError(message)
                if chunk.eof or chunk.count <= 0:
                    return bytes(content)
        finally:
            with contextlib.suppress(
                MachineError
            ):  # the agent closes it when it ends; the read's error counts
                self.call("guest-file-close", handle=handle)

    def execute(self, argv: Sequence[str], *, stdin: bytes = b"", timeout_s: float = 30.0) -> Executed:
        """Run a program in the guest as root, to its end. `argv[0]` is looked up in the agent's PATH.

        Raises AgentRefusedError where it cannot be started, AgentSilentError when it has not ended
        within `timeout_s`: it then goes on in the guest.
        """
        deadline = time.monotonic() + timeout_s
        program, *rest = argv
        arguments: dict[str, object] = {"path": program, "arg": rest, "capture-output": True}
        if stdin:
            arguments["input-data"] = base64.b64encode(stdin).decode()
        reply = self._call("guest-exec", timeout_s=timeout_s, arguments=arguments)
        pid = _convert(reply, _Started, "guest-exec").pid
        while True:
            status = self._typed(
                "guest-exec-status",
                _ExecStatus,
                timeout_s=max(deadline - time.monotonic(), STATUS_POLL_S),
                limit_bytes=OUTPUT_MAX_BYTES,
                pid=pid,
            )
            if status.exited:
                break
            if time.monotonic() >= deadline:
                message = f"{program} did not end within {timeout_s:.0f} s in the machine"
                raise AgentSilentError(message)
            time.sleep(STATUS_POLL_S)
        returncode = -status.signal if status.signal is not None else status.exitcode
        if returncode is None:
            message = "the guest agent did not tell how a program ended"
            raise MachineError(message)
        return Executed(returncode, _decoded(status.out_data), _decoded(status.err_data))

    def shutdown(self, *, timeout_s: float = CALL_TIMEOUT_S) -> None:
        """Ask the guest to power off in an orderly way; return when the request is delivered.

        The agent does not confirm this command, so only its presence is checked before.
        """
        deadline = time.monotonic() + timeout_s
        self._sync(deadline)
        self._send(_request("guest-shutdown", {"mode": "powerdown"}), deadline)
        self._synced = False

    def freeze(self) -> int:
        """Flush and freeze the guest's file systems; how many. `thaw` must follow within seconds."""
        return self._typed("guest-fsfreeze-freeze", int, timeout_s=FREEZE_TIMEOUT_S)

    def thaw(self) -> int:
        """Undo `freeze`; how many file systems were frozen. Harmless where none was."""
        return self._typed("guest-fsfreeze-thaw", int, timeout_s=FREEZE_TIMEOUT_S)

    def _typed(
        self,
        command: str,
        expected: type[T],
        *,
        timeout_s: float,
        limit_bytes: int = REPLY_MAX_BYTES,
        **arguments: object,
    ) -> T:
        reply = self._call(command, timeout_s=timeout_s, limit_bytes=limit_bytes, arguments=arguments)
        return _convert(reply, expected, command)

    def _call(
        self,
        command: str,
        *,
        timeout_s: float,
        arguments: dict[str, object],
        limit_bytes: int = REPLY_MAX_BYTES,
    ) -> object:
        deadline = time.monotonic() + timeout_s
        self._sync(deadline)
        self._synced = False  # until the reply is read, the stream holds what is not the next call's
        self._send(_request(command, arguments), deadline)
        reply = _object(self._read_until(b"\n", deadline, limit_bytes), command)
        self._synced = True
        if "error" in reply:
            failure = _convert(reply["error"], _Failure, command)
            message = f"the guest agent refused {command}"
            raise AgentRefusedError(message, details=failure.desc or failure.class_)
        if "return" not in reply:
            raise _nonsense(command)
        return reply["return"]

    def _sync(self, deadline: float) -> None:
        if self._synced:
            return
        token = secrets.randbelow(1 << 31)
        # the first 0xFF makes the agent drop a half-received request of an earlier client
        self._send(SENTINEL + _request("guest-sync-delimited", {"id": token}), deadline)
        while True:
            self._drop_until_sentinel(deadline)
            line = self._read_until(b"\n", deadline, REPLY_MAX_BYTES)
            if _object(line, "guest-sync-delimited").get("return") == token:
                self._synced = True
                return

    def _send(self, data: bytes, deadline: float) -> None:
        connection = self._ready(deadline)
        try:
            connection.sendall(data)
        except TimeoutError:
            raise _silent() from None
        except OSError as error:
            raise _silent(str(error)) from error

    def _drop_until_sentinel(self, deadline: float) -> None:
        while (found := self._unread.find(SENTINEL)) < 0:
            self._unread.clear()
            self._receive(deadline)
        del self._unread[: found + 1]

    def _read_until(self, end: bytes, deadline: float, limit_bytes: int) -> bytes:
        searched = 0
        while (found := self._unread.find(end, searched)) < 0:
            searched = len(self._unread)
            if searched > limit_bytes:
                message = f"the guest agent sent more than {limit_bytes} bytes in one reply"
                raise MachineError(message)
            self._receive(deadline)
        line = bytes(self._unread[:found])
        del self._unread[: found + 1]
        return line

    def _receive(self, deadline: float) -> None:
        connection = self._ready(deadline)
        try:
            data = connection.recv(1 << 16)
        except TimeoutError:
            raise _silent() from None
        except OSError as error:
            raise _silent(str(error)) from error
        if not data:
            raise _silent(details="the channel was closed")
        self._unread += data

    def _ready(self, deadline: float) -> socket.socket:
        assert self._socket is not None, "GuestAgent is used outside its `with` block"
        left_s = deadline - time.monotonic()
        if left_s <= 0:
            raise _silent()
        self._socket.settimeout(left_s)
        return self._socket


def _request(command: str, arguments: dict[str, object]) -> bytes:
    request: dict[str, object] = {"execute": command}
    if arguments:
        request["arguments"] = {name.replace("_", "-"): value for name, value in arguments.items()}
    return json.dumps(request).encode() + b"\n"


def _object(line: bytes, command: str) -> dict[str, Any]:
    try:
        return msgspec.json.decode(line, type=dict[str, Any])
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise _nonsense(command) from error


def _convert(value: object, expected: type[T], command: str) -> T:
    try:
        return msgspec.convert(value, type=expected)
    except msgspec.ValidationError as error:
        raise _nonsense(command) from error


def _decoded(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise _nonsense(command="base64") from error


def _silent(details: str = "") -> AgentSilentError:
    message = "the machine's guest agent does not answer"
    return AgentSilentError(
        message,
        details=details,
        hint="It starts with the machine's services; `agent-swarm logs` shows the console.",
    )


def _nonsense(command: str) -> MachineError:
    message = f"the guest agent's reply to {command} is not valid"
    return MachineError(message)
