"""A picture of each result for docs/performance.md: every raw sample as a dot, the median as a stroke, one line a case.

Drawn by matplotlib, which only the benchmarks' own environment has. The axis is logarithmic as soon as the medians lie
more than a factor of five apart. What is written depends on the samples alone, so the same results are the same file.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_OURS, _OTHERS, _STROKE = "#b3401f", "#5b6b7a", "#1d2329"
_WIDTH_IN, _ROW_IN, _MARGIN_IN = 8.0, 0.34, 0.9
_FAR_APART = 5.0
_MANY = 50  # so many dots are smaller as an image within the picture


def draw(result: Mapping[str, Any], path: Path) -> bool:
    """Write the picture of one result (bench/results/NAME.json) as SVG; False when there is nothing to compare.

    Only the cases in the unit that most of them have are drawn: two units have no common axis.
    """
    measured = [row for row in result["rows"] if row["samples"]]
    unit, _ = Counter(row["unit"] for row in measured).most_common(1)[0] if measured else ("", 0)
    rows = [row for row in measured if row["unit"] == unit]
    if len(rows) < 2:
        return False

    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams.update({"svg.hashsalt": "loom", "svg.fonttype": "none", "font.size": 9.0})
    from matplotlib import pyplot
    from matplotlib.ticker import FuncFormatter, LogLocator

    medians = [statistics.median(row["samples"]) for row in rows]
    figure, axes = pyplot.subplots(figsize=(_WIDTH_IN, _MARGIN_IN + _ROW_IN * len(rows)), layout="constrained")
    for place, (row, median) in enumerate(zip(rows, medians, strict=True)):
        colour = _OURS if "loom" in row["name"] or not _has_peers(rows) else _OTHERS
        samples = row["samples"]
        dots = {"color": colour, "alpha": 0.5, "markeredgewidth": 0, "rasterized": len(samples) > _MANY}
        axes.plot(samples, [place] * len(samples), ".", **dots)
        axes.plot([median], [place], "|", color=_STROKE, markersize=13, markeredgewidth=1.5)
    if min(medians) > 0 and max(medians) / min(medians) > _FAR_APART:
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(10, (1.0, 2.0, 5.0)))
        axes.xaxis.set_minor_locator(LogLocator(10, ()))
    else:
        axes.set_xlim(left=0)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.4g}"))
    axes.set_yticks(range(len(rows)), [row["name"] for row in rows])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xlabel(unit)
    axes.grid(axis="x", linewidth=0.4)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)
    return True


def _has_peers(rows: list[Mapping[str, Any]]) -> bool:
    """Whether loom is one of several that are compared, and not the only one."""
    return 0 < sum("loom" in row["name"] for row in rows) < len(rows)
