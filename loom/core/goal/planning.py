"""Planning and planning anew: when a plan is wanted, and what becomes of the one that is proposed.

docs/goals.md section 2. A part of loom.core.goal.decide.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from loom.core.goal.decisions import Decision, Free, Propose, dispatch, failure
from loom.core.goal.state import SETTLED, GoalState
from loom.core.plan import fresh, refusals, single, with_synthesis_last
from loom.wire import plan as plans

MAX_PLAN_TRIES = 2
MAX_REASONS = 20
MAX_REASON_CHARS = 400


def needs_plan(state: GoalState) -> bool:
    """No plan yet, or what is left of it cannot succeed and another one is allowed."""
    if not state.version or state.in_flight("plan") or state.refused or _is_plan_report(state):
        return True
    subs = state.subtasks.values()
    stuck = any(s.status in ("failed", "blocked") and not s.final for s in subs)
    hopeless = any(s.status in ("failed", "blocked") and (s.final or s.spec.critical) for s in subs)
    if not stuck or hopeless or state.degraded or state.replans >= state.spec.limits.max_replans:
        return False
    return all(s.status in SETTLED or (s.status == "waiting" and not state.is_ready(s)) for s in subs)


def _is_plan_report(state: GoalState) -> bool:
    return state.report is not None and state.report["kind"] == "plan"


def decide_plan(state: GoalState, pool: Free) -> list[Decision]:
    """Ask the planner, judge what it proposed, or go on without it."""
    if _is_plan_report(state):
        assert state.report is not None
        return _judge_plan(state, state.report)
    if state.in_flight("plan"):
        return []
    if len(state.refused) >= MAX_PLAN_TRIES:
        if state.version:
            reason = f"{state.obstacle()}; no other way was found: {state.refused[-1][0]}"
            return [Propose("goal.failed", {"reason": reason})]
        return [_accepted(state, single(state.spec.text))]
    payload: dict[str, Any] = {
        "goal": state.spec.text,
        "files": {"$json": state.files},
        "max_subtasks": state.spec.limits.max_subtasks,
        "refused": list(state.refused[-1]) if state.refused else [],
    }
    if state.version:
        payload["replan"] = {
            "finished": [{"id": n, "title": s.spec.title} for n, s in state.subtasks.items() if s.status == "applied"],
            "failed": [
                {"id": n, "title": s.spec.title, "reason": s.reason}
                for n, s in state.subtasks.items()
                if s.status in ("failed", "blocked")
            ],
        }
    return dispatch(pool, "plan", model=state.spec.models["planner"], payload=payload)


def _judge_plan(state: GoalState, report: Mapping[str, Any]) -> list[Decision]:
    if not report["ok"]:
        return [Propose("goal.failed", {"reason": f"no plan: {failure(report)}"})]
    data = report["data"]
    finished = state.finished()
    if "plan" in data:
        plan, reasons = plans.decode(data["plan"])
        if plan is not None:
            reasons = refusals(plan, state.spec.limits.max_subtasks, finished, state.unfinished())
    else:
        plan, reasons = None, [str(data.get("unusable", "no plan"))]
    if plan is not None and not reasons:
        return [_accepted(state, with_synthesis_last(fresh(plan, finished), finished))]
    shown = [r if len(r) <= MAX_REASON_CHARS else f"{r[:MAX_REASON_CHARS]}…" for r in reasons[:MAX_REASONS]]
    more = [f"… and {len(reasons) - MAX_REASONS} more faults"] if len(reasons) > MAX_REASONS else []
    return [Propose("plan.refused", {"reasons": [*shown, *more]})]


def _accepted(state: GoalState, plan: plans.Plan) -> Propose:
    return Propose("plan.accepted", {"version": state.version + 1, **plans.to_json(plan)})
