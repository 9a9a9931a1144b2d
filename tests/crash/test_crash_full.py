"""The whole crash proof: `make crash`. One summary line for each process of loom at its end.

Every distinct point once at least, that is every process, call site, phase and error; the kernel and the runner at
every call; each recovery killed once more, at calls drawn by the seed; a goal's processes back in each of their 120
orders.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import results
from crash_all import CASES, PROCESSES_OF_LOOM
from crash_cases import KERNEL
from crash_cli import CLI
from crash_fsck import FSCK
from crash_goal import ALONE, GOALS, ORDERS
from crash_pipe import PIPES
from crash_processes import PROCESSES
from crash_retention import GC, met
from crash_schedule import SCHEDULE
from harness import ERRORS, KILLS, Case, Report, explore

SEED = 20260728
LEAST_POINTS, LEAST_OF_EACH, LEAST_DOUBLE, LEAST_ERRORS = 2_000, 100, 20_000, 1_000

pytestmark = [pytest.mark.full, pytest.mark.timeout(7200)]

# What is done to each case, as rounds of explore().
_EVERY_POINT: dict[str, Any] = {"kills": False, "errors": ERRORS, "first": True}


def _rounds(double: int) -> tuple[dict[str, Any], ...]:
    """Killed at every call, each recovery killed once more in so many places; failed at every place."""
    return {"double": double}, _EVERY_POINT


ROUNDS: dict[str, tuple[dict[str, Any], ...]] = {case.name: _rounds(24) for case in KERNEL}
ROUNDS |= {case.name: _rounds(12) for case in PROCESSES}
ROUNDS |= {case.name: _rounds(12) for case in (*CLI, FSCK, GC, met(GC), SCHEDULE)}
ROUNDS |= {case.name: _rounds(3) for case in (*PIPES, CASES["loom up"])}  # hundreds of calls each
ROUNDS |= {"goal": ({"first": True, "double": 2, "orders": 2}, _EVERY_POINT)}
ROUNDS |= {"goal with setbacks": ({"at_most": 400},)}
ROUNDS |= {case.name: ({"first": True, "errors": ERRORS, "at_most": 200},) for case in ALONE}
ROUNDS |= {"supervisor": ({"first": True, "double": 1}, _EVERY_POINT)}

_reports: list[Report] = []


@pytest.mark.parametrize("case", CASES.values(), ids=lambda case: case.name)
def test_nothing_is_lost_doubled_or_damaged(case: Case):
    for number, how in enumerate(ROUNDS[case.name]):
        report = explore(case, seed=SEED + number, **how)
        _reports.append(report)
        print(report.line())
        assert not report.failures, "\n".join([report.line(), *report.failures[:5]])
        assert report.points


def test_no_process_was_spared(capfd: pytest.CaptureFixture[str]):
    """Only after the tests above: what they counted, together."""
    if {report.name for report in _reports} < CASES.keys():
        pytest.skip("only a part of the cases was run")
    points = {point for report in _reports for point in report.points}
    trials = sum((report.trials_of for report in _reports), Counter[tuple[str, str]]())
    of_process = Counter(process for process, _, _ in points)
    kinds = Counter[str]()
    for (_, kind), count in trials.items():
        kinds[kind] += count
    orders = {order for report in _reports if report.name == GOALS[0].name for order in report.orders}
    with capfd.disabled():
        print()
        for process in (*PROCESSES_OF_LOOM, "spool"):
            told = {kind: trials[process, kind] for kind in ("killed", "double", "error", "short", "rival")}
            name = f"crash {process}"
            results.note(name, SEED, distinct_points=of_process[process], **{k: v for k, v in told.items() if v})
        results.note(
            "crash all", SEED, distinct_points=len(points), trials=sum(kinds.values()), kills=kinds["killed"],
            double_crashes=kinds["double"], injected_errors=kinds["error"], orders_of_recovery=len(orders), failures=0,
        )  # fmt: skip
    assert {p: of_process[p] for p in PROCESSES_OF_LOOM if of_process[p] < LEAST_OF_EACH} == {}
    assert len(points) >= LEAST_POINTS
    assert kinds["double"] >= LEAST_DOUBLE
    assert kinds["error"] >= LEAST_ERRORS
    assert orders == set(range(len(ORDERS)))
    assert all(any(phase.startswith(kill) for _, _, phase in points) for kill in KILLS)
