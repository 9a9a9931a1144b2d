"""Whole processes as cases for the harness: the runner's mailbox loop, and a goal from asking to landing.

What runs is the real thing: MailboxLoop, ChatWorker, KeeperWorker, Router, Goal. Only the far sides are played here:
the model, whose every answer differs from the one before, the tools, which count their effects, and the hand of an
executor, which writes what its model would have written through tools. A kill takes all processes at once; what
recovers is the same loops, started again.
"""

from __future__ import annotations

import itertools
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

from crash_cases import Worker as Kernel
from crash_cases import answered_once, letter, lines_whole, note, noted, stem, tidy
from harness import Case

from loom.core.goal import reduce as reducing
from loom.daemons.goalkeeping import Goal
from loom.daemons.keeper import KeeperWorker
from loom.daemons.router import Router
from loom.daemons.runner import ChatWorker
from loom.daemons.service import Agent, Done, MailboxLoop
from loom.daemons.turnloop import Tools
from loom.proc.stopping import Stopping
from loom.spool import agents, fs, goals, journal, locks, mailbox
from loom.spool.home import open_home
from loom.spool.layout import Home
from loom.spool.logs import Log
from loom.spool.turns import Turn
from loom.wire.agent import AgentSpec
from loom.wire.chat import ChatReply, ChatRequest, Chunk, ToolCall, ToolSpec, Usage
from loom.wire.errors import BadInput
from loom.wire.event import Event
from loom.wire.goal import GoalSpec, Limits

AGENT = "worker"
BOOT = locks.Incarnation(1, 1, "boot-of-this-test")
NOW_NS = 1_790_000_000_000_000_000
_ENV = {"LOOM_ALLOW_FILESYSTEM": "1"}


class _Silent(Log):
    """Logs decide nothing and are not synced; without them there are a third fewer calls to disturb."""

    def write(self, level: str, event: str, fields: dict[str, Any]) -> None:
        pass


def _agent(root: Path, name: str) -> Agent:
    home = Home(root)
    directory = home.agent(name)
    return Agent(home, directory, agents.read_spec(directory), _Silent(directory.logs), Stopping())


def _serve(root: Path, name: str, make: Callable[[Agent], Any]) -> None:
    """One life of a runner: recover, work until nothing is left, leave."""
    agent = _agent(root, name)
    loop = MailboxLoop(agent, make(agent), BOOT)
    try:
        loop.recover()
        loop.run(drain=True)
    finally:
        loop.close()


# -- the runner ------------------------------------------------------------------------------------------------


class _Model:
    """The far side: no two answers are alike, and every question is noted before it is answered."""

    name = "test/model"

    def __init__(self, root: Path, box: Any) -> None:
        self.root, self.box = root, box

    def stream(self, request: ChatRequest) -> Iterator[Chunk]:
        (working,) = mailbox.in_progress(self.box)
        name = working.removesuffix(".msg")
        attempt = mailbox.attempts(self.box, name)
        body = next(m.text for m in reversed(request.messages) if m.role == "user")
        step = sum(1 for m in request.messages if m.role == "assistant" and m.calls)
        text = f"answer {len(noted(self.root, 'asked')) + 1} to {body}"
        calls: tuple[ToolCall, ...] = ()
        if "tool" in body and step == 0:
            calls = (ToolCall(f"call-{name[-4:]}", "note", {}),)
        note(self.root, "asked", {"stem": name, "attempt": attempt, "step": step, "text": text})
        if "fails once" in body and attempt == 0:
            raise BadInput("this cannot be answered")
        yield ChatReply(text, calls, "tool_calls" if calls else "end", Usage(1, 1))


def _run_tool(root: Path, call: ToolCall) -> Mapping[str, Any]:
    note(root, "effects", {"id": call.id})
    return {"status": "ok", "result": "noted"}


def _chat(root: Path, agent: Agent) -> ChatWorker:
    worker = ChatWorker(agent)
    worker.model = _Model(root, agent.dir)
    spec = ToolSpec("note", "notes", {"type": "object"})
    worker.tools = Tools({"note": spec}, lambda call: _run_tool(root, call))
    return worker


def _runner(root: Path) -> None:
    _serve(root, AGENT, partial(_chat, root))


_LETTERS = (letter(1, "one"), letter(2, "use a tool"))


def _runner_setup(root: Path) -> None:
    home = open_home(root, _ENV)
    box = agents.create(home, AgentSpec(AGENT, "builtin/echo"), "You are a test.", "up")
    for name, data in _LETTERS:
        mailbox.deliver(box, name, data)


def _runner_check(root: Path) -> None:
    tidy(root)
    lines_whole(root)
    answered_once(root, Kernel(), {stem(1): 0, stem(2): 0})


def _failing_setup(root: Path) -> None:
    home = open_home(root, _ENV)
    box = agents.create(home, AgentSpec(AGENT, "builtin/echo"), "", "up")
    for name, data in (letter(1, "fails once"), letter(2, "two")):
        mailbox.deliver(box, name, data)


