"""The workflows that power cuts are tried on: those of the kernel, and whole processes, a goal in pieces.

What runs is what runs in crash_cases and crash_processes, with three differences. A machine that was off has a new
boot: processes begin with open_home(), which empties `run/`. The hand of an executor works with the real RoleWorker,
and its tool writes as the shipped tools do, unsynced, through calls that are recorded. And a rename may have left
both names, so a claimed message may lie in the inbox beside.
"""

from __future__ import annotations

import _strptime  # noqa: F401  what a child would import again at each of thousands of states
import itertools
import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import crash_cases as kernel
import crash_processes as processes
import yaml  # noqa: F401
from crash_cases import answered_once, copies, letter, lines_whole, note, noted, retry_failed, stem, tidy
from crash_processes import AGENT, GOAL, NOW_NS
from harness import Case, nothing
from power import Workflow

from loom.core.goal import reduce as reducing
from loom.daemons import runner as runners
from loom.daemons.keeper import KeeperWorker
from loom.daemons.runner import RoleWorker
from loom.daemons.service import Agent
from loom.models.builtin import echo  # noqa: F401
from loom.proc import schema, toolbox, toolcall  # noqa: F401
from loom.spool import agents, bodies, crashes, fs, goals, journal, locks, mailbox, ndjson, secrets
from loom.spool.home import open_home
from loom.spool.layout import Box, Home
from loom.wire import ids, message
from loom.wire.agent import AgentSpec
from loom.wire.chat import ChatReply, ChatRequest, Chunk, ToolCall, ToolSpec, Usage
from loom.wire.goal import GoalSpec, Limits
from loom.wire.message import Message

_ENV = {"LOOM_ALLOW_FILESYSTEM": "1"}
_lives = 0  # of this machine, in a trial's own process


def reboot(home: Path) -> None:
    """The first thing that a process does after the machine was off."""
    global _lives
    _lives += 1
    locks.boot_id = lambda: f"boot-{_lives}"  # type: ignore[assignment]
    open_home(home, _ENV)


# -- the kernel ------------------------------------------------------------------------------------------------


class Worker(kernel.Worker):
    """Claimed is what lies in `.in-progress/`: after a cut the inbox may have it too."""

    def ask(self, root: Path, name: str, attempt: int, step: int, body: str) -> ChatReply:
        box = self.box(root)
        beside = box.inbox / f"{name}.msg"
        if (box.in_progress / beside.name).exists() and beside.exists():
            assert fs.same_bytes(beside, box.in_progress / beside.name)
            os.unlink(beside)
        return super().ask(root, name, attempt, step, body)


def _lines_good(root: Path) -> None:
    """Whole lines; but a turn may end in a torn `open`, and when its message is done nobody opens it again."""
    for path in root.rglob("*.ndjson"):
        if path.parent.name == "turns":
            ndjson.Appender(path).close()
    lines_whole(root)


_WORKED = (letter(1, "use a tool"), letter(2, "use a tool, huge"))


def _worked(root: Path) -> None:
    tidy(root)
    _lines_good(root)
    answered_once(root, kernel.Worker(), {name: 0 for name, _ in _WORKED})


work = Case("work", kernel.agent_with(*_WORKED), Worker().run, Worker().run, _worked, tidy)
_FAILED = letter(4, "fails once")


def _fail_and_retry(root: Path) -> None:
    Worker().run(root)
    retry_failed(root, kernel.Worker())
    Worker().run(root)


def _retried(root: Path) -> None:
    tidy(root)
    _lines_good(root)
    answered_once(root, kernel.Worker(), {_FAILED[0]: 1})


failing = Case("fail and retry", kernel.agent_with(_FAILED), _fail_and_retry, _fail_and_retry, _retried, tidy)


def _written_is_there(root: Path) -> None:
    """A value that was written is there; the hint beside it may be anything."""
    tidy(root)
    want = (root / "want").read_text()
    assert want in kernel._VALUES, "half a state file"
    assert want != kernel._VALUES[0] or not noted(root, "written"), "a value that was written is gone"


