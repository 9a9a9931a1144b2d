"""A whole goal as cases for the harness: router, planner, executor, verifier and keeper, from asking to landing.

All five are the real programs. They take turns, in a given order, so that the same root leads to the same calls. A
kill takes all of them at once, and they come back in any of the 120 orders. In the cases *… alone* one of them runs
in a process of its own and is killed, failed or stopped in the middle of its call: only what it knew is lost, the
others keep what they have in memory and work on.
"""

from __future__ import annotations

import itertools
import json
import os
import re
from collections import Counter
from collections.abc import Mapping
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

from crash_cases import lines_whole, tidy
from crash_far_side import asked_as_agreed, far_side, one_life, plain_files
from harness import KILLED, Case, Knife, acting, noted, undisturbed

from loom.core.goal import reduce as reducing
from loom.daemons.goalkeeping import Goal
from loom.daemons.keeper import KeeperWorker
from loom.daemons.router import Router
from loom.daemons.runner import RoleWorker
from loom.daemons.service import Agent
from loom.proc.stopping import Stopping
from loom.spool import agents, fs, goals, journal, locks, mailbox
from loom.spool.home import open_home
from loom.spool.layout import AgentDir, Home
from loom.spool.logs import Log
from loom.wire.agent import AgentSpec
from loom.wire.chat import ChatRequest
from loom.wire.event import Event
from loom.wire.goal import GoalSpec, Limits

BOOT = locks.Incarnation(1, 1, "boot-of-this-test")
NOW_NS = 1_790_000_000_000_000_000
ENV = {"LOOM_ALLOW_FILESYSTEM": "1"}
GOAL_CLASS = Goal  # the mutants put theirs here
GOAL = "20260922-two-notes-test"
ROLES = {"planner": RoleWorker, "executor": RoleWorker, "verifier": RoleWorker, "keeper": KeeperWorker}
MEMBERS = ("router", *ROLES)
ORDERS = list(itertools.permutations(MEMBERS))


# -- what the models say ---------------------------------------------------------------------------------------


def _says(
    number: int, step: int, request: ChatRequest, box: AgentDir, stem: str, root: Path, setbacks: bool
) -> str | tuple[str, dict[str, Any]]:
    """A plan, files written by tool, verdicts; `setbacks`: the first plan cannot be used, the first verdict is bad."""
    role = box.name.partition("-")[0]
    text = next(m.text for m in request.messages if m.role == "user")
    orders = sorted({a["stem"] for a in noted(root, "asked") if a["agent"] == box.name} | {stem})
    bad = setbacks and stem == orders[0]
    if role == "planner":
        one = {"id": "one", "instruction": f"write one, answer {number}", "deliverables": ["notes/one.md"], "level": 2}
        all_ = {"id": "all", "instruction": f"write all, answer {number}", "deliverables": ["ALL.md"], "level": 1}
        return json.dumps({"subtasks": [one, all_ | {"depends_on": ["nobody" if bad else "one"]}]})
    path = re.search(r"## Deliverables\n- `([^`]+)`", text)
    assert path is not None, text
    if role == "executor":
        if step == 0:
            return "write-file", {"path": path[1], "content": f"attempt {number} at {path[1]}\n"}
        return json.dumps({"status": "done", "summary": f"answer {number}"})
    if step == 0:
        return "read-file", {"path": path[1]}
    finding = {"severity": "major", "where": path[1], "what": "it is too short", "evidence": f"answer {number}"}
    return json.dumps({"passed": not bad, "confidence": 0.9, "findings": [finding] if bad else [], "seen": number})


# -- the company -----------------------------------------------------------------------------------------------


class _Silent(Log):
    """The router's log, left out: its lines are the runner's case."""

    def write(self, level: str, event: str, *records: Mapping[str, Any]) -> None:
        pass


class Company:
    """The processes of one home, taking turns in this order until the goal is over."""

    def __init__(self, home: Path, order: tuple[str, ...] = MEMBERS) -> None:
        self.home, self.order = home, order
        self.router: Router | None = None
        self.apart: Apart | None = None

    def play(self) -> None:
        for _ in range(200):
            if self.is_over():
                return
            for name in self.order:
                self.turn(name)
        raise AssertionError("the goal does not come to an end")

    def is_over(self) -> bool:
        """The router has marked the goal as resting, and knows it."""
        if not goals.is_over(Home(self.home), GOAL):
            return False
        return self.router is None or not self.router.goals

    def turn(self, name: str) -> None:
        """This process does what there is to do, if it is not at work elsewhere at this moment."""
        if self.apart is not None and self.apart.name == name:
            if not self.apart.turn():
                self.apart = None  # it has died: from its next turn on another incarnation does its work
            return
        with acting(name):
            if name == "router":
                self._route()
            else:
                box = Home(self.home).agent(f"{name}-1")
                if box.spec.exists() and agents.has_mail(box):
                    one_life(box.path, ROLES[name])

    def _route(self) -> None:
        if self.router is None:
            self.router = _router(self.home)
            self.router.recover()
        else:
            self.router.sweep()

    def close(self) -> None:
        if self.apart is not None:
            self.apart.dismiss()
        if self.router is not None:
            self.router.close()


