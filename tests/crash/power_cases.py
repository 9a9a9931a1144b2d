"""The workflows that power cuts are tried on: those of the kernel, whole processes, a goal in pieces, pipes, schedules.

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
from hashlib import sha256
from pathlib import Path
from typing import Any

import crash_cases as kernel
import crash_processes as processes
import crash_retention as retention
import yaml  # noqa: F401
from crash_cases import answered_once, letter, lines_whole, retry_failed, stem, tidy
from crash_far_side import far_side, swapped
from crash_goal import BOOT, GOAL, NOW_NS, _Silent, ended_once
from crash_pipe import PIPES
from crash_processes import AGENT, ENV
from crash_schedule import SCHEDULE
from harness import Case, note, noted
from power import Workflow

from loom.core import routing, schema  # noqa: F401
from loom.daemons import runner as runners
from loom.daemons.goalkeeping import Goal
from loom.daemons.keeper import KeeperWorker
from loom.daemons.router import Router
from loom.daemons.runner import ChatWorker, RoleWorker
from loom.daemons.service import Agent, Done, MailboxLoop
from loom.models.builtin import echo  # noqa: F401
from loom.proc import toolbox, toolcall
from loom.proc.stopping import Stopping
from loom.spool import (
    agents,
    blobs,
    bodies,
    crashes,
    differences,
    fs,
    goals,
    journal,
    locks,
    mailbox,
    ndjson,
    secrets,
    trees,
)
from loom.spool.home import open_home
from loom.spool.layout import Box, Home
from loom.spool.turns import Turn
from loom.wire import ids, message
from loom.wire.agent import AgentSpec
from loom.wire.chat import ChatReply, ChatRequest, Chunk, ToolCall, ToolSpec, Usage
from loom.wire.goal import GoalSpec, Limits
from loom.wire.message import Message
from loom.wire.weave import Route

_lives = 0  # of this machine, in a trial's own process


def reboot(home: Path) -> None:
    """The first thing that a process does after the machine was off."""
    global _lives
    _lives += 1
    locks.boot_id = lambda: f"boot-{_lives}"  # type: ignore[assignment]
    open_home(home, ENV)


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


def _recorded(root: Path, box: Box, name: str, attempt: int, reply: Message) -> None:
    """What the turn still has is what was asked last, and what was answered; a final answer has no sync in its turn."""
    turn = Turn(box.turn(name, attempt), root / "blobs")
    turn.close()
    asked = [a for a in noted(root, "asked") if a["stem"] == name and a["attempt"] == attempt]
    for number, step in enumerate(turn.steps):
        if step.reply is not None:
            assert step.reply.text == [a["text"] for a in asked if a["step"] == number][-1]
            assert step.reply.calls or step.reply.text == reply.body


def _answered_once(root: Path, expected: dict[str, int]) -> None:
    with swapped(kernel, "_recorded", _recorded):
        answered_once(root, kernel.Worker(), expected)


def _worked(root: Path) -> None:
    tidy(root)
    _lines_good(root)
    _answered_once(root, {name: 0 for name, _ in _WORKED})


work = Case("work", kernel.agent_with(*_WORKED), Worker().run, Worker().run, _worked, tidy)
_FAILED = letter(4, "fails once")


def _fail_and_retry(root: Path) -> None:
    Worker().run(root)
    retry_failed(root, kernel.Worker())
    Worker().run(root)


def _retried(root: Path) -> None:
    tidy(root)
    _lines_good(root)
    _answered_once(root, {_FAILED[0]: 1})


failing = Case("fail and retry", kernel.agent_with(_FAILED), _fail_and_retry, _fail_and_retry, _retried, tidy)


def _by_hand_setup(root: Path) -> None:
    box = kernel.Worker().box(root)
    kernel.agent_with(*(letter(n, str(n)) for n in (1, 3)))(root)
    fs.move(box.inbox / f"{stem(1)}.msg", box.in_progress / f"{stem(1)}.msg")


def _moved_in(path: Path, data: bytes) -> None:
    """What a shell does (docs/protocol.md section 2): no sync."""
    fs.hint(path, data.decode().removesuffix("\n"))


def _by_hand(root: Path) -> None:
    """A person with `mv` was there first: a message, a claim, a reply, a blob. What is found counts once synced."""
    box = kernel.Worker().box(root)
    name, data = letter(2, "2")
    if mailbox.find(box, name) is None:
        _moved_in(box.inbox / f"{name}.msg", data)
    mailbox.deliver(box, name, data)
    note(root, "accepted", {"stem": name})
    if (box.inbox / f"{stem(3)}.msg").exists():
        _moved_in(box.in_progress / f"{stem(3)}.msg", letter(3, "3")[1])
        fs.move(box.inbox / f"{stem(3)}.msg", box.in_progress / f"{stem(3)}.msg")
    reply_name, reply = message.reply_to(message.decode(letter(1, "1")[1], stem(1)), stem(1), AGENT, 0, "answer", 1)
    if not (box.outbox / f"{reply_name}.msg").exists():
        _moved_in(box.outbox / f"{reply_name}.msg", message.encode(reply))
    assert mailbox.look(box, AGENT, stem(1), 0)[0] == "acknowledge"
    note(root, "answered", {})
    mailbox.acknowledge(box, stem(1))
    blob = b"blob\n"
    path = blobs.path_of(root / "blobs", sha256(blob).hexdigest())
    if not path.exists():
        fs.ensure_dir(path.parent)
        _moved_in(path, blob)
    note(root, "stored", {"digest": blobs.put(root / "blobs", blob)})


def _by_hand_kept(root: Path) -> None:
    box = kernel.Worker().box(root)
    if noted(root, "accepted"):
        assert (box.inbox / f"{stem(2)}.msg").read_bytes() == letter(2, "2")[1], "accepted and not there"
    places = [p / f"{stem(3)}.msg" for p in (box.inbox, box.in_progress)]
    assert letter(3, "3")[1] in [p.read_bytes() for p in places if p.exists()], "a message that was there is gone"
    if noted(root, "answered"):
        reply = ids.reply_stem(AGENT, stem(1))
        assert message.decode((box.outbox / f"{reply}.msg").read_bytes(), reply).body == "answer"
    for stored in noted(root, "stored"):
        assert blobs.get(root / "blobs", stored["digest"]) == b"blob\n"


def _sweep_by_hand(root: Path) -> None:
    """The next life: what a shell left torn is put right by its person, and then all is done once more."""
    box = kernel.Worker().box(root)
    for path in [*box.path.rglob("*.msg"), *(p for p in (root / "blobs").glob("*/*") if p.is_file())]:
        if path.read_bytes()[-1:] != b"\n" or b"\0" in path.read_bytes():
            path.unlink()
    _by_hand(root)


by_hand = Case("by hand", _by_hand_setup, _by_hand, _sweep_by_hand, _by_hand_kept, _by_hand_kept)


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
    if head[0]:
        kernel._journal_readable(root)


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
    home = open_home(root / _HOME, ENV)
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
        for name in ("kept", "one"):
            secrets.put(home, name, "key")
            note(root, "stored", {"name": name})
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
    if noted(root, "stored"):
        assert secrets.get(home, "kept") == "key", "a key that was stored is gone"
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


# -- processes -------------------------------------------------------------------------------------------------


def _agent(home: Path, name: str) -> Agent:
    directory = Home(home).agent(name)
    return Agent(Home(home), directory, agents.read_spec(directory), _Silent(directory.logs), Stopping())


def _serve(home: Path, name: str, make: Callable[[Agent], Any]) -> None:
    """One life of a runner: recover, work until nothing is left, leave."""
    agent = _agent(home, name)
    loop = MailboxLoop(agent, make(agent), BOOT)
    try:
        loop.recover()
        loop.run(drain=True)
    finally:
        loop.close()


def _router(home: Path, numbers: Iterator[int]) -> Router:
    """A router that looks at everything at each sweep, with clock and chance from `numbers`."""

    def draw(count: int) -> bytes:
        return sha256(str(next(numbers)).encode()).digest()[:count]

    make = partial(Goal, clock_ns=lambda: NOW_NS + next(numbers) * 1_000_000, draw=draw)
    router = Router(_agent(home, "router"), BOOT, make)
    router.sights.watch.close()
    return router


def _runner(root: Path) -> None:
    with far_side(root, processes._answer):
        _serve(root, AGENT, ChatWorker)


def _runner_check(root: Path) -> None:
    tidy(root)
    _lines_good(root)
    _answered_once(root, {stem(1): 0, stem(2): 0})


def _fails_and_retries(root: Path) -> None:
    """What fails is tried again by a person, once."""
    _runner(root)
    box = Home(root).agent(AGENT)
    for name in mailbox.failed(box):
        if mailbox.attempts(box, name) <= 1:
            mailbox.retry(box, AGENT, name, "now")
    _runner(root)


def _failing_setup(root: Path) -> None:
    home = open_home(root, ENV)
    box = agents.create(home, AgentSpec(AGENT, "builtin/echo"), "", "up")
    mailbox.deliver(box, *letter(1, "fails once"))


def _failing_check(root: Path) -> None:
    tidy(root)
    _lines_good(root)
    box = Home(root).agent(AGENT)
    assert box.processed(stem(1)).exists() and mailbox.attempts(box, stem(1)) == 1
    found = [mailbox.find_reply(box, AGENT, stem(1), a) for a in range(3)]
    assert [r.error for r in found if r is not None] == [True, False]


runner = Case("runner", processes._runner_setup, _runner, _runner, _runner_check)
retried = Case("runner fails and retries", _failing_setup, _fails_and_retries, _fails_and_retries, _failing_check)

_REPLIES = (letter(1, "one"), letter(2, "two"), letter(3, "three"))
_POOLS = b"pools: {planner: 1, executor: 1, verifier: 1, keeper: 1}\n"


def _route_setup(root: Path) -> None:
    home = open_home(root, ENV)
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
    router = _router(root, itertools.count())
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
            assert home.agent(AGENT).sent(reply).exists(), "a reply is gone"
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


def _route_in_part_setup(root: Path) -> None:
    _route_setup(root)
    fs.replace(Home(root).routes, routing.encode([Route(AGENT, to) for to in ("target", "gone")]))


def _routed_in_part(root: Path) -> None:
    """What left the outbox is told of in `.refused/`, for the one that is gone, once."""
    _routed(root)
    box = Home(root).agent(AGENT)
    for name, _ in _REPLIES:
        reply = ids.reply_stem(AGENT, name)
        if box.sent(reply).exists() and f"{reply}.msg" not in mailbox.outgoing(box):
            assert (box.refused / f"{reply}.msg").read_bytes() == box.sent(reply).read_bytes()
            assert "gone" in json.loads((box.refused / f"{reply}.msg.error.json").read_bytes())["detail"]


def _route_in_part_check(root: Path) -> None:
    _route_check(root)
    _routed_in_part(root)
    assert len(list(Home(root).agent(AGENT).refused.glob("*.msg"))) == len(_REPLIES)


route_in_part = Case(
    "router and one that is gone", _route_in_part_setup, _route, _route, _route_in_part_check, _routed_in_part
)


# -- a goal ----------------------------------------------------------------------------------------------------

_DELIVERABLES = ["notes/one.md", "ALL.md"]
_PLAN = {"subtasks": [{"id": "all", "instruction": "write", "deliverables": _DELIVERABLES, "level": 1}]}
_VERDICT = {"passed": True, "confidence": 0.9, "findings": [], "inconclusive": False}
_WRITE = ToolSpec("write-file", "writes", {"type": "object"}, idempotent=True, writes=True)


class _Says:
    """A planner or verifier whose model always says this."""

    def __init__(self, data: Mapping[str, Any], agent: Agent) -> None:
        self.data = data

    def work(self, claimed: mailbox.Claimed, turn: Turn) -> Done:
        return Done("said", dict(self.data))


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
    home = open_home(root / _HOME, ENV)
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
    _router(root / _HOME, itertools.count()).close()


def _acts(root: Path) -> Iterator[str]:
    """Router and pool take turns until the goal is over; who acted. Paths are relative: orders name them."""
    os.chdir(root)
    home = Path(_HOME)
    happened = sum(1 for _ in goals.events(Home(home), Home(home).goal(GOAL)))
    router = _router(home, itertools.count(1000 * (1 + happened) + 300 * _lives))
    makers: dict[str, Callable[[Agent], Any]] = {
        "planner-1": partial(_Says, {"plan": _PLAN}),
        "executor-1": partial(_executor, root),
        "verifier-1": partial(_Says, _VERDICT),
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
                    _serve(home, name, make)
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
    happened = ended_once(root)
    dispatched = {e.data["name"] for e in happened if e.type == "order.dispatched"}
    for name in ("planner-1", "executor-1", "keeper-1"):
        ordered = {p.stem for p in home.agent(name).inbox.rglob("*.msg")}
        assert ordered <= dispatched, f"orders that the journal does not know: {ordered - dispatched}"
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


# -- what people ask for, and what cannot be read ----------------------------------------------------------------


def _ask_setup(root: Path) -> None:
    home = open_home(root / _HOME, ENV)
    box = agents.create(home, AgentSpec(AGENT, "builtin/echo"), "", "up")
    (box.inbox / f"{stem(1)}.msg").write_bytes(b"no message\n")
    (box.outbox / f"{stem(2)}.msg").write_bytes(b"no message\n")


def _ask(root: Path) -> None:
    """A goal and a control file, accepted; an entry set aside and one refused, with their reasons."""
    home = Home(root / _HOME)
    spec = GoalSpec(GOAL, "two notes", "tester", 1, dict.fromkeys(("planner", "executor", "verifier"), "builtin"))
    if GOAL not in goals.names(home):
        goals.create(home, spec)
        note(root, "accepted", {"goal": GOAL})
    goals.control(home, home.goal(GOAL), stem(3), "pause", "tester", {})
    note(root, "accepted", {"control": stem(3)})
    box = home.agent(AGENT)
    assert mailbox.Inbox(box).claim() is None
    if mailbox.outgoing(box):
        mailbox.refuse(box, f"{stem(2)}.msg", "bad_json", "no message")


def _asked_for(root: Path) -> None:
    home = Home(root / _HOME)
    for known in noted(root, "accepted"):
        assert goals.read_spec(home.goal(GOAL)).by == "tester"
        if "control" in known:
            assert goals.read_control(home.goal(GOAL), f"{stem(3)}.json")["verb"] == "pause"
    box = home.agent(AGENT)
    for name, places in ((stem(1), (box.inbox, box.in_progress, box.unreadable)), (stem(2), (box.outbox, box.refused))):
        assert any((place / f"{name}.msg").exists() for place in places), "what nobody can read is gone"
    for place in (box.unreadable, box.refused):
        for path in place.glob("*.msg"):
            assert json.loads(path.with_name(f"{path.name}.error.json").read_text())["reason"], "set aside, unsaid why"


ask = Case("ask", _ask_setup, _ask, _ask, _asked_for, _asked_for)

# -- gc --------------------------------------------------------------------------------------------------------


def _gc_setup(root: Path) -> None:
    """All mail is answered, and read by its target; the sender's copies still lie in its outbox."""
    retention.setup(root)
    kernel.Worker().run(root)
    box = retention.sender(root)
    for name in mailbox.outgoing(box):
        mailbox.deliver(retention.target(root), name[:-4], mailbox.read_message(box.outbox / name))
    retention.read(root)


