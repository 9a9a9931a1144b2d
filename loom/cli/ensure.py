"""Making sure that a supervisor runs, and ending one (docs/protocol.md section 7, *On demand*).

Whether one runs is decided by the flock on run/supervisor.lock; that two callers do not start two, and that none is
found which is just leaving, by start.lock, which a supervisor holds while it leaves.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import Mapping
from pathlib import Path

from loom.proc import pidfd, tree
from loom.proc.spawn import base_environment, mark_of
from loom.spool import agents, fs, locks, running, wake
from loom.spool.layout import AgentDir, Home
from loom.wire.errors import Config, NotFound, TryLater
from loom.wire.record import replace

READY_S = 15.0
_POLL_S = 0.02
# What a supervisor may know of the environment it was started in: no keys.
_KEPT = ("LOOM_SUPERVISOR_IDLE_S", "LOOM_ALLOW_FILESYSTEM", "PYTHONPATH")
_COMMAND = ("-P", "-m", "loom", "supervisor", "run", "--on-demand")  # -P: nothing is imported from the home


def supervisor_environment(home: Path, env: Mapping[str, str]) -> dict[str, str]:
    """The whole environment of a supervisor of `home`; from it runners get theirs."""
    kept = {name: env[name] for name in _KEPT if env.get(name)}
    return {**base_environment(env), **kept, "LOOM_HOME": str(home)}


def ensure_supervisor(home: Home) -> None:
    """A supervisor serves `home` when this returns, and has been rung. `home` has been opened by open_home.

    Raises TryLater when none becomes ready in time, Config where it refuses to run.
    """
    pidfd.check_supported()
    deadline = time.monotonic() + READY_S
    with _take(home.start_lock, deadline):
        if locks.is_held(home.supervisor_lock):
            wake.ring(home.wake_fifo("supervisor"))
        else:
            _start(home, deadline)


def _take(path: Path, deadline: float) -> locks.Lock:
    while (lock := locks.acquire(path)) is None:
        if time.monotonic() > deadline:
            raise TryLater(f"{path} has been held for {READY_S:g} s by another process", hint="try again")
        time.sleep(_POLL_S)
    return lock


def _start(home: Home, deadline: float) -> None:
    log = fs.open_append(home.supervisor_log)
    begin = os.fstat(log).st_size
    ready_read, ready_write = os.pipe()
    try:
        child = subprocess.Popen(
            [sys.executable, *_COMMAND],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd=home.path,
            env=_with_package({**supervisor_environment(home.path, os.environ), "LOOM_READY_FD": str(ready_write)}),
            pass_fds=(ready_write,),
            start_new_session=True,
        )
        os.close(ready_write)
        ready_write = -1
        if _is_ready(ready_read, deadline):
            child.returncode = 0  # it outlives us: nobody is going to wait for it
            return
        status = _status_of(child, deadline)
        if status == TryLater.exit_status and locks.is_held(home.supervisor_lock):
            wake.ring(home.wake_fifo("supervisor"))  # somebody ran one by hand at the same moment
            return
        raise _failure(home, begin, status)
    finally:
        os.close(log)
        os.close(ready_read)
        if ready_write >= 0:
            os.close(ready_write)


def _with_package(env: dict[str, str]) -> dict[str, str]:
    """The interpreter must find this very package, also when it was found through the current directory."""
    place = str(Path(__file__).resolve().parent.parent.parent)
    if place in (sysconfig.get_path("purelib"), sysconfig.get_path("platlib")):
        return env
    others = [path for path in env.get("PYTHONPATH", "").split(os.pathsep) if path and path != place]
    return {**env, "PYTHONPATH": os.pathsep.join([place, *others])}


def _is_ready(fd: int, deadline: float) -> bool:
    """A newline came. False: an end of file (it died before it was ready), or the time is up."""
    poller = select.poll()
    poller.register(fd, select.POLLIN)
    while (left_s := deadline - time.monotonic()) > 0:
        if poller.poll(left_s * 1000):
            data = os.read(fd, 64)
            if b"\n" in data or not data:
                return bool(data)
    return False


def _status_of(child: subprocess.Popen[bytes], deadline: float) -> int | None:
    """Its exit status; None when it is still at it."""
    try:
        return child.wait(max(0.0, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        return None


def _failure(home: Home, begin: int, status: int | None) -> TryLater | Config:
    lines = [line for line in _since(home.supervisor_log, begin).splitlines() if line.strip()]
    said = f": {lines[-1][:500]}" if lines else ""
    hint = f"see {home.supervisor_log}"
    if status is None:
        return TryLater(f"the supervisor was started but did not become ready in time{said}", hint=hint)
    if status == Config.exit_status:
        return Config(f"the supervisor refused to run{said}", hint=hint)
    return TryLater(f"the supervisor ended with status {status} before it was ready{said}", hint=hint)


def _since(log: Path, begin: int) -> str:
    try:
        return fs.read(log)[begin:].decode("utf-8", "replace")
    except OSError:
        return ""


def supervisor_of(home: Home) -> locks.Incarnation | None:
    """The process that serves `home`, or None."""
    return locks.holder(home.supervisor_lock)


def signal_supervisor(home: Home, number: int) -> int | None:
    """Send a signal to the supervisor of `home`: a pidfd to watch it by and to close, None when there is none."""
    who = supervisor_of(home)
    handle = pidfd.open_pidfd(who.pid, who.start) if who is not None else None
    if handle is None:
        return None
    if not pidfd.send(handle, number):
        os.close(handle)
        return None
    return handle


def reload_supervisor(home: Home, timeout_s: float) -> tuple[running.Running, running.Running]:
    """Have the supervisor run the installed code: what it said of itself before, and what it says now.

    Raises NotFound when there is none, TryLater when it does not say what came of it.
    """
    before = running.read(home)
    answered = before.answered if before is not None else 0  # what it says first, without one, is that it has started
    handle = signal_supervisor(home, signal.SIGHUP)
    if handle is None:
        raise NotFound(f"no supervisor serves {home.path}", hint="one starts with: loom agent start NAME --detach")
    deadline = time.monotonic() + timeout_s
    poller = select.poll()
    poller.register(handle, select.POLLIN)
    try:
        while (now := running.read(home)) is None or now.answered == answered:
            if poller.poll(_POLL_S * 1000):
                raise TryLater("the supervisor ended while it was asked", hint="the next one runs the installed code")
            if time.monotonic() > deadline:
                what = "does not say which code it runs" if now is None else f"has not answered within {timeout_s:g} s"
                raise TryLater(f"the supervisor {what}", hint="or replace it: loom supervisor stop")
        return before or replace(now, code=now.before), now
    finally:
        os.close(handle)


def stop_supervisor(home: Home, timeout_s: float = 30.0) -> bool:
    """End the supervisor and with it all runners; `want` files stay. False: there was none.

    Raises TryLater when it is still there after `timeout_s`.
    """
    handle = signal_supervisor(home, signal.SIGTERM)
    if handle is None:
        return False
    try:
        poller = select.poll()
        poller.register(handle, select.POLLIN)
        if not poller.poll(timeout_s * 1000):
            raise TryLater(
                f"the supervisor is still stopping its agents after {timeout_s:g} s",
                hint="asked again, it kills them at once: loom supervisor stop",
            )
    finally:
        os.close(handle)
    return True


def restart_runner(agent: AgentDir, grace_s: float = 10.0) -> bool:
    """Ask for an agent anew and end its process; its supervisor starts the next one at once. False: none was running.

    First `want` is written (the same word; `up` when it was down or dead), which is asking: whenever a process that
    was asked for meanwhile ends, it is started again with n = 0, whatever its restart policy. Then SIGTERM, and its
    whole tree is killed when it has not left after `grace_s`. A crash of ours between the two changes nothing.
    """
    who = locks.holder(agent.lock)
    want = agents.read_want(agent)
    agents.write_want(agent, want if want == "demand" else "up")
    handle = pidfd.open_pidfd(who.pid, who.start) if who is not None else None
    if who is None or handle is None:
        return False
    try:
        pidfd.send(handle, signal.SIGTERM)
        pidfd.send(handle, signal.SIGCONT)
        poller = select.poll()
        poller.register(handle, select.POLLIN)
        if not poller.poll(grace_s * 1000):
            tree.kill_tree(who.pid, who.start, mark_of(agent.path))
    finally:
        os.close(handle)
    return True
