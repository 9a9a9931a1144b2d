"""From a message's link in the inbox to its claim by an idle runner, and what idling costs."""

from __future__ import annotations

import os
import random
import subprocess
import time

from measure import Row, Table, cpu_s
from world import LOOM, environment, scratch

from loom.spool import fs, mailbox, wake, watch
from loom.spool.layout import Home
from loom.wire import ids, message
from loom.wire.message import Message

PEER_S = 0.2  # what polling at 5 Hz costs, by arithmetic: half of it at the median


class _Timed(fs.Calls):
    """Notes when a link returned."""

    at = 0.0

    def link(self, source: str, target: str) -> None:
        super().link(source, target)
        self.at = time.perf_counter()


def run(quick: bool) -> Table:
    how = (
        "an idle supervised agent: from link(2) returning in the sender to the move into .in-progress/, seen by inotify"
    )
    table = Table("wake", how)
    table.rows = [_row(on_disk, 60 if quick else 300) for on_disk in (False, True)]
    for row, where in zip(table.rows, ("memory", "disk"), strict=True):
        table.value(f"p50, {where}", row.median, 0.4, "ms")
        table.value(f"p99, {where}", row.percentile(99), 5, "ms")
        table.value(f"idle CPU of runner, router and supervisor, {where}", row.more["idle_cpu_percent"], 0.05, "%")
    return table


def _row(on_disk: bool, count: int) -> Row:
    with scratch(on_disk) as place:
        env = environment(place)
        start = [str(LOOM), "agent", "start", "w", "--model", "builtin/echo", "--detach"]
        subprocess.run(start, env=env, check=True, capture_output=True)
        try:
            home = Home(place / ".loom")
            subprocess.run([str(LOOM), "send", "w", "first", "--wait"], env=env, check=True, capture_output=True)
            samples = _send_and_see(home, count)
            return Row(
                "disk" if on_disk else "memory",
                samples,
                more={"idle_cpu_percent": _idle_cpu(home, 5 if count < 100 else 20)},
            )
        finally:
            subprocess.run([str(LOOM), "supervisor", "stop"], env=env, capture_output=True)


def _send_and_see(home: Home, count: int) -> list[float]:
    box = home.agent("w")
    clock = fs.calls = _Timed()
    chance = random.Random(1)
    seen = watch.Watch()
    seen.add(box.in_progress, watch.ARRIVALS, "claim")
    samples = []
    for number in range(count):
        time.sleep(0.01 + chance.random() * 0.03)
        now = time.time_ns() // 1_000_000
        stem = ids.message_stem(now, os.urandom(10))
        data = message.encode(Message(ids.ulid_of(stem), "bench", now, f"message {number}"))
        mailbox.deliver(box, stem, data)
        wake.ring_agent(home.wake, box.name)
        while not any(event.name == f"{stem}.msg" for event in seen.read()):
            pass
        samples.append((time.perf_counter() - clock.at) * 1000)
        while not box.processed(stem).exists():
            time.sleep(0.001)
    seen.close()
    fs.calls = fs.Calls()
    return samples


def _idle_cpu(home: Home, seconds: float) -> float:
    """Percent of a core that supervisor, router and runner use together while nothing happens."""
    pids = [int(home.supervisor_pid.read_text())]
    pids += [int(home.agent(name).lock.read_text().split()[0]) for name in ("w", "router")]
    time.sleep(1.0)
    before = sum(cpu_s(pid) for pid in pids)
    time.sleep(seconds)
    return (sum(cpu_s(pid) for pid in pids) - before) / seconds * 100
