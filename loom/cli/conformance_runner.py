"""The rules that a runner has to keep, each tried with real processes in a home of its own."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from loom.cli.conformance import Broken, Rule
from loom.proc.spawn import base_environment
from loom.spool import agents, fs, locks, mailbox
from loom.spool.home import open_home
from loom.spool.layout import AgentDir, Home, programs_dir
from loom.wire import exits, ids, message
from loom.wire.agent import AgentSpec
from loom.wire.jsontext import Malformed, dumps, loads_object
from loom.wire.message import Message

PATIENCE_S = 20.0
NAME = "candidate"
_POLL_S = 0.01
_T0_MS = 1_790_000_000_000


def command_of(program: str) -> list[str]:
    """How a supervisor would start it: a shipped Python runner by the interpreter that runs loom."""
    with Path(program).open("rb") as file:
        first = file.readline(200)
    shipped = Path(program).parent == programs_dir("runners")
    return [sys.executable, program] if shipped and b"python" in first else [program]


class Stage:
    """A home with one agent, and the program that serves it."""

    def __init__(self, program: str, place: Path) -> None:
        self.command = command_of(program)
        self.home: Home = open_home(place / "home")
        self.agent: AgentDir = agents.create(self.home, AgentSpec(name=NAME, model="builtin/echo"), "", "up")
        self._number = 0

    def message(self, body: str = "hello", **fields: object) -> tuple[str, bytes]:
        """A new message's name and bytes; later ones have later names."""
        self._number += 1
        stem = ids.message_stem(_T0_MS + self._number, os.urandom(10))
        values: dict[str, object] = {"id": ids.ulid_of(stem), "from_": "user", "ts_ms": _T0_MS, "body": body, **fields}
        return stem, message.encode(Message(**values))  # type: ignore[arg-type]

    def send(self, body: str = "hello", **fields: object) -> str:
        stem, data = self.message(body, **fields)
        mailbox.deliver(self.agent, stem, data)
        return stem

    def put(self, path: Path, data: bytes) -> None:
        fs.publish(path, data)

    def environment(self) -> dict[str, str]:
        told = {"LOOM_HOME": str(self.home.path), "LOOM_AGENT": NAME, "LOOM_AGENT_DIR": str(self.agent.path)}
        kept = {name: os.environ[name] for name in ("PYTHONPATH",) if name in os.environ}
        return {**base_environment(os.environ), **kept, **told}

    def drain(self) -> int:
        """Let it work until nothing is left; its status."""
        words = [*self.command, str(self.agent.path), "--drain"]
        return _ended(_start(words, self.environment()), "with --drain")

    @contextmanager
    def running(self) -> Iterator[subprocess.Popen[bytes]]:
        """It runs, and has said that it is ready; killed at the end if it still does."""
        read, write = os.pipe()
        env = {**self.environment(), "LOOM_READY_FD": str(write)}
        child = _start([*self.command, str(self.agent.path)], env, (write,))
        os.close(write)
        try:
            ready = select.select([read], [], [], PATIENCE_S)[0]
            _must(bool(ready), f"it was not ready within {PATIENCE_S:g} s")
            _must(os.read(read, 1) == b"\n", f"it ended before it was ready, with {child.poll()}")
            yield child
        finally:
            os.close(read)
            _kill(child)

    def reply(self, stem: str, attempt: int = 0) -> Message:
        """The reply under its derived name."""
        name = ids.reply_stem(NAME, stem, attempt)
        path = self.agent.outbox / f"{name}.msg"
        there = sorted(entry.name for entry in self.agent.outbox.glob("*.msg"))
        _must(path.exists(), f"no reply named {name}.msg in outbox/, but {there}")
        try:
            return message.decode(mailbox.read_message(path), name)
        except message.Unreadable as error:
            raise Broken(f"the reply cannot be read: {error}") from None

    def is_processed(self, stem: str) -> None:
        found = mailbox.find(self.agent, stem)
        _must(
            found == self.agent.processed(stem), f"the message is in {found and found.parent.name}, not .processed/DAY/"
        )

    def has_failed(self, stem: str, attempts: int) -> None:
        found = mailbox.find(self.agent, stem)
        _must(
            found is not None and found.parent == self.agent.failed,
            f"it is in {found and found.parent.name}, not .failed/",
        )
        record = mailbox.read_error(self.agent, stem)
        _must(record is not None, f"there is no {stem}.msg.error.json in .failed/")
        assert record is not None
        _must(record.get("attempts") == attempts, f"attempts are {record.get('attempts')}, not {attempts}")
        missing = {"ts", "attempts", "error_type", "last_error", "hint"} - set(record)
        _must(not missing, f"error.json lacks {sorted(missing)}")
        reply = self.reply(stem, attempts - 1)
        _must(
            reply.error and bool((reply.data or {}).get("error_type")), "the reply lacks error: true, data.error_type"
        )


