"""Measuring: whole processes, pairs in turn, raw samples kept. No figure here is an assertion (docs/performance.md).

Cases of one table run in turn, round by round, so that a slow moment of the machine meets all of them. What is
reported is the median and the range, and ratios of medians within one run: they travel, absolute times do not.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

NOT_MEASURED = "not measured"


@dataclass(slots=True)
class Row:
    """One case: its samples in milliseconds (or what `unit` says), or why there are none."""

    name: str
    samples: list[float] = field(default_factory=list)
    why_not: str = ""
    unit: str = "ms"
    more: dict[str, Any] = field(default_factory=dict)

    @property
    def median(self) -> float:
        return statistics.median(self.samples)

    def percentile(self, p: float) -> float:
        ordered = sorted(self.samples)
        return ordered[min(len(ordered) - 1, round(p / 100 * (len(ordered) - 1)))]


@dataclass(slots=True)
class Table:
    """One benchmark's result. `goals`: (what, ratio or value reached, goal, met)."""

    name: str
    how: str
    rows: list[Row] = field(default_factory=list)
    goals: list[tuple[str, float | None, str, bool | None]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def row(self, name: str) -> Row:
        return next(r for r in self.rows if r.name == name)

    def median(self, name: str) -> float | None:
        row = next((r for r in self.rows if r.name == name), None)
        return row.median if row is not None and row.samples else None

    def at_most(self, what: str, one: str, other: str, limit: float) -> None:
        """The goal that the median of `one` is at most `limit` times that of `other`."""
        a, b = self.median(one), self.median(other)
        reached = None if a is None or b is None else a / b
        self.goals.append((what, reached, f"≤ {limit:g} ×", None if reached is None else reached <= limit))

    def at_least(self, what: str, one: str, other: str, limit: float) -> None:
        """The goal that the median of `one` is at least `limit` times that of `other`."""
        a, b = self.median(one), self.median(other)
        reached = None if a is None or b is None else a / b
        self.goals.append((what, reached, f"≥ {limit:g} ×", None if reached is None else reached >= limit))

    def value(self, what: str, reached: float | None, limit: float, unit: str) -> None:
        """The goal that a value is at most `limit`."""
        self.goals.append((what, reached, f"≤ {limit:g} {unit}", None if reached is None else reached <= limit))


def in_turn(cases: Mapping[str, Callable[[], float]], rounds: int, warm_up: int = 1) -> list[Row]:
    """Run all cases `rounds` times, one after the other in each round; each returns its figure.

    A case that raises is not measured any more: its row says why.
    """
    rows = {name: Row(name) for name in cases}
    for number in range(-warm_up, rounds):
        for name, case in cases.items():
            row = rows[name]
            if row.why_not:
                continue
            try:
                figure = case()
            except Exception as error:
                row.why_not = f"{type(error).__name__}: {error}"[:200]
                row.samples.clear()
                continue
            if number >= 0:
                row.samples.append(figure)
    return list(rows.values())


def process_ms(
    argv: Sequence[str], env: Mapping[str, str], stdin: bytes = b"", expect: bytes | None = None, cwd: str | None = None
) -> float:
    """Milliseconds from starting a process to having reaped it. Raises when it fails or says something else."""
    began = time.perf_counter()
    done = subprocess.run(argv, input=stdin, env=dict(env), capture_output=True, cwd=cwd, timeout=120)
    took = (time.perf_counter() - began) * 1000
    if done.returncode != 0:
        raise RuntimeError(f"{argv[0]} ended with {done.returncode}: {done.stderr[-150:].decode(errors='replace')!r}")
    if expect is not None and expect not in done.stdout:
        raise RuntimeError(f"{argv[0]} said {done.stdout[-150:]!r}")
    return took


def cpu_s(pid: int) -> float:
    """Processor seconds that a process of one thread has used so far; the ticks of its stat would be 10 ms."""
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) / 1e9


def machine() -> dict[str, Any]:
    """Where the figures come from."""
    model = next((line.split(":")[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")), "")
    memory = next((line.split()[1] for line in _lines("/proc/meminfo") if line.startswith("MemTotal")), "0")
    return {
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "cpus": os.cpu_count(),
        "cpu": model,
        "memory_gib": round(int(memory) / (1 << 20), 1),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "load": os.getloadavg(),
    }


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []


def save(table: Table, place: Path) -> Path:
    """The raw samples as JSON."""
    place.mkdir(parents=True, exist_ok=True)
    path = place / f"{table.name}.json"
    rows = [
        {"name": r.name, "unit": r.unit, "samples": [round(s, 5) for s in r.samples], "why_not": r.why_not, **r.more}
        for r in table.rows
    ]
    goals = [{"what": w, "reached": v, "goal": g, "met": m} for w, v, g, m in table.goals]
    record = {"name": table.name, "how": table.how, "machine": machine(), "rows": rows, "goals": goals}
    path.write_text(json.dumps({**record, "notes": table.notes}, indent=1, ensure_ascii=False) + "\n")
    return path


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
