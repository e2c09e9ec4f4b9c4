"""The scripts of script/ and .ci/, and the documents beside them."""

from __future__ import annotations

import os
import re
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPTS = [ROOT / "script" / name for name in ("bench", "check", "demo", "test")] + [ROOT / ".ci/run"]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
NEEDED = (
    "bash",
    "cat",
    "dirname",
    "env",
    "ls",
    "mktemp",
    "rm",
    "sed",
    "sleep",
    "sort",
    "tail",
    "tr",
    "uname",
)


class Host:
    """A computer that has the programs of a folder and no others."""

    def __init__(self, folder: Path) -> None:
        self.programs = folder / "bin"
        self.programs.mkdir()
        self.calls = folder / "calls"
        for name in NEEDED:
            self.link(name)

    def link(self, name: str) -> None:
        found = shutil.which(name)
        assert found is not None
        (self.programs / name).symlink_to(found)

    def write(self, name: str, body: str) -> None:
        program = self.programs / name
        program.write_text(f"#!{shutil.which('bash')}\n{body}\n", encoding="utf-8")
        program.chmod(0o755)

    def user(self, number: int) -> None:
        self.write("id", f"echo {number}")

    def package_manager(self, name: str, body: str = "") -> None:
        """`name` notes how it was called and then does `body`."""
        self.write(name, f'echo {name} "$@" >>{self.calls}\n{body}')

    def python(self, *, without: str = "nothing of the sort") -> None:
        """A python3 that cannot import the module `without`."""
        self.write(
            "python3",
            f'case "$*" in *"{without}"*) exit 1 ;; esac\nexec {sys.executable} "$@"',
        )

    def bash(self, line: str, *, needs: str = "") -> subprocess.CompletedProcess[str]:
        """Run a line of bash after script/lib.sh; the host needs the programs of the table `needs`."""
        table = f"needs() {{ printf '%s' '{needs}'; }}"
        return subprocess.run(
            ["bash", "-c", f"set -euo pipefail; . script/lib.sh; {table}; {line}"],
            cwd=ROOT,
            env={"PATH": str(self.programs), "TMPDIR": str(self.programs.parent), "HOME": "/nonexistent"},
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )

    @property
    def called(self) -> list[str]:
        return self.calls.read_text().splitlines() if self.calls.exists() else []


@pytest.fixture
def host(tmp_path: Path) -> Host:
    made = Host(tmp_path)
    made.user(1000)
    made.python()
    return made


TABLE = "frob frob-tools frobnicate frob-arch frob-brew\nbash bash bash bash bash\n"


def test_a_user_without_rights_is_told_the_exact_command_and_nothing_is_done(host: Host) -> None:
    host.package_manager("apt-get")
    host.write("sudo", 'echo "a password is required" >&2; exit 1')

    done = host.bash("require_host needs; echo went on", needs=TABLE)

    assert done.returncode == 5
    assert "sudo apt-get install -y --no-install-recommends frob-tools\n" in done.stderr
    assert done.stdout == ""
    assert host.called == []


def test_a_user_without_sudo_is_told_to_use_su(host: Host) -> None:
    host.package_manager("apt-get")

    done = host.bash("require_host needs", needs=TABLE)

    assert done.returncode == 5
    assert "su -c 'apt-get install -y --no-install-recommends frob-tools'\n" in done.stderr


@pytest.mark.parametrize(
    ("manager", "command"),
    [
        ("dnf", "dnf install -y frobnicate\n"),
        ("pacman", "pacman -S --needed frob-arch\n"),
        ("brew", "brew install frob-brew\n"),
    ],
)
def test_other_package_managers_are_named_and_not_run_even_for_root(
    host: Host, manager: str, command: str
) -> None:
    host.user(0)
    host.package_manager(manager)

    done = host.bash("require_host needs", needs=TABLE)

    assert done.returncode == 5
    assert command in done.stderr
    assert host.called == []


def test_root_installs_only_what_is_missing(host: Host) -> None:
    host.user(0)
    host.package_manager("apt-get")

    done = host.bash('require_host needs; echo "$PYTHON"', needs=TABLE)

    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(host.programs / "python3")
    assert [line.split()[-3:] for line in host.called] == [
        ["install", "--no-install-recommends", "frob-tools"]
    ]


