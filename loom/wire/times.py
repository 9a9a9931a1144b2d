"""Times as text: RFC 3339 UTC with microseconds, from numbers given by the caller."""

from __future__ import annotations

import time


def rfc3339(us: int) -> str:
    """Microseconds since the epoch as `2026-01-31T12:00:00.000000Z`."""
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(us // 1_000_000)) + f".{us % 1_000_000:06d}Z"


def day_of(ts_ms: int) -> str:
    """The UTC date of Unix milliseconds, `YYYY-MM-DD`: the shard of a name."""
    return time.strftime("%Y-%m-%d", time.gmtime(ts_ms // 1000))


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