def _start(words: list[str], env: dict[str, str], fds: tuple[int, ...] = ()) -> subprocess.Popen[bytes]:
    nothing = subprocess.DEVNULL
    return subprocess.Popen(
        words, stdin=nothing, stdout=nothing, stderr=nothing, env=env, pass_fds=fds, start_new_session=True
    )


def _kill(child: subprocess.Popen[bytes]) -> None:
    try:
        os.killpg(child.pid, signal.SIGKILL)  # ours and not reaped: the number is still its own
    except ProcessLookupError:
        pass
    child.wait()


def _ended(child: subprocess.Popen[bytes], how: str) -> int:
    try:
        return child.wait(PATIENCE_S)
    except subprocess.TimeoutExpired:
        raise Broken(f"started {how} it does not end") from None
    finally:
        _kill(child)


def _must(holds: bool, found: str) -> None:
    if not holds:
        raise Broken(found)


def _await(condition: Callable[[], bool], found: str) -> None:
    end = time.monotonic() + PATIENCE_S
    while not condition():
        _must(time.monotonic() < end, found)
        time.sleep(_POLL_S)


def _done(stage: Stage, how: str = "with --drain") -> None:
    status = stage.drain()
    _must(status == exits.DONE, f"started {how} it ended with {status}, not 0")


# -- the rules -------------------------------------------------------------------------------------------------------


def _usage(program: str, place: Path) -> None:
    stage = Stage(program, place)
    status = _ended(_start([*stage.command], stage.environment()), "without an argument")
    _must(status == exits.USAGE, f"without an argument it ended with {status}, not 2")
    fs.ensure_dir(place / "nothing")
    status = _ended(
        _start([*stage.command, str(place / "nothing"), "--drain"], stage.environment()), "where no agent is"
    )
    _must(status == exits.NOT_FOUND, f"where no agent is it ended with {status}, not 66")


def _answers(program: str, place: Path) -> None:
    stage = Stage(program, place)
    fields = {"reply_to": "other", "thread": "t1", "goal": "20260101-g", "trace": "00-a", "origin": stage.message()[0]}
    stem = stage.send("héllo\n", **fields)
    _done(stage)
    reply = stage.reply(stem)
    _must(reply.from_ == NAME, f"`from` is {reply.from_!r}")
    _must(
        reply.origin == f"{fields['origin']}/{stem}",
        f"`origin` is {reply.origin!r}, not the request's, a slash, its name",
    )
    _must(reply.to == "other", f"`to` is {reply.to!r}, not the request's reply_to")
    copied = (reply.thread, reply.goal, reply.trace)
    _must(copied == ("t1", "20260101-g", "00-a"), f"thread, goal and trace are {copied}")
    stage.is_processed(stem)


