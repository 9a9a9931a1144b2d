"""Whether an agent that works gets on, and what is done when it does not: pure (docs/liveness.md, ADR-0029).

Three levels: it is *alive*, it *responds*, it *gets on*. A way not to is a shape: it has a name, one owner who notices
and acts, and one action. All of them are in loom/wire/hang.py; its own deadline each owner knows.

`look` is the supervisor's part: what it sees of one process that works, at one moment, to what must be done about it.
Time is counted, not read: only what passed between two looks that came in time counts. So neither a clock that was
set, nor a machine that slept, nor a supervisor that was stopped, makes a working agent look hung.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from loom.wire.errors import Config
from loom.wire.hang import SHAPES, Action, line
from loom.wire.record import record, replace

LATE_S = 5.0  # a look so much later than it was due says more about who looks than about who is looked at
LOOKS = 4  # in the shortest deadline that applies
LEAST_PAUSE_S, MOST_PAUSE_S = 0.02, 60.0


@record
class Deadlines:
    """In seconds, of the supervisor's shapes.

    respond_s   without a sign of a runner that promised one, beyond what it announced
    stopped_s   stopped by a signal, with work to do
    lock_s      its lock is held by a process that is no runner of it
    claim_s     one message claimed; 0: as long as it takes
    """

    respond_s: float = 600.0
    stopped_s: float = 60.0
    claim_s: float = 0.0
    lock_s: float = 10.0


_OPTIONS = {"respond_s": 0.1, "claim_s": 0.0}  # of agent.json, and how small they may be


def own(options: Mapping[str, Any]) -> dict[str, float]:
    """What an agent's options say of its deadlines. Raises Config."""
    given = {name: options[name] for name in _OPTIONS if name in options}
    for name, value in given.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not _OPTIONS[name] <= value < 1e9:
            raise Config(f"option {name} is {value!r:.40}, expected a number of seconds")
    return given


def deadlines(settings: Mapping[str, Any], options: Mapping[str, float]) -> Deadlines:
    """Those of an agent with these own options, else those of the settings."""
    return Deadlines(
        options.get("respond_s", settings["liveness.respond"]),
        settings["liveness.stopped"],
        options.get("claim_s", settings["liveness.claim"]),
        settings["liveness.lock"],
    )


@record
class Facts:
    """What is seen of a running process.

    message     the oldest message it has claimed, empty when none
    mail        messages wait in its inbox
    sign        changes with its turn's record and its heartbeat file
    promised_s  for how long at most it announced to give no sign; None: it has promised none at all
    state       the kernel's letter for it: T is stopped by a signal, t held by a debugger
    """

    message: str = ""
    mail: bool = False
    sign: str = ""
    promised_s: float | None = None
    state: str = ""


@record
class Watched:
    """What is known between two looks; the seconds are those that count.

    quiet_s   without a new sign          claimed_s  since this message was first seen claimed
    idle_s    with mail and none claimed  stopped_s  stopped by a signal
    """

    looked_s: float
    pause_s: float
    message: str = ""
    sign: str = ""
    quiet_s: float = 0.0
    claimed_s: float = 0.0
    idle_s: float = 0.0
    stopped_s: float = 0.0


@record
class Hang:
    """A shape that was found, and why in one line that begins with its name."""

    shape: str
    why: str

    @property
    def action(self) -> Action:
        return SHAPES[self.shape].action


def look(
    before: Watched | None, facts: Facts, now_s: float, deadlines: Deadlines
) -> tuple[Watched | None, Hang | None]:
    """What is known after this look, None when it has nothing to do and need not be looked at; and what was found.

    What was found counts from zero again: a nudge that does not help is given again after as long.
    """
    if not facts.message and not facts.mail:
        return None, None
    passed_s = 0.0 if before is None else _passed_s(before, now_s)
    known = _counted(before, facts, passed_s, now_s, deadlines)
    hang = _found(known, facts, deadlines)
    if hang is not None:
        known = replace(known, quiet_s=0.0, claimed_s=0.0, idle_s=0.0, stopped_s=0.0)
    return known, hang


def _passed_s(before: Watched, now_s: float) -> float:
    """The time that counts since the last look; below zero: none of it, and none of what was before."""
    elapsed_s = now_s - before.looked_s
    if elapsed_s > before.pause_s + LATE_S or elapsed_s < 0:
        return -1.0
    return min(elapsed_s, before.pause_s)


def _counted(before: Watched | None, facts: Facts, passed_s: float, now_s: float, deadlines: Deadlines) -> Watched:
    fresh = Watched(now_s, pause_s(facts, deadlines), facts.message, facts.sign)
    if before is None or passed_s < 0:
        return fresh
    same = facts.message == before.message
    is_quiet = bool(facts.message) and same and facts.sign == before.sign and facts.state not in ("T", "t")
    return replace(
        fresh,
        quiet_s=before.quiet_s + passed_s if is_quiet else 0.0,
        claimed_s=before.claimed_s + passed_s if facts.message and same else 0.0,
        idle_s=before.idle_s + passed_s if not facts.message and same and facts.state not in ("T", "t") else 0.0,
        stopped_s=before.stopped_s + passed_s if facts.state == "T" else 0.0,
    )


def pause_s(facts: Facts, deadlines: Deadlines) -> float:
    """How long until the next look: several within the shortest deadline, so that each counts little."""
    applying = [deadlines.respond_s, deadlines.stopped_s]
    if deadlines.claim_s and facts.message:
        applying.append(deadlines.claim_s)
    return min(max(min(applying) / LOOKS, LEAST_PAUSE_S), MOST_PAUSE_S)


def _found(known: Watched, facts: Facts, deadlines: Deadlines) -> Hang | None:
    if deadlines.claim_s and known.claimed_s >= deadlines.claim_s:
        return _hang("claimed_too_long", f"not answered within {deadlines.claim_s:g} s of its claim")
    if facts.state == "T":
        if known.stopped_s < deadlines.stopped_s:
            return None
        return _hang("stopped", f"stopped by a signal for {deadlines.stopped_s:g} s with work to do; told to go on")
    if facts.promised_s is not None and facts.message:
        most_s = deadlines.respond_s + facts.promised_s
        if known.quiet_s >= most_s:
            return _hang("not_responding", f"no sign of work on {facts.message} for {most_s:g} s; restarted")
    if not facts.message and known.idle_s >= deadlines.respond_s:
        return _hang("unclaimed", f"mail has waited for {deadlines.respond_s:g} s and none is claimed; rung again")
    return None


def _hang(shape: str, text: str) -> Hang:
    return Hang(shape, line(shape, text))
