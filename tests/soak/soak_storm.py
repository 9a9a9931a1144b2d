"""A loom in which every kind of process is killed at random, and whatever must not happen is looked for all the while.

    supervisor ─ router, agents (forked), agents (exec'ed: Python, and a shell script), a pipe of a loom.yml
                   └ model programs, tools, pipe commands: each forks strays that hide in all known ways

Three things are looked for. *Owners*: each process of the home descends from somebody who holds a lock, or is the
supervisor or a client; who does not must be gone within five seconds. *Bystanders* of the same user, some of which wear
the numbers of the dead, get no signal. *Messages* are accounted for by the oracle.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from soak_oracle import Oracle, Turn, is_known
from soak_world import HERE, World
from support import ROOT

from loom.cli import ensure
from loom.proc import pidfd, tree
from loom.spool import agents, locks
from loom.spool.layout import AgentDir
from loom.wire import ids, message
from loom.wire.agent import AgentSpec, Restart

GONE_S = 5.0  # the promise
LOOK_EVERY_S = 0.2
RELOADS = 0.2  # for each kill: the supervisor is asked to reload, and killed in the midst of it at times
PIPE = "lines~asks→sink"
ROUTES = {"asks": PIPE, PIPE: "sink"}
LOOMS_OWN = ("chat", "asks", "uses", "execed", PIPE, "sink")  # as mail goes: who is at rest is asked in this order
SHELL = "shell"
REPLIES = {"uses": 2, PIPE: 0}  # how often a turn asks the model; the others: once
# Never dead, and never long away: what is looked for are strays and messages, not patience.
ALWAYS = Restart(base_s=0.1, max_s=0.2, limit=1_000_000)
_WEAVE = """version: 1
name: storm
pipes:
  lines: [{{operator: command, cmd: "exec {place}/work cat"}}, {{operator: tap, label: seen}}]
agents:
  - {{name: asks, model: exec/{place}/model, restart: {restart}}}
  - {{name: sink, model: builtin/echo, restart: {restart}, from: [{{agent: asks, pipe: lines}}]}}
