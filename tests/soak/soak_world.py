"""A whole loom under random SIGKILL: supervisor, router, agents, their model program, and the clients that send.

The driver plays the person who starts again what nobody else starts: the supervisor and the senders. It kills one of
all living processes of the home at a time, whichever it is, a drawn time apart.
"""

from __future__ import annotations

import json
import os
import random
import select
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from support import ROOT, processes_of

from loom.cli import ensure
from loom.proc import pidfd
from loom.spool import agents, fs, locks, mailbox
from loom.spool.home import open_home
from loom.spool.layout import AgentDir
from loom.wire.agent import AgentSpec, Restart

HERE = Path(__file__).parent
# The source of each chain has its replies routed to the next agent; `teller` is a program that counts its calls.
ROUTES = {"alice": "bob", "carol": "dave"}
CHATS = ("alice", "bob", "carol", "dave", "erin")
TELLER = "teller"
SENT_TO = ("alice", "carol", "erin", "alice", "carol", "erin", "alice", "carol", "erin", "alice")
COMMAND_LINES = 100  # messages of one `loom send --stdin-lines`
QUICK = Restart(base_s=0.2)  # so that there is something alive to kill at this rate
_MODEL = """#!/bin/sh
printf 'asked %s\\n' "$$" >>"{calls}"
printf 'answer of process %s' "$$"
"""


@dataclass(slots=True)
class Counts:
    """kills by kind of process; starts by kind of what the driver started, the first ones included."""

    kills: Counter[str] = field(default_factory=Counter)
    starts: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0
    drain_s: float = 0.0


