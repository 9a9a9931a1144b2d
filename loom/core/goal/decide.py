"""What should happen now: decide(state, now, free) (docs/goals.md sections 1 to 3, ADR-0012).

Pure: the router carries the decisions out, in order, each checked against the invariants, appended and synced before
it takes effect. Called again until it has nothing to say; after a restart it says the same for the same state.
Here: the course of a goal, from its snapshot to its end and landing. What goes on in between is decided in
loom.core.goal.planning and loom.core.goal.subtasks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from loom.core.goal import planning, subtasks
from loom.core.goal.decisions import Decision, Free, Propose, dispatch, failure
from loom.core.goal.state import SETTLED, GoalState, SubState


def decide(state: GoalState, now_us: int, free: Mapping[str, Sequence[str]]) -> list[Decision]:
    """The next decisions, in order. `free`: agents of each role that have no order of any goal."""
    pool = Free(free)
    late = _late(state, now_us)
    if late or state.status == "paused":
        return late
    if state.ended:
        return _landing(state, pool)
    if not state.base:
        return _snapshot(state, pool)
    if planning.needs_plan(state):
        return planning.decide_plan(state, pool)
    if given_up := subtasks.given_up(state):
        return given_up
    decisions: list[Decision] = []
    for sub in state.subtasks.values():
        decisions.extend(subtasks.advance(state, sub, pool))
    # One after the other, because each looks at the state and not at what was decided a moment ago.
    return decisions or subtasks.apply(state, pool) or subtasks.start(state, pool) or _end(state)


def _late(state: GoalState, now_us: int) -> list[Decision]:
    """Orders nobody answered in time count as failed; a reply that comes all the same is stale.

    Once a goal has ended, nobody waits for anything but its landing.
    """
    return [
        Propose(
            "order.reported",
            {
                "order": o.name,
                "ok": False,
                "data": None,
                "error": {"type": "deadline", "message": f"{o.agent} did not answer in time", "exit_status": 124},
            },
        )
        for o in state.open_orders()
        if now_us > o.deadline_us and (not state.ended or o.kind == "land")
    ]


def _snapshot(state: GoalState, pool: Free) -> list[Decision]:
    report = state.report
    if report is not None:
        if not report["ok"]:
            return [Propose("goal.failed", {"reason": f"the workspace could not be copied: {failure(report)}"})]
        return [Propose("goal.snapshot", {"base": report["data"]["base"], "files": report["data"]["files"]})]
    if state.in_flight("snapshot"):
        return []
    return dispatch(pool, "snapshot", payload={"source": state.spec.source})


# -- the end --------------------------------------------------------------------------------------------------


def _end(state: GoalState) -> list[Decision]:
    """Nothing to start and nothing under way: the goal is over, one way or the other."""
    subs = state.subtasks
    if any(s.status not in (*SETTLED, "waiting") for s in subs.values()) or state.open_orders():
        return []
    hopeless = any(s.status in ("failed", "blocked") and s.spec.critical for s in subs.values())
    if not hopeless and any(s.status == "waiting" and state.is_ready(s) for s in subs.values()):
        return []  # only a free keeper is missing
    if all(s.status == "applied" for s in subs.values()):
        return [Propose("goal.completed", {})]
    skipped: list[Decision] = [
        Propose("subtask.skipped", {"subtask": n, "reason": _missing(state, s)})
        for n, s in subs.items()
        if s.status == "waiting"
    ]
    return [*skipped, Propose("goal.failed", {"reason": state.obstacle()})]


def _missing(state: GoalState, sub: SubState) -> str:
    waiting = [d for d in sub.spec.depends_on if d not in state.subtasks or state.subtasks[d].status != "applied"]
    return f"depends on {waiting[0]}" if waiting else "a critical subtask failed"


def _landing(state: GoalState, pool: Free) -> list[Decision]:
    report = state.report
    if state.landing == "" and state.status == "completed" and state.spec.land and state.spec.source:
        return [Propose("goal.landing", {"by": state.spec.by})]
    if state.landing == "wanted":
        payload = {"source": state.spec.source, "base": state.base}
        return dispatch(pool, "land", payload=payload)
    if state.landing == "landing" and report is not None and report["kind"] == "land":
        if not report["ok"]:
            why = failure(report)
            return [Propose("goal.landed", {"ok": False, "written": [], "conflicts": [why], "reason": why})]
        data = report["data"]
        ok = not data["conflicts"]
        return [Propose("goal.landed", {"ok": ok, "written": data["written"], "conflicts": data["conflicts"]})]
    return []
