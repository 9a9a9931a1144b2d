"""How many messages a second a router moves from the outboxes of a hundred agents into their inboxes, durably."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

from measure import Row, Table
from world import ROOT, disk_of, environment, scratch

from loom.spool import agents, fs
from loom.spool.home import open_home
from loom.spool.layout import Home
from loom.wire import ids, message
from loom.wire.agent import AgentSpec
from loom.wire.message import Message

AGENTS = 100
_NOW_MS = 1_790_000_000_000


def run(quick: bool) -> Table:
    count = 2_000 if quick else 10_000
    how = f"a draining router as a process of its own, its start subtracted: {AGENTS} agents, messages of 1 KB"
    table = Table("routing", how)
    for on_disk in (False, True):
        with scratch(on_disk) as place:
            if on_disk:
                table.notes.append(f"disk: {disk_of(place)}")
            samples = _measured(place, count, 2 if quick else 5)
            table.rows.append(Row("disk" if on_disk else "memory", samples, unit="messages/s"))
    table.rows.append(Row("the goal", [15_000.0], unit="messages/s"))
    for where in ("memory", "disk"):
        table.at_least(f"messages a second, {where} / the goal", where, "the goal", 1.0)
    return table


def _measured(place: Path, count: int, rounds: int) -> list[float]:
    env = environment(place)
    home = open_home(place / ".loom", env)
    for number in range(AGENTS):
        agents.create(home, AgentSpec(f"a{number}", "builtin/echo"), "", "down")
    agents.create(home, AgentSpec("router", "builtin", runner="router"), "", "down")
    _drained_s(home, env)
    samples = []
    for number in range(rounds):
        empty_s = _drained_s(home, env)
        _fill(home, number * count, count)
        samples.append(count / (_drained_s(home, env) - empty_s))
        there = sum(1 for n in range(AGENTS) for p in home.agent(f"a{n}").inbox.glob("*.msg") if p.stat().st_size)
        assert there == (number + 1) * count, f"{there} messages arrived"
    return samples


def _fill(home: Home, first: int, count: int) -> None:
    """Messages in the outboxes, each to the agent next but six. What an agent has published was synced by it."""
    for number in range(first, first + count):
        stem = ids.message_stem(_NOW_MS + number, number.to_bytes(10, "big"))
        sender, target = f"a{number % AGENTS}", f"a{(number + 7) % AGENTS}"
        body = Message(ids.ulid_of(stem), sender, _NOW_MS, "x" * 1024, to=target)
        (home.agent(sender).outbox / f"{stem}.msg").write_bytes(message.encode(body))
    fs.sync_tree(home.agents)


def _drained_s(home: Home, env: dict[str, str]) -> float:
    argv = [sys.executable, str(ROOT / "runners" / "router"), str(home.agent("router").path), "--drain"]
    began = time.perf_counter()
    subprocess.run(argv, env=env, check=True, capture_output=True, timeout=600)
    return time.perf_counter() - began
