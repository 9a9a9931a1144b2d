"""Whether a well-formed plan is acceptable, and which of its subtasks may start (docs/goals.md section 2).

Pure: records in, reasons out. The reasons go back to the planner word for word.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace

from loom.wire.plan import Plan, Subtask


def refusals(plan: Plan, limit: int, finished: Mapping[str, Subtask] = {}) -> list[str]:
    """Why this plan cannot be accepted; empty when it can.

    finished  applied subtasks of the plan before: they may be named as dependencies without being repeated
    """
    reasons: list[str] = []
    if len(plan.subtasks) > limit:
        reasons.append(f"the plan has {len(plan.subtasks)} subtasks, the limit is {limit}")
    known = {s.id for s in plan.subtasks} | finished.keys()
    reasons.extend(_duplicates(plan))
    for s in plan.subtasks:
        for other in s.depends_on:
            if other == s.id:
                reasons.append(f"subtask {s.id} depends on itself")
            elif other not in known:
                reasons.append(f"subtask {s.id} depends on {other!r}, which is not in the plan")
    cycle = find_cycle({s.id: [d for d in s.depends_on if d != s.id] for s in plan.subtasks})
    if cycle:
        reasons.append(f"circular dependency: {' → '.join(cycle)}")
    reasons.extend(_shared_deliverables(plan, finished))
    reasons.extend(_synthesis(plan))
    return reasons


def _duplicates(plan: Plan) -> list[str]:
    seen: set[str] = set()
    twice = [s.id for s in plan.subtasks if s.id in seen or seen.add(s.id)]  # type: ignore[func-returns-value]
    return [f"subtask id {name} is used twice" for name in dict.fromkeys(twice)]


def _shared_deliverables(plan: Plan, finished: Mapping[str, Subtask]) -> list[str]:
    own = {s.id for s in plan.subtasks}
    owners: dict[str, str] = {d: name for name, s in finished.items() if name not in own for d in s.deliverables}
    reasons = []
    for s in plan.subtasks:
        for path in s.deliverables:
            rival = next((o for p, o in owners.items() if o != s.id and overlaps(p, path)), None)
            if rival is not None:
                reasons.append(f"deliverable {path} belongs to {rival} and to {s.id}")
            owners[path] = s.id
    return reasons


def _synthesis(plan: Plan) -> list[str]:
    names = [s.id for s in plan.subtasks if s.synthesis]
    reasons = [f"more than one synthesis: {', '.join(names)}"] if len(names) > 1 else []
    for s in plan.subtasks:
        for other in s.depends_on:
            if other in names:
                reasons.append(f"subtask {s.id} depends on the synthesis {other}, which must come last")
    return reasons


def overlaps(one: str, other: str) -> bool:
    """Whether two deliverables could be the same file; one that ends in '/' is all below it."""
    a, b = one.rstrip("/"), other.rstrip("/")
    return a == b or (one.endswith("/") and b.startswith(f"{a}/")) or (other.endswith("/") and a.startswith(f"{b}/"))


def covers(deliverable: str, path: str) -> bool:
    """Whether a changed path is allowed by a deliverable."""
    return path == deliverable or (deliverable.endswith("/") and path.startswith(deliverable))


def find_cycle(edges: Mapping[str, Collection[str]]) -> list[str]:
    """One cycle as a path whose first and last name are the same, or an empty list."""
    done: set[str] = set()
    for root in edges:
        path: list[str] = []
        on_path: set[str] = set()
        stack: list[tuple[str, bool]] = [(root, False)]
        while stack:
            name, leaving = stack.pop()
            if leaving:
                path.pop()
                on_path.discard(name)
                done.add(name)
                continue
            if name in on_path:
                return [*path[path.index(name) :], name]
            if name in done:
                continue
            path.append(name)
            on_path.add(name)
            stack.append((name, True))
            stack.extend((d, False) for d in sorted(edges.get(name, ()), reverse=True))
    return []


def with_synthesis_last(plan: Plan) -> Plan:
    """The synthesis depends on every other subtask, whether the planner said so or not."""
    names = [s.id for s in plan.subtasks if not s.synthesis]
    return replace(
        plan,
        subtasks=tuple(
            replace(s, depends_on=tuple(dict.fromkeys([*s.depends_on, *names]))) if s.synthesis else s
            for s in plan.subtasks
        ),
    )


def single(goal: str) -> Plan:
    """What is left when a planner gives nothing usable twice: one subtask for everything, marked degraded."""
    return Plan((Subtask("execute-goal", "Carry out the goal", goal or "(empty goal)", level=2),), degraded=True)
