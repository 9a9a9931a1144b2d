"""Whether a well-formed plan is acceptable, and which of its subtasks may start (docs/goals.md section 2).

Pure: records in, reasons out. The reasons go back to the planner word for word.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import replace

from loom.wire.plan import Plan, Subtask


def refusals(
    plan: Plan, limit: int, finished: Mapping[str, Subtask] = {}, unfinished: Mapping[str, Subtask] = {}
) -> list[str]:
    """Why this plan cannot be accepted; empty when it can.

    finished    applied subtasks of the plan before: they stay as they are, so what the plan says of them is not looked
                at, and they may be named as dependencies without being repeated
    unfinished  the rest of the plan before, which has failed: the same work is not begun again
    """
    if len(plan.subtasks) > limit + len(finished):
        return [f"the plan has {len(plan.subtasks)} subtasks, the limit is {limit}"]
    reasons = _duplicates(plan)
    plan = fresh(plan, finished)
    if not plan.subtasks:
        reasons.append("every subtask of the plan is finished: it holds no other way for those that failed")
    if len(plan.subtasks) > limit:
        reasons.append(f"the plan has {len(plan.subtasks)} subtasks, the limit is {limit}")
    known = {s.id for s in plan.subtasks} | finished.keys()
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
    if not reasons and unfinished and _work(with_synthesis_last(plan, finished).subtasks) == _work(unfinished.values()):
        reasons.append("the plan has the same subtasks as the one that has just failed: it is no other way")
    return reasons


def _work(subtasks: Collection[Subtask]) -> Counter[tuple[object, ...]]:
    """What subtasks come down to, whatever they are called and in whatever order they and their lists stand."""
    briefs = {s.id: (_words(s.instruction), frozenset(s.deliverables)) for s in subtasks}
    return Counter(
        (
            *briefs[s.id],
            frozenset(briefs.get(d, d) for d in s.depends_on),
            frozenset(_words(a) for a in s.acceptance),
            frozenset(s.reads),
            (s.tier, s.level, s.critical, s.synthesis),
        )
        for s in subtasks
    )


def _words(text: str) -> str:
    return " ".join(text.split())


def fresh(plan: Plan, finished: Mapping[str, Subtask]) -> Plan:
    """The plan without the subtasks that are finished: a planner may repeat them, nothing follows from it."""
    return replace(plan, subtasks=tuple(s for s in plan.subtasks if s.id not in finished))


def _duplicates(plan: Plan) -> list[str]:
    seen: set[str] = set()
    twice = [s.id for s in plan.subtasks if s.id in seen or seen.add(s.id)]  # type: ignore[func-returns-value]
    return [f"subtask id {name} is used twice" for name in dict.fromkeys(twice)]


def _shared_deliverables(plan: Plan, finished: Mapping[str, Subtask]) -> list[str]:
    reasons = []
    owners: dict[str, str] = {}  # by path
    below: dict[str, set[str]] = {}  # by directory: the owners of what lies below it
    for s in (*finished.values(), *plan.subtasks):
        for path in s.deliverables:
            name = path.rstrip("/")
            above = _directories(name)
            rivals = [owners.get(name), *(owners.get(p) for p in above), *sorted(below.get(name, ()))[:2]]
            rival = next((r for r in rivals if r is not None and r != s.id), None)
            if rival is not None and s.id not in finished:
                reasons.append(f"deliverable {path} belongs to {rival} and to {s.id}")
            owners.setdefault(name, s.id)
            for directory in above:
                below.setdefault(directory, set()).add(s.id)
    return reasons


def _directories(path: str) -> list[str]:
    """The directories a path lies in, the innermost last."""
    parts = path.split("/")
    return ["/".join(parts[:n]) for n in range(1, len(parts))]


def _synthesis(plan: Plan) -> list[str]:
    names = [s.id for s in plan.subtasks if s.synthesis]
    reasons = [f"more than one synthesis: {', '.join(names)}"] if len(names) > 1 else []
    for s in plan.subtasks:
        for other in s.depends_on:
            if other in names and other != s.id:
                reasons.append(f"subtask {s.id} depends on the synthesis {other}, which must come last")
    return reasons


def overlaps(one: str, other: str) -> bool:
    """Whether two deliverables cannot be two things: the same path, or one below the other."""
    a, b = one.rstrip("/"), other.rstrip("/")
    return a == b or b.startswith(f"{a}/") or a.startswith(f"{b}/")


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


def with_synthesis_last(plan: Plan, finished: Mapping[str, Subtask] = {}) -> Plan:
    """The synthesis depends on every other subtask, finished ones too, whether the planner said so or not."""
    names = [*(n for n, s in finished.items() if not s.synthesis), *(s.id for s in plan.subtasks if not s.synthesis)]
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
