"""Results as text for a terminal, and as the tables and pictures of docs/performance.md."""

from __future__ import annotations

import json
import statistics
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import plot
from measure import NOT_MEASURED, Table
from world import ROOT

PAGE = ROOT / "docs" / "performance.md"
PICTURES = ROOT / "docs" / "figures"
BEGIN, END = "<!-- figures: written by bench/page.py -->", "<!-- end of figures -->"


def text(table: Table) -> str:
    """One table for a terminal."""
    lines = [f"{table.name}: {table.how}"]
    for row in table.rows:
        lines.append(f"  {row.name:40} {_figure(row.samples, row.unit, row.why_not)}")
    for what, reached, goal, met in table.goals:
        lines.append(
            f"  {'ok  ' if met else 'MISS' if met is not None else '?   '} {what}: {_number(reached)} ({goal})"
        )
    return "\n".join([*lines, *(f"  {note}" for note in table.notes)])


def _figure(samples: list[float], unit: str, why_not: str) -> str:
    if not samples:
        return f"{NOT_MEASURED}: {why_not}" if why_not else NOT_MEASURED
    spread = f" ({_number(min(samples))}-{_number(max(samples))}, n={len(samples)})" if len(samples) > 1 else ""
    return f"{_number(statistics.median(samples))} {unit}{spread}"


def _number(value: float | None) -> str:
    if value is None:
        return NOT_MEASURED
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def write(results: Path, page: Path = PAGE) -> None:
    """Put all results into the page, between its marks."""
    before, _, rest = page.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    parts = [_section(json.loads(path.read_text())) for path in sorted(results.glob("*.json"))]
    before = before.replace("None have been written yet.\n\n", "")
    page.write_text(f"{before}{BEGIN}\n\n" + "\n\n".join(parts) + f"\n\n{END}{after}")


def _section(r: Mapping[str, Any]) -> str:
    m = r["machine"]
    how = textwrap.fill(f"{r['how']}.", 120)
    lines = [f"### {r['name']}", "", how, ""]
    if plot.draw(r, PICTURES / f"{r['name']}.svg"):
        lines += [f"![{r['name']}: every sample a dot, the median a stroke](figures/{r['name']}.svg)", ""]
    lines += ["| case | median | range | n |", "|---|---|---|---|"]
    for row in r["rows"]:
        s = row["samples"]
        if s:
            middle = f"{_number(statistics.median(s))} {row['unit']}"
            lines.append(f"| {row['name']} | {middle} | {_number(min(s))}-{_number(max(s))} | {len(s)} |")
        else:
            lines.append(f"| {row['name']} | {NOT_MEASURED} | | |")
    lines += ["", "| goal | reached | wanted | |", "|---|---|---|---|"]
    for goal in r["goals"]:
        mark = {True: "met", False: "**missed**", None: ""}[goal["met"]]
        lines.append(f"| {goal['what']} | {_number(goal['reached'])} | {goal['goal']} | {mark} |")
    notes = [*r["notes"], f"{m['date']}, {m['cpus']} CPUs ({m['cpu']}), Linux {m['kernel']}, Python {m['python']}"]
    return "\n".join([*lines, "", "; ".join(notes) + "."])
