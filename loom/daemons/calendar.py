"""When jobs are due, and the processes that serve them: the supervisor's part in schedules (docs/schedules.md).

The supervisor serves no slot itself. When a job is due it starts `loom schedule run-due JOB`, as cron or a timer would;
that process decides under the job's lock, so both may do so at once. Each job has a process of its own: one that waits
for a slow driver keeps no other waiting. Deadlines are of the steady clock and are computed anew with each look: when
the clock of the day jumps, a slot comes late by as much as one look is from the next.
"""

from __future__ import annotations

import math
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping
from typing import Protocol

from loom.core import schedule as core
from loom.daemons.ward import TROUBLE_S
from loom.proc import pidfd, spawn
from loom.spool import fs, schedules, zones
from loom.spool.home import disk_error
from loom.spool.layout import Home, ScheduleDir
from loom.wire.errors import Config, LoomError
from loom.wire.record import record
from loom.wire.schedule import Job, Slots

_KEPT = ("PYTHONPATH", "LOOM_ALLOW_FILESYSTEM")
_COMMAND = ("-P", "-m", "loom", "schedule", "run-due")
_PATIENCE_S = 30.0  # the longest pause between two processes for a job that makes no progress
# Processes at once. Hundreds of jobs may be due at midnight, and each process is an interpreter: 23 MB and a tenth of a
# processor's second, of which the agents are to have theirs meanwhile. Who has waited longest is next.
_AT_ONCE = 16


class Loop(Protocol):
    """What the calendar needs of the supervisor's loop."""

    def listen(self, fd: int, handler: Callable[[], None]) -> None: ...
    def unlisten(self, fd: int) -> None: ...
    def say(self, level: str, event: str, **fields: object) -> None: ...


@record(frozen=False)
class _Entry:
    """A job as it was read last.

    stamp  of the file that was read, or refused for what it says; empty: it is read at the next look
    due_s  on the steady clock
    stuck  how often it was served without any change
    told   what is wrong with it, as it was said last
    """

    stamp: tuple[int, ...] = ()
    job: Job | None = None
    slots: Slots | None = None
    due_s: float = math.inf
    stuck: int = 0
    told: str = ""


class Calendar:
    """`due_s` is when serve() has something to do, on the steady clock; infinity without any job."""

    def __init__(self, home: Home, env: Mapping[str, str], loop: Loop) -> None:
        self._home, self._loop = home, loop
        kept = {name: env[name] for name in _KEPT if env.get(name)}
        self._env = {**spawn.base_environment(env), **kept, "LOOM_HOME": str(home.path)}
        self._entries: dict[str, _Entry] = {}
        self._served: dict[str, spawn.Spawned] = {}  # the process that serves a job
        self._rests_until = -math.inf  # one could not be started: none is before this, on the steady clock
        self.due_s = math.inf

    def pids(self) -> list[int]:
        return [child.pid for child in self._served.values()]

    def look(self) -> None:
        """Read what jobs there are and what is known of their slots."""
        names = schedules.names(self._home)
        self._entries = {name: self._entries.get(name) or _Entry() for name in names}
        for name in names:
            self._look_at(name)
        self._find_next()

    def _look_at(self, name: str) -> None:
        """Whatever is wrong with this job is said once and hinders no other."""
        entry = self._entries[name]
        entry.due_s = math.inf
        try:
            due_in_s = self._due_in_s(entry, self._home.schedule(name))
        except FileNotFoundError:
            return
        except LoomError as error:
            trouble = error.line()
        except OSError as error:
            trouble = disk_error(error, f"{name} cannot be looked at", self._home.path).line()
        except Exception as error:  # a bug of ours: the others are served all the same
            trouble = f"{type(error).__name__}: {error}"
        else:
            if due_in_s is not None:
                if entry.stuck:
                    due_in_s = max(due_in_s, min(2.0 ** (entry.stuck - 1), _PATIENCE_S))
                entry.due_s, entry.told = time.monotonic() + due_in_s, ""
            return
        if trouble != entry.told:
            entry.told = trouble
            self._loop.say("error", "schedule", job=name, error=trouble)

    def _due_in_s(self, entry: _Entry, place: ScheduleDir) -> float | None:
        """How long until the job is due, less than 0 when it was already; None while its file is as it was refused.

        Only what the file says is remembered. That it could not be read, or that a time zone is not known here, may be
        otherwise at the next look without any change of the file.
        """
        found = os.lstat(place.definition)
        stamp = (found.st_mtime_ns, found.st_ctime_ns, found.st_ino, found.st_size)
        if stamp != entry.stamp:
            entry.stamp, entry.job, entry.stuck = (), None, 0
            try:
                job = schedules.read(place)
                core.check(job, str(place.definition))
            except Config:
                entry.stamp = stamp
                raise
            entry.stamp, entry.job = stamp, job
        if entry.job is None:
            return None
        entry.slots = schedules.read_slots(place)
        now = time.time()
        return core.due_at(entry.job, zones.offset_of(entry.job.zone), entry.slots, now) - now

    def _find_next(self) -> None:
        waiting = [entry.due_s for name, entry in self._entries.items() if name not in self._served]
        has_room = len(self._served) < _AT_ONCE
        self.due_s = max(min(waiting, default=math.inf) if has_room else math.inf, self._rests_until)

    def serve(self) -> None:
        """Start a process for each job that is due and that none of ours serves.

        Raises OSError when the machine refuses one; then, and after a bug of ours, the next is tried after TROUBLE_S.
        """
        now = time.monotonic()
        due = sorted((e.due_s, n) for n, e in self._entries.items() if e.due_s <= now and n not in self._served)
        try:
            for _, name in due[: _AT_ONCE - len(self._served)]:
                self._start(name)
        except Exception:
            self._rests_until = time.monotonic() + TROUBLE_S
            raise
        finally:
            self._find_next()

    def _start(self, name: str) -> None:
        argv = (sys.executable, *_COMMAND, name)
        program = spawn.Program("loom-schedule", self._home.path, self._env, argv=argv)
        log = fs.open_append(self._home.supervisor_log)
        try:
            null = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
            try:
                child = spawn.spawn(program, log, null)
            finally:
                os.close(null)
        finally:
            os.close(log)
        os.close(child.ready)
        try:
            self._loop.listen(child.pidfd, lambda: self._ended(name, child))
        except OSError:  # nobody would learn of its end; killed anywhere it leaves nothing that is not gone on with
            pidfd.send(child.pidfd, signal.SIGKILL)
            os.waitpid(child.pid, 0)
            os.close(child.pidfd)
            raise
        self._served[name] = child

    def _ended(self, name: str, child: spawn.Spawned) -> None:
        del self._served[name]
        self._loop.unlisten(child.pidfd)
        pidfd.reap(child.pidfd)
        os.close(child.pidfd)
        entry = self._entries.get(name)
        if entry is not None:
            before = entry.slots
            self._look_at(name)
            entry.stuck = entry.stuck + 1 if entry.slots == before and entry.due_s <= time.monotonic() else 0
            if entry.stuck:
                self._look_at(name)
        self._find_next()
