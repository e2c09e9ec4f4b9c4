from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from agent_swarm.errors import SwarmError, UsageError
from agent_swarm.model import EnvironmentId, Kind
from agent_swarm.paths import LONGEST_SSH_SOCKET_NAME, SOCKET_PATH_MAX_BYTES, Paths

ID = EnvironmentId("0123456789ab")


def test_the_state_directory_is_below_the_users_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert Paths.from_environment({}).home == tmp_path / ".agent-swarm"


def test_agent_swarm_home_overrides_it_and_is_made_absolute(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    assert Paths.from_environment({"AGENT_SWARM_HOME": "state"}).home == tmp_path / "state"


@pytest.mark.parametrize("given", ["", "  "])
def test_an_empty_agent_swarm_home_is_refused(given: str) -> None:
    with pytest.raises(UsageError):
        Paths.from_environment({"AGENT_SWARM_HOME": given})


def test_a_home_of_nobody_is_refused() -> None:
    with pytest.raises(UsageError, match="cannot be told"):
        Paths.from_environment({"AGENT_SWARM_HOME": "~no-such-user-0/state"})


def test_sockets_lie_in_a_short_state_directory() -> None:
    assert Paths.at(Path("/s"), {}).run == Path("/s/run")


@pytest.mark.parametrize("length", [1, 40, 90, 200])
def test_every_socket_path_fits_whatever_the_state_directory(tmp_path: Path, length: int) -> None:
    paths = Paths.at(Path("/") / ("é" * length), {})
    assert len(os.fsencode(paths.run / LONGEST_SSH_SOCKET_NAME)) <= SOCKET_PATH_MAX_BYTES


def test_two_long_state_directories_do_not_share_sockets() -> None:
    first, second = (Paths.at(Path("/") / (letter * 200), {}) for letter in "ab")
    assert first.run != second.run


def test_prepare_makes_private_directories_and_can_be_repeated(tmp_path: Path) -> None:
    paths = Paths.at(tmp_path / "deep" / "state", {"XDG_RUNTIME_DIR": str(tmp_path)})
    paths.prepare()
    paths.prepare()
    for directory in (paths.home, paths.run, paths.ssh, paths.locks, paths.logs, paths.tasks):
        assert directory.stat().st_mode & 0o777 == 0o700, directory
    shutil.rmtree(paths.run)


def test_prepare_below_a_file_is_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SwarmError, match="cannot be written") as caught:
        Paths.at(tmp_path / "file" / "state", {}).prepare()
    assert "AGENT_SWARM_HOME" in caught.value.hint


@pytest.mark.parametrize("planted", ["open directory", "symlink"])
def test_a_socket_directory_that_others_could_have_made_is_refused(tmp_path: Path, planted: str) -> None:
    paths = Paths(home=tmp_path / "state", run=tmp_path / "run")
    if planted == "symlink":
        (tmp_path / "elsewhere").mkdir(mode=0o700)
        paths.run.symlink_to(tmp_path / "elsewhere")
    else:
        paths.run.mkdir()
        paths.run.chmod(0o777)
    with pytest.raises(SwarmError, match="is not a private directory of yours"):
        paths.prepare()


def test_projects_and_tasks_have_their_own_directories() -> None:
    paths = Paths.at(Path("/s"), {})
    assert paths.machine(Kind.PROJECT, ID) == Path("/s/projects") / ID
    assert paths.machine(Kind.TASK, ID) == Path("/s/tasks") / ID
