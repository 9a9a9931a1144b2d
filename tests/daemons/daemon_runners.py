"""Runners that a supervisor under test forks: they follow the protocol and do nothing else."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

from loom.spool import locks

USR1_STATUS = 33


def serve_quiet(agent_dir: Path, drain: bool = False) -> int:
    """Holds its lock until SIGTERM (0) or SIGUSR1 (33)."""
    return _wait(agent_dir)


def serve_report(agent_dir: Path, drain: bool = False) -> int:
    """The same, after writing down what it was born with."""
    lines = [f"{name}={value}" for name, value in sorted(os.environ.items())]
    lines += [f"fd {fd} {os.readlink(f'/proc/self/fd/{fd}')}" for fd in _descriptors()]
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


def _descriptors() -> list[int]:
    listing = os.open("/proc/self/fd", os.O_RDONLY)
    try:
        return sorted(int(name) for name in os.listdir(listing) if int(name) != listing)
    finally:
        os.close(listing)


def _wait(agent_dir: Path) -> int:
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM, signal.SIGUSR1])
    lock = locks.acquire(agent_dir / "lock")
    if lock is None:
        return 75
    with lock:
        lock.sign(locks.own_incarnation())
        os.write(int(os.environ["LOOM_READY_FD"]), b"\n")
        number = signal.sigwait([signal.SIGTERM, signal.SIGUSR1])
    return USR1_STATUS if number == signal.SIGUSR1 else 0
