"""A start costs the work in flight and not the history: a runner, the router and a supervisor among old messages.

The old messages, their replies and their turns are names linked to a few small files: nobody may read what is in them,
and making a million of each takes a minute or two. They lie in day directories as the protocol says, the turns in one.
"""

from __future__ import annotations

import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import results
from soak_cases import LOOM, environment
from soak_ground import on_disk
from support import ROOT, processes_of, scratch, wait_until

from loom.spool import agents, fs, mailbox, ndjson
from loom.spool.home import open_home
from loom.spool.layout import AgentDir, Home
from loom.wire import ids, message
from loom.wire.agent import AgentSpec
from loom.wire.message import Message, encode

DAYS = 30
DAY_MS = 86_400_000
LAST_MS = 1_790_000_000_000
READY_S = 1.0
MEMORY_MB = 60.0
LINKS = 20_000  # times three to one file: ext4 allows 65,000
LINES = 100_000  # of the old conversation
TRIES = 3  # of which the fastest counts: other work on the machine is not the start's


@dataclass(frozen=True, slots=True)
class Start:
    """ready_s and done_s: from the start of the process until it was ready, and until nothing was in flight any more.

    cpu_s: what it had used by then. memory_mb: the most that was resident, by the kernel's own mark (VmHWM).
    """

    ready_s: float
    done_s: float
    cpu_s: float
    memory_mb: float


def old_home(place: Path, count: int) -> Home:
    """A home whose agent has `count` finished messages, a long conversation and crash records."""
    home = open_home(place / "home")
    box = agents.create(home, AgentSpec("old", "builtin/echo"), "", "down")
    agents.create(home, AgentSpec("router", "builtin", runner="router"), "", "up")
    fs.replace(home.config, b"pools: {planner: 1, executor: 1, verifier: 1, keeper: 1}\n")
    for day in range(DAYS):
        first_ms = LAST_MS - (DAYS - day) * DAY_MS
        for part in range(0, count // DAYS, LINKS):
            _link(box, place / f"one-{day}-{part}", first_ms + part, min(LINKS, count // DAYS - part))
    lines = b"".join(b'{"name":"%013d-%026d","role":"user","text":"old"}\n' % (LAST_MS, n) for n in range(LINES))
    fs.ensure_dir(box.conversation("main").parent)
    box.conversation("main").write_bytes(lines)
    return home


def _link(box: AgentDir, one: Path, first_ms: int, count: int) -> None:
    """`count` finished messages of one day."""
    one.write_bytes(b"old\n")
    stem = ids.message_stem(first_ms, bytes(10))
    places = [str(path.parent) for path in (box.processed(stem), box.sent(stem), box.turn(stem, 0))]
    for place in places:
        fs.ensure_dir(Path(place))
    source, (processed, sent, turns), link = str(one), places, os.link
    for number in range(count):
        name = f"{first_ms + number:013d}-{number:026d}"
        link(source, f"{processed}/{name}.msg")
        link(source, f"{sent}/{name}.msg")
        link(source, f"{turns}/{name}.0.ndjson")


def crash(home: Home, number: int) -> None:
    """What a crash leaves: waiting, claimed, in the middle of its turn, and answered but not acknowledged."""
    box = home.agent("old")
    stems = [ids.message_stem(LAST_MS + number, os.urandom(10)) for _ in range(6)]
    letters = [Message(ids.ulid_of(stem), "user", 1, "hello") for stem in stems]
    for stem, letter in zip(stems, letters, strict=True):
        mailbox.deliver(box, stem, encode(letter))
    for stem in stems[:3]:
        fs.move(box.inbox / f"{stem}.msg", box.in_progress / f"{stem}.msg")
    turn = ndjson.Appender(box.turn(stems[1], 0))
    turn.append({"t": "open", "boot": "another", "epoch": "1.1"})
    turn.close()
    mailbox.answer(box, *message.reply_to(letters[2], stems[2], "old", 0, "hello", 1))


def start(home: Home, words: Sequence[str], done: Callable[[], bool]) -> Start:
    """Start a program, wait until `done()`, look at it, end it."""
    read, write = os.pipe()
    began = time.monotonic()
    child = subprocess.Popen(words, env={**environment(home), "LOOM_READY_FD": str(write)}, pass_fds=(write,))
    os.close(write)
    try:
        assert select.select([read], [], [], 60)[0] and os.read(read, 1) == b"\n", "it was never ready"
        ready_s = time.monotonic() - began
        wait_until(done, 60)
        done_s = time.monotonic() - began
        fields = Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()
        cpu_s = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
        status = Path(f"/proc/{child.pid}/status").read_text()
        memory_kb = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))
        return Start(ready_s, done_s, cpu_s, memory_kb / 1024)
    finally:
        os.close(read)
        child.send_signal(signal.SIGTERM)
        child.wait(30)
        wait_until(lambda: not processes_of(home.path))


def fastest(home: Home, kind: str) -> Start:
    """The best of some starts, each among the same wreckage."""
    box = home.agent("old")
    found = []
    for number in range(TRIES):
        crash(home, number)
        if kind == "supervisor":
            agents.write_want(box, "up")
            found.append(start(home, (*LOOM, "supervisor", "run"), lambda: _nothing_left(box)))
            agents.write_want(box, "down")
            continue
        runner, name = ("agent", "old") if kind == "runner" else ("router", "router")
        words = (sys.executable, str(ROOT / "runners" / runner), str(home.agent(name).path))
        todo = (lambda: not agents.has_mail(box)) if kind == "runner" else (lambda: not mailbox.outgoing(box))
        found.append(start(home, words, todo))
    return min(found, key=lambda one: one.ready_s)


def _nothing_left(box: AgentDir) -> bool:
    return not agents.has_mail(box) and not mailbox.outgoing(box)


def _measured(place: Path, count: int) -> dict[str, Start]:
    try:
        home = old_home(place, count)
        found = {kind: fastest(home, kind) for kind in ("runner", "router", "supervisor")}
    finally:
        shutil.rmtree(place, ignore_errors=True)
    for kind, one in found.items():
        print(f"{kind} among {count:,}: {one}")
        assert one.cpu_s < READY_S, f"{kind}: {one}"
        assert one.memory_mb < MEMORY_MB, f"{kind}: {one}"
    return found


def test_a_start_among_many_old_messages_costs_what_is_in_flight():
    _measured(scratch(), 30_000)


@pytest.mark.full
@pytest.mark.timeout(900)
def test_a_start_among_a_million_old_messages_takes_less_than_a_second():
    count = 1_000_000
    room = os.statvfs("/dev/shm").f_ffree if Path("/dev/shm").is_dir() else 0
    found = _measured(scratch() if room > 4 * count else on_disk(), count)
    figures = {
        f"{kind}_{what}": getattr(one, what)
        for kind, one in found.items()
        for what in ("ready_s", "done_s", "cpu_s", "memory_mb")
    }
    results.note("start after a crash", "none", old_messages=count, **figures)
    for kind, one in found.items():
        assert one.ready_s < READY_S, f"{kind}: {one}"
