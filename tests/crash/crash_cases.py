"""The workflows of the kernel, as cases for the harness, with the oracles that watch them.

The worker here is the protocol's order of steps in a few lines (docs/protocol.md sections 4 and 5): claim, look,
turn, answer, conversation, acknowledge, or fail. Its model answers differently at each call, so an answer that
was bought twice is seen; its tool counts its effects, so a call that was repeated is seen.
"""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

from harness import Case, note, noted, nothing

from loom.spool import blobs, fs, journal, locks, mailbox, ndjson
from loom.spool.journal import Journal
from loom.spool.layout import Box
from loom.spool.turns import MAX_DEATHS, Turn
from loom.wire import ids, message
from loom.wire.chat import ChatMessage, ChatReply, ChatRequest, ToolCall, Usage
from loom.wire.jsontext import Malformed, loads_object
from loom.wire.message import Message

AGENT, SENDER = "worker", "sender"
BOOT = "boot-of-this-test"
NOW_US = 1_790_000_000_000_000


def stem(number: int) -> str:
    return ids.message_stem(1_790_000_000_000 + number, number.to_bytes(10, "big"))


def letter(number: int, body: str, **fields: Any) -> tuple[str, bytes]:
    name = stem(number)
    return name, message.encode(Message(ids.ulid_of(name), SENDER, 1_790_000_000_000, body, **fields))


