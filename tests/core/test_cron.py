"""When a job is due: against a clock that is read minute by minute, and against another program's reading of cron."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import cache
from itertools import islice
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loom.core import cron

ZONES = (
    *("UTC", "Europe/Berlin", "America/New_York", "Asia/Kathmandu", "Australia/Lord_Howe", "America/St_Johns"),
    *("Africa/Casablanca", "Pacific/Apia", "America/Sao_Paulo", "Asia/Tehran"),
)
MINUTE, DAY = timedelta(minutes=1), timedelta(days=1)


@cache
def offset_of(zone: str) -> Callable[[int], int]:
    info = ZoneInfo(zone)
    return lambda at: int(datetime.fromtimestamp(at, info).utcoffset().total_seconds())  # type: ignore[union-attr]


def due(line: str, zone: str, after: datetime, until: datetime) -> list[datetime]:
    found = []
    for slot in cron.slots(cron.parse(line), offset_of(zone), int(after.timestamp())):
        if slot > until.timestamp():
            return found
        found.append(datetime.fromtimestamp(slot, UTC))
    raise AssertionError("slots have no end")


# -- the slow clock --------------------------------------------------------------------------------------------------


def expand(field: str, least: int, most: int) -> set[int]:
    """What numbers a field stands for, read in another way than the program does."""
    found: set[int] = set()
    for item in field.split(","):
        body, _, step = item.partition("/")
        low, _, high = body.partition("-")
        for value in range(least, most + 1):
            first = least if body == "*" else int(low)
            last = most if body == "*" or (step and not high) else int(high or low)
            if first <= value <= last and (value - first) % int(step or 1) == 0:
                found.add(value)
    return found


def reader(line: str) -> Callable[[datetime], bool]:
    """Whether a wall time is one of the line's."""
    minute, hour, day, month, weekday = line.split()
    minutes, hours, months = expand(minute, 0, 59), expand(hour, 0, 23), expand(month, 1, 12)
    days, weekdays = expand(day, 1, 31), {n % 7 for n in expand(weekday, 0, 7)}
    either = day[0] != "*" and weekday[0] != "*"

    def fits(wall: datetime) -> bool:
        if wall.minute not in minutes or wall.hour not in hours or wall.month not in months:
            return False
        of_month, of_week = wall.day in days, wall.isoweekday() % 7 in weekdays
        return of_month or of_week if either else of_month and of_week

    return fits