def _gc(root: Path) -> None:
    """They are marked as sent, unsynced as ever, and then everything is old."""
    box = retention.sender(root)
    for name in mailbox.outgoing(box):
        mailbox.mark_sent(box, name[:-4])
    retention.gc(root)


def _gc_again(root: Path) -> None:
    for _ in range(2):
        retention.route(root)
        retention.gc(root)


def _gc_check(root: Path) -> None:
    retention.nothing_lost(root)
    target = retention.target(root)
    assert not agents.has_mail(target), "what was read, and put away, is delivered a second time"
    assert mailbox.outgoing(retention.sender(root)) == []


def _gc_mail_setup(root: Path) -> None:
    """Without a blob that nobody refers to: its removal begins with a sync of everything."""
    _gc_setup(root)
    blobs.path_of(root / "blobs", sha256(b"nobody's").hexdigest()).unlink()


def _gc_blobs_setup(root: Path) -> None:
    (root / "blobs").mkdir()
    turns = Home(root).agent("leaver").turns
    fs.ensure_dir(turns)
    record = {"t": "reply", "step": 0, "blob": blobs.put(root / "blobs", b"said")}
    (turns / f"{stem(1)}.0.ndjson").write_text(f"{json.dumps(record)}\n")


def _gc_blobs(root: Path) -> None:
    """An agent is removed, unsynced, and the blob that only it referred to is set aside and then removed."""
    fs.remove_tree(Home(root).agent("leaver").path)
    for _ in range(2):
        retention.gc(root)