# -- the worker ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Worker:
    """A small runner. The mutants replace one of its habits by a bad one."""

    name: str = AGENT
    locked: bool = True
    claims: bool = True
    acknowledges_first: bool = False
    records_reply: bool = True
    looks: bool = True
    notes_intent: bool = True

    def box(self, root: Path) -> Box:
        return Box(root / "agents" / self.name)

    def run(self, root: Path) -> None:
        """Everything that waits, once, under the lock; nothing when somebody else holds it."""
        box = self.box(root)
        held = locks.acquire(box.path / "lock") if self.locked else None
        if self.locked and held is None:
            return
        try:
            for name in mailbox.in_progress(box):
                claimed = mailbox.take(box, name)
                if isinstance(claimed, mailbox.Claimed):
                    self.serve(root, claimed)
            for claimed in self.waiting(box):
                self.serve(root, claimed)
        finally:
            if held is not None:
                held.release()

    def waiting(self, box: Box) -> Iterator[mailbox.Claimed]:
        if self.claims:
            inbox = mailbox.Inbox(box)
            while (claimed := inbox.claim()) is not None:
                yield claimed
            return
        for name in sorted(n for n in os.listdir(box.inbox) if n.endswith(".msg")):
            raw = mailbox.read_message(box.inbox / name)
            yield mailbox.Claimed(name[:-4], message.decode(raw, name[:-4]), raw)
            fs.move(box.inbox / name, box.in_progress / name)

    def serve(self, root: Path, claimed: mailbox.Claimed) -> None:
        box, name = self.box(root), claimed.stem
        attempt = mailbox.attempts(box, name)
        todo, reply = mailbox.look(box, self.name, name, attempt) if self.looks else ("work", None)
        if self.acknowledges_first:
            mailbox.acknowledge(box, name)
        if todo == "work":
            reply = self.work(root, claimed, attempt)
            todo = "fail" if reply.error else "acknowledge"
        if todo == "fail":
            mailbox.fail(box, name, attempt, error_type="work_failed", last_error="bad", hint="", ts="now")
            return
        if reply is not None:
            self.converse(box, claimed, reply)
        if not self.acknowledges_first:
            mailbox.acknowledge(box, name)

    def work(self, root: Path, claimed: mailbox.Claimed, attempt: int) -> Message:
        box = self.box(root)
        turn = Turn(box.turn(claimed.stem, attempt), root / "blobs")
        try:
            turn.open(BOOT, "1.1")
            if turn.deaths >= MAX_DEATHS:
                answer = "error: died three times"
            else:
                answer = self.steps(root, claimed, turn, attempt)
        finally:
            turn.close()
        name, reply = message.reply_to(claimed.message, claimed.stem, self.name, attempt, answer, NOW_US // 1000)
        reply = replace(reply, error=answer.startswith("error:"))
        mailbox.answer(box, name, reply)
        return reply

    def steps(self, root: Path, claimed: mailbox.Claimed, turn: Turn, attempt: int) -> str:
        """Ask, run the tool the model wants, tell it, ask again; every step recorded before the next."""
        body = claimed.message.body
        while True:
            if not turn.steps:
                turn.request(ChatRequest("test/model", (ChatMessage("user", body),)))
            step = turn.steps[-1]
            if step.reply is None:
                reply = self.ask(root, claimed.stem, attempt, len(turn.steps) - 1, body)
                if self.records_reply:
                    turn.reply(reply)
                else:
                    step.reply = reply
            assert step.reply is not None
            if not step.reply.calls:
                return step.reply.text
            (call,) = step.reply.calls
            if call.id not in step.results:
                turn.result(call.id, self.use(root, turn, call))
            told = ChatMessage("tool", json.dumps(step.results[call.id]), call_id=call.id)
            said = ChatMessage("assistant", step.reply.text, step.reply.calls)
            turn.request(replace(step.request, messages=(*step.request.messages, said, told)))

    def use(self, root: Path, turn: Turn, call: ToolCall) -> dict[str, Any]:
        if call.id in turn.steps[-1].intents:
            return {"status": "error", "error": "interrupted, outcome unknown"}
        if self.notes_intent:
            turn.intent(call)
        note(root, "effects", {"id": call.id})
        return {"status": "ok", "result": "x" * int((call.input or {}).get("bytes", 1))}

    def ask(self, root: Path, name: str, attempt: int, step: int, body: str) -> ChatReply:
        """The model: no two of its answers are alike, and it looks where the message lies that it is asked about."""
        box = self.box(root)
        if (box.inbox / f"{name}.msg").exists() or not (box.in_progress / f"{name}.msg").exists():
            note(root, "objections", {"what": f"{name} is worked on without being claimed"})
        text = f"answer {len(noted(root, 'asked')) + 1} to {body}"
        if "fails once" in body and attempt == 0:
            text = f"error: {text}"
        calls: tuple[ToolCall, ...] = ()
        if "tool" in body and step == 0:
            size = 70_000 if "huge" in body else 10
            calls = (ToolCall(f"call-{name[-4:]}", "note", {"bytes": size}),)
        note(root, "asked", {"stem": name, "attempt": attempt, "step": step, "text": text})
        return ChatReply(text, calls, "tool_calls" if calls else "end", Usage(1, 1))

    def converse(self, box: Box, claimed: mailbox.Claimed, reply: Message) -> None:
        """Two lines, keyed by the message's name, unless the tail has them."""
        lines = ndjson.Appender(box.path / "conversations" / "main.ndjson")
        try:
            there = {(line.get("name"), line.get("role")) for line in lines.records}
            for role, text in (("user", claimed.message.body), ("assistant", reply.body)):
                if (claimed.stem, role) not in there:
                    lines.append({"name": claimed.stem, "role": role, "text": text})
            lines.sync()
        finally:
            lines.close()


def retry_failed(root: Path, worker: Worker) -> None:
    """`loom agent retry` for everything that failed, under the agent's lock."""
    box = worker.box(root)
    held = locks.acquire(box.path / "lock")
    if held is None:
        return
    with held:
        for name in mailbox.failed(box):
            if mailbox.attempts(box, name) <= 1:
                mailbox.retry(box, worker.name, name, "now")


# -- oracles ---------------------------------------------------------------------------------------------------

_TEMPORARY = re.compile(r"[0-9a-f]{20}")


def tidy(root: Path) -> None:
    """No half-written file under a final name, nothing temporary outside `.tmp/`. True at every moment."""
    for directory, _, names in os.walk(root):
        if Path(directory).name == fs.TMP:
            continue
        for name in names:
            path = Path(directory) / name
            assert not _TEMPORARY.fullmatch(name), f"temporary file outside .tmp/: {path}"
            if name.endswith(".msg"):
                message.decode(path.read_bytes(), name[:-4])
            elif name.endswith(".error.json"):
                loads_object(path.read_bytes())
            elif path.parent.parent.name == "blobs":
                assert sha256(path.read_bytes()).hexdigest() == name, f"half a blob: {path}"


def lines_whole(root: Path) -> None:
    """After a recovery every line of every NDJSON file is whole; in a log half a line may stand, alone on its line."""
    for path in root.rglob("*.ndjson"):
        data = path.read_bytes()
        lines, end = ndjson.whole_lines(data)
        if path.parent.name == "logs":
            torn = [line for line in (*lines, end) if line and not _is_object(line)]
            assert all(line.count(b'"ts":') <= 1 for line in torn), f"a line is glued to half a line: {torn}"
            continue
        assert not end, f"an unfinished line is left in {path}"
        for line in lines:
            loads_object(line)


def _is_object(line: bytes) -> bool:
    try:
        loads_object(line)
    except Malformed:
        return False
    return True


def copies(box: Box, name: str) -> list[str]:
    """Where in an inbox's life this message stands; in a healthy mailbox one place."""
    places = (box.inbox, box.in_progress, box.processed(name).parent, box.failed, box.unreadable)
    return [p.name for p in places if (p / f"{name}.msg").exists()]


def replies(box: Box) -> dict[str, Message]:
    """All replies of an agent by name, wherever they stand. A name twice is an error."""
    found: dict[str, Message] = {}
    for path in box.outbox.rglob("*.msg"):
        if path.parent.name != fs.TMP:
            assert path.stem not in found, f"two replies named {path.stem}"
            found[path.stem] = message.decode(path.read_bytes(), path.stem)
    return found


def answered_once(root: Path, worker: Worker, expected: dict[str, int]) -> None:
    """Every message (name -> its last attempt) is processed and has exactly one reply for each attempt.

    And each reply is what was recorded, the record is what was asked last, and no tool acted twice.
    """
    box = worker.box(root)
    found = replies(box)
    wanted = {ids.reply_stem(AGENT, name, a): (name, a) for name, last in expected.items() for a in range(last + 1)}
    assert found.keys() == wanted.keys(), f"replies {sorted(found)}, expected {sorted(wanted)}"
    for reply_name, (name, attempt) in wanted.items():
        last = attempt == expected[name]
        assert found[reply_name].error is not last, f"attempt {attempt} of {name}: {found[reply_name].body}"
        assert found[reply_name].origin == name
        _recorded(root, box, name, attempt, found[reply_name])
    for name, last_attempt in expected.items():
        assert copies(box, name) == [box.processed(name).parent.name], f"{name} stands in {copies(box, name)}"
        assert mailbox.attempts(box, name) == last_attempt
    assert not noted(root, "objections"), noted(root, "objections")
    effects = Counter(e["id"] for e in noted(root, "effects"))
    assert all(count == 1 for count in effects.values()), f"a tool acted twice: {effects}"
    _conversation(box, expected, found)


def _recorded(root: Path, box: Box, name: str, attempt: int, reply: Message) -> None:
    records = ndjson.read_objects(box.turn(name, attempt))
    kept = Counter(r["step"] for r in records if r["t"] == "reply")
    assert kept and set(kept.values()) == {1}, f"replies recorded by step: {dict(kept)}"
    turn = Turn(box.turn(name, attempt), root / "blobs")
    turn.close()
    asked = [a for a in noted(root, "asked") if a["stem"] == name and a["attempt"] == attempt]
    for number, step in enumerate(turn.steps):
        assert step.reply is not None
        answers = [a["text"] for a in asked if a["step"] == number]
        assert answers[-1] == step.reply.text, f"step {number} was asked again after {step.reply.text!r}: {answers}"
    assert turn.steps[-1].reply is not None and reply.body == turn.steps[-1].reply.text


def _conversation(box: Box, expected: dict[str, int], found: dict[str, Message]) -> None:
    lines = ndjson.read_objects(box.path / "conversations" / "main.ndjson")
    for name, attempt in expected.items():
        said = [(line["role"], line["text"]) for line in lines if line["name"] == name]
        reply = found[ids.reply_stem(AGENT, name, attempt)].body
        assert [role for role, _ in said] == ["user", "assistant"], f"conversation of {name}: {said}"
        assert said[1][1] == reply


# -- cases -----------------------------------------------------------------------------------------------------


def agent_with(*letters: tuple[str, bytes]) -> Callable[[Path], None]:
    """A setup: the worker's mailbox with these messages waiting."""

    def setup(root: Path) -> None:
        box = Worker().box(root)
        mailbox.create(box)
        fs.ensure_dir(box.path / "conversations")
        (root / "blobs").mkdir()
        for name, data in letters:
            mailbox.deliver(box, name, data)

    return setup


_MAIL = (letter(1, "one"), letter(2, "use a tool"), letter(3, "use a tool, huge"))


def _accept(root: Path, name: str) -> None:
    note(root, "accepted", {"stem": name})


def _send(root: Path) -> None:
    box = Worker().box(root)
    mailbox.deliver(box, *_MAIL[0])
    _accept(root, _MAIL[0][0])
    mailbox.deliver_all(box, _MAIL)
    for name, _ in _MAIL:
        _accept(root, name)
    mailbox.deliver(box, *_MAIL[1])


def _sent_is_there(root: Path) -> None:
    tidy(root)
    box = Worker().box(root)
    for name in {a["stem"] for a in noted(root, "accepted")}:
        data = dict(_MAIL)[name]
        assert (box.inbox / f"{name}.msg").read_bytes() == data, f"accepted and not there: {name}"


def _all_sent_once(root: Path) -> None:
    _sent_is_there(root)
    box = Worker().box(root)
    assert sorted(os.listdir(box.inbox)) == sorted(
        [".failed", ".in-progress", ".processed", ".tmp", ".unreadable", *(f"{name}.msg" for name, _ in _MAIL)]
    )


send = Case("send", agent_with(), _send, _send, _all_sent_once, _sent_is_there, rival=_send)


def working(worker: Worker, name: str = "work") -> Case:
    """Claim, turn with a tool, answer, conversation, acknowledge; the rival is a second worker."""

    def check(root: Path) -> None:
        tidy(root)
        lines_whole(root)
        answered_once(root, worker, {stem: 0 for stem, _ in _MAIL})

    return Case(name, agent_with(*_MAIL), worker.run, worker.run, check, tidy, rival=worker.run)


_BAD = (letter(4, "fails once"), letter(5, "good"))


def failing(worker: Worker, name: str = "fail and retry") -> Case:
    """The first attempt fails, is retried and answered; the rival retries too."""

    def workflow(root: Path) -> None:
        worker.run(root)
        retry_failed(root, worker)
        worker.run(root)

    def check(root: Path) -> None:
        tidy(root)
        lines_whole(root)
        answered_once(root, worker, {_BAD[0][0]: 1, _BAD[1][0]: 0})

    def rival(root: Path) -> None:
        retry_failed(root, worker)

    return Case(name, agent_with(*_BAD), workflow, workflow, check, tidy, rival=rival)


def _blobs(root: Path) -> None:
    for data in (b"", b"one", b"two" * 1000, b"one"):
        digest = blobs.put(root / "blobs", data)
        note(root, "stored", {"digest": digest, "size": len(data)})


def _blobs_kept(root: Path) -> None:
    tidy(root)
    for stored in noted(root, "stored"):
        assert len(blobs.get(root / "blobs", stored["digest"])) == stored["size"]


blob_store = Case("blobs", lambda root: (root / "blobs").mkdir(), _blobs, _blobs, _blobs_kept, _blobs_kept, _blobs)


class Clock:
    """Microseconds that do not move: the journal must make them move."""

    def __call__(self) -> int:
        return NOW_US


def _open_journal(root: Path) -> Journal:
    return Journal(root / "goals" / "g" / "journal.ndjson", root / "blobs", root / "heads" / "g", Clock())


def _write_journal(root: Path) -> None:
    """Single records, a group that shares a sync, a payload for a blob, a head; each acknowledged once durable."""
    try:
        book = _open_journal(root)
    except journal.JournalBusy:
        return
    try:
        first = book.append("began", {"name": "test"}, "", {"from": book.seq})
        note(root, "acknowledged", {"seq": first.seq, "hash": first.hash})
        group = [book.stage("step", {}, f"seq:{first.seq}", {"i": i, "text": "ü" * i}) for i in range(3)]
        book.sync()
        for event in group:
            note(root, "acknowledged", {"seq": event.seq, "hash": event.hash})
        book.note_head()
        big = book.append("big", {}, "", {"text": "y" * 70_000})
        note(root, "acknowledged", {"seq": big.seq, "hash": big.hash})
        book.note_head()
    finally:
        book.close()


def _journal_setup(root: Path) -> None:
    (root / "blobs").mkdir()
    book = _open_journal(root)
    for i in range(60):
        book.stage("old", {}, "", {"i": i})
    book.sync()
    book.close()


def _journal_readable(root: Path) -> None:
    """Every acknowledged record stands there, the chain holds, and no head leads."""
    tidy(root)
    path = root / "goals" / "g" / "journal.ndjson"
    events = {e.seq: e.hash for e in journal.read(path, root / "blobs")}
    for known in noted(root, "acknowledged"):
        assert events.get(known["seq"]) == known["hash"], f"record {known['seq']} was acknowledged and is gone"
    head = journal.read_head(root / "heads" / "g")
    assert head is None or events.get(head[0]) == head[1], "the head leads its journal"


def _journal_whole(root: Path) -> None:
    _journal_readable(root)
    lines_whole(root)
    assert journal.audit(root / "goals" / "g" / "journal.ndjson", root / "blobs", root / "heads" / "g") == []


journal_case = Case(
    "journal",
    _journal_setup,
    _write_journal,
    _write_journal,
    _journal_whole,
    _journal_readable,
    rival=_write_journal,
)

_VALUES = ["first\n" * 100, "second\n" * 5, "third\n" * 300]


def _state_setup(root: Path) -> None:
    (root / "want").write_text(_VALUES[0])
    (root / "status").write_text(_VALUES[0])


def _write_state(root: Path) -> None:
    for value in _VALUES[1:]:
        fs.replace(root / "want", value.encode())
        note(root, "written", {"value": _VALUES.index(value)})
        fs.hint(root / "status", value.removesuffix("\n"))


def _state_whole(root: Path) -> None:
    tidy(root)
    want = (root / "want").read_text()
    assert want in _VALUES, "half a state file"
    assert (root / "status").read_text() in _VALUES, "half a hint"
    assert want != _VALUES[0] or not noted(root, "written"), "a value that was written is gone"


state_files = Case("state files", _state_setup, _write_state, _write_state, _state_whole, _state_whole)


_MISSING = "there is no agent 'gone'"


def _target(root: Path) -> Box:
    return Box(root / "agents" / "target")


def _route_setup(root: Path) -> None:
    box, target = Worker().box(root), _target(root)
    mailbox.create(box)
    mailbox.create(target)
    for number, (name, data) in enumerate(_MAIL):
        request = message.decode(data, name)
        reply_name, reply = message.reply_to(request, name, AGENT, 0, f"answer {number}", 1)
        mailbox.answer(box, reply_name, reply)


def _route(root: Path) -> None:
    """Copy to the target under the same name, note that another is missing, then mark as sent.

    The target takes its mail in between.
    """
    held = locks.acquire(root / "router.lock")
    if held is None:
        return
    with held:
        box = Worker().box(root)
        for name in mailbox.outgoing(box):
            data = mailbox.read_message(box.outbox / name)
            mailbox.deliver(_target(root), name[:-4], data)
            mailbox.refuse_in_part(box, name[:-4], data, "no_target", _MISSING)
            mailbox.mark_sent(box, name[:-4])


def _target_works(root: Path) -> None:
    """The target finishes what it has: a copy that comes once more must be recognised in `.processed/`."""
    box = _target(root)
    with locks.acquire(box.path / "lock") or locks.acquire(box.path / "lock", wait=True):  # type: ignore[union-attr]
        inbox = mailbox.Inbox(box)
        while (claimed := inbox.claim()) is not None:
            note(root, "received", {"stem": claimed.stem})
            mailbox.acknowledge(box, claimed.stem)


def _routed_once(root: Path) -> None:
    tidy(root)
    _target_works(root)
    box = Worker().box(root)
    assert mailbox.outgoing(box) == []
    expected = Counter({ids.reply_stem(AGENT, name): 1 for name, _ in _MAIL})
    assert Counter(r["stem"] for r in noted(root, "received")) == expected
    for name in expected:
        assert copies(_target(root), name) == [_target(root).processed(name).parent.name]
        assert box.sent(name).read_bytes() == _target(root).processed(name).read_bytes()
        assert (box.refused / f"{name}.msg").read_bytes() == box.sent(name).read_bytes()
        assert json.loads((box.refused / f"{name}.msg.error.json").read_bytes())["detail"] == _MISSING
    assert len(list(box.refused.glob("*.msg*"))) == 2 * len(expected)


route = Case("route", _route_setup, _route, _route, _routed_once, tidy, rival=_target_works)

KERNEL = (send, working(Worker()), failing(Worker()), blob_store, journal_case, state_files, route)

__all__ = ["KERNEL", "Case", "Worker", "failing", "note", "noted", "nothing", "working"]
