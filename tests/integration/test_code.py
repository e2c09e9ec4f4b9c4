"""`code` against a real SSH server: an editor that logs in as VS Code's Remote-SSH does, by the user's own
SSH configuration and with the host keys checked. On the shared machines."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from agent_swarm.model import Environment
    from agent_swarm.paths import Paths
    from tests.conftest import Guest

pytestmark = pytest.mark.machine

PROGRAM = Path(sys.executable).with_name("agent-swarm")
FOLDER = "/home/worker/a folder"

# The arguments are Remote-SSH's: --remote ssh-remote+HOST PATH. What the machine said goes to $HOME/opened.
EDITOR = """\
#!/bin/sh
set -eu
[ "$#" = 3 ] && [ "$1" = --remote ]
host="${2#ssh-remote+}"
ssh -F "$HOME/.ssh/config" -G "$host" >"$HOME/settings"
ssh -F "$HOME/.ssh/config" -T -o BatchMode=yes "$host" "test -d '$3' && hostname && id -un" >"$HOME/said"
mv "$HOME/said" "$HOME/opened"
"""

# OpenSSH looks its user's home up in the password database; here it is $HOME, and the user's own stays apart.
SSH = """\
#!/bin/sh
case " $* " in *" -F "*) exec {ssh} "$@" ;; esac
exec {ssh} -F "$HOME/.ssh/config" "$@"
"""

OWN_SETTINGS = {
    "nothing else": "",
    "strict, with other known hosts": (
        "Host *\n  StrictHostKeyChecking yes\n  UserKnownHostsFile /dev/null\n  GlobalKnownHostsFile /dev/null\n"
    ),
}


@dataclass(frozen=True)
class User:
    """Somebody with an editor, and a home directory with an SSH configuration."""

    home: Path
    swarm: Paths

    def configure(self, text: str) -> None:
        (self.home / ".ssh" / "config").write_text(text)

    def __call__(self, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [PROGRAM, *words],
            env={
                **os.environ,
                "AGENT_SWARM_HOME": str(self.swarm.home),
                "HOME": str(self.home),
                "PATH": f"{self.home / 'bin'}:{os.environ['PATH']}",
            },
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )

    @property
    def opened(self) -> list[str]:
        """What the machine said to the editor: its host name and our account there."""
        found = self.home / "opened"
        return found.read_text().split() if found.exists() else []

    @property
    def settings(self) -> set[str]:
        """What SSH went by, in the words of `ssh -G`."""
        return set((self.home / "settings").read_text().splitlines())


@pytest.fixture
def user(guest_paths: Paths, tmp_path: Path) -> User:
    (tmp_path / ".ssh").mkdir(mode=0o700)
    (tmp_path / "bin").mkdir()
    ssh = shutil.which("ssh")
    assert ssh is not None
    for name, text in {"code": EDITOR, "ssh": SSH.format(ssh=ssh)}.items():
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)
    return User(tmp_path, guest_paths)


@pytest.mark.parametrize("own_settings", OWN_SETTINGS.values(), ids=OWN_SETTINGS)
def test_the_editor_logs_in_to_a_task_and_finds_the_folder(
    guest: Guest, user: User, own_settings: str
) -> None:
    assert guest.run("mkdir", "-p", FOLDER)[0] == 0
    user.configure(f"Include {user.swarm.ssh_config}\n\n{own_settings}")
    done = user("code", guest.name, "--folder", FOLDER)
    assert done.returncode == 0, done.stderr
    assert user.opened == [guest.name, "worker"]
    assert {"stricthostkeychecking true", f"userknownhostsfile {user.swarm.known_hosts}"} <= user.settings


def test_the_editor_logs_in_to_a_project_in_its_home(guest: Guest, project: Environment, user: User) -> None:
    user.configure(f"Include {user.swarm.ssh_config}\n")
    done = user("project", "code", project.name)
    assert done.returncode == 0, done.stderr
    assert user.opened == [project.name, "worker"]


def test_an_editor_that_fails_is_reported(guest: Guest, user: User) -> None:
    user.configure(f"Include {user.swarm.ssh_config}\n")
    done = user("code", guest.name, "--folder", "/no such folder")
    assert (done.returncode, user.opened) == (1, [])
    assert "code ended with exit code 1" in done.stderr


def test_without_the_include_no_editor_is_started_and_the_line_is_named(guest: Guest, user: User) -> None:
    user.configure("")
    done = user("code", guest.name)
    assert done.returncode == 4
    assert f"Include {user.swarm.ssh_config}" in done.stderr
    assert not (user.home / "settings").exists()
