"""`run` on a machine that is a local directory: the same command line and the same rules as over SSH."""

from __future__ import annotations

import contextlib
import hashlib
import os
import signal
import subprocess
import sys
import tempfile
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent_swarm import processes
from agent_swarm.config import Config
from agent_swarm.errors import MachineError, UsageError
from agent_swarm.guest import script, session
from agent_swarm.guest.command_line import command_line, signal_line
from agent_swarm.guest.target import Target
from agent_swarm.model import EnvironmentId, LocalEndpoint
from agent_swarm.paths import Paths
from tests.support import run_in_target

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

words = st.one_of(
    st.sampled_from(
        ["", " ", "--", "-n", "$HOME", "*", "a\nb", "\n", "'", '"', "\\", "`id`", "é", "!!", "~", "{a,b}"]
    ),
    st.binary(max_size=40).map(lambda raw: os.fsdecode(raw.replace(b"\0", b"\1"))),
)


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    found = Paths.at(tmp_path / "state")
    found.prepare()
    return found


@pytest.fixture
def target(tmp_path: Path) -> Target:
    root = tmp_path / "a machine"
    root.mkdir()
    return Target(EnvironmentId("0123456789ab"), "task fake", "fake.swarm", LocalEndpoint(root))


def output(paths: Paths, target: Target, argv: Sequence[str], stdin: bytes = b"") -> tuple[int, bytes, bytes]:
    with tempfile.TemporaryFile() as given, tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        given.write(stdin)
        given.seek(0)
        code = session.run(
            paths, Config(), target, argv, stdin=given.fileno(), stdout=out.fileno(), stderr=err.fileno()
        )
        out.seek(0)
        err.seek(0)
        return code, out.read(), err.read()


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(argv=st.lists(words, min_size=1, max_size=12))
def test_arguments_arrive_byte_for_byte(paths: Paths, target: Target, argv: list[str]) -> None:
    code, out, err = output(paths, target, ["/usr/bin/printf", "%s\\0", *argv])
    assert (code, out, err) == (0, b"".join(os.fsencode(word) + b"\0" for word in argv), b"")


@pytest.mark.parametrize("code", range(256))
def test_every_exit_code_passes_through(paths: Paths, target: Target, code: int) -> None:
    assert output(paths, target, ["sh", "-c", f"exit {code}"])[0] == code


@pytest.mark.parametrize("name", ["HUP", "INT", "QUIT", "KILL", "TERM", "SEGV", "USR1", "PIPE"])
def test_death_by_a_signal_is_128_plus_its_number_and_nothing_else_is_said(
    paths: Paths, target: Target, name: str
) -> None:
    number = signal.Signals[f"SIG{name}"]
    assert output(paths, target, ["sh", "-c", f"kill -{name} $$"]) == (128 + number, b"", b"")


def test_a_program_that_does_not_exist_is_127_with_a_message(paths: Paths, target: Target) -> None:
    code, out, err = output(paths, target, ["no-such-program"])
    assert (code, out) == (127, b"")
    assert b"no-such-program: not found" in err


def test_a_file_that_is_not_executable_is_126(paths: Paths, target: Target) -> None:
    assert output(paths, target, ["/etc/passwd"])[0] == 126


def test_shell_builtins_and_keywords_are_not_programs(paths: Paths, target: Target) -> None:
    assert output(paths, target, ["export"])[0] == 127
    assert output(paths, target, ["-x"])[0] == 127


def test_streams_stay_apart_and_whole(paths: Paths, target: Target) -> None:
    code, out, err = output(
        paths, target, ["sh", "-c", "head -c 10000000 /dev/zero | tr '\\0' x; echo problem >&2"]
    )
    assert code == 0
    assert hashlib.sha256(out).digest() == hashlib.sha256(b"x" * 10_000_000).digest()
    assert err == b"problem\n"


def test_stdin_is_forwarded(paths: Paths, target: Target) -> None:
    data = os.urandom(1_000_000)
    assert output(paths, target, ["cat"], data) == (0, data, b"")


def test_the_command_starts_in_the_machine_s_home(paths: Paths, target: Target) -> None:
    assert isinstance(target.endpoint, LocalEndpoint)
    root = os.fsencode(target.endpoint.root)
    assert output(paths, target, ["sh", "-c", 'pwd; echo "$HOME"'])[1] == root + b"\n" + root + b"\n"


def test_no_descriptor_and_no_variable_of_ours_reaches_the_command(paths: Paths, target: Target) -> None:
    _, out, _ = output(
        paths, target, ["sh", "-c", "ls /dev/fd | tr '\\n' ' '; env | grep -c AGENT_SWARM_RUN"]
    )
    assert out.split() == [b"0", b"1", b"2", b"3", b"0"]  # 3 is ls's own directory


def test_a_nul_in_an_argument_is_refused(paths: Paths, target: Target) -> None:
    with pytest.raises(UsageError, match="NUL"):
        output(paths, target, ["echo", "a\0b"])


def test_no_command_is_refused(paths: Paths, target: Target) -> None:
    with pytest.raises(UsageError, match="no command"):
        output(paths, target, [])


def test_a_command_line_that_the_kernel_would_refuse_is_refused_before(paths: Paths, target: Target) -> None:
    with pytest.raises(UsageError, match="longer than 127 KiB"):
        output(paths, target, ["echo", "x" * 131_072])


def test_a_closed_stdin_is_an_empty_one(paths: Paths, target: Target) -> None:
    done = subprocess.run(
        [
            "sh",
            "-c",
            'exec "$@" <&-',
            "sh",
            *run_in_target.command(paths, target, "sh", "-c", "cat; echo end"),
        ],
        capture_output=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, b"end\n")


