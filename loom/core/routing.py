"""Where a reply goes (docs/protocol.md section 4, Route). Pure: the routes and the message in, names out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from loom.wire.errors import Config
from loom.wire.message import Message

Routes = Mapping[str, Sequence[str]]


def targets(routes: Routes, message: Message) -> list[str]:
    """The agents that get this message, each once, in order.

    A typed request's answer goes to whoever asked, whatever routes say; anything else goes where the routes of its
    sender say, and only without any to the address it carries. Nobody: the message is only marked as sent.
    """
    if message.kind:
        return [message.to] if message.to else []
    found = list(dict.fromkeys(routes.get(message.from_, ())))
    return found or ([message.to] if message.to else [])


def decode(raw: Mapping[str, object], where: str) -> dict[str, list[str]]:
    """routes.json: {"v": 1, "routes": [{"from": a, "to": b}…]}. Raises Config naming the file."""
    routes = raw.get("routes")
    if raw.get("v") != 1 or not isinstance(routes, list):
        raise Config(f"{where} is not a list of routes of version 1")
    found: dict[str, list[str]] = {}
    for number, route in enumerate(routes, 1):
        if not isinstance(route, Mapping) or not all(isinstance(route.get(k), str) for k in ("from", "to")):
            raise Config(f"{where}: route {number} has no 'from' and 'to'")
        found.setdefault(route["from"], []).append(route["to"])
    return found