def slow(line: str, zone: str, after: datetime, until: datetime) -> list[datetime]:
    """Every minute is looked at. The clock on the wall is zoneinfo's."""
    info = ZoneInfo(zone)
    fits = reader(line)
    minute, hour, *_ = line.split()
    if minute[0] == "*" or hour[0] == "*":
        begin = datetime.fromtimestamp(int(after.timestamp()) // 60 * 60, UTC)
        steps = int((until - begin) / MINUTE) + 1
        passing = (begin + n * MINUTE for n in range(steps))
        return [at for at in passing if after < at <= until and fits(at.astimezone(info).replace(tzinfo=None))]
    wall = (after.astimezone(info) - 2 * DAY).replace(tzinfo=None, second=0, microsecond=0)
    found: set[datetime] = set()
    while wall.replace(tzinfo=UTC) <= until + 2 * DAY:
        if fits(wall):
            shown = wall
            while shown.replace(tzinfo=info).astimezone(UTC).astimezone(info).replace(tzinfo=None) != shown:
                shown += MINUTE  # the wall never shows it: the first time it does show
            found.add(shown.replace(tzinfo=info, fold=0).astimezone(UTC))
        wall += MINUTE
    return sorted(at for at in found if after < at <= until)


@st.composite
def fields(draw: st.DrawFn, least: int, most: int) -> str:
    kind = draw(st.sampled_from(["*", "*", "value", "range", "step", "list"]))
    value = st.integers(least, most)
    low, high = sorted((draw(value), draw(value)))
    step = draw(st.integers(1, most))
    texts = {"*": "*", "value": f"{low}", "range": f"{low}-{high}", "list": f"{low},{high}"}
    stepped = [f"*/{step}", f"{low}/{step}"]
    if low < high:  # cronsim takes 5-5/2 for 5/2
        stepped.append(f"{low}-{high}/{step}")
    return texts.get(kind) or draw(st.sampled_from(stepped))


LINES = st.tuples(fields(0, 59), fields(0, 23), fields(1, 28), fields(1, 12), fields(0, 7)).map(" ".join)
# Changes of clocks, and ordinary days: Apia left out a day, Lord Howe changes by half an hour.
NEAR = st.sampled_from(
    [
        *(datetime(2026, 3, 29, tzinfo=UTC), datetime(2026, 10, 25, tzinfo=UTC), datetime(2026, 3, 8, tzinfo=UTC)),
        *(datetime(2026, 11, 1, tzinfo=UTC), datetime(2011, 12, 30, tzinfo=UTC), datetime(2026, 4, 4, tzinfo=UTC)),
        *(datetime(2026, 2, 28, tzinfo=UTC), datetime(2026, 6, 30, tzinfo=UTC), datetime(2018, 11, 4, tzinfo=UTC)),
    ]
)


@settings(deadline=None)
@given(LINES, st.sampled_from(ZONES), NEAR, st.integers(-86_400, 86_400))
def test_slots_are_those_of_a_clock_read_minute_by_minute(line: str, zone: str, near: datetime, shift: int):
    after = near + timedelta(seconds=shift)
    until = after + 2 * DAY
    assert due(line, zone, after, until) == slow(line, zone, after, until)


@settings(deadline=None)
@given(LINES, st.sampled_from(ZONES), st.integers(1_000_000_000, 2_000_000_000))
def test_cronsim_reads_the_same_lines_in_the_same_way(line: str, zone: str, at: int):
    cronsim = pytest.importorskip("cronsim", reason="cronsim is not installed: make venv")
    ours = list(islice(cron.slots(cron.parse(line), offset_of(zone), at), 5))
    theirs: list[int] = []  # without a slot that several skipped times share: it is told once for each
    for moment in cronsim.CronSim(line, datetime.fromtimestamp(at, ZoneInfo(zone))):
        slot = int(moment.timestamp())
        if slot not in theirs and slot > at:
            theirs.append(slot)
        if len(theirs) == 5:
            break
    assert ours == theirs


# -- by hand ---------------------------------------------------------------------------------------------------------


def times(line: str, zone: str, day: str, days: int = 1) -> list[str]:
    """The slots of a day of UTC, as `HH:MM`."""
    begin = datetime.fromisoformat(day).replace(tzinfo=UTC)
    return [f"{at:%H:%M}" for at in due(line, zone, begin - timedelta(seconds=1), begin + days * DAY - MINUTE)]


@pytest.mark.parametrize(("line", "zone", "day", "found"), [
    ("30 2 * * *", "Europe/Berlin", "2026-03-29", ["01:00"]),  # 02:30 is skipped: at the end of the skipped hour
    ("0,30 2 * * *", "Europe/Berlin", "2026-03-29", ["01:00"]),  # both are, and come once
    ("30 2 * * *", "Europe/Berlin", "2026-10-25", ["00:30"]),  # 02:30 comes twice: the first time
    ("*/30 1-2 * * *", "Europe/Berlin", "2026-10-25", ["00:00", "00:30", "01:00", "01:30"]),  # elapsed time
    ("30 12-15 * * *", "Asia/Kathmandu", "2026-04-04", ["06:45", "07:45", "08:45", "09:45"]),  # 5:45 east of UTC
    ("0 12 1 * mon", "UTC", "2026-06-01", ["12:00"]),  # a Monday that is the first
    ("0 12 1 * mon", "UTC", "2026-06-08", ["12:00"]),  # a Monday
    ("0 12 1 * mon", "UTC", "2026-07-01", ["12:00"]),  # the first
    ("0 12 */2 * mon", "UTC", "2026-06-08", []),  # a step over * does not restrict: both must fit
    ("0 0 * * 7", "UTC", "2026-11-22", ["00:00"]),  # Sunday is 7 and 0
])  # fmt: skip
def test_days_on_which_clocks_change_and_days_of_the_week(line: str, zone: str, day: str, found: list[str]):
    assert times(line, zone, day) == found


def test_the_29th_of_february_comes_over_2100():
    after = int(datetime(2096, 3, 1, tzinfo=UTC).timestamp())
    slot = next(cron.slots(cron.parse("0 0 29 2 *"), offset_of("UTC"), after))
    assert datetime.fromtimestamp(slot, UTC) == datetime(2104, 2, 29, tzinfo=UTC)


def test_names_and_short_forms():
    assert cron.parse("0 7 * jan-mar MON-fri") == cron.parse("0 7 * 1-3 1-5").__class__(
        **{**cron_fields(cron.parse("0 7 * 1-3 1-5")), "text": "0 7 * jan-mar MON-fri"}
    )
    assert cron_fields(cron.parse("@daily"))["hours"] == (0,)


def cron_fields(line: cron.Cron) -> dict[str, object]:
    return {name: getattr(line, name) for name in line.__record__}  # type: ignore[attr-defined]


@pytest.mark.parametrize(("line", "said"), [
    ("", "0 fields"),
    ("* * * *", "4 fields"),
    ("60 * * * *", "minute: '60' is not within 0-59"),
    ("* * * foo *", "month: 'foo' is not within 1-12, or jan-dec"),
    ("5-1 * * * *", "runs backwards"),
    ("*/0 * * * *", "the step of '*/0' is 0"),
    ("* * L * *", "day of month"),
    ("1,,2 * * * *", "minute"),
    ("0 0 30 2 *", "never comes"),
    ("@reboot", "no short form"),
    ("٣ * * * *", "minute"),
])  # fmt: skip
def test_what_is_wrong_with_a_line_is_said(line: str, said: str):
    with pytest.raises(ValueError, match=said.replace("*", r"\*")):
        cron.parse(line)


@given(st.integers(-1_000_000, 3_000_000))
def test_the_calendar_is_that_of_the_library(day: int):
    if -719_162 <= day <= 2_932_896:
        date = datetime(1970, 1, 1) + day * DAY
        assert cron.civil(day) == (date.year, date.month, date.day)
