"""`run` in a real machine: exact arguments, streams, exit codes and signals."""

from __future__ import annotations

import concurrent.futures
import hashlib
import os
import signal
import tempfile
from typing import TYPE_CHECKING

import pexpect
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent_swarm.config import Config
from agent_swarm.errors import MachineError
from agent_swarm.guest import connection, script, session
from tests.support import run_in_target

if TYPE_CHECKING:
    from collections.abc import Sequence

    from agent_swarm.guest.target import Target
    from agent_swarm.paths import Paths

pytestmark = pytest.mark.machine

words = st.one_of(
    st.sampled_from(
        ["", " ", "--", "-n", "$HOME", "*", "a\nb", "\n", "'", '"', "\\", "`id`", "é", "!!", "~", "{a,b}"]
    ),
    st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=30),
    st.binary(max_size=60).map(lambda raw: os.fsdecode(raw.replace(b"\0", b"\1"))),
)


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


def still_running(paths: Paths, target: Target, marker: str) -> bytes:
    """The processes in the machine whose command line holds `marker`, which is written with brackets so
    that the search does not find itself."""
    return output(paths, target, ["sh", "-c", f"grep -als -e '{marker}' /proc/[0-9]*/cmdline"])[1]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(argv=st.lists(words, min_size=1, max_size=40))
def test_arguments_arrive_byte_for_byte(guest_paths: Paths, guest_target: Target, argv: list[str]) -> None:
    code, out, err = output(guest_paths, guest_target, ["printf", "%s\\0", *argv])
    assert (code, out, err) == (0, b"".join(os.fsencode(word) + b"\0" for word in argv), b"")


def test_every_byte_but_nul_can_be_in_an_argument(guest_paths: Paths, guest_target: Target) -> None:
    everything = bytes(range(1, 256))
    assert output(guest_paths, guest_target, ["printf", "%s", os.fsdecode(everything)])[1] == everything


def test_a_hundred_megabytes_arrive_whole_and_stderr_stays_apart(
    guest_paths: Paths, guest_target: Target
) -> None:
    argv = ["sh", "-c", "yes 'a line of the stream' | head -c 100000000; echo problem >&2"]
    expected = hashlib.sha256((b"a line of the stream\n" * 4_800_000)[:100_000_000]).hexdigest()
    code, out, err = output(guest_paths, guest_target, argv)
    assert (code, len(out), hashlib.sha256(out).hexdigest(), err) == (0, 100_000_000, expected, b"problem\n")


def test_stdin_is_forwarded(guest_paths: Paths, guest_target: Target) -> None:
    data = os.urandom(3_000_000)
    assert output(guest_paths, guest_target, ["cat"], data) == (0, data, b"")


def test_exit_codes_pass_through_and_sessions_run_side_by_side(
    guest_paths: Paths, guest_target: Target
) -> None:
    def code(number: int) -> int:
        return output(guest_paths, guest_target, ["sh", "-c", f"exit {number}"])[0]

    # all 256 go through the same command line in tests/unit/test_guest_local_run.py
    codes = [*range(0, 256, 5), 126, 127, 128, 254]
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        assert list(pool.map(code, codes)) == codes


@pytest.mark.parametrize("name", ["KILL", "TERM", "INT", "SEGV"])
def test_death_by_a_signal_is_128_plus_its_number_and_nothing_else_is_said(
    guest_paths: Paths, guest_target: Target, name: str
) -> None:
    number = signal.Signals[f"SIG{name}"]
    assert output(guest_paths, guest_target, ["sh", "-c", f"kill -{name} $$"]) == (128 + number, b"", b"")


def test_a_program_that_does_not_exist_is_127_with_a_message(
    guest_paths: Paths, guest_target: Target
) -> None:
    code, out, err = output(guest_paths, guest_target, ["no-such-program"])
    assert (code, out) == (127, b"")
    assert b"no-such-program: not found" in err


def test_a_file_that_is_not_executable_is_126(guest_paths: Paths, guest_target: Target) -> None:
    assert output(guest_paths, guest_target, ["/etc/passwd"])[0] == 126


def test_the_command_starts_in_the_home_directory(guest_paths: Paths, guest_target: Target) -> None:
    assert output(guest_paths, guest_target, ["pwd"])[1] == b"/home/worker\n"


@pytest.mark.parametrize("name", ["INT", "TERM", "HUP", "QUIT", "USR1"])
def test_a_signal_ends_the_command_in_the_machine(
    guest_paths: Paths, guest_target: Target, name: str
) -> None:
    number = signal.Signals[f"SIG{name}"]
    with run_in_target.started(
        guest_paths, guest_target, "sh", "-c", f"echo ready; sleep 98{number:02}; echo not reached"
    ) as (process, stdout):
        assert stdout.readline() == b"ready\n"
        process.send_signal(number)
        assert process.wait() == 128 + number
        assert stdout.read() == b""
    assert still_running(guest_paths, guest_target, f"[s]leep.98{number:02}") == b""


def test_ctrl_c_reaches_a_command_that_became_root_and_left_the_process_group(
    guest_paths: Paths, guest_target: Target
) -> None:
    with run_in_target.started(
        guest_paths, guest_target, "sudo", "sh", "-c", "echo ready; timeout 9801 sleep 9802"
    ) as (process, stdout):
        assert stdout.readline() == b"ready\n"
        process.send_signal(signal.SIGINT)
        assert process.wait() == 130
    assert still_running(guest_paths, guest_target, "[s]leep.9802") == b""


