from __future__ import annotations

import logging
import sys
from typing import TYPE_CHECKING

import pytest

from agent_swarm import runner
from agent_swarm.errors import CommandError, ProviderUnavailableError

if TYPE_CHECKING:
    from pathlib import Path


def python(script: str, *words: str) -> list[str]:
    return [sys.executable, "-c", script, *words]


def test_output_comes_back_apart_and_as_bytes() -> None:
    done = runner.run(python("import os; os.write(1, b'\\xff'); os.write(2, b'e')"), timeout_s=60)
    assert (done.stdout, done.stderr) == (b"\xff", b"e")


def test_arguments_arrive_exactly() -> None:
    words = ["a b", "'\"", "$HOME", "*", "", "é", "--", "x\ny"]
    script = "import sys; sys.stdout.buffer.write('\\0'.join(sys.argv[1:]).encode())"
    assert runner.run(python(script, *words), timeout_s=60).stdout == "\0".join(words).encode()


def test_stdin_is_what_was_given_and_else_empty() -> None:
    assert runner.run(["cat"], stdin=b"\0abc", timeout_s=60).stdout == b"\0abc"
    assert runner.run(["cat"], timeout_s=60).stdout == b""


def test_environ_is_added_to_our_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEPT", "kept")
    done = runner.run(["sh", "-c", "echo $KEPT $ADDED"], environ={"ADDED": "added"}, timeout_s=60)
    assert done.stdout == b"kept added\n"


def test_a_failure_is_an_error_with_the_exit_code_and_the_end_of_stderr() -> None:
    script = "seq 1 100 >&2; exit 7"
    with pytest.raises(CommandError, match="sh failed with exit code 7") as caught:
        runner.run(["sh", "-c", script], timeout_s=60)
    assert caught.value.returncode == 7
    assert caught.value.details.splitlines() == [str(number) for number in range(81, 101)]


def test_a_program_that_was_killed_is_said_to_be() -> None:
    with pytest.raises(CommandError, match="sh was ended by signal 9"):
        runner.run(["sh", "-c", "kill -9 $$"], timeout_s=60)


def test_an_unchecked_failure_is_returned() -> None:
    assert runner.run(["false"], timeout_s=60, check=False).returncode == 1


def test_a_program_that_takes_too_long_is_ended_and_an_error() -> None:
    with pytest.raises(CommandError, match=r"cat did not end within 0 s"):
        runner.run(["cat", "/dev/zero"], timeout_s=0.01)


def test_a_missing_program_is_told_apart_from_a_missing_directory(tmp_path: Path) -> None:
    with pytest.raises(ProviderUnavailableError, match="'no-such-program' is not installed"):
        runner.run(["no-such-program"], timeout_s=60)
    with pytest.raises(CommandError, match="true could not be started") as caught:
        runner.run(["true"], timeout_s=60, cwd=tmp_path / "missing")
    assert "missing" in caught.value.details


def test_a_file_that_is_no_program_is_a_command_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CommandError, match="could not be started"):
        runner.run([tmp_path / "file"], timeout_s=60)


def test_the_log_shows_the_command_but_no_password_of_a_url(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, logger="agent_swarm.runner"):
        runner.run(["echo", "a b", "https://me:secret@mirror/debian"], timeout_s=60)
    assert caplog.messages == ["run echo 'a b' https://me:***@mirror/debian"]


def test_a_stream_gives_the_lines_of_both_streams_without_their_ends() -> None:
    lines: list[str] = []
    runner.stream(["sh", "-c", r"printf 'one\r\ntwo\n' >&2; printf 'th\377ree'"], on_line=lines.append)
    assert lines == ["one", "two", "th\ufffdree"]


def test_a_stream_that_fails_is_an_error_with_the_last_lines() -> None:
    lines: list[str] = []
    with pytest.raises(CommandError, match="exit code 3") as caught:
        runner.stream(["sh", "-c", "seq 1 50; exit 3"], on_line=lines.append)
    assert len(lines) == 50
    assert caught.value.returncode == 3
    assert caught.value.details.splitlines() == lines[-20:]


def test_a_stream_whose_reader_fails_ends_its_program() -> None:
    def refuse(line: str) -> None:
        raise KeyError(line)

    with pytest.raises(KeyError):
        runner.stream(["sh", "-c", "echo x; exec cat /dev/zero"], on_line=refuse)