def _states_whole(root: Path) -> None:
    _written_is_there(root)
    kernel._state_whole(root)


state_files = replace(kernel.state_files, crashed=_written_is_there, check=_states_whole)


def _torn_setup(root: Path) -> None:
    """Journal and conversation with torn ends, as an earlier crash left them."""
    kernel._journal_setup(root)
    with (root / "goals" / "g" / "journal.ndjson").open("ab") as file:
        file.write(b'{"half a record')
    box = kernel.Worker().box(root)
    mailbox.create(box)
    fs.ensure_dir(box.path / "conversations")
    (box.path / "conversations" / "main.ndjson").write_bytes(b'{"name":"x","role":"user","text":"y"}\n{"half a li')


def _torn(root: Path) -> None:
    kernel._write_journal(root)
    lines = ndjson.Appender(kernel.Worker().box(root).path / "conversations" / "main.ndjson")
    known = [r["name"] for r in lines.records]
    for name in ("a", "b"):
        if name not in known:
            lines.append({"name": name, "role": "user", "text": "z"})
            lines.sync()
            note(root, "said", {"name": name})
    lines.close()


def _torn_readable(root: Path) -> None:
    kernel._journal_readable(root)
    said = ndjson.read_objects(kernel.Worker().box(root).path / "conversations" / "main.ndjson")
    assert {"x", *(n["name"] for n in noted(root, "said"))} <= {r["name"] for r in said}
    for path, end in ((root / "goals" / "g" / "journal.ndjson", b'{"half a record'),
                      (kernel.Worker().box(root).path / "conversations" / "main.ndjson", b'{"half a li')):  # fmt: skip
        kept = [p.read_bytes() for p in path.parent.glob(f"{path.name}.torn.*")]
        assert end in kept or path.read_bytes().endswith(end), "the torn end is gone"


def _torn_whole(root: Path) -> None:
    _torn_readable(root)
    kernel._journal_whole(root)


torn_ends = Case("torn ends", _torn_setup, _torn, _torn, _torn_whole, _torn_readable)


def _write_heads(root: Path) -> None:
    """A new journal whose head is noted, and told of."""
    book = kernel._open_journal(root)
    try:
        for i in range(3):
            book.append("step", {}, "", {"i": i})
            book.note_head()
            note(root, "headed", {"seq": book.seq})
    finally:
        book.close()


def _heads_kept(root: Path) -> None:
    head = journal.read_head(root / "heads" / "g") or (0, "")
    assert all(head[0] >= told["seq"] for told in noted(root, "headed")), "a head that was noted is gone"


def _heads_follow(root: Path) -> None:
    _heads_kept(root)
    kernel._journal_whole(root)


heads = Case("heads", lambda root: (root / "blobs").mkdir(), _write_heads, _write_heads, _heads_follow, _heads_kept)


# -- a home and what is in it ----------------------------------------------------------------------------------

_HOME = "home"
_HUGE = "x" * 70_000


def _settle_in(root: Path) -> None:
    """A first `loom`: home, agent, mail, a body that is a blob, settings, a key stored and withdrawn."""
    message.MAX_BYTES = 1 << 16  # so that a body need not be huge: states are made thousands of times
    home = open_home(root / _HOME, _ENV)
    spec = AgentSpec(AGENT, "builtin/echo")
    box = home.agent(AGENT)
    if not noted(root, "accepted"):
        agents.create(home, spec, "You are a test.", "up")
        note(root, "accepted", {"agent": AGENT})
    for number, body in ((1, "one"), (2, _HUGE)):
        name = stem(number)
        raw = bodies.encode(home.blobs, Message(ids.ulid_of(name), "user", 1, body))
        mailbox.deliver(box, name, raw)
        note(root, "accepted", {"stem": name, "size": len(body)})
    if not noted(root, "wanted"):
        agents.write_want(box, "demand")
        note(root, "wanted", {})
    if not noted(root, "withdrawn"):
        secrets.put(home, "one", "key")
        note(root, "stored", {"name": "one"})
        try:
            secrets.remove(home, "one")
        except secrets.NotFound:
            pass
        note(root, "withdrawn", {"name": "one"})
    crashes.write(box, 1_790_000_000_000, {"ts": "now", "exit_code": 1})
    note(root, "crashed", {})


