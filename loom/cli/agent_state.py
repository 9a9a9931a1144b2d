"""How an agent is: what is wanted of it, and the truth from its lock; what its one-value files say comes after.

`status`, `pid` and `started_at` are written for people and may be stale after a crash. Where they contradict the
lock, the lock is right.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

from loom.spool import agents, crashes, heartbeat, locks
from loom.spool import home as homes
from loom.spool.layout import AgentDir, Home
from loom.wire import hang
from loom.wire.agent import Want
from loom.wire.errors import Config, Disk, NotFound, raise_lack
from loom.wire.times import parse_us, rfc3339

_ALIVE = ("idle", "running")
_UNITS = (("d", 86_400), ("h", 3600), ("m", 60), ("s", 1))
_WAITING_TO_START = ("pending", "restarting")


@dataclass(frozen=True, slots=True)
class State:
    """How one agent is now.

    status   idle running | pending restarting crashed dormant stopped dead error; `dormant` waits for mail
    message  what it works on, empty when it works on nothing; message_since  when it was claimed, over restarts
    reason   why it does not work although it should, or does not get on, in one line; empty when all is well
    shape    the hang that the reason names, and the level of liveness that it lacks (docs/liveness.md); empty: none
    """

    name: str
    status: str
    want: Want
    alive: bool
    pid: int | None
    model: str
    waiting: int
    started_at: str
    message: str = ""
    message_since: str = ""
    reason: str = ""
    shape: str = ""
    level: str = ""


@dataclass(slots=True)
class Hindrance:
    """What keeps all agents of a home from working; looked at once, and only when somebody asks for a reason."""

    home: Home
    _trouble: str | None = field(default=None, init=False)

    def trouble(self) -> str:
        """Why nothing can be written; empty when it can."""
        if self._trouble is None:
            self._trouble = homes.trouble(self.home)
        return self._trouble

    def is_supervised(self) -> bool:
        return locks.is_held(self.home.supervisor_lock)


def of(home: Home, agent: AgentDir, hindrance: Hindrance | None = None) -> State:
    """The state of an agent that exists. `hindrance` is shared by those of one list.

    One whose directory somebody has made strange is in error, and the others are told all the same.
    """
    try:
        return _of(home, agent, hindrance)
    except OSError as error:
        raise_lack(error, f"{agent.name} cannot be looked at")
        reason = homes.disk_error(error, f"{agent.name} cannot be looked at").line()
        return State(agent.name, "error", "down", False, None, "?", 0, "", reason=reason)


def _of(home: Home, agent: AgentDir, hindrance: Hindrance | None) -> State:
    alive = agents.is_alive(agent)
    holder = locks.holder(agent.lock_file) if alive else None
    want = agents.read_want(agent)
    try:
        spec = agents.read_spec(agent)
        model, broken, to_zero = spec.model, False, spec.scale == "to-zero"
    except (Config, NotFound):
        model, broken, to_zero = agents.read_hint(agent.model) or "?", True, False
    works_by = "demand" if to_zero and want == "up" else want
    said = agents.read_hint(agent.status_file)
    waiting = agents.waiting(agent)
    has_mail = waiting > 0 or (works_by == "demand" and not alive and agents.has_claimed(agent))
    is_missed = not alive and (works_by == "up" or (works_by == "demand" and has_mail))
    reason, passing = _reason(agent, hindrance or Hindrance(home)) if is_missed else ("", False)
    if not alive and want == "dead":
        reason = _why_dead(agent)
    elif is_missed and not reason and _rests(agent) == "stopped":
        reason = f"it has ended; to start it: loom agent restart {agent.name}"
    if passing and said in _ALIVE:
        said = "restarting"  # perhaps nobody could write that down
    if alive and (holder is None or waiting or agents.has_claimed(agent)):
        reason = heartbeat.reason(agent)
    shape = hang.shape_of(reason)
    word = status(said, works_by, alive=alive, broken=broken)
    message, since_us = (agents.in_work(agent) if word == "running" else None) or ("", 0)
    return State(
        name=agent.name,
        status=word,
        want=want,
        alive=alive,
        pid=holder.pid if holder is not None else None,
        model=model,
        waiting=waiting,
        started_at=agents.read_hint(agent.started_at) if alive else "",
        message=message,
        message_since=rfc3339(since_us) if message else "",
        reason=reason,
        shape=shape,
        level=hang.SHAPES[shape].level if shape else "",
    )


def _reason(agent: AgentDir, hindrance: Hindrance) -> tuple[str, bool]:
    """(why this agent does not work, whether that is the environment's fault and passes).

    What can be tried comes first: where nothing can be written, the agent could not write down why it left.
    """
    if hindrance.trouble():
        return hindrance.trouble(), True
    if not hindrance.is_supervised():
        return "no supervisor runs; to start one: loom supervisor run", False
    since = agents.read_hint(agent.started_at)
    kind, text = crashes.last_error(agent, since, time.time_ns() // 1_000_000)
    text = " ".join(text.split())
    return (hang.line(kind, text) if kind in hang.SHAPES and not hang.shape_of(text) else text), kind == Disk.kind


def _why_dead(agent: AgentDir) -> str:
    why = " ".join(str((crashes.newest(agent) or {}).get("last_error") or "").split())
    return f"{f'{why:.200}; ' if why else ''}when its fault is mended: loom agent restart {agent.name}"


def status(said: str, want: Want, *, alive: bool, broken: bool = False) -> str:
    """The word for an agent whose status file says `said`."""
    if alive:
        return said if said in _ALIVE else "running"
    if want == "dead":
        return "dead"
    if broken:
        return "error"
    if want == "down":
        return "stopped"
    if said in _WAITING_TO_START or said == "error":
        return said
    if want == "demand":
        return "dormant"
    return "stopped" if said == "stopped" else "crashed" if said in _ALIVE else "pending"


def working_for(state: State) -> str:
    """How long it has been on its message, in one or two units; empty when it works on none."""
    if not state.message_since:
        return ""
    seconds = max(0, time.time_ns() // 1000 - parse_us(state.message_since)) // 1_000_000
    for (unit, size), (smaller_unit, smaller) in pairwise(_UNITS):
        if seconds >= size:
            rest = seconds % size // smaller
            return f"{seconds // size}{unit}" + (f" {rest}{smaller_unit}" if rest else "")
    return f"{seconds}s"


def is_served(agent: AgentDir) -> bool:
    """Whether a message sent now will be worked on without a person doing anything."""
    return agents.is_alive(agent) or (agents.read_want(agent) in ("up", "demand") and not _rests(agent))


def why_unserved(agent: AgentDir) -> str:
    """One line about an agent that does not work on its mail now."""
    if agents.read_want(agent) in ("up", "demand") and (word := _rests(agent)):
        how = "in error" if word == "error" else "not started again by itself"
        return f"{agent.name} is {how}, so its mail waits; see: loom agent show {agent.name}"
    how = "dead" if agents.read_want(agent) == "dead" else "stopped"
    return f"{agent.name} is {how}, so its mail waits; start it with: loom agent start {agent.name} --detach"


def _rests(agent: AgentDir) -> str:
    """`stopped` or `error` when the supervisor that runs has said so of an agent that is wanted; else empty.

    It is not started again until a person does something. What an earlier supervisor said, or this one before somebody
    asked for the agent or changed it, is no word on that.
    """
    said = agents.read_hint(agent.status_file)
    lock = Home(agent.path.parents[1]).supervisor_lock
    if said not in ("stopped", "error") or not locks.is_held(lock):
        return ""
    try:
        told_ns = os.stat(agent.status_file).st_mtime_ns
    except OSError:
        return ""
    before = (lock, agent.want, agent.spec_file, agent.prompt)
    return said if all(_changed_ns(path) <= told_ns for path in before) else ""


def _changed_ns(path: Path | str) -> int:
    try:
        return os.stat(path).st_mtime_ns
    except OSError:
        return 0
