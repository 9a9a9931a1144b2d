"""Programs with one well-known mistake each. The crash tests must find every one of them, each run.

A mistake that is not found means that the tests have gone blind, not that it is harmless. What only a power cut
shows (no fsync of a file, of a directory) is not among them: killing processes cannot show it.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import crash_goal
import crash_supervisor
import pytest
from crash_all import CASES
from crash_cases import KERNEL, Worker, working
from crash_far_side import swapped
from harness import Case, Point, explore

from loom.daemons import filter as filters
from loom.daemons.charge import Charge
from loom.daemons.goalkeeping import Goal
from loom.daemons.service import MailboxLoop
from loom.daemons.supervisor import Supervisor
from loom.spool import agents, blobs, fs, goals, journal, locks, mailbox, ndjson, turns
from loom.wire import agent as agent_wire
from loom.wire import goal as goal_wire
from loom.wire import ids, message
from loom.wire.message import Message


def mutated(case: Case, module: Any, name: str, bad: Any) -> Case:
    """The case with a bad function in place of a good one: in what it does, not in what the oracles see."""

    def under(work: Callable[[Path], None]) -> Callable[[Path], None]:
        def run(root: Path) -> None:
            with swapped(module, name, bad):
                work(root)

        return run

    return replace(
        case,
        workflow=under(case.workflow),
        recover=under(case.recover),
        rival=under(case.rival) if case.rival else None,
    )


SEED = 20260728


def publish_in_place(target: Path, data: bytes) -> bool:
    try:
        fd = fs.calls.create(str(target), 0o600)
    except FileExistsError:
        return False
    with os.fdopen(fd, "wb", closefd=True):
        fs.write_all(fd, data)
        fs.calls.fsync(fd)
    return True


def replace_in_place(path: Path, data: bytes, *, mode: int = 0o600) -> None:
    fs.remove(path)
    fd = fs.calls.create(str(path), mode)
    fs.write_all(fd, data)
    os.close(fd)


def publish_with_one_name_for_all(target: Path, data: bytes) -> bool:
    temporary = target.parent / fs.TMP / "new"
    fs.ensure_dir(temporary.parent)
    fd = fs.calls.create(str(temporary), 0o600)
    fs.write_all(fd, data)
    os.close(fd)
    fs.calls.link(str(temporary), str(target))
    fs.calls.unlink(str(temporary))
    return True


def random_reply_stem(agent: str, request: str, attempt: int = 0, part: int = 0) -> str:
    return ids.message_stem(ids.time_of(request), os.urandom(10))


def repair_nothing(path: Path, fd: int) -> tuple[list[dict[str, Any]], int]:
    return ndjson.read_objects(path), 0


def mend_nothing(self: journal.Journal) -> Any:
    events = list(journal.read(self.path, self._blobs))
    return events[-1] if events else None


def mark_sent_first(box: Any, name: str, data: bytes, good: Any = mailbox.deliver) -> bool:
    """Deliver by marking the reply as sent before it is copied."""
    mailbox.mark_sent(Worker().box(box.path.parent.parent), name)
    return bool(good(box, name, data))


def want_in_place(agent: Any, want: str) -> None:
    """Truncated first, then written: between the two nothing is wanted."""
    fd = fs.calls.open_append(str(agent.want), 0o600)
    fs.calls.truncate(fd, 0)
    fs.write_all(fd, f"{want}\n".encode())
    os.close(fd)


def acquire_by_pid(path: Path, *, wait: bool = False) -> locks.Lock | None:
    """A lock that is a file with a pid in it, as pid files are: what holds it need not be its writer any more."""
    held = path.with_suffix(".pid")
    try:
        fd = fs.calls.create(str(held), 0o600)
    except FileExistsError:
        return None
    fs.write_all(fd, str(os.getpid()).encode())
    lock = _PidLock(fd, path)
    lock.held = held
    return lock


class _PidLock(locks.Lock):
    held: Path

    def release(self) -> None:
        super().release()
        fs.remove(self.held)


def claim_after_parsing(self: mailbox.Inbox) -> mailbox.Claimed | None:
    """Reads a message where it waits, and moves it then."""
    for name in sorted(n for n in os.listdir(self.box.inbox) if n.endswith(".msg")):
        raw = mailbox.read_message(self.box.inbox / name)
        fs.move(self.box.inbox / name, self.box.in_progress / name)
        return mailbox.Claimed(name[:-4], message.decode(raw, name[:-4]), raw)
    return None


def fail_by_increment(box: Any, stem: str, attempt: int, **why: str) -> None:
    """Counts the failure up, and that before the message is moved."""
    mailbox.write_error(box, stem, mailbox.attempts(box, stem), **why)
    fs.move(box.in_progress / f"{stem}.msg", box.failed / f"{stem}.msg")


def retry_by_move(box: Any, agent: str, stem: str, ts: str) -> bool:
    """Does not write the error.json that a killed process still owed."""
    return fs.move(box.failed / f"{stem}.msg", box.inbox / f"{stem}.msg") == "moved"


def sent_by_deleting(box: Any, stem: str) -> None:
    """A routed reply is removed: the next look does not find that its request was answered."""
    fs.remove(box.outbox / f"{stem}.msg")


def create_spec_first(home: Any, spec: Any, prompt: str, want: Any) -> Any:
    """Makes an agent by its agent.json, and all that belongs to it afterwards."""
    agent = home.agent(spec.name)
    fs.ensure_dir(agent.path)
    fs.replace(agent.spec, agent_wire.encode(spec))
    return _create(home, spec, prompt, want)


_create = agents.create


def goal_in_place(home: Any, spec: Any) -> Any:
    """Makes a goal where everybody looks for goals."""
    goal = home.goal(spec.id)
    fs.ensure_dir(goal.path)
    fs.publish(goal.document, goal_wire.encode(spec))
    fs.ensure_dir(goal.control / fs.TMP)
    return goal


def reply_not_recorded(self: turns.Turn, reply: Any) -> None:
    """The answer of a model is kept in memory only."""
    self.steps[-1].reply = reply


def dead_first(self: Charge, count: int) -> bool:
    """Says that an agent is dead before whoever waits for it is told."""
    agents.write_want(self.agent, "dead")
    return self.fail_claimed("dead", "dead", "") is not None


def answered_after_acknowledging(self: MailboxLoop, claimed: Any, attempt: int, done: Any, began_us: int) -> None:
    mailbox.acknowledge(self.agent.dir, claimed.stem)
    name, reply = message.reply_to(claimed.message, claimed.stem, self.agent.dir.name, attempt, done.body, 1)
    mailbox.answer(self.agent.dir, name, reply)
    if done.thread is not None:
        done.thread.append(claimed.stem, list(done.said))


def remove_message_last(place: Any) -> None:
    """Takes a finished filter's turn away before the message, so that it seems to be at its beginning."""
    fs.remove_tree(place.turns)
    fs.remove(place.path / f"{place.name}.msg")
    fs.remove_tree(place.path)


