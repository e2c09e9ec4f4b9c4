"""The entry point: help, mistakes, exit codes; nothing here opens a state directory."""

from __future__ import annotations

import subprocess
import sys

import click
import pytest

from agent_swarm.cli import app, table
from agent_swarm.cli.options import Amount

HEAVY = ("rich", "msgspec", "httpx", "psutil", "sqlite3", "qemu", "pycdlib", "agent_swarm.providers")


def run(capsys, *words):
    code = app.execute(words)
    out, err = capsys.readouterr()
    return code, out, err


def test_help_is_grouped_and_goes_to_stdout(capsys):
    code, out, err = run(capsys, "--help")
    assert code == 0
    assert err == ""
    for section in table.SECTIONS:
        assert f"\n{section}:\n" in out


@pytest.mark.parametrize("words", [(), ("project",), ("bulk",), ("config",), ("image",)])
def test_a_group_alone_shows_its_help(capsys, words):
    assert run(capsys, *words) == run(capsys, *words, "--help")


@pytest.mark.parametrize(
    ("words", "entry"),
    [pytest.param(words, entry, id=" ".join(words)) for words, entry in table.every_command()],
)
def test_every_command_shows_its_help_with_an_example(capsys, words, entry):
    code, out, _ = run(capsys, *words, "--help")
    assert code == 0
    assert f"Usage: agent-swarm {' '.join(words)}" in out
    assert "\nExample" in out


@pytest.mark.parametrize("words", [["--help"], ["bulk", "--help"], ["create", "--help"], ["--version"]])
def test_help_imports_nothing_heavy(words):
    script = (
        "import sys\n"
        "from agent_swarm.cli import app\n"
        f"code = app.execute({words!r})\n"
        f"print([name for name in sys.modules if name in {HEAVY!r}], file=sys.stderr)\n"
        "sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stderr == "[]\n"


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["crate"], "Did you mean 'create'?"),
        (["project", "lst"], "Did you mean 'list'?"),
        (["list", "--jsn"], "Did you mean '--json'?"),
        (["create", "--cpu", "2", "web", "fix-1"], "Did you mean '--cpus'?"),
        (["create", "web"], "See `agent-swarm create --help`."),
        (["frobnicate"], "See `agent-swarm --help`."),
    ],
)
def test_a_usage_mistake_ends_with_2_and_the_nearest_name(capsys, words, hint):
    code, out, err = run(capsys, *words)
    assert code == 2
    assert out == ""
    assert err.startswith("error: ")
    assert f"hint: {hint}\n" in err


def test_the_message_of_a_mistake_is_on_one_printable_line(capsys):
    code, _, err = run(capsys, "cre\x1b[31mate\nx")
    assert code == 2
    assert "\x1b" not in err
    assert len(err.splitlines()) == 2


@pytest.mark.parametrize(
    ("text", "unit", "expected"),
    [
        ("4096", "M", 4096),
        ("4G", "M", 4096),
        ("512m", "M", 512),
        ("1.5GiB", "M", 1536),
        ("1T", "M", 1024 * 1024),
        ("20", "G", 20),
        ("20G", "G", 20),
        ("2048M", "G", 2),
    ],
)
def test_sizes_are_read_in_their_unit_or_with_a_suffix(text, unit, expected):
    assert Amount(unit, least=1, most=2**30).convert(text, None, None) == expected


@pytest.mark.parametrize("text", ["", "lots", "-1", "4X", "1500M", "0", "99999999999", "1e3", "\uff14G"])
def test_a_size_that_is_none_is_refused(text):
    with pytest.raises(click.BadParameter):
        Amount("G", least=1, most=65_536).convert(text, None, None)


def test_options_after_the_machine_of_run_belong_to_the_command():
    found = table.command("run", table.COMMANDS["run"])
    context = found.make_context("run", ["fix-1", "ls", "--help", "-y", "--", "--json"])
    assert context.params == {"task": "fix-1", "command": ("ls", "--help", "-y", "--", "--json")}
