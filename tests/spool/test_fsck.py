"""fsck: every kind of damage by itself, and any of them together; without --repair not a byte changes."""

from __future__ import annotations

import json
import os
import random
import shutil
import socket
import time
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from support import scratch

from loom.core.fsck import exit_status
from loom.spool import agents, blobs, fs, fsck, goals, journal, locks, mailbox
from loom.spool import home as homes
from loom.spool.findings import Finding
from loom.spool.layout import Home
from loom.wire import exits, ids, message
from loom.wire import goal as goal_wire
from loom.wire.agent import AgentSpec
from loom.wire.errors import Config, NotFound, TryLater
from loom.wire.goal import GoalSpec
from loom.wire.message import Message

T0_MS = 1_790_000_000_000
GOAL = "20260101-goal-1234"
DAY_S = 86_400


def stem(number: int) -> str:
    return ids.message_stem(T0_MS + number, number.to_bytes(10, "big"))


class World:
    """A home with an agent `a` that has worked, a left filter, a goal and blobs. All of it is as it should be."""

    def __init__(self, path: Path) -> None:
        self.home = homes.open_home(path)
        self.a = agents.create(self.home, AgentSpec(name="a", model="builtin/echo"), "Be short.", "down")
        agents.create(self.home, AgentSpec(name="router", model="builtin/echo", runner="router"), "", "demand")
        self.request(1, self.a.processed(stem(1)))
        self.reply(1, self.a.sent(self.reply_name(1)))
        self.write(self.a.turn(stem(1), 0), b'{"t":"open"}\n')
        self.write(self.a.conversation("main"), self.lines(1))
        self.request(2, self.a.inbox / f"{stem(2)}.msg")
        self.request(3, self.a.failed / f"{stem(3)}.msg")
        self.write(self.a.error_of(stem(3)), b'{"attempts":1}\n')
        place = self.home.filter_box(stem(9)).path
        self.write(place / f"{stem(9)}.msg")
        models = dict.fromkeys(("planner", "executor", "verifier"), "builtin")
        spec = GoalSpec(GOAL, "Do it.", "user", 1, models)
        self.goal = goals.create(self.home, spec)
        book = journal.Journal(self.goal.journal, self.home.blobs, self.home.head(GOAL))
        book.append("goal.created", {"agent": "router"}, "goal.md", {"goal": goal_wire.to_json(spec)})
        message_blob = blobs.put(self.home.blobs, b'{"an":"order"}')
        order = {"role": "planner", "agent": "planner-1", "kind": "plan", "subtask": "", "attempt": 0}
        order |= {"name": stem(20), "deadline_us": 1, "message": message_blob}
        book.append("order.dispatched", {}, "seq:1", order)
        book.note_head()
        book.close()
        self.order = message_blob
        self.tidy()

    def tidy(self) -> None:
        """The modes that files of loom have."""
        for path in [self.home.path, *self.home.path.rglob("*")]:
            if not path.is_symlink() and "run" not in path.relative_to(self.home.path).parts:
                path.chmod(0o700 if path.is_dir() else 0o600)

    def write(self, path: Path, data: bytes = b"x") -> Path:
        fs.ensure_dir(path.parent)
        path.write_bytes(data)
        path.chmod(0o600)
        return path

    def request(self, number: int, path: Path, body: str = "", **fields: Any) -> Path:
        found = Message(ids.ulid_of(stem(number)), "user", T0_MS, body or f"question {number}", **fields)
        return self.write(path, message.encode(found))

    def reply_name(self, number: int, attempt: int = 0) -> str:
        return ids.reply_stem("a", stem(number), attempt)

    def reply(self, number: int, path: Path, attempt: int = 0, **fields: Any) -> Path:
        asked = Message(ids.ulid_of(stem(number)), "user", T0_MS, "")
        _, reply = message.reply_to(asked, stem(number), "a", attempt, f"answer {number}", 1, **fields)
        return self.write(path, message.encode(reply))

    def lines(self, number: int) -> bytes:
        said = [{"name": stem(number), "role": role, "text": "x"} for role in ("user", "assistant")]
        return b"".join(json.dumps(line).encode() + b"\n" for line in said)

    def check(self, repair: bool = False, days: float = 0) -> list[Finding]:
        return list(fsck.check(self.home, repair=repair, now_s=time.time() + days * DAY_S))


