"""Time zones: the offset of a zone as a function, from the machine's tables; and the machine's own zone."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from loom.wire.errors import Config

_LOCALTIME = Path("/etc/localtime")


def offset_of(name: str) -> Callable[[int], int]:
    """Unix seconds → seconds east of UTC in this zone. Raises Config for a zone that is not known here."""
    if name == "UTC":
        return lambda at: 0
    from datetime import datetime
    from zoneinfo import ZoneInfo

    try:
        zone = ZoneInfo(name)
    except (LookupError, ValueError, OSError):
        raise Config(
            f"time zone {name[:64]!a} is not known here",
            hint="write it as in Europe/Berlin; the tables are in the package tzdata",
        ) from None

    def offset(at: int) -> int:
        east = datetime.fromtimestamp(at, zone).utcoffset()
        return 0 if east is None else int(east.total_seconds())

    return offset


def own_zone() -> str:
    """The name of the machine's zone, as far as it has one: `TZ`, else where /etc/localtime points; else UTC."""
    name = os.environ.get("TZ", "").removeprefix(":")
    if not name:
        try:
            name = os.readlink(_LOCALTIME).rpartition("zoneinfo/")[2]
        except OSError:
            name = ""
    try:
        offset_of(name or "UTC")
    except Config:
        return "UTC"
    return name or "UTC"
