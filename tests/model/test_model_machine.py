"""The real code under hypothesis: random lives of two agents and a router, with kills and others' steps in between.

What runs is the real thing (model_real.py): mailbox, turns, conversations, MailboxLoop, ChatWorker, Router. A step is
one rule: somebody sends, works on a message, routes, tries again, drops garbage. While it runs it may be *disturbed* at
its n-th look or change of a file: it is killed there (an exception that nothing catches, after which no call of its
does anything any more; descriptors are closed, so its locks are free), or the router does a whole round just then.

The machine remembers what was accepted, and every reply it has ever seen. After each step:

    one place     an accepted message lies in exactly one state of its agent (or is in the archive)
    one answer    under a name lies one content for ever, and each name is the one derived for its request
    used once     the tool is not called twice in an attempt
    bought once   no more model replies than steps and kills

and at the end, when all have worked until nothing waits: everything accepted was answered, downstream too; what failed
had a reason to; a retry that said yes led to a new attempt; a conversation has each message once.

Mistakes put into the real functions have to be found by the same machine; more of them are tried on the model. Limits:
one process acts at a time, but for
the router's round in between; no power cuts (tests/power), no faults of the disk (tests/crash).
"""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import results
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from model_real import NOW_MS, Outside, Runner, letter, make_home, route_all, stem
from support import scratch

from loom.core.retention import Policy
from loom.daemons import router, service
from loom.spool import fs, mailbox, ndjson, retention
from loom.spool.layout import AgentDir, Home
from loom.wire import ids
from loom.wire import message as wire

DAY_MS = 86_400_000
BODIES = ("hello", "fails once", "use a tool")
STEPS = {"hello": 1, "fails once": 1, "use a tool": 2}
AGENTS = ("a", "b")
MAX_ATTEMPTS = 6


class Killed(BaseException):
    """The process is gone."""


class Disturbed(fs.Calls):
    """Counts looks and changes; at the n-th one the process is killed, or somebody else does something.

    at   n; below zero, only what gives a file its name is counted: the moments that matter most
    """

    def __init__(self, at: int, meanwhile: Callable[[], None] | None) -> None:
        self.left, self.names_only = abs(at), at < 0
        self.meanwhile, self.dead = meanwhile, False

    def pass_by(self, kind: str) -> None:
        if self.dead:
            raise Killed
        if self.names_only and kind not in ("link", "rename", "rename_noreplace"):
            return
        self.left -= 1
        if self.left == 0:
            if self.meanwhile is None:
                self.dead = True
                raise Killed
            with undisturbed():
                self.meanwhile()


def _call(name: str) -> Callable[..., Any]:
    def call(self: Disturbed, *args: Any) -> Any:
        self.pass_by(name)
        return getattr(fs.Calls, name)(self, *args)

    return call


for _name in [n for n in vars(fs.Calls) if not n.startswith("_")]:
    setattr(Disturbed, _name, _call(_name))
_REAL = (fs.calls, fs._open_regular, os.path.lexists)


def _put(found: tuple[Any, Any, Any]) -> None:
    fs.calls, fs._open_regular, os.path.lexists = found


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    before = (fs.calls, fs._open_regular, os.path.lexists)
    _put(_REAL)
    try:
        yield
    finally:
        _put(before)


@contextlib.contextmanager
def disturbed(at: int, meanwhile: Callable[[], None] | None) -> Iterator[None]:
    """Every look and change inside is counted; Killed ends here."""
    double = Disturbed(at, meanwhile)

    def looking(real: Callable[..., Any]) -> Callable[..., Any]:
        def look(path: Any) -> Any:
            double.pass_by("look")
            return real(path)

        return look

    _put((double, looking(_REAL[1]), looking(_REAL[2])))
    try:
        yield
    except Killed:
        pass
    finally:
        _put(_REAL)


@dataclass
class Sent:
    """What the machine knows of one message: its text and bytes, and which attempt it is owed at least."""

    body: str
    data: bytes
    owed: int = 0