@pytest.fixture
def world(quick_path: Path) -> World:
    return World(quick_path / "home")


def picture(path: Path) -> dict[str, tuple[int, bytes]]:
    """Everything below a path: mode, and what it holds."""

    def held(p: Path) -> bytes:
        if p.is_symlink():
            return os.fsencode(os.readlink(p))
        return sha256(p.read_bytes()).digest() if p.is_file() else b""

    return {str(p): (p.lstat().st_mode, held(p)) for p in [path, *path.rglob("*")]}


def test_a_healthy_home_has_no_findings_and_is_left_as_it_is(world: World):
    before = picture(world.home.path)
    assert world.check() == []
    assert picture(world.home.path) == before
    assert world.check(repair=True) == []


# -- what is mended ----------------------------------------------------------------------------------------------


def wrong_mode(w: World) -> Path:
    w.a.want.chmod(0o644)
    return w.a.want


def wrong_directory_mode(w: World) -> Path:
    w.a.inbox.chmod(0o755)
    return w.a.inbox


def open_tool(w: World) -> Path:
    tool = w.write(w.home.tools / "mine", b"#!/bin/sh\n")
    tool.chmod(0o755)
    return tool


def missing_directory(w: World) -> Path:
    w.a.in_progress.rmdir()
    return w.a.in_progress


def missing_heads(w: World) -> Path:
    (w.home.path / "filters").rename(w.home.path / ".filters")
    return w.home.filters


def failure_without_record(w: World) -> Path:
    w.a.error_of(stem(3)).unlink()
    return w.a.failed / f"{stem(3)}.msg"


def failure_recorded_for_the_attempt_before(w: World) -> Path:
    w.reply(3, w.a.outbox / f"{w.reply_name(3, 1)}.msg", attempt=1, error=True, data={"error_type": "poison"})
    return w.a.failed / f"{stem(3)}.msg"


def answered_not_moved(w: World) -> Path:
    w.reply(4, w.a.outbox / f"{w.reply_name(4)}.msg")
    with w.a.conversation("main").open("ab") as file:
        file.write(w.lines(4))
    return w.request(4, w.a.in_progress / f"{stem(4)}.msg")


def order_answered_not_moved(w: World) -> Path:
    w.reply(4, w.a.sent(w.reply_name(4)))
    return w.request(4, w.a.in_progress / f"{stem(4)}.msg", kind="plan")


def failure_answered_not_filed(w: World) -> Path:
    w.reply(4, w.a.sent(w.reply_name(4)), error=True, data={"error_type": "poison", "hint": "look"})
    return w.request(4, w.a.in_progress / f"{stem(4)}.msg")


def claimed_twice(w: World) -> Path:
    shutil.copy(w.a.inbox / f"{stem(2)}.msg", w.a.in_progress)
    return w.a.inbox / f"{stem(2)}.msg"


def linked_and_not_unlinked(w: World) -> Path:
    os.link(w.a.processed(stem(1)), w.a.in_progress / f"{stem(1)}.msg")
    return w.a.in_progress / f"{stem(1)}.msg"


def sent_and_waiting(w: World) -> Path:
    shutil.copy(w.a.sent(w.reply_name(1)), w.a.outbox)
    return w.a.outbox / f"{w.reply_name(1)}.msg"


def unreadable_in_progress(w: World) -> Path:
    return w.write(w.a.in_progress / f"{stem(4)}.msg", b"{")


def torn_turn(w: World) -> Path:
    w.a.turn(stem(1), 0).write_bytes(b'{"t":"open"}\n{"t":"req')
    return w.a.turn(stem(1), 0)


