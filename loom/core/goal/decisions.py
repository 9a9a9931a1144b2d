"""What can be decided about a goal: an event to append or an order to send; and which agents are free for orders."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from loom.wire.order import ROLE_OF_KIND
from loom.wire.record import field, record


@record
class Propose:
    """Append this event."""

    type: str
    data: Mapping[str, Any]


@record
class Dispatch:
    """Send this order. A payload value {"$text": digest} or {"$json": digest} stands for a blob's content."""

    kind: str
    agent: str
    subtask: str = ""
    attempt: int = 0
    model: str = ""
    tools: tuple[str, ...] = ()
    payload: Mapping[str, Any] = field(default_factory=dict)

    @property
    def role(self) -> str:
        return ROLE_OF_KIND[self.kind]


Decision = Propose | Dispatch


class Free:
    """Agents without an order, by role; each is given away once."""

    def __init__(self, free: Mapping[str, Sequence[str]]) -> None:
        self._free = {role: list(names) for role, names in free.items()}

    def take(self, kind: str, but_not: str = "") -> str | None:
        names = self._free.get(ROLE_OF_KIND[kind], [])
        name = next((n for n in names if n != but_not), None)
        if name is not None:
            names.remove(name)
        return name


def dispatch(pool: Free, kind: str, **fields: Any) -> list[Decision]:
    """Send an order to an agent that is free, and is not `but_not`; nothing when there is none."""
    agent = pool.take(kind, fields.pop("but_not", ""))
    return [] if agent is None else [Dispatch(kind, agent, **fields)]


def failure(report: Mapping[str, Any]) -> str:
    """Who failed at an order, and why, in one line."""
    error = report["error"] or {}
    return f"{report['agent']}: {error.get('message') or 'failed'}"
