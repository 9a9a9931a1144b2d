"""All benchmarks but the longest: `make bench`, or `build/bench/venv/bin/python bench/run.py [--quick] [NAME…]`.

Each prints its table, keeps its raw samples in bench/results/NAME.json, and docs/performance.md is written from all
that lie there; --quick keeps nothing. Nothing fails because it is slow; what cannot be measured says `not measured`
and why.
"""

from __future__ import annotations

import sys
from importlib import import_module

import page
from measure import Table, machine, save, say
from world import HERE

NAMES = ("startup", "filter", "wake", "syncs", "roundtrip", "step", "fanout", "growth", "routing", "density")
BY_NAME = ("endurance",)  # takes an hour
MODULES = {"filter": "filtering"}
RESULTS = HERE / "results"


def main(argv: list[str]) -> int:
    quick = "--quick" in argv
    names = [a for a in argv if not a.startswith("-")] or list(NAMES)
    unknown = set(names) - {*NAMES, *BY_NAME}
    if unknown:
        say(f"no benchmark {', '.join(sorted(unknown))}; there are {', '.join((*NAMES, *BY_NAME))}")
        return 2
    say(f"machine: {machine()}")
    for name in names:
        say(f"== {name}")
        table: Table = import_module(MODULES.get(name, name)).run(quick)
        print(page.text(table), flush=True)
        if not quick:
            save(table, RESULTS)
    if not quick:
        page.write(RESULTS)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