def torn_conversation(w: World) -> Path:
    w.a.conversation("main").write_bytes(w.lines(1) + b"\0" * 100)
    return w.a.conversation("main")


def torn_journal(w: World) -> Path:
    with w.goal.journal.open("ab") as file:
        file.write(b'{"v":1,"seq":3')
    return w.goal.journal


def wrong_resting(w: World) -> Path:
    return w.write(goals.rest_marker(w.goal), b"completed\n")


def wrong_snapshot(w: World) -> Path:
    record = {"seq": 1, "head": "0" * 64, "reducer": 1, "state": {}}
    return w.write(w.goal.state, json.dumps(record).encode())


def snapshot_ahead(w: World) -> Path:
    return w.write(w.goal.state, b'{"seq":99,"head":"x","reducer":1,"state":{}}')


def no_snapshot_at_all(w: World) -> Path:
    return w.write(w.goal.state, b"{")


def unsynced_directory(w: World) -> Path:
    """As ensure_dir leaves it when it is killed before the sync."""
    (w.a.path / "memory").chmod(0o1700)
    return w.a.path / "memory"


def dead_pid(w: World) -> Path:
    return w.write(w.a.pid, b"1\n")


def dead_status(w: World) -> Path:
    w.a.status.write_text("running\n")
    return w.a.status


def dead_supervisor(w: World) -> Path:
    return w.write(w.home.supervisor_pid, b"1\n")


def dead_supervisor_record(w: World) -> Path:
    return w.write(w.home.supervisor_record, b"{}\n")


def other_boot(w: World) -> Path:
    w.home.boot_id.write_text("another\n")
    return w.home.run


def no_run(w: World) -> Path:
    shutil.rmtree(w.home.run)
    return w.home.run


MENDED = [
    wrong_mode, wrong_directory_mode, open_tool, missing_directory, missing_heads, failure_without_record,
    failure_recorded_for_the_attempt_before, answered_not_moved, order_answered_not_moved, failure_answered_not_filed,
    claimed_twice, linked_and_not_unlinked, sent_and_waiting, torn_turn, torn_conversation, torn_journal, wrong_resting,
    wrong_snapshot, unsynced_directory,
    snapshot_ahead, no_snapshot_at_all, dead_pid, dead_status, dead_supervisor, dead_supervisor_record,
    other_boot, no_run,
]  # fmt: skip


@pytest.mark.parametrize("injure", MENDED, ids=lambda f: f.__name__)
def test_what_a_crash_leaves_and_what_is_derived_is_mended(world: World, injure: Callable[[World], Path]):
    path = injure(world)
    before = picture(world.home.path)
    (told,) = world.check()
    assert (told.path, told.status) == (path, "mend")
    assert picture(world.home.path) == before
    (mended,) = world.check(repair=True)
    assert (mended.path, mended.status, mended.what) == (path, "mended", told.what)
    assert world.check() == []


def test_litter_of_36_hours_is_removed_and_younger_is_not(world: World):
    half = [world.write(world.home.path / place / ".tmp" / "half") for place in (".", "agents/a/inbox", "goals")]
    left = world.write(world.home.filter_box(stem(8)).path / "agent.json").parent
    world.tidy()
    assert world.check(days=1.4) == []
    assert {f.path for f in world.check(days=1.6)} == {*half, left}
    assert {f.status for f in world.check(True, days=1.6)} == {"mended"}
    assert not left.exists() and not any(p.exists() for p in half)


def test_an_unreadable_claim_is_set_aside_and_then_told(world: World):
    path = unreadable_in_progress(world)
    assert [f.status for f in world.check()] == ["mend"]
    assert [f.status for f in world.check(repair=True)] == ["mended"]
    (left,) = world.check()
    assert left.status == "person" and left.path == world.a.unreadable / path.name and "malformed" in left.what