def _referred_is_there(root: Path) -> None:
    """Set aside counts: the next gc brings it back."""
    for path in Home(root).agent("leaver").turns.glob("*.ndjson"):
        blob = blobs.path_of(root / "blobs", json.loads(path.read_text())["blob"])
        assert blob.exists() or (blob.parent / fs.TMP / blob.name).exists(), "what refers to it came back without it"


gc = Case("gc", _gc_setup, _gc, _gc_again, _gc_check, retention.nothing_lost)
gc_mail = Case("gc mail", _gc_mail_setup, _gc, _gc_again, _gc_check, retention.nothing_lost)
gc_blobs = Case("gc blobs", _gc_blobs_setup, _gc_blobs, retention.gc, _referred_is_there, _referred_is_there)

# -- the deeds of a keeper, one by one --------------------------------------------------------------------------

_NEW = {"ALL.md": "new\n", "given.md": "given\n", "notes/one.md": "one\n"}


def _deeds_setup(root: Path) -> None:
    _goal_setup(root)
    (root / "source" / "gone.md").write_text("gone\n")


def _deeds(root: Path) -> None:
    """What orders make a keeper do, each told of when it is done, and then not ordered again.

    `write` is the executor's, whose tool calls are synced.
    """
    os.chdir(root)
    home = Home(Path(_HOME))
    keeper, goal = KeeperWorker(_agent(home.path, "keeper-1")), home.goal(GOAL)
    tree, place = goal.tree("all", 0), {"subtask": "all", "attempt": 0}
    told = {n["deed"]: n.get("blob", "") for n in noted(root, "done")}

    def tell(deed: str, blob: str = "") -> None:
        told[deed] = blob
        note(root, "done", {"deed": deed, "blob": blob})

    if "snapshot" not in told:
        tell("snapshot", keeper.snapshot(goal, {"source": "source"})["base"])
    if "prepare" not in told:
        keeper.prepare(goal, place)
        tell("prepare")
    if "write" not in told:
        for path in _DELIVERABLES:
            _call_tool(None, {"path": path, "content": _NEW[path]}, env={}, cwd=str(tree), timeout_s=1)
        fs.remove(tree / "gone.md")
        fs.sync_tree(tree)
        tell("write")
    if "inspect" not in told:
        changes = differences.compare(trees.scan(goal.workspace), trees.scan(tree))
        differences.store(home.blobs, goal.workspace, tree, changes)
        tell("inspect", keeper._put(differences.changes_to_json(changes)))
    if "apply" not in told:
        assert keeper.apply(goal, {"changes": told["inspect"], **place})["conflicts"] == []
        tell("apply")
    if "land" not in told:
        assert keeper.land(goal, {"source": "source", "base": told["snapshot"]})["conflicts"] == []
        tell("land")