@dataclass
class Counts:
    """What all runs of a machine did together, for the report."""

    steps: Counter[str] = field(default_factory=Counter)


COUNTS = Counts()
_TEMPLATE: list[Path] = []


def _template() -> Path:
    if not _TEMPLATE:
        _TEMPLATE.append(scratch())
        home = make_home(_TEMPLATE[0] / "home", *AGENTS)
        route_all(home)
        for fifo in home.wake.iterdir():
            fifo.unlink()
    return _TEMPLATE[0] / "home"


AT = st.one_of(st.just(0), st.integers(1, 45), st.integers(-9, -1))  # 0: nothing disturbs


class Lives(RuleBasedStateMachine):
    """Everything that may happen to two agents and their mail."""

    def __init__(self) -> None:
        super().__init__()
        self.room = scratch()
        shutil.copytree(_template(), self.room / "home", symlinks=True)
        self.home = Home(self.room / "home")
        self.outside = Outside()
        self.sent: dict[str, Sent] = {}
        self.replies: dict[str, bytes] = {}
        self.numbers = itertools.count(1)
        self.kills = 0
        self.archived: set[str] = set()
        clock = itertools.count(NOW_MS)
        self._now, service._now_ms = service._now_ms, lambda: next(clock)

    def teardown(self) -> None:
        try:
            if self.sent:
                self.come_to_rest()
                self.all_is_answered()
        finally:
            service._now_ms = self._now
            shutil.rmtree(self.room)

    # -- what happens --------------------------------------------------------------------------------------------

    def box(self, name: str = "a") -> AgentDir:
        return self.home.agent(name)

    def act(self, what: str, at: int, by_router: bool, work: Callable[[], Any]) -> None:
        """Do something, disturbed at its `at`-th look or change; counted."""
        COUNTS.steps[what] += 1
        if not at:
            work()
            return
        meanwhile = (lambda: route_all(self.home)) if by_router else None
        double_kill = meanwhile is None
        done = False
        with disturbed(at, meanwhile):
            work()
            done = True
        if double_kill and not done:
            self.kills += 1
            COUNTS.steps["kill"] += 1

    @initialize(body=st.sampled_from(BODIES))
    def begin(self, body: str) -> None:
        self.send(body, 0, 0)

    @rule(body=st.sampled_from(BODIES), days=st.integers(-2, 2), at=AT)
    def send(self, body: str, days: int, at: int) -> None:
        """Killed before it could say "accepted", it sends again: the same key, the same bytes."""
        name = stem(next(self.numbers), NOW_MS + days * DAY_MS)
        data = letter(name, body)
        self.act("send", at, False, lambda: mailbox.deliver(self.box(), name, data))
        mailbox.deliver(self.box(), name, data)
        self.sent[name] = Sent(body, data)

    @precondition(lambda self: self.retained())
    @rule(choice=st.integers(0, 99), other=st.booleans())
    def send_again(self, choice: int, other: bool) -> None:
        """The same key: with the same bytes nothing happens, with others it is refused."""
        name = self.pick(choice, self.retained())
        COUNTS.steps["send again"] += 1
        if not other:
            assert mailbox.deliver(self.box(), name, self.sent[name].data) is False, "sent again, it was taken for new"
            return
        try:
            mailbox.deliver(self.box(), name, letter(name, "something else"))
        except mailbox.Conflict:
            return
        raise AssertionError("other bytes under the same key were accepted")

    @rule(name=st.sampled_from(AGENTS), at=AT, by_router=st.booleans(), messages=st.integers(1, 2))
    def work(self, name: str, at: int, by_router: bool, messages: int) -> None:
        def live() -> None:
            runner = Runner(self.home, name, self.outside)
            try:
                runner.run(messages)
            finally:
                runner.close()

        self.act("work", at, by_router, live)

    @rule(at=AT)
    def route(self, at: int) -> None:
        self.act("route", at, False, lambda: route_all(self.home))

    @precondition(lambda self: any(n in self.sent for n in mailbox.failed(self.box())))
    @rule(choice=st.integers(0, 99), by_hand=st.booleans(), at=AT)
    def try_again(self, choice: int, by_hand: bool, at: int) -> None:
        """`loom agent retry`, or mv, also where the runner had died before it wrote error.json."""
        box = self.box()
        name = self.pick(choice, [n for n in mailbox.failed(box) if n in self.sent])
        answers = sum(self.reply_of("a", name, n) is not None for n in range(MAX_ATTEMPTS))
        if by_hand:
            COUNTS.steps["mv"] += 1
            recorded = mailbox.attempts(box, name) == answers
            (box.failed / f"{name}.msg").rename(box.inbox / f"{name}.msg")
            self.sent[name].owed = max(self.sent[name].owed, answers if recorded else 0)
            return

        def retry() -> None:
            if mailbox.retry(box, "a", name, "now"):
                self.sent[name].owed = answers

        self.act("retry", at, False, retry)

    @precondition(lambda self: self.copies())
    @rule(choice=st.integers(0, 99))
    def redeliver(self, choice: int) -> None:
        """What was routed comes once more, as after a crash of the router between copy and move."""
        COUNTS.steps["redeliver"] += 1
        path = self.pick(choice, self.copies())
        assert mailbox.deliver(self.box("b"), path.name.removesuffix(".msg"), path.read_bytes()) is False

    @rule(kind=st.sampled_from(["text", "directory", "link", "fifo", "name", "other"]), name=st.sampled_from(AGENTS))
    def drop(self, kind: str, name: str) -> None:
        """Something that is no message, in an inbox."""
        COUNTS.steps["garbage"] += 1
        number = next(self.numbers)
        path = self.box(name).inbox / f"{stem(900_000 + number)}.msg"
        match kind:
            case "text":
                path.write_bytes(b"not a message")
            case "directory":
                path.mkdir()
            case "link":
                path.symlink_to("/etc/passwd")
            case "fifo":
                os.mkfifo(path)
            case "name":
                path.with_name(f"{number}.msg").write_bytes(b"{}")
            case "other":
                path.with_suffix(".txt").write_bytes(b"a note")

    @rule(at=st.integers(-20, 120), by_router=st.booleans())
    def collect(self, at: int, by_router: bool) -> None:
        """`loom gc`, with everything old enough: what goes was done, and every target has read the reply."""
        before = {(name, request): mailbox.find(self.box(name), request) for name, request in self.asked()}

        def gc() -> None:
            retention.collect(self.home, now_s=time.time() + 10, policy=Policy(messages=0.0))

        self.act("gc", at, by_router, gc)
        for (name, request), path in before.items():
            if path is None or mailbox.find(self.box(name), request) is not None or request in self.archived:
                continue
            assert path == self.box(name).processed(request), f"{path} was put away"
            self.archived.add(request)

    def asked(self) -> list[tuple[str, str]]:
        return [(name, request) for name in AGENTS for request in self.requests_of(name)]

    # -- what is seen --------------------------------------------------------------------------------------------

    def pick(self, choice: int, among: list[Any]) -> Any:
        return among[choice % len(among)]

    def retained(self) -> list[str]:
        return [name for name in self.sent if name not in self.archived]

    def copies(self) -> list[Path]:
        """Replies of a that b has got."""
        found = sorted(self.box().outbox.glob(".sent/*/*.msg"))
        return [path for path in found if path.name.removesuffix(".msg") not in self.archived]

    def reply_of(self, name: str, request: str, attempt: int) -> bytes | None:
        return self.replies.get(REPLY_STEM(name, request, attempt))

    def requests_of(self, name: str) -> list[str]:
        """What this agent has been asked: by the machine, or by the replies that were routed to it."""
        if name == "a":
            return list(self.sent)
        return [REPLY_STEM("a", m, n) for m in self.sent for n in range(MAX_ATTEMPTS) if self.reply_of("a", m, n)]

    @invariant()
    def nothing_is_lost_or_there_twice(self) -> None:
        for name in self.retained():
            box = self.box()
            places = (
                box.inbox / f"{name}.msg",
                box.in_progress / f"{name}.msg",
                box.processed(name),
                box.failed / f"{name}.msg",
            )
            lies = [str(p.parent.relative_to(box.path)) for p in places if p.exists()]
            assert len(lies) == 1, f"{name} lies in {lies}"

    @invariant()
    def there_is_one_answer(self) -> None:
        for name in AGENTS:
            box = self.box(name)
            derived = {REPLY_STEM(name, m, n) for m in self.requests_of(name) for n in range(MAX_ATTEMPTS)}
            found = [*box.outbox.glob("*.msg"), *box.outbox.glob(".sent/*/*.msg"), *box.refused.glob("*.msg*")]
            for path in found:
                reply = path.name.partition(".msg")[0]
                assert reply in derived, f"{name} has answered under the name {reply}"
                known = self.replies.setdefault(reply, path.read_bytes())
                assert known == path.read_bytes(), f"two answers under the name {reply}"

    @invariant()
    def nothing_is_bought_or_done_again(self) -> None:
        for (name, request, attempt), count in self.outside.used.items():
            assert count == 1, f"{name} has used its tool {count} times for {request}, attempt {attempt}"
        for (name, request, attempt), count in self.outside.bought.items():
            body = self.sent[request].body if request in self.sent else "hello"
            told = max(STEPS.values()) if request not in self.sent else STEPS[body]
            assert count <= told + self.kills, f"{name} has bought {count} replies for {request}, attempt {attempt}"

    def come_to_rest(self) -> None:
        """Everybody works until nothing waits; then all invariants hold once more."""
        for _ in range(8):
            for name in AGENTS:
                self.work(name, 0, False, 1000)
                route_all(self.home)
        self.nothing_is_lost_or_there_twice()
        self.there_is_one_answer()
        self.nothing_is_bought_or_done_again()
        for name in AGENTS:
            box = self.box(name)
            waits = [p.name for d in (box.inbox, box.in_progress, box.outbox) for p in d.glob("*.msg")]
            assert not waits, f"{name} leaves {waits}"

    def all_is_answered(self) -> None:
        for name in AGENTS:
            for request in self.requests_of(name):
                if request not in self.archived:
                    self.is_answered(name, request)
            told = ndjson.read_objects(self.box(name).conversation("main"))
            lines = Counter((line["name"], line["role"]) for line in told)
            assert all(count == 1 for count in lines.values()), f"said twice: {lines}"
            done = {p.name.removesuffix(".msg") for p in self.box(name).inbox.glob(".processed/*/*.msg")}
            assert done <= {request for request, _ in lines}, "not all of the conversation is written down"

    def is_answered(self, name: str, request: str) -> None:
        box = self.box(name)
        found = [self.reply_of(name, request, n) for n in range(MAX_ATTEMPTS)]
        count = sum(data is not None for data in found)
        assert count and all(found[:count]), f"{name}: {request} has the replies {[d is not None for d in found]}"
        replies = [wire.decode(data, REPLY_STEM(name, request, n)) for n, data in enumerate(found[:count]) if data]
        assert all(reply.error for reply in replies[:-1]), f"{request} was answered, and then again"
        last = replies[-1]
        assert box.processed(request).exists() != last.error, f"{request} is not where its reply says"
        if last.error:
            why = (last.data or {}).get("error_type")
            body = self.sent[request].body if request in self.sent else ""
            assert (body == "fails once" and count == 1) or (why == "poison" and self.kills >= 3), f"{request}: {why}"
            # One less where the runner died before it wrote error.json: the next `retry` or mv makes up for it.
            assert mailbox.attempts(box, request) in (count, count - 1)
        if request in self.sent:
            assert count > self.sent[request].owed, f"{request} was to be tried again, and was not"


