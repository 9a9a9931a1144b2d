"""Times as text: RFC 3339 UTC with microseconds, from numbers given by the caller."""

from __future__ import annotations

import time
from functools import lru_cache


def rfc3339(us: int) -> str:
    """Microseconds since the epoch as `2026-01-31T12:00:00.000000Z`."""
    return f"{_second(us // 1_000_000)}.{us % 1_000_000:06d}Z"


@lru_cache(maxsize=64)
def _second(s: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(s))


def day_of(ts_ms: int) -> str:
    """The UTC date of Unix milliseconds, `YYYY-MM-DD`: the shard of a name."""
    return _day(ts_ms // 86_400_000)


@lru_cache(maxsize=64)
def _day(days: int) -> str:
    return time.strftime("%Y-%m-%d", time.gmtime(days * 86_400))


def parse_us(text: str) -> int:
    """The inverse of rfc3339. Raises ValueError."""
    import calendar

    whole, _, rest = text.partition(".")
    if not rest.endswith("Z") or len(rest) != 7:
        raise ValueError(f"not a time: {text!r}")
    us = calendar.timegm(time.strptime(whole, "%Y-%m-%dT%H:%M:%S")) * 1_000_000 + int(rest[:6])
    if rfc3339(us) != text:  # strptime and int are generous: one digit for two, a sign, an underscore
        raise ValueError(f"not a time: {text!r}")
    return us
