"""The command line on a real terminal: questions, live progress, sessions."""

from __future__ import annotations

import re
import signal

import pexpect
import pytest

from agent_swarm.providers.fake.faults import Fault
from tests.support.cli import PROGRAM

TIMEOUT_S = 60


@pytest.fixture
def on_terminal(task):
    """Start a command on a pseudo-terminal; what is left of it is ended with the test."""
    started = []

    def start(*words, columns=80, **environ):
        child = pexpect.spawn(
            str(PROGRAM),
            list(words),
            env={**task.environ, "TERM": "xterm-256color", "COLUMNS": str(columns), **environ},
            dimensions=(24, columns),
            timeout=TIMEOUT_S,
            encoding="utf-8",
        )
        started.append(child)
        return child

    yield start
    for child in started:
        child.close(force=True)


def end_of(child):
    """The rest of what a command shows, and its exit code."""
    child.expect(pexpect.EOF)
    child.close()
    return child.before, child.exitstatus


def test_delete_asks_and_yes_deletes(on_terminal, task):
    child = on_terminal("delete", "fix-1")
    child.expect_exact("Delete task fix-1 and everything on its disk? [y/N]")
    child.sendline("y")
    _, code = end_of(child)
    assert code == 0
    assert task.json("list")["tasks"] == []


@pytest.mark.parametrize("answer", ["n", ""])
def test_delete_does_nothing_without_a_yes(on_terminal, task, answer):
    child = on_terminal("delete", "fix-1")
    child.expect_exact("[y/N]")
    child.sendline(answer)
    shown, code = end_of(child)
    assert code == 1
    assert "nothing was changed" in shown
    assert len(task.json("list")["tasks"]) == 1


def test_an_unknown_task_is_refused_before_the_question(on_terminal):
    shown, code = end_of(on_terminal("delete", "fix-9"))
    assert code == 3
    assert "[y/N]" not in shown


def test_ctrl_c_at_a_question_ends_with_130(on_terminal, task):
    child = on_terminal("bulk", "delete", "--project", "web")
    child.expect_exact("Delete 1 task(s)")
    child.sendintr()
    _, code = end_of(child)
    assert code == 130
    assert len(task.json("list")["tasks"]) == 1


def test_each_machine_of_a_bulk_command_has_a_live_line(on_terminal, task):
    task.arrange(create=Fault(delay_s=1.0))
    child = on_terminal("bulk", "create", "web", "a", "b", "--parallel", "2")
    child.expect(r"a\x1b\[0m  make machine")
    child.expect(r"b\x1b\[0m  make machine")
    shown, code = end_of(child)
    assert code == 0
    plain = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", shown)
    assert re.search(r"a: make machine  \d+\.\d s", plain)
    assert "\x1b[?25h" in shown, "the cursor is shown again"
    assert re.search(r"a +created", plain.rpartition("NAME")[2])


def test_the_live_lines_are_gone_before_an_error_is_printed(on_terminal, task):
    task.arrange(start=Fault(error="machine", delay_s=0.5))
    shown, code = end_of(on_terminal("create", "web", "fix-2"))
    assert code == 1
    assert shown.rindex("\x1b[?25h") < shown.index("error:")


def test_ctrl_c_undoes_a_create_and_ends_with_130(on_terminal, task):
    task.arrange(start=Fault(delay_s=60))
    child = on_terminal("create", "web", "fix-2")
    child.expect("resume machine")
    child.sendintr()
    shown, code = end_of(child)
    assert code == 130
    assert "interrupted" in shown
    task.arrange()
    assert [entry["name"] for entry in task.json("list")["tasks"]] == ["fix-1"]


def test_a_resize_in_the_middle_breaks_nothing(on_terminal, task):
    task.arrange(create=Fault(delay_s=1.0))
    child = on_terminal("create", "web", "fix-2")
    child.expect("make machine")
    child.setwinsize(10, 20)
    child.kill(signal.SIGWINCH)
    _, code = end_of(child)
    assert code == 0


def test_a_dumb_terminal_gets_plain_lines(on_terminal):
    shown, code = end_of(on_terminal("create", "web", "fix-2", TERM="dumb"))
    assert code == 0
    assert "\x1b" not in shown
    assert re.search(r"fix-2: make machine \.\.\. done in", shown)


def test_ssh_opens_a_shell_and_ends_with_its_exit_code(on_terminal):
    child = on_terminal("ssh", "fix-1", SHELL="/bin/sh", PS1="READY ")
    child.expect_exact("READY ")
    child.sendline("echo $((6 * 7)); exit 5")
    child.expect_exact("42")
    _, code = end_of(child)
    assert code == 5


def test_run_gives_the_command_a_terminal_when_stdin_is_one(on_terminal):
    shown, code = end_of(on_terminal("run", "fix-1", "--", "sh", "-c", "test -t 0 && echo yes it is"))
    assert code == 0
    assert "yes it is" in shown


@pytest.mark.parametrize("columns", [40, 80])
@pytest.mark.parametrize(
    "words", [["list"], ["list", "--all"], ["project", "list"], ["image", "list"], ["status"]]
)
def test_tables_fit_the_terminal(on_terminal, words, columns):
    shown, code = end_of(on_terminal(*words, columns=columns, NO_COLOR="1"))
    assert code == 0
    lines = [line for line in shown.splitlines() if "simulated: they" not in line]
    assert max(len(line) for line in lines) <= columns
    assert "\x1b" not in shown


def test_a_status_is_coloured_on_a_terminal(on_terminal):
    shown, _ = end_of(on_terminal("list"))
    assert "\x1b[32mrunning\x1b[0m" in shown


def test_logs_follow_until_ctrl_c(on_terminal, task):
    task.ok("create", "web", "cold", "--cold")  # one that booted, and said so
    identifier = task.json("show", "cold")["task"]["id"]
    child = on_terminal("logs", "cold", "--follow")
    child.expect_exact("multi-user.target")
    with (task.home / "fake" / identifier / "console.log").open("a") as console:
        console.write("one more line\n")
    child.expect_exact("one more line")
    child.sendintr()
    _, code = end_of(child)
    assert code == 130
