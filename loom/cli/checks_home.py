"""The checks of `loom doctor` on what is kept: who may read it, room, clocks, routes, jobs. They only look.

Clocks are here because what is kept knows how late it was: a clock that stands before its own files is wrong.
"""

from __future__ import annotations

import os
import stat
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from loom.cli import weaving
from loom.cli.check import Check
from loom.core import schedule
from loom.spool import locks, schedules, zones
from loom.spool.home import disk_error
from loom.spool.layout import Home
from loom.wire.errors import LoomError

_LITTLE_BYTES = 256 << 20
_FEW_INODES = 10_000
_FEW_ROUTES = 10
_AHEAD_S = 3600.0
_RELEASED = datetime(2025, 1, 1, tzinfo=UTC)  # a clock that stands before this one is wrong
_STA_UNSYNC = 0x40
_TIMEX_BYTES = 256
_TIMEX_STATUS_AT = 5 * 8  # modes, offset, freq, maxerror, esterror, status: the first five are longs on 64 bits


def clock(home: Home | None) -> Check:
    """Whether the clock of the day can be right: names of messages begin with it, and jobs go by it."""
    now = time.time()
    text = datetime.fromtimestamp(now, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    if now < _RELEASED.timestamp():
        return Check("clock", "problem", text, "set the clock: names of messages begin with the time")
    kept = (home.version, home.boot_id, home.goals, home.agents) if home is not None else ()
    newest = max(map(_mtime, kept), default=0.0)
    if newest > now + _AHEAD_S:
        then = datetime.fromtimestamp(newest, UTC).strftime("%Y-%m-%d %H:%M UTC")
        return Check("clock", "problem", f"{text}, but the home was changed at {then}", "set the clock")
    if _is_unsynchronised():
        return Check("clock", "note", f"{text}, not synchronised", "let a time service set it: jobs go by it")
    return Check("clock", "ok", text)


def _mtime(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def _is_unsynchronised() -> bool:
    """What the kernel was told by a time service, if there is one; False where that cannot be asked."""
    if sys.platform != "linux" or sys.maxsize < 1 << 32:
        return False
    import ctypes

    buffer = ctypes.create_string_buffer(_TIMEX_BYTES)  # modes 0: only asks
    if ctypes.CDLL(None).adjtimex(buffer) < 0:
        return False
    status = int.from_bytes(buffer.raw[_TIMEX_STATUS_AT : _TIMEX_STATUS_AT + 4], sys.byteorder)
    return bool(status & _STA_UNSYNC)


def time_zones() -> Check:
    """Whether jobs may name the zone of their cron lines."""
    try:
        zones.offset_of("Europe/Berlin")
    except LoomError as error:
        return Check("time zones", "note", "no tables of time zones; cron lines can be in UTC only", error.hint)
    return Check("time zones", "ok", f"known; this machine is in {zones.own_zone()}")


def permissions(home: Home) -> Iterator[Check]:
    """Nobody else may read what agents say, or change what they will do."""
    keys = sorted(home.secrets.iterdir()) if home.secrets.is_dir() else []
    open_keys = [fault for path in (home.secrets, *keys) if (fault := _exposed(path))]
    above = [path for path in home.path.resolve().parents if _others_may_replace(path)]
    if open_keys:
        yield Check("permissions", "problem", "; ".join(open_keys[:5]), "loom fsck --repair; then consider new keys")
    elif above:
        yield Check("permissions", "problem", f"others may replace what is in {above[0]}", "set LOOM_HOME elsewhere")
    elif fault := _exposed(home.path):
        yield Check("permissions", "note", fault, "others may read what agents say: loom fsck --repair")
    else:
        yield Check("permissions", "ok", "the home and its keys are yours alone")


def _exposed(path: Path) -> str:
    try:
        found = path.lstat()
    except FileNotFoundError:
        return ""
    if found.st_uid != os.getuid():
        return f"{path} belongs to user {found.st_uid}"
    mode = stat.S_IMODE(found.st_mode)
    return f"{path} has mode {mode:04o}" if mode & 0o077 and not stat.S_ISLNK(found.st_mode) else ""


def _others_may_replace(path: Path) -> bool:
    """A directory that anybody may write to, and that is not sticky as /tmp is."""
    mode = path.stat().st_mode
    return bool(mode & stat.S_IWOTH) and not mode & stat.S_ISVTX


def room(home: Home) -> Check:
    """Space and inodes for what is to come."""
    found = os.statvfs(home.path)
    free = found.f_bavail * found.f_frsize
    text = f"{free / (1 << 30):.1f} GiB free"
    if found.f_files:
        text += f", {found.f_favail} inodes"
    if free < _LITTLE_BYTES or (found.f_files and found.f_favail < _FEW_INODES):
        return Check("room", "problem", text, "free some: loom gc; agents stop, and lose nothing, when it is used up")
    return Check("room", "ok", text)


def routes(home: Home) -> Iterator[Check]:
    """Routes along which nothing gets, because somebody is not there any more."""
    try:
        known = weaving.routes(home)
    except LoomError as error:
        yield Check("routes", "problem", str(error), error.hint)
        return
    troubled = 0
    for one in known:
        if name := weaving.missing(home, one):
            troubled += 1
            if troubled <= _FEW_ROUTES:
                way = f"{one.source} --to {one.to}{f' --pipe {one.pipe}' if one.pipe else ''}"
                found = f"{one.to} is to hear {one.source}, and there is no agent {name!r}"
                yield Check("routes", "problem", found, f"make it anew, or end the route: loom unroute {way}")
    if troubled > _FEW_ROUTES:
        yield Check("routes", "problem", f"{troubled - _FEW_ROUTES} more that lead nowhere", "see: loom routes")
    if known and not troubled:
        yield Check("routes", "ok", f"{len(known)}; all whom they name are there")


def jobs(home: Home) -> Iterator[Check]:
    """Jobs that cannot be read, whose last slot came to nothing, or that nobody serves."""
    names = schedules.names(home)
    troubles = [(name, fault) for name in names if (fault := _fault(home, name))]
    for name, fault in troubles:
        yield Check("schedule", "problem", f"{name}: {fault}", f"see: loom schedule show {name}")
    if names and not troubles:
        text = f"{len(names)} jobs" if len(names) > 1 else "1 job"
        if locks.is_held(home.supervisor_lock):
            yield Check("schedule", "ok", f"{text}, served by the supervisor")
        else:
            yield Check(
                "schedule", "note", f"{text}, and no supervisor runs", "unless cron serves them: loom supervisor run"
            )


def _fault(home: Home, name: str) -> str:
    place = home.schedule(name)
    try:
        job = schedules.read(place)
        schedule.check(job, str(place.definition))
        zones.offset_of(job.zone)
        slots = schedules.read_slots(place)
    except LoomError as error:
        return str(error)
    except OSError as error:
        return str(disk_error(error, "it cannot be read"))
    return str(slots.trouble.get("error", "")) if slots else ""
