"""How an agent is: what is wanted of it, and the truth from its lock; what its one-value files say comes after.

`status`, `pid` and `started_at` are written for people and may be stale after a crash. Where they contradict the
lock, the lock is right.
"""

from __future__ import annotations

from dataclasses import dataclass

from loom.spool import agents, locks
from loom.spool.layout import AgentDir, Home
from loom.wire.agent import Want
from loom.wire.errors import Config, NotFound

_ALIVE = ("idle", "running")
_WAITING_TO_START = ("pending", "restarting")


@dataclass(frozen=True, slots=True)
class State:
    """status: idle running | pending restarting crashed dormant stopped dead error; `dormant` waits for mail."""

    name: str
    status: str
    want: Want
    alive: bool
    pid: int | None
    model: str
    waiting: int
    started_at: str


def of(home: Home, agent: AgentDir) -> State:
    """The state of an agent that exists."""
    alive = agents.is_alive(agent)
    holder = locks.holder(agent.lock) if alive else None
    want = agents.read_want(agent)
    try:
        model, broken = agents.read_spec(agent).model, False
    except (Config, NotFound):
        model, broken = agents.read_hint(agent.model) or "?", True
    said = agents.read_hint(agent.status)
    return State(
        name=agent.name,
        status=status(said, want, alive=alive, broken=broken),
        want=want,
        alive=alive,
        pid=holder.pid if holder is not None else None,
        model=model,
        waiting=agents.waiting(agent),
        started_at=agents.read_hint(agent.started_at) if alive else "",
    )


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


def is_served(agent: AgentDir) -> bool:
    """Whether a message sent now will be worked on without a person doing anything."""
    return agents.read_want(agent) in ("up", "demand") or agents.is_alive(agent)


def why_unserved(agent: AgentDir) -> str:
    """One line about an agent that does not work on its mail now."""
    how = "dead" if agents.read_want(agent) == "dead" else "stopped"
    return f"{agent.name} is {how}, so its mail waits; start it with: loom agent start {agent.name} --detach"
