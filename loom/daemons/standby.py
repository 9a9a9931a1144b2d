"""Runners that stand by: forks which hold their agent's lock, listen to its bell, and are nothing else yet (ADR-0034).

What a runner reads and makes before its first message takes three times the memory that waiting takes. So one whose
agent has nothing to do, and whose configuration another runner has come up with before, is forked with lock and bell
in its hands and sleeps. Whatever it hears (mail, a nudge, the end of its supervisor) makes it a whole runner:
loom/daemons/service.py goes on with the lock that it has.

    supervisor                                  fork
    takes the lock, opens the bell
    no mail?  forks                             session, cgroup, descriptors
    signs the lock for it                       says that it is ready, sleeps
"""

from __future__ import annotations

# Not signal: its enumerations alone would be a tenth of what a fork that stands by has of its own.
import _signal  # type: ignore[import-not-found]
import os
import select
import signal
from collections.abc import Callable
from pathlib import Path
from types import FrameType

from loom.daemons.service import LOOK_ANYWAY_S
from loom.proc import spawn
from loom.proc.stopping import Leaving
from loom.spool import agents, fs, locks, wake
from loom.spool.layout import AgentDir
from loom.wire import exits
from loom.wire.record import record

LOCK, BELL = spawn.KEPT_FD, spawn.KEPT_FD + 1
ANEW = 76  # what it ends with when its agent.json is not the one it was forked for: to be started again, at once
_LEFT_BY = (signal.SIGTERM, signal.SIGINT)
_ALL = signal.valid_signals()
_DEFAULT = (signal.SIGHUP, signal.SIGCHLD)  # those that a supervisor handles besides


@record
class Standby:
    """What the supervisor holds for a runner that is to stand by, until it is forked."""

    lock: locks.Lock
    bell: int

    def close(self) -> None:
        """Our own descriptors of both: a fork has its own. The lock is let go with the last of them."""
        for fd in (self.lock.fd, self.bell):
            if fd >= 0:
                os.close(fd)

    def sign(self, pid: int, start: int) -> None:
        """It is this process's lock from now on."""
        try:
            self.lock.sign(locks.Incarnation(pid, start, locks.boot_id()))
        except OSError:
            pass  # it signs when it is made whole, and the end of this supervisor does that too


def prepare(agent: AgentDir, fifo: Path) -> Standby | None:
    """Lock and bell of an agent that has nothing to do. None: there is mail, somebody has the lock, or it cannot be."""
    try:
        lock = locks.acquire(agent.lock)
    except OSError:
        return None  # whoever starts it whole is told why
    if lock is None:
        return None
    bell = -1
    try:
        bell = wake.listen(fifo)
        if not agents.has_mail(agent):  # asked when the bell hangs: what comes from now on rings it
            return Standby(lock, bell)
    except OSError:
        pass
    Standby(lock, bell).close()
    return None


def first(agent: AgentDir, fifo: Path) -> Callable[[], int | None]:
    """What the fork does before all else (spawn.Program). Raises OSError when there is no agent.json any more."""
    token, name = fs.token(agent.spec_file), agent.name.encode()[:15]

    def wait() -> int | None:
        try:
            _sleep(name, lambda: wake.is_heard(fifo, BELL) and not agents.has_mail(agent))
        except Leaving:
            agents.note_exit(agent, exits.DONE, locks.own_incarnation())
            return exits.DONE
        os.close(BELL)  # as a whole runner it hangs up its own, and looks before it sleeps
        try:
            # Environment and limits are those of the spec that it was forked for.
            return None if fs.token(agent.spec_file) == token else ANEW
        except OSError:
            return ANEW

    return wait


def _sleep(name: bytes, nothing: Callable[[], bool]) -> None:
    """Until something is heard, or there is something to do all the same. Raises Leaving.

    Signals come in here only: before and after they are blocked, and what comes then meets the whole runner.
    """
    for number in _LEFT_BY:
        _signal.signal(number, _leave)
    for number in _DEFAULT:
        _signal.signal(number, _signal.SIG_DFL)
    _signal.set_wakeup_fd(-1)
    _be_called(name)
    poller = select.poll()
    poller.register(BELL, select.POLLIN)
    poller.register(spawn.ALONE_FD, select.POLLIN)
    try:
        _signal.pthread_sigmask(_signal.SIG_SETMASK, ())
        _say_ready()
        while not poller.poll(LOOK_ANYWAY_S * 1000) and nothing():
            pass
    finally:
        _signal.pthread_sigmask(_signal.SIG_BLOCK, _ALL)


def _say_ready() -> None:
    try:
        os.write(spawn.READY_FD, b"\n")
    except OSError:
        pass  # our supervisor has ended, which is heard next
    os.close(spawn.READY_FD)


def _leave(number: int, frame: FrameType | None) -> None:
    raise Leaving(number)


def _be_called(name: bytes) -> None:
    """The name that ps and top show: without the C library's call, which costs twenty pages."""
    try:
        fd = os.open("/proc/self/comm", os.O_WRONLY | os.O_CLOEXEC)
        os.write(fd, name)
        os.close(fd)
    except OSError:
        pass
