"""The protocol as programs for model_checker: each stands for a function of the real code, operation by operation.

The names are those of the code, and MIRRORS says which function each program stands for; test_model_agrees.py runs
both on the same files and compares operation by operation, so that neither can move away from the other.

What a message is here: a text. `fails once` and `use a tool` in it do what they say. A reply is
`(request, agent, attempt, "ok" | "error", which bought model reply it repeats, when it was written)`, so that no two
are alike.

What is not in the model: power cuts and syncs (a rename is there when it was made), contents that cannot be read,
threads that two processes share, more than one target, parts, wake-ups (who waits sees what comes), and time: what
may be too old at some moment may be too old at any.
"""

from __future__ import annotations

import itertools
from collections.abc import Generator
from typing import Any

from model_checker import Fault, Op

from loom.daemons import goalkeeping, router, service
from loom.spool import fs, goals, mailbox

Program = Generator[Op, Any, Any]

MAX_DEATHS = 3


def reply_name(agent: str, request: str, attempt: int) -> str:
    return f"{request}>{agent}{attempt}"


def request_of(reply: str) -> str:
    return reply.rpartition(">")[0]


# -- loom.spool.fs ---------------------------------------------------------------------------------------------


def settle(path: str) -> Program:
    """False: it has moved on meanwhile. Only looking and syncing: nothing but that can be seen of it here."""
    return (yield ("exists", path))


def publish(f: Fault, path: str, content: Any) -> Program:
    if (yield ("link", path, content)):
        return True
    yield from settle(path)
    return False


def move(f: Fault, source: str, target: str) -> Program:
    while True:
        moved = yield ("move", source, target)
        if moved == "moved":
            return "moved"
        if moved == "gone":
            if not (yield ("exists", source)):
                return "gone"
            continue
        one = yield ("read", source)
        if one is None:
            continue
        two = yield ("read", target)
        if two is None:
            continue
        if one != two:
            return "conflict"
        if not (yield from settle(target)):
            continue
        yield ("remove", source)
        return "same"


# -- loom.spool.mailbox: senders ---------------------------------------------------------------------------------


def find(f: Fault, box: str, name: str) -> Program:
    places = [f"{box}/inbox/", f"{box}/.in-progress/", f"{box}/.processed/", f"{box}/.unreadable/", f"{box}/.failed/"]
    if "deliver does not look at .processed" in f:
        places.remove(f"{box}/.processed/")
    for _ in range(2):
        for place in places:
            if (yield ("exists", place + name)):
                return place + name
        if not (yield ("exists", f"{box}/.failed/{name}.error")):
            break
    return None


def check_known(f: Fault, box: str, name: str, content: Any) -> Program:
    while (known := (yield from find(f, box, name))) is not None:
        there = yield ("read", known)
        if there is None:
            continue
        if there != content:
            return "conflict"
        if not (yield from settle(known)):
            continue
        return "known" if (yield from check_only(f, box, name, content)) else "conflict"
    return "known"


def deliver(f: Fault, box: str, name: str, content: Any) -> Program:
    if (yield from find(f, box, name)) is None and (yield from publish(f, f"{box}/inbox/{name}", content)):
        return "new" if (yield from check_only(f, box, name, content)) else "conflict"
    return (yield from check_known(f, box, name, content))


def check_only(f: Fault, box: str, name: str, content: Any) -> Program:
    """False: other bytes of this name were on their way already."""
    if "deliver does not look again" in f:
        return True
    for place in (".in-progress", ".processed", ".unreadable", ".failed", "inbox"):
        if not (yield ("exists", f"{box}/{place}/{name}")):
            continue
        there = yield ("read", f"{box}/{place}/{name}")
        if there not in (None, content):
            return False
    return True


# -- loom.spool.mailbox: whoever serves ----------------------------------------------------------------------------


def set_aside(f: Fault, box: str, path: str) -> Program:
    target = f"{box}/.unreadable/{path.rpartition('/')[2]}"
    if (yield ("exists", target)):
        target += "+"
    yield ("replace", f"{target}.error", "conflict")
    yield ("move", path, target)


def claim(f: Fault, box: str, name: str) -> Program:
    """Whether it is ours now."""
    mine = f"{box}/.in-progress/{name}"
    outcome = yield from move(f, f"{box}/inbox/{name}", mine)
    if outcome == "conflict":
        yield from set_aside(f, box, f"{box}/inbox/{name}")
    return outcome in ("moved", "same")


