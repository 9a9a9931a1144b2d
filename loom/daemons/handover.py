"""What a supervisor hands to the code that replaces its own, as records and as bytes (ADR-0030).

Only what cannot be found again in files and locks: descriptors, and what was seen of each agent. Times are of the
steady clock, which goes on over the exec. Newer code that cannot go on from this says so when it is tried, and then
nothing is replaced.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Any

from loom.core.supervision import Seen
from loom.daemons.charge import Cause, Held, Process
from loom.spool import locks
from loom.wire.agent import WANTS
from loom.wire.jsontext import dumps, loads_object
from loom.wire.record import record

VERSION = 1


@record
class Handover:
    """who       the process, before and after
    lock      descriptor of run/supervisor.lock
    alone     both ends of the pipe by which runners learn of our end
    nofile    the limits of open files that runners get
    blocked   signals that were blocked before all were
    answered, code   as in loom.spool.running
    filters   pids of the forks that work for commands
    connections   (pid, descriptor) of those whose command is to be told how they ended
    """

    who: locks.Incarnation
    lock: int
    alone: tuple[int, int]
    nofile: tuple[int, int]
    blocked: tuple[int, ...]
    answered: int
    code: str
    agents: Mapping[str, Held]
    filters: tuple[int, ...] = ()
    connections: tuple[tuple[int, int], ...] = ()

    def fds(self) -> Iterator[int]:
        """All descriptors that the new code needs."""
        yield from (self.lock, *self.alone, *(fd for _, fd in self.connections))
        for held in self.agents.values():
            if held.process is not None:
                yield held.process.pidfd
                if held.process.ready_fd >= 0:
                    yield held.process.ready_fd


def encode(handover: Handover) -> bytes:
    agents = {name: _plain(held) for name, held in handover.agents.items()}
    for name, held in handover.agents.items():
        process = None
        if held.process is not None:
            process = {**_plain(held.process), "mark": sorted(held.process.mark)}
        cause = None if held.cause is None else _plain(held.cause)
        agents[name] |= {"seen": _plain(held.seen), "process": process, "cause": cause}
    return dumps({"v": VERSION, **_plain(handover), "who": handover.who.text(), "agents": agents})


def decode(data: bytes) -> Handover:
    """The inverse. Raises ValueError when this code cannot go on from it."""
    try:
        known = loads_object(data)
        version = known.pop("v")
        if version != VERSION:
            raise ValueError(f"handover version {version!r}, this loom takes {VERSION}")
        who = locks.parse_incarnation(known.pop("who"))
        assert who is not None
        agents = {name: _held(given) for name, given in known.pop("agents").items()}
        lists: dict[str, Any] = {name: tuple(known.pop(name)) for name in ("alone", "nofile", "blocked")}
        filters = tuple(known.pop("filters", ()))
        connections = tuple((int(pid), int(fd)) for pid, fd in known.pop("connections", ()))
        return Handover(who=who, agents=agents, filters=filters, connections=connections, **lists, **known)
    except (KeyError, TypeError, AttributeError, AssertionError) as error:
        raise ValueError(f"what is handed over is not understood: {error}") from None


def _held(given: dict[str, Any]) -> Held:
    seen, process, spent, cause = (given.pop(name) for name in ("seen", "process", "spent", "cause"))
    if process is not None:
        process = Process(**{**process, "mark": frozenset((name, count) for name, count in process["mark"])})
    held = Held(
        seen=Seen(**{**seen, "crashes": tuple(seen["crashes"])}),
        process=process,
        cause=None if cause is None else Cause(**cause),
        spent=None if spent is None else tuple(spent),
        **given,
    )
    assert held.want in WANTS
    return held


def _plain(one: Any) -> dict[str, Any]:
    return {name: getattr(one, name) for name in one.__match_args__}


def keep(handover: Handover) -> None:
    """The descriptors are ours, and of no program that we start. Raises ValueError for what is not ours."""
    if handover.who != locks.own_incarnation():
        raise ValueError(f"it was handed over by process {handover.who.epoch}, which we are not")
    for fd in handover.fds():
        try:
            os.set_inheritable(fd, False)
        except OSError as error:
            raise ValueError(f"descriptor {fd} was not handed over: {error}") from None
