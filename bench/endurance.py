"""Whether memory stays flat: an hour at full load, what every process holds noted each half minute.

Not among those that `make bench` runs; by name only: `bench/run.py endurance`.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import density
from measure import Row, Table
from world import LOOM, environment, far_side, scratch

from loom.spool import agents, locks
from loom.spool.home import open_home
from loom.spool.layout import AgentDir, Home
from loom.wire.agent import AgentSpec

AGENTS, WAITING = 8, 16  # each always has so many messages before it
GOAL_EVERY_S, GC_EVERY_S = 30.0, 60.0
FLAT = 1.05
ROLES = ("planner", "executor", "keeper", "verifier")
CONFIG = "providers:\n  far:\n    base_url: {server}/v1\nretention:\n  messages: 0.002\n  logs_packed: 0.002\n"


def run(quick: bool) -> Table:
    seconds, every_s = (120.0, 5.0) if quick else (3600.0, 30.0)
    how = f"{AGENTS} agents that never run out of messages, a goal each half minute, gc each minute"
    table = Table("endurance", f"{how}, {seconds / 60:g} minutes: anonymous memory of the largest process of each kind")
    with scratch(on_disk=True) as place, far_side() as server:
        home = open_home(place / ".loom")
        home.config.write_text(CONFIG.format(server=server))
        work = place / "work"
        work.mkdir()
        (work / "notes.md").write_text("# Notes\n\nA line of them.\n")
        boxes = [agents.create(home, AgentSpec(f"a{n}", "far/m"), "", "up") for n in range(AGENTS)]
        with density._supervised(place, lambda: density._all_idle(boxes)) as (supervisor, _):
            load = _Load(place, boxes, work)
            kinds: dict[str, list[float]] = {}
            for _ in _ticks(seconds, every_s, load):
                for kind, size in _sizes(home, supervisor, boxes).items():
                    kinds.setdefault(kind, []).append(size)
            load.end()
            density._wait(lambda: not any(agents.has_mail(box) for box in boxes), 300)
        failed = sum(len(list(box.failed.glob("*.msg"))) for box in boxes)
        table.notes.append(f"{load.sent:,} messages sent, {failed} failed; {load.goals} goals, {load.lost} not done")
    for kind, sizes in kinds.items():
        table.rows.append(Row(kind, sizes, unit="MiB"))
        quarter = len(sizes) // 4
        early, late = Row("", sizes[quarter : 2 * quarter]), Row("", sizes[-quarter:])
        growth = late.median / early.median if quarter else None
        table.value(f"{kind}: the last quarter / the second", growth, FLAT, "×")
    return table


class _Load:
    """Keeps everybody busy, a little at a time, between two looks."""

    def __init__(self, place: Path, boxes: list[AgentDir], work: Path) -> None:
        self.sent = self.goals = self.lost = 0
        self._boxes, self._work, self._env = boxes, work, environment(place)
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        self._due = {"goal": 0.0, "gc": time.monotonic() + GC_EVERY_S}

    def go_on(self) -> None:
        for box in self._boxes:
            for _ in range(WAITING - agents.waiting(box)):
                density._send(box)
                self.sent += 1
        self._start("goal", GOAL_EVERY_S, "run", "Write a digest.", "-w", str(self._work), "--model", "builtin")
        self._start("gc", GC_EVERY_S, "gc")

    def _start(self, what: str, every_s: float, *args: str) -> None:
        if (running := self._running.get(what)) is not None:
            if running.poll() is None:
                return
            self._note(what)
        if time.monotonic() >= self._due[what]:
            self._due[what] = time.monotonic() + every_s
            quiet = subprocess.DEVNULL
            self._running[what] = subprocess.Popen([str(LOOM), *args], env=self._env, stdout=quiet, stderr=quiet)

    def _note(self, what: str) -> None:
        status = self._running.pop(what).wait()
        if what == "goal":
            self.goals += 1
            self.lost += status != 0

    def end(self) -> None:
        for what in list(self._running):
            self._note(what)


def _ticks(seconds: float, every_s: float, load: _Load) -> Iterator[None]:
    """Comes back every so often; in between the load goes on."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        until = time.monotonic() + every_s
        while time.monotonic() < until:
            load.go_on()
            time.sleep(0.05)
        yield


def _sizes(home: Home, supervisor: int, boxes: list[AgentDir]) -> dict[str, float]:
    """MiB of the largest process of each kind that runs now; what forks share counts in each, so it can but grow."""
    pids = {"supervisor": [supervisor], "router": _pids([home.agent("router")]), "agent": _pids(boxes)}
    for role in ROLES:
        pids[role] = _pids([box for box in agents.each(home) if box.name.startswith(f"{role}-")])
    found = {}
    for kind, those in pids.items():
        sizes = []
        for pid in those:
            with contextlib.suppress(OSError, StopIteration):  # it has ended
                sizes.append(density._kib(f"/proc/{pid}/status", "RssAnon:") / 1024)
        if sizes:
            found[kind] = max(sizes)
    return found


def _pids(boxes: list[AgentDir]) -> list[int]:
    holders = [locks.holder(box.lock) for box in boxes]
    return [who.pid for who in holders if who is not None and who.pid != os.getpid()]
