"""A measurement, the table of all of them, and the file that keeps them."""

from __future__ import annotations

import json
import os
import platform
import shutil
import statistics
import subprocess
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

FOLDER = Path(__file__).parent / "results"
FORMAT_VERSION = 1


@dataclass(frozen=True, slots=True)
class Measurement:
    """Seconds unless `unit` says otherwise. The median of `samples` is what is held against `budget`."""

    name: str
    samples: Sequence[float]
    budget: float | None = None
    unit: str = "s"
    note: str = ""
    part_of: str = ""
    """The measurement that this one is a step of, "" for one that stands by itself."""

    @property
    def median(self) -> float:
        return statistics.median(self.samples)

    @property
    def verdict(self) -> str:
        if self.budget is None:
            return ""
        return "ok" if self.median <= self.budget else "over"


@dataclass(slots=True)
class Report:
    measurements: list[Measurement] = field(default_factory=list)

    def add(self, *measurements: Measurement) -> None:
        self.measurements.extend(measurements)

    def text(self) -> str:
        """The table, as plain text."""
        rows = [("", "median", "worst", "n", "budget", "", "")]
        for found in self.measurements:
            rows.append(
                (
                    f"  {found.name}" if found.part_of else found.name,
                    _shown(found.median, found.unit),
                    _shown(max(found.samples), found.unit) if len(found.samples) > 1 else "",
                    str(len(found.samples)),
                    _shown(found.budget, found.unit) if found.budget is not None else "",
                    found.verdict,
                    found.note,
                )
            )
        widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
        lines = []
        for row in rows:
            cells = [row[0].ljust(widths[0])]
            cells += [row[column].rjust(widths[column]) for column in range(1, 5)]
            cells += [row[5].ljust(widths[5]), row[6]]
            lines.append("  ".join(cells).rstrip())
        return "\n".join(lines)

    def save(self, path: Path | None) -> Path:
        """Write everything as JSON; return where."""
        now = datetime.now(UTC)
        target = path or FOLDER / f"{now:%Y-%m-%dT%H-%M-%SZ}.json"
        target.parent.mkdir(parents=True, exist_ok=True)
        document = {
            "version": FORMAT_VERSION,
            "measured_at": now.isoformat(timespec="seconds"),
            "host": describe_host(),
            "measurements": [
                {**asdict(found), "median": found.median, "verdict": found.verdict}
                for found in self.measurements
            ],
        }
        target.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
        return target


def describe_host() -> dict[str, object]:
    """What a reader needs to compare two runs."""
    qemu = shutil.which(f"qemu-system-{platform.machine()}")
    version = ""
    if qemu is not None:
        first = subprocess.run([qemu, "-version"], capture_output=True, text=True, check=True).stdout
        version = first.splitlines()[0]
    return {
        "cpus": os.cpu_count(),
        "kernel": platform.release(),
        "machine": platform.machine(),
        "python": platform.python_version(),
        "qemu": version,
        "load_average_1min": round(os.getloadavg()[0], 2),
    }


def _shown(value: float, unit: str) -> str:
    if unit != "s":
        return f"{value:.0f} {unit}" if value >= 20 else f"{value:.1f} {unit}"
    return f"{value * 1000:.0f} ms" if value < 2 else f"{value:.1f} s"
