"""Pure supervision decisions: from what is wanted and what is seen to what to do next (docs/protocol.md section 7).

Enters: records, and the present time and chance as arguments. Times are seconds of one monotonic clock.
Stays out: files, processes, signals, clocks, chance, logging. The loop that carries the steps out and reports
what came of them: loom/daemons/supervisor.py.

    what ended          crash?  policy always        on-failure     never
    0                   no      again                stays stopped  stays stopped     demand: again when there is mail
    65, message failed  no      again, at once       same           stays stopped
    75                  no      again, backoff       same           stays stopped
    78                  no      when a person changed something: want, agent.json, config.yml or secrets
    anything else       yes     again, backoff       same           stays stopped     `limit` of them: dead
    sent away by us     no      as `want` says, at once
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Literal

from loom.core.backoff import HEALTHY_S, delay_s
from loom.wire import exits
from loom.wire.agent import Restart, Want
from loom.wire.record import field, record

REKILL_S = 5.0  # a killed process that is still there (uninterruptible I/O) is killed again after this time


@record
class Limits:
    """grace_s: between SIGTERM and SIGKILL. ready_s: within which a started runner must say that it is ready."""

    grace_s: float = 10.0
    ready_s: float = 60.0


@record
class Wanted:
    """What the files ask of one agent now.

    mail      there are waiting or claimed messages (only looked at when want is `demand`)
    asked     changes whenever a person, or a program for one, writes `want`
    spec      changes with the content of agent.json and prompt.md
    settings  changes with everything that could mend a configuration error
    broken    agent.json cannot be read
    """

    want: Want
    restart: Restart = field(default_factory=Restart)
    mail: bool = False
    asked: str = ""
    spec: str = ""
    settings: str = ""
    broken: bool = False


Parked = Literal["", "done", "config"]
Last = Literal["", "done", "later", "crash", "stopped"]


@record
class Seen:
    """What the supervisor knows about one agent. Made by the functions below, never changed by hand.

    asked, settings   what of Wanted has been taken into account: a difference is news
    ran_asked, ran_spec   Wanted.asked and .spec when the present process was started
    n                 restarts since the last sign of health; the exponent of the wait
    crashes           times of crashes since the last finished message, those within the window
    parked            not started again by itself: it is done, or its configuration must change first
    """

    running: bool = False
    ready: bool = False
    started_s: float = 0.0
    term_s: float | None = None
    kill_s: float | None = None
    ran_asked: str = ""
    ran_spec: str = ""
    n: int = 0
    crashes: tuple[float, ...] = ()
    start_after_s: float = 0.0
    parked: Parked = ""
    last: Last = ""
    asked: str = ""
    settings: str = ""


@record
class Exit:
    """How a process ended: an exit status, a signal's number, or neither when nobody can tell."""

    code: int | None = None
    signal: int | None = None


@record
class Start:
    agent: str


@record
class Stop:
    """SIGTERM to the runner: it finishes or records its step and leaves."""

    agent: str


@record
class Kill:
    """SIGKILL to the runner and everything below it."""

    agent: str
    reason: Literal["grace", "not_ready"]


@record
class GiveUp:
    """Too many crashes without a finished message: failure replies, then `want` becomes dead."""

    agent: str
    crashes: int


Step = Start | Stop | Kill | GiveUp
Kind = Literal["done", "bad_message", "later", "config", "crash"]
_KINDS: Mapping[int, Kind] = {exits.DONE: "done", exits.TRY_LATER: "later", exits.CONFIG: "config"}


def kind_of(exit_: Exit, failed_message: bool = False) -> Kind:
    """What an exit means. 65 counts as a message's fault only when one was claimed and could be failed."""
    if exit_.code == exits.BAD_INPUT and failed_message:
        return "bad_message"
    return _KINDS.get(exit_.code, "crash") if exit_.code is not None else "crash"


# -- what to do ------------------------------------------------------------------------------------------------


