"""The mailbox: deliver, claim, look, answer, acknowledge, fail, retry, refuse; one rule per test."""

from __future__ import annotations

import errno
import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from loom.spool import fs, mailbox
from loom.spool.layout import Box
from loom.spool.mailbox import Claimed, Conflict, Inbox
from loom.wire import ids, message
from loom.wire.message import Message

AGENT = "worker"


def stem(number: int) -> str:
    return ids.message_stem(1_790_000_000_000 + number, number.to_bytes(10, "big"))


def letter(number: int, body: str = "hello") -> tuple[str, bytes]:
    return stem(number), message.encode(Message(ids.ulid_of(stem(number)), "user", 1, body))


@pytest.fixture
def box(tmp_path: Path) -> Box:
    made = Box(tmp_path / "box")
    mailbox.create(made)
    return made


def everything(box: Box) -> set[str]:
    return {str(p.relative_to(box.path)) for p in box.path.rglob("*") if p.is_file()}


def place(box: Box, state: str, name: str) -> Path:
    return {
        "inbox": box.inbox / f"{name}.msg",
        "in-progress": box.in_progress / f"{name}.msg",
        "processed": box.processed(name),
        "failed": box.failed / f"{name}.msg",
        "unreadable": box.unreadable / f"{name}.msg",
    }[state]


STATES = ["inbox", "in-progress", "processed", "failed", "unreadable"]

# -- deliver ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("deliver", ["deliver", "deliver_all"])
@pytest.mark.parametrize("state", STATES)
def test_the_same_message_is_not_delivered_twice_wherever_it_stands(box: Box, state: str, deliver: str):
    name, data = letter(1)
    there = place(box, state, name)
    fs.ensure_dir(there.parent)
    there.write_bytes(data)
    before = everything(box)
    if deliver == "deliver":
        assert mailbox.deliver(box, name, data) is False
    else:
        assert mailbox.deliver_all(box, [(name, data)]) == [False]
    assert everything(box) == before


@pytest.mark.parametrize("deliver", ["deliver", "deliver_all"])
@pytest.mark.parametrize("state", STATES)
def test_a_name_with_other_bytes_is_a_conflict_wherever_it_stands(box: Box, state: str, deliver: str):
    name, data = letter(1)
    there = place(box, state, name)
    fs.ensure_dir(there.parent)
    there.write_bytes(data)
    before = everything(box)
    with pytest.raises(Conflict, match=name):
        if deliver == "deliver":
            mailbox.deliver(box, *letter(1, "other"))
        else:
            mailbox.deliver_all(box, [letter(2), letter(1, "other")])
    assert everything(box) == before, "nothing was written"


@pytest.mark.parametrize("make", [lambda p: p.symlink_to("nowhere"), lambda p: p.mkdir(), os.mkfifo])
def test_a_name_taken_by_something_odd_is_a_conflict(box: Box, make):
    name, data = letter(1)
    make(box.inbox / f"{name}.msg")
    with pytest.raises(Conflict):
        mailbox.deliver(box, name, data)


def test_one_delivery_of_many_tells_new_from_known(box: Box):
    mailbox.deliver(box, *letter(2))
    assert mailbox.deliver_all(box, [letter(1), letter(2), letter(3), letter(1)]) == [True, False, True, False]
    assert mailbox.deliver_all(box, []) == []


def test_one_delivery_cannot_hold_two_messages_of_one_name(box: Box):
    with pytest.raises(Conflict):
        mailbox.deliver_all(box, [letter(1, "one"), letter(1, "other")])
    assert everything(box) == set()


@pytest.mark.parametrize("deliver", [lambda b, n, d: mailbox.deliver(b, n, d),
                                     lambda b, n, d: mailbox.deliver_all(b, [(n, d)])])  # fmt: skip
def test_a_sender_who_is_faster_with_other_bytes_makes_a_conflict(box: Box, monkeypatch, deliver):
    """The other one publishes between our look and our link."""
    name, data = letter(1)

    class Faster(fs.Calls):
        def link(self, source: str, target: str) -> None:
            if not os.path.lexists(target):
                Path(target).write_bytes(letter(1, "faster")[1])
            super().link(source, target)

    monkeypatch.setattr(fs, "calls", Faster())
    with pytest.raises(Conflict):
        deliver(box, name, data)
    assert (box.inbox / f"{name}.msg").read_bytes() == letter(1, "faster")[1]


