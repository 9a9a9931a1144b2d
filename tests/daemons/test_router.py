"""The router as a process: what lies in the outboxes goes where it belongs, once (docs/protocol.md section 4)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import ROOT, wait_until

from loom.daemons.goalkeeping import Goal
from loom.spool import agents, fs, goals, journal, mailbox
from loom.spool.home import open_home
from loom.spool.layout import AgentDir, Home
from loom.wire import goal as goal_wire
from loom.wire import ids, message
from loom.wire.agent import AgentSpec
from loom.wire.goal import GoalSpec
from loom.wire.message import Message

REQUEST = ids.message_stem(1_790_000_000_000, bytes(10))


@pytest.fixture
def home(tmp_path: Path) -> Home:
    home = open_home(tmp_path / "home", {"LOOM_ALLOW_FILESYSTEM": "1"})
    agents.create(home, AgentSpec("router", "builtin", runner="router"), "", "up")
    for name in ("a", "b", "c"):
        agents.create(home, AgentSpec(name, "builtin/echo"), "", "down")
    return home


def route(home: Home) -> None:
    """One whole life of the router: it looks at everything and leaves."""
    command = [sys.executable, str(ROOT / "runners" / "router"), str(home.agent("router").path), "--drain"]
    env = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "LOOM_HOME": str(home.path)}
    done = subprocess.run(command, env=env, capture_output=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr.decode()


def routes(home: Home, *pairs: tuple[str, str]) -> None:
    lines = [{"from": a, "to": b} for a, b in pairs]
    home.routes.write_text(json.dumps({"v": 1, "routes": lines}))


def reply(home: Home, owner: str, body: str = "done", **fields: object) -> str:
    """A reply to REQUEST in the outbox of `owner`; its name."""
    stem = ids.reply_stem(owner, REQUEST)
    said = {"from_": owner, "ts_ms": 1, "body": body, "origin": REQUEST} | fields
    mailbox.answer(home.agent(owner), stem, Message(ids.ulid_of(stem), **said))  # type: ignore[arg-type]
    return stem


def inbox(agent: AgentDir) -> dict[str, Message]:
    found = {}
    for name in sorted(os.listdir(agent.inbox)):
        if name.endswith(".msg"):
            found[name[:-4]] = message.decode((agent.inbox / name).read_bytes(), name[:-4])
    return found


def refusal(agent: AgentDir) -> str:
    (note,) = agent.refused.glob("*.error.json")
    return str(json.loads(note.read_text())["reason"])


def test_a_reply_goes_to_every_route_of_its_sender_under_its_own_name(home: Home):
    routes(home, ("a", "b"), ("a", "c"), ("b", "c"))
    stem = reply(home, "a")
    raw = (home.agent("a").outbox / f"{stem}.msg").read_bytes()
    route(home)
    for name in ("b", "c"):
        assert (home.agent(name).inbox / f"{stem}.msg").read_bytes() == raw
    assert home.agent("a").sent(stem).read_bytes() == raw
    assert not mailbox.outgoing(home.agent("a"))


def test_routing_again_after_a_crash_delivers_nothing_twice(home: Home):
    routes(home, ("a", "b"))
    stem = reply(home, "a")
    raw = (home.agent("a").outbox / f"{stem}.msg").read_bytes()
    route(home)
    (home.agent("a").outbox / f"{stem}.msg").write_bytes(raw)  # as if the move to .sent had been lost
    os.rename(home.agent("b").inbox / f"{stem}.msg", home.agent("b").in_progress / f"{stem}.msg")
    home.agent("a").sent(stem).unlink()
    route(home)
    assert not inbox(home.agent("b"))
    assert home.agent("a").sent(stem).exists()


def test_without_a_route_it_goes_where_the_message_says_and_without_that_nowhere(home: Home):
    to_b = reply(home, "a", to="b")
    nowhere = reply(home, "c")
    route(home)
    assert list(inbox(home.agent("b"))) == [to_b]
    assert home.agent("a").sent(to_b).exists() and home.agent("c").sent(nowhere).exists()


def test_a_typed_answer_goes_to_whoever_asked_whatever_the_routes_say(home: Home):
    routes(home, ("a", "b"))
    stem = reply(home, "a", to="c", kind="question")
    route(home)
    assert not inbox(home.agent("b"))
    assert list(inbox(home.agent("c"))) == [stem]


def test_several_outputs_are_several_messages_under_names_anyone_can_compute(home: Home):
    routes(home, ("a", "b"))
    reply(home, "a", parts=("one", "two"), thread="t")
    route(home)
    expected = {ids.reply_stem("a", REQUEST, 0, k): body for k, body in ((1, "one"), (2, "two"))}
    got = inbox(home.agent("b"))
    assert {name: m.body for name, m in got.items()} == expected
    assert {(m.from_, m.origin, m.thread, m.parts) for m in got.values()} == {("a", REQUEST, "t", None)}


def test_no_outputs_route_nothing_and_are_sent(home: Home):
    routes(home, ("a", "b"))
    stem = reply(home, "a", parts=())
    route(home)
    assert not inbox(home.agent("b"))
    assert home.agent("a").sent(stem).exists()


def test_what_may_not_be_routed_is_refused_with_its_reason_and_the_rest_goes_on(home: Home):
    routes(home, ("b", "c"), ("a", "nobody"))
    reply(home, "a")
    forged = ids.reply_stem("b", REQUEST, 0, 7)
    liar = Message(ids.ulid_of(forged), from_="a", ts_ms=1, body="I am a", origin=REQUEST)
    mailbox.answer(home.agent("b"), forged, liar)
    good = reply(home, "b")
    (home.agent("c").outbox / "no-name.msg").write_text("{}")
    route(home)
    assert refusal(home.agent("a")) == "no_target"
    assert refusal(home.agent("b")) == "wrong_sender"
    assert refusal(home.agent("c")) == "bad_name"
    assert list(inbox(home.agent("c"))) == [good]


def test_who_is_there_gets_what_another_target_cannot_have(home: Home):
    """A crash at any point leads here again: after the delivery, after the record, and when the other one has come."""
    routes(home, ("a", "b"), ("a", "gone"), ("a", "c"), ("a", "left"))
    a, gone = home.agent("a"), home.agent("gone")
    stem = reply(home, "a")
    raw = (a.outbox / f"{stem}.msg").read_bytes()
    for sent_before in (False, True):
        if sent_before:  # as if the move to .sent had been lost
            a.sent(stem).rename(a.outbox / f"{stem}.msg")
        route(home)
        for name in ("b", "c"):
            assert (home.agent(name).inbox / f"{stem}.msg").read_bytes() == raw
        assert a.sent(stem).read_bytes() == raw and not mailbox.outgoing(a)
        assert sorted(os.listdir(a.refused)) == [".tmp", f"{stem}.msg", f"{stem}.msg.error.json"]
        assert (a.refused / f"{stem}.msg").read_bytes() == raw
        note = json.loads((a.refused / f"{stem}.msg.error.json").read_text())
        assert (note["reason"], note["detail"]) == ("no_target", "there is no agent 'gone'; there is no agent 'left'")
    for name in ("gone", "left"):
        agents.create(home, AgentSpec(name, "builtin/echo"), "", "down")
    mailbox.Inbox(home.agent("b")).claim()
    (a.refused / f"{stem}.msg").rename(a.outbox / f"{stem}.msg")  # a person moves it back
    route(home)
    assert (gone.inbox / f"{stem}.msg").read_bytes() == raw
    assert not inbox(home.agent("b")) and list(inbox(home.agent("c"))) == [stem]
    assert a.sent(stem).read_bytes() == raw and not mailbox.outgoing(a)


def test_parts_go_to_who_is_there_too(home: Home):
    routes(home, ("a", "gone"), ("a", "b"))
    stem = reply(home, "a", parts=("one", "two"))
    route(home)
    assert sorted(m.body for m in inbox(home.agent("b")).values()) == ["one", "two"]
    assert refusal(home.agent("a")) == "no_target" and home.agent("a").sent(stem).exists()


def test_a_message_whose_targets_are_all_missing_is_refused(home: Home):
    routes(home, ("a", "gone"), ("a", "left"))
    stem = reply(home, "a")
    route(home)
    assert refusal(home.agent("a")) == "no_target"
    assert (home.agent("a").refused / f"{stem}.msg").exists() and not home.agent("a").sent(stem).exists()


def test_a_name_taken_by_another_message_is_a_conflict(home: Home):
    routes(home, ("a", "b"))
    stem = reply(home, "a")
    other = Message(ids.ulid_of(stem), from_="x", ts_ms=1, body="other")
    mailbox.deliver(home.agent("b"), stem, message.encode(other))
    route(home)
    assert refusal(home.agent("a")) == "conflict"
    assert inbox(home.agent("b"))[stem].body == "other"


def test_an_answer_to_a_goal_that_is_gone_is_only_marked_as_sent(home: Home):
    stem = reply(home, "a", to="router", kind="plan", goal="20260101-gone-abcd")
    route(home)
    assert home.agent("a").sent(stem).exists()


def test_a_torn_end_of_a_journal_is_cut_kept_and_noted(home: Home):
    models = dict.fromkeys(("planner", "executor", "verifier"), "builtin")
    spec = GoalSpec("20260101-torn-abcd", "a goal", "tester", 1_790_000_000_000, models)
    goal = goals.create(home, spec)
    goals.control(home, goal, REQUEST, "cancel", "tester", {})
    writer = journal.Journal(goal.journal, home.blobs, home.head(goal.id))
    writer.append("goal.created", {"agent": "router"}, "goal.md", {"goal": goal_wire.to_json(spec)})
    writer.close()
    with goal.journal.open("ab") as file:
        file.write(b'{"v":1,"seq":2,"ty')
    route(home)
    types = [e.type for e in goals.events(home, goal)]
    assert types == ["goal.created", "journal.mended", "goal.cancelled"]
    (torn,) = goal.path.glob("journal.ndjson.torn.*")
    assert torn.read_bytes() == b'{"v":1,"seq":2,"ty'


def test_the_name_of_a_goal_is_durable_before_anything_is_done_for_it(home: Home, monkeypatch: pytest.MonkeyPatch):
    """Whoever made it may have been killed between its rename and its sync."""
    made = []

    class Watching(fs.Calls):
        def fsync_dir(self, path: str) -> None:
            made.append(path)
            super().fsync_dir(path)

        def fdatasync(self, fd: int) -> None:
            made.append(os.readlink(f"/proc/self/fd/{fd}"))
            super().fdatasync(fd)

    models = dict.fromkeys(("planner", "executor", "verifier"), "builtin")
    goal = goals.create(home, GoalSpec("20260922-a-test-abcd", "test", "tester", 1, models))
    monkeypatch.setattr(fs, "calls", Watching())
    Goal(home, goal, {"agent": "router", "pid": 1, "start": 1}).close()
    assert str(goal.journal) in made
    assert made.index(str(home.goals)) < made.index(str(goal.journal))


# Looks only when it is rung or hears of a change: all of it within an hour of the first look comes by an event.
ALERT = """
import sys
from collections.abc import Iterator
from pathlib import Path
from loom.daemons import router
router.SWEEP_S = 3600.0
sys.exit(router.serve_router(Path(sys.argv[1])))
"""


@pytest.fixture
def alert(home: Home) -> Iterator[subprocess.Popen[bytes]]:
    """A router that has had its look everywhere, under a supervisor: without one it would look every two seconds."""
    settled = reply(home, "a", to="b")
    ready, ready_w = os.pipe()
    alone, alone_w = os.pipe()
    env = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "LOOM_HOME": str(home.path)}
    env |= {"LOOM_READY_FD": str(ready_w), "LOOM_ALONE_FD": str(alone)}
    command = [sys.executable, "-c", ALERT, str(home.agent("router").path)]
    child = subprocess.Popen(command, env=env, pass_fds=(ready_w, alone))
    for fd in (ready_w, alone):
        os.close(fd)
    assert os.read(ready, 1) == b"\n"
    wait_until(lambda: home.agent("a").sent(settled).exists())
    try:
        yield child
    finally:
        child.terminate()
        assert child.wait(30) == 0
        os.close(ready)
        os.close(alone_w)


def test_an_agent_made_while_the_router_runs_is_heard_at_once(home: Home, alert: subprocess.Popen[bytes]):
    agents.create(home, AgentSpec("late", "builtin/echo"), "", "down")
    stem = reply(home, "late", to="b")
    wait_until(lambda: home.agent("late").sent(stem).exists())
    assert stem in inbox(home.agent("b"))


def test_so_is_one_made_anew_under_the_name_of_one_that_was_removed(home: Home, alert: subprocess.Popen[bytes]):
    fs.move(home.agent("a").path, home.agents / ".tmp-a")
    agents.create(home, AgentSpec("a", "builtin/echo"), "", "down")
    fs.remove_tree(home.agents / ".tmp-a")
    stem = ids.reply_stem("a", REQUEST, 1)
    mailbox.answer(home.agent("a"), stem, Message(ids.ulid_of(stem), from_="a", ts_ms=1, body="again", to="c"))
    wait_until(lambda: home.agent("a").sent(stem).exists())
    assert stem in inbox(home.agent("c"))


def test_so_is_one_whose_directory_lay_there_before_it(home: Home, alert: subprocess.Popen[bytes]):
    (home.agent("pipe").path / "logs").mkdir(parents=True)  # what a filter of this name leaves
    stem = ids.reply_stem("a", REQUEST, 2)
    mailbox.answer(home.agent("a"), stem, Message(ids.ulid_of(stem), from_="a", ts_ms=1, body="so far", to="c"))
    wait_until(lambda: home.agent("a").sent(stem).exists())
    agents.create(home, AgentSpec("pipe", "builtin/echo"), "", "down")
    late = reply(home, "pipe", to="b")
    wait_until(lambda: home.agent("pipe").sent(late).exists())
    assert late in inbox(home.agent("b"))


def test_so_is_the_first_pipe_of_a_home(home: Home, alert: subprocess.Popen[bytes]):
    assert not home.pipes.exists()
    name = ids.instance("lines", "a", "b")
    agents.create(home, AgentSpec(name, "builtin"), "", "down")
    stem = reply(home, name, to="b")
    wait_until(lambda: home.agent(name).sent(stem).exists())
    assert stem in inbox(home.agent("b"))
