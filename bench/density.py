"""How many agents one machine carries: a thousand that wait with a process each, ten thousand that wait without one."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from measure import Row, Table, process_ms
from world import LOOM, environment, far_side, scratch

from loom.daemons.router import SWEEP_EACH_S
from loom.spool import agents, locks, mailbox, wake, watch
from loom.spool.home import open_home
from loom.spool.layout import AgentDir, Home
from loom.wire import ids, message
from loom.wire.agent import AgentSpec, Restart, Scale, Want
from loom.wire.message import Message

MIB = 1 << 20
AT_ONCE = Restart(base_s=0, limit=1_000_000)
SETTLED_S = 40.0  # by then runners count as steady (ten seconds), and the second look at everybody is over (thirty)


def run(quick: bool) -> Table:
    awake, dormant = (100, 1000) if quick else (1000, 10_000)
    how = f"{awake} forked agents that wait in poll(2), and {dormant} without a process, under one supervisor each"
    table = Table("density", how)
    table.notes.append("idling: once a start is over, with the looks at everybody (one in 0.2 s an agent)")
    table.notes.append("PSS and processor time are the kernel's, of all processes together, divided by the agents")
    _awake(table, awake, quick)
    _dormant(table, dormant, 40 if quick else 200, quick)
    return table


def _awake(table: Table, count: int, quick: bool) -> None:
    with scratch() as place, far_side() as server:
        bare = _supervisor_kib(place / "bare", [])
        place.joinpath("full").mkdir()
        home = open_home(place / "full" / ".loom")
        home.config.write_text(f"providers:\n  far:\n    base_url: {server}/v1\n")
        boxes = [_make(home, f"a{number}", "far/m", "up") for number in range(count)]
        ready, used = Row("all ready"), Row("processor time of the start, an agent")
        table.rows += [ready, used]
        for _ in range(2):
            with _supervised(place / "full", lambda: _all_idle(boxes)) as (pid, took_s):
                _note_start(took_s, [pid, *map(_pid_of, boxes)], ready, used)
        with _supervised(place / "full", lambda: _all_idle(boxes)) as (pid, took_s):
            runners = [_pid_of(box) for box in boxes]
            _note_start(took_s, [pid, *runners], ready, used)
            table.value(f"{count} agents: all ready", ready.median / 1000, 3.0 * count / 1000, "s")
            each = sum(_pss_kib(runner) for runner in runners) / count
            table.value("PSS of an idle agent", each / 1024, 1.3, "MiB")
            own = (_rss_kib(pid) - bare) / count
            table.value("the supervisor's own memory for each", own, 30, "KiB")
            router = _pid_of(home.agent("router"))
            pids = [pid, router, *runners]
            if not quick:
                time.sleep(SETTLED_S)
            # One look of the supervisor and one of the router at everybody fall into it.
            table.value("idle CPU of all", _busy_percent(pids, 5 if quick else SWEEP_EACH_S * count), 0.1, "%")
            _restarts(table, boxes[:20], 100)
            for box in boxes:
                _send(box)
            _wait(lambda: not any(agents.has_mail(box) for box in boxes), 120)
            each = sum(_pss_kib(_pid_of(box)) for box in boxes) / count
            table.value("PSS of an agent that has answered one message", each / 1024, 6, "MiB")


def _note_start(took_s: float, pids: list[int], ready: Row, used: Row) -> None:
    ready.samples.append(took_s * 1000)
    used.samples.append(sum(_busy_ns(pid) for pid in pids) / 1e6 / (len(pids) - 1))


def _restarts(table: Table, boxes: list[AgentDir], kills: int) -> None:
    """From kill -9 to the next incarnation's signature in the lock."""
    chance, samples = random.Random(1), []
    for number in range(kills):
        time.sleep(0.02 + chance.random() * 0.05)
        box = boxes[number % len(boxes)]
        old = _pid_of(box)
        began = time.perf_counter()
        os.kill(old, signal.SIGKILL)  # a benchmark's own agent, held by its lock a moment ago
        _wait(lambda old=old, box=box: _serves(box, old), 30, pause_s=0.0)  # type: ignore[misc]
        samples.append((time.perf_counter() - began) * 1000)
    row = Row("kill -9 to the next one serving", samples)
    table.rows.append(row)
    table.value("kill -9 to the next one serving, p50", row.median, 10, "ms")
    table.value(f"the worst of {kills}", max(samples), 50, "ms")


