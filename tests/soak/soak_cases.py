"""Programs as a user runs them, each with what was before, what comes after, and what must be true then."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from soak_oracle import Oracle
from support import ROOT

from loom.spool import agents, fs, mailbox
from loom.spool.home import open_home
from loom.spool.layout import Home
from loom.wire import ids
from loom.wire.agent import AgentSpec, Want
from loom.wire.message import Message, encode

NAMES = tuple(f"{1790000000000 + n}-0000000000000000000000000{n}" for n in range(1, 6))
LOOM = (sys.executable, "-m", "loom")
_NOW_MS = 1790000000000


@dataclass(frozen=True, slots=True)
class Program:
    """setup     makes the home
    command   what is disturbed
    recover   commands that are run, undisturbed, until all is done; each must end with 0
    crashed   looks at the home and at what the disturbed program had printed, before anything is recovered
    check     looks at the home afterwards, and at what the disturbed program and the recovery had printed
    given     its stdin
    concurrent   works together with children that are not traced: the order of its calls is theirs too, and when no
                 call of a kind works any more it goes on until one does
    """

    name: str
    setup: Callable[[Home], None]
    command: Callable[[Home], Sequence[str]]
    recover: Callable[[Home], Sequence[Sequence[str]]]
    check: Callable[[Home, str], None]
    crashed: Callable[[Home, str], None] = lambda home, said: None
    given: bytes = b""
    concurrent: bool = False


def environment(home: Home) -> dict[str, str]:
    """What every program is given: the same calls each time, so no hashes drawn and no byte code written."""
    return {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(ROOT),
        "PYTHONHASHSEED": "0",
        "PYTHONDONTWRITEBYTECODE": "1",
        "LOOM_HOME": str(home.path),
        "LOOM_ALLOW_FILESYSTEM": os.environ.get("LOOM_ALLOW_FILESYSTEM", ""),
        "LOOM_SUPERVISOR_IDLE_S": "0.2",
    }


def _runner(kind: str, home: Home, name: str) -> tuple[str, ...]:
    return (sys.executable, str(ROOT / "runners" / kind), str(home.agent(name).path), "--drain")


def _settle(home: Home) -> list[Sequence[str]]:
    """Everybody once more, in the order in which mail flows."""
    rounds = [_runner("agent", home, "a"), _runner("router", home, "router"), _runner("agent", home, "b")]
    return [*rounds, _runner("router", home, "router")]


def _agents(home: Home, want: Want = "down") -> None:
    open_home(home.path)
    for name in ("a", "b"):
        agents.create(home, AgentSpec(name, "builtin/echo", idle_s=0.1), "Be brief.", want)
    agents.create(home, AgentSpec("router", "builtin", runner="router"), "", "up")
    fs.replace(home.routes, json.dumps({"v": 1, "routes": [{"from": "a", "to": "b"}]}).encode())


def _mail(home: Home, count: int) -> None:
    for n, stem in enumerate(NAMES[:count]):
        mailbox.deliver(home.agent("a"), stem, encode(Message(ids.ulid_of(stem), "user", _NOW_MS, f"text {n}")))


def _empty(home: Home) -> None:
    open_home(home.path)


def _agents_with_mail(home: Home) -> None:
    _agents(home)
    _mail(home, 2)


def _wanted_with_mail(home: Home) -> None:
    """As the first `loom send` to agents that run while there is mail finds it: nothing runs, the mail waits."""
    _agents(home, "demand")
    _mail(home, 2)


def _answered(home: Home) -> None:
    """Two replies that wait for the router."""
    _agents_with_mail(home)
    for command in (_runner("router", home, "router"), _runner("agent", home, "a")):  # the first makes the pools
        subprocess.run(command, env=environment(home), check=True)


def _all_done(home: Home, *stems: str) -> None:
    boxes = [home.agent("a"), home.agent("b")]
    report = Oracle(home, boxes, {"a": "b"}).check({"a": stems})
    assert not report.failed
    assert report.promised == len(stems) and report.routed >= len(stems)


def _told_is_there(home: Home, said: str) -> None:
    for stem in said.split():
        assert mailbox.find(home.agent("a"), stem) is not None, f"{stem} was printed and is not there"


def _resume(home: Home) -> list[Sequence[str]]:
    """What the interrupted filter itself says how to go on, if it was one already."""
    begun = any(home.filters.glob("*/*.msg"))
    return [(*LOOM, "agent", "start", "f", "--resume")] if begun else []


def _filtered(home: Home, said: str) -> None:
    assert not any(home.filters.glob("*/*.msg")), "a filter is left to be resumed"
    logs = "".join(p.read_text() for p in home.agent("f").logs.glob("*.ndjson"))
    assert "hello" in said or "filter_start" not in logs, "the filter had begun, and its answer was never printed"


def _done(*stems: str) -> Callable[[Home, str], None]:
    return lambda home, said: _all_done(home, *stems)


_SEND = (*LOOM, "send", "a", "hello", "--name", NAMES[0])
_SUPERVISOR = (*LOOM, "supervisor", "run", "--on-demand")
PROGRAMS = (
    Program("send", _agents, lambda home: _SEND, lambda home: [_SEND, *_settle(home)], _done(NAMES[0]), _told_is_there),
    Program(
        "send lines",
        _agents,
        lambda home: (*LOOM, "send", "a", "--stdin-lines"),
        _settle,
        lambda home, said: _all_done(home, *said.split()),
        _told_is_there,
        given=b"one\ntwo\nthree\n",
    ),
    Program("agent", _agents_with_mail, lambda home: _runner("agent", home, "a"), _settle, _done(*NAMES[:2])),
    Program("router", _answered, lambda home: _runner("router", home, "router"), _settle, _done(*NAMES[:2])),
    Program(
        "filter",
        _empty,
        lambda home: (*LOOM, "agent", "start", "f", "--model", "builtin/echo", "--thread", "t", "--stdin"),
        _resume,
        _filtered,
        given=b"hello\n",
    ),
    Program(
        "supervisor",
        _wanted_with_mail,
        lambda home: _SUPERVISOR,
        lambda home: [_SUPERVISOR, *_settle(home)],
        _done(*NAMES[:2]),
        concurrent=True,
    ),
)