class ForgetsFirst(Goal):
    """Takes a reply out of the outbox before the event it causes is in the journal."""

    def report(self, agent: str, stem: str, message: Message, done: Callable[[], None]) -> None:
        done()
        super().report(agent, stem, message, lambda: None)


class OrdersFirst(Goal):
    """Delivers an order before its event is in the journal, so that a restart orders the work a second time."""

    def _append(self, type_: str, data: Any, cause: str = "", actor: Any = None) -> None:
        if type_ == "order.dispatched":
            raw = blobs.get(self.home.blobs, data["message"])
            mailbox.deliver(self.home.agent(data["agent"]), data["name"], raw)
        return super()._append(type_, data, cause, actor)


class OrdersOnceOnly(Goal):
    """Does not deliver again, after a restart, what was journaled and may not have been delivered."""

    def _deliver(self, order: Any) -> None:
        if order.name in self.opened_with:
            return
        super()._deliver(order)

    def _load(self) -> Any:
        state = super()._load()
        self.opened_with = {order.name for order in state.open_orders()}
        return state


class AdoptsNobody(crash_supervisor._Driven):
    """Starts all agents anew instead of looking who lives."""

    def _set_up(self) -> None:
        super()._set_up()
        self._hands.adopt = lambda charge: None  # type: ignore[method-assign]


def withdrawn(case: Case) -> Case:
    """A person takes a waiting message back, by mv, at any moment: then it is not worked on."""

    def rival(root: Path) -> None:
        box = Worker().box(root)
        for name in sorted(n for n in os.listdir(box.inbox) if n.endswith(".msg")):
            try:
                os.rename(box.inbox / name, root / name)
            except OSError as error:
                assert error.errno == errno.ENOENT

    def check(root: Path) -> None:
        taken = {p.stem for p in root.glob("*.msg")}
        asked = {a["stem"] for a in crash_goal.noted(root, "asked")}
        assert not taken & asked, f"worked on what was withdrawn: {taken & asked}"

    return replace(case, name="withdrawn", rival=rival, check=check, crashed=lambda root: None)


def fails_only(case: Case) -> Case:
    """What failed stays failed: nobody retries it."""
    worker = Worker()

    def check(root: Path) -> None:
        box = worker.box(root)
        for name in mailbox.failed(box):
            assert mailbox.attempts(box, name) == 1, f"{mailbox.attempts(box, name)} attempts"
        assert len(mailbox.failed(box)) == 1, "tried again without being asked for"

    return replace(case, name="fails", workflow=worker.run, recover=worker.run, check=check, rival=None)