def _router(home: Path) -> Router:
    """A router whose clock and chance go on from where the journal ends."""
    numbers = itertools.count(1000 * (1 + sum(1 for _ in goals.events(Home(home), Home(home).goal(GOAL)))))

    def draw(count: int) -> bytes:
        return sha256(str(next(numbers)).encode()).digest()[:count]

    directory = Home(home).agent("router")
    agent = Agent(Home(home), directory, agents.read_spec(directory), _Silent(directory.logs), Stopping())
    make = partial(GOAL_CLASS, clock_ns=lambda: NOW_NS + next(numbers) * 1_000_000, draw=draw)
    router = Router(agent, BOOT, make)
    router.sights.watch.close()  # it looks everywhere each time
    return router


class Apart:
    """One member in a process of its own, under the knife; the others wait while it has its turn.

    Byte for byte: `t` have a turn, `e` end. It answers with a line: done, or `rival`: it stops before a call, the
    others have their turns, and `g` lets it go on.
    """

    def __init__(self, company: Company, name: str, knife: Knife) -> None:
        self.company, self.name, self.knife = company, name, knife
        ask, self._ask = os.pipe()
        self._told, tell = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(self._ask)
            os.close(self._told)
            self._serve(ask, tell)
        os.close(ask)
        os.close(tell)
        self._lines = os.fdopen(self._told, "rb")

    def _serve(self, ask: int, tell: int) -> None:
        """In the child. It leaves with 75 where the disk refused, with 70 and a traceback for a bug."""
        knife = self.knife

        def told(what: str, **more: Any) -> None:
            record = {"what": what, "fired": knife.fired, "calls": knife.count, "log": knife.log, **more}
            os.write(tell, json.dumps(record).encode() + b"\n")

        def meet() -> None:
            told("rival")
            assert os.read(ask, 1) == b"g"

        knife.rival = meet
        fs.calls = knife
        status = 70
        try:
            while os.read(ask, 1) == b"t":
                self.company.turn(self.name)
                told("done")
            status = 0
        except OSError as error:
            told("failed", error=str(error))
            status = 75
        except BaseException:
            import traceback

            told("bug", error=traceback.format_exc())
        finally:
            os._exit(status)

    def turn(self) -> bool:
        """False: it has ended."""
        os.write(self._ask, b"t")
        while True:
            line = self._lines.readline()
            if not line:
                _, status = os.waitpid(self.pid, 0)
                assert os.waitstatus_to_exitcode(status) == KILLED, f"{self.name} ended with {status}"
                self.knife.fired = True
                return False
            told = json.loads(line)
            self.knife.fired, self.knife.count, self.knife.log = told["fired"], told["calls"], told["log"]
            if told["what"] == "done":
                return True
            if told["what"] == "rival":
                for name in self.company.order:
                    if name != self.name:
                        self.company.turn(name)
                os.write(self._ask, b"g")
                continue
            os.waitpid(self.pid, 0)
            assert told["what"] == "failed", told["error"]
            return False

    def dismiss(self) -> None:
        os.write(self._ask, b"e")
        os.waitpid(self.pid, 0)


# -- cases -----------------------------------------------------------------------------------------------------