def test_a_torn_journal_is_cut_as_the_router_cuts_it(world: World):
    torn_journal(world)
    world.check(repair=True)
    events = list(journal.read(world.goal.journal, world.home.blobs))
    assert [e.type for e in events] == ["goal.created", "order.dispatched", "journal.mended"]
    assert events[-1].data == {"torn_bytes": 14} and events[-1].cause == "seq:2" and events[-1].actor["agent"] == "fsck"
    (kept,) = world.goal.path.glob("journal.ndjson.torn.*")
    assert kept.read_bytes() == b'{"v":1,"seq":3'


@pytest.mark.parametrize("injure, attempts", [(failure_without_record, 1), (failure_recorded_for_the_attempt_before, 2),
                                              (failure_answered_not_filed, 1)])  # fmt: skip
def test_a_mended_failure_can_be_tried_again(world: World, injure: Callable[[World], Path], attempts: int):
    name = injure(world).name[:-4]
    world.check(repair=True)
    assert mailbox.attempts(world.a, name) == attempts
    assert mailbox.retry(world.a, "a", name, "now")
    assert mailbox.look(world.a, "a", name, attempts)[0] == "work"


def test_a_failure_that_was_answered_is_filed_with_its_reason(world: World):
    failure_answered_not_filed(world)
    world.check(repair=True)
    record = mailbox.read_error(world.a, stem(4))
    assert record is not None and (record["error_type"], record["hint"]) == ("poison", "look")


def test_what_lacks_its_conversation_is_left_to_the_runner(world: World):
    """fsck does not write what was said."""
    world.reply(4, world.a.outbox / f"{world.reply_name(4)}.msg")
    path = world.request(4, world.a.in_progress / f"{stem(4)}.msg")
    for repair in (False, True):
        (told,) = world.check(repair=repair)
        assert (told.path, told.status) == (path, "waits") and path.exists()
    assert exit_status(["waits"]) == exits.DONE


def test_a_claim_without_an_answer_and_a_waiting_message_are_nothing_wrong(world: World):
    world.request(4, world.a.in_progress / f"{stem(4)}.msg")
    world.write(world.a.turn(stem(4), 0), b'{"t":"open"}\n')
    assert world.check() == []


# -- what a person decides ---------------------------------------------------------------------------------------


def odd_entry(w: World) -> Path:
    return w.write(w.a.inbox / "notes.txt")


def hidden_entry(w: World) -> Path:
    return w.write(w.a.inbox / f".{stem(5)}.msg")


def hidden_in_outbox(w: World) -> Path:
    return w.write(w.a.outbox / ".notes")


def bad_name(w: World) -> Path:
    return w.write(w.a.inbox / "hello.msg")


def bad_waiting(w: World) -> Path:
    return w.write(w.a.inbox / f"{stem(5)}.msg", b"\xff")


def bad_processed(w: World) -> Path:
    w.a.processed(stem(1)).write_bytes(b"{}")
    return w.a.processed(stem(1))


def two_of_one_name(w: World) -> Path:
    return w.request(1, w.a.inbox / f"{stem(1)}.msg", "something else")


def set_aside(w: World) -> Path:
    w.write(w.a.unreadable / f"{stem(5)}.msg.error.json", b'{"reason":"malformed","detail":"no JSON"}')
    return w.write(w.a.unreadable / f"{stem(5)}.msg", b"{")


def reason_alone(w: World) -> Path:
    return w.write(w.a.unreadable / f"{stem(5)}.msg.error.json", b"{}")


def refused(w: World) -> Path:
    return w.write(w.a.refused / f"{stem(5)}.msg", b"{")


def record_without_message(w: World) -> Path:
    return w.write(w.a.error_of(stem(5)), b'{"attempts":1}')


def record_unreadable(w: World) -> Path:
    w.a.error_of(stem(3)).write_bytes(b"{")
    return w.a.error_of(stem(3))


def foreign_among_failed(w: World) -> Path:
    return w.write(w.a.failed / "x")


def reply_without_request(w: World) -> Path:
    return w.reply(5, w.a.outbox / f"{w.reply_name(5)}.msg")