def _texts(tree: Path) -> dict[str, str]:
    return {str(p.relative_to(tree)): p.read_text() for p in sorted(tree.rglob("*")) if p.is_file()}


def _deeds_kept(root: Path) -> None:
    """Before anything repairs it: what was told of is there."""
    told = {n["deed"] for n in noted(root, "done")}
    goal = Home(root / _HOME).goal(GOAL)
    old = {"ALL.md": "old\n", "given.md": "given\n", "gone.md": "gone\n"}
    if "snapshot" in told and "inspect" not in told:
        assert _texts(goal.workspace) == old
    if "prepare" in told and "write" not in told:
        found = _texts(goal.tree("all", 0))
        assert found["given.md"] == "given\n" and found.keys() >= {"ALL.md", "given.md"}
    if "write" in told and "inspect" not in told:
        assert _texts(goal.tree("all", 0)) == _NEW
    if "apply" in told:
        assert _texts(goal.workspace) == _NEW, "applied and not there"
    if "land" in told:
        assert _texts(root / "source") == _NEW, "landed and not there"


def _deeds_done(root: Path) -> None:
    _deeds_kept(root)
    assert {n["deed"] for n in noted(root, "done")} >= {"apply", "land"}


deeds = Case("deeds", _deeds_setup, _deeds, _deeds, _deeds_done, _deeds_kept)

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
    Workflow(by_hand),
    Workflow(work, kills=True),
    Workflow(failing, kills=True),
    Workflow(kernel.blob_store, kills=True),
    Workflow(kernel.journal_case, kills=True),
    Workflow(heads, kills=True),
    Workflow(torn_ends, kills=True),
    Workflow(state_files, kills=True),
    Workflow(settle_in, reboot=lambda root: reboot(root / _HOME), kills=True),
    Workflow(ask, reboot=lambda root: reboot(root / _HOME)),
    Workflow(route, reboot=reboot),
    Workflow(route_in_part, reboot=reboot),
    Workflow(runner, reboot=reboot),
    Workflow(retried, reboot=reboot),
    Workflow(gc),
    Workflow(gc_mail),
    Workflow(gc_blobs, kills=True),
    Workflow(deeds, reboot=lambda root: reboot(root / _HOME), kills=True),
    *GOAL_SECTIONS,
)


# -- pipes and schedules -----------------------------------------------------------------------------------------


def _pipe(case: Case) -> Workflow:
    def recover(root: Path) -> None:
        note(root, "crashes", {})  # killed or cut off: a program that the pipe had started may be run once more
        case.recover(root)

    def check(root: Path) -> None:
        _lines_good(root)
        case.check(root)

    return Workflow(replace(case, recover=recover, check=check), reboot=reboot)


# Their states are a hundred thousand and more, most of them lines of a log: a drawn part of them is tried.
IN_PART = (*map(_pipe, PIPES), Workflow(SCHEDULE))

__all__ = ["GOAL_SECTIONS", "IN_PART", "WORKFLOWS"]
