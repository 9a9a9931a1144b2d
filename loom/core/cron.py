"""When a job is due: cron lines and intervals as slots, which are Unix seconds (docs/schedules.md, ADR-0024).

Enters: text, numbers, and the offset of a time zone as a function, (Unix seconds) → seconds east of UTC. Stays out:
clocks, calendars of other libraries, the tables of time zones. *Wall* seconds are what a clock on the wall shows,
counted as if it were UTC: wall = slot + offset(slot).

A line whose minute or hour begins with `*` follows elapsed time: it is due at every minute whose wall time fits, in
the repeated hour of autumn twice, in the skipped one of spring never. Any other line names times of the day, and each
comes once: at its first pass in autumn, at the end of the skipped hour in spring. Both are the rules of Debian's cron.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping

from loom.wire.record import record

Offset = Callable[[int], int]

_DAY_S = 86_400
_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_WEEKDAYS = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")
# Field: its least and greatest value, and names for them. Sunday is 0 and 7.
_FIELDS: tuple[tuple[str, int, int, Mapping[str, int]], ...] = (
    ("minute", 0, 59, {}),
    ("hour", 0, 23, {}),
    ("day of month", 1, 31, {}),
    ("month", 1, 12, {name: n for n, name in enumerate(_MONTHS, 1)}),
    ("day of week", 0, 7, {name: n for n, name in enumerate(_WEEKDAYS)}),
)
_SHORT = {
    "@hourly": "0 * * * *",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@weekly": "0 0 * * 0",
    "@monthly": "0 0 1 * *",
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
}
_ITEM = re.compile(r"(?:(\*)|([0-9]+|[a-z]+)(?:-([0-9]+|[a-z]+))?)(?:/([0-9]+))?")
_HORIZON_DAYS = 8 * 366 + 1  # from one 29 February to the next there are eight years, over 2100


@record
class Cron:
    """A parsed line: for each field the values that fit, ascending; days of the week count from Sunday, 0.

    either_day   both days are restricted: one of them is enough
    by_elapsed   see above: minute or hour begins with `*`
    """

    text: str
    minutes: tuple[int, ...]
    hours: tuple[int, ...]
    days: frozenset[int]
    months: frozenset[int]
    weekdays: frozenset[int]
    either_day: bool
    by_elapsed: bool

    def fits_day(self, day: int) -> bool:
        """Whether this day, counted from 1970-01-01, is one of the line's."""
        _, month, of_month = civil(day)
        if month not in self.months:
            return False
        fits_month, fits_week = of_month in self.days, (day + 4) % 7 in self.weekdays
        return fits_month or fits_week if self.either_day else fits_month and fits_week


def parse(text: str) -> Cron:
    """A line of five fields, or a short form such as @daily. Raises ValueError that says what is wrong with it."""
    line = _SHORT.get(text.strip().lower(), text)
    if line.startswith("@"):
        raise ValueError(f"{text!r} is no short form; there are {', '.join(_SHORT)}")
    words = line.split()
    if len(words) != len(_FIELDS):
        raise ValueError(f"{text!r} has {len(words)} fields; five are minute, hour, day of month, month, day of week")
    sets = [_field(word, *field) for word, field in zip(words, _FIELDS, strict=True)]
    cron = Cron(
        text=text,
        minutes=tuple(sorted(sets[0])),
        hours=tuple(sorted(sets[1])),
        days=frozenset(sets[2]),
        months=frozenset(sets[3]),
        weekdays=frozenset(day % 7 for day in sets[4]),
        either_day=not words[2].startswith("*") and not words[4].startswith("*"),
        by_elapsed=words[0].startswith("*") or words[1].startswith("*"),
    )
    if not any(cron.fits_day(day) for day in range(_HORIZON_DAYS)):
        raise ValueError(f"{text!r} names a day that never comes")
    return cron


