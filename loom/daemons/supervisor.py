"""The supervisor: one thread, one poll, the processes of all agents (docs/protocol.md sections 6 and 7).

It hears, and has the ward look at whom it heard of. It keeps nothing that cannot be found again: what is wanted
lies in files, who lives in locks. Killed at any moment it leaves working runners behind, and the next one adopts
them.

    descriptor            what it says                                what follows
    signals               TERM, INT; HUP; CHLD                        leave; run the installed code; reap orphans
    run/wake/supervisor   somebody found no reader                    look everywhere
    inotify               want, agent.json, agents/; mail by mv       look at these agents; ring or start
    pidfds                a runner ended                              sweep its tree, read its exit, plan again
    ready pipes           a runner is ready                           its deadline is off
    run/filters.sock      a command has a filter to be carried out    fork; reap it when it has ended
    the calendar          a job is due                                start `loom schedule run-due JOB`

All of these may be lost, so it looks everywhere each thirty seconds as well.
"""

from __future__ import annotations

import math
import os
import select
import signal
import time
import traceback
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

from loom.core.supervision import Limits
from loom.daemons import handover, programs, reloading
from loom.daemons.calendar import Calendar
from loom.daemons.incarnations import Incarnations
from loom.daemons.sights import Sights
from loom.daemons.ward import TROUBLE_S, Ward
from loom.daemons.warm import Filters
from loom.proc import enclosure, pidfd, reexec, spawn, tree
from loom.proc.notify import Manager
from loom.spool import agents, fs, goals, locks, running, schedules, wake
from loom.spool.home import disk_error, open_home
from loom.spool.layout import Home, default_home
from loom.wire import exits
from loom.wire.agent import AgentSpec, Restart
from loom.wire.errors import Config, LoomError, TryLater
from loom.wire.jsontext import dumps
from loom.wire.record import compile_all, field, record

IDLE_ENV = "LOOM_SUPERVISOR_IDLE_S"
READY_ENV = "LOOM_READY_FD"
ROUTER = "router"
_RING_S = 0.1  # however often the doorbell rings, everywhere is looked at this seldom
_TELL_AGAIN_S = 600.0
_BLIND_SWEEP_S = 2.0  # in place of thirty seconds when not everything can be watched
_SLICE = 64  # agents of which nothing was heard, between two looks at what was; runners that are forked together
# Looking everywhere costs 50 to 100 microseconds an agent. It is made so much rarer for each of them that it takes
# less than a thousandth of a processor, and less than a twentieth when somebody rings or not everything can be watched.
_SWEEP_EACH_S, _HASTY_EACH_S = 0.2, 0.0025


@record
class Settings:
    """limits: see loom.core.supervision. idle_s: without anything to do for so long, an on-demand supervisor leaves."""

    limits: Limits = field(default_factory=Limits)
    idle_s: float = 30.0
    sweep_s: float = 30.0


