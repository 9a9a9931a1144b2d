"""What claim, acknowledgement, recovery, routing, `ps` and `gc` cost among 1,000 and among 1,000,000 old messages."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from measure import Row, Table, process_ms, say
from world import LOOM, ROOT, disk_of, environment, scratch

from loom.spool import agents, mailbox
from loom.spool.home import open_home
from loom.spool.layout import AgentDir, Home
from loom.wire import ids, message
from loom.wire.agent import AgentSpec
from loom.wire.message import Message

NAME = "g"
DAY_MS = 86_400_000
YESTERDAY_MS = (int(time.time() * 1000) // DAY_MS - 1) * DAY_MS  # young enough for gc to look and to leave them


COMMANDS = {"agent ps": ("agent", "ps", "-a"), "gc with nothing to do": ("gc",)}


def run(quick: bool) -> Table:
    sizes = (1_000, 100_000 if quick else 1_000_000)
    table = Table(
        "growth", "one agent that has processed so many; all old ones in one day's directory, the worst there is"
    )
    with scratch(on_disk=True) as place:
        table.notes.append(f"disk: {disk_of(place)}")
        for size in sizes:
            say(f"growth: making {size} old messages")
            home = open_home(place / str(size) / ".loom")
            for name in (NAME, "target", "router"):
                spec = AgentSpec(name, "builtin/echo", runner="router" if name == "router" else "agent")
                agents.create(home, spec, "", "down")
            box = home.agent(NAME)
            _make_old(box, size)
            for what, samples in _measured(box, 100 if quick else 400).items():
                table.rows.append(Row(f"{what}, {size:,} old", samples, unit="µs"))
            env = environment(home.path.parent)
            rounds, batch = (3, 200) if quick else (9, 1_000)
            table.rows.append(Row(f"route, {size:,} old", _routed(home, env, rounds, batch), unit="µs"))
            for what, argv in COMMANDS.items():
                took = [process_ms([str(LOOM), *argv], env) for _ in range(rounds)]
                table.rows.append(Row(f"{what}, {size:,} old", took))
    small, large = (f"{size:,} old" for size in sizes)
    for what in ("claim", "acknowledge", "recover", "route", *COMMANDS):
        table.at_most(f"{what}: {large} / {small}", f"{what}, {large}", f"{what}, {small}", 1.3)
    return table


def _letter(number: int, sender: str = "bench", to: str | None = None) -> tuple[str, bytes]:
    now = YESTERDAY_MS + number
    stem = ids.message_stem(now, number.to_bytes(10, "big"))
    return stem, message.encode(Message(ids.ulid_of(stem), sender, now, f"message {number}", to=to))


def _make_old(box: AgentDir, count: int) -> None:
    """Processed requests and sent replies under their names. Empty: nothing reads them."""
    for number in range(count):
        stem = ids.message_stem(YESTERDAY_MS + number % 80_000_000, (10**9 + number).to_bytes(10, "big"))
        for path in (box.processed(stem), box.sent(stem)):
            if number == 0:
                path.parent.mkdir(parents=True, exist_ok=True)
            os.close(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600))


def _measured(box: AgentDir, count: int) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {"claim": [], "acknowledge": [], "recover": []}
    for number in range(count):
        mailbox.deliver(box, *_letter(number))
        inbox = mailbox.Inbox(box)
        began = time.perf_counter()
        claimed = inbox.claim()
        found["claim"].append((time.perf_counter() - began) * 1e6)
        assert claimed is not None
        mailbox.answer(box, *message.reply_to(claimed.message, claimed.stem, NAME, 0, "done", 1))
        began = time.perf_counter()
        for name in mailbox.in_progress(box):
            taken = mailbox.take(box, name)
            assert isinstance(taken, mailbox.Claimed)
            mailbox.look(box, NAME, taken.stem, mailbox.attempts(box, taken.stem))
        found["recover"].append((time.perf_counter() - began) * 1e6)
        began = time.perf_counter()
        mailbox.acknowledge(box, claimed.stem)
        found["acknowledge"].append((time.perf_counter() - began) * 1e6)
        Path(box.outbox / f"{ids.reply_stem(NAME, claimed.stem)}.msg").unlink()
    return found


def _routed(home: Home, env: Mapping[str, str], rounds: int, batch: int) -> list[float]:
    """Microseconds a message by a router that drains one outbox, its start subtracted."""
    _drained_s(home, env)
    samples = []
    for number in range(rounds):
        empty_s = _drained_s(home, env)
        for letter in range(batch):
            stem, data = _letter(10_000_000 + number * batch + letter, NAME, "target")
            (home.agent(NAME).outbox / f"{stem}.msg").write_bytes(data)
        samples.append((_drained_s(home, env) - empty_s) / batch * 1e6)
    return samples


def _drained_s(home: Home, env: Mapping[str, str]) -> float:
    argv = [sys.executable, str(ROOT / "runners" / "router"), str(home.agent("router").path), "--drain"]
    began = time.perf_counter()
    subprocess.run(argv, env=dict(env), check=True, capture_output=True, timeout=600)
    return time.perf_counter() - began
