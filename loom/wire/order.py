"""Orders: what the router asks of a role, as it travels in a message's `data` (docs/protocol.md section 2, `kind`)."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from loom.wire.errors import BadInput
from loom.wire.record import field, record

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


@record
class Order:
    """One order. Model, tools and places travel with it, because pool agents belong to no goal.

    workspace  the tree the tools may touch, '' for none; `cwd` is what relative exec/ and script/ names start from
    env        where the model's server is, when it is told by a variable; never a key
    payload    what the kind needs: see loom/roles/ for plan, execute, verify and loom/daemons/keeper.py for the rest
    """

    kind: str
    model: str = ""
    tools: tuple[str, ...] = ()
    workspace: str = ""
    cwd: str = "."
    env: Mapping[str, str] = field(default_factory=dict)
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
        "env": dict(order.env),
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
    env = data.get("env", {})
    if not isinstance(env, Mapping) or not all(isinstance(v, str) for v in env.values()):
        raise BadInput(f"the order {kind!r} has an environment that is not one of strings", kind="bad_order")
    return Order(kind, texts["model"], tuple(tools), texts["workspace"], texts["cwd"] or ".", env, payload)


def report_fault(kind: str, data: Mapping[str, Any]) -> str:
    """What a report's data lack that whoever ordered relies on; empty when nothing does.

    A report comes from another process, of another version perhaps: what is missing is that order's failure and
    nobody else's.
    """
    if kind == "execute" and data.get("status") == "blocked":
        return "" if isinstance(data.get("reason"), str) else "field 'reason' is missing or not a string"
    for name, (what, fits, needed) in _REPORTS.get(kind, {}).items():
        if (needed or name in data) and not fits(data.get(name)):
            return f"field {name!r} is missing or not {what}"
    if kind == "plan" and "plan" not in data and "unusable" not in data:
        return "there is no plan and no reason why"
    return ""


_DIGEST = re.compile(r"[0-9a-f]{64}")
_Field = tuple[str, Callable[[Any], bool], bool]


def _is_digest(value: Any) -> bool:
    return isinstance(value, str) and _DIGEST.fullmatch(value) is not None


def _is_bool(value: Any) -> bool:
    return isinstance(value, bool)


def _is_str(value: Any) -> bool:
    return isinstance(value, str)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_share(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1


def _are_strings(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(v, str) for v in value)


def _are_findings(value: Any) -> bool:
    names = ("severity", "where", "what", "evidence")
    return isinstance(value, list) and all(isinstance(v, dict) and all(_is_str(v.get(n)) for n in names) for v in value)


def _are_checks(value: Any) -> bool:
    names = ("name", "where", "detail")
    return isinstance(value, list) and all(
        isinstance(v, dict) and _is_bool(v.get("passed")) and all(_is_str(v.get(n)) for n in names) for v in value
    )


_BLOB: _Field = ("the name of a blob", _is_digest, True)
_PATHS: _Field = ("a list of strings", _are_strings, True)
_REPORTS: dict[str, dict[str, _Field]] = {
    "execute": {
        "summary": ("a string", _is_str, False),
        "failed_calls": ("a count", _is_count, False),
        "written": ("a list of strings", _are_strings, False),
    },
    "verify": {
        "passed": ("true or false", _is_bool, True),
        "confidence": ("a number from 0 to 1", _is_share, False),
        "findings": ("a list of findings", _are_findings, False),
        "inconclusive": ("true or false", _is_bool, False),
        "why": ("a string", _is_str, False),
    },
    "snapshot": {"base": _BLOB, "files": _BLOB},
    "inspect": {
        "passed": ("true or false", _is_bool, True),
        "checks": ("a list of checks", _are_checks, True),
        "findings": ("a list of findings", _are_findings, True),
        "changes": _BLOB,
        "diff": _BLOB,
    },
    "apply": {"conflicts": _PATHS},
    "land": {"conflicts": _PATHS, "written": _PATHS},
}
