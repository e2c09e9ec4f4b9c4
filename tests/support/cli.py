"""The console script with a state directory of its own, on the fake provider."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from agent_swarm.paths import Paths
from agent_swarm.providers.fake.faults import Faults

PROGRAM = Path(sys.executable).with_name("agent-swarm")


@dataclass(frozen=True)
class Cli:
    """The console script with a state directory of its own."""

    home: Path

    @property
    def environ(self):
        return {
            **os.environ,
            "AGENT_SWARM_HOME": str(self.home),
            "AGENT_SWARM_PROVIDER": "fake",
            "HOME": str(self.home.parent),
            "COLUMNS": "80",
        }

    def __call__(self, *words, stdin=b"", **environ):
        return subprocess.run(
            [PROGRAM, *words], input=stdin, capture_output=True, env={**self.environ, **environ}, check=False
        )

    def ok(self, *words, stdin=b""):
        """Stdout of a command that must go well."""
        done = self(*words, stdin=stdin)
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout.decode()

    def json(self, *words):
        return json.loads(self.ok(*words, "--json"))

    def fails(self, code, *words):
        """Stderr of a command that must end with `code` and print nothing on stdout."""
        done = self(*words)
        assert (done.returncode, done.stdout) == (code, b""), done
        assert done.stderr.startswith(b"error: ")
        return done.stderr.decode()

    def arrange(self, **faults):
        """Let the fake provider fail; `_` in a name stands for `:`."""
        Faults(Paths.at(self.home).fake / "faults.json").arrange(
            {point.replace("_", ":"): fault for point, fault in faults.items()}
        )