def _settled(root: Path) -> None:
    tidy(root / _HOME)
    if not noted(root, "accepted"):
        return
    home = Home(root / _HOME)
    box = home.agent(AGENT)
    assert agents.names(home) == [AGENT]
    assert agents.read_spec(box) == AgentSpec(AGENT, "builtin/echo")
    assert box.prompt.read_text() == "You are a test."
    assert home.version.read_text() == "1\n"
    for known in noted(root, "accepted")[1:]:
        if "stem" in known:
            data = mailbox.read_message(box.inbox / f"{known['stem']}.msg")
            assert len(bodies.text(home.blobs, message.decode(data, known["stem"]))) == known["size"]
    if noted(root, "wanted"):
        assert agents.read_want(box) == "demand"
    if noted(root, "stored") and not noted(root, "withdrawn"):
        assert secrets.get(home, "one") in ("key", None)
    if noted(root, "withdrawn"):
        assert secrets.get(home, "one") is None, "a key that was withdrawn came back"
    assert len(crashes.names(box)) >= len(noted(root, "crashed"))
    assert bool(crashes.newest(box)) >= bool(noted(root, "crashed"))


def _all_settled(root: Path) -> None:
    _settled(root)
    home = Home(root / _HOME)
    assert all(d.is_dir() for d in (*home.directories(), *home.agent(AGENT).directories()))
    assert mailbox.find(home.agent(AGENT), stem(2)) is not None


settle_in = Case("home", lambda root: None, _settle_in, _settle_in, _all_settled, _settled)


# -- the runner ------------------------------------------------------------------------------------------------


def _in_home(case: Case, name: str) -> Workflow:
    """A case whose root is a home: books would lie among its entries, so it works one directory below."""
    return Workflow(replace(case, name=name), reboot=reboot)


class _Router(processes.Router):
    """Without inotify: it looks at everything at each sweep."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.watch = None


_REPLIES = (letter(1, "one"), letter(2, "two"), letter(3, "three"))
_POOLS = b"pools: {planner: 1, executor: 1, verifier: 1, keeper: 1}\n"


def _route_setup(root: Path) -> None:
    home = open_home(root, _ENV)
    fs.replace(home.config, _POOLS)
    for name in ("router", AGENT, "target"):
        agents.create(home, AgentSpec(name, "builtin/echo"), "", "up")
    for number, (name, data) in enumerate(_REPLIES):
        request = replace(message.decode(data, name), reply_to="target")
        parts = ("a", "b") if number == 1 else None
        reply_name, reply = message.reply_to(request, name, AGENT, 0, f"answer {number}", 1)
        mailbox.answer(home.agent(AGENT), reply_name, replace(reply, parts=parts))
    _route(root, sweep=False)


def _route(root: Path, sweep: bool = True) -> None:
    router = processes._router(root, itertools.count())
    try:
        if sweep:
            router.sweep()
    finally:
        router.close()


def _expected_mail() -> Counter[str]:
    found: list[str] = []
    for number, (name, _) in enumerate(_REPLIES):
        found += [ids.reply_stem(AGENT, name, 0, part) for part in ((1, 2) if number == 1 else (0,))]
    return Counter(found)


def _routed(root: Path) -> None:
    """Before anything mends it: what left the outbox is in the target's inbox."""
    tidy(root)
    home = Home(root)
    waiting = mailbox.outgoing(home.agent(AGENT))
    for number, (name, _) in enumerate(_REPLIES):
        reply = ids.reply_stem(AGENT, name)
        if f"{reply}.msg" not in waiting:
            for part in (1, 2) if number == 1 else (0,):
                assert mailbox.find(home.agent("target"), ids.reply_stem(AGENT, name, 0, part)), "sent and not there"