def attempts(f: Fault, box: str, name: str) -> Program:
    return (yield ("read", f"{box}/.failed/{name}.error")) or 0


def look(f: Fault, box: str, name: str, attempt: int) -> Program:
    reply = reply_name(box, name, attempt)
    places = (f"{box}/outbox/{reply}", f"{box}/.sent/{reply}")
    for place in reversed(places) if "looks in .sent before the outbox" in f else places:
        found = yield ("read", place)
        if found is None:
            continue
        yield from settle(place)
        return ("fail" if found[3] == "error" else "acknowledge"), found
    if (yield ("exists", f"{box}/.processed/{name}")):
        return "acknowledge", None
    return "work", None


def answer(f: Fault, box: str, reply: str, content: Any) -> Program:
    if "random names of replies" in f:
        reply += f"~{yield ('count', '~drawn')}"
    return (yield from publish(f, f"{box}/outbox/{reply}", content))


def acknowledge(f: Fault, box: str, name: str) -> Program:
    source = f"{box}/.in-progress/{name}"
    if (yield from move(f, source, f"{box}/.processed/{name}")) == "conflict":
        yield from set_aside(f, box, source)


def fail(f: Fault, box: str, name: str, attempt: int) -> Program:
    source = f"{box}/.in-progress/{name}"
    if (yield from move(f, source, f"{box}/.failed/{name}")) == "conflict":
        yield from set_aside(f, box, source)
        return
    yield ("replace", f"{box}/.failed/{name}.error", attempt + 1)


def find_reply(f: Fault, box: str, name: str, attempt: int) -> Program:
    reply = reply_name(box, name, attempt)
    for place in ("outbox", ".sent", "outbox"):
        if (found := (yield ("read", f"{box}/{place}/{reply}"))) is not None:
            return found
    return None


# -- loom.daemons.service: the runner ------------------------------------------------------------------------------


def worker(f: Fault, box: str) -> Program:
    """A runner from its start: the lock, what its predecessor had claimed, then what comes."""
    if "two workers without a lock" not in f:
        yield ("lock", f"{box}/lock")
    left = yield ("list", f"{box}/.in-progress/")
    return (take, box, left, True)


def serve(f: Fault, box: str) -> Program:
    """MailboxLoop.run: one listing serves many claims."""
    names = yield ("await", f"{box}/inbox/")
    return (take, box, names, False)


def take(f: Fault, box: str, names: tuple[str, ...], recovers: bool) -> Program:
    """The next message, worked on to the end of its life."""
    if not names:
        return (serve, box)
    name, rest = names[0], names[1:]
    then = (take, box, rest, recovers)
    reads_first = "claims after reading" in f and not recovers
    if not (recovers or reads_first) and not (yield from claim(f, box, name)):
        return then
    content = yield ("read", f"{box}/{'inbox' if reads_first else '.in-progress'}/{name}")
    if content is None:
        if "two workers without a lock" in f:
            return then
        yield ("object", f"{box}/{name} is gone while it is in work")
    return (handle, box, name, content, then)


def handle(f: Fault, box: str, name: str, content: str, then: tuple[Any, ...]) -> Program:
    """MailboxLoop.handle."""
    attempt = yield from attempts(f, box, name)
    todo, reply = yield from look(f, box, name, attempt)
    if todo == "acknowledge":
        came_again = yield ("exists", f"{box}/.processed/{name}")
        reply = yield from find_reply(f, box, name, attempt)
        if reply is not None and not came_again:
            said = yield from history(f, box)
            yield from converse(f, box, name, reply, said)
        yield from acknowledge(f, box, name)
        return then
    if todo == "fail":
        yield from fail(f, box, name, attempt)
        return then
    return (work, box, name, content, attempt, then)