def wrong_sender(w: World) -> Path:
    name = stem(6)
    return w.write(w.a.outbox / f"{name}.msg", message.encode(Message(ids.ulid_of(name), "b", 1, "")))


def wrong_day(w: World) -> Path:
    other = w.a.processed_days / "2026-01-01" / f"{stem(1)}.msg"
    fs.ensure_dir(other.parent)
    w.a.processed(stem(1)).rename(other)
    return other


def no_day(w: World) -> Path:
    return w.write(w.a.sent_days / "x")


def foreign_in_day(w: World) -> Path:
    return w.write(w.a.processed(stem(1)).parent / "x")


def damaged_turn(w: World) -> Path:
    w.a.turn(stem(1), 0).write_bytes(b'{"t":\n{"t":"open"}\n')
    return w.a.turn(stem(1), 0)


def no_turn(w: World) -> Path:
    return w.write(w.a.turns / "x")


def turn_without_blob(w: World) -> Path:
    return w.write(w.a.turn(stem(1), 0), b'{"t":"reply","step":0,"blob":"%s"}\n' % (b"0" * 64))


def body_without_blob(w: World) -> Path:
    return w.request(5, w.a.inbox / f"{stem(5)}.msg", data={"body_blob": "1" * 64})


def damaged_conversation(w: World) -> Path:
    w.a.conversation("main").write_bytes(b"{\n" + w.lines(1))
    return w.a.conversation("main")


def no_conversation(w: World) -> Path:
    return w.write(w.a.path / "conversations" / "X")


def foreign_file(w: World) -> Path:
    return w.write(w.a.path / "core.1234")


def link_in_agent(w: World) -> Path:
    os.symlink("/etc/passwd", w.a.crashes / "link")
    return w.a.crashes / "link"


def fifo_in_agent(w: World) -> Path:
    os.mkfifo(w.a.logs / "pipe")
    return w.a.logs / "pipe"


def socket_in_agent(w: World) -> Path:
    path = w.a.crashes / "s"
    here = os.open(w.a.crashes, os.O_RDONLY)
    try:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(f"/proc/self/fd/{here}/s")
    finally:
        os.close(here)
    return path


def broken_agent(w: World) -> Path:
    w.a.spec.write_bytes(b"{")
    return w.a.spec


def no_agent(w: World) -> Path:
    return w.write(w.home.agents / "Not An Agent")


def agent_as_link(w: World) -> Path:
    os.symlink(w.a.path, w.home.agents / "b")
    return w.home.agents / "b"


def mail_without_agent(w: World) -> Path:
    return w.write(w.home.agents / "b" / "inbox" / f"{stem(5)}.msg").parents[1]


def no_filter(w: World) -> Path:
    return w.write(w.home.filters / "x")


def no_goal(w: World) -> Path:
    return w.write(w.home.goals / "x")


def broken_goal(w: World) -> Path:
    w.goal.document.write_bytes(b"x")
    return w.goal.document


def foreign_control(w: World) -> Path:
    return w.write(w.goal.control / "x.json")


def damaged_journal(w: World) -> Path:
    data = w.goal.journal.read_bytes()
    w.goal.journal.write_bytes(data.replace(b"planner", b"plumber", 1))
    return w.goal.journal


def journal_with_hole(w: World, record: int = 4) -> Path:
    """Zeros in the place of the end of one record and the beginning of the next, with two good records behind."""
    book = journal.Journal(w.goal.journal, w.home.blobs, w.home.head(GOAL))
    for _ in range(4):
        book.stage("reply.stale", {"agent": "router"}, f"seq:{book.seq}", {"agent": "a", "reply": "x" * 100})
    book.sync()
    book.close()
    lines = w.goal.journal.read_bytes().splitlines(keepends=True)
    place = sum(map(len, lines[:record])) - 50
    data = b"".join(lines)
    w.goal.journal.write_bytes(data[:place] + bytes(100) + data[place + 100 :])
    return w.goal.journal


