"""The supervisor: one thread, one poll, the processes of all agents (docs/protocol.md sections 6 and 7).

Decides nothing itself: loom.core.supervision says what to do, this loop carries it out and reports back what came
of it. It keeps nothing that cannot be found again: what is wanted lies in files, who lives in locks. Killed at any
moment it leaves working runners behind, and the next one adopts them.

    descriptor            what it says                                what follows
    signals               TERM, INT; HUP; CHLD                        leave; look everywhere; reap orphans
    run/wake/supervisor   somebody found no reader                    look everywhere
    inotify               want, agent.json, agents/; mail by mv       look at these agents; ring or start
    pidfds                a runner ended                              sweep its tree, read its exit, plan again
    ready pipes           a runner is ready                           its deadline is off

All of these may be lost, so it looks everywhere each thirty seconds as well.
"""

from __future__ import annotations

import os
import random
import select
import signal
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from loom.core import supervision as core
from loom.core.supervision import GiveUp, Kill, Limits, Start, Stop
from loom.daemons import programs
from loom.daemons.charge import Charge, exit_text, shared_token
from loom.daemons.incarnations import Incarnations, age_s
from loom.daemons.sights import Sights
from loom.proc import pidfd, spawn, tree
from loom.spool import agents, fs, locks, wake
from loom.spool.home import open_home
from loom.spool.layout import Home
from loom.wire import exits, ids
from loom.wire.agent import AgentSpec, Restart
from loom.wire.errors import Config, LoomError, TryLater
from loom.wire.jsontext import dumps

IDLE_ENV = "LOOM_SUPERVISOR_IDLE_S"
READY_ENV = "LOOM_READY_FD"
ROUTER = "router"
_TROUBLE_S = 5.0  # an agent for which something failed (no space, no processes) is looked at again after this time
_LOCKED_S = 1.0  # somebody holds an agent's lock for a moment (retry, fsck): not a runner, not to be waited for long
_RING_S = 0.1  # however often the doorbell rings, everywhere is looked at this seldom
_BLIND_SWEEP_S = 2.0  # in place of thirty seconds when not everything can be watched


@dataclass(frozen=True, slots=True)
class Settings:
    """limits: see loom.core.supervision. idle_s: without anything to do for so long, an on-demand supervisor leaves."""

    limits: Limits = field(default_factory=Limits)
    idle_s: float = 30.0
    sweep_s: float = 30.0


