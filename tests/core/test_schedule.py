"""Which slots of a job are due, and what becomes of each: tables, and clocks that jump as they like."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loom.core import schedule
from loom.wire.schedule import Intent, Job, Slots

HOUR, DAY = 3600, 86_400
T0 = 1_800_000_000 // DAY * DAY


def utc(at: int) -> int:
    return 0


def job(**fields: object) -> Job:
    return replace(Job("j", every_s=HOUR, to="a", body="b"), **fields)


def hours(*numbers: int) -> tuple[int, ...]:
    return tuple(T0 + HOUR * n for n in numbers)


@pytest.mark.parametrize(("catch_up", "late_s", "held", "missed"), [
    ("last", 10, (3,), (1, 2)),
    ("last", 3000, (3,), (1, 2)),
    ("none", 10, (3,), (1, 2)),
    ("none", 3000, (), (1, 2, 3)),
    ("all", 3000, (1, 2, 3), ()),
])  # fmt: skip
def test_slots_that_come_late(catch_up: str, late_s: int, held: tuple[int, ...], missed: tuple[int, ...]):
    came = schedule.take_in(job(catch_up=catch_up), utc, Slots(T0), T0 + 3 * HOUR + late_s)
    assert came.slots.held == hours(*held)
    assert sorted(came.missed) == list(hours(*missed))
    assert schedule.take_in(job(catch_up=catch_up), utc, came.slots, T0 + 3 * HOUR + late_s).slots == came.slots


def test_a_job_begins_with_the_next_slot_after_it_was_first_seen():
    slots = schedule.seen(job(), None, T0 + 10)
    assert not schedule.take_in(job(), utc, slots, T0 + HOUR - 1).slots.held
    assert schedule.take_in(job(), utc, slots, T0 + HOUR).slots.held == hours(1)


@pytest.mark.parametrize("changed", [{"every_s": 1}, {"every_s": 0, "cron": "0 14 * * *"}])
def test_a_job_with_another_timing_begins_anew_and_keeps_what_waits(changed: dict[str, object]):
    before = Slots(T0, held=hours(-1), state=7, timing="every 1h")
    other = job(catch_up="all", **changed)
    now = T0 + 14 * HOUR + 1800
    assert schedule.due_at(other, utc, before, now) == now, "somebody has to see it"
    came = schedule.take_in(other, utc, before, now)
    assert came.slots == replace(before, after=now, timing=other.timing) and not came.missed
    first = next(schedule.slots_after(other, utc, now))
    assert schedule.due_at(other, utc, replace(came.slots, held=()), now) == first
    assert schedule.take_in(other, utc, came.slots, first).slots.held == (*before.held, first)


def test_another_zone_is_another_timing_but_of_an_interval_it_is_not():
    daily = job(every_s=0, cron="0 7 * * *")
    assert daily.timing != replace(daily, zone="Asia/Kathmandu").timing
    assert job().timing == job(zone="Asia/Kathmandu").timing == "every 1h"


def test_what_an_older_loom_wrote_is_taken_as_it_is_and_marked():
    assert schedule.due_at(job(), utc, Slots(T0), T0) == T0
    came = schedule.take_in(job(), utc, Slots(T0), T0 + HOUR)
    assert came.slots.held == hours(1) and came.slots.timing == "every 1h"


def test_after_years_only_the_newest_slots_are_looked_at():
    daily = job(every_s=1, catch_up="all")
    came = schedule.take_in(daily, utc, Slots(T0), T0 + 10 * 365 * DAY)
    assert came.slots.held == tuple(T0 + 10 * 365 * DAY - n for n in reversed(range(schedule.MOST)))
    monthly = job(every_s=0, cron="0 0 1 * *", catch_up="all")
    assert len(schedule.take_in(monthly, utc, Slots(T0), T0 + 3 * 365 * DAY + HOUR).slots.held) == 36


@pytest.mark.parametrize(("overlap", "under_way", "start", "held", "skipped", "cancel"), [
    ("skip", False, 1, (2,), (), False),
    ("skip", True, None, (), (1, 2), False),
    ("queue", False, 1, (2,), (), False),
    ("queue", True, None, (1, 2), (), False),
    ("replace", False, 2, (), (1,), False),
    ("replace", True, None, (2,), (1,), True),
    ("allow", False, 1, (2,), (), False),
    ("allow", True, 1, (2,), (), False),
])  # fmt: skip
def test_what_becomes_of_waiting_slots(
    overlap: str, under_way: bool, start: int | None, held: tuple[int, ...], skipped: tuple[int, ...], cancel: bool
):
    choice = schedule.choose(job(overlap=overlap), Slots(T0, held=hours(1, 2)), under_way)
    assert choice.start == (None if start is None else T0 + start * HOUR)
    assert (choice.slots.held, choice.skipped, choice.cancel) == (hours(*held), hours(*skipped), cancel)


def test_a_clock_that_was_far_ahead_silences_nothing_and_repeats_nothing():
    came = schedule.take_in(job(), utc, Slots(T0), T0 + HOUR)
    ahead = schedule.take_in(job(), utc, replace(came.slots, held=()), T0 + 10_000 * DAY)
    assert len(ahead.slots.held) == 1
    back = schedule.take_in(job(), utc, replace(ahead.slots, held=()), T0 + 2 * HOUR - 1)
    assert back.set_back
    assert not back.slots.held, "the slot of one o'clock came before the jump"
    assert schedule.take_in(job(), utc, back.slots, T0 + 2 * HOUR).slots.held == hours(2)


def test_a_clock_that_begins_in_1970_repeats_nothing_when_it_is_right_again():
    everything = job(catch_up="all")
    came = schedule.take_in(everything, utc, Slots(T0), T0 + 50 * HOUR)
    in_1970 = schedule.take_in(everything, utc, replace(came.slots, held=()), 100)
    right = schedule.take_in(everything, utc, in_1970.slots, T0 + 51 * HOUR)
    assert [slot for slot in right.slots.held if slot > T0] == list(hours(51))


@pytest.mark.parametrize(("slots", "due"), [
    (None, 0),
    (Slots(T0, intent=Intent(T0)), 0),
    (Slots(T0 + 2 * DAY), 0),  # the clock was set back
    (Slots(T0), 0),  # nobody knows which timing these are of
    (Slots(T0, timing="every 1h"), HOUR),
    (Slots(T0, held=(T0,), timing="every 1h"), schedule.AGAIN_S),
])  # fmt: skip
def test_when_somebody_should_look_again(slots: Slots | None, due: float):
    assert schedule.due_at(job(), utc, slots, T0) == T0 + due


JUMPS = st.lists(st.one_of(st.integers(-3 * HOUR, 30 * HOUR), st.integers(-40 * DAY, 40 * DAY)), max_size=40)


@given(JUMPS, st.sampled_from(["skip", "queue", "allow"]), st.sampled_from(["last", "all", "none"]), st.data())
def test_however_the_clock_jumps_no_slot_is_started_twice(
    jumps: list[int], overlap: str, catch_up: str, data: st.DataObject
):
    the_job = job(overlap=overlap, catch_up=catch_up)
    slots, now, started = Slots(T0), T0, Counter[int]()
    for jump in jumps:
        now = max(0, now + jump)
        slots = schedule.take_in(the_job, utc, slots, now).slots
        while slots.held:
            choice = schedule.choose(the_job, slots, data.draw(st.booleans()))
            slots = choice.slots
            if choice.start is None:
                break
            assert choice.start <= now or overlap == "queue"
            started[choice.start] += 1
    assert all(count == 1 for count in started.values())


@given(st.lists(st.integers(0, 90 * HOUR), max_size=20))
def test_with_a_clock_that_goes_forward_every_slot_is_started_once(steps: list[int]):
    everything = job(overlap="allow", catch_up="all")
    slots, now, started = Slots(T0), T0, []
    for step in steps:
        now += step
        slots = schedule.take_in(everything, utc, slots, now).slots
        while slots.held:
            choice = schedule.choose(everything, slots, True)
            slots = choice.slots
            assert choice.start is not None
            started.append(choice.start)
    assert started == list(range(T0 + HOUR, now + 1, HOUR))