def cut_journal(w: World) -> Path:
    """The head leads."""
    lines = w.goal.journal.read_bytes().splitlines(keepends=True)
    w.goal.journal.write_bytes(lines[0])
    return w.goal.journal


def lost_journal(w: World) -> Path:
    w.goal.journal.unlink()
    return w.goal.journal


def head_of_nothing(w: World) -> Path:
    return w.write(w.home.head("20260101-other-1234"), b'{"seq":1,"hash":"x"}')


def lost_blob(w: World) -> Path:
    blobs.path_of(w.home.blobs, w.order).unlink()
    return w.goal.journal


def damaged_blob(w: World) -> Path:
    blobs.path_of(w.home.blobs, w.order).write_bytes(b"other")
    return blobs.path_of(w.home.blobs, w.order)


def damaged_blob_aside(w: World) -> Path:
    return w.write(blobs.aside_of(w.home.blobs, "2" * 64))


def foreign_blob(w: World) -> Path:
    return w.write(blobs.path_of(w.home.blobs, w.order).parent / "x")


def foreign_shard(w: World) -> Path:
    return w.write(w.home.blobs / "x")


def broken_config(w: World) -> Path:
    return w.write(w.home.config, b"modle: x\n")


def broken_overrides(w: World) -> Path:
    return w.write(w.home.overrides, b"{}")


def broken_routes(w: World) -> Path:
    return w.write(w.home.routes, b"[]")


def foreign_at_the_top(w: World) -> Path:
    return w.write(w.home.path / "backup.tar")


def place_as_file(w: World) -> Path:
    shutil.rmtree(w.home.filters)
    return w.write(w.home.filters)


TOLD = [
    odd_entry, hidden_entry, hidden_in_outbox,
    bad_name, bad_waiting, bad_processed, two_of_one_name, set_aside, reason_alone, refused, wrong_sender,
    record_without_message, record_unreadable, foreign_among_failed, reply_without_request, wrong_day, no_day, no_turn,
    foreign_in_day, damaged_turn, turn_without_blob, body_without_blob, damaged_conversation, no_conversation, no_agent,
    foreign_file, link_in_agent, fifo_in_agent, socket_in_agent, broken_agent, agent_as_link, mail_without_agent,
    no_filter, no_goal, broken_goal, foreign_control, damaged_journal, journal_with_hole, cut_journal, lost_journal,
    head_of_nothing, lost_blob, damaged_blob, damaged_blob_aside, foreign_blob, foreign_shard, broken_config,
    broken_overrides, broken_routes, foreign_at_the_top, place_as_file,
]  # fmt: skip


@pytest.mark.parametrize("injure", TOLD, ids=lambda f: f.__name__)
def test_what_holds_somebodys_words_is_told_and_not_touched(world: World, injure: Callable[[World], Path]):
    path = injure(world)
    before = picture(world.home.path)
    (told,) = world.check()
    assert (told.path, told.status) == (path, "person") and told.what and told.todo
    assert world.check(repair=True) == [told]
    after = {p: v for p, v in picture(world.home.path).items() if not p.endswith(("tidy.lock", "/lock"))}
    assert after == {p: v for p, v in before.items() if not p.endswith("/lock")}


@pytest.mark.parametrize("name, without, broken", [
    ("b", "make the agent: loom agent start b --detach --model M",
     "mend it, or make the agent: loom agent start b --detach --replace --model M"),
    ("planner-9", "start the supervisor anew: it makes loom's own processes",
     "mend it, or start the supervisor anew: it makes loom's own processes"),
    ("p~a→b", "make it anew: loom up, or: loom unroute a --to b --pipe p && loom route a --to b --pipe p", ""),
])  # fmt: skip
def test_what_to_do_about_an_agent_names_it(world: World, name: str, without: str, broken: str):
    agent = world.home.agent(name)
    world.write(agent.inbox / f"{stem(5)}.msg")
    (told,) = (f for f in world.check() if f.path == agent.path)
    assert told.todo == without
    world.write(agent.spec, b"{")
    (told,) = (f for f in world.check() if f.path == agent.spec)
    assert told.todo == (broken or f"mend it, or {without}")


