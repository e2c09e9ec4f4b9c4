"""The guest agent's client against agents that speak the protocol over a real socket, well or badly."""

from __future__ import annotations

import base64
import contextlib
import json
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import pytest

from agent_swarm.errors import MachineError
from agent_swarm.guest.agent import AgentRefusedError, AgentSilentError, Executed, GuestAgent

if TYPE_CHECKING:
    from pathlib import Path

Answer = Callable[[str, dict[str, Any]], bytes | None]


def reply(value: object) -> bytes:
    return json.dumps({"return": value}).encode() + b"\n"


@contextlib.contextmanager
def serving(
    path: Path, answer: Answer, *, before: bytes = b"", with_sync: Sequence[bytes] = ()
) -> Iterator[list[str]]:
    """An agent. `answer` gives the raw reply to a command, None for none; `before` lies unread in the
    channel, `with_sync` comes before each sync's reply. Yields the commands that came."""
    seen: list[str] = []
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()

        def serve() -> None:
            with contextlib.suppress(OSError):
                connection, _ = listener.accept()
                with connection, connection.makefile("rb") as lines:
                    connection.sendall(before)
                    for line in lines:
                        request = json.loads(line.lstrip(b"\xff"))
                        command, arguments = request["execute"], request.get("arguments", {})
                        seen.append(command)
                        if command == "guest-sync-delimited":
                            connection.sendall(b"".join(with_sync) + b"\xff" + reply(arguments["id"]))
                        elif (data := answer(command, arguments)) is not None:
                            connection.sendall(data)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield seen
        finally:
            with contextlib.suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
            thread.join(10)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "agent"


def test_a_call_returns_what_the_agent_returned(path: Path) -> None:
    with serving(path, lambda *_: reply({"version": "9.2"})), GuestAgent(path) as agent:
        assert agent.call("guest-info") == {"version": "9.2"}


def test_argument_names_are_written_with_dashes(path: Path) -> None:
    with serving(path, lambda _, arguments: reply(sorted(arguments))), GuestAgent(path) as agent:
        assert agent.call("guest-exec", capture_output=True) == ["capture-output"]


def test_what_an_earlier_client_left_unread_is_dropped(path: Path) -> None:
    stale = reply("stale") + b"\xff" + reply(123) + b'{"return": {"half'
    with serving(path, lambda *_: reply("fresh"), before=stale), GuestAgent(path) as agent:
        assert agent.call("guest-ping") == "fresh"


def test_the_channel_is_synchronised_once(path: Path) -> None:
    with serving(path, lambda *_: reply({})) as seen, GuestAgent(path) as agent:
        agent.call("guest-ping")
        agent.call("guest-ping")
    assert seen == ["guest-sync-delimited", "guest-ping", "guest-ping"]


def test_a_late_reply_is_not_taken_for_the_next_call_s(path: Path) -> None:
    held: list[bytes] = []

    def late(command: str, _: dict[str, Any]) -> bytes | None:
        if not held:
            held.append(reply("late"))
            return None
        return reply("right")

    # the late reply comes together with the next synchronisation's, in front of its sentinel
    with serving(path, late, with_sync=held) as seen, GuestAgent(path) as agent:
        with pytest.raises(AgentSilentError):
            agent.call("guest-slow", timeout_s=0.05)
        assert agent.call("guest-next") == "right"
    assert seen.count("guest-sync-delimited") == 2


def test_an_agent_s_error_is_told_with_its_words(path: Path) -> None:
    failure = b'{"error": {"class": "GenericError", "desc": "No such file"}}\n'
    with (
        serving(path, lambda *_: failure),
        GuestAgent(path) as agent,
        pytest.raises(AgentRefusedError) as caught,
    ):
        agent.call("guest-file-open", path="/x")
    assert caught.value.details == "No such file"


def test_a_missing_socket_is_an_agent_that_is_silent(path: Path) -> None:
    with pytest.raises(AgentSilentError, match="channel is closed"), GuestAgent(path):
        pass


def test_ping_says_whether_the_agent_answers(path: Path) -> None:
    with serving(path, lambda *_: reply({})), GuestAgent(path) as agent:
        assert agent.ping() is True
    path.unlink()
    with serving(path, lambda *_: None), GuestAgent(path) as agent:
        assert agent.ping(timeout_s=0.05) is False