@pytest.mark.parametrize("name", ["INT", "TERM", "HUP", "QUIT", "USR1", "USR2"])
def test_a_signal_reaches_the_command_and_all_of_its_children(
    paths: Paths, target: Target, name: str
) -> None:
    number = signal.Signals[f"SIG{name}"]
    with run_in_target.started(paths, target, "sh", "-c", "sleep 600 & echo $!; sleep 600") as (
        process,
        stdout,
    ):
        background = int(stdout.readline())
        process.send_signal(number)
        # the end of the stream: no process has it open any more
        ignored = name in ("INT", "QUIT")  # what a shell without job control starts in the background
        if ignored:
            os.kill(background, signal.SIGKILL)
        assert stdout.read() == b""
        assert process.wait() == 128 + number


@pytest.mark.skipif(sys.platform != "linux", reason="the line that runs in guests reads Linux's /proc")
def test_the_guest_s_signal_line_reaches_all_of_the_marked_session_and_no_other() -> None:
    def session_of(token: str) -> subprocess.Popen[bytes]:
        # timeout(1) makes a process group of its own
        text = "timeout 600 sh -c 'echo ready; exec sleep 600' & exec sleep 600"
        return subprocess.Popen(
            ["bash", "-c", command_line(["bash", "-c", text], token)],
            stdout=subprocess.PIPE,
            start_new_session=True,
        )

    with contextlib.ExitStack() as stack:
        marked, other = (stack.enter_context(session_of(token)) for token in ("a1b2c3d4", "a1b2c3d5"))
        for process in (marked, other):
            stack.callback(process.kill)
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
        subprocess.run(["sh", "-c", signal_line("a1b2c3d4", "TERM")], check=True, timeout=60)
        assert marked.stdout is not None
        assert marked.stdout.read() == b""  # nobody has the stream open any more
        assert marked.wait() == 128 + signal.SIGTERM
        assert other.poll() is None
        subprocess.run(["sh", "-c", signal_line("a1b2c3d5", "KILL")], check=True, timeout=60)
        assert other.wait() == -signal.SIGKILL


def test_a_command_may_handle_a_signal_and_choose_its_exit_code(paths: Paths, target: Target) -> None:
    script_text = "trap 'echo handled; exit 7' INT; echo ready; while :; do sleep 0.05; done"
    with run_in_target.started(paths, target, "sh", "-c", script_text) as (process, stdout):
        assert stdout.readline() == b"ready\n"
        process.send_signal(signal.SIGINT)
        assert stdout.read() == b"handled\n"
        assert process.wait() == 7


def test_a_second_interrupt_kills_a_command_that_ignores_the_first(paths: Paths, target: Target) -> None:
    with run_in_target.started(
        paths, target, "sh", "-c", "trap 'echo ignored' INT; echo ready; while :; do sleep 0.05; done"
    ) as (process, stdout):
        for expected in (b"ready\n", b"ignored\n"):
            assert stdout.readline() == expected
            process.send_signal(signal.SIGINT)
        assert process.wait() == 130
        assert stdout.read() == b""


def test_a_reader_that_goes_away_ends_the_command_quietly(paths: Paths, target: Target) -> None:
    with run_in_target.started(paths, target, "yes") as (process, stdout):
        stdout.readline()
        stdout.close()
        assert process.wait() == 128 + signal.SIGPIPE
        assert process.stderr is not None
        assert process.stderr.read() == b""


def test_collect_gives_lines_of_both_streams_without_their_ends(paths: Paths, target: Target) -> None:
    lines: list[str] = []
    code = script.collect(
        paths,
        Config(),
        target,
        ["sh", "-c", "printf 'one\\r\\ntwo\\n'; printf 'bad \\377' >&2; exit 5"],
        timeout_s=60,
        on_line=lines.append,
    )
    assert (code, lines) == (5, ["one", "two", "bad \N{REPLACEMENT CHARACTER}"])


def test_collect_cuts_lines_that_have_no_end(paths: Paths, target: Target) -> None:
    lines: list[str] = []
    argv = ["sh", "-c", "head -c 200000 /dev/zero | tr '\\0' x"]
    script.collect(paths, Config(), target, argv, timeout_s=60, on_line=lines.append)
    assert "".join(lines) == "x" * 200_000
    assert max(map(len, lines)) <= 65_536


def test_collect_kills_a_command_that_takes_too_long(paths: Paths, target: Target) -> None:
    lines: list[str] = []
    with pytest.raises(MachineError, match="did not end within"):
        script.collect(
            paths,
            Config(),
            target,
            ["sh", "-c", "echo $$; exec sleep 600"],
            timeout_s=1,
            on_line=lines.append,
        )
    left = processes.describe(int(lines[0]), "sleep")  # a killed process may need a moment to be gone
    assert left is None or processes.wait_for_end(left, timeout_s=20)


def test_a_script_that_reads_stdin_does_not_eat_itself(paths: Paths, target: Target) -> None:
    lines: list[str] = []
    text = b"#!/bin/sh\ncat\nread line || echo nothing to read\necho last\nexit 3\n"
    code = script.run_script(paths, Config(), target, text, timeout_s=60, on_line=lines.append)
    assert (code, lines) == (3, ["nothing to read", "last"])


def test_a_script_without_an_interpreter_line_is_bash_s(paths: Paths, target: Target) -> None:
    lines: list[str] = []
    text = b"words=(a b)\necho ${#words[@]}\n"
    assert script.run_script(paths, Config(), target, text, timeout_s=60, on_line=lines.append) == 0
    assert lines == ["2"]