def _failing(root: Path) -> None:
    """What fails is tried again by a person, once."""
    _runner(root)
    box = Home(root).agent(AGENT)
    for name in mailbox.failed(box):
        if mailbox.attempts(box, name) <= 1:
            mailbox.retry(box, AGENT, name, "now")
    _runner(root)


def _failing_check(root: Path) -> None:
    tidy(root)
    lines_whole(root)
    box = Home(root).agent(AGENT)
    for name, attempt in ((stem(1), 1), (stem(2), 0)):
        assert box.processed(name).exists(), f"{name} is not done"
        assert mailbox.attempts(box, name) == attempt
        found = [mailbox.find_reply(box, AGENT, name, a) for a in range(attempt + 2)]
        assert [r.error for r in found if r is not None] == [True] * attempt + [False]


# -- a goal ----------------------------------------------------------------------------------------------------

GOAL_CLASS = Goal  # the mutants put theirs here
GOAL = "20260922-two-notes-test"
_PLAN = {
    "subtasks": [
        {"id": "one", "instruction": "write one", "deliverables": ["notes/one.md"], "level": 2},
        {"id": "all", "instruction": "write all", "deliverables": ["ALL.md"], "depends_on": ["one"], "level": 1},
    ]
}


class _Hand:
    """An executor whose model and tools are played: it writes the deliverables, differently at each call."""

    def __init__(self, root: Path, agent: Agent) -> None:
        self.root = root

    def work(self, claimed: mailbox.Claimed, turn: Turn) -> Done:
        data = claimed.message.data or {}
        subtask = data["payload"]["subtask"]
        note(self.root, "asked", {"order": claimed.stem})
        for path in subtask["deliverables"]:
            target = Path(data["workspace"]) / path
            target.parent.mkdir(exist_ok=True)
            target.write_text(f"attempt {len(noted(self.root, 'asked'))} at {subtask['id']}\n")
        return Done("done", {"status": "done", "summary": subtask["id"]})


class _Says:
    """A planner or verifier whose model always says this."""

    def __init__(self, data: Mapping[str, Any], agent: Agent) -> None:
        self.data = data

    def work(self, claimed: mailbox.Claimed, turn: Turn) -> Done:
        return Done("said", dict(self.data))


_VERDICT = {"passed": True, "confidence": 0.9, "findings": [], "inconclusive": False}


def _goal_setup(root: Path) -> None:
    home = open_home(root / "home", _ENV)
    fs.replace(home.config, b"pools: {planner: 1, executor: 1, verifier: 1, keeper: 1}\n")
    agents.create(home, AgentSpec("router", "builtin", runner="router"), "", "up")
    source = root / "source"
    source.mkdir()
    (source / "given.md").write_text("given\n")
    models = dict.fromkeys(("planner", "executor", "verifier"), "builtin")
    limits = Limits(order_timeout_s=1e8)  # the goal's clock stands still; the runners' does not
    spec = GoalSpec(GOAL, "two notes", "tester", NOW_NS // 1_000_000, models, "source", land=True, limits=limits)
    goals.create(home, spec)
    _router(root / "home", itertools.count()).close()  # makes the pools
    fs.remove(home.wake_fifo("router"))  # a copied directory may hold no FIFO


def _router(home: Path, numbers: Iterator[int]) -> Router:
    def draw(count: int) -> bytes:
        return sha256(str(next(numbers)).encode()).digest()[:count]

    make = partial(GOAL_CLASS, clock_ns=lambda: NOW_NS + next(numbers) * 1_000_000, draw=draw)
    router = Router(_agent(home, "router"), BOOT, make)
    router.watch = None
    return router


def _goal(root: Path) -> None:
    """Router and pool take turns until the goal is over.

    Paths are relative: orders name them, and with the trial's own directory in them no two would be the same bytes.
    """
    os.chdir(root)
    home = Path("home")
    seen = goals.events(Home(home), Home(home).goal(GOAL))
    router = _router(home, itertools.count(1000 * (1 + sum(1 for _ in seen))))
    makers: dict[str, Callable[[Agent], Any]] = {
        "planner-1": partial(_Says, {"plan": _PLAN}),
        "executor-1": partial(_Hand, root),
        "verifier-1": partial(_Says, _VERDICT),
        "keeper-1": KeeperWorker,
    }
    try:
        for _ in range(100):
            router.sweep()
            if not router.goals:
                return
            for name, make in makers.items():
                if agents.has_mail(Home(home).agent(name)):
                    _serve(home, name, make)
    finally:
        router.close()
    raise AssertionError("the goal does not come to an end")


def events(root: Path) -> list[Event]:
    """The goal's journal."""
    home = Home(root / "home")
    return list(goals.events(home, home.goal(GOAL)))


def _goal_check(root: Path) -> None:
    home = Home(root / "home")
    goal = home.goal(GOAL)
    tidy(home.path)
    lines_whole(home.path)
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
    source = root / "source"
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


PROCESSES = (
    Case("runner", _runner_setup, _runner, _runner, _runner_check),
    Case("runner fails and retries", _failing_setup, _failing, _failing, _failing_check),
    Case("goal", _goal_setup, _goal, _goal, _goal_check),
)
