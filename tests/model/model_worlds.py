"""The worlds that model_checker goes through, the properties that hold in them, and the mistakes that break them.

Properties, in every state:

    one answer      a request has at most one reply for each attempt: one name, one content, wherever it lies
    never lost      what was accepted lies somewhere: waiting, in work, processed, failed or in the archive
    one meaning     a name stands for one content: two senders are never both told "accepted" for different ones
    bought once     model replies: no more than steps of the turn and kills of the worker
    used once       a tool that may not be repeated is called at most once in an attempt
    one event       a file (control or report) causes at most one event of its kind; a request leads to one order

and in every state of rest, of which one can be reached from everywhere:

    answered        an accepted message is processed or failed, its reply is sent, and each target has it processed
    tried again     a retry that said yes led to a new attempt
    told once       the conversation has each message once
    reported        the order was reported, and no file waits to become an event
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import model_programs as run
from model_checker import Files, World, names_in

Routes = tuple[tuple[str, str], ...]
_STATES = ("inbox/", ".in-progress/", ".processed/", ".failed/")
_REPLIES = ("outbox/", ".sent/", ".refused/")
STEPS = {"one": 1, "fails once": 1, "use a tool": 2}


def _lies(files: Files, box: str, name: str, *places: str) -> bool:
    return any(f"{box}/{place}{name}" in files for place in places)


def _noted(files: Files, prefix: str) -> list[tuple[str, str, Any]]:
    """(box, name, content) of what the outside remembers as prefix/box/name."""
    found = []
    for path, content in files.items():
        if path.startswith(prefix):
            box, _, name = path[len(prefix) :].partition("/")
            found.append((box, name, content))
    return found


def safe(files: Files, kills: Mapping[str, int]) -> str:
    """What is wrong in this state of a world of mailboxes."""
    replies: dict[tuple[Any, ...], set[tuple[str, Any]]] = {}
    for path, content in files.items():
        place, _, name = path.removeprefix("~archive/").rpartition("/")
        if place.partition("/")[2] + "/" in _REPLIES and not name.endswith(".error"):
            replies.setdefault(content[:3], set()).add((name, content))
    for (request, box, attempt), found in replies.items():
        if len(found) > 1:
            return f"one answer: {box} has answered {request}, attempt {attempt}, with {sorted(found)}"
    for box, name, _ in _noted(files, "~accepted/"):
        if not _lies(files, box, name, *_STATES) and f"~archive/{box}/.processed/{name}" not in files:
            return f"never lost: {name} was accepted by {box} and is nowhere"
    for path, count in files.items():
        if path.startswith("~private/bought/"):
            _, _, box, name, attempt = path.split("/")
            turn = f"{box}/turns/{name}.{attempt}"
            bodies = [files[f"{box}/{p}{name}"] for p in _STATES if f"{box}/{p}{name}" in files]
            steps = max((STEPS.get(str(body), 1) for body in bodies), default=1)
            limit = steps + sum(n for who, n in kills.items() if who.startswith(box))
            if count > limit:
                return f"bought once: {count} model replies for {turn}"
        if path.startswith("~private/used/") and count > 1:
            return f"used once: the tool was called {count} times: {path}"
    return ""


def answered(routes: Routes, files: Files) -> str:
    """What is wrong in a world of mailboxes that has come to rest."""
    for box, name, _ in _noted(files, "~accepted/"):
        wrong = _answered(dict(routes), files, box, name)
        if wrong:
            return wrong
    for box, name, _ in _noted(files, "~retried/"):
        reply = run.reply_name(box, name, 1)
        if not _lies(files, box, reply, *_REPLIES) and f"~archive/{box}/.sent/{reply}" not in files:
            return f"tried again: {name} was not, though `retry` said so"
    for box, _ in routes:
        said = Counter(name for name, _ in files.get(f"{box}/conversation", ()))
        done = [*names_in(files, f"{box}/.processed/"), *names_in(files, f"~archive/{box}/.processed/")]
        if said != Counter(set(done)):
            return f"told once: {box} has processed {done}, its conversation has {dict(said)}"
    return ""


def _answered(routes: Mapping[str, str], files: Files, box: str, name: str) -> str:
    archive = f"~archive/{box}/"
    if _lies(files, box, name, "inbox/", ".in-progress/"):
        return f"answered: {name} stays in {box}"
    done = _lies(files, box, name, ".processed/") or f"{archive}.processed/{name}" in files
    if done == _lies(files, box, name, ".failed/"):
        return f"answered: {name} is processed and failed, or neither"
    attempt = files.get(f"{box}/.failed/{name}.error", 0)
    attempt -= 0 if done or not attempt else 1
    reply = run.reply_name(box, name, attempt)
    content = files.get(f"{box}/.sent/{reply}", files.get(f"{archive}.sent/{reply}"))
    if not routes:
        content = files.get(f"{box}/outbox/{reply}")
    if content is None:
        return f"answered: {name} has no reply that was sent"
    if (content[3] == "ok") != done:
        return f"answered: the reply to {name} says {content[3]}"
    target = routes.get(box, "user")
    if target == "user" or target not in routes:
        return ""
    if not (_lies(files, target, reply, ".processed/") or f"~archive/{target}/.processed/{reply}" in files):
        return f"answered: {target} has not processed {reply}"
    return _answered(routes, files, target, reply)


def pipeline(kills: int, content: str = "use a tool") -> World:
    """A client, an agent, the router, a second agent downstream; any of them is killed."""
    routes = (("a", "b"), ("b", "user"))
    return World(
        f"pipeline, {content}",
        {
            "client": (run.client, "a", "m", content),
            "a": (run.worker, "a"),
            "router": (run.mail, routes),
            "b": (run.worker, "b"),
        },
        kills,
        ("client", "a", "router", "b"),
        safe,
        lambda files: answered(routes, files),
    )


def clients(kills: int, *contents: str) -> World:
    """Clients that send these contents under one key, all at once, while a worker is at work. No router."""
    return World(
        f"clients with {', '.join(contents)}",
        {
            **{f"client {n}": (run.client, "a", "m", content) for n, content in enumerate(contents, 1)},
            "a": (run.worker, "a"),
        },
        kills,
        ("client 1", "a"),
        safe,
        lambda files: answered((), files),
    )


def failing(kills: int, *ways: str) -> World:
    """A message that fails at first and is tried again by a person, in these ways."""
    routes = (("a", "user"),)
    return World(
        f"failing, {' then '.join(ways)}",
        {
            "client": (run.client, "a", "m", "fails once"),
            "a": (run.worker, "a"),
            "person": (run.sorter, "a", "m", ways),
            "router": (run.mail, routes),
        },
        kills,
        ("a", "person", "router"),
        safe,
        lambda files: answered(routes, files),
    )


def two_workers(kills: int) -> World:
    """Two runners of one agent: the lock decides which of them acts."""
    routes = (("a", "user"),)
    return World(
        "two workers",
        {
            "client": (run.client, "a", "m", "use a tool"),
            "a": (run.worker, "a"),
            "a again": (run.worker, "a"),
            "router": (run.mail, routes),
        },
        kills,
        ("a", "a again", "router"),
        safe,
        lambda files: answered(routes, files),
    )


def poison(kills: int) -> World:
    """A worker that is killed again and again: the third death that got nowhere fails the message."""
    routes = (("a", "user"),)
    return World(
        "poison",
        {"client": (run.client, "a", "m", "use a tool"), "a": (run.worker, "a"), "router": (run.mail, routes)},
        kills,
        ("a",),
        safe,
        lambda files: answered(routes, files),
    )


def collected(kills: int, content: str = "one", *ways: str) -> World:
    """`loom gc` while an agent works and a person tries again; everything is old enough from the start."""
    routes = (("a", "user"),)
    return World(
        f"gc, {content}" + "".join(f", {way}" for way in ways),
        {
            "a": (run.worker, "a"),
            "router": (run.mail, routes),
            "gc": (run.collector, ("a",)),
            **({"person": (run.sorter, "a", "m", ways)} if ways else {}),
        },
        kills,
        ("a", "router"),
        safe,
        lambda files: answered(routes, files),
        {"a/inbox/m": content, "~accepted/a/m": content},
    )


def collected_downstream(kills: int) -> World:
    """`loom gc` while a reply is routed, read and answered downstream.

    The router looks at the outbox of b first: its order is that of names, not that in which mail flows.
    """
    routes = (("b", "user"), ("a", "b"))
    reply = ("m", "a", 0, "ok", 0, 0)
    return World(
        "gc downstream",
        {"b": (run.worker, "b"), "router": (run.mail, routes), "gc": (run.collector, ("a", "b"))},
        kills,
        ("b", "router"),
        safe,
        lambda files: answered(routes, files),
        {
            "a/.processed/m": "one",
            "~accepted/a/m": "one",
            "a/outbox/m>a0": reply,
            "a/conversation": (("m", reply),),
        },
    )


def _events_once(files: Files, kills: Mapping[str, int]) -> str:
    journal = files.get(run.JOURNAL, ())
    causes = Counter((kind, cause) for kind, cause, _ in journal)
    if twice := [key for key, count in causes.items() if count > 1]:
        return f"one event: {twice[0][1]} has caused {causes[twice[0]]} of {twice[0][0]}"
    orders = {
        path.rpartition("/")[2].removesuffix(".error")
        for path in files
        if path.startswith(tuple(f"{run.HAND}/{place}" for place in _STATES))
    }
    for asked, count in Counter(order.partition(".")[0] for order in orders).items():
        if count > 1:
            return f"one order: {asked} has led to {sorted(orders)}"
    return safe(files, kills)


def _reported(names: tuple[str, ...], files: Files) -> str:
    if waiting := [p for p in files if p.startswith((run.CONTROL, f"{run.HAND}/outbox/", f"{run.HAND}/inbox/"))]:
        return f"reported: {waiting} stays"
    journal = files.get(run.JOURNAL, ())
    for name in names:
        orders = [order for kind, cause, order in journal if kind == "order.dispatched" and cause == name]
        if len(orders) != 1:
            return f"reported: {name} has led to {len(orders)} orders"
        if not any(kind == "order.reported" and order == orders[0] for kind, _, order in journal):
            return f"reported: nothing was heard of {orders[0]}"
    return ""


def goals(kills: int, *names: str) -> World:
    """Requests dropped into control/, the one writer of the journal, an agent that carries out the orders."""
    return World(
        f"goal, {' and '.join(names)}",
        {
            **{f"asks for {name}": (run.asker, name) for name in names},
            "router": (run.keeper,),
            "hand": (run.worker, run.HAND),
        },
        kills,
        ("router", "hand"),
        _events_once,
        lambda files: _reported(names, files),
    )


def with_fault(world: World, fault: str) -> World:
    return replace(world, name=f"{world.name}: {fault}", faults=frozenset((fault,)))


# fault → (the world it is put into, the property that must break)
FAULTS: Mapping[str, tuple[Callable[[], World], str]] = {
    "random names of replies": (lambda: pipeline(1), "one answer"),
    "looks in .sent before the outbox": (lambda: pipeline(1), "one answer"),
    "acknowledges before it answers": (lambda: pipeline(1), "answered"),
    "acknowledges before the conversation": (lambda: pipeline(1), "told once"),
    "the model's answer is not recorded": (lambda: pipeline(1), "bought once"),
    "no intent before a tool": (lambda: pipeline(1), "used once"),
    "claims after reading": (lambda: pipeline(1), "works on m without having claimed it"),
    "marks as sent before it copies": (lambda: pipeline(1), "answered"),
    "two workers without a lock": (lambda: two_workers(0), "once"),
    "deliver does not look at .processed": (lambda: clients(0, "one", "other"), "~accepted"),
    "deliver does not look again": (lambda: clients(0, "one", "other"), "~accepted"),
    "retry without the lost error.json": (lambda: failing(1, "retry"), "tried again"),
    "gc does not look at the outboxes": (lambda: collected_downstream(1), "one answer"),
    "gc does not look for the request": (lambda: collected(1), "one answer"),
    "gc does not look at failed requests": (lambda: collected(1, "fails once", "mv"), "one answer"),
    "a file is removed before its event": (lambda: goals(1, "c"), "reported"),
    "a cause counts twice": (lambda: goals(1, "c"), "one event"),
    "an order is published before its event": (lambda: goals(1, "c"), "one order"),
    "a report is marked as sent before its event": (lambda: goals(1, "c"), "reported"),
}
