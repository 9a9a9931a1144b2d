"""Orders: what the router asks of a role, as it travels in a message's `data` (docs/protocol.md section 2, `kind`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from loom.wire.errors import BadInput

ROLE_OF_KIND = {
    "plan": "planner",
    "execute": "executor",
    "verify": "verifier",
    "snapshot": "keeper",
    "prepare": "keeper",
    "inspect": "keeper",
    "apply": "keeper",
    "land": "keeper",
}


@dataclass(frozen=True, slots=True)
class Order:
    """One order. Model, tools and places travel with it, because pool agents belong to no goal.

    workspace  the tree the tools may touch, '' for none; `cwd` is what relative exec/ and script/ names start from
    payload    what the kind needs: see loom/roles/ for plan, execute, verify and loom/daemons/keeper.py for the rest
    """

    kind: str
    model: str = ""
    tools: tuple[str, ...] = ()
    workspace: str = ""
    cwd: str = "."
    payload: Mapping[str, Any] = field(default_factory=dict)

    @property
    def role(self) -> str:
        return ROLE_OF_KIND[self.kind]


def to_json(order: Order) -> dict[str, Any]:
    return {
        "model": order.model,
        "tools": list(order.tools),
        "workspace": order.workspace,
        "cwd": order.cwd,
        "payload": dict(order.payload),
    }


def decode(kind: str, data: Mapping[str, Any]) -> Order:
    """Raises BadInput for a message that is no order."""
    payload, tools = data.get("payload"), data.get("tools", [])
    texts = {name: data.get(name, "") for name in ("model", "workspace", "cwd")}
    if kind not in ROLE_OF_KIND:
        raise BadInput(f"{ascii(kind)[:40]} is not an order this role knows", kind="bad_order")
    if not isinstance(payload, Mapping) or not isinstance(tools, list) or not all(isinstance(t, str) for t in tools):
        raise BadInput(f"the order {kind!r} has no payload or no list of tools", kind="bad_order")
    if not all(isinstance(t, str) for t in texts.values()):
        raise BadInput(f"the order {kind!r} has a field of the wrong type", kind="bad_order")
    return Order(kind, texts["model"], tuple(tools), texts["workspace"], texts["cwd"] or ".", payload)
