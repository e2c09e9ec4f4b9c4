"""What tests share.

Machines are expensive in emulation, so one base image is built per recipe and kept outside the tree
(AGENT_SWARM_TEST_CACHE, else the user's cache directory), and one project and one task are booted per
run: a test that only runs commands uses `guest`; one that stops, breaks or deletes makes its own.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from agent_swarm.config import Config, ResourceSettings, TimeoutSettings
from agent_swarm.events import Event, Notice, OutputLine, StepDone
from agent_swarm.operations.requests import ResourceRequest
from agent_swarm.paths import Paths

if TYPE_CHECKING:
    from agent_swarm.model import Environment, Image
    from agent_swarm.swarm import Swarm

IMAGE = "build:trixie"
BOOT_S = 900.0
"""Six machines may boot at once on two emulated cores."""
SMALL = ResourceRequest(cpus=2, memory_mib=1024, disk_gib=20)


_RUNTIME = pytest.StashKey[Path]()


def pytest_configure(config: pytest.Config) -> None:
    """Temporary paths of tests are too long for sockets: those go to a directory that goes with the run."""
    directory = Path(tempfile.mkdtemp(prefix="swarm-"))
    config.stash[_RUNTIME] = directory
    os.environ["XDG_RUNTIME_DIR"] = str(directory)


def pytest_unconfigure(config: pytest.Config) -> None:
    shutil.rmtree(config.stash[_RUNTIME], ignore_errors=True)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Fast tests first."""
    items.sort(key=lambda item: item.get_closest_marker("machine") is not None)


SHARED_MACHINES = (
    "tests/integration/test_code.py",
    "tests/integration/test_live.py",
    "tests/integration/test_machines.py",
    "tests/integration/test_qemu_guest.py",
    "tests/integration/test_ssh_connection.py",
    "tests/integration/test_ssh_copy.py",
    "tests/integration/test_ssh_run.py",
)
"""Files whose tests use the machines that are booted once: all of them go to one worker."""


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> object:
    """Which tests stay together on a worker. By our own rule: pytest-xdist 3.8 cannot see its groups' names
    in the node ids of pytest 9.2."""
    from xdist.scheduler import LoadScopeScheduling

    class BySharedFixtures(LoadScopeScheduling):  # type: ignore[misc] # untyped
        def _split_scope(self, nodeid: str) -> str:
            file, _, test = nodeid.partition("::")
            if file in SHARED_MACHINES:
                return "shared machines"
            if file.startswith("tests/contract/"):
                return f"{file}::{test.partition('::')[0]}"  # a class shares its provider and its machines
            return nodeid

    return BySharedFixtures(config, log)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """On CI nothing that a test needs may be missing: it fails there instead of being skipped."""
    needed = [program for mark in item.iter_markers("needs") for program in mark.args]
    if item.get_closest_marker("machine") is not None:
        needed += ["qemu-system-x86_64", "qemu-img", "passt", "mmdebstrap"]
    missing = [program for program in needed if not installed(program)]
    if missing:
        reason = f"not installed: {', '.join(missing)}"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)


def installed(program: str) -> bool:
    """As script/lib.sh has it: what has a / is a file; /usr/sbin is not on every user's PATH."""
    if "/" in program:
        return Path(program).exists()
    return shutil.which(program, path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin") is not None


@pytest.fixture(autouse=True)
def _own_state(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test touches the user's own state directory, SSH agent or provider choice."""
    monkeypatch.setenv("AGENT_SWARM_HOME", str(tmp_path_factory.getbasetemp() / "unused-home"))
    for name in ("AGENT_SWARM_PROVIDER", "AGENT_SWARM_ACCEL", "SSH_AUTH_SOCK"):
        monkeypatch.delenv(name, raising=False)


def show(event: Event) -> None:
    """A Progress for tests: what took time, and what a boot said, in the captured output."""
    if isinstance(event, StepDone):
        print(f"{event.subject}: {event.step} {event.duration_s:.1f} s", file=sys.stderr)
    elif isinstance(event, Notice):
        print(event.message, file=sys.stderr)
    elif isinstance(event, OutputLine):
        print(event.line, file=sys.stderr)


@pytest.fixture(scope="session")
def test_cache() -> Path:
    """A state directory for images alone, kept between runs."""
    default = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "agent-swarm-tests"
    found = Path(os.environ.get("AGENT_SWARM_TEST_CACHE") or default)
    found.mkdir(parents=True, exist_ok=True)
    return found


@pytest.fixture(scope="session")
def base_image(test_cache: Path) -> Image:
    """The image that the demo uses too, built here from Debian packages, once per recipe."""
    from agent_swarm.images.obtain import obtain

    paths = Paths.at(test_cache)
    paths.prepare()
    return obtain(IMAGE, paths=paths, config=Config(), sha256=None, refresh=False, progress=show)


@pytest.fixture(scope="session")
def machine_home(base_image: Image, test_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Paths:
    """A state directory of this run that shares the cache's images."""
    home = tmp_path_factory.mktemp("home")
    home.chmod(0o700)
    (home / "base-images").symlink_to(test_cache / "base-images")
    paths = Paths.at(home)
    paths.prepare()
    return paths


@pytest.fixture(scope="session")
def machines(machine_home: Paths):
    """A Swarm whose machines are real. Everything that it made is deleted at the end."""
    from agent_swarm.swarm import Swarm

    config = Config(
        provider="qemu",
        resources=ResourceSettings(cpus=SMALL.cpus, memory_mib=SMALL.memory_mib, disk_gib=20),
        timeouts=TimeoutSettings(boot_s=BOOT_S),
    )
    with Swarm(paths=machine_home, config=config, progress=show) as swarm:
        yield swarm
        for environment in reversed(swarm.environments()):
            swarm.delete(environment.name, kind=environment.kind, force=True)


@pytest.fixture(scope="session")
def project(machines: Swarm) -> Environment:
    """A running project, set up by setup.sh, with its first baseline."""
    machines.paths.setup_script.write_text(
        "#!/bin/bash\nset -e\necho set-up of $(hostname)\necho from-the-project | sudo tee /etc/made-by-setup\n"
    )
    return machines.create_project("shared")


@dataclass(frozen=True)
class Guest:
    """The shared task. Tests run commands in it and leave it running."""

    swarm: Swarm
    name: str

    def run(self, *argv: str, stdin: bytes = b"") -> tuple[int, bytes, bytes]:
        done = self.swarm.run_captured(self.name, argv, stdin=stdin)
        return done.exit_code, done.stdout, done.stderr


@pytest.fixture(scope="session")
def guest(machines: Swarm, project: Environment) -> Guest:
    machines.create(project.name, "shared-task")
    return Guest(machines, "shared-task")