def _route_check(root: Path) -> None:
    _routed(root)
    home = Home(root)
    target = home.agent("target")
    inbox = mailbox.Inbox(target)
    while (claimed := inbox.claim()) is not None:
        note(root, "received", {"stem": claimed.stem})
        mailbox.acknowledge(target, claimed.stem)
    assert mailbox.outgoing(home.agent(AGENT)) == []
    assert Counter(r["stem"] for r in noted(root, "received")) == _expected_mail()


route = Case("router", _route_setup, _route, _route, _route_check, _routed)


# -- a goal ----------------------------------------------------------------------------------------------------

_DELIVERABLES = ["notes/one.md", "ALL.md"]
_PLAN = {"subtasks": [{"id": "all", "instruction": "write", "deliverables": _DELIVERABLES, "level": 1}]}
_WRITE = ToolSpec("write-file", "writes", {"type": "object"}, idempotent=True, writes=True)


class _Model:
    """Writes each deliverable with a tool of its own step, differently at each call, and says that it is done."""

    name = "test/model"

    def __init__(self, root: Path) -> None:
        self.root = root

    def stream(self, request: ChatRequest) -> Iterator[Chunk]:
        done = sum(1 for m in request.messages if m.role == "tool")
        paths = _DELIVERABLES
        note(self.root, "asked", {"step": done})
        if done < len(paths):
            text = f"attempt {len(noted(self.root, 'asked'))} at {paths[done]}\n"
            call = ToolCall(f"call-{done}", "write-file", {"path": paths[done], "content": text})
            yield ChatReply("", (call,), "tool_calls", Usage(1, 1))
        else:
            yield ChatReply("done", (), "end", Usage(1, 1))


def _call_tool(tool: Any, asked: Mapping[str, Any], *, env: Mapping[str, str], cwd: str, timeout_s: float) -> Any:
    """What `write-file` does, call for call."""
    target = Path(cwd) / asked["path"]
    if not target.parent.is_dir():
        fs.calls.mkdir(str(target.parent), 0o755)
    temporary = target.with_name(f".loom-tmp-{target.name}")
    fs.remove(temporary)
    fd = fs.calls.create(str(temporary), 0o600)
    fs.write_all(fd, asked["content"].encode())
    os.close(fd)
    fs.calls.rename(str(temporary), str(target))
    return toolcall.ToolResult("ok", {"path": asked["path"]})


def _executor(root: Path, agent: Agent) -> RoleWorker:
    runners.open_model = lambda *args, **fields: _Model(root)  # type: ignore[assignment]
    toolbox.find_tools = lambda names, dirs: {n: toolbox.Tool(Path(n), _WRITE) for n in names}  # type: ignore
    toolcall.call_tool = _call_tool  # type: ignore[assignment]
    return RoleWorker(agent)


