"""`python -m bench`: measure, print the table, write the JSON."""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

from agent_swarm.errors import SwarmError
from bench import machines, startup
from bench.results import Report


def main() -> int:
    parser = argparse.ArgumentParser(prog="script/bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="only what needs no machine")
    parser.add_argument(
        "--from", dest="source", default="auto", help="the base image, as for init-base (auto)"
    )
    parser.add_argument("--runs", type=int, default=15, help="how often short commands are repeated (15)")
    parser.add_argument("--output", type=Path, help="the JSON file (bench/results/<time>.json)")
    options = parser.parse_args()
    report, code = Report(), 0
    with tempfile.TemporaryDirectory(prefix="swarm-bench-") as work:
        try:
            _tell("start of the command line")
            report.add(*startup.measure(Path(work) / "startup", options.runs))
            if not options.quick:
                folder = Path(work) / "machines"
                folder.mkdir()
                for group in machines.measure(folder, options.source, options.runs, _tell):
                    report.add(*group)
        except SwarmError as error:
            _tell(f"stopped: {error.message}\n{error.details}\n{error.hint}")
            code = 1
        except subprocess.CalledProcessError as error:
            _tell(f"stopped: {error}\n{(error.stderr or b'').decode(errors='replace')}")
            code = 1
    print(report.text())
    print(f"\nwritten to {report.save(options.output)}")
    return code


def _tell(what: str) -> None:
    print(f"... {what}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