def test_what_to_keep_of_a_journal_with_a_hole_that_a_power_cut_may_have_left_is_said(world: World):
    path = journal_with_hole(world)
    (told,) = world.check()
    assert "line 4 holds zeros" in told.what and "first 3 lines" in told.todo
    with pytest.raises(journal.JournalDamaged, match="good records follow"):
        journal.Journal(path, world.home.blobs, world.home.head(GOAL))
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:3]))
    assert world.check() == []
    assert [e.seq for e in journal.read(path, world.home.blobs)] == [1, 2, 3]


def test_a_hole_in_what_had_been_synced_is_no_power_cut(world: World):
    journal_with_hole(world, record=2)  # the head was noted at record 2
    (told,) = world.check()
    assert told.todo == "bring the journal back from a copy"


def test_a_newer_home_is_refused_and_none_is_not_made(tmp_path: Path, world: World):
    with pytest.raises(NotFound):
        list(fsck.check(Home(tmp_path / "nothing")))
    assert not (tmp_path / "nothing").exists()
    world.home.version.write_text("2\n")
    with pytest.raises(Config):
        world.check(repair=True)


# -- who is at work ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("repair", [False, True])
def test_an_agent_that_is_served_is_skipped_and_told(world: World, repair: bool):
    answered_not_moved(world)
    dead_pid(world)
    held = locks.acquire(world.a.lock)
    assert held is not None
    before = picture(world.a.path)
    with held:
        (told,) = world.check(repair=repair)
    assert (told.path, told.status) == (world.a.path, "busy") and picture(world.a.path) == before
    assert exit_status([told.status]) == exits.TRY_LATER


def test_a_journal_that_has_its_writer_is_only_read(world: World):
    wrong_resting(world)
    lock = locks.acquire(world.goal.path / "journal.lock")
    assert lock is not None
    with lock:
        assert [f.status for f in world.check(repair=True)] == ["busy"]
    assert goals.rest_marker(world.goal).exists()


def test_a_conversation_that_is_held_is_not_looked_into(world: World):
    path = torn_conversation(world)
    lock = locks.acquire(path.with_suffix(".lock"))
    assert lock is not None
    with lock:
        assert world.check(repair=True) == []
    assert path.read_bytes().endswith(b"\0")


def test_one_repair_at_a_time(world: World):
    lock = locks.acquire(world.home.tidy_lock)
    assert lock is not None
    with lock:
        assert world.check() == []
        with pytest.raises(TryLater):
            world.check(repair=True)


# -- any of them together ----------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@example([failure_recorded_for_the_attempt_before, record_unreadable], random.Random(1))
@given(st.lists(st.sampled_from(MENDED + TOLD), min_size=2, max_size=6, unique=True), st.randoms(use_true_random=False))
def test_any_damage_together(injuries: list[Callable[[World], Path]], draw: random.Random):
    """Told without a change; after one repair nothing is left that could be mended, and a second changes nothing."""
    place = scratch()
    try:
        world = World(place / "home")
        for injure in injuries:
            try:
                injure(world)
            except (OSError, journal.JournalDamaged):
                continue  # what it would damage is damaged already
        before = picture(world.home.path)
        told = world.check()
        assert told and picture(world.home.path) == before
        world.check(repair=True)
        once = picture(world.home.path)
        left = world.check()
        assert {f.status for f in left} <= {"person", "waits"}, left
        assert [f for f in world.check(repair=True) if f.status == "mended"] == []
        assert picture(world.home.path) == once
        assert {f.path for f in told if f.status == "person"} <= {f.path for f in left}
    finally:
        shutil.rmtree(place)


# -- the wrong kind of thing -------------------------------------------------------------------------------------


