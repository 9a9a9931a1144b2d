"""All agents under one supervisor: for each, what is wanted and seen goes to loom.core.supervision, and what that
decides is carried out. When to look, and at whom, is the loop's: loom/daemons/supervisor.py.
"""

from __future__ import annotations

import math
import os
import random
import signal
import stat
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

from loom.core import liveness
from loom.core import supervision as core
from loom.core.liveness import Deadlines, Hang
from loom.core.supervision import GiveUp, Kill, Limits, Start, Stop
from loom.daemons import programs, standby
from loom.daemons.charge import Cause, Charge, Held, Process, exit_text, shared_token
from loom.daemons.incarnations import Incarnations, Prepared, age_s
from loom.daemons.meter import Meter
from loom.daemons.watcher import Watcher
from loom.proc import pidfd
from loom.spool import agents, config, fs, heartbeat, locks, wake
from loom.spool.home import disk_error
from loom.spool.layout import Home
from loom.wire import exits, ids, settings
from loom.wire.errors import Config, LoomError, NotFound
from loom.wire.hang import line

TROUBLE_S = 5.0  # an agent for which something failed (no space, no processes) is looked at again after this time
_ALIKE_S = 1.0  # so long a start may wait for how another one goes
_LOCKED_S = 1.0  # somebody holds an agent's lock for a moment (retry, fsck): no runner


class Loop(Protocol):
    """What the ward needs of the loop it lives in."""

    def listen(self, fd: int, handler: Callable[[], None]) -> None: ...
    def unlisten(self, fd: int) -> None: ...
    def children(self) -> list[int]: ...
    def say(self, level: str, event: str, **fields: object) -> None: ...