def routing(goal_class: type[Goal]) -> Case:
    return mutated(CASES["goal"], crash_goal, "GOAL_CLASS", goal_class)


def supervising(supervisor_class: type[Supervisor]) -> Case:
    return mutated(CASES["supervisor"], crash_supervisor, "SUPERVISOR_CLASS", supervisor_class)


MUTANTS = {
    "messages written in place": mutated(CASES["send"], fs, "publish", publish_in_place),
    "blobs written in place": mutated(CASES["blobs"], fs, "publish", publish_in_place),
    "state written in place": mutated(CASES["state files"], fs, "replace", replace_in_place),
    "one temporary name for all": mutated(CASES["blobs"], fs, "publish", publish_with_one_name_for_all),
    "random reply names": mutated(CASES["work"], ids, "reply_stem", random_reply_stem),
    "turn appended behind a torn end": mutated(CASES["work"], ndjson, "_repair", repair_nothing),
    "journal appended behind a torn end": mutated(CASES["journal"], journal.Journal, "_mend", mend_nothing),
    "acknowledged before the answer": working(Worker(acknowledges_first=True)),
    "no claim": working(Worker(claims=False)),
    "no lock": working(Worker(locked=False)),
    "answer of the model not recorded": working(Worker(records_reply=False)),
    "tool run without an intent": working(Worker(notes_intent=False)),
    "marked as sent before it is copied": mutated(CASES["route"], mailbox, "deliver", mark_sent_first),
    "sent by deleting": mutated(CASES["route"], mailbox, "mark_sent", sent_by_deleting),
    "lock by pid": mutated(CASES["work"], locks, "acquire", acquire_by_pid),
    "parsed before it is claimed": mutated(withdrawn(CASES["work"]), mailbox.Inbox, "claim", claim_after_parsing),
    "attempt counted by increment": mutated(fails_only(CASES["fail and retry"]), mailbox, "fail", fail_by_increment),
    "retry without the owed error.json": mutated(CASES["fail and retry"], mailbox, "retry", retry_by_move),
    "want written in place": mutated(CASES["loom agent stop"], agents, "write_want", want_in_place),
    "agent.json before the agent": mutated(CASES["loom agent start"], agents, "create", create_spec_first),
    "a goal made in place": mutated(CASES["loom run"], goals, "create", goal_in_place),
    "runner: answer not recorded": mutated(CASES["runner"], turns.Turn, "reply", reply_not_recorded),
    "runner: acknowledged before the answer": mutated(
        CASES["runner"], MailboxLoop, "_answer", answered_after_acknowledging
    ),
    "executor: answer not recorded": mutated(CASES["executor alone"], turns.Turn, "reply", reply_not_recorded),
    "filter: turn removed before the message": mutated(CASES["filter"], filters, "_remove", remove_message_last),
    "router forgets before it journals": routing(ForgetsFirst),
    "router orders before it journals": routing(OrdersFirst),
    "router orders once only": routing(OrdersOnceOnly),
    "dead before it is said": mutated(CASES["supervisor"], Charge, "bury", dead_first),
}

# An oracle sees these without any fault; of all others the undisturbed run must be right.
_SEEN_AT_ONCE = {
    "random reply names",
    "acknowledged before the answer",
    "no claim",
    "answer of the model not recorded",
    "sent by deleting",
    "runner: answer not recorded",
    "executor: answer not recorded",
}


def _is_near(name: str, point: Point) -> bool:
    """Of a goal's many points those that matter to the router's mistakes: the journal and what it lets happen."""
    if not name.startswith("router"):
        return True
    places = ("journal.py:stage", "mailbox.py:deliver", "mailbox.py:mark_sent")
    return point.process == "router" and point.phase == "before" and point.site.startswith(places)


@pytest.mark.parametrize("name", MUTANTS)
def test_the_mistake_is_found(name: str):
    report = explore(MUTANTS[name], until_failure=True, only=partial(_is_near, name), seed=SEED)
    print(report.line())
    assert report.failures, f"nobody noticed: {name}"
    assert bool(report.points) is (name not in _SEEN_AT_ONCE), f"wrong without any fault: {report.failures}"


def test_the_cases_that_were_mutated_are_right_themselves():
    """Otherwise the mutants would be found for a reason that is not theirs."""
    for case in (*KERNEL, working(Worker()), withdrawn(CASES["work"]), fails_only(CASES["fail and retry"])):
        report = explore(case, errors=("EIO",), at_most=12, seed=SEED)
        assert not report.failures, report.failures