"""
_RESTART = "{policy: always, base: 100ms, max: 200ms, limit: 1000000, window: 1h}"
# Each of these leaves a process called by the argument STRAY that would live for long.
_WORK = """#!/bin/bash
nap="exec -a {tag} sleep 1000"
case $(($$ % 5)) in
0) (setsid bash -c "(setsid bash -c \\"$nap\\" &) ; exit" &) ;;
1) setsid bash -c "trap '' TERM INT HUP QUIT; $nap" & ;;
2) setsid bash -c "$nap" 3<&0 4>&1 5>&2 & ;;
3) env -i setsid /bin/bash -c "$nap" </dev/null >/dev/null 2>&1 & ;;
4) trap '' TERM ;;
esac
sleep 0.$((RANDOM % 5 + 1))
exec "$@"
"""
_MODEL = '#!/bin/sh\nexec {place}/work printf "answer of process %s" "$$"\n'
_TOOL = """#!/bin/sh
[ "$1" = invoke ] && exec {place}/work echo '{{"status": "ok", "result": "done"}}'
echo '{{"name": "work", "description": "works", "input_schema": {{"type": "object"}}, "idempotent": {again}}}'
"""
_SCRIPT = [
    {"match": ".", "calls": [{"name": "work", "input": {}}, {"name": "work-again", "input": {}}]},
    {"match": ".", "text": "done"},
]
_EXECED = '#!/bin/sh\nexec {python} -P {root}/runners/agent "$1"\n'


@dataclass(frozen=True, slots=True)
class Seen:
    """One living process of the home. `kind` is what it is to the killer."""

    pid: int
    start: int
    ppid: int
    kind: str


class Storm(World):
    """`kills` of them, `rate` a second, while messages come; then it comes to rest."""

    def __init__(self, place: Path, seed: int, kills: int, rate: float) -> None:
        self.tag = f"stray-{os.getpid()}-{seed}"
        super().__init__(place, seed, 100_000_000, senders=2, rate=rate, waiting=4, least_kills=kills, restart=ALWAYS)
        self.commands = max(1, kills // 50)
        self.sent_to, self.counting = ("chat", "asks", "uses", "execed", SHELL), "chat"
        self.longest_s = 0.0  # for which a process was nobody's
        self._nobodys: dict[tuple[int, int], float] = {}
        self._look_at = 0.0
        self._log = place / "signals"
        words = [sys.executable, str(HERE / "soak_bystanders.py"), self._log.name]  # which bears no mark of ours
        self.bystanders = subprocess.Popen(
            words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={"PATH": os.environ["PATH"]}, cwd=place
        )

    def _make_agents(self) -> None:
        self._write("work", _WORK.format(tag=self.tag))
        self._write("model", _MODEL.format(place=self.place))
        self._write("execed", _EXECED.format(python=sys.executable, root=ROOT))
        (self.home.path / "tools").mkdir(exist_ok=True)
        for name, again in (("work", "false"), ("work-again", "true")):
            text = _TOOL.format(place=self.place, again=again).replace('"name": "work"', f'"name": "{name}"')
            self._write(f"home/tools/{name}", text)
        (self.place / "script").write_text("".join(json.dumps(line) + "\n" for line in _SCRIPT))
        more = {"restart": self.restart}
        for spec in (
            AgentSpec("chat", "builtin/echo", **more),  # type: ignore[arg-type]
            AgentSpec("uses", f"script/{self.place}/script", tools=("work", "work-again"), **more),  # type: ignore[arg-type]
            AgentSpec("execed", "builtin/echo", runner=f"{self.place}/execed", **more),  # type: ignore[arg-type]
            AgentSpec(SHELL, "builtin/echo", runner="sh-agent", **more),  # type: ignore[arg-type]
        ):
            agents.create(self.home, spec, "", "up")
        weave = self.place / "loom.yml"
        weave.write_text(_WEAVE.format(place=self.place, restart=_RESTART))
        subprocess.run(
            [sys.executable, "-P", "-m", "loom", "up", "-d", "-f", str(weave)], env=self.env, check=True, timeout=60,
            stdout=subprocess.DEVNULL,
        )  # fmt: skip

    def _write(self, name: str, text: str) -> None:
        (self.place / name).write_text(text)
        (self.place / name).chmod(0o755)

    def boxes(self) -> list[AgentDir]:
        return [self.home.agent(name) for name in (*LOOMS_OWN, SHELL)]

    # -- killing -------------------------------------------------------------------------------------------------

    def run(self, deadline_s: float) -> None:
        """Raises AssertionError when it does not come to rest, or when a process stays that is nobody's."""
        began = next_kill = time.monotonic()
        try:
            while self.counts.kills.total() < self.least_kills:
                self._keep_going()
                if time.monotonic() >= next_kill:
                    if self.random.random() < RELOADS:
                        self._reload()
                    self._kill_one()
                    next_kill = max(time.monotonic(), next_kill + self.random.expovariate(self.rate))
                self._look_for_nobodys()
                assert time.monotonic() - began < deadline_s, f"not all killed: {self.state()}"
                select.select([], [], [], 0.01)
            last = time.monotonic()
            self.counts.seconds = last - began
            self._end_load()
            while not self._at_rest() or time.monotonic() < last + GONE_S:
                self._keep_supervisor()
                self._look_for_nobodys()
                assert time.monotonic() - began < deadline_s, f"not at rest: {self.state()}"
                select.select([], [], [], 0.05)
            self.counts.drain_s = time.monotonic() - last
            assert self._nobodys_now() == set(), "somebody's death left processes"
        finally:
            self._stop()
        self._all_gone()

    def _kill_one(self) -> None:
        """One of a kind, of which any kind that there is has the same chance: most processes are agents."""
        found = self._processes()
        kinds = sorted({one.kind for one in found})
        if not kinds:
            return
        kind = self.random.choice(kinds)
        victim = self.random.choice([one for one in found if one.kind == kind])
        fd = pidfd.open_pidfd(victim.pid, victim.start)
        if fd is None:
            return
        killed = pidfd.send(fd, signal.SIGKILL)
        os.close(fd)
        if killed:
            self.counts.kills[kind] += 1
            assert self.bystanders.stdin is not None
            self.bystanders.stdin.write(f"{victim.pid}\n".encode())
            self.bystanders.stdin.flush()

    def _reload(self) -> None:
        handle = ensure.signal_supervisor(self.home, signal.SIGHUP)
        if handle is not None:
            os.close(handle)

    def reloads(self) -> int:
        """How often a supervisor has begun to be other code."""
        return (self.place / "supervisor.log").read_bytes().count(b'"event":"reloading"')

    def _end_load(self) -> None:
        for child in [*self.senders.values(), self.command]:
            if child is not None and child.poll() is None:
                child.kill()
                child.wait()

    # -- looking -------------------------------------------------------------------------------------------------

    def _processes(self) -> list[Seen]:
        """Who bears the home in its environment, a name of ours, or descends from one that does."""
        table = {pid: one for pid, one in tree.snapshot().items() if one.state not in "ZX"}
        marks = (f"LOOM_HOME={self.home.path}\0".encode(), str(self.place).encode(), self.tag.encode())
        ours = {pid for pid in table if pid != self.bystanders.pid and _bears(pid, marks)}
        grown = True
        while grown:
            more = {pid for pid, one in table.items() if one.ppid in ours} - ours
            ours |= more
            grown = bool(more)
        ours.discard(self.bystanders.pid)
        runners = self._runners()
        return [Seen(pid, table[pid].start, table[pid].ppid, self._kind_of(pid, runners)) for pid in sorted(ours)]

    def _runners(self) -> dict[int, str]:
        boxes = [*self.boxes(), self.home.agent("router")]
        return {who.pid: box.name for box in boxes if (who := locks.holder(box.lock)) is not None}

    def _kind_of(self, pid: int, runners: dict[int, str]) -> str:
        name, words = _read(pid, "comm").decode(errors="replace").strip(), _read(pid, "cmdline")
        if pid in runners:
            return {"router": "router", PIPE: "pipe", "execed": "exec'ed runner", SHELL: "exec'ed runner"}.get(
                runners[pid], "forked runner"
            )
        if words.startswith(self.tag.encode()):
            return "stray"
        if f"{self.place}/".encode() in words and b"soak_sender" not in words:
            return "program"
        if b"soak_sender" in words or b"loom\0send" in words:
            return "client"
        if b"loom\0supervisor" in words:
            # A fork of its keeps its command line: a runner before its lock, or the init of a tool, which has a name.
            return {"loom-supervisor": "supervisor", "python": "supervisor"}.get(name, "init")
        return "helper"

    def _nobodys_now(self) -> set[tuple[int, int]]:
        """Processes of the home with no living owner."""
        found = {one.pid: one for one in self._processes()}
        owners = set(self._runners())
        clients = [child for child in [*self.senders.values(), self.command, self.supervisor] if child is not None]
        owners |= {child.pid for child in clients}
        if (who := locks.holder(self.home.supervisor_lock)) is not None:
            owners.add(who.pid)
        supervisors = {who.pid} if who is not None else set()
        nobodys = set()
        for one in found.values():
            at = one
            # A child of the supervisor is its own man: a runner with a lock, or an orphan that came to it.
            while at.pid not in owners and at.ppid in found and at.ppid not in supervisors:
                at = found[at.ppid]
            if at.pid not in owners:
                nobodys.add((one.pid, one.start))
        return nobodys

    def _look_for_nobodys(self) -> None:
        now = time.monotonic()
        if now < self._look_at:
            return
        self._look_at = now + LOOK_EVERY_S
        nobodys = self._nobodys_now()
        self._nobodys = {key: self._nobodys.get(key, now) for key in nobodys}
        for (pid, _), since in self._nobodys.items():
            self.longest_s = max(self.longest_s, now - since)
            if now - since > GONE_S:
                raise AssertionError(f"nobody's for {now - since:.1f} s: {_told(pid)}")

    def _all_gone(self) -> None:
        deadline = time.monotonic() + GONE_S
        while found := self._processes():
            assert time.monotonic() < deadline, f"left: {[_told(one.pid) for one in found]}"
            select.select([], [], [], 0.05)

    def signalled(self) -> dict[str, int]:
        """Ends the bystanders; how many there were, and how many wore the number of a dead. None may know a signal."""
        said, _ = self.bystanders.communicate(timeout=30)
        report = json.loads(said)
        assert report["ended"] == [], f"bystanders were ended: {report['ended']}"
        assert self._log.read_text() == "", "bystanders were signalled"
        return {"bystanders": report["born"], "with_the_number_of_a_dead": report["wearing"]}

    def clean_up(self) -> None:
        """After a failure: nothing stays."""
        self._end_load()
        ensure.stop_supervisor(self.home)
        tree.kill_found(lambda: [p for one in self._processes() if (p := tree.look_at(one.pid)) is not None])
        self.bystanders.kill()
        self.bystanders.communicate()