def work(f: Fault, box: str, name: str, content: str, attempt: int, then: tuple[Any, ...]) -> Program:
    """MailboxLoop._work, ChatWorker.work and turnloop.run: the turn is gone on with where its record ends."""
    turn = f"{box}/turns/{name}.{attempt}"
    records = (yield ("read", turn)) or ()
    yield ("append", turn, ("open",))
    records = (*records, ("open",))
    if deaths(records) >= MAX_DEATHS:
        return (end, box, name, attempt, "error", -1, (), then)
    if not (yield ("witness", f"{box}/.in-progress/{name}")):
        yield ("object", f"{box} works on {name} without having claimed it")
    if "acknowledges before it answers" in f:
        yield from acknowledge(f, box, name)
    said = yield from history(f, box)
    if "use a tool" in content:
        yield from ask(f, box, name, attempt, 0, records)
        yield from use(f, box, name, attempt, records)
    elif "fails once" in content and attempt == 0:
        yield ("count", f"~private/bought/{box}/{name}/{attempt}")
        return (end, box, name, attempt, "error", -1, said, then)
    text = yield from ask(f, box, name, attempt, 1, records)
    return (end, box, name, attempt, "ok", text, said, then)


def ask(f: Fault, box: str, name: str, attempt: int, step: int, records: tuple[Op, ...]) -> Program:
    """The answer of the model to this step: the recorded one, or one that is bought."""
    known = next((r[2] for r in records if r[:2] == ("reply", step)), None)
    if known is not None:
        return known
    bought = yield ("count", f"~private/bought/{box}/{name}/{attempt}")
    if "the model's answer is not recorded" not in f:
        yield ("append", f"{box}/turns/{name}.{attempt}", ("reply", step, bought))
    return bought


def use(f: Fault, box: str, name: str, attempt: int, records: tuple[Op, ...]) -> Program:
    """A tool that must not be called twice."""
    turn = f"{box}/turns/{name}.{attempt}"
    if ("result",) in records:
        return
    if ("intent",) not in records:
        if "no intent before a tool" not in f:
            yield ("append", turn, ("intent",))
        yield ("count", f"~private/used/{box}/{name}/{attempt}")
    yield ("append", turn, ("result",))


def deaths(records: tuple[Op, ...]) -> int:
    """Incarnations that got nowhere."""
    return sum(1 for one, two in itertools.pairwise(records) if one == two == ("open",))


def end(
    f: Fault, box: str, name: str, attempt: int, how: str, bought: int, said: tuple[str, ...], then: tuple[Any, ...]
) -> Program:
    """MailboxLoop._answer and _fail."""
    written = yield ("count", f"~private/written/{box}")
    reply = (name, box, attempt, how, bought, written)
    if "claims after reading" in f:
        yield from move(f, f"{box}/inbox/{name}", f"{box}/.in-progress/{name}")
    yield from answer(f, box, reply_name(box, name, attempt), reply)
    if how == "error":
        yield from fail(f, box, name, attempt)
    elif "acknowledges before the conversation" in f:
        yield from acknowledge(f, box, name)
        yield from converse(f, box, name, reply, said)
    else:
        yield from converse(f, box, name, reply, said)
        yield from acknowledge(f, box, name)
    return then


def history(f: Fault, box: str) -> Program:
    """threads.hold: the names of what was said in the one conversation there is here."""
    return tuple(line[0] for line in (yield ("read", f"{box}/conversation")) or ())


def converse(f: Fault, box: str, name: str, reply: Any, said: tuple[str, ...]) -> Program:
    """Thread.append: once under each name."""
    if name not in said:
        yield ("append", f"{box}/conversation", (name, reply))


# -- loom.daemons.router: plain mail -------------------------------------------------------------------------------


def mail(f: Fault, routes: tuple[tuple[str, str], ...]) -> Program:
    """Router.sweep: every outbox is looked at. routes: (sender, target), the target `user` gets no copy."""
    yield ("await", *(f"{box}/outbox/" for box, _ in routes))
    return (sweep, routes, routes, None)


def sweep(f: Fault, routes: Any, left: Any, names: tuple[str, ...] | None) -> Program:
    if not left:
        return (mail, routes)
    (box, target), rest = left[0], left[1:]
    if names is None:
        names = yield ("list", f"{box}/outbox/")
    if not names:
        return (sweep, routes, rest, None)
    yield from route(f, box, target, names[0])
    return (sweep, routes, left, names[1:])


def route(f: Fault, box: str, target: str, reply: str) -> Program:
    """Router._route and _forward."""
    content = yield ("read", f"{box}/outbox/{reply}")
    if content is None:
        return
    if "marks as sent before it copies" in f:
        yield from mark_sent(f, box, reply)
    if target != "user" and (yield from deliver(f, target, reply, content)) == "conflict":
        yield from refuse(f, box, reply)
        return
    if "marks as sent before it copies" not in f:
        yield from mark_sent(f, box, reply)


