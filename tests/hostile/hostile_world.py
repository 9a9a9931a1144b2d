"""A home with the real supervisor and real runners in it, as the command line starts them; small enough for any ground.

Everything here works inside a namespace too (on_ground), where the home lies on a file system of its own.
"""

from __future__ import annotations

import contextlib
import json
import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from support import ROOT, processes_of, wait_until

from loom.proc import pidfd
from loom.spool import agents, locks, mailbox
from loom.spool.home import open_home
from loom.spool.layout import AgentDir, Box, Home
from loom.wire import ids, message
from loom.wire.agent import AgentSpec, Restart
from loom.wire.jsontext import loads_object

LONG_S = 20.0


@dataclass(frozen=True, slots=True)
class Ended:
    """How a command ended."""

    status: int
    out: str
    err: str


@dataclass
class HostileWorld:
    """One home below `root`, and the commands and processes that work on it."""

    root: Path
    supervisors: list[subprocess.Popen[bytes]] = field(default_factory=list)
    cleanups: list[Callable[[], None]] = field(default_factory=list)
    log: Path = field(init=False)
    supervisor_argv: list[str] = field(
        default_factory=lambda: [sys.executable, "-P", "-m", "loom", "supervisor", "run"]
    )
    undo: Callable[[], None] = field(default=lambda: None)

    def __post_init__(self) -> None:
        self.path = self.root / "home"
        self.env = {
            "PATH": os.environ["PATH"],
            "HOME": str(self.root),
            "LOOM_HOME": str(self.path),
            "PYTHONPATH": str(ROOT),
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        # Beside the ground, so that what it says is heard whatever becomes of that.
        self.log = self.root.with_name(f"{self.root.name}.log")
        self.home: Home = open_home(self.path)

    # -- processes and commands ------------------------------------------------------------------------------------

    def supervise(self, **given: Any) -> subprocess.Popen[bytes]:
        """A supervisor as `loom supervisor run` is one, ready when this returns; its stderr is `log`."""
        read, write = os.pipe()
        with self.log.open("ab") as log:
            child = subprocess.Popen(
                self.supervisor_argv,
                env={**self.env, "LOOM_READY_FD": str(write)},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=(write,),
                **given,
            )
        os.close(write)
        self.supervisors.append(child)
        assert select.select([read], [], [], LONG_S)[0] and os.read(read, 1) == b"\n", "the supervisor is not ready"
        os.close(read)
        return child

    def loom(self, *args: str | Path, terminal: bool = False, **given: Any) -> Ended:
        """A `loom` command from beginning to end; with `terminal` its output goes to one."""
        argv = [sys.executable, "-P", "-m", "loom", *map(str, args)]
        if terminal:
            return self._on_terminal(argv)
        given = {"input": b""} | given
        done = subprocess.run(argv, env=self.env, capture_output=True, timeout=LONG_S, cwd="/", **given)
        return Ended(done.returncode, done.stdout.decode(), done.stderr.decode())

    def begin(self, *args: str | Path) -> subprocess.Popen[bytes]:
        """The same, under way."""
        return subprocess.Popen(
            [sys.executable, "-P", "-m", "loom", *map(str, args)],
            env=self.env,
            cwd="/",
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def _on_terminal(self, argv: list[str]) -> Ended:
        master, slave = pty.openpty()
        child = subprocess.Popen(argv, env=self.env, stdin=subprocess.DEVNULL, stdout=slave, stderr=slave, cwd="/")
        os.close(slave)
        said = b""
        with contextlib.suppress(OSError):  # EIO: the other end was closed
            while chunk := os.read(master, 1 << 16):
                said += chunk
        os.close(master)
        return Ended(child.wait(LONG_S), said.decode(), "")

    def pids(self) -> list[int]:
        """The supervisor and all runners."""
        holders = [locks.holder(agent.lock) for agent in agents.each(self.home)]
        return [child.pid for child in self.supervisors if child.poll() is None] + [h.pid for h in holders if h]

    def cpu_s(self) -> float:
        """Processor time of the supervisors and of all runners that they had."""
        return sum(cpu_s(child.pid) for child in self.supervisors)

    def close(self) -> None:
        """End everything; no process of this home may be left."""
        for cleanup in self.cleanups:
            cleanup()
        for child in self.supervisors:
            if child.poll() is None:
                child.send_signal(signal.SIGTERM)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    child.wait(30)
        with contextlib.suppress(AssertionError):
            wait_until(lambda: not processes_of(self.path), 5)
        self.log.unlink(missing_ok=True)
        left = processes_of(self.path)
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        assert left == {}, "processes are left"

    # -- agents and mail -------------------------------------------------------------------------------------------

    def agent(self, name: str, model: str = "builtin/echo", want: Any = "up", **given: Any) -> AgentDir:
        spec = AgentSpec(name=name, model=model, restart=Restart(**given))
        return agents.create(self.home, spec, "", want)

    def send(self, agent: AgentDir, body: str = "hello", **fields: Any) -> str:
        stem = ids.message_stem(time.time_ns() // 1_000_000, os.urandom(10))
        text = message.Message(id=ids.ulid_of(stem), from_="user", ts_ms=1, body=body, **fields)
        mailbox.deliver(agent, stem, message.encode(text))
        return stem


def pid_of(agent: AgentDir, deadline_s: float = LONG_S) -> int:
    """Waits until a runner holds the lock; its pid."""
    who = wait_until(lambda: locks.holder(agent.lock), deadline_s)
    assert isinstance(who, locks.Incarnation)
    return who.pid


def answer_of(agent: AgentDir, stem: str) -> message.Message | None:
    return mailbox.find_reply(agent, agent.name, stem, 0)


def answered(agent: AgentDir, stems: list[str], deadline_s: float = LONG_S) -> None:
    """Waits until all of these are answered and acknowledged."""
    wait_until(lambda: all(agent.processed(s).exists() and answer_of(agent, s) for s in stems), deadline_s)


def check_answered_once(agent: AgentDir, stems: list[str]) -> None:
    """Each has exactly one answer and no failure; nothing else was answered; the conversation has each once."""
    # The router is done when nothing waits for it; a reply that moves meanwhile would be seen twice, or not at all.
    wait_until(lambda: mailbox.outgoing(agent) == [])
    replies = [path.name for path in (*agent.outbox.glob("*.msg"), *agent.outbox.glob(".sent/*/*.msg"))]
    assert sorted(replies) == sorted(f"{ids.reply_stem(agent.name, s)}.msg" for s in stems)
    done = [path.name for path in agent.inbox.glob(".processed/*/*.msg")]
    assert sorted(done) == sorted(f"{s}.msg" for s in stems)
    lines = [loads_object(line) for line in agent.conversation("main").read_bytes().splitlines()]
    assert sorted((r["name"], r["role"]) for r in lines) == sorted((s, r) for s in stems for r in ("assistant", "user"))
    assert list(agent.failed.glob("*.msg")) == []
    assert mailbox.in_progress(agent) == []


def notes(directory: Path, *, at_work: bool = False) -> dict[str, dict[str, Any]]:
    """What stands in the FILE.error.json of a directory, by the first name of the entry, which lies beside it.

    at_work  somebody is still putting entries there: the reason comes first, and is left out until its entry follows
    """
    found: dict[str, dict[str, Any]] = {}
    for path in directory.glob("*.error.json"):
        if at_work and not os.path.lexists(path.with_name(path.name.removesuffix(".error.json"))):
            continue
        note = json.loads(path.read_bytes())
        assert set(note) == {"reason", "detail", "name"}
        assert all(isinstance(t, str) and t.isascii() and t.isprintable() and t for t in note.values()), note
        assert os.path.lexists(path.with_name(path.name.removesuffix(".error.json"))), f"no entry beside {path}"
        assert note["name"] not in found, f"{note['name']} is noted twice"
        found[note["name"]] = note
    return found


def log_records(agent: Box, event: str = "") -> list[dict[str, Any]]:
    """The agent's log, or what it says of one event."""
    lines: list[bytes] = []
    for path in sorted((agent.path / "logs").glob("*.ndjson")):
        lines += path.read_bytes().splitlines()
    records = [loads_object(line) for line in lines]
    return [r for r in records if not event or r["event"] == event]


def cpu_s(pid: int) -> float:
    """Processor time this process and its ended children have used."""
    fields = pidfd.stat_of(pid)
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")


def exits_of(log: Path) -> list[str]:
    """How runners ended, by what the supervisor says."""
    records = [loads_object(line) for line in log.read_bytes().splitlines() if line.startswith(b"{")]
    return [r["exit"] for r in records if r["event"] == "exited" and r["kind"] != "stopped"]


def staged(place: Path, agent: AgentDir, count: int, body_bytes: int) -> tuple[Callable[[], None], list[str]]:
    """Messages that arrive, by mv and from beside, when the function is called; and their names.

    The directories are open from the start: on ground that may not be written to any more, things still arrive.
    """
    place.mkdir()
    stems = [ids.message_stem(1_790_000_000_000 + n, n.to_bytes(10, "big")) for n in range(count)]
    for n, stem in enumerate(stems):
        text = message.Message(ids.ulid_of(stem), "user", 1, f"{n} ".ljust(body_bytes, "x"))
        (place / f"{stem}.msg").write_bytes(message.encode(text))
    source, target = (os.open(d, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC) for d in (place, agent.inbox))

    def arrive() -> None:
        for stem in stems:
            os.rename(f"{stem}.msg", f"{stem}.msg", src_dir_fd=source, dst_dir_fd=target)
        os.close(source)
        os.close(target)

    return arrive, stems


def check_no_traceback(world: HostileWorld) -> None:
    """Nobody wrote one: neither runners nor the supervisor, in no log."""
    for path in (world.log, *world.path.glob("agents/*/logs/*"), *world.path.glob("logs/*")):
        data = path.read_bytes() if path.exists() else b""
        assert b"Traceback" not in data, f"{path}: {data[-3000:].decode('utf-8', 'replace')}"
