"""What a supervisor remembers of a job: what its file says, and nothing that may change without a change of it."""

from __future__ import annotations

import math
import os
import struct
import zoneinfo
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support import wait_until

from loom.daemons.calendar import Calendar
from loom.spool import fs, schedules
from loom.spool.layout import Home
from loom.wire.schedule import Slots

TEXT = "cron: '0 0 1 1 *'\nzone: {zone}\nto: a\nbody: x\n"
# A table of one offset, 0, which is called LMT (RFC 8536, version 1): magic, six counts, type, name.
ONE_OFFSET = b"TZif" + bytes(16) + struct.pack(">6I", 0, 0, 0, 0, 1, 4) + struct.pack(">iBB", 0, 0, 0) + b"LMT\0"


class Listener:
    """The supervisor's loop as far as a calendar needs it: it keeps what is said."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def listen(self, fd: int, handler: Callable[[], None]) -> None:
        raise AssertionError("nothing is served here")

    def unlisten(self, fd: int) -> None:
        raise AssertionError("nothing is served here")

    def say(self, level: str, event: str, **fields: Any) -> None:
        self.said.append(f"{fields['job']}: {fields['error']}")


@pytest.fixture
def zones(tmp_path: Path) -> Iterator[Path]:
    """The only tables of time zones that there are."""
    place = tmp_path / "zones"
    place.mkdir()
    zoneinfo.reset_tzpath(to=[str(place)])
    yield place
    zoneinfo.reset_tzpath()
    zoneinfo.ZoneInfo.clear_cache()


def define(home: Home, name: str, text: str) -> None:
    fs.ensure_dir(home.schedule(name).path)
    home.schedule(name).definition.write_text(text)
    schedules.write_slots(home.schedule(name), Slots(1_800_000_000))


def test_a_time_zone_that_is_installed_later_is_found(tmp_path: Path, zones: Path):
    home, loop = Home(tmp_path / "home"), Listener()
    define(home, "j", TEXT.format(zone="Mars/Base"))
    calendar = Calendar(home, os.environ, loop)
    calendar.look()
    calendar.look()
    assert calendar.due_s == math.inf
    assert [line.partition(";")[0] for line in loop.said] == ["j: time zone 'Mars/Base' is not known here"]
    (zones / "Mars").mkdir()
    (zones / "Mars" / "Base").write_bytes(ONE_OFFSET)
    calendar.look()
    assert calendar.due_s < math.inf and len(loop.said) == 1


def test_a_fault_of_the_file_is_said_once_until_the_file_is_another(tmp_path: Path):
    home, loop = Home(tmp_path / "home"), Listener()
    define(home, "good", TEXT.format(zone="UTC"))
    define(home, "odd", "evry: 1h\n")
    calendar = Calendar(home, os.environ, loop)
    for _ in range(3):
        calendar.look()
    assert len(loop.said) == 1 and "'evry'" in loop.said[0] and calendar.due_s < math.inf
    define(home, "odd", "evrey: 1h\n")
    calendar.look()
    assert len(loop.said) == 2


def test_a_file_of_the_same_size_and_time_is_another_all_the_same(tmp_path: Path):
    """As after `cp -p`, or an editor that keeps the time: what cannot be kept is when the inode changed."""
    home, loop = Home(tmp_path / "home"), Listener()
    define(home, "j", "evry: 1h\n")
    path = home.schedule("j").definition
    calendar = Calendar(home, os.environ, loop)
    calendar.look()
    before = path.stat()

    def is_another() -> bool:
        path.write_text("to: 1234\n")
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
        return path.stat().st_ctime_ns != before.st_ctime_ns

    wait_until(is_another)
    assert path.stat().st_size == before.st_size
    calendar.look()
    assert len(loop.said) == 2