class Ward:
    """`dirty` names agents whose files are to be looked at, `due` when the next step of an agent falls due.

    unhurried   agents of which nothing was heard; looked at a few at a time, so that news never waits for them
    leaving   all are to stop, whatever is wanted of them: the supervisor goes
    """

    def __init__(self, home: Home, hands: Incarnations, table: Mapping[str, str], limits: Limits, loop: Loop) -> None:
        self.charges: dict[str, Charge] = {}
        self.dirty: set[str] = set()
        self.unhurried: dict[str, None] = {}
        self.due: dict[str, float] = {}
        self.limits = limits
        self.leaving = False
        self._home = home
        self._hands = hands
        self._table = table
        self._loop = loop
        self._shared = shared_token(home)
        self._waiting: set[str] = set()  # those who start when another one, configured alike, has come up
        self._starting: dict[str, Prepared] = {}  # those whom the next launch() starts
        self._settings: Mapping[str, Any] = settings.defaults()
        self._read_settings()
        self._ending: set[str] = set()  # agents whose process has ended and could not be taken leave of yet

    # -- who is there --------------------------------------------------------------------------------------------

    def find(self) -> list[Charge]:
        """Take in new directories; returns all charges. Those whose directory is gone are looked at a last time."""
        names = _directories(self._home.agents, ids.is_agent)
        if self._home.pipes.is_dir():
            names |= _directories(self._home.pipes, ids.is_instance)
        for name in names - self.charges.keys():
            self._add(name)
        self.dirty |= self.charges.keys() - names
        return list(self.charges.values())

    def take_in(self, name: str) -> Charge | None:
        """The same for one name of which something was heard. None: there is no agent of that name."""
        if name in self.charges:
            self.dirty.add(name)
        elif ids.is_mailbox(name) and _is_directory(self._home.agent(name).path):
            self._add(name)
        return self.charges.get(name)

    def _add(self, name: str) -> None:
        self.charges[name] = Charge(self._home, name)
        self.dirty.add(name)

    def look_at_all(self) -> None:
        """Nothing may be believed any more: everybody is looked at again, in turn."""
        self.settings_changed()
        self.unhurried.update(dict.fromkeys(self.charges))

    def next_unhurried(self, count: int) -> list[str]:
        """Whom to look at now; runners whose inbox changed are rung, since the event may have been lost."""
        names = list(islice(self.unhurried, count))
        for name in names:
            del self.unhurried[name]
            charge = self.charges.get(name)
            if charge is not None and charge.inbox_changed() and charge.process is not None:
                wake.ring(self._home.wake_fifo(name))
                self._has_work(charge)
        return names

    def settings_changed(self) -> None:
        if (shared := shared_token(self._home)) != self._shared:
            self._shared = shared
            programs.warm(self._home)
            self._read_settings()
            self.unhurried.update(dict.fromkeys(self.charges))

    def pids(self) -> list[int]:
        return [charge.process.pid for charge in self.charges.values() if charge.process is not None]

    def is_needed(self, but: str, *, anew: bool = False) -> bool:
        """Whether an agent other than `but` is wanted up, or has mail that somebody waits for.

        By what was heard, or `anew`: from the files of every agent, which takes its time among thousands.
        """
        for name, charge in self.charges.items():
            if anew:
                charge.refresh(self._shared, time.monotonic())
            if charge.is_wanted_up() and name != but:
                return True
            # Mail that was seen may have been worked on since, of which nothing is heard.
            if charge.wanted.want == "demand" and (anew or charge.mail) and agents.has_mail(charge.agent):
                return True
        return False

    def leave(self) -> None:
        """Stop all runners; `want` files stay as they are, so that the next supervisor goes on."""
        self.leaving = True
        self.dirty.update(self.charges)

    # -- other code in the same process ----------------------------------------------------------------------------

    def hand_over(self) -> dict[str, Held]:
        return {name: charge.held() for name, charge in self.charges.items() if charge.met}

    def go_on(self, agents_held: Mapping[str, Held]) -> None:
        """Go on with these agents, who are watched already; those that ended meanwhile are found by their pidfds."""
        for name, held in agents_held.items():
            self._add(name)
            charge = self.charges[name]
            charge.go_on(held)
            if not held.seen.running and agents.has_mail(charge.agent):
                charge.seen = core.arrived(held.seen)  # it may have come when nobody listened
            if held.process is not None:
                self._listen_to(charge, held.process)

    def _listen_to(self, charge: Charge, process: Process) -> None:
        self._loop.listen(process.pidfd, lambda: self._ended(charge))
        if process.ready_fd >= 0:
            self._loop.listen(process.ready_fd, lambda: self._heard(charge))

    # -- serving one ---------------------------------------------------------------------------------------------

    def serve(self, charge: Charge) -> bool:
        """Read what changed about one agent and do what follows from it. False: there is no such agent any more.

        Who is to start is only prepared for it: launch() starts them, together.
        """
        now = time.monotonic()
        self.due.pop(charge.name, None)
        if charge.name in self._ending:
            self._ended(charge)
        charge.refresh(self._shared, now)
        if not charge.met:
            self._meet(charge)
        charge.seen = core.look(self._wanted(charge), charge.seen)
        for _ in range(3):  # more than any chain of steps that can follow each other at once
            step = core.decide(charge.name, self._wanted(charge), charge.seen, now, self.limits)
            if step is None:
                break
            self._carry_out(charge, step)
            if charge.name in self._starting:
                return True  # what follows from it comes with launched()
        return self._conclude(charge, now)

    def _conclude(self, charge: Charge, now: float) -> bool:
        """What is shown, and when to look again. False: there is no such agent any more."""
        self._measure(charge, now)
        self._watch(charge, now)
        charge.show(core.status_of(self._wanted(charge), charge.seen))
        meter_s = None if charge.meter is None else charge.meter.due_s
        watch_s = None if charge.watcher is None or math.isinf(charge.watcher.due_s) else charge.watcher.due_s
        times = (core.due_s(self._wanted(charge), charge.seen, self.limits), charge.recheck_s, meter_s, watch_s)
        if (due := min((t for t in times if t is not None), default=None)) is not None:
            self.due[charge.name] = due
        if charge.absent and charge.process is None and not charge.agent.path.is_dir():
            self.due.pop(charge.name, None)
            del self.charges[charge.name]
            self._hands.sweep(charge.name)
            return False
        return True

    def _measure(self, charge: Charge, now: float) -> None:
        """Hold a running agent to its limits: whoever exceeds one is ended with all that it has started."""
        process = charge.process
        if process is None or charge.limits is None or charge.cause is not None:
            charge.meter = None
            return
        if charge.meter is None or charge.meter.limits != charge.limits:
            group = self._hands.group_of(charge.name)
            charge.meter = Meter(charge.agent, charge.limits, process.pid, now, charge.spent, group)
            charge.spent = None
        if charge.meter.due_s > now or not (text := charge.meter.look(now)):
            return
        charge.meter = None
        self._end(charge, Cause("limit", text, f"ask for less, or raise the limit in {charge.agent.spec}"), now)

    def _end(self, charge: Charge, cause: Cause, now: float) -> None:
        assert charge.process is not None
        charge.cause = cause
        count = self._hands.kill(charge, charge.process)
        charge.seen = core.killed(charge.seen, now)
        self._loop.say("warning", "killed", agent=charge.name, reason=cause.text, processes=count)

    def _watch(self, charge: Charge, now: float) -> None:
        """See whether a running agent gets on, and do what its hang asks for."""
        process = charge.process
        if process is None or charge.cause is not None:
            charge.watcher = None
            return
        deadlines = self._deadlines(charge)
        if charge.watcher is None:
            own = charge.runner in self._table
            charge.watcher = Watcher(charge.agent, process.pid, now, deadlines, own=own)
        if charge.watcher.due_s > now or (hang := charge.watcher.look(now, deadlines)) is None:
            return
        if charge.watcher.is_news(hang):
            self._tell_hang(charge, hang)
        match hang.action:
            case "restart":
                self._end(charge, Cause(hang.shape, hang.why), now)
            case "dead letter":
                hint = f"send it again, or give it longer: option claim_s in {charge.agent.spec}"
                self._end(charge, Cause(hang.shape, hang.why, hint), now)
            case "nudge" if hang.shape == "stopped":
                pidfd.send(process.pidfd, signal.SIGCONT)
            case "nudge":
                wake.ring(self._home.wake_fifo(charge.name))

    def _tell_hang(self, charge: Charge, hang: Hang) -> None:
        heartbeat.say(charge.agent, hang.why)
        charge.log.warning("hung", shape=hang.shape, action=hang.action, error=hang.why)
        charge.log.close()
        self._loop.say("warning", "hung", agent=charge.name, shape=hang.shape, action=hang.action, why=hang.why)

    def _deadlines(self, charge: Charge) -> Deadlines:
        if not charge.own_deadlines:
            return self._usual
        return liveness.deadlines(self._settings, charge.own_deadlines)

    def _read_settings(self) -> None:
        """Deadlines are those of the last config.yml that could be read."""
        try:
            self._settings = config.load(self._home, {}).values
        except (LoomError, OSError):
            pass  # the runners say what is wrong with it
        self._usual = liveness.deadlines(self._settings, {})

    def stirred(self, name: str) -> None:
        """It wrote its status: it begins or ends something."""
        charge = self.charges.get(name)
        if charge is None:
            return
        if charge.meter is not None:
            charge.meter.hurry(time.monotonic())
            self.due[name] = min(self.due.get(name, math.inf), charge.meter.due_s)
        self._has_work(charge)

    def _has_work(self, charge: Charge) -> None:
        if charge.watcher is not None:
            charge.watcher.stir(time.monotonic(), self._deadlines(charge))
            self.due[charge.name] = min(self.due.get(charge.name, math.inf), charge.watcher.due_s)

    def _wanted(self, charge: Charge) -> core.Wanted:
        return replace(charge.wanted, want="down") if self.leaving else charge.wanted

    def _meet(self, charge: Charge) -> None:
        """The first look at an agent: what is wanted counts as known, and a living runner is adopted."""
        charge.met = True
        charge.seen = replace(charge.seen, asked=charge.wanted.asked, settings=charge.wanted.settings)
        if not charge.absent and self._adopt(charge):
            return
        self._hands.sweep(charge.name)

    def _carry_out(self, charge: Charge, step: core.Step) -> None:
        now = time.monotonic()
        match step:
            case Start():
                self._start(charge)
            case Stop() if charge.process is not None:
                self._hands.terminate(charge.process)
                charge.seen = core.sent_away(charge.seen, now)
            case Kill() if charge.process is not None:
                count = self._hands.kill(charge, charge.process)
                charge.seen = core.killed(charge.seen, now)
                self._loop.say("warning", "killed", agent=charge.name, reason=step.reason, processes=count)
            case GiveUp() if charge.bury(step.crashes):
                charge.refresh(self._shared, now)
                charge.seen = core.look(charge.wanted, core.buried(charge.seen))
                self._loop.say("error", "dead", agent=charge.name, crashes=step.crashes)
            case GiveUp():
                charge.seen = core.postponed(charge.seen, now, _LOCKED_S)

    def _start(self, charge: Charge) -> None:
        now = time.monotonic()
        if self._adopt(charge):
            return
        if locks.is_held(charge.agent.lock):
            charge.seen = core.postponed(charge.seen, now, _LOCKED_S)
            self._see_locked(charge, now)
            return
        self._see_unlocked(charge)
        try:
            if charge.seen.last == "later":  # it left for want of something; started into the same it would leave again
                fs.probe(self._home.run)
            charge.inbox_changed()  # what has come so far is seen by whoever starts now
            prepared = self._hands.prepare(charge, self._shared, at_once=charge.name in self._waiting)
            if prepared is None:
                self._waiting.add(charge.name)
                charge.seen = core.postponed(charge.seen, now, _ALIKE_S)
                return
            self._waiting.discard(charge.name)
            self._starting[charge.name] = prepared
            # Before the fork, so that what it writes itself when it has work is not overwritten.
            charge.show("pending" if prepared.standby is None else "idle")
        except (Config, NotFound) as error:  # not found: removed since it was read
            charge.refuse(error)
            charge.seen = core.parked(charge.wanted, charge.seen)
            self._loop.say("error", "refused", agent=charge.name, error=error.line())
        except OSError as error:
            charge.show("pending")
            self._hinder(charge, error, now)
            raise

    def launch(self) -> dict[str, Process | OSError]:
        """Start together all whom serve() has prepared, each of whom launched() is then to be told of."""
        prepared, self._starting = self._starting, {}
        return dict(zip(prepared, self._hands.start_all(list(prepared.values())), strict=True)) if prepared else {}

    def launched(self, name: str, process: Process | OSError) -> None:
        """Raises the OSError for which it could not be started."""
        now, charge = time.monotonic(), self.charges[name]
        if isinstance(process, OSError):
            self._tried(charge, came_up=False)
            self._hinder(charge, process, now)
            raise process
        charge.process = process
        charge.seen = core.started(charge.wanted, charge.seen, now)
        self._listen_to(charge, process)
        charge.show_started()
        self._conclude(charge, now)

    def _tried(self, charge: Charge, *, came_up: bool) -> None:
        """Those who have waited to see how it comes up are next."""
        if self._hands.tried(charge, came_up=came_up):
            for name in self._waiting & self.charges.keys():
                self.charges[name].seen = core.postponed(self.charges[name].seen, time.monotonic(), 0.0)
                self.dirty.add(name)
            self._waiting.clear()

    def _hinder(self, charge: Charge, error: OSError, now: float) -> None:
        charge.seen = core.postponed(charge.seen, now, TROUBLE_S)
        charge.hinder(disk_error(error, f"{charge.name} cannot be started", self._home.path))

    def _see_locked(self, charge: Charge, now: float) -> None:
        """Somebody who is no runner of it has its lock. For a moment that is in order: retry, fsck."""
        if charge.locked_s is None:
            charge.locked_s = now
        elif now - charge.locked_s >= self._usual.lock_s:
            charge.locked_s = math.inf  # told once
            pid = locks.taken_by(charge.agent.lock)
            by = "another process" if pid is None else f"process {pid}, which is no runner of it,"
            why = f"{by} holds {charge.agent.lock}; it cannot be started before that ends"
            self._tell_hang(charge, Hang("lock_held", line("lock_held", why)))

    def _see_unlocked(self, charge: Charge) -> None:
        if charge.locked_s == math.inf:
            heartbeat.clear(charge.agent)
        charge.locked_s = None

    def _adopt(self, charge: Charge) -> bool:
        process = self._hands.adopt(charge)
        if process is None:
            return False
        charge.process = process
        since_s = time.monotonic() - age_s(process)
        charge.seen = core.started(charge.wanted, charge.seen, since_s, ready=True)
        self._listen_to(charge, process)
        self._loop.say("info", "adopted", agent=charge.name, pid=process.pid)
        return True

    # -- what is heard of one ------------------------------------------------------------------------------------

    def mail_came(self, charge: Charge, arrived: set[str]) -> None:
        """Names were seen in its inbox. What is claimed already was rung by its sender."""
        if charge.process is None:
            charge.seen = core.arrived(charge.seen)
            self.dirty.add(charge.name)
            return
        self._has_work(charge)
        if any(_is_there(charge.agent.inbox / name) for name in arrived):
            wake.ring(self._home.wake_fifo(charge.name))

    def _heard(self, charge: Charge) -> None:
        """Its readiness pipe: a newline, or an end of file, which says no more than that the deadline stays."""
        process = charge.process
        if process is None or process.ready_fd < 0:
            return
        try:
            data = os.read(process.ready_fd, 64)
        except BlockingIOError:
            return
        if b"\n" in data or not data:
            self._close_ready(charge)
        if b"\n" in data:
            charge.seen = core.became_ready(charge.seen)
            self._tried(charge, came_up=True)
            self.dirty.add(charge.name)
            if charge.runner not in self._table and agents.read_hint(charge.agent.status) == "pending":
                fs.hint(charge.agent.status, "idle")  # programs of others need not know of `status`; ours write it

    def _close_ready(self, charge: Charge) -> None:
        if charge.process is not None and charge.process.ready_fd >= 0:
            self._loop.unlisten(charge.process.ready_fd)
            os.close(charge.process.ready_fd)
            charge.process.ready_fd = -1

    def _ended(self, charge: Charge) -> None:
        process = charge.process
        if process is None:
            return
        self._close_ready(charge)
        self._loop.unlisten(process.pidfd)
        self._ending.add(charge.name)  # without descriptors its tree cannot be looked at: then once more, later
        self._tried(charge, came_up=False)
        exit_ = self._hands.collect(charge, process, self._loop.children())
        self._ending.discard(charge.name)
        charge.process = None
        try:
            self._conclude_end(charge, process, exit_)
        finally:
            charge.cause = charge.watcher = None  # whatever failed here: the next process has done nothing yet

    def _conclude_end(self, charge: Charge, process: Process, exit_: core.Exit) -> None:
        """What follows from how a process ended: its message failed, the next start, a record of it."""
        self.dirty.add(charge.name)
        now = time.monotonic()
        before, charge.seen = charge.seen, replace(charge.seen, running=False)  # whatever fails below, it is gone
        charge.forget_mail()
        charge.refresh(self._shared, now)
        wanted = self._wanted(charge)
        try:
            failed = self._fail_message_at_fault(charge, exit_)
        except OSError as error:  # the next process meets the message again, and ends by it as this one did
            failed = False
            self._loop.say("error", "not_failed", agent=charge.name, error=str(error))
        anew = charge.runner in self._table and exit_.code == standby.ANEW
        finished = charge.finished_mark() != process.mark
        draw = random.random()
        as_if = core.Exit(exits.BAD_INPUT) if failed else exit_
        charge.seen = core.exited(wanted, before, as_if, now, draw, finished=finished, failed_message=failed, anew=anew)
        kind = "stopped" if anew or _was_sent_away(wanted, before, exit_) else core.kind_of(as_if, failed)
        self._loop.say("info", "exited", agent=charge.name, pid=process.pid, exit=exit_text(exit_), kind=kind)
        charge.show_ended(process, exit_)
        if kind in ("crash", "config"):
            due = core.due_s(wanted, charge.seen, self.limits)
            if before.kill_s is not None and charge.cause is None:
                charge.cause = Cause("not_ready", f"not ready within {self.limits.ready_s:g} s")
            try:
                charge.record_crash(process, exit_, kind, None if due is None else max(0.0, due - now))
            except OSError as error:
                self._loop.say("error", "no_crash_record", agent=charge.name, error=str(error))

    def _fail_message_at_fault(self, charge: Charge, exit_: core.Exit) -> bool:
        """Whether what it had claimed was failed for how it ended: it refused it, or exceeded a limit or a deadline."""
        if (cause := charge.cause) is not None and cause.hint:
            return bool(charge.fail_claimed(cause.error_type, cause.text, cause.hint))
        if exit_.code != exits.BAD_INPUT:
            return False
        text = f"{charge.name} refused this message (exit status {exits.BAD_INPUT})"
        return bool(charge.fail_claimed("bad_input", text, f"see {charge.agent.stderr}"))


def _was_sent_away(wanted: core.Wanted, seen: core.Seen, exit_: core.Exit) -> bool:
    """By us, or by whoever asked for it anew and then ended it: `loom agent restart`."""
    return seen.term_s is not None or (
        core.restarting(wanted, seen) and exit_.signal in (signal.SIGTERM, signal.SIGKILL)
    )


def _directories(path: Path, is_name: Callable[[str], bool]) -> set[str]:
    with os.scandir(path) as entries:
        return {e.name for e in entries if is_name(e.name) and e.is_dir(follow_symlinks=False)}


def _is_directory(path: Path) -> bool:
    try:
        return stat.S_ISDIR(os.lstat(path).st_mode)
    except OSError:
        return False


def _is_there(path: Path) -> bool:
    return os.path.lexists(path)
