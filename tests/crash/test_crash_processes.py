"""The runner and a whole goal, killed and failed at every file change they make.

By default the runner at every call and the goal at a sample of them, under a minute; marked full (and with
LOOM_CRASH=full) at all of them, with every error and second kills.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import crash_processes
import pytest
from crash_processes import PROCESSES
from harness import ERRORS, FULL, Case, explore

from loom.daemons.goalkeeping import Goal
from loom.spool import mailbox
from loom.wire.message import Message

SEED = 20260728


@pytest.mark.parametrize("case", PROCESSES, ids=lambda case: case.name)
def test_killed_at_any_call_nothing_is_lost_or_done_twice(case: Case):
    sample = 150 if case.name == "goal" and not FULL else 0
    report = explore(case, at_most=sample, seed=SEED)
    print(report.line())
    assert not report.failures, "\n".join([report.line(), *report.failures[:5]])
    assert sum(report.counts.values()) >= (sample or 2 * report.calls) > 0


@pytest.mark.parametrize("case", PROCESSES, ids=lambda case: case.name)
def test_when_a_call_fails_it_stops_and_goes_on_later(case: Case):
    report = explore(case, kills=False, errors=ERRORS, at_most=0 if FULL else 80, seed=SEED)
    print(report.line())
    assert not report.failures, "\n".join([report.line(), *report.failures[:5]])
    assert report.counts["once"] and report.counts["forever"]


@pytest.mark.parametrize("case", PROCESSES, ids=lambda case: case.name)
def test_killed_again_while_it_recovers_nothing_is_lost_or_done_twice(case: Case):
    report = explore(case, double=8 if FULL else 1, at_most=0 if FULL else 30, seed=SEED)
    print(report.line())
    assert not report.failures, "\n".join([report.line(), *report.failures[:5]])
    assert report.counts["double"]


@pytest.mark.full
@pytest.mark.timeout(3600)
def test_a_goal_killed_at_every_call():
    report = explore(PROCESSES[-1], seed=SEED)
    print(report.line())
    assert not report.failures, "\n".join([report.line(), *report.failures[:5]])
    assert report.counts["before"] == report.counts["after"] == report.calls


# -- programs that are known to be wrong must be found ---------------------------------------------------------


class _ForgetsFirst(Goal):
    """Takes a reply out of the outbox before the event it causes is in the journal."""

    def report(self, agent: str, stem: str, message: Message, done: Callable[[], None]) -> None:
        done()
        super().report(agent, stem, message, lambda: None)


class _OrdersFirst(Goal):
    """Delivers an order before its event is in the journal, so that a restart orders the work a second time."""

    def _append(self, type_, data, cause="", actor=None):
        if type_ == "order.dispatched":
            raw = crash_processes.blobs.get(self.home.blobs, data["message"])
            mailbox.deliver(self.home.agent(data["agent"]), data["name"], raw)
        return super()._append(type_, data, cause, actor)


def _ordered_once(case: Case) -> Case:
    """The goal's case, whose check also counts what the executors were asked: each order at most once a kill."""

    def check(root):
        case.check(root)
        asked = [a["order"] for a in crash_processes.noted(root, "asked")]
        dispatched = {e.data["name"] for e in crash_processes.events(root) if e.type == "order.dispatched"}
        assert set(asked) <= dispatched, f"worked on orders the journal does not know: {set(asked) - dispatched}"

    return replace(case, check=check)


@pytest.mark.parametrize("wrong", [_ForgetsFirst, _OrdersFirst])
def test_a_router_that_acts_before_it_journals_is_found(wrong: type[Goal], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(crash_processes, "GOAL_CLASS", wrong)
    report = explore(_ordered_once(PROCESSES[-1]), seed=SEED, until_failure=True)
    print(report.line())
    assert report.failures


def test_the_right_router_passes_the_same_check():
    report = explore(_ordered_once(PROCESSES[-1]), at_most=60, seed=SEED)
    assert not report.failures, "\n".join(report.failures[:3])
