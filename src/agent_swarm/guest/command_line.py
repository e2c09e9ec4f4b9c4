"""The shell command lines that carry an argument vector through a shell, byte for byte.

sshd hands a command to the user's login shell as one string, so exactness is a matter of quoting; and
ssh has one code, 255, for every death by a signal, so the shell must turn that into a number.
"""

from __future__ import annotations

import os
import re
import shlex
from typing import TYPE_CHECKING

from agent_swarm.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

# Linux: MAX_ARG_STRLEN, the longest single argument, its NUL included (execve(2))
COMMAND_LINE_MAX_BYTES = 131_071

TOKEN_PATTERN = re.compile(r"[0-9a-f]{8,64}")


def command_line(argv: Sequence[str], token: str) -> str:
    """A command line for bash that runs `argv` as execvp(3) would, and ends with its exit code.

    127: no such program; 126: it cannot be executed; 128 + n: signal n killed it. `token` marks the
    session for `signal_line`. Surrogates stand for bytes that are not UTF-8 (os.fsencode). Raises UsageError
    for what no program can be given: nothing, a NUL, or more than a kernel takes.
    """
    assert TOKEN_PATTERN.fullmatch(token)
    if not argv:
        message = "no command was given"
        raise UsageError(message, hint="Put the command behind the name: `agent-swarm run NAME -- COMMAND`.")
    if any("\0" in word for word in argv):
        message = "an argument contains a NUL character, which no program can receive"
        raise UsageError(message)
    words = shlex.join(argv)
    # The outer shell reports; its own words on a child's death go nowhere. It outlives the signals that
    # a terminal or `signal_line` sends to all of the session; the inner one has them back as they were.
    line = (
        f": {token}; trap : HUP INT QUIT TERM USR1 USR2; exec 3>&2 2>/dev/null; "
        f"(exec 2>&3 3>&-; exec -- {words}); exit $?"
    )
    if len(os.fsencode(line)) > COMMAND_LINE_MAX_BYTES:
        message = f"the command is longer than {COMMAND_LINE_MAX_BYTES // 1024} KiB"
        raise UsageError(message, hint="Send long input on stdin, or copy a script in with `agent-swarm cp`.")
    return line


def signal_line(token: str, name: str) -> str:
    """A command line for sh that sends a signal ("INT") to every process of the session marked by `token`.

    Those are the processes of its session in the sense of setsid(2): a daemon that left it goes on. Waits
    up to 2 s for the session to have a process. Runs through sudo where that works, as the command may
    have become another user.
    """
    assert TOKEN_PATTERN.fullmatch(token)
    script = (
        "tries=0; while [ $tries -lt 20 ]; do tries=$((tries + 1)); "
        # the bracket keeps this command line itself, and grep's, from matching
        f"for leader in $(grep -als -e ': [{token[0]}]{token[1:]};' /proc/[0-9]*/cmdline); do "
        "leader=${leader#/proc/}; leader=${leader%/cmdline}; found=; "
        "for stat in /proc/[0-9]*/stat; do "
        "{ read -r line <$stat; } 2>/dev/null || continue; "
        # proc(5): pid (name) state ppid pgrp session; the name may hold anything
        "pid=${line%% *}; set -- ${line##*) }; "
        'if [ "$4" != "$leader" ] || [ "$pid" = "$leader" ]; then continue; fi; found=1; '
        f'if [ "$3" != "$leader" ]; then kill -{name} $pid 2>/dev/null; fi; '
        # the group in one step: nobody in it can start another process between
        f'done; if [ -n "$found" ]; then kill -{name} -$leader 2>/dev/null; tries=99; fi; '
        "done; [ $tries = 99 ] || sleep 0.1; done; exit 0"
    )
    quoted = shlex.quote(script)
    return f"sudo -n sh -c {quoted} 2>/dev/null || sh -c {quoted}"
