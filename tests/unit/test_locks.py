from __future__ import annotations

import fcntl
import signal
import subprocess
import sys
import threading
from typing import TYPE_CHECKING

import pytest

from agent_swarm import locks
from agent_swarm.errors import BusyError

if TYPE_CHECKING:
    from pathlib import Path

HOLDER = """
import sys
from pathlib import Path
from agent_swarm import locks
with locks.hold(Path(sys.argv[1]), busy=""):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "lock"


def test_a_held_lock_is_busy_with_the_callers_message_and_a_hint(path: Path) -> None:
    with (
        locks.hold(path, busy=""),
        pytest.raises(BusyError, match="task x is busy") as caught,
        locks.hold(path, busy="task x is busy"),
    ):
        pass
    assert caught.value.hint


def test_a_released_lock_can_be_taken_again(path: Path) -> None:
    for _ in range(2):
        with locks.hold(path, busy=""):
            assert not locks.is_free(path)
    assert locks.is_free(path)


def test_an_error_inside_releases_the_lock(path: Path) -> None:
    with pytest.raises(ZeroDivisionError), locks.hold(path, busy=""):
        1 / 0  # noqa: B018
    assert locks.is_free(path)


def test_shared_holders_are_many_but_exclude_an_exclusive_one(path: Path) -> None:
    with locks.hold(path, shared=True, busy=""), locks.hold(path, shared=True, busy=""):
        with pytest.raises(BusyError), locks.hold(path, busy=""):
            pass
        assert not locks.is_free(path)


def test_an_exclusive_holder_excludes_a_shared_one(path: Path) -> None:
    with locks.hold(path, busy=""), pytest.raises(BusyError), locks.hold(path, shared=True, busy=""):
        pass


def test_waiting_gets_the_lock_when_it_becomes_free(path: Path) -> None:
    held, entered = threading.Event(), threading.Event()

    def wait() -> None:
        held.wait(10)
        with locks.hold(path, wait_s=60, busy=""):
            entered.set()

    waiting = threading.Thread(target=wait)
    waiting.start()
    with locks.hold(path, busy=""):
        held.set()
        assert not entered.is_set()
    assert entered.wait(60)
    waiting.join()


def test_a_killed_holder_frees_the_lock(path: Path) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        assert not locks.is_free(path)
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        assert locks.is_free(path)


def test_looking_makes_no_file(path: Path) -> None:
    assert locks.is_free(path)
    assert not path.exists()


def test_a_lock_file_is_private_and_left_when_released(path: Path) -> None:
    with locks.hold(path, busy=""):
        pass
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_file_that_was_forgotten_between_open_and_lock_is_not_taken(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else two could hold "the" lock: one the removed file, one the new."""
    flock = fcntl.flock
    forgotten: list[int] = []

    def another_process_was_faster(descriptor: int, operation: int) -> None:
        if not forgotten:
            forgotten.append(descriptor)
            locks.forget(path)
        flock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", another_process_was_faster)
    with locks.hold(path, busy=""):
        assert forgotten
        assert path.exists()
        assert not locks.is_free(path)


def test_a_waiter_gets_the_lock_though_its_file_was_forgotten(path: Path) -> None:
    held, entered = threading.Event(), threading.Event()
    release = threading.Event()

    def wait() -> None:
        held.wait(10)
        with locks.hold(path, wait_s=60, busy=""):
            entered.set()
            release.wait(60)

    waiting = threading.Thread(target=wait)
    waiting.start()
    with locks.hold(path, busy=""):
        held.set()
        locks.forget(path)
    assert entered.wait(60)
    assert path.exists()
    assert not locks.is_free(path)
    release.set()
    waiting.join()


def test_forget_of_what_is_gone_is_silent(path: Path) -> None:
    locks.forget(path)
    assert not path.exists()