def test_a_command_may_handle_a_signal_and_choose_its_exit_code(
    guest_paths: Paths, guest_target: Target
) -> None:
    text = "trap 'echo handled; exit 7' INT; echo ready; while :; do sleep 0.1; done"
    with run_in_target.started(guest_paths, guest_target, "sh", "-c", text) as (process, stdout):
        assert stdout.readline() == b"ready\n"
        process.send_signal(signal.SIGINT)
        assert stdout.read() == b"handled\n"
        assert process.wait() == 7


def test_a_second_ctrl_c_kills_a_command_that_ignores_the_first(
    guest_paths: Paths, guest_target: Target
) -> None:
    text = "trap 'echo ignored' INT; echo ready; while :; do sleep 0.1; done; : 9803"
    with run_in_target.started(guest_paths, guest_target, "sh", "-c", text) as (process, stdout):
        for expected in (b"ready\n", b"ignored\n"):
            assert stdout.readline() == expected
            process.send_signal(signal.SIGINT)
        assert process.wait() == 130
    assert still_running(guest_paths, guest_target, ": [9]803") == b""


def test_a_reader_that_goes_away_ends_the_command_quietly(guest_paths: Paths, guest_target: Target) -> None:
    with run_in_target.started(guest_paths, guest_target, "yes") as (process, stdout):
        stdout.readline()
        stdout.close()
        assert process.wait() == 128 + signal.SIGPIPE
        assert process.stderr is not None
        assert process.stderr.read() == b""


def terminal(paths: Paths, target: Target, *argv: str) -> pexpect.spawn[bytes]:
    program, *arguments = run_in_target.command(paths, target, *argv)
    return pexpect.spawn(program, arguments, timeout=60, dimensions=(31, 97))


def test_a_terminal_is_given_when_stdin_is_one_with_its_size(
    guest_paths: Paths, guest_target: Target
) -> None:
    child = terminal(guest_paths, guest_target, "sh", "-c", "stty size; exit 3")
    child.expect(pexpect.EOF)
    child.close()
    assert child.before.split() == [b"31", b"97"]
    assert child.exitstatus == 3


def test_there_is_no_terminal_when_stdin_is_none(guest_paths: Paths, guest_target: Target) -> None:
    assert output(guest_paths, guest_target, ["tty"]) == (1, b"not a tty\n", b"")


def test_ctrl_c_in_a_terminal_interrupts_the_command(guest_paths: Paths, guest_target: Target) -> None:
    child = terminal(guest_paths, guest_target, "sh", "-c", "echo ready; sleep 9804")
    child.expect_exact(b"ready")
    child.send(b"\x03")
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 130
    assert still_running(guest_paths, guest_target, "[s]leep.9804") == b""


def test_a_terminal_s_text_is_not_searched_for_ssh_s_escapes(
    guest_paths: Paths, guest_target: Target
) -> None:
    child = terminal(
        guest_paths, guest_target, "sh", "-c", "stty -echo; echo ready; read a; read b; echo [$b]"
    )
    child.expect_exact(b"ready")
    child.send(b"\n~.\n")
    child.expect_exact(b"[~.]")
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 0


def test_an_interactive_shell_has_a_terminal_and_tells_its_exit_code(
    guest_paths: Paths, guest_target: Target
) -> None:
    child = terminal(guest_paths, guest_target)
    child.send(b"tty && echo in-$((40 + 2)); exit 9\n")
    child.expect_exact(b"in-42")
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 9


def test_a_set_up_script_s_output_comes_as_lines(guest_paths: Paths, guest_target: Target) -> None:
    lines: list[str] = []
    text = b"#!/bin/bash\nset -eu\ncat\necho one\nsudo id -un\necho three >&2\nexit 4\n"
    code = script.run_script(guest_paths, Config(), guest_target, text, timeout_s=60, on_line=lines.append)
    assert code == 4
    assert lines == ["one", "root", "three"]


def test_a_script_that_takes_too_long_is_killed_in_the_machine(
    guest_paths: Paths, guest_target: Target
) -> None:
    with pytest.raises(MachineError, match="did not end within"):
        script.collect(
            guest_paths, Config(), guest_target, ["sleep", "9805"], timeout_s=1, on_line=lambda _line: None
        )
    assert still_running(guest_paths, guest_target, "[s]leep.9805") == b""


def test_a_lost_connection_is_told_apart_from_the_command_s_own_255(
    guest_paths: Paths, guest_target: Target
) -> None:
    with run_in_target.started(guest_paths, guest_target, "sh", "-c", "echo ready; sleep 9806") as (
        process,
        stdout,
    ):
        assert stdout.readline() == b"ready\n"
        connection.close(guest_paths, guest_target)
        assert process.wait() == 255
        assert process.stderr is not None
        assert b"the connection to task child was lost" in process.stderr.read()
    assert output(guest_paths, guest_target, ["sh", "-c", "exit 255"])[0] == 255
    output(guest_paths, guest_target, ["pkill", "-f", "[s]leep 9806"])