REPLY_STEM = ids.reply_stem


# -- mistakes ----------------------------------------------------------------------------------------------------


def random_names(box: Any, reply_stem: str, reply: Any) -> bool:
    other = ids.message_stem(ids.time_of(reply_stem), os.urandom(10))
    return fs.publish(box.outbox / f"{other}.msg", wire.encode(replace(reply, id=ids.ulid_of(other))))


def look_the_wrong_way(box: Any, agent: str, name: str, attempt: int) -> Any:
    reply = ids.reply_stem(agent, name, attempt)
    for path in (box.sent(reply), box.outbox / f"{reply}.msg"):
        try:
            found = wire.decode(mailbox.read_message(path), reply)
        except FileNotFoundError:
            continue
        return ("fail" if found.error else "acknowledge"), found
    return ("acknowledge" if os.path.lexists(box.processed(name)) else "work"), None


def acknowledge_first(self: Any, claimed: Any, attempt: int, done: Any, began_us: int) -> None:
    mailbox.acknowledge(self.agent.dir, claimed.stem)
    ANSWER(self, claimed, attempt, done, began_us)


def mark_sent_first(self: Any, box: Any, name: str, message: Any, raw: bytes) -> None:
    mailbox.mark_sent(box, name)
    FORWARD(self, box, name, message, raw)


