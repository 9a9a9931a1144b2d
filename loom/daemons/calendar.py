"""When jobs are due, and the processes that serve them: the supervisor's part in schedules (docs/schedules.md).

The supervisor serves no slot itself. When one is due it starts `loom schedule run-due JOB…`, as cron or a timer would;
that process decides under the job's lock, so both may do so at once. Deadlines are of the steady clock and are computed
anew with each look: when the clock of the day jumps, a slot comes late by as much as one look is from the next.
"""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Callable, Mapping
from typing import Protocol

from loom.core import schedule as core
from loom.proc import spawn
from loom.spool import fs, schedules, zones
from loom.spool.home import disk_error
from loom.spool.layout import Home, ScheduleDir
from loom.wire.errors import Config, LoomError
from loom.wire.record import record
from loom.wire.schedule import Job, Slots

_KEPT = ("PYTHONPATH", "LOOM_ALLOW_FILESYSTEM")
_COMMAND = ("-P", "-m", "loom", "schedule", "run-due")
_PATIENCE_S = 30.0  # the longest pause between two processes for a job that makes no progress


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
        self._served: dict[int, tuple[str, ...]] = {}  # the jobs that a process serves, by its pidfd
        self.due_s = math.inf

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
                pause = min(2.0 ** (entry.stuck - 1), _PATIENCE_S) if entry.stuck else 0.0
                entry.due_s, entry.told = time.monotonic() + max(due_in_s, pause), ""
            return
        if trouble != entry.told:
            entry.told = trouble
            self._loop.say("error", "schedule", job=name, error=trouble)

    def _due_in_s(self, entry: _Entry, place: ScheduleDir) -> float | None:
        """How long until the job is due; None while its file says what was refused already.

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
        busy = {name for names in self._served.values() for name in names}
        self.due_s = min((e.due_s for name, e in self._entries.items() if name not in busy), default=math.inf)

    def serve(self) -> None:
        """Start a process for the jobs that are due and that no process of ours serves. Raises OSError when none is."""
        busy = {name for names in self._served.values() for name in names}
        now = time.monotonic()
        due = tuple(n for n, e in self._entries.items() if e.due_s <= now and n not in busy)
        if not due:
            self._find_next()
            return
        null = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        log = fs.open_append(self._home.supervisor_log)
        try:
            argv = (sys.executable, *_COMMAND, *due)
            child = spawn.spawn(spawn.Program("loom-schedule", self._home.path, self._env, argv=argv), log, null)
        finally:
            os.close(null)
            os.close(log)
        os.close(child.ready)
        self._served[child.pidfd] = due
        self._loop.listen(child.pidfd, lambda: self._ended(child))
        self._find_next()

    def _ended(self, child: spawn.Spawned) -> None:
        self._loop.unlisten(child.pidfd)
        os.close(child.pidfd)
        try:
            os.waitpid(child.pid, os.WNOHANG)
        except ChildProcessError:
            pass  # reaped with the orphans
        for name in self._served.pop(child.pidfd):
            entry = self._entries.get(name)
            if entry is not None:
                before = entry.slots
                self._look_at(name)
                entry.stuck = entry.stuck + 1 if entry.slots == before and entry.due_s <= time.monotonic() else 0
                if entry.stuck:
                    self._look_at(name)
        self._find_next()