class World:
    """One home under `place`, outside of which the clients keep their books."""

    def __init__(
        self,
        place: Path,
        seed: int,
        messages: int,
        *,
        senders: int = 3,
        rate: float = 8.0,
        waiting: int = 400,
        least_kills: int = 0,
        restart: Restart = QUICK,
        spared: frozenset[str] = frozenset(),
    ) -> None:
        """rate: kills a second. waiting: senders hold back when so much waits. least_kills: not done before them.

        spared: kinds of processes that are not killed.
        """
        self.place, self.rate, self.waiting, self.least_kills = place, rate, waiting, least_kills
        self.restart, self.spared = restart, spared
        self.sent_to, self.counting = SENT_TO, TELLER
        self.random = random.Random(seed)
        self.counts = Counts()
        self.home = open_home(place / "home")
        self.env = {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": f"{ROOT}:{HERE}",
            "LOOM_HOME": str(self.home.path),
            "LOOM_ALLOW_FILESYSTEM": os.environ.get("LOOM_ALLOW_FILESYSTEM", ""),
        }
        self.calls = place / "calls"
        self.commands = max(1, messages // 10 // COMMAND_LINES)  # a tenth comes through `loom send`
        by_hand = messages - self.commands * COMMAND_LINES
        self.shares = [by_hand // senders + (number < by_hand % senders) for number in range(senders)]
        self.first_ms = time.time_ns() // 1_000_000
        self.senders: dict[int, subprocess.Popen[bytes]] = {}
        self.command: subprocess.Popen[bytes] | None = None
        self.commands_run = 0
        self.told: list[str] = []  # the agent that each `loom send` was for
        self.supervisor: subprocess.Popen[bytes] | None = None
        self._make_agents()

    def _make_agents(self) -> None:
        program = self.place / "model"
        program.write_text(_MODEL.format(calls=self.calls))
        program.chmod(0o755)
        for name in CHATS:
            agents.create(self.home, AgentSpec(name, "builtin/echo", restart=self.restart), "", "up")
        agents.create(self.home, AgentSpec(TELLER, f"exec/{program}", restart=self.restart), "", "up")
        routes = [{"from": source, "to": target} for source, target in ROUTES.items()]
        fs.replace(self.home.routes, json.dumps({"v": 1, "routes": routes}).encode())

    def boxes(self) -> list[AgentDir]:
        return [self.home.agent(name) for name in (*CHATS, TELLER)]

    def book(self, sender: int) -> Path:
        return self.place / f"book-{sender}"

    def said(self, command: int) -> Path:
        """What the n-th `loom send` printed: the names of what it was told is accepted."""
        return self.place / f"said-{command}"

    # -- keeping it going ------------------------------------------------------------------------------------------

    def run(self, deadline_s: float) -> None:
        """Send everything under kills, then let it come to rest and stop it. Past the deadline AssertionError."""
        began = time.monotonic()
        next_kill = began
        try:
            while not self._all_sent():
                self._keep_going()
                now = time.monotonic()
                assert now - began < deadline_s, f"not all sent after {deadline_s} s: {self.state()}"
                if now >= next_kill:
                    self._kill_one()
                    next_kill = max(now, next_kill + self.random.expovariate(self.rate))
                select.select([], [], [], 0.01)
            self.counts.seconds = time.monotonic() - began
            while not self._at_rest():
                self._keep_going()
                assert time.monotonic() - began < deadline_s, f"not at rest after {deadline_s} s: {self.state()}"
                select.select([], [], [], 0.05)
            self.counts.drain_s = time.monotonic() - began - self.counts.seconds
        finally:
            self._stop()

    def _keep_going(self) -> None:
        for number, share in enumerate(self.shares):
            child = self.senders.get(number)
            if child is not None and child.poll() is None:
                continue
            if child is None or child.returncode == -signal.SIGKILL:
                words = [
                    self.home.path,
                    self.book(number),
                    f"sender{number}",
                    share,
                    self.first_ms,
                    self.waiting,
                    *self.sent_to,
                ]
                self.senders[number] = self._start("sender", str(HERE / "soak_sender.py"), *map(str, words))
            else:
                assert child.returncode == 0, f"a sender ended with {child.returncode}"
        if self.command is None or self.command.poll() is not None:
            self._next_command()
        self._keep_supervisor()

    def _keep_supervisor(self) -> None:
        if self.supervisor is not None and self.supervisor.poll() is not None:
            assert self.supervisor.returncode in (-signal.SIGKILL, 75), self.supervisor.returncode
            self.supervisor = None
        if self.supervisor is None and not locks.is_held(self.home.supervisor_lock):
            self.supervisor = self._start("supervisor", "-m", "loom", "supervisor", "run")

    def _next_command(self) -> None:
        if self.command is not None:
            assert self.command.returncode in (0, -signal.SIGKILL), f"loom send ended with {self.command.returncode}"
            self.command = None
        if self.commands_run < self.commands:
            number, self.commands_run = self.commands_run, self.commands_run + 1
            lines = self.place / "lines"
            lines.write_text("".join(f"command{number} {line}\n" for line in range(COMMAND_LINES)))
            name = self.counting if number % 5 == 0 else self.sent_to[number % len(self.sent_to)]
            self.told.append(name)
            words = ("-m", "loom", "send", name, "--stdin-lines", "--thread", f"command{number}")
            with lines.open("rb") as given, self.said(number).open("wb") as said:
                self.command = self._start("command", *words, stdin=given, stdout=said)

    def _start(self, kind: str, *words: str, stdin=None, stdout=None) -> subprocess.Popen[bytes]:
        self.counts.starts[kind] += 1
        with (self.place / f"{kind}.log").open("ab") as log:
            return subprocess.Popen(
                [sys.executable, *words],
                stdin=stdin or subprocess.DEVNULL,
                stdout=stdout or log,
                stderr=log,
                env=self.env,
                start_new_session=True,
            )

    def _kill_one(self) -> None:
        found = processes_of(self.home.path)
        if not found:
            return
        pid = self.random.choice(sorted(found))
        kind = _kind(pid, found[pid])
        if kind in self.spared:
            return
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            return
        self.counts.kills[kind] += 1

    def _all_sent(self) -> bool:
        done = [child.poll() == 0 for child in self.senders.values()]
        if self.counts.kills.total() < self.least_kills:
            return False
        return len(done) == len(self.shares) and all(done) and self.commands_run == self.commands and not self._busy()

    def _busy(self) -> bool:
        return self.command is not None and self.command.poll() is None

    def _at_rest(self) -> bool:
        if any(agents.has_mail(box) or mailbox.outgoing(box) for box in self.boxes()):
            return False
        return locks.is_held(self.home.supervisor_lock)

    def _stop(self) -> None:
        ensure.stop_supervisor(self.home)
        if self.supervisor is not None:
            self.supervisor.wait(30)

    def state(self) -> dict[str, object]:
        """What everybody is at, for a failure's message."""
        found: dict[str, object] = {"kills": dict(self.counts.kills)}
        for box in [*self.boxes(), self.home.agent("router")]:
            want, status = agents.read_want(box), agents.read_hint(box.status)
            left = (agents.waiting(box), len(mailbox.in_progress(box)), len(mailbox.outgoing(box)))
            found[box.name] = (want, status, "alive" if agents.is_alive(box) else "", *left)
        return found


def _kind(pid: int, command: str) -> str:
    """What a killed process was: forked runners have their agent's name, and so have their children until they exec."""
    name, parent = _name(pid), _name(_parent(pid))
    if not name:
        return "gone"
    if name in CHATS or name == TELLER:
        return "model" if parent == name else "agent"
    if name == "router":
        return "router"
    if "soak_sender" in command:
        return "sender"
    if "loom send" in command:
        return "command"
    if "loom supervisor" in command or name == "loom-supervisor":
        return "supervisor"
    return "model"


def _name(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""


def _parent(pid: int) -> int:
    fields = pidfd.stat_of(pid)
    return int(fields[1]) if fields else 0