def _many(program: str, place: Path) -> None:
    stage = Stage(program, place)
    stems = [stage.send(f"number {n}") for n in range(8)]
    _done(stage)
    for stem in stems:
        stage.reply(stem)
        stage.is_processed(stem)
    count = len(list(stage.agent.outbox.glob("*.msg")))
    _must(count == len(stems), f"{count} replies to {len(stems)} messages")
    _must(not list(stage.agent.path.rglob(".tmp/*")), "something is left in .tmp/")


def _lock(program: str, place: Path) -> None:
    stage = Stage(program, place)
    with stage.running() as first:
        _must(locks.is_held(stage.agent.lock), "it is ready and holds no lock")
        who = locks.holder(stage.agent.lock)
        _must(who is not None and who.pid == first.pid, "its lock does not say `pid start-time boot-id` of it")
        status = stage.drain()
        _must(status == exits.TRY_LATER, f"a second one ended with {status}, not 75")
    _await(lambda: not locks.is_held(stage.agent.lock), "killed, it leaves its lock held by a child")


def _serves(program: str, place: Path) -> None:
    stage = Stage(program, place)
    with stage.running() as child:
        stem = stage.send()
        _await(lambda: stage.agent.processed(stem).exists(), "mail that comes while it runs is not answered")
        stage.reply(stem)
        child.send_signal(signal.SIGTERM)
        status = _ended(child, "and sent SIGTERM")
        _must(status == exits.DONE, f"SIGTERM ended it with {status}, not 0")


def _resumes(program: str, place: Path) -> None:
    stage = Stage(program, place)
    stem, data = stage.message()
    stage.put(stage.agent.in_progress / f"{stem}.msg", data)
    _done(stage)
    stage.reply(stem)
    stage.is_processed(stem)


def _looks(program: str, place: Path) -> None:
    stage = Stage(program, place)
    answered = []
    for where in ("outbox", "sent"):
        stem, data = stage.message()
        stage.put(stage.agent.in_progress / f"{stem}.msg", data)
        name = ids.reply_stem(NAME, stem)
        path = stage.agent.sent(name) if where == "sent" else stage.agent.outbox / f"{name}.msg"
        stage.put(path, message.encode(Message(ids.ulid_of(name), NAME, 1, "answered before", origin=stem)))
        answered.append((stem, path, path.read_bytes()))
    again, data = stage.message()
    for path in (stage.agent.in_progress / f"{again}.msg", stage.agent.processed(again)):
        stage.put(path, data)
    _done(stage)
    for stem, path, bytes_ in answered:
        stage.is_processed(stem)
        _must(path.read_bytes() == bytes_, f"the reply that was in {path.parent.name} was changed")
    stage.is_processed(again)
    _must(len(list(stage.agent.outbox.glob("*.msg"))) == 1, "what was answered or processed before was answered again")


def _failure_resumes(program: str, place: Path) -> None:
    stage = Stage(program, place)
    stem, data = stage.message()
    stage.put(stage.agent.in_progress / f"{stem}.msg", data)
    name = ids.reply_stem(NAME, stem)
    failure = Message(
        ids.ulid_of(name), NAME, 1, "it failed", error=True, origin=stem, data={"error_type": "x", "hint": ""}
    )
    stage.put(stage.agent.outbox / f"{name}.msg", message.encode(failure))
    _done(stage)
    stage.has_failed(stem, 1)


def _fails(program: str, place: Path) -> None:
    stage = Stage(program, place)
    stem = stage.send("too late", deadline_ms=1)
    behind = stage.send("in time")
    _done(stage)
    stage.has_failed(stem, 1)
    stage.reply(behind)
    fs.move(stage.agent.failed / f"{stem}.msg", stage.agent.inbox / f"{stem}.msg")
    _done(stage)
    stage.has_failed(stem, 2)


def _lost_blob(program: str, place: Path) -> None:
    stage = Stage(program, place)
    stem = stage.send("begins …", data={"body_blob": "0" * 64})
    _done(stage)
    stage.has_failed(stem, 1)