def put(kind: str, path: Path) -> None:
    """Something else in the place of a file or directory."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
    match kind:
        case "directory":
            path.mkdir(mode=0o700)
        case "fifo":
            os.mkfifo(path, 0o600)
        case "link":
            path.symlink_to("nowhere")
        case "file":
            path.touch(0o600)


def whole(path: Path) -> World:
    """A home with every lock that a home can have, and a file in each place for such."""
    world = World(path)
    home = world.home
    for lock in (home.tidy_lock, home.start_lock, world.goal.path / "journal.lock", world.a.lock):
        world.write(lock, b"")
    world.write(world.a.conversation("main").with_suffix(".lock"), b"")
    world.write(home.filter_box(stem(9)).path / "lock", b"")
    world.write(home.config, b"{}\n")
    world.write(home.secrets / "KEY")
    world.write(home.agent("router").lock, b"")
    world.tidy()
    return world


@pytest.mark.parametrize("kind", ["directory", "fifo", "link", "file"])
def test_the_wrong_kind_of_thing_is_a_finding_wherever_it_lies(quick_path: Path, kind: str):
    world = whole(quick_path / "home")
    top = world.home.path
    assert world.check() == []
    places = [p.relative_to(top) for p in sorted(top.rglob("*")) if p.name != "version"]
    places = [p for p in places if p.parts[0] != "run" and p.parts[:2] != ("agents", "router")]
    for number, place in enumerate([*places, Path("agents/router/lock")]):
        if (top / place).is_dir() == (kind == "directory") or ((top / place).is_file() and kind == "file"):
            continue
        home = Home(quick_path / str(number))
        shutil.copytree(top, home.path, symlinks=True)
        put(kind, home.path / place)
        for repair in (False, True):
            told = [f.path for f in fsck.check(home, repair=repair)]
            near = [p for p in told if p.is_relative_to(home.path / place) or (home.path / place).is_relative_to(p)]
            assert near or (place.name == "journal.lock" and kind == "fifo"), (place, repair)  # that one can be locked
        shutil.rmtree(home.path)


def test_a_lock_that_is_none_lets_nothing_be_mended(world: World):
    world.home.tidy_lock.mkdir(mode=0o700)
    wrong = wrong_mode(world)
    told = {f.path: f.status for f in world.check(repair=True)}
    assert told[world.home.tidy_lock] == "person" and told[wrong] == "mend"
    assert wrong.stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize("left", ["state.json", "plan.json", "workspace", "subtasks"])
def test_a_goal_whose_journal_is_gone_is_told_although_no_head_is_left(world: World, left: str):
    world.goal.journal.unlink()
    world.home.head(GOAL).unlink()
    assert world.check() == []  # so it is before the router takes it up
    (world.goal.path / left).mkdir(mode=0o700)
    assert [(f.path, f.status) for f in world.check()] == [(world.goal.journal, "person")]


def test_no_finding_says_its_path_twice(world: World):
    world.goal.journal.write_bytes(b"{}\n" + world.goal.journal.read_bytes())
    world.a.spec.write_bytes(b"{")
    world.goal.document.write_bytes(b"x")
    world.home.config.write_bytes(b"colour: red\n")
    found = world.check()
    assert {world.goal.journal, world.a.spec, world.goal.document, world.home.config} <= {f.path for f in found}
    assert [f for f in found if str(f.path) in f.what] == []


def test_a_settings_file_that_others_may_read_is_noted_and_a_secret_is_a_fault(world: World):
    world.home.config.write_text("{}\n")
    world.home.config.chmod(0o644)
    assert [(f.path, f.status) for f in world.check()] == [(world.home.config, "note")]
    assert exit_status(f.status for f in world.check()) == exits.DONE
    secret = world.write(world.home.secrets / "KEY")
    world.tidy()
    secret.chmod(0o644)
    assert [(f.path, f.status) for f in world.check()] == [(secret, "mend")]
    world.home.config.chmod(0o044)  # its owner cannot read it
    assert (world.home.config, "mend") in [(f.path, f.status) for f in world.check()]
    world.home.config.chmod(0o644)
    world.check(repair=True)
    assert world.home.config.stat().st_mode & 0o777 == 0o600 and world.check() == []