class Supervisor:
    """`table` replaces the table of runners, in tests; `env` is what runners get a clean part of."""

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
        self._on_demand = on_demand
        self._table = programs.RUNNERS if table is None else table
        self._env = env
        self._on_fd: dict[int, Callable[[], None]] = {}
        self._sweep_at = 0.0
        self._swept_at = -math.inf
        self._idle_since: float | None = None
        self._idle_check_at = 0.0
        self._start_lock: locks.Lock | None = None
        self._told: dict[str, tuple[str, float]] = {}  # by agent ("": ourselves): (what went wrong, when told)
        self._manager = Manager(os.environ)
        self._beat_at = 0.0  # when the service manager wants to hear from us next
        self._displaced = False  # our lock is not the home's any more: whoever takes that one serves the home
        self._given, self._state = reexec.given(os.environ)
        self._held: set[int] = set()  # the signals that were blocked when we began
        self._taken: handover.Handover | None = None  # from the code that this process ran before

    # -- life --------------------------------------------------------------------------------------------------

    def run(self) -> int:
        """Serve until told to leave. Raises TryLater when this home has a supervisor, Config where it cannot run."""
        pidfd.check_supported()
        if self._given == "try":
            reloading.try_out(self._state, self._table)
            self._say_ready()
            return exits.DONE
        with self._take_over() if self._given else self._own_home() as self._lock:
            self._set_up()
            try:
                self._turn(0.0)
                self._say_ready()
                self._manager.tell("READY=1", f"STATUS=serving {self.home.path}")
                while not (self._ward.leaving and not self._ward.pids()):
                    self._turn(self._timeout_s())
                # Whatever is still below us has no runner any more and no agent that it belongs to.
                # Filters belong to their commands.
                self._filters.close()
                tree.kill_found(lambda: tree.below(tree.snapshot(), os.getpid(), self._filters.pids()))
                tree.reap_strays(())
            finally:
                self._manager.tell("STOPPING=1")
                self._tear_down()
        if self._start_lock is not None:
            self._start_lock.release()
        return exits.DONE

    def _own_home(self) -> locks.Lock:
        """Whoever has signed the lock may be signalled: that waits until we hear signals, as it does over an exec."""
        self._held = reexec.hold_signals()
        try:
            return self._signed()
        except BaseException:
            reexec.let_signals(self._held)
            raise

    def _signed(self) -> locks.Lock:
        lock = locks.acquire(self.home.supervisor_lock)
        if lock is None:
            other = locks.holder(self.home.supervisor_lock)
            pid = f" with pid {other.pid}" if other else ""
            raise TryLater(f"a supervisor{pid} serves {self.home.path} already", hint="see: loom supervisor status")
        try:
            lock.sign(locks.own_incarnation())
            fs.hint(self.home.supervisor_pid, str(os.getpid()))
        except OSError:
            lock.release()
            raise
        return lock

    def _take_over(self) -> locks.Lock:
        """Go on with what this very process held before the exec. Raises TryLater: then the next one adopts all."""
        try:
            self._taken = handover.decode(self._state)
            handover.keep(self._taken)
            return locks.take_over(self._taken.lock, self.home.supervisor_lock)
        except ValueError as error:
            raise TryLater(f"the supervisor cannot go on from its former code: {error}") from None

    def _set_up(self) -> None:
        tree.become_subreaper()
        tree.set_name("loom-supervisor")
        os.umask(0o077)
        self._epoll = select.epoll()
        self._signals, self._signals_write = _catch_signals()
        reexec.let_signals(self._held if self._taken is None else self._taken.blocked)
        self.listen(self._signals, self.heed_signals)
        self._bell = wake.listen(self.home.wake_fifo("supervisor"))
        self.listen(self._bell, self._on_bell)
        self._sights = Sights(self.home)
        for fd in self._sights.watch.fds:
            self.listen(fd, self._on_news)
        if not self._sights.watch.complete:
            self.say("warning", "blind", error=self._sights.watch.why)
        for line in programs.preload(self._table):
            self.say("warning", "not_loaded", error=line)
        programs.warm(self.home)
        enclosure.available()  # tried once, for all our forks
        taken = self._taken
        self._hands = Incarnations(self.home, self._table, self._env, *((taken.alone, taken.nofile) if taken else ()))
        self._ward = Ward(self.home, self._hands, self._table, self.settings.limits, self)
        self._calendar = Calendar(self.home, self._env, self)
        self._filters = Filters(self.home, self._env, self)
        self._reloading = reloading.Reloading(self.home, self._env, self._manager, self, taken)
        if taken is not None:
            self._find_watching(taken.agents)
            self._ward.go_on(taken.agents)
            self._filters.go_on(taken.filters, dict(taken.connections))
        self._safely("", self._filters.look)
        self._reloading.show()
        self._safely("", self._provide_router)
        compile_all()
        spawn.freeze()

    def _tear_down(self) -> None:
        if not self._displaced:
            fs.remove(self.home.supervisor_pid)
            fs.remove(self.home.supervisor_record)
        self._hands.close()
        self._sights.watch.close()
        self._epoll.close()
        signal.set_wakeup_fd(-1)
        for fd in (self._bell, self._signals, self._signals_write):
            if fd >= 0:
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

    @staticmethod
    def _say_ready() -> None:
        fd = os.environ.pop(READY_ENV, "")
        if fd.isdigit():
            try:
                os.write(int(fd), b"\n")
                os.close(int(fd))
            except OSError:
                pass  # whoever waited has gone

    # -- the loop ----------------------------------------------------------------------------------------------

    def listen(self, fd: int, handler: Callable[[], None]) -> None:
        """Call `handler` whenever `fd` is readable."""
        self._epoll.register(fd, select.EPOLLIN)
        self._on_fd[fd] = handler

    def unlisten(self, fd: int) -> None:
        if self._on_fd.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    def children(self) -> list[int]:
        """The pids of those whose end is somebody's: runners, trials, filters, who serves jobs. The rest came to us."""
        return [*self._ward.pids(), *self._reloading.pids(), *self._filters.pids(), *self._calendar.pids()]

    def _turn(self, timeout_s: float) -> None:
        self._hear(timeout_s)
        if time.monotonic() >= self._sweep_at:
            self._safely("", self._look_everywhere)
        self._serve_those_due()
        if not self._ward.leaving and time.monotonic() >= self._calendar.due_s:
            self._safely("", self._calendar.serve)
        if time.monotonic() >= self._reloading.due_s:
            self._safely("", self._reloading.end_trial)
        if self._on_demand and not self._ward.leaving and time.monotonic() >= self._idle_check_at:
            self._safely("", self._consider_leaving)
        # Here and nowhere else: a loop that hangs in any of these is not heard of, and is ended.
        if time.monotonic() >= self._beat_at:
            self._manager.tell("WATCHDOG=1")
            self._beat_at = time.monotonic() + self._manager.every_s

    def _hear(self, timeout_s: float) -> None:
        for fd, _ in self._epoll.poll(timeout_s, 512):
            handler = self._on_fd.get(fd)
            if handler is not None:
                self._safely("", handler)

    def _timeout_s(self) -> float:
        times = [self._sweep_at, self._beat_at, self._reloading.due_s, *self._ward.due.values()]
        if not self._ward.leaving:
            times.append(self._calendar.due_s)
            if self._on_demand:
                times.append(self._idle_check_at)
        return 0.0 if self._ward.dirty or self._ward.unhurried else max(0.0, min(times) - time.monotonic())

    def _serve_those_due(self) -> None:
        now, ward = time.monotonic(), self._ward
        names = ward.dirty | {name for name, due in ward.due.items() if due <= now}
        ward.dirty = set()
        names.update(ward.next_unhurried(_SLICE))
        ordered = sorted(names)
        for at in range(0, len(ordered), _SLICE):
            if at:
                self._hear(0.0)  # that some are ready already, above all
            for name in ordered[at : at + _SLICE]:
                self._safely(name, lambda name=name: self._serve(name))  # type: ignore[misc]
            for name, process in ward.launch().items():
                self._safely(name, lambda name=name, process=process: ward.launched(name, process))  # type: ignore[misc]

    def _serve(self, name: str) -> None:
        charge = self._ward.charges.get(name)
        if charge is None or not self._ward.serve(charge):
            self._ward.due.pop(name, None)
            self._sights.forget_agent(name)

    def _safely(self, name: str, work: Callable[[], None]) -> None:
        """The top of the loop: whatever goes wrong for one agent, or with the disk, the others are served on."""
        try:
            work()
        except Exception as error:
            self._tell(name, error)
            again = time.monotonic() + TROUBLE_S
            if name:
                self._ward.due[name] = again
            else:
                self._sweep_at, self._idle_check_at = min(self._sweep_at, again), again

    def _tell(self, name: str, error: Exception) -> None:
        """Once, and again when it is something else or has gone on for long: our log shall not fill a disk."""
        if isinstance(error, OSError):
            tried = f"{name} cannot be served" if name else "the supervisor cannot look at its home"
            told: dict[str, object] = {"error": disk_error(error, tried, self.home.path).line()}
        else:
            told = {"error": str(error), "traceback": traceback.format_exc()}
        now = time.monotonic()
        before, when = self._told.get(name, ("", 0.0))
        if before != told["error"] or now - when > _TELL_AGAIN_S:
            self._told[name] = (str(told["error"]), now)
            self.say("error", "disk" if isinstance(error, OSError) else "bug", agent=name, **told)

    # -- what is heard -----------------------------------------------------------------------------------------

    def heed_signals(self) -> None:
        """Do what the signals that have come ask for."""
        try:
            numbers = os.read(self._signals, 4096)
        except BlockingIOError:
            return
        if signal.SIGCHLD in numbers:
            tree.reap_strays(self.children())
        if signal.SIGHUP in numbers:
            self._safely("", self._look_everywhere)
            self._reloading.ask()
        if signal.SIGTERM in numbers or signal.SIGINT in numbers:
            if self._ward.leaving:  # asked twice: no patience
                self._ward.limits = replace(self._ward.limits, grace_s=0.0)
            self._ward.leave()

    def _on_bell(self) -> None:
        wake.drain(self._bell)
        # By far the most ring about mail that inotify has told of already.
        self._sweep_at = min(self._sweep_at, max(time.monotonic() + _RING_S, self._swept_at + self._least_s(True)))

    def _on_news(self) -> None:
        news = self._sights.read()
        if news.everywhere:
            self._look_everywhere()
            return
        for name in news.agents:
            if (charge := self._ward.take_in(name)) is not None:
                self._sights.watch_agent(charge.agent)
        if news.settings:
            self._sights.watch_home()
            self._ward.settings_changed()
        self._ward.dirty |= news.changed
        for name in news.stirred:
            self._ward.stirred(name)
        for name, arrived in news.mail.items():
            if name in self._ward.charges:
                self._ward.mail_came(self._ward.charges[name], arrived)

    def _look_everywhere(self) -> None:
        self._safely("", self._look_at_home)  # without a doorbell agents are looked at all the same
        self._swept_at, blind = time.monotonic(), not self._sights.watch.complete
        usual_s = _BLIND_SWEEP_S if blind else self.settings.sweep_s
        self._sweep_at = self._swept_at + max(usual_s, self._least_s(blind))
        self._sights.watch_home()
        self._find_agents()
        self._ward.look_at_all()
        self._calendar.look()

    def _least_s(self, hasty: bool) -> float:
        """How long at least between two looks at everybody."""
        return len(self._ward.charges) * (_HASTY_EACH_S if hasty else _SWEEP_EACH_S)

    def _look_at_home(self) -> None:
        """Leave when the home, or its `run/` with our lock, was removed or moved away; mend what else is lost there."""
        if not wake.is_heard(self.home.supervisor_lock, self._lock.fd):
            if not self._displaced:
                self.say("error", "displaced", error=f"{self.home.supervisor_lock} is gone or another one; leaving")
            self._displaced = True
            self._ward.leave()
        elif not wake.is_heard(fifo := self.home.wake_fifo("supervisor"), self._bell):
            if self._bell >= 0:
                self.unlisten(self._bell)
                os.close(self._bell)
            self._bell = -1  # its number is anybody's now, and listening may fail
            self._bell = wake.listen(fifo)
            self.listen(self._bell, self._on_bell)
        if not self._ward.leaving:
            self._filters.look()

    def _find_agents(self) -> None:
        for charge in self._ward.find():
            self._sights.watch_agent(charge.agent)

    # -- other code ----------------------------------------------------------------------------------------------

    @property
    def leaving(self) -> bool:
        return self._ward.leaving

    @property
    def groups(self) -> str:
        """Where our agents have cgroups of their own, "" where they have none."""
        return "" if self._hands.groups is None else str(self._hands.groups.place)

    def hand_over(self, blocked: set[int]) -> handover.Handover:
        """What other code needs to go on in our place."""
        return handover.Handover(
            who=locks.own_incarnation(),
            lock=self._lock.fd,
            alone=self._hands.alone,
            nofile=self._hands.nofile,
            blocked=tuple(sorted(blocked)),
            answered=self._reloading.answered,
            code=running.code(),
            agents=self._ward.hand_over(),
            filters=tuple(self._filters.pids()),
            connections=tuple(self._filters.connections().items()),
        )

    def _find_watching(self, names: Iterable[str]) -> None:
        """Listen to these agents before they are looked at: what comes after the look is heard of then."""
        self._sights.watch_home()
        for name in names:
            self._sights.watch_agent(self.home.agent(name))

    # -- leaving by itself ---------------------------------------------------------------------------------------

    def _consider_leaving(self) -> None:
        """On demand only: with nothing to do for long enough, leave under start.lock, after one more look."""
        now = time.monotonic()
        self._idle_check_at = now + max(0.02, self.settings.idle_s / 4)
        if self._is_needed():
            self._idle_since = None
            return
        if self._idle_since is None:
            self._idle_since = now
        leave_at = self._idle_since + self.settings.idle_s
        if now < leave_at:
            self._idle_check_at = min(self._idle_check_at, leave_at)
            return
        lock = locks.acquire(self.home.start_lock)
        if lock is None:
            return  # somebody is making sure that we run; looked at again soon
        self._find_agents()
        if self._is_needed(anew=True):
            lock.release()
            self._idle_since = None
            return
        self._start_lock = lock
        self.say("info", "leaving", reason="nothing to do")
        self._ward.leave()

    def _is_needed(self, *, anew: bool = False) -> bool:
        needed = self._ward.is_needed(but=ROUTER, anew=anew)
        return needed or bool(goals.live(self.home)) or bool(schedules.names(self.home))

    def say(self, level: str, event: str, **fields: object) -> None:
        """One line on our own stderr, which is logs/supervisor.log when we were started on demand."""
        line = dumps({"ts": agents.now_text(), "level": level, "event": event, **fields})
        try:
            os.write(2, line + b"\n")
        except OSError:
            pass


def _catch_signals() -> tuple[int, int]:
    """(reading end, writing end) of a pipe that gets the number of each signal as a byte."""
    read, write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD):
        signal.signal(number, lambda *_: None)
    return read, write


def main(home: Home | None = None, *, on_demand: bool = False, settings: Settings | None = None) -> int:
    """Run a supervisor for `home` ($LOOM_HOME without one). Raises LoomError; TryLater when the disk refuses."""
    pidfd.check_supported()
    home = home or open_home(default_home(os.environ))
    try:
        return Supervisor(home, on_demand=on_demand, settings=settings or settings_of(os.environ)).run()
    except OSError as error:
        trouble = disk_error(error, "the supervisor cannot run", home.path)
        raise TryLater(str(trouble), hint=trouble.hint, kind=trouble.kind) from error


def settings_of(env: Mapping[str, str]) -> Settings:
    """The settings with what the environment says. Raises Config."""
    text = env.get(IDLE_ENV)
    if not text:
        return Settings()
    try:
        return Settings(idle_s=float(text))
    except ValueError:
        raise Config(f"{IDLE_ENV} is {text!r}, not a number of seconds") from None