def _field(word: str, name: str, least: int, most: int, names: Mapping[str, int]) -> set[int]:
    found: set[int] = set()
    for item in word.lower().split(","):
        match = _ITEM.fullmatch(item)
        if match is None:
            raise ValueError(f"{name}: {item!r} is not *, a value, a range a-b, or one of these with a step /n")
        star, first, last, step = match.groups()
        low = least if star else _value(first, name, least, most, names)
        if star or (step and last is None):
            high = most
        else:
            high = _value(last, name, least, most, names) if last else low
        if high < low:
            raise ValueError(f"{name}: the range {item!r} runs backwards")
        if step and int(step) == 0:
            raise ValueError(f"{name}: the step of {item!r} is 0")
        found |= set(range(low, high + 1, int(step or 1)))
    return found


def _value(word: str, name: str, least: int, most: int, names: Mapping[str, int]) -> int:
    value = int(word) if word.isdigit() else names.get(word, -1)
    if not least <= value <= most:
        words = list(names)
        known = f", or {words[0]}-{words[-1]}" if words else ""
        raise ValueError(f"{name}: {word!r} is not within {least}-{most}{known}")
    return value


def civil(day: int) -> tuple[int, int, int]:
    """(year, month, day) of a day counted from 1970-01-01, in the Gregorian calendar."""
    era, of_era = divmod(day + 719_468, 146_097)  # 400 years, beginning on 1 March of year 0
    year = (of_era - of_era // 1460 + of_era // 36_524 - of_era // 146_096) // 365
    of_year = of_era - (365 * year + year // 4 - year // 100)
    month = (5 * of_year + 2) // 153
    of_month = of_year - (153 * month + 2) // 5 + 1
    month = month + 3 if month < 10 else month - 9
    return era * 400 + year + (month <= 2), month, of_month


# -- slots -------------------------------------------------------------------------------------------------------


def slots(cron: Cron, offset: Offset, after: int) -> Iterator[int]:
    """The slots after `after`, ascending, each once; without an end."""
    return _by_elapsed(cron, offset, after) if cron.by_elapsed else _by_wall(cron, offset, after)


def _by_wall(cron: Cron, offset: Offset, after: int) -> Iterator[int]:
    # No earlier wall time can lie behind `after`, whatever change of the clocks is near.
    wall = after + min(offset(after - _DAY_S), offset(after), offset(after + _DAY_S))
    while True:
        wall = _next_wall(cron, wall)
        slot = _first_pass(offset, wall)
        if slot > after:
            yield slot
            after = slot  # several times within one skipped hour are one slot
        wall += 60


def _by_elapsed(cron: Cron, offset: Offset, after: int) -> Iterator[int]:
    now = after + 1
    while True:
        east = offset(now)
        slot = _next_wall(cron, now + east) - east
        change = _next_change(offset, now, slot)
        if change is not None:
            now = change
            continue
        yield slot
        now = slot + 1


def _next_wall(cron: Cron, wall: int) -> int:
    """The first wall time from `wall` on that fits, to the minute."""
    day, second = divmod(-(-wall // 60) * 60, _DAY_S)
    if cron.fits_day(day):
        hour, minute = second // 3600, second // 60 % 60
        if hour in cron.hours and (at := bisect_left(cron.minutes, minute)) < len(cron.minutes):
            return day * _DAY_S + hour * 3600 + cron.minutes[at] * 60
        if (at := bisect_left(cron.hours, hour + 1)) < len(cron.hours):
            return day * _DAY_S + cron.hours[at] * 3600 + cron.minutes[0] * 60
    day += 1
    while not cron.fits_day(day):
        day += 1
    return day * _DAY_S + cron.hours[0] * 3600 + cron.minutes[0] * 60


def _first_pass(offset: Offset, wall: int) -> int:
    """When a clock on the wall shows this time first; for one that it skips, the moment it does so."""
    before, after = offset(wall - _DAY_S), offset(wall + _DAY_S)
    passes = [wall - east for east in (before, after) if offset(wall - east) == east]
    if passes:
        return min(passes)
    change = _next_change(offset, wall - _DAY_S, wall + _DAY_S)
    return wall - before if change is None else change


def _next_change(offset: Offset, begin: int, end: int) -> int | None:
    """The first second in (begin, end] with another offset than `begin`; looked for day by day."""
    east = offset(begin)
    low = begin
    while low < end:
        high = min(low + _DAY_S, end)
        if offset(high) != east:
            while high - low > 1:
                middle = (low + high) // 2
                low, high = (middle, high) if offset(middle) == east else (low, middle)
            return high
        low = high
    return None