def test_a_channel_that_closes_is_an_agent_that_is_silent(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        with GuestAgent(path) as agent:
            listener.accept()[0].close()
            with pytest.raises(AgentSilentError):
                agent.call("guest-ping")


def test_a_file_is_read_in_chunks_and_closed(path: Path) -> None:
    content = b"x" * 150_000
    left = bytearray(content)

    def answer(command: str, arguments: dict[str, Any]) -> bytes:
        if command == "guest-file-open":
            return reply(1000)
        if command == "guest-file-read":
            chunk = bytes(left[: arguments["count"]])
            del left[: len(chunk)]
            data = base64.b64encode(chunk).decode()
            return reply({"count": len(chunk), "buf-b64": data, "eof": not left})
        return reply({})

    with serving(path, answer) as seen, GuestAgent(path) as agent:
        assert agent.read_file("/etc/x") == content
    assert seen[-1] == "guest-file-close"


def test_a_file_without_end_is_given_up(path: Path) -> None:
    def answer(command: str, _: dict[str, Any]) -> bytes:
        if command == "guest-file-read":
            return reply({"count": 3000, "buf-b64": base64.b64encode(b"x" * 3000).decode(), "eof": False})
        return reply(1 if command == "guest-file-open" else {})

    with (
        serving(path, answer) as seen,
        GuestAgent(path) as agent,
        pytest.raises(MachineError, match="longer than 10000 bytes"),
    ):
        agent.read_file("/dev/zero", limit_bytes=10_000)
    assert seen[-1] == "guest-file-close"


def test_a_program_runs_to_its_end(path: Path) -> None:
    asked: list[dict[str, Any]] = []

    def answer(command: str, arguments: dict[str, Any]) -> bytes:
        asked.append(arguments)
        if command == "guest-exec":
            return reply({"pid": 77})
        if len(asked) == 2:
            return reply({"exited": False})
        output = base64.b64encode(b"out").decode()
        return reply({"exited": True, "exitcode": 3, "out-data": output})

    with serving(path, answer), GuestAgent(path) as agent:
        assert agent.execute(["sh", "-c", "x"], stdin=b"in") == Executed(3, b"out", b"")
    assert asked[0] == {
        "path": "sh",
        "arg": ["-c", "x"],
        "capture-output": True,
        "input-data": base64.b64encode(b"in").decode(),
    }
    assert asked[1] == {"pid": 77}


def test_a_program_killed_by_a_signal_has_a_negative_code(path: Path) -> None:
    def answer(command: str, _: dict[str, Any]) -> bytes:
        return reply({"pid": 1} if command == "guest-exec" else {"exited": True, "signal": 9})

    with serving(path, answer), GuestAgent(path) as agent:
        assert agent.execute(["true"]).returncode == -9


def test_shutdown_does_not_wait_for_an_answer(path: Path) -> None:
    with serving(path, lambda *_: None) as seen, GuestAgent(path) as agent:
        agent.shutdown()
    assert seen == ["guest-sync-delimited", "guest-shutdown"]


def test_shutdown_of_a_silent_agent_is_an_error(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        with GuestAgent(path) as agent, pytest.raises(AgentSilentError):
            agent.shutdown(timeout_s=0.05)


def test_freeze_and_thaw_tell_how_many_file_systems(path: Path) -> None:
    answers = {"guest-fsfreeze-freeze": reply(2), "guest-fsfreeze-thaw": reply(2)}
    with serving(path, lambda command, _: answers[command]), GuestAgent(path) as agent:
        assert (agent.freeze(), agent.thaw()) == (2, 2)


HOSTILE = {
    "no JSON": b"hello\n",
    "no object": b"[1]\n",
    "neither return nor error": b"{}\n",
    "not UTF-8": b'{"return": "\xfe\xfe"}\n',
    "nested without end": b'{"return":' + b"[" * 200_000 + b"\n",
    "a number for a handle": reply("1000"),
    "an error that is no object": b'{"error": 5}\n',
    "a reply without end": b"x" * (2 << 20),
}


@pytest.mark.parametrize("data", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_hostile_reply_is_an_error_of_ours(path: Path, data: bytes) -> None:
    with serving(path, lambda *_: data), GuestAgent(path) as agent, pytest.raises(MachineError):
        agent.read_file("/etc/x")


@pytest.mark.parametrize("chunk", [{"count": 4, "buf-b64": "%%%%", "eof": True}, {"count": "4"}, [], None])
def test_a_hostile_chunk_is_an_error_of_ours(path: Path, chunk: object) -> None:
    def answer(command: str, _: dict[str, Any]) -> bytes:
        return reply(chunk if command == "guest-file-read" else 1)

    with serving(path, answer), GuestAgent(path) as agent, pytest.raises(MachineError):
        agent.read_file("/etc/x")


def test_an_agent_that_floods_the_channel_before_it_answers_runs_into_the_time_limit(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        with GuestAgent(path) as agent:
            guest, _ = listener.accept()

            def flood() -> None:
                with contextlib.suppress(OSError):
                    while True:
                        guest.sendall(b"x" * 65_536)

            thread = threading.Thread(target=flood)
            thread.start()
            with pytest.raises(AgentSilentError):
                agent.call("guest-ping", timeout_s=0.1)
        guest.close()
        thread.join(10)
        assert not thread.is_alive()