def plan(wanted: Mapping[str, Wanted], seen: Mapping[str, Seen], now_s: float, limits: Limits) -> list[Step]:
    """What the supervisor must do now, at most one step an agent, in name order. Nothing is done here."""
    steps = (decide(name, wanted[name], seen.get(name, Seen()), now_s, limits) for name in sorted(wanted))
    return [step for step in steps if step is not None]


def decide(name: str, w: Wanted, s: Seen, now_s: float, limits: Limits) -> Step | None:
    """The next step for one agent, or None. After a step was carried out and recorded, ask again."""
    due = due_s(w, s, limits)
    if due is None or due > now_s:
        return None
    if not s.running:
        return GiveUp(name, len(s.crashes)) if _given_up(w, s) else Start(name)
    if s.term_s is not None or s.kill_s is not None:
        return Kill(name, "grace")
    return Stop(name) if _unwanted(w, s) else Kill(name, "not_ready")


def due_s(w: Wanted, s: Seen, limits: Limits) -> float | None:
    """When the next step is due: in the past means now, None means that only news can change anything."""
    if not s.running:
        startable = w.want == "up" or (w.want == "demand" and w.mail)
        if _given_up(w, s):
            return s.start_after_s
        return s.start_after_s if startable and not s.parked and not w.broken else None
    if s.kill_s is not None:
        return s.kill_s + REKILL_S
    if s.term_s is not None:
        return s.term_s + limits.grace_s
    if _unwanted(w, s):
        return s.started_s
    return None if s.ready else s.started_s + limits.ready_s


def restarting(w: Wanted, s: Seen) -> bool:
    """Whether somebody asked for the agent while its present process ran: its end is then the start of the next."""
    return s.running and w.asked != s.asked and w.want in ("up", "demand")


def _given_up(w: Wanted, s: Seen) -> bool:
    return w.want in ("up", "demand") and not s.parked and len(s.crashes) >= w.restart.limit


def _unwanted(w: Wanted, s: Seen) -> bool:
    """Whether the running process has to go: not wanted, or asked for anew with another spec than it runs by.

    A changed agent.json alone stops nobody in the middle of work, and neither does asking for what runs already.
    """
    if w.want in ("down", "dead"):
        return True
    return not w.broken and w.asked != s.ran_asked and w.spec != s.ran_spec


def status_of(w: Wanted, s: Seen) -> str:
    """The word for people in `status` while no process runs; empty while one does, which then writes its own."""
    if s.running:
        return ""
    if w.want in ("down", "dead"):
        return "dead" if w.want == "dead" else "stopped"
    if w.broken or s.parked == "config":
        return "error"
    if s.parked == "done":
        return "stopped"
    if w.want == "demand" and not w.mail:
        return "idle"
    return "restarting" if s.last in ("later", "crash") else "pending"


# -- what became of it -----------------------------------------------------------------------------------------


def look(w: Wanted, s: Seen) -> Seen:
    """Take news from the files into account. Asking means: now, with n = 0, whatever was before."""
    if s.running:
        return s  # what is asked meanwhile counts when this process ends
    if w.asked != s.asked:
        fresh = replace(s, asked=w.asked, settings=w.settings)
        return _anew(fresh) if w.want in ("up", "demand") else fresh
    if s.parked == "config" and w.settings != s.settings:
        return replace(_anew(s), settings=w.settings)
    return s


def _anew(s: Seen) -> Seen:
    return replace(s, n=0, crashes=(), start_after_s=0.0, parked="", last="")


def arrived(s: Seen) -> Seen:
    """A new message came: an agent that left with 0 need not wait out its delay."""
    return replace(s, start_after_s=0.0) if not s.running and s.last == "done" else s


def started(w: Wanted, s: Seen, now_s: float, *, ready: bool = False) -> Seen:
    """A process was started, or, with `ready`, found at work and adopted."""
    return replace(
        s,
        running=True,
        ready=ready,
        started_s=now_s,
        term_s=None,
        kill_s=None,
        ran_asked=w.asked,
        ran_spec=w.spec,
        asked=w.asked,
        settings=w.settings,
    )