def mark_sent(f: Fault, box: str, reply: str) -> Program:
    if (yield from move(f, f"{box}/outbox/{reply}", f"{box}/.sent/{reply}")) == "conflict":
        yield from refuse(f, box, reply)


def refuse(f: Fault, box: str, reply: str) -> Program:
    yield ("replace", f"{box}/.refused/{reply}.error", "conflict")
    yield ("move", f"{box}/outbox/{reply}", f"{box}/.refused/{reply}")


# -- people and programs around it ---------------------------------------------------------------------------------


def client(f: Fault, box: str, name: str, content: str) -> Program:
    """`loom send` with a key, again after each kill until it could say "accepted"."""
    if (yield from deliver(f, box, name, content)) == "conflict":
        yield ("note", f"~refused/{box}/{name}/{content}", True)
    else:
        yield ("note", f"~accepted/{box}/{name}", content)


def sorter(f: Fault, box: str, name: str, ways: tuple[str, ...]) -> Program:
    """A person who tries a failed message again, once in each of these ways: `retry` is the command, `mv` is mv."""
    if not ways:
        return
    yield ("until", f"{box}/.failed/{name}")
    if ways[0] == "mv":
        yield ("rename", f"{box}/.failed/{name}", f"{box}/inbox/{name}")
    elif (yield from retry(f, box, name)):
        yield ("note", f"~retried/{box}/{name}", True)
    return (sorter, box, name, ways[1:])


def retry(f: Fault, box: str, name: str) -> Program:
    """mailbox.retry."""
    if not (yield ("exists", f"{box}/.failed/{name}")):
        return False
    attempt = yield from attempts(f, box, name)
    if "retry without the lost error.json" not in f and (yield from look(f, box, name, attempt))[0] == "fail":
        yield ("replace", f"{box}/.failed/{name}.error", attempt + 1)
    return (yield from move(f, f"{box}/.failed/{name}", f"{box}/inbox/{name}")) in ("moved", "same")


# -- collecting what is old (docs/protocol.md section 10) ----------------------------------------------------------


def collector(f: Fault, boxes: tuple[str, ...]) -> Program:
    """One `loom gc`, at any moment; everything is old enough. First a look round: outboxes, then who has not read."""
    outgoing: tuple[str, ...] = ()
    for box in boxes:
        outgoing += yield ("list", f"{box}/outbox/")
    if "gc does not look at the outboxes" in f:
        outgoing = ()
    waiting: tuple[str, ...] = ()
    for box in boxes:
        waiting += yield ("list", f"{box}/inbox/")
        waiting += yield ("list", f"{box}/.in-progress/")
    return (collect, boxes, outgoing, waiting)


def collect(f: Fault, left: tuple[str, ...], outgoing: tuple[str, ...], waiting: tuple[str, ...]) -> Program:
    if not left:
        return
    box = left[0]
    for name in (yield ("list", f"{box}/.processed/")):
        yield from collect_processed(f, box, name, outgoing, waiting)
    for reply in (yield ("list", f"{box}/.sent/")):
        yield from collect_sent(f, box, reply, waiting)
    for turn in (yield ("list", f"{box}/turns/")):
        if (yield from find(f, box, turn.rpartition(".")[0])) is None:
            yield ("remove", f"{box}/turns/{turn}")
    return (collect, left[1:], outgoing, waiting)


def collect_processed(f: Fault, box: str, name: str, outgoing: tuple[str, ...], waiting: tuple[str, ...]) -> Program:
    """A processed message stays while its name stands in an outbox, and until the targets of its replies have them."""
    looks = "gc does not look at the outboxes" not in f
    sender = request_of(name) and name.rpartition(">")[2][:-1]
    if name in outgoing or (looks and sender and (yield ("exists", f"{sender}/outbox/{name}"))):
        return
    for attempt in range((yield from attempts(f, box, name)) + 1):
        reply = reply_name(box, name, attempt)
        if looks and (yield ("exists", f"{box}/outbox/{reply}")):
            return
        if (yield ("read", f"{box}/.sent/{reply}")) is not None and reply in waiting:
            return
    yield ("move", f"{box}/.processed/{name}", f"~archive/{box}/.processed/{name}")