def _setup(root: Path, land: bool = True) -> None:
    home = open_home(root / "home", ENV)
    fs.replace(home.config, b"pools: {planner: 1, executor: 1, verifier: 1, keeper: 1}\n")
    agents.create(home, AgentSpec("router", "builtin", runner="router"), "", "up")
    source = root / "source"
    source.mkdir()
    (source / "given.md").write_text("given\n")
    models = dict.fromkeys(("planner", "executor", "verifier"), "builtin")
    limits = Limits(order_timeout_s=1e8)  # the goal's clock stands still; the runners' does not
    spec = GoalSpec(GOAL, "two notes", "tester", NOW_NS // 1_000_000, models, "source", land=land, limits=limits)
    goals.create(home, spec)
    _router(root / "home").close()  # makes the pools
    fs.remove(home.wake_fifo("router"))  # a copied directory may hold no FIFO


def _at(root: Path) -> Path:
    """The home, as a relative path: orders name paths, and with the trial's own in them no two would be the same."""
    os.chdir(root)
    os.environ |= {"LOOM_LOG": "error", **ENV}
    return Path("home")


def _play(root: Path, order: int = 0, *, setbacks: bool) -> None:
    company = Company(_at(root), ORDERS[order])
    try:
        with far_side(root, partial(_says, root=root, setbacks=setbacks)):
            company.play()
    finally:
        company.close()


def _play_apart(root: Path, name: str, setbacks: bool = True) -> None:
    """With one member in a process of its own. Ends as killed when that one was."""
    knife = fs.calls
    assert isinstance(knife, Knife)
    company = Company(_at(root))
    with far_side(root, partial(_says, root=root, setbacks=setbacks)), undisturbed():
        apart = company.apart = Apart(company, name, knife)
        try:
            company.play()
        finally:
            company.close()
    if company.apart is None and knife.fired and _was_killed(apart):
        os._exit(KILLED)


def _was_killed(apart: Apart) -> bool:
    point = apart.knife._point
    return point is not None and point.phase in ("before", "after", "torn")


def events(root: Path) -> list[Event]:
    """The goal's journal."""
    home = Home(root / "home")
    return list(goals.events(home, home.goal(GOAL)))


def ended_once(root: Path) -> list[Event]:
    """The journal of a goal that has ended and landed, in which every order, report and commit stands once."""
    home = Home(root / "home")
    goal = home.goal(GOAL)
    assert journal.audit(goal.journal, home.blobs, home.head(GOAL)) == []
    happened = events(root)
    state = reducing.fold(happened)
    assert (state.status, state.landing) == ("completed", "landed"), (state.status, state.reason, state.landing)
    _once(happened, "order.dispatched", "name")
    _once(happened, "order.reported", "order")
    _once(happened, "subtask.committed", "subtask")
    _once(happened, "subtask.applied", "subtask")
    causes = Counter(e.cause for e in happened if not e.cause.startswith("seq:"))
    assert set(causes.values()) == {1}, f"a file caused two events: {causes}"
    return happened


def _check(root: Path) -> None:
    home = Home(root / "home")
    tidy(home.path)
    lines_whole(home.path)
    plain_files(home.agents)
    happened = ended_once(root)
    dispatched = {e.data["name"] for e in happened if e.type == "order.dispatched"}
    asked = {a["stem"] for a in noted(root, "asked")}
    assert asked <= dispatched, f"worked on orders the journal does not know: {asked - dispatched}"
    boxes = [home.agent(f"{role}-1") for role in ROLES]
    for box in boxes:
        assert not agents.has_mail(box) and not mailbox.outgoing(box), f"mail is left with {box.name}"
    asked_as_agreed(root, boxes, home.blobs)
    _result(root, home)


def _result(root: Path, home: Home) -> None:
    source, goal = root / "source", home.goal(GOAL)
    for path in ("notes/one.md", "ALL.md"):
        landed = (source / path).read_bytes()
        assert landed == (goal.workspace / path).read_bytes()
        assert landed.startswith(b"attempt "), landed
    strays = [p.name for place in (source, goal.workspace) for p in place.rglob(".loom-tmp-*")]
    assert not strays, strays
    assert (source / "given.md").read_text() == "given\n"


def _once(events: list[Any], type_: str, field: str) -> None:
    counts = Counter(e.data[field] for e in events if e.type == type_)
    assert counts and set(counts.values()) == {1}, f"{type_}: {counts}"


def goal_case(name: str, setbacks: bool) -> Case:
    play = partial(_play, setbacks=setbacks)
    return Case(name, _setup, play, play, _check, orders=len(ORDERS), recover_in=play, process="router")


def alone(name: str) -> Case:
    """One process is killed, failed, or stopped while all others work; they live on."""
    play = partial(_play_apart, name=name)
    recover = partial(_play, setbacks=True)
    return Case(f"{name} alone", _setup, play, recover, _check, rival=_check, process=name)


GOALS = (goal_case("goal", False), goal_case("goal with setbacks", True))
ALONE = tuple(alone(name) for name in MEMBERS)

__all__ = ["ALONE", "GOALS", "GOAL_CLASS", "events"]