ANSWER, FORWARD = service.MailboxLoop._answer, router.Router._forward
MISTAKES: dict[str, tuple[Any, str, Any]] = {
    "random names of replies": (mailbox, "answer", random_names),
    "looks in .sent before the outbox": (mailbox, "look", look_the_wrong_way),
    "acknowledges before it answers": (service.MailboxLoop, "_answer", acknowledge_first),
    "delivers without looking": (mailbox, "find", lambda box, name: None),
    "marks as sent before it copies": (router.Router, "_forward", mark_sent_first),
}


def _settings(examples: int, *phases: Phase) -> settings:
    return settings(
        max_examples=examples,
        stateful_step_count=30,
        deadline=None,
        derandomize=True,
        database=None,
        phases=phases or (Phase.generate,),
        suppress_health_check=list(HealthCheck),
    )


@pytest.fixture(autouse=True)
def _template_goes() -> Iterator[None]:
    yield
    while _TEMPLATE:
        shutil.rmtree(_TEMPLATE.pop())


def find(mistake: str, examples: int, patch: pytest.MonkeyPatch) -> BaseException | None:
    """What the machine objects to in code with this mistake; None: nobody noticed."""
    patch.setattr(*MISTAKES[mistake])
    try:
        run_state_machine_as_test(Lives, settings=_settings(examples, Phase.generate))  # type: ignore[no-untyped-call]
    except Exception as error:
        return error
    return None


def test_lives_of_the_real_code():
    run_state_machine_as_test(Lives, settings=_settings(40))  # type: ignore[no-untyped-call]


# Found after some hundred steps; the others take some thousand and are for the full run.
QUICK = ("random names of replies", "delivers without looking")


@pytest.mark.parametrize(
    "mistake", [name if name in QUICK else pytest.param(name, marks=pytest.mark.full) for name in MISTAKES]
)
def test_a_known_mistake_is_found_in_the_real_code(mistake: str, monkeypatch: pytest.MonkeyPatch):
    assert find(mistake, 400, monkeypatch) is not None, f"nobody noticed: {mistake}"


@pytest.mark.full
@pytest.mark.timeout(1800)
def test_many_lives_of_the_real_code():
    COUNTS.steps.clear()
    run_state_machine_as_test(Lives, settings=_settings(2000))  # type: ignore[no-untyped-call]
    counted = COUNTS.steps
    results.note(
        "state machine",
        "derandomized",
        lives=2000,
        steps=sum(counted.values()) - counted["kill"],
        kills=counted["kill"],
    )