class Supervisor:
    """`programs` replaces the table of runners, in tests."""

    def __init__(
        self,
        home: Home,
        *,
        on_demand: bool = False,
        settings: Settings | None = None,
        table: Mapping[str, str] | None = None,
        env: Mapping[str, str] = os.environ,
    ) -> None:
        self.home = home
        self.settings = settings or Settings()
        self._limits = self.settings.limits
        self._on_demand = on_demand
        self._table = programs.RUNNERS if table is None else table
        self._env = env
        self._charges: dict[str, Charge] = {}
        self._dirty: set[str] = set()
        self._due: dict[str, float] = {}
        self._on_fd: dict[int, Callable[[], None]] = {}
        self._shared = ""
        self._sweep_at = 0.0
        self._idle_since: float | None = None
        self._idle_check_at = 0.0
        self._leaving = False
        self._start_lock: locks.Lock | None = None

    # -- life --------------------------------------------------------------------------------------------------

    def run(self) -> int:
        """Serve until told to leave. Raises TryLater when this home has a supervisor, Config where it cannot run."""
        pidfd.check_supported()
        with self._own_home():
            self._set_up()
            try:
                self._look_everywhere()
                self._act()
                self._say_ready()
                while not (self._leaving and self._is_quiet()):
                    self._turn()
            finally:
                self._tear_down()
        if self._start_lock is not None:
            self._start_lock.release()
        return exits.DONE

    def _own_home(self) -> locks.Lock:
        lock = locks.acquire(self.home.supervisor_lock)
        if lock is None:
            other = locks.holder(self.home.supervisor_lock)
            pid = f" with pid {other.pid}" if other else ""
            raise TryLater(f"a supervisor{pid} serves {self.home.path} already", hint="see: loom supervisor status")
        lock.sign(locks.own_incarnation())
        fs.hint(self.home.supervisor_pid, str(os.getpid()))
        return lock

    def _set_up(self) -> None:
        tree.become_subreaper()
        tree.set_name("loom-supervisor")
        os.umask(0o077)
        self._epoll = select.epoll()
        self._signal_fd, self._signal_write = _catch_signals()
        self._listen(self._signal_fd, self._on_signal)
        self._bell = wake.listen(self.home.wake_fifo("supervisor"))
        self._listen(self._bell, self._on_bell)
        self._sights = Sights(self.home)
        if self._sights.fd >= 0:
            self._listen(self._sights.fd, self._on_news)
        if not self._sights.complete:
            self._say("warning", "blind", error=self._sights.why)
        for line in programs.preload(self._table):
            self._say("warning", "not_loaded", error=line)
        self._hands = Incarnations(self.home, self._table, self._env)
        self._sights.watch_home()
        self._safely("", self._provide_router)
        spawn.freeze()

    def _tear_down(self) -> None:
        # Whatever is still below us now has no runner any more and no agent to belong to.
        if not any(charge.process for charge in self._charges.values()):
            tree.kill_found(lambda: tree.below(tree.snapshot(), os.getpid()))
            tree.reap_strays(())
        fs.remove(self.home.supervisor_pid)
        self._hands.close()
        self._sights.close()
        self._epoll.close()
        for fd in (self._bell, self._signal_fd, self._signal_write):
            os.close(fd)

    def _provide_router(self) -> None:
        router = self.home.agent(ROUTER)
        try:
            if agents.read_spec(router).runner == ROUTER:
                if agents.read_want(router) != "up":
                    agents.write_want(router, "up")
                return
        except LoomError:
            pass  # there is none, or not one that could run
        # Never dead: without it no answer arrives anywhere, and its backoff grows to minutes anyway.
        spec = AgentSpec(name=ROUTER, model="builtin", runner=ROUTER, restart=Restart(limit=1_000_000))
        agents.create(self.home, spec, "", "up")

    def _say_ready(self) -> None:
        fd = os.environ.pop(READY_ENV, "")
        if fd.isdigit():
            try:
                os.write(int(fd), b"\n")
                os.close(int(fd))
            except OSError:
                pass  # whoever waited has gone

    # -- the loop ----------------------------------------------------------------------------------------------

    def _listen(self, fd: int, handler: Callable[[], None]) -> None:
        self._epoll.register(fd, select.EPOLLIN)
        self._on_fd[fd] = handler

    def _unlisten(self, fd: int) -> None:
        if self._on_fd.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    def _turn(self) -> None:
        for fd, _ in self._epoll.poll(self._timeout_s(), 512):
            handler = self._on_fd.get(fd)
            if handler is not None:
                self._safely("", handler)
        if time.monotonic() >= self._sweep_at:
            self._safely("", self._look_everywhere)
        self._act()
        if self._on_demand and not self._leaving and time.monotonic() >= self._idle_check_at:
            self._safely("", self._consider_leaving)

    def _timeout_s(self) -> float:
        until = min(self._due.values(), default=self._sweep_at)
        until = min(until, self._sweep_at)
        if self._on_demand and not self._leaving:
            until = min(until, self._idle_check_at)
        return max(0.0, until - time.monotonic())

    def _act(self) -> None:
        now = time.monotonic()
        names = self._dirty | {name for name, due in self._due.items() if due <= now}
        self._dirty = set()
        for name in sorted(names):
            if name in self._charges:
                self._safely(name, lambda charge=self._charges[name]: self._serve(charge))  # type: ignore[misc]

    def _safely(self, name: str, work: Callable[[], None]) -> None:
        """The top of the loop: whatever goes wrong for one agent, or with the disk, the others are served on."""
        try:
            work()
        except Exception as error:
            event = "disk" if isinstance(error, OSError) else "bug"
            self._say("error", event, agent=name, error=str(error), traceback=traceback.format_exc())
            if name:
                self._due[name] = time.monotonic() + _TROUBLE_S
            else:
                self._sweep_at = min(self._sweep_at, time.monotonic() + _TROUBLE_S)
                self._idle_check_at = time.monotonic() + _TROUBLE_S

    def _serve(self, charge: Charge) -> None:
        """Read what changed about one agent and do what follows from it."""
        now = time.monotonic()
        self._due.pop(charge.name, None)
        charge.refresh(self._shared, now)
        if not charge.met:
            self._meet(charge)
        charge.seen = core.look(self._wanted(charge), charge.seen)
        for _ in range(3):  # giving up, then nothing; stopping, then nothing
            step = core.decide(charge.name, self._wanted(charge), charge.seen, now, self._limits)
            if step is None:
                break
            self._carry_out(charge, step)
        charge.show(core.status_of(self._wanted(charge), charge.seen))
        due = core.due_s(self._wanted(charge), charge.seen, self._limits)
        due = min((t for t in (due, charge.recheck_s) if t is not None), default=None)
        if due is not None:
            self._due[charge.name] = due
        elif charge.absent and charge.process is None and not charge.agent.path.is_dir():
            self._sights.forget_agent(charge.name)
            del self._charges[charge.name]

    def _wanted(self, charge: Charge) -> core.Wanted:
        return replace(charge.wanted, want="down") if self._leaving else charge.wanted

    def _meet(self, charge: Charge) -> None:
        """The first look at an agent: what is wanted counts as known, and a living runner is adopted."""
        charge.met = True
        charge.seen = replace(charge.seen, asked=charge.wanted.asked, settings=charge.wanted.settings)
        if not charge.absent:
            self._adopt(charge)

    # -- steps -------------------------------------------------------------------------------------------------

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
                self._say("warning", "killed", agent=charge.name, reason=step.reason, processes=count)
            case GiveUp():
                if charge.bury(step.crashes):
                    charge.refresh(self._shared, now)
                    charge.seen = core.look(charge.wanted, core.buried(charge.seen))
                    self._say("error", "dead", agent=charge.name, crashes=step.crashes)
                else:
                    charge.seen = core.postponed(charge.seen, now, _LOCKED_S)

    def _start(self, charge: Charge) -> None:
        now = time.monotonic()
        if self._adopt(charge):
            return
        if locks.is_held(charge.agent.lock):
            charge.seen = core.postponed(charge.seen, now, _LOCKED_S)
            return
        charge.show("pending")
        try:
            process = self._hands.start(charge)
        except Config as error:
            charge.refuse(error)
            self._say("error", "refused", agent=charge.name, error=error.line())
            charge.seen = core.parked(charge.wanted, charge.seen)
            return
        except OSError as error:
            charge.seen = core.postponed(charge.seen, now, _TROUBLE_S)
            self._say("error", "not_started", agent=charge.name, error=str(error))
            return
        charge.process = process
        charge.seen = core.started(charge.wanted, charge.seen, now)
        self._listen(process.pidfd, lambda: self._ended(charge))
        self._listen(process.ready_fd, lambda: self._heard(charge))
        charge.show_started()

    def _adopt(self, charge: Charge) -> bool:
        process = self._hands.adopt(charge)
        if process is None:
            return False
        charge.process = process
        since_s = time.monotonic() - age_s(process)
        charge.seen = core.started(charge.wanted, charge.seen, since_s, ready=True)
        self._listen(process.pidfd, lambda: self._ended(charge))
        self._say("info", "adopted", agent=charge.name, pid=process.pid)
        return True

    # -- what is heard -----------------------------------------------------------------------------------------

    def _heard(self, charge: Charge) -> None:
        """Its readiness pipe: a newline, or an end of file, which says nothing more than that the deadline stays."""
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
            self._dirty.add(charge.name)
            foreign = charge.spec is not None and charge.spec.runner not in self._table
            if foreign and agents.read_hint(charge.agent.status) == "pending":
                fs.hint(charge.agent.status, "idle")  # programs of others need not know of `status`; ours write it

    def _close_ready(self, charge: Charge) -> None:
        if charge.process is not None and charge.process.ready_fd >= 0:
            self._unlisten(charge.process.ready_fd)
            os.close(charge.process.ready_fd)
            charge.process.ready_fd = -1

    def _ended(self, charge: Charge) -> None:
        process = charge.process
        if process is None:
            return
        self._close_ready(charge)
        self._unlisten(process.pidfd)
        charge.process = None
        self._dirty.add(charge.name)
        exit_ = self._hands.collect(charge, process, self._pids())
        now = time.monotonic()
        before, charge.seen = charge.seen, replace(charge.seen, running=False)  # whatever fails below, it is gone
        charge.forget_mail()
        charge.refresh(self._shared, now)
        wanted = self._wanted(charge)
        failed = exit_.code == exits.BAD_INPUT and self._fail_bad_message(charge)
        finished = agents.finished_mark(charge.agent) != process.mark
        charge.seen = core.exited(wanted, before, exit_, now, random.random(), finished=finished, failed_message=failed)
        kind = core.kind_of(exit_, failed)
        self._say("info", "exited", agent=charge.name, pid=process.pid, exit=exit_text(exit_), kind=kind)
        if before.term_s is None and kind in ("crash", "config"):
            due = core.due_s(wanted, charge.seen, self._limits)
            reason = "" if before.kill_s is None else f"not ready within {self._limits.ready_s:g} s"
            wait_s = None if due is None else max(0.0, due - now)
            charge.record_crash(process, exit_, kind, reason, wait_s)
        charge.show_ended(process, exit_)

    def _fail_bad_message(self, charge: Charge) -> bool:
        text = f"{charge.name} refused this message (exit status {exits.BAD_INPUT})"
        return bool(charge.fail_claimed("bad_input", text, f"see {charge.agent.stderr}"))

    def _pids(self) -> list[int]:
        return [charge.process.pid for charge in self._charges.values() if charge.process is not None]

    def _on_signal(self) -> None:
        numbers = os.read(self._signal_fd, 4096)
        if signal.SIGCHLD in numbers:
            tree.reap_strays(self._pids())
        if signal.SIGHUP in numbers:
            self._look_everywhere()
        if signal.SIGTERM in numbers or signal.SIGINT in numbers:
            if self._leaving:  # asked twice: no patience
                self._limits = replace(self._limits, grace_s=0.0)
            self._leave()

    def _on_bell(self) -> None:
        wake.drain(self._bell)
        self._sweep_at = min(self._sweep_at, time.monotonic() + _RING_S)

    def _on_news(self) -> None:
        news = self._sights.read()
        if news.everywhere:
            self._look_everywhere()
            return
        if news.agents:
            self._find_agents()
        if news.settings:
            self._sights.watch_home()
            self._shared = shared_token(self.home)
            self._dirty.update(self._charges)
        self._dirty.update(news.changed)
        for name, arrived in news.mail.items():
            if name in self._charges:
                self._mail_came(self._charges[name], arrived)

    def _mail_came(self, charge: Charge, arrived: set[str]) -> None:
        if charge.process is None:
            charge.seen = core.arrived(charge.seen)
            self._dirty.add(charge.name)
        elif any((charge.agent.inbox / name).exists() for name in arrived):
            wake.ring(self.home.wake_fifo(charge.name))  # what is claimed already was rung by its sender

    # -- looking everywhere --------------------------------------------------------------------------------------

    def _look_everywhere(self) -> None:
        self._sweep_at = time.monotonic() + (self.settings.sweep_s if self._sights.complete else _BLIND_SWEEP_S)
        self._shared = shared_token(self.home)
        self._sights.watch_home()
        self._find_agents()
        self._dirty.update(self._charges)
        for charge in self._charges.values():
            if charge.process is not None and charge.inbox_changed():
                wake.ring(self.home.wake_fifo(charge.name))

    def _find_agents(self) -> None:
        with os.scandir(self.home.agents) as entries:
            names = [e.name for e in entries if ids.is_agent(e.name) and e.is_dir(follow_symlinks=False)]
        for name in names:
            if name not in self._charges:
                self._charges[name] = Charge(self.home, name)
                self._dirty.add(name)
            self._sights.watch_agent(self._charges[name].agent)
        self._dirty.update(self._charges.keys() - set(names))

    # -- leaving -------------------------------------------------------------------------------------------------

    def _leave(self) -> None:
        """Stop all runners, then end. `want` files stay as they are: the next supervisor goes on."""
        self._leaving = True
        self._dirty.update(self._charges)

    def _is_quiet(self) -> bool:
        return not any(charge.process for charge in self._charges.values())

    def _consider_leaving(self) -> None:
        """On demand only: with nothing to do for long enough, leave under start.lock, after one more look."""
        now = time.monotonic()
        self._idle_check_at = now + max(0.02, self.settings.idle_s / 4)
        if self._is_needed():
            self._idle_since = None
            return
        if self._idle_since is None:
            self._idle_since = now
        if now - self._idle_since < self.settings.idle_s:
            self._idle_check_at = min(self._idle_check_at, self._idle_since + self.settings.idle_s)
            return
        lock = locks.acquire(self.home.start_lock)
        if lock is None:
            return  # somebody is making sure that we run: they will ring
        self._look_everywhere()
        for name in list(self._charges):
            self._charges[name].refresh(self._shared, now)
        if self._is_needed():
            lock.release()
            self._idle_since = None
            return
        self._start_lock = lock
        self._say("info", "leaving", reason="nothing to do")
        self._leave()

    def _is_needed(self) -> bool:
        for charge in self._charges.values():
            want = charge.wanted.want
            if want == "up" and charge.name != ROUTER:
                return True
            if want == "demand" and agents.has_mail(charge.agent):
                return True
        return has_running_goal(self.home)

    def _say(self, level: str, event: str, **fields: object) -> None:
        """One line on our own stderr, which is logs/supervisor.log when we were started on demand."""
        line = dumps({"ts": agents.now_text(), "level": level, "event": event, **fields})
        try:
            os.write(2, line + b"\n")
        except OSError:
            pass