def test_a_message_that_is_claimed_while_it_is_compared_counts_as_delivered(box: Box, monkeypatch):
    name, data = letter(1)
    mailbox.deliver(box, name, data)
    real = fs.read
    moved = []

    def claim_first(path: fs.Place, limit: int | None = None) -> bytes:
        found = real(path, limit)
        if not moved:
            moved.append(fs.move(path, box.in_progress / Path(path).name))
        return found

    monkeypatch.setattr(fs, "read", claim_first)
    assert mailbox.deliver(box, name, data) is False
    assert moved == ["moved"]


# -- claim -----------------------------------------------------------------------------------------------------


def test_claims_come_oldest_first_and_lie_in_progress(box: Box):
    for number in (3, 1, 2):
        mailbox.deliver(box, *letter(number))
    inbox = Inbox(box)
    for number in (1, 2, 3):
        claimed = inbox.claim()
        assert claimed == Claimed(stem(number), message.decode(letter(number)[1], stem(number)), letter(number)[1])
        assert mailbox.in_progress(box)[-1] == f"{stem(number)}.msg"
    assert inbox.claim() is None and not inbox.waiting()
    mailbox.deliver(box, *letter(4))
    assert inbox.waiting() and inbox.claim() is not None


def test_a_message_that_was_taken_back_is_skipped(box: Box):
    for number in (1, 2):
        mailbox.deliver(box, *letter(number))
    inbox = Inbox(box)
    assert inbox.waiting()
    (box.inbox / f"{stem(1)}.msg").unlink()
    claimed = inbox.claim()
    assert claimed is not None and claimed.stem == stem(2)


def test_a_second_message_of_a_claimed_name(box: Box):
    name, data = letter(1)
    (box.in_progress / f"{name}.msg").write_bytes(data)
    (box.inbox / f"{name}.msg").write_bytes(b"other")
    inbox = Inbox(box)
    assert inbox.claim() is None
    assert inbox.set_aside == [(f"{name}.msg", "conflict")]
    assert (box.in_progress / f"{name}.msg").read_bytes() == data
    (entry,) = [p for p in box.unreadable.iterdir() if p.suffix == ".msg"]
    assert entry.read_bytes() == b"other"


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC, errno.EROFS])
def test_a_disk_at_fault_stops_the_claim_and_moves_nothing(box: Box, monkeypatch, code: int):
    mailbox.deliver(box, *letter(1))

    class Refusing(fs.Calls):
        def rename_noreplace(self, source: str, target: str) -> None:
            raise OSError(code, "injected")

    monkeypatch.setattr(fs, "calls", Refusing())
    with pytest.raises(OSError):
        Inbox(box).claim()
    assert everything(box) == {f"inbox/{stem(1)}.msg"}


@pytest.mark.parametrize("code", [errno.EPERM, errno.EACCES, errno.EBUSY])
def test_an_entry_that_cannot_be_moved_is_skipped(box: Box, monkeypatch, code: int):
    for number in (1, 2):
        mailbox.deliver(box, *letter(number))

    class Refusing(fs.Calls):
        def rename_noreplace(self, source: str, target: str) -> None:
            if stem(1) in source:
                raise OSError(code, "injected")
            super().rename_noreplace(source, target)

    monkeypatch.setattr(fs, "calls", Refusing())
    inbox = Inbox(box)
    claimed = inbox.claim()
    assert claimed is not None and claimed.stem == stem(2)
    assert inbox.claim() is None
    assert (box.inbox / f"{stem(1)}.msg").exists()


def test_no_descriptors_while_reading_leaves_the_message_claimed(box: Box, monkeypatch):
    mailbox.deliver(box, *letter(1))
    real = os.open

    def full(path, flags, *rest, **more):
        if ".in-progress" in os.fspath(path):
            raise OSError(errno.EMFILE, "too many open files")
        return real(path, flags, *rest, **more)

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", full)
        with pytest.raises(OSError):
            Inbox(box).claim()
    assert everything(box) == {f"inbox/.in-progress/{stem(1)}.msg"}
    assert isinstance(mailbox.take(box, f"{stem(1)}.msg"), Claimed)


# -- look, answer, acknowledge, fail, retry --------------------------------------------------------------------


def claimed(box: Box, number: int = 1) -> Claimed:
    mailbox.deliver(box, *letter(number))
    found = Inbox(box).claim()
    assert found is not None
    return found


