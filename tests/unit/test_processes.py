from __future__ import annotations

import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import msgspec
import pytest

from agent_swarm import processes

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SLEEPER = "import signal, sys; print('up', flush=True); signal.pause()"
STUBBORN = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN);" + SLEEPER
MARKER = "agent-swarm-0123456789ab"


def spawn(script: str) -> subprocess.Popen[str]:
    process = subprocess.Popen([sys.executable, "-c", script, MARKER], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "up\n"
    return process


@pytest.fixture(params=[SLEEPER])
def process(request: pytest.FixtureRequest) -> Iterator[subprocess.Popen[str]]:
    with spawn(request.param) as running:
        yield running
        running.kill()


def described(process: subprocess.Popen[str]) -> processes.ProcessRecord:
    record = processes.describe(process.pid, MARKER)
    assert record is not None
    return record


def test_a_running_process_with_its_marker_is_alive(process: subprocess.Popen[str]) -> None:
    assert processes.alive(described(process))


def test_a_process_without_the_marker_is_not_described(process: subprocess.Popen[str]) -> None:
    assert processes.describe(process.pid, "agent-swarm-another") is None


@pytest.mark.parametrize(
    "difference", [{"start_time": 1.0}, {"boot_id": "another boot"}, {"marker": "agent-swarm-another"}]
)
def test_another_process_under_the_same_pid_is_neither_alive_nor_signalled(
    process: subprocess.Popen[str], difference: dict[str, object]
) -> None:
    record = msgspec.structs.replace(described(process), **difference)
    assert not processes.alive(record)
    assert processes.kill(record)
    assert process.poll() is None


def test_a_zombie_is_not_alive(process: subprocess.Popen[str]) -> None:
    record = described(process)
    process.send_signal(signal.SIGKILL)
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # it is a zombie now: nobody has reaped it
    assert not processes.alive(record)
    assert processes.describe(process.pid, "") is None


def test_no_record_is_not_alive() -> None:
    assert not processes.alive(None)


def test_kill_ends_a_process_by_sigterm(process: subprocess.Popen[str]) -> None:
    assert processes.kill(described(process), timeout_s=60)
    assert process.wait() == -signal.SIGTERM


@pytest.mark.parametrize("process", [STUBBORN], indirect=True)
def test_kill_ends_a_process_that_ignores_sigterm(process: subprocess.Popen[str]) -> None:
    record = described(process)
    processes.kill(record, timeout_s=0.0)
    assert process.wait() == -signal.SIGKILL


def test_kill_of_what_is_gone_is_silent(process: subprocess.Popen[str]) -> None:
    record = described(process)
    process.kill()
    process.wait()
    assert processes.kill(record)


def test_waiting_for_a_process_that_goes_on_says_so(process: subprocess.Popen[str]) -> None:
    assert not processes.wait_for_end(described(process), timeout_s=0.0)


def test_a_record_is_read_back_as_it_was_saved(process: subprocess.Popen[str], tmp_path: Path) -> None:
    processes.save(tmp_path / "record", described(process))
    assert processes.load(tmp_path / "record") == described(process)


@pytest.mark.parametrize("content", [None, b"", b"{}", b'{"pid": "1"}', b"\xff"])
def test_what_is_no_record_is_none(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "record").write_bytes(content)
    assert processes.load(tmp_path / "record") is None


def test_a_process_name_with_parentheses_and_spaces_is_read_right(tmp_path: Path) -> None:
    program = tmp_path / "a) Z 1 (b"
    program.symlink_to("/bin/cat")
    with subprocess.Popen([program, "-", MARKER], stdin=subprocess.PIPE) as process:
        record = processes.describe(process.pid, MARKER)
        assert record is not None
        assert processes.alive(record)


def test_memory_of_a_process_is_told_and_of_none_is_not(process: subprocess.Popen[str]) -> None:
    memory = processes.memory_bytes(os.getpid())
    assert memory is not None
    assert memory > 1 << 20
    process.kill()
    process.wait()
    assert processes.memory_bytes(process.pid) is None