def _third_death(program: str, place: Path) -> None:
    stage = Stage(program, place)
    stem, data = stage.message()
    stage.put(stage.agent.in_progress / f"{stem}.msg", data)
    opened = dumps({"t": "open", "boot": locks.boot_id(), "epoch": "1.1"}) + b"\n"
    stage.put(stage.agent.turn(stem, 0), opened * 3)
    _done(stage)
    stage.has_failed(stem, 1)


def _odd(program: str, place: Path) -> None:
    stage = Stage(program, place)
    inbox = stage.agent.inbox
    good, data = stage.message()
    text = data.decode()
    bad = {
        "not JSON": b"{",
        "empty": b"",
        "an array": b"[]",
        "not UTF-8": data.replace(b"hello", b"\xff\xfe"),
        "of a newer version": text.replace('"v":1', '"v":9').encode(),
        "without a version": text.replace('"v":1,', "").encode(),
        "with another id": data,
        "without a body": text.replace('"body":"hello"', '"ts":1').encode(),
        "too large": text.replace("hello", "x" * (1 << 20)).encode(),
        "nested too deep": text.replace('"body"', '"deep":' + "[" * 100 + "]" * 100 + ',"body"').encode(),
    }
    names = {}
    for what, bytes_ in bad.items():
        stem, _ = stage.message()
        own = bytes_ if what == "with another id" else bytes_.replace(good[14:].encode(), stem[14:].encode())
        stage.put(inbox / f"{stem}.msg", own)
        names[what] = f"{stem}.msg"
    stage.put(inbox / "no-name.msg", data)
    names["badly named"] = "no-name.msg"
    (link, elsewhere), (pipe, _), (directory, _) = (stage.message() for _ in range(3))
    stage.put(place / "elsewhere", elsewhere)  # a good message, but not in this inbox
    fs.calls.symlink(str(place / "elsewhere"), str(inbox / f"{link}.msg"))
    fs.calls.mkfifo(str(inbox / f"{pipe}.msg"), 0o600)
    fs.make_dir(inbox / f"{directory}.msg", 0o700)
    names |= {"a link": f"{link}.msg", "a FIFO": f"{pipe}.msg", "a directory": f"{directory}.msg"}
    stage.put(inbox / "notes.txt", b"nobody's")
    stem = stage.send("behind all of them")
    _done(stage)
    stage.reply(stem)
    for what, name in names.items():
        _must(os.path.lexists(stage.agent.unreadable / name), f"a message that is {what} is not in .unreadable/")
        try:
            record = loads_object(fs.read(stage.agent.unreadable / f"{name}.error.json"))
        except (OSError, Malformed):
            raise Broken(f"a message that is {what} has no FILE.error.json") from None
        _must(bool(record.get("reason")), f"FILE.error.json of one that is {what} has no reason")
    _must((inbox / "notes.txt").exists(), "an entry that is no .msg was taken away")
    _must(len(list(stage.agent.outbox.glob("*.msg"))) == 1, "something unreadable was answered")


RULES = (
    Rule("called wrongly it ends with 2, without an agent with 66", _usage),
    Rule(
        "a message is answered under the derived name, with origin, to, thread, goal, trace, and moved to .processed",
        _answers,
    ),
    Rule("with --drain it answers all that waits, each once, and ends with 0", _many),
    Rule("it says that it is ready, holds the lock and signs it; a second one ends with 75", _lock),
    Rule("it answers what comes while it runs, and leaves on SIGTERM with 0", _serves),
    Rule("what its predecessor had claimed is finished", _resumes),
    Rule("what is answered or processed already is not answered again", _looks),
    Rule("a failure that was answered is filed, not worked on", _failure_resumes),
    Rule("a deadline that has passed is a failure; tried again it has another name", _fails),
    Rule("a body that is lost is a failure", _lost_blob),
    Rule("the third death of an attempt fails its message", _third_death),
    Rule("what is no message is set aside with its reason, and holds nothing up", _odd),
)
