"""Every process of loom, killed and failed at the changes of files it makes: a bounded part of it.

All of it is test_crash_full.py, behind `make crash`. Here a seeded sample of all kinds of points, cases by cases, so
that each run of the tests meets each process.
"""

from __future__ import annotations

from dataclasses import replace

import crash_all
import pytest
from crash_cli import CLI
from crash_fsck import FSCK
from crash_goal import ALONE, GOALS, ORDERS
from crash_processes import PROCESSES
from crash_supervisor import SUPERVISOR
from harness import ERRORS, Case, Point, explore

SEED = 20260728
_SAMPLE = (
    {case.name: 25 for case in (*CLI, FSCK)}
    | {case.name: 12 for case in ALONE}
    | {"goal": 20, "goal with setbacks": 12}
)
_SAMPLE |= {"supervisor": 12, "runner": 30, "runner fails and retries": 25, "filter": 25}


@pytest.mark.parametrize("case", [*PROCESSES, *GOALS, *ALONE, SUPERVISOR, *CLI, FSCK], ids=lambda case: case.name)
def test_killed_or_failed_anywhere_nothing_is_lost_or_done_twice(case: Case):
    report = explore(case, errors=ERRORS, first=True, at_most=_SAMPLE[case.name], orders=2, seed=SEED)
    print(report.line())
    assert not report.failures, "\n".join([report.line(), *report.failures[:5]])
    assert len(report.points) == _SAMPLE[case.name]


@pytest.mark.parametrize("case", [*PROCESSES, GOALS[0], CLI[0]], ids=lambda case: case.name)
def test_killed_again_while_it_recovers_nothing_is_lost_or_done_twice(case: Case):
    report = explore(case, double=2, at_most=12, seed=SEED)
    print(report.line())
    assert not report.failures, "\n".join([report.line(), *report.failures[:5]])
    assert report.counts["double"]


def test_the_processes_come_back_in_every_order():
    case = GOALS[0]
    assert case.orders == len(ORDERS) == 120
    points = [Point(n, "before", "somewhere") for n in range(60)]
    drawn = crash_all.in_orders(case, points, 2, SEED)
    assert {p.order for p in drawn} == set(range(120))
    assert all(len({p.order for p in drawn if p.n == n}) == 2 for n in range(60))


def test_a_process_that_is_left_is_a_failure():
    def leaves(root):
        import os
        import signal

        if os.fork() == 0:
            signal.pause()

    case = replace(CLI[2], name="leaves a process", recover=leaves)
    report = explore(case, at_most=1, jobs=1)
    assert report.failures
    assert "processes are left" in report.failures[0]
