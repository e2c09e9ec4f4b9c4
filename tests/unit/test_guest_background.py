"""Opening the shared connection in the background; `ssh` is a small program of ours."""

from __future__ import annotations

import os
import sys
import threading

import pytest

from agent_swarm import locks
from agent_swarm.config import Config
from agent_swarm.guest import connection
from agent_swarm.guest.target import Target
from agent_swarm.model import EnvironmentId, LocalEndpoint, SshEndpoint
from agent_swarm.paths import Paths

# closes what it inherits, as ssh(1) does; tells that it runs, waits for the word, and leaves a holder of the socket
SSH = f"""#!{sys.executable}
import os, socket, sys
os.closerange(3, 256)
with open(os.environ["SSH_CALLS"], "a+") as calls:
    calls.write(" ".join(sys.argv[1:]) + "\\n")
    calls.seek(0)
    number = len(calls.readlines())
with open(os.environ["SSH_GATE"] + str(number)) as gate:
    if gate.read() != "open":
        sys.exit(255)
listener = socket.socket(socket.AF_UNIX)
listener.bind(os.environ["SSH_SOCKET"])
listener.listen()
if os.fork():
    os._exit(0)
os.setsid()
null = os.open(os.devnull, os.O_RDWR)
for standard in range(3):
    os.dup2(null, standard)
for _ in range(int(os.environ["SSH_ANSWERS"])):
    listener.accept()[0].sendall(b"\\0\\0\\0\\x08\\0\\0\\0\\x01")
"""


@pytest.fixture
def paths(tmp_path, monkeypatch):
    found = Paths.at(tmp_path / "home")
    found.prepare()
    program = tmp_path / "bin" / "ssh"
    program.parent.mkdir()
    program.write_text(SSH)
    program.chmod(0o755)
    for number in (1, 2):
        os.mkfifo(tmp_path / f"gate{number}")
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("SSH_CALLS", str(tmp_path / "calls"))
    monkeypatch.setenv("SSH_GATE", str(tmp_path / "gate"))
    monkeypatch.setenv("SSH_SOCKET", str(found.ssh_socket(EnvironmentId("0123456789ab"))))
    monkeypatch.setenv("SSH_ANSWERS", "1")
    return found


@pytest.fixture
def target():
    endpoint = SshEndpoint("127.0.0.1", 1, "worker", "ssh-ed25519 AAAA")
    return Target(EnvironmentId("0123456789ab"), "task fix-1", "fix-1.swarm", endpoint)


def let(tmp_path, number, word):
    """Let the program go on that was called as the `number`-th; returns when it is there to hear it."""
    (tmp_path / f"gate{number}").write_text(word)


def calls(tmp_path):
    return (tmp_path / "calls").read_text().splitlines()


def test_it_returns_while_ssh_connects_and_a_session_waits_for_that_connection(paths, target, tmp_path):
    connection.open_in_background(paths, Config(), target)
    assert not locks.is_free(paths.lock(f"{target.environment_id}.ssh"))
    assert not connection.is_open(paths, target)
    opened = threading.Thread(
        target=connection.open_shared,
        args=(paths, Config(), target),
        kwargs={"timeout_s": 60, "alive": lambda: True},
    )
    opened.start()
    let(tmp_path, 1, "open")
    opened.join()
    assert len(calls(tmp_path)) == 1
    assert "-M -N -f" in calls(tmp_path)[0]


def test_a_session_connects_by_itself_where_the_background_could_not(paths, target, tmp_path):
    connection.open_in_background(paths, Config(), target)
    let(tmp_path, 1, "no")
    opened = threading.Thread(
        target=connection.open_shared,
        args=(paths, Config(), target),
        kwargs={"timeout_s": 60, "alive": lambda: True},
    )
    opened.start()
    let(tmp_path, 2, "open")
    opened.join()
    assert len(calls(tmp_path)) == 2


def test_nothing_is_begun_while_somebody_connects_already(paths, target, tmp_path):
    with locks.hold(paths.lock(f"{target.environment_id}.ssh"), busy=""):
        connection.open_in_background(paths, Config(), target)
    assert not (tmp_path / "calls").exists()


def test_a_simulated_machine_has_no_connection_to_open(paths, tmp_path):
    local = Target(EnvironmentId("0123456789ab"), "task x", "x.swarm", LocalEndpoint(tmp_path))
    connection.open_in_background(paths, Config(), local)
    assert not paths.lock("0123456789ab.ssh").exists()