def has_running_goal(home: Home) -> bool:
    """Whether a goal has begun, or is about to, and has not ended."""
    try:
        found = os.listdir(home.goals)
    except FileNotFoundError:
        return False
    goals = (home.goal(name) for name in found if ids.is_goal(name))
    return any(
        (goal.journal.exists() or goal.document.exists()) and not (goal.path / "ended").exists() for goal in goals
    )


def _catch_signals() -> tuple[int, int]:
    """(reading end, writing end) of a pipe that gets the number of each signal as a byte."""
    read, write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD):
        signal.signal(number, lambda *_: None)
    return read, write


def main(home: Home | None = None, *, on_demand: bool = False, settings: Settings | None = None) -> int:
    """Run a supervisor for `home` ($LOOM_HOME without one). Raises LoomError."""
    from loom.spool.layout import default_home

    pidfd.check_supported()
    home = home or open_home(default_home(os.environ))
    return Supervisor(home, on_demand=on_demand, settings=settings or settings_of(os.environ)).run()


def settings_of(env: Mapping[str, str]) -> Settings:
    """The settings with what the environment says. Raises Config."""
    text = env.get(IDLE_ENV)
    if not text:
        return Settings()
    try:
        return Settings(idle_s=float(text))
    except ValueError:
        raise Config(f"{IDLE_ENV} is {text!r}, not a number of seconds") from None