def collect_sent(f: Fault, box: str, reply: str, waiting: tuple[str, ...]) -> Program:
    """A sent reply stays while its request is in an inbox, in progress or among the failed, and until it was read."""
    places = ["inbox", ".in-progress", ".failed"] * 2
    if "gc does not look at failed requests" in f:
        places = ["inbox", ".in-progress"]
    if "gc does not look for the request" in f:
        places = []
    for place in places:
        if (yield ("exists", f"{box}/{place}/{request_of(reply)}")):
            return
    if reply not in waiting:
        yield ("move", f"{box}/.sent/{reply}", f"~archive/{box}/.sent/{reply}")


# -- loom.daemons.goalkeeping: one goal ----------------------------------------------------------------------------

JOURNAL, CONTROL, HAND = "goal/journal", "goal/control/", "hand"


def asker(f: Fault, name: str) -> Program:
    """goals.control: a request to the goal is dropped. Here it asks for something that takes one order."""
    yield from publish(f, CONTROL + name, "asked for")


def keeper(f: Fault) -> Program:
    """Goal.__init__: the journal is folded, and orders without a report are published again."""
    events = (yield ("read", JOURNAL)) or ()
    for order in unreported(events):
        yield from deliver(f, HAND, order, "order")
    return (goal, events, False)


def goal(f: Fault, events: tuple[Op, ...], waits: bool) -> Program:
    """Router.sweep and Goal.advance: reports, controls, decisions, all of it appended and synced; then its effects."""
    if waits:
        yield ("await", f"{HAND}/outbox/", CONTROL)
    effects: list[tuple[Any, ...]] = []
    for reply in (yield ("list", f"{HAND}/outbox/")):
        if (yield ("read", f"{HAND}/outbox/{reply}")) is None:
            continue
        if "a report is marked as sent before its event" in f:
            yield from mark_sent(f, HAND, reply)
        if all(event[1] != reply for event in events):
            order = request_of(reply)
            known = "order.reported" if order in unreported(events) else "reply.stale"
            yield ("append", JOURNAL, (known, reply, order))
            events = (*events, (known, reply, order))
        effects.append((mark_sent, HAND, reply))
    for name in (yield ("list", CONTROL)):
        if "a file is removed before its event" in f:
            yield ("remove", CONTROL + name)
        if all(event[1] != name for event in events) or "a cause counts twice" in f:
            if (yield ("read", CONTROL + name)) is None and "a file is removed before its event" not in f:
                continue
            yield ("append", JOURNAL, ("asked", name, ""))
            events = (*events, ("asked", name, ""))
        effects.append((_remove, CONTROL + name))
    for asked in undecided(events):
        order = f"{asked}.{yield ('count', '~drawn')}"
        if "an order is published before its event" in f:
            yield from deliver(f, HAND, order, "order")
        yield ("append", JOURNAL, ("order.dispatched", asked, order))
        events = (*events, ("order.dispatched", asked, order))
        effects.append((deliver, HAND, order, "order"))
    for effect, *arguments in effects:
        yield from effect(f, *arguments)
    return (goal, events, True)


def _remove(f: Fault, path: str) -> Program:
    yield ("remove", path)


def undecided(events: tuple[Op, ...]) -> list[str]:
    """What was asked for and has no order yet."""
    ordered = {event[1] for event in events if event[0] == "order.dispatched"}
    return [event[1] for event in events if event[0] == "asked" and event[1] not in ordered]


def unreported(events: tuple[Op, ...]) -> list[str]:
    reported = {event[2] for event in events if event[0] == "order.reported"}
    return [event[2] for event in events if event[0] == "order.dispatched" and event[2] not in reported]


MIRRORS: dict[Any, Any] = {
    publish: fs.publish,
    move: fs.move,
    settle: fs.settle,
    find: mailbox.find,
    check_known: mailbox._check_known,
    deliver: mailbox.deliver,
    claim: mailbox.Inbox.claim,
    set_aside: mailbox._set_aside,
    attempts: mailbox.attempts,
    look: mailbox.look,
    answer: mailbox.answer,
    acknowledge: mailbox.acknowledge,
    fail: mailbox.fail,
    find_reply: mailbox.find_reply,
    retry: mailbox.retry,
    mark_sent: mailbox.mark_sent,
    refuse: mailbox.refuse,
    handle: service.MailboxLoop.handle,
    work: service.MailboxLoop._work,
    end: service.MailboxLoop._answer,
    route: router.Router._forward,
    sweep: router.Router.sweep,
    asker: goals.control,
    keeper: goalkeeping.Goal.__init__,
    goal: goalkeeping.Goal.advance,
}
