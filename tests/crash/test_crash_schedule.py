"""Serving slots, killed, torn and failed at every change of a file, and met there by another who serves them."""

from __future__ import annotations

from pathlib import Path

import pytest
from crash_cli import SCHEDULE_RM
from crash_schedule import SCHEDULE
from harness import ERRORS, Point, explore

from loom.cli import firing
from loom.spool import schedules
from loom.spool.layout import ScheduleDir
from loom.wire.schedule import Slots

SEED = 20261121


def test_killed_or_met_at_calls_all_over_each_slot_is_served_once():
    report = explore(SCHEDULE, at_most=50, seed=SEED)
    print(report.line())
    assert not report.failures, "\n".join([report.line(), *report.failures[:5]])
    assert report.counts["before"] and report.counts["after"] and report.counts["rival"]


def test_when_a_call_fails_everything_is_whole():
    report = explore(SCHEDULE, kills=False, errors=ERRORS, at_most=20, seed=SEED)
    print(report.line())
    assert not report.failures, "\n".join([report.line(), *report.failures[:5]])
    assert report.counts["once"] and report.counts["forever"]


def test_a_job_whose_removal_is_killed_leaves_no_slots_and_can_be_removed():
    report = explore(SCHEDULE_RM, seed=SEED)
    print(report.line())
    assert not report.failures, "\n".join([report.line(), *report.failures[:5]])
    assert report.counts["before"] and report.counts["after"]


def _without_intents(place: ScheduleDir, slots: Slots) -> None:
    if slots.intent is None:
        schedules.fs.replace(place.slots, schedules.wire.encode(slots))


def _in_mailboxes(point: Point) -> bool:
    return point.phase == "after" and "mailbox" in point.site


def test_without_its_intent_something_is_lost_or_told_twice(monkeypatch: pytest.MonkeyPatch):
    """The oracle sees what the intent is for: the state of a driver would be kept behind its events."""
    monkeypatch.setattr(firing.schedules, "write_slots", _without_intents)
    assert explore(SCHEDULE, seed=SEED, until_failure=True, at_most=40, only=_in_mailboxes).failures


def test_the_definitions_are_ones_that_can_be_read(tmp_path: Path):
    SCHEDULE.setup(tmp_path)
    for name in schedules.names(schedules.Home(tmp_path)):
        schedules.read(schedules.Home(tmp_path).schedule(name))