def became_ready(s: Seen) -> Seen:
    return replace(s, ready=True)


def sent_away(s: Seen, now_s: float) -> Seen:
    return replace(s, term_s=now_s)


def killed(s: Seen, now_s: float) -> Seen:
    return replace(s, kill_s=now_s)


def parked(w: Wanted, s: Seen) -> Seen:
    """It could not be started because of its configuration: the same as an exit with 78."""
    return replace(s, parked="config", settings=w.settings, asked=w.asked)


def postponed(s: Seen, now_s: float, wait_s: float) -> Seen:
    """Starting or giving up did not work for now (no processes, no space, lock held): once more after `wait_s`."""
    return replace(s, start_after_s=now_s + wait_s)


def buried(s: Seen) -> Seen:
    """Giving up is done and written; what comes next is somebody asking."""
    return replace(s, n=0, crashes=(), parked="", last="crash")


def exited(
    w: Wanted,
    s: Seen,
    exit_: Exit,
    now_s: float,
    draw: float,
    *,
    finished: bool = False,
    failed_message: bool = False,
    anew: bool = False,
) -> Seen:
    """The running process ended.

    finished        it finished (acknowledged or failed) a message since it was started
    failed_message  it left with 65 and its claimed message has been failed for it
    anew            it left only because it was started for another agent.json than the present one
    draw            uniform in [0, 1), for the jitter
    """
    rest = replace(s, running=False, ready=False, term_s=None, kill_s=None, asked=w.asked)
    if s.term_s is not None:
        return replace(_anew(rest), start_after_s=now_s, last="stopped")
    kind = kind_of(exit_, failed_message)
    if anew or restarting(w, s):
        return _anew(rest)
    if kind == "config":
        return replace(
            rest, parked="config", last=""
        )  # settings stay those it was started with: a change since is news
    return _again(w, replace(rest, last="crash" if kind == "crash" else "later"), kind, now_s, draw, finished)


def _again(w: Wanted, s: Seen, kind: Kind, now_s: float, draw: float, finished: bool) -> Seen:
    finished = finished or kind == "bad_message"
    healthy = finished or now_s - s.started_s >= HEALTHY_S
    n = 0 if healthy else s.n
    wait_s = delay_s(n, draw, w.restart.base_s, w.restart.max_s)
    crashes = () if finished else s.crashes
    if kind == "crash":
        crashes = (*(t for t in crashes if now_s - t <= w.restart.window_s), now_s)
    elif kind == "done":
        return _after_done(w, replace(s, n=n, crashes=crashes, last="done"), now_s, draw, finished)
    if w.restart.policy == "never":
        return replace(s, n=0, crashes=(), parked="done")
    if kind == "bad_message":
        return replace(s, n=0, crashes=(), start_after_s=now_s)
    if len(crashes) >= w.restart.limit:
        wait_s = 0.0  # what is left to do is giving up
    return replace(s, n=n + 1, crashes=crashes, start_after_s=now_s + wait_s)


def _after_done(w: Wanted, s: Seen, now_s: float, draw: float, finished: bool) -> Seen:
    if w.want == "demand":
        # Dormant. Mail may have come while it left, so the next start is at once; but mail that it leaves lying every
        # time would have it started for ever: hence the growing wait from the second time on.
        if finished or s.n == 0:
            return replace(s, n=0 if finished else 1, start_after_s=now_s)
        return replace(s, n=s.n + 1, start_after_s=now_s + delay_s(s.n - 1, draw, w.restart.base_s, w.restart.max_s))
    if w.want == "up" and w.restart.policy != "always":
        return replace(s, n=0, crashes=(), parked="done")
    least_s = delay_s(0, 0.0, w.restart.base_s, w.restart.max_s)
    return replace(s, n=0, start_after_s=now_s + least_s)
