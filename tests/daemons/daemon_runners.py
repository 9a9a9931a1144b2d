"""Runners that a supervisor under test forks: they follow the protocol and do nothing else."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

from loom.daemons import service
from loom.daemons.service import Agent, Done
from loom.spool import heartbeat, locks, wake
from loom.spool.mailbox import Claimed
from loom.spool.turns import Turn

USR1_STATUS = 33


def serve_quiet(agent_dir: Path, drain: bool = False) -> int:
    """Holds its lock until SIGTERM (0) or SIGUSR1 (33)."""
    return _wait(agent_dir)


def serve_report(agent_dir: Path, drain: bool = False) -> int:
    """The same, after writing down what it was born with."""
    lines = [f"{name}={value}" for name, value in sorted(os.environ.items())]
    lines += _descriptors()
    handlers = {n: signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD)}
    lines += [f"signals {all(h == signal.SIG_DFL for h in handlers.values())}"]
    lines += [f"blocked {len(signal.pthread_sigmask(signal.SIG_BLOCK, []))}", f"cwd {Path.cwd()}"]
    lines += [f"leader {os.getsid(0) == os.getpid()}", f"umask {os.umask(0o077):o}"]
    (agent_dir / "report").write_text("\n".join(lines) + "\n")
    print("on stdout")
    print("on stderr", file=sys.stderr)
    return _wait(agent_dir)


def serve_bug(agent_dir: Path, drain: bool = False) -> int:
    raise ValueError("this runner is broken")


def _descriptors() -> list[str]:
    """`fd NUMBER TARGET` of each open descriptor; that of the listing itself is gone by then."""
    found = []
    for number in sorted(int(name) for name in os.listdir("/proc/self/fd")):
        with contextlib.suppress(FileNotFoundError):
            found.append(f"fd {number} {os.readlink(f'/proc/self/fd/{number}')}")
    return found


def _wait(agent_dir: Path) -> int:
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM, signal.SIGUSR1])
    lock = locks.acquire(agent_dir / "lock")
    if lock is None:
        return 75
    with lock:
        lock.sign(locks.own_incarnation())
        _say_ready()
        number = signal.sigwait([signal.SIGTERM, signal.SIGUSR1])
    return USR1_STATUS if number == signal.SIGUSR1 else 0


def _say_ready() -> None:
    """As the runners of the project do: a supervisor that was killed after it saw the lock hears it no more."""
    with contextlib.suppress(BrokenPipeError):
        os.write(int(os.environ["LOOM_READY_FD"]), b"\n")


def serve_parent(agent_dir: Path, drain: bool = False) -> int:
    """The same with two children as tools have them: one in its session, one in a session of its own."""
    children = [subprocess.Popen(["sleep", "1000"], start_new_session=own) for own in (False, True)]
    (agent_dir / "starts").write_text("".join(f"{child.pid}\n" for child in children))
    return _wait(agent_dir)


def serve_hanging(agent_dir: Path, drain: bool = False) -> int:
    """A runner of the project whose work hangs as the message says, and is done when it says something else."""
    return service.serve(agent_dir, _Hanging, drain)


class _Hanging:
    """`spin`, `deadlock` and `die` are ways to hang; `slow` takes its time and shows it."""

    def __init__(self, agent: Agent) -> None:
        self.agent = agent

    def work(self, claimed: Claimed, turn: Turn) -> Done:
        body = claimed.message.body
        if body == "spin":
            while True:
                pass
        elif body == "deadlock":
            lock = threading.Lock()
            with lock:
                lock.acquire()
        elif body == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        elif body == "slow":
            with self.agent.stopping.interruptible():
                for _ in range(4):
                    self.agent.heartbeat.beat()
                    self.agent.stopping.wait(heartbeat.EVERY_S)
        return Done("done")


def serve_listener(agent_dir: Path, drain: bool = False) -> int:
    """Notes each time its doorbell rings."""
    bell = wake.listen(agent_dir.parent.parent / "run" / "wake" / agent_dir.name)
    pid = os.fork()
    if pid == 0:
        os.set_blocking(bell, True)
        while os.read(bell, 64):
            with (agent_dir / "starts").open("a") as file:
                file.write("rung\n")
    return _wait(agent_dir)


def serve_deaf(agent_dir: Path, drain: bool = False) -> int:
    """Does not leave when it is told to."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    lock = locks.acquire(agent_dir / "lock")
    assert lock is not None
    with lock:
        lock.sign(locks.own_incarnation())
        _say_ready()
        signal.sigwait([signal.SIGUSR1])
    return USR1_STATUS
