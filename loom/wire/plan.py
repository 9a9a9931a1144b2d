"""A plan: subtasks and what each depends on, reads and delivers (docs/goals.md section 2).

Decoding collects every fault instead of stopping at the first, because all of them go back to the planner.
Whether a well-formed plan is acceptable (cycles, ghosts, limits) is decided in loom/core/plan.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from loom.wire import ids
from loom.wire.record import record


@record
class Subtask:
    """One piece of work. Paths are relative to the workspace; a deliverable ending in '/' is a directory.

    tier   1..3, of the model      level   1..2, of verification
    """

    id: str
    title: str
    instruction: str
    depends_on: tuple[str, ...] = ()
    acceptance: tuple[str, ...] = ()
    deliverables: tuple[str, ...] = ()
    reads: tuple[str, ...] = ()
    tier: int = 1
    level: int = 2
    critical: bool = False
    synthesis: bool = False


@record
class Plan:
    """Subtasks in the planner's order. `degraded`: the planner gave nothing usable and one subtask stands for all."""

    subtasks: tuple[Subtask, ...]
    degraded: bool = False


def to_json(plan: Plan) -> dict[str, Any]:
    return {"subtasks": [subtask_to_json(s) for s in plan.subtasks], "degraded": plan.degraded}


def subtask_to_json(s: Subtask) -> dict[str, Any]:
    return {
        "id": s.id,
        "title": s.title,
        "instruction": s.instruction,
        "depends_on": list(s.depends_on),
        "acceptance": list(s.acceptance),
        "deliverables": list(s.deliverables),
        "reads": list(s.reads),
        "tier": s.tier,
        "level": s.level,
        "critical": s.critical,
        "synthesis": s.synthesis,
    }


def decode(raw: object) -> tuple[Plan | None, list[str]]:
    """(the plan, or None; every fault in words a planner can act on)."""
    subtasks = raw.get("subtasks") if isinstance(raw, Mapping) else None
    if not isinstance(subtasks, list) or not subtasks:
        return None, ["the plan has no list `subtasks` with at least one entry"]
    faults: list[str] = []
    found = [_subtask(item, number, faults) for number, item in enumerate(subtasks, 1)]
    if faults:
        return None, faults
    degraded = isinstance(raw, Mapping) and raw.get("degraded") is True
    return Plan(tuple(s for s in found if s is not None), degraded), []


def _subtask(raw: object, number: int, faults: list[str]) -> Subtask | None:
    if not isinstance(raw, Mapping):
        faults.append(f"subtask {number} is not an object")
        return None
    name = raw.get("id")
    if not isinstance(name, str) or not ids.is_subtask(name):
        faults.append(f"subtask {number}: id {ascii(name)[:80]} is not lower-case letters, digits and '-', at most 64")
        return None
    instruction = raw.get("instruction") or raw.get("description")
    if not isinstance(instruction, str) or not instruction.strip():
        faults.append(f"subtask {name}: `instruction` is missing")
        return None
    if raw.get("gate"):
        faults.append(f"subtask {name}: `gate` is not available in this version")
    title = raw.get("title")
    lists = {f: _strings(raw, f, name, faults) for f in ("depends_on", "acceptance", "deliverables", "reads")}
    for field in ("deliverables", "reads"):
        lists[field] = tuple(_path(p, name, field, faults) for p in lists[field])
    return Subtask(
        id=name,
        title=title if isinstance(title, str) and title.strip() else instruction.strip().splitlines()[0][:80],
        instruction=instruction,
        tier=_whole(raw, "tier", 1, 3, 1, name, faults),
        level=_whole(raw, "level", 1, 2, 2, name, faults),
        critical=raw.get("critical") is True,
        synthesis=raw.get("synthesis") is True,
        **lists,
    )


def _strings(raw: Mapping[str, Any], field: str, name: str, faults: list[str]) -> tuple[str, ...]:
    value = raw.get(field)
    if value is None:
        return ()
    if isinstance(value, str):
        return (value,)
    if not isinstance(value, list) or not all(isinstance(v, str) for v in value):
        faults.append(f"subtask {name}: `{field}` is not a list of strings")
        return ()
    return tuple(dict.fromkeys(value))


def _path(path: str, name: str, field: str, faults: list[str]) -> str:
    clean = path[2:] if path.startswith("./") else path
    if clean.endswith("//"):
        clean = f"{clean.rstrip('/')}/"
    if not is_workspace_path(clean):
        faults.append(f"subtask {name}: {field} {ascii(path)[:120]} is not a path inside the workspace")
    return clean


def is_workspace_path(path: str) -> bool:
    """Whether this is a plain relative path that stays inside: no `..`, no `.git`, no control characters."""
    parts = path.removesuffix("/").split("/")
    return (
        0 < len(path) <= 1000
        and not path.startswith("/")
        and path.isprintable()
        and all(p not in ("", ".", "..", ".git") and len(p.encode()) <= 255 for p in parts)
    )


def _whole(
    raw: Mapping[str, Any], field: str, least: int, most: int, default: int, name: str, faults: list[str]
) -> int:
    value = raw.get(field)
    if value is None:
        return default
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        faults.append(f"subtask {name}: `{field}` is not a whole number from {least} to {most}")
        return default
    return value