def _goal_setup(root: Path) -> None:
    home = open_home(root / _HOME, _ENV)
    fs.replace(home.config, _POOLS)
    agents.create(home, AgentSpec("router", "builtin", runner="router"), "", "up")
    source = root / "source"
    source.mkdir()
    (source / "given.md").write_text("given\n")
    (source / "ALL.md").write_text("old\n")
    models = dict.fromkeys(("planner", "executor", "verifier"), "builtin")
    limits = Limits(order_timeout_s=1e8)
    spec = GoalSpec(GOAL, "two notes", "tester", NOW_NS // 1_000_000, models, "source", land=True, limits=limits)
    goals.create(home, spec)
    processes._router(root / _HOME, itertools.count()).close()


def _acts(root: Path) -> Iterator[str]:
    """Router and pool take turns until the goal is over; who acted. Paths are relative: orders name them."""
    os.chdir(root)
    home = Path(_HOME)
    happened = sum(1 for _ in goals.events(Home(home), Home(home).goal(GOAL)))
    router = processes._router(home, itertools.count(1000 * (1 + happened) + 300 * _lives))
    makers: dict[str, Callable[[Agent], Any]] = {
        "planner-1": partial(processes._Says, {"plan": _PLAN}),
        "executor-1": partial(_executor, root),
        "verifier-1": partial(processes._Says, processes._VERDICT),
        "keeper-1": KeeperWorker,
    }
    try:
        for _ in range(40):
            router.sweep()
            yield "router"
            if not router.goals:
                return
            for name, make in makers.items():
                if agents.has_mail(Home(home).agent(name)):
                    processes._serve(home, name, make)
                    yield name
    finally:
        router.close()
    raise AssertionError("the goal does not come to an end")


def _goal(root: Path) -> None:
    for _ in _acts(root):
        pass


def _goal_check(root: Path) -> None:
    home = Home(root / _HOME)
    goal = home.goal(GOAL)
    tidy(home.path)
    _lines_good(home.path)
    assert journal.audit(goal.journal, home.blobs, home.head(GOAL)) == []
    happened = processes.events(root)
    state = reducing.fold(happened)
    assert (state.status, state.landing) == ("completed", "landed"), (state.status, state.reason, state.landing)
    processes._once(happened, "order.dispatched", "name")
    processes._once(happened, "order.reported", "order")
    processes._once(happened, "subtask.committed", "subtask")
    processes._once(happened, "subtask.applied", "subtask")
    dispatched = {e.data["name"] for e in happened if e.type == "order.dispatched"}
    for name in ("planner-1", "executor-1", "keeper-1"):
        ordered = {p.stem for p in home.agent(name).inbox.rglob("*.msg")}
        assert ordered <= dispatched, f"orders that the journal does not know: {ordered - dispatched}"
    causes = Counter(e.cause for e in happened if not e.cause.startswith("seq:"))
    assert set(causes.values()) == {1}, f"a file caused two events: {causes}"
    for path in _DELIVERABLES:
        landed = (root / "source" / path).read_text()
        assert landed == (goal.workspace / path).read_text()
        assert landed.startswith("attempt ") and landed.endswith(f" at {path}\n"), f"{path}: {landed!r}"
    for place in (root / "source", goal.workspace):
        assert (place / "given.md").read_text() == "given\n"
        assert not list(place.rglob(".loom-tmp-*"))
        assert sorted(p.name for p in place.rglob("*")) == ["ALL.md", "given.md", "notes", "one.md"]


def _section(name: str, first: int, count: int) -> Workflow:
    """The goal from its act `first` on, `count` acts long. Before it everything was on the disk."""

    def setup(root: Path) -> None:
        _goal_setup(root)
        if first:
            acts = _acts(root)
            for _ in range(first):
                next(acts)
            acts.close()

    def workflow(root: Path) -> None:
        acts = _acts(root)
        for _ in range(count):
            if next(acts, None) is None:
                break
        acts.close()

    return Workflow(Case(name, setup, workflow, _goal, _goal_check), reboot=lambda root: reboot(root / _HOME))


# The acts: router, keeper-1 (snapshot), router, planner-1, router, keeper-1 (prepare), router, executor-1, router,
# keeper-1 (inspect), router, keeper-1 (apply), router, keeper-1 (land), router
GOAL_SECTIONS = (
    _section("goal: begin", 0, 5),
    _section("goal: dispatch", 4, 5),
    _section("goal: report", 7, 5),
    _section("goal: commit", 10, 4),
    _section("goal: land", 12, 4),
)

WORKFLOWS = (
    Workflow(kernel.send, kills=True),
    Workflow(work, kills=True),
    Workflow(failing, kills=True),
    Workflow(kernel.blob_store, kills=True),
    Workflow(kernel.journal_case, kills=True),
    Workflow(heads, kills=True),
    Workflow(torn_ends, kills=True),
    Workflow(state_files, kills=True),
    Workflow(settle_in, reboot=lambda root: reboot(root / _HOME), kills=True),
    _in_home(route, "router"),
    _in_home(processes.PROCESSES[0], "runner"),
    _in_home(processes.PROCESSES[1], "runner fails and retries"),
    *GOAL_SECTIONS,
)

__all__ = ["GOAL_SECTIONS", "WORKFLOWS", "Box", "copies", "json", "nothing"]
