"""The last results of the reliability suites: kept as JSON while they run, and shown in docs/reliability.md.

    LOOM_RESULTS=DIR pytest …         each suite notes its figures in DIR
    python tests/results.py DIR       writes them into docs/reliability.md, with date, seed and counts

`make crash`, `make soak` and `make nightly` do both. A suite that was not run keeps the line it had.
"""

from __future__ import annotations

import json
import os
import platform
import sys
import textwrap
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

PAGE = Path(__file__).parents[1] / "docs" / "reliability.md"
BEGIN, END = "<!-- results: written by tests/results.py -->", "<!-- end of results -->"


def note(suite: str, seed: int | str, **figures: Any) -> None:
    """Keep what a suite counted, replacing its earlier result; nothing without LOOM_RESULTS. Printed in any case."""
    line = ", ".join(f"{key.replace('_', ' ')} {_shown(value)}" for key, value in figures.items())
    print(f"{suite}: {line} (seed {seed})")
    place = os.environ.get("LOOM_RESULTS")
    if not place:
        return
    Path(place).mkdir(parents=True, exist_ok=True)
    machine = f"Linux {platform.release()}, Python {platform.python_version()}, {os.cpu_count()} CPUs"
    record = {"date": f"{datetime.now(UTC):%Y-%m-%d}", "seed": seed, "machine": machine, "figures": line}
    (Path(place) / f"{suite}.json").write_text(json.dumps(record))


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def write(place: Path, page: Path = PAGE) -> None:
    """Bring the noted results into the page's list, sorted by suite."""
    before, _, rest = page.read_text().partition(BEGIN)
    shown, _, after = rest.partition(END)
    items = {item.partition("**")[0]: f"- **{item.rstrip()}" for item in shown.split("- **")[1:]}
    for path in place.glob("*.json"):
        r = json.loads(path.read_text())
        text = f"- **{path.stem}** ({r['date']}, seed {r['seed']}): {r['figures']}. {r['machine']}."
        items[path.stem] = "\n".join(textwrap.wrap(text, 116, subsequent_indent="  "))
    body = [items[suite] for suite in sorted(items)]
    page.write_text("\n".join([f"{before}{BEGIN}", *body, f"{END}{after}"]))


if __name__ == "__main__":
    write(Path(sys.argv[1]))