def _bears(pid: int, marks: Iterable[bytes]) -> bool:
    text = _read(pid, "environ") + _read(pid, "cmdline")
    return any(mark in text for mark in marks)


def _read(pid: int, name: str) -> bytes:
    try:
        return Path(f"/proc/{pid}/{name}").read_bytes()
    except OSError:
        return b""


def _told(pid: int) -> str:
    words = _read(pid, "cmdline").replace(b"\0", b" ").decode(errors="replace")
    return f"{pid} ({_read(pid, 'comm').decode(errors='replace').strip()}) {tree.look_at(pid)} {words}"


class StormOracle(Oracle):
    """Tools, a pipe and a runner that is not loom's besides: each message answered once, or failed once."""

    def _replies(self, box: AgentDir, ended: Mapping[str, Path]) -> dict[str, bytes]:
        """A failure does not stay in the reply of a pipe: it leaves by itself, and the reply is empty."""
        if box.name != PIPE:
            return super()._replies(box, ended)
        sent = {path.stem: path for path in (box.outbox / ".sent").glob("*/*.msg")}
        self.seen |= set(sent.values())
        going: dict[str, bytes] = {}
        empty = set()
        for stem, path in ended.items():
            name, turn = ids.reply_stem(box.name, stem, 0), self._turn(box, stem)
            reply = message.decode(sent[name].read_bytes(), name)
            if path.parent == box.failed:
                self._failed(box, stem, reply, turn)
            elif reply.parts == ():
                empty.add(name)
                name = ids.reply_stem(box.name, stem, 0, 1)
            going[name] = sent[name].read_bytes()
        assert going.keys() | empty == sent.keys(), f"{box.name} sent what nobody asked for"
        return going

    def _as_recorded(self, box: AgentDir, stem: str, reply: message.Message, turn: Turn) -> None:
        count = REPLIES.get(box.name, 1)
        if box.name == SHELL or count == 0:
            return
        assert len(turn.replies) == count and turn.replies[-1] == reply.body, f"{box.name}: {stem}: {turn}"

    def _turn(self, box: AgentDir, stem: str) -> Turn:
        return Turn((), 0, 0) if box.name == SHELL else super()._turn(box, stem)

    def _conversations(self, box: AgentDir, ended: object) -> None:
        if box.name not in (SHELL, PIPE):
            super()._conversations(box, ended)  # type: ignore[arg-type]

    def _is_litter(self, path: Path) -> bool:
        return super()._is_litter(path) or (path.name.isdigit() and SHELL in path.parts)

    def _is_known(self, path: Path) -> bool:
        if is_known(self.home, path):
            return True
        place = str(path.relative_to(self.home.path))
        return place.startswith(("pipes/", "tools/", f"agents/{SHELL}/")) or place in ("weave.lock", "run/start")


def kinds(counts: Counter[str]) -> str:
    return " + ".join(f"{count} {kind}" for kind, count in sorted(counts.items()))
