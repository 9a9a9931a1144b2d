"""What a supervisor remembers of a job, and the processes that it starts for those that are due."""

from __future__ import annotations

import math
import os
import struct
import subprocess
import time
import zoneinfo
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support import wait_until
from world import READY, TABLE, World

from loom.daemons.calendar import Calendar
from loom.daemons.ward import TROUBLE_S
from loom.proc import spawn
from loom.spool import agents, fs, schedules
from loom.spool.layout import Home
from loom.wire.agent import Restart
from loom.wire.schedule import Slots

TEXT = "cron: '0 0 1 1 *'\nzone: {zone}\nto: a\nbody: x\n"
# A table of one offset, 0, which is called LMT (RFC 8536, version 1): magic, six counts, type, name.
ONE_OFFSET = b"TZif" + bytes(16) + struct.pack(">6I", 0, 0, 0, 0, 1, 4) + struct.pack(">iBB", 0, 0, 0) + b"LMT\0"


class Listener:
    """The supervisor's loop as far as a calendar needs it: it keeps what is said and whom to tell. `full` refuses."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.handlers: dict[int, Callable[[], None]] = {}
        self.full = False

    def listen(self, fd: int, handler: Callable[[], None]) -> None:
        if self.full:
            raise OSError(28, "no watches left")
        self.handlers[fd] = handler

    def unlisten(self, fd: int) -> None:
        del self.handlers[fd]

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


# -- serving -----------------------------------------------------------------------------------------------------


class Sleepers:
    """What a calendar starts in place of `run-due`: processes that end when the test ends them."""

    def __init__(self) -> None:
        self.running: dict[str, subprocess.Popen[bytes]] = {}

    def spawn(self, program: spawn.Program, stderr: int, alone: int) -> spawn.Spawned:
        assert os.fstat(stderr) and os.fstat(alone)
        child = subprocess.Popen(["sleep", "1000"])
        self.running[program.argv[-1]] = child
        ready, write = os.pipe()
        os.close(write)
        return spawn.Spawned(child.pid, 0, os.pidfd_open(child.pid), ready)


@pytest.fixture
def sleepers(monkeypatch: pytest.MonkeyPatch) -> Iterator[Sleepers]:
    made = Sleepers()
    monkeypatch.setattr(spawn, "spawn", made.spawn)
    yield made
    for child in made.running.values():
        child.kill()
        child.wait()


def due(home: Home, *names: str) -> None:
    """Jobs whose slots have come, those of the first for the longest time."""
    for age, name in enumerate(reversed(names), 1):
        define(home, name, "every: 1s\nto: a\nbody: x\n")
        schedules.write_slots(home.schedule(name), Slots(int(time.time()) - 100 * age, timing="every 1s"))


def descriptors() -> set[str]:
    return {name for name in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{name}")}


REFUSED = {
    "the log": "IsADirectoryError",
    "the process": "BlockingIOError",
    "the watch": "OSError",
}


@pytest.mark.parametrize("what", REFUSED)
def test_a_refused_start_leaves_nothing_open_and_is_tried_again_after_a_while(
    tmp_path: Path, sleepers: Sleepers, monkeypatch: pytest.MonkeyPatch, what: str
):
    home, loop = Home(tmp_path / "home"), Listener()
    due(home, "j")

    def refuse(*_: object) -> None:
        raise BlockingIOError(11, "no processes left")

    if what == "the log":
        home.supervisor_log.mkdir(parents=True)
    elif what == "the process":
        monkeypatch.setattr(spawn, "spawn", refuse)
    loop.full = what == "the watch"
    calendar = Calendar(home, os.environ, loop)
    calendar.look()
    before, begin = descriptors(), time.monotonic()
    assert calendar.due_s <= begin
    with pytest.raises(OSError) as refused:
        calendar.serve()
    assert type(refused.value).__name__ == REFUSED[what]
    assert descriptors() == before and calendar.pids() == []
    calendar.look()
    assert begin + TROUBLE_S <= calendar.due_s <= time.monotonic() + TROUBLE_S
    # What was started and could not be watched was ended, and taken leave of.
    assert all(not Path(f"/proc/{child.pid}").exists() for child in sleepers.running.values())


def test_each_job_has_a_process_of_its_own_and_of_many_those_begin_that_wait_longest(
    tmp_path: Path, sleepers: Sleepers
):
    home, loop = Home(tmp_path / "home"), Listener()
    names = [f"j{number}" for number in range(20)]
    due(home, *names)
    calendar = Calendar(home, os.environ, loop)
    calendar.look()
    calendar.serve()
    assert list(sleepers.running) == names[:16]
    assert calendar.pids() == [child.pid for child in sleepers.running.values()]
    assert calendar.due_s == math.inf, "there is no room"
    child = sleepers.running["j3"]
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    [ended] = [loop.handlers[fd] for fd in loop.handlers if _is_pidfd_of(fd, child.pid)]
    schedules.write_slots(home.schedule("j3"), Slots(1_900_000_000, timing="every 1s"))
    ended()
    assert child.pid not in calendar.pids() and calendar.due_s <= time.monotonic()
    calendar.serve()
    assert list(sleepers.running) == names[:17] and calendar.due_s == math.inf


def _is_pidfd_of(fd: int, pid: int) -> bool:
    return f"\nPid:\t{pid}\n" in Path(f"/proc/self/fdinfo/{fd}").read_text()


# What the supervisor loads with its table of runners: it tells whom the ends of agents make it search for.
TELLS = """
from loom.daemons.incarnations import Incarnations
from daemon_runners import serve_quiet
kill = Incarnations.kill
def told(self, charge, process):
    with open({told!r}, "a") as file:
        file.write(charge.name + "\\n")
    return kill(self, charge, process)
Incarnations.kill = told
"""


def test_who_serves_a_job_is_nobodys_stray(world: World, tmp_path: Path):
    """An agent that ends by itself and leaves nobody behind: no tree is searched for what is left of it."""
    told, asked, goes_on = tmp_path / "told", tmp_path / "asked", tmp_path / "goes-on"
    (tmp_path / "tells.py").write_text(TELLS.format(told=str(told)))
    driver = tmp_path / "driver"
    driver.write_text(
        f'#!/bin/sh\n: > {asked}\nwhile [ ! -e {goes_on} ]; do sleep 0.02; done\necho \'{{"events":[],"state":1}}\'\n'
    )
    driver.chmod(0o755)
    world.agent("a", want="down")
    define(world.home, "beat", f"every: 1s\nto: a\ndriver: {driver}\ntimeout: 1h\n")
    schedules.write_slots(world.home.schedule("beat"), Slots(int(time.time()) - 10))
    world.env["PYTHONPATH"] = f"{tmp_path}:{Path(__file__).parent}:{Path(__file__).parents[2]}"
    world.start(table={**TABLE, "tells": "tells:serve_quiet"})
    wait_until(asked.exists)
    ends = world.agent("ends", f"{READY}exit 0\n", restart=Restart(policy="never"))
    wait_until(lambda: agents.read_hint(ends.last_exit))
    assert not told.exists()
    goes_on.touch()