def test_a_sudo_that_asks_nothing_is_used(host: Host) -> None:
    host.package_manager("apt-get")
    host.write("sudo", '[ "$1" = -n ] || exit 1; shift; exec "$@"')
    host.write("true", "exit 0")

    done = host.bash("require_host needs", needs=TABLE)

    assert done.returncode == 0, done.stderr
    assert host.called[0].endswith("install --no-install-recommends frob-tools")


def test_package_lists_are_fetched_when_an_install_fails(host: Host) -> None:
    host.user(0)
    lists = host.programs.parent / "lists"
    host.package_manager("apt-get", f'case "$*" in *update) : >{lists} ;; *) [ -e {lists} ] ;; esac')

    done = host.bash("require_host needs", needs=TABLE)

    assert done.returncode == 0, done.stderr
    assert ["update" in line for line in host.called] == [False, True, False]


def test_an_install_that_fails_shows_its_output_and_the_command(host: Host) -> None:
    host.user(0)
    host.package_manager("apt-get", 'echo "Could not resolve the mirror" >&2; exit 100')

    done = host.bash("require_host needs", needs=TABLE)

    assert done.returncode == 5
    assert "Could not resolve the mirror" in done.stderr
    assert "  apt-get install -y --no-install-recommends frob-tools\n" in done.stderr


def test_nothing_is_said_when_nothing_is_missing(host: Host) -> None:
    host.package_manager("apt-get")

    done = host.bash("require_host needs", needs="bash bash bash bash bash\n")

    assert (done.returncode, done.stderr) == (0, "")
    assert host.called == []


def test_a_python_without_ensurepip_needs_its_venv_package(host: Host) -> None:
    host.package_manager("apt-get")
    host.python(without="ensurepip")
    version = f"{sys.version_info.major}.{sys.version_info.minor}"

    done = host.bash("require_host needs")

    assert done.returncode == 5
    assert f" python{version}-venv'" in done.stderr


def test_a_python_that_does_not_run_or_is_too_old_is_not_taken(host: Host) -> None:
    host.write("python3.13", "exit 127")  # a pyenv shim of a version that is not installed
    older = "import sys; sys.version_info = (3, 10, 12); exec(sys.argv[1])"
    host.write("python3.12", f"exec {sys.executable} -c '{older}' \"$2\"")

    assert host.bash("find_python").stdout.strip() == str(host.programs / "python3")


def test_a_directory_that_is_no_virtual_environment_is_left_alone(host: Host, tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "file").write_text("mine")

    done = host.bash(f"VENV={precious}; fill_venv run fingerprint")

    assert done.returncode == 1
    assert "no virtual environment" in done.stderr
    assert (precious / "file").read_text() == "mine"


def test_a_failed_step_ends_with_its_last_lines_and_its_exit_code(host: Host) -> None:
    done = host.bash("step 'do it' bash -c 'echo first; echo why >&2; exit 7'")

    assert done.returncode == 7
    assert "do it: failed" in done.stderr
    assert done.stderr.splitlines()[-2:] == ["    first", "    why"]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_can_be_run(script: Path) -> None:
    assert script.stat().st_mode & stat.S_IXUSR
    assert script.read_text().startswith("#!/usr/bin/env bash\n")


def test_the_linters_find_nothing() -> None:
    """script/check, in the environment that the tests run in."""
    done = subprocess.run(
        [ROOT / "script/check"],
        env={**os.environ, "AGENT_SWARM_CHECK_PYTHON": sys.executable},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_of_the_documents_lead_somewhere(document: Path) -> None:
    text = re.sub(r"```.*?```", "", document.read_text(), flags=re.DOTALL)
    targets = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text) + re.findall(r'src="([^"]+)"', text)
    local = [target for target in targets if "://" not in target]
    assert [target for target in local if not (document.parent / target).exists()] == []


def test_the_readme_opens_with_the_two_commands() -> None:
    opening = "\n".join((ROOT / "README.md").read_text().splitlines()[:25])
    assert opening.index("script/demo") < opening.index("script/test")