def _dormant(table: Table, count: int, messages: int, quick: bool) -> None:
    with scratch() as place:
        home = open_home(place / ".loom")
        boxes = [_make(home, f"a{number}", "builtin/echo", "demand") for number in range(count)]
        with _supervised(place, lambda: _all_idle([home.agent("router")])) as (pid, _):
            time.sleep(2.0)
            table.value(f"{count} dormant agents: memory of the supervisor", _rss_kib(pid) / 1024, 60, "MiB")
            table.value("idle CPU of supervisor and router", _dormant_percent(table, home, pid, count, quick), 0.1, "%")
            chance = random.Random(1)
            row = Row("mail to claim by a process started for it", [])
            for box in chance.sample(boxes, messages):
                row.samples.append(_claim_ms(home, box))
            table.rows.append(row)
            table.value("mail to claim, p99", row.percentile(99), 60, "ms")
            env = environment(place)
            listed = Row("loom agent ps", [process_ms([str(LOOM), "agent", "ps"], env) for _ in range(5)])
            table.rows.append(listed)
            table.value(f"loom agent ps among {count}", listed.median, 600, "ms")


# -- agents and their supervisor --------------------------------------------------------------------------------


def _make(home: Home, name: str, model: str, want: Want) -> AgentDir:
    scale: Scale = "to-zero" if want == "demand" else ""
    return agents.create(home, AgentSpec(name=name, model=model, restart=AT_ONCE, scale=scale), "", "up")


@contextlib.contextmanager
def _supervised(place: Path, ready: Callable[[], bool]) -> Iterator[tuple[int, float]]:
    """(pid of a supervisor for the home in `place`, seconds from its start until `ready`)."""
    env = environment(place)
    began = time.perf_counter()
    child = subprocess.Popen([str(LOOM), "supervisor", "run"], env=env, stderr=subprocess.DEVNULL)
    try:
        _wait(ready, 300)
        yield child.pid, time.perf_counter() - began
    finally:
        child.terminate()
        child.wait(120)


def _supervisor_kib(place: Path, names: list[str]) -> float:
    """What a supervisor holds that has nobody but the router."""
    place.mkdir()
    home = open_home(place / ".loom")
    with _supervised(place, lambda: _all_idle([home.agent("router")])) as (pid, _):
        time.sleep(1.0)
        return _rss_kib(pid)


def _all_idle(boxes: list[AgentDir]) -> bool:
    return all(agents.read_hint(box.status) == "idle" and locks.holder(box.lock) is not None for box in boxes)


def _pid_of(box: AgentDir) -> int:
    who = locks.holder(box.lock)
    assert who is not None, f"nobody serves {box.name}"
    return who.pid


def _serves(box: AgentDir, old: int) -> bool:
    who = locks.holder(box.lock)
    return who is not None and who.pid != old


def _send(box: AgentDir) -> str:
    now = time.time_ns() // 1_000_000
    stem = ids.message_stem(now, os.urandom(10))
    mailbox.deliver(box, stem, message.encode(Message(ids.ulid_of(stem), "bench", now, "Say a word.")))
    wake.ring_agent(box.path.parent.parent / "run" / "wake", box.name)
    return stem


def _claim_ms(home: Home, box: AgentDir) -> float:
    seen = watch.Watch()
    seen.add(box.in_progress, watch.ARRIVALS, "claim")
    began = time.perf_counter()
    stem = _send(box)
    _wait(lambda: any(event.name == f"{stem}.msg" for event in seen.read()), 30, pause_s=0.0)
    took = (time.perf_counter() - began) * 1000
    seen.close()
    _wait(lambda: box.processed(stem).exists(), 30)
    return took


def _wait(until: Callable[[], object], limit_s: float, pause_s: float = 0.005) -> None:
    deadline = time.monotonic() + limit_s
    while not until():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {limit_s:g} s")
        time.sleep(pause_s)


# -- what the kernel says ---------------------------------------------------------------------------------------


def _pss_kib(pid: int) -> float:
    return _kib(f"/proc/{pid}/smaps_rollup", "Pss:")


def _rss_kib(pid: int) -> float:
    return _kib(f"/proc/{pid}/status", "VmRSS:")


def _kib(path: str, key: str) -> float:
    line = next(line for line in Path(path).read_text().splitlines() if line.startswith(key))
    return float(line.split()[1])


def _dormant_percent(table: Table, home: Home, pid: int, count: int, quick: bool) -> float:
    """Percent of a core that supervisor and router use, their looks at everybody included.

    Such a look comes too seldom to wait for: its cost is added from the one that follows a start after half a minute,
    and for the router, whose only one is part of its start, from all that it has used.
    """
    router = _pid_of(home.agent("router"))
    time.sleep(1 if quick else 10)
    before = _busy_ns(pid)
    time.sleep(1 if quick else SETTLED_S)
    look = Row("a look of the supervisor at everybody", [(_busy_ns(pid) - before) / 1e6])
    table.rows.append(look)
    looks_ns = look.median * 1e6 + _busy_ns(router)
    return _busy_percent([pid, router], 5 if quick else 30) + looks_ns / (SWEEP_EACH_S * count) / 1e7


def _busy_percent(pids: list[int], seconds: float) -> float:
    """Percent of a core that these processes use together, in nanoseconds of the scheduler."""
    before = sum(_busy_ns(pid) for pid in pids)
    time.sleep(seconds)
    return (sum(_busy_ns(pid) for pid in pids) - before) / seconds / 1e7


def _busy_ns(pid: int) -> int:
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0])
