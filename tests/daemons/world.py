"""A home with a real supervisor and real runners; afterwards no process of that home may be left."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from support import ROOT, processes_of, wait_until

from loom.cli import ensure
from loom.daemons.supervisor import Settings
from loom.proc import pidfd
from loom.spool import agents, crashes, locks, mailbox
from loom.spool.home import open_home
from loom.spool.layout import AgentDir, Home
from loom.wire import ids, message
from loom.wire.agent import AgentSpec, Restart, Want

HERE = Path(__file__).parent
AT_ONCE = Restart(base_s=0)
TABLE = {f"forked-{kind}": f"daemon_runners:serve_{kind}" for kind in ("quiet", "report", "bug")}
TABLE["router"] = "daemon_runners:serve_quiet"

# The runner of most tests does what the file `script` in its agent's directory says.
RUNNER = '#!/bin/sh\n. "$1/script"\n'
READY = "printf '\\n' >&$LOOM_READY_FD\n"
LAUNCH = """
import json, os, sys
from pathlib import Path
from loom.core.supervision import Limits
from loom.daemons.supervisor import Settings, Supervisor
from loom.spool.home import open_home
from loom.wire.errors import LoomError
given = json.loads(sys.argv[1])
if given["blind"]:
    from loom.spool import watch
    def refuse(self):
        raise OSError(24, "no inotify instances left")
    watch.Watch.__init__ = refuse
settings = Settings(Limits(given["grace_s"], given["ready_s"]), given["idle_s"], given["sweep_s"])
home = open_home(Path(os.environ["LOOM_HOME"]))
try:
    sys.exit(Supervisor(home, on_demand=given["on_demand"], settings=settings, table=given["table"]).run())
except LoomError as error:
    print(error.line(), file=sys.stderr)
    sys.exit(error.exit_status)
"""


@dataclass
class World:
    """One home and what runs in it."""

    home: Home
    runner: Path
    supervisors: list[subprocess.Popen[bytes]] = field(default_factory=list)
    env: dict[str, str] = field(default_factory=dict)

    def start(self, *, wait: bool = True, settings: Settings | None = None, **given: Any) -> subprocess.Popen[bytes]:
        """A supervisor as a child of ours; with `wait` it is ready when this returns."""
        values: dict[str, Any] = {"grace_s": 5.0, "ready_s": 30.0, "idle_s": 30.0, "sweep_s": 30.0}
        values |= {"on_demand": False, "blind": False, "table": TABLE, **given}
        read, write = os.pipe()
        env = {"PATH": os.environ["PATH"], "PYTHONPATH": f"{ROOT}:{HERE}", "LOOM_HOME": str(self.home.path)}
        child = subprocess.Popen(
            [sys.executable, "-c", LAUNCH, json.dumps(values)],
            env={**env, "LOOM_READY_FD": str(write), **self.env},
            pass_fds=(write,),
            stderr=subprocess.PIPE if not wait else None,
        )
        os.close(write)
        self.supervisors.append(child)
        if wait:
            assert os.read(read, 1) == b"\n", "the supervisor ended before it was ready"
        os.close(read)
        return child

    def stop(self, child: subprocess.Popen[bytes] | None = None) -> int:
        child = child or self.supervisors[-1]
        child.send_signal(signal.SIGTERM)
        return child.wait(30)

    def agent(
        self, name: str, script: str = "", want: Want = "up", restart: Restart = AT_ONCE, runner: str = "", **more: Any
    ) -> AgentDir:
        agent = self.home.agent(name)
        agent.path.mkdir(mode=0o700, exist_ok=True)
        (agent.path / "script").write_text(script)
        spec = AgentSpec(name=name, model="builtin", runner=runner or str(self.runner), restart=restart, **more)
        return agents.create(self.home, spec, "", want)

    def send(self, agent: AgentDir, body: str = "hello") -> str:
        stem = ids.message_stem(time.time_ns() // 1_000_000, os.urandom(10))
        text = message.Message(id=ids.ulid_of(stem), from_="user", ts_ms=1, body=body)
        mailbox.deliver(agent, stem, message.encode(text))
        return stem


def starts(agent: AgentDir) -> list[str]:
    """The lines that a script added to `starts`: mostly one pid for each start."""
    with contextlib.suppress(FileNotFoundError):
        return (agent.path / "starts").read_text().split()
    return []


def status(agent: AgentDir, *words: str) -> str:
    """Waits until `status` holds one of these words."""
    return str(wait_until(lambda: (word := agents.read_hint(agent.status)) in words and word))


def pid_of(agent: AgentDir) -> int:
    """Waits until a runner holds the lock; its pid."""
    who = wait_until(lambda: locks.holder(agent.lock))
    assert isinstance(who, locks.Incarnation)
    return who.pid


def records(agent: AgentDir) -> list[dict[str, Any]]:
    """The crash records of an agent. One that is dropped as too old between listing and reading is none any more."""
    found = []
    for name in crashes.names(agent):
        with contextlib.suppress(FileNotFoundError):
            found.append(json.loads((agent.crashes / name).read_bytes()))
    return found


def called(name: str) -> list[int]:
    """Who goes by this name: its argv[0]."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if words[0] == name.encode():
            found.append(int(pid))
    return found


def is_alive(pid: int) -> bool:
    fields = pidfd.stat_of(pid)
    return bool(fields) and fields[0] not in (b"Z", b"X")


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with made(tmp_path) as found:
        yield found


@contextlib.contextmanager
def made(tmp_path: Path) -> Iterator[World]:
    """A world below `tmp_path`, also for tests that share one."""
    runner = tmp_path / "runner"
    runner.write_text(RUNNER)
    runner.chmod(0o755)
    world = World(open_home(tmp_path / "home"), runner)
    yield world
    for child in world.supervisors:
        if child.poll() is None:
            child.send_signal(signal.SIGTERM)
            child.wait(30)
        if child.stderr is not None:
            child.stderr.close()
    ensure.stop_supervisor(world.home)
    with contextlib.suppress(AssertionError):  # what has just been told to end
        wait_until(lambda: not processes_of(world.home.path), 3)
    left = processes_of(world.home.path)
    for pid in left:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    assert left == {}, "processes are left"