def reply(of: Claimed, attempt: int = 0, error: bool = False, body: str = "done") -> tuple[str, Message]:
    name, made = message.reply_to(of.message, of.stem, AGENT, attempt, body, 1)
    return name, replace(made, error=error)


@pytest.mark.parametrize("error, todo", [(False, "acknowledge"), (True, "fail")])
@pytest.mark.parametrize("sent", [False, True])
def test_a_reply_that_is_there_says_what_is_left_to_do(box: Box, error: bool, todo: str, sent: bool):
    work = claimed(box)
    assert mailbox.look(box, AGENT, work.stem, 0) == ("work", None)
    name, made = reply(work, error=error)
    mailbox.answer(box, name, made)
    if sent:
        mailbox.mark_sent(box, name)
    assert mailbox.look(box, AGENT, work.stem, 0) == (todo, made)
    assert mailbox.look(box, AGENT, work.stem, 1) == ("work", None), "another attempt has another answer"
    assert mailbox.look(box, "other", work.stem, 0) == ("work", None), "another agent, too"
    assert mailbox.find_reply(box, AGENT, work.stem, 0) == made


def test_a_request_that_stands_in_processed_is_done(box: Box):
    work = claimed(box)
    fs.ensure_dir(box.processed(work.stem).parent)
    box.processed(work.stem).write_bytes(work.raw)
    assert mailbox.look(box, AGENT, work.stem, 0) == ("acknowledge", None)
    mailbox.acknowledge(box, work.stem)
    assert everything(box) == {f"inbox/.processed/2026-09-21/{work.stem}.msg"}


@pytest.mark.parametrize("make", [lambda p: p.write_bytes(b"{"), lambda p: p.symlink_to("x"), lambda p: p.mkdir()])
def test_whatever_lies_under_the_name_of_the_reply_is_the_reply(box: Box, make):
    work = claimed(box)
    make(box.outbox / f"{ids.reply_stem(AGENT, work.stem)}.msg")
    assert mailbox.look(box, AGENT, work.stem, 0) == ("acknowledge", None)
    assert mailbox.find_reply(box, AGENT, work.stem, 0) is None


def test_an_answer_is_given_once_whatever_the_bytes(box: Box):
    work = claimed(box)
    name, made = reply(work)
    assert mailbox.answer(box, name, made)
    assert not mailbox.answer(box, name, replace(made, body="second thoughts"))
    found = mailbox.find_reply(box, AGENT, work.stem, 0)
    assert found is not None and found.body == "done"


def test_acknowledging_may_be_repeated(box: Box):
    work = claimed(box)
    mailbox.acknowledge(box, work.stem)
    mailbox.acknowledge(box, work.stem)
    assert everything(box) == {f"inbox/.processed/2026-09-21/{work.stem}.msg"}


def test_another_message_in_processed_is_a_conflict(box: Box):
    work = claimed(box)
    fs.ensure_dir(box.processed(work.stem).parent)
    box.processed(work.stem).write_bytes(b"other")
    mailbox.acknowledge(box, work.stem)
    assert mailbox.in_progress(box) == []
    assert box.processed(work.stem).read_bytes() == b"other"
    assert reasons(box.unreadable) == ["conflict"]


def reasons(directory: Path) -> list[str]:
    return sorted(json.loads(p.read_bytes())["reason"] for p in directory.glob("*.error.json"))


def fail(box: Box, name: str, attempt: int) -> None:
    mailbox.fail(box, name, attempt, error_type="work_failed", last_error="no", hint="try", ts="now")


def test_a_failure_is_counted_once_however_often_it_is_completed(box: Box):
    work = claimed(box)
    for _ in range(3):
        fail(box, work.stem, 0)
    assert mailbox.failed(box) == [work.stem]
    assert mailbox.attempts(box, work.stem) == 1
    assert mailbox.read_error(box, work.stem) == {
        "ts": "now", "attempts": 1, "error_type": "work_failed", "last_error": "no", "hint": "try",
    }  # fmt: skip


@pytest.mark.parametrize("text, attempts", [
    (b'{"attempts":3}', 3), (b"{}", 0), (b'{"attempts":-1}', 0), (b'{"attempts":true}', 0), (b'{"attempts":"3"}', 0),
    (b"", 0), (b"[1]", 0), (b"\xff", 0), (b'{"attempts":1.5}', 0), (b'{"attempts":null}', 0),
])  # fmt: skip
def test_a_damaged_record_of_a_failure_counts_as_none(box: Box, text: bytes, attempts: int):
    box.error_of(stem(1)).write_bytes(text)
    assert mailbox.attempts(box, stem(1)) == attempts


