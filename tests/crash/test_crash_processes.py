"""Every process of loom, killed and failed at the changes of files it makes: a bounded part of it.

All of it is test_crash_full.py, behind `make crash`. Here a seeded sample of all kinds of points, cases by cases, so
that each run of the tests meets each process.
"""

from __future__ import annotations

import errno
import json
import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest
from crash_cli import CLI
from crash_fsck import FSCK
from crash_goal import ALONE, GOALS, ORDERS
from crash_pipe import PIPES
from crash_processes import PROCESSES
from harness import ERRORS, Case, Point, explore, in_orders, nothing
from harness import crashes as crashes_of

from loom.core.supervision import Exit
from loom.daemons.charge import Charge, Process
from loom.spool import agents, crashes, fs
from loom.spool.home import open_home
from loom.wire.agent import AgentSpec

SEED = 20260728
_SAMPLE = (
    {case.name: 18 for case in (*CLI, FSCK)}
    | {case.name: 10 for case in (*ALONE, *PIPES)}
    | {"goal": 14, "goal with setbacks": 10}
    | {"supervisor": 12, "runner": 20, "runner fails and retries": 18, "filter": 18}
)

# The others take as long as these together; `make crash` has all of them.
BOUNDED = (*PROCESSES, GOALS[0], ALONE[0], *CLI[:3], FSCK, *PIPES)


@pytest.mark.parametrize("case", BOUNDED, ids=lambda case: case.name)
def test_killed_or_failed_anywhere_nothing_is_lost_or_done_twice(case: Case):
    report = explore(case, errors=ERRORS, first=True, at_most=_SAMPLE[case.name], orders=2, seed=SEED)
    print(report.line())
    assert not report.failures, "\n".join([report.line(), *report.failures[:5]])
    assert len(report.points) == _SAMPLE[case.name]


@pytest.mark.parametrize("case", [*PROCESSES, PIPES[0], CLI[0]], ids=lambda case: case.name)
def test_killed_again_while_it_recovers_nothing_is_lost_or_done_twice(case: Case):
    report = explore(case, double=2, at_most=8, seed=SEED)
    print(report.line())
    assert not report.failures, "\n".join([report.line(), *report.failures[:5]])
    assert report.counts["double"]


def test_the_processes_come_back_in_every_order():
    case = GOALS[0]
    assert case.orders == len(ORDERS) == 120
    points = [Point(n, "before", "somewhere") for n in range(60)]
    drawn = in_orders(case, points, 2, SEED)
    assert {p.order for p in drawn} == set(range(120))
    assert all(len({p.order for p in drawn if p.n == n}) == 2 for n in range(60))


@pytest.mark.parametrize("undisturbed", [True, False])
def test_a_process_that_is_left_is_a_failure(undisturbed: bool):
    def leaves(root: Path) -> None:
        if (undisturbed or crashes_of(root)) and os.fork() == 0:
            os.closerange(0, 1000)
            signal.pause()

    report = explore(replace(CLI[2], name="leaves a process", recover=leaves, check=nothing), at_most=1, jobs=1)
    assert len(report.failures) == 1
    assert "processes are left" in report.failures[0]
    assert bool(report.points) is not undisturbed


def test_a_crash_whose_record_the_disk_refuses_is_told_in_the_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    home = open_home(tmp_path / "home")
    box = agents.create(home, AgentSpec("a", "builtin"), "", "up")

    class Full(fs.Calls):
        def create(self, path: str, mode: int) -> int:
            raise OSError(errno.ENOSPC, "no space")

    monkeypatch.setattr(fs, "calls", Full())
    with pytest.raises(OSError):
        Charge(home, "a").record_crash(Process(1, 1, -1, ours=True), Exit(code=1), "crash", None)
    assert crashes.names(box) == []
    (log,) = box.logs.glob("*.ndjson")
    assert json.loads(log.read_text())["event"] == "crashed"
