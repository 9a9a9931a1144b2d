"""Where a reply goes (docs/protocol.md section 4, Route; docs/weave.md). Pure: routes and message in, names out.

A route leads from an agent to an agent, directly or through its own instance of a pipe. Replicas of one agent share:
of a group each message goes to one, which is found from the message's name, so that a router that died in the middle
finds the same one again.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from hashlib import sha256

from loom.wire import ids
from loom.wire.errors import Config
from loom.wire.jsontext import dumps
from loom.wire.message import Message
from loom.wire.weave import Route

VERSION = 1
Hop = str | tuple[str, ...]  # a name, or a group of which one gets the message
Routes = Mapping[str, Sequence[Hop]]
_TEXTS = ("pipe", "of", "share", "weave")


def targets(routes: Routes, message: Message) -> list[str]:
    """The agents that get this message, each once, in order.

    A typed request's answer goes to whoever asked, whatever routes say; anything else goes where the routes of its
    sender say, and only without any to the address it carries. Nobody: the message is only marked as sent.
    """
    if message.kind:
        return [message.to] if message.to else []
    found = [hop if isinstance(hop, str) else share_of(hop, message.id) for hop in routes.get(message.from_, ())]
    return list(dict.fromkeys(found)) or ([message.to] if message.to else [])


def share_of(group: Sequence[str], message_id: str) -> str:
    """Whose share of a group's work a message is. A group that grows or shrinks moves few messages to others."""
    return max(group, key=lambda name: sha256(f"loom1\0share\0{name}\0{message_id}".encode()).digest())


def end_of(route: Route) -> str:
    """Who gets the messages of a route's source: the instance of its pipe, or the agent itself.

    An instance lies between agents as the weave names them: all replicas of one share it.
    """
    if not route.pipe:
        return route.to
    return ids.instance(route.pipe, route.of or route.source, route.share or route.to)


def hops(routes: Iterable[Route]) -> dict[str, list[Hop]]:
    """By sender: who hears it. An instance is heard by the agent, or the group, that it leads to."""
    found: dict[str, list[Hop]] = {}
    groups: dict[tuple[str, str], list[str]] = {}  # (sender, group) to its members, in the order of the routes
    places: dict[tuple[str, str], int] = {}  # and where they stand among those who hear the sender
    for route in routes:
        end, sender = end_of(route), route.source
        if route.pipe:
            if end not in (hearers := found.setdefault(sender, [])):
                hearers.append(end)
            sender = end
        hearers = found.setdefault(sender, [])
        if not route.share:
            if not (route.pipe and route.to in hearers):
                hearers.append(route.to)
            continue
        group = groups.setdefault((sender, route.share), [])
        if route.to not in group:
            group.append(route.to)
        place = places.setdefault((sender, route.share), len(hearers))
        hearers[place : place + 1] = [tuple(group)]
    return found


def circle(edges: Iterable[tuple[str, str]]) -> list[str]:
    """A way that comes back to where it began, first and last name being the same; empty when there is none."""
    after: dict[str, list[str]] = {}
    for source, to in edges:
        after.setdefault(source, []).append(to)
    done: set[str] = set()
    for start in after:
        way: list[str] = []
        todo: list[tuple[str, int]] = [(start, 0)]  # (name, how many names led to it); no recursion: chains are long
        while todo:
            name, depth = todo.pop()
            del way[depth:]
            if name in way:
                return [*way[way.index(name) :], name]
            if name in done:
                continue  # all that it leads to was looked at before
            done.add(name)
            way.append(name)
            todo += [(other, depth + 1) for other in reversed(after.get(name, ()))]
    return []


def read(raw: Mapping[str, object], where: str) -> tuple[Route, ...]:
    """routes.json: {"v": 1, "routes": [{"from": a, "to": b, "pipe"?, "share"?, "weave"?}…]}. Raises Config."""
    routes = raw.get("routes")
    if raw.get("v") != VERSION or not isinstance(routes, list):
        raise Config(f"{where} is not a list of routes of version 1")
    found = []
    for number, route in enumerate(routes, 1):
        if not isinstance(route, Mapping) or not all(isinstance(route.get(k), str) for k in ("from", "to")):
            raise Config(f"{where}: route {number} has no 'from' and 'to'")
        if not all(isinstance(route.get(k, ""), str) for k in _TEXTS):
            raise Config(f"{where}: route {number} has one of {', '.join(_TEXTS)} that is no text")
        given = {k: route.get(k, "") for k in _TEXTS}
        one = Route(route["from"], route["to"], **given)
        if one.pipe and not ids.is_instance(end_of(one)):
            raise Config(f"{where}: route {number} has a pipe and a name that no agent or pipe can have")
        found.append(one)
    if way := circle((route.source, route.to) for route in found):
        raise Config(f"{where}: circular route detected: {' → '.join(way)}", hint="remove one of them: loom unroute")
    return tuple(found)


def decode(raw: Mapping[str, object], where: str) -> dict[str, list[Hop]]:
    """routes.json as the router needs it. Raises Config naming the file, also for routes that lead in a circle."""
    return hops(read(raw, where))


def encode(routes: Iterable[Route]) -> bytes:
    """The bytes of routes.json, one route a line: people read it."""
    lines = []
    for route in routes:
        extra = {name: value for name in _TEXTS if (value := getattr(route, name))}
        lines.append(b"  " + dumps({"from": route.source, "to": route.to, **extra}))
    body = b",\n".join(lines)
    return b'{"v": 1, "routes": [\n' + body + b"\n]}\n" if lines else b'{"v": 1, "routes": []}\n'