@pytest.mark.parametrize("recorded", [True, False], ids=["recorded", "crashed before error.json"])
def test_a_retry_is_a_new_attempt(box: Box, recorded: bool):
    work = claimed(box)
    for attempt in range(3):
        mailbox.answer(box, *reply(work, attempt, error=True))
        fail(box, work.stem, attempt)
        if not recorded:
            box.error_of(work.stem).unlink()
            if attempt:
                mailbox.write_error(box, work.stem, attempt - 1, error_type="x", last_error="x", hint="", ts="before")
        assert mailbox.retry(box, AGENT, work.stem, "now")
        assert mailbox.attempts(box, work.stem) == attempt + 1
        assert Inbox(box).claim() == work
        assert mailbox.look(box, AGENT, work.stem, attempt + 1) == ("work", None)
    assert mailbox.retry(box, AGENT, work.stem, "now") is False


def test_a_plain_mv_back_without_a_record_fails_again_and_writes_it(box: Box):
    work = claimed(box)
    mailbox.answer(box, *reply(work, error=True))
    fail(box, work.stem, 0)
    box.error_of(work.stem).unlink()
    os.rename(box.failed / f"{work.stem}.msg", box.inbox / f"{work.stem}.msg")
    again = Inbox(box).claim()
    assert again == work
    assert mailbox.look(box, AGENT, work.stem, mailbox.attempts(box, work.stem))[0] == "fail"
    fail(box, work.stem, 0)
    assert mailbox.attempts(box, work.stem) == 1


def test_a_retry_does_not_replace_a_message_that_waits(box: Box):
    work = claimed(box)
    fail(box, work.stem, 0)
    (box.inbox / f"{work.stem}.msg").write_bytes(b"other")
    assert mailbox.retry(box, AGENT, work.stem, "now") is False
    assert (box.failed / f"{work.stem}.msg").read_bytes() == work.raw


# -- outbox ----------------------------------------------------------------------------------------------------


def test_replies_go_out_oldest_first_and_are_marked(box: Box):
    names = []
    for number in (2, 1):
        name, made = reply(claimed(box, number))
        mailbox.answer(box, name, made)
        names.append(f"{name}.msg")
    assert mailbox.outgoing(box) == sorted(names)
    for name in mailbox.outgoing(box):
        mailbox.mark_sent(box, name[:-4])
        mailbox.mark_sent(box, name[:-4])
    assert mailbox.outgoing(box) == []


ODD_NAMES = ["x.msg", "\x1b[31m.msg", "\n.msg", "ä" * 120 + ".msg", "x" * 251 + ".msg", "é" * 125 + "x.msg",
             os.fsdecode(b"\xff" * 251 + b".msg"), os.fsdecode(b"\xff\xfe.msg")]  # fmt: skip


@pytest.mark.parametrize("name", ODD_NAMES, ids=ascii)
def test_what_may_not_be_routed_is_refused_whatever_its_name(box: Box, name: str):
    for _ in range(2):
        (box.outbox / name).write_bytes(b"x")
        mailbox.refuse(box, name, "not_owner", "from is mallory")
        mailbox.refuse(box, name, "not_owner", "it is gone already")
    assert mailbox.outgoing(box) == []
    assert reasons(box.refused) == ["not_owner", "not_owner"]
    entries = [p for p in box.refused.iterdir() if p.is_file() and not p.name.endswith(".error.json")]
    assert len(entries) == 2
    for path in entries:
        assert path.with_name(path.name + ".error.json").exists()
        assert json.loads(path.with_name(path.name + ".error.json").read_bytes())["name"] == ascii(name)[1:-1]


def test_another_reply_of_a_name_that_was_sent_is_refused(box: Box):
    name, made = reply(claimed(box))
    mailbox.answer(box, name, made)
    mailbox.mark_sent(box, name)
    (box.outbox / f"{name}.msg").write_bytes(b"other")
    mailbox.mark_sent(box, name)
    assert mailbox.outgoing(box) == []
    assert reasons(box.refused) == ["conflict"]
    assert message.decode(box.sent(name).read_bytes(), name) == made
