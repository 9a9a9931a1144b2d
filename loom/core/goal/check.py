"""The invariants: refusals = check(state, event); any refusal and the event is not appended (docs/goals.md section 6).

Run on every write path, whoever proposes. `decide` should never propose what is refused here; that it once might is
the reason for this file.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from loom.core.goal.state import SETTLED, GoalState, SubState
from loom.core.plan import refusals as plan_refusals
from loom.wire import plan as plans

Data = Mapping[str, Any]

# What may still happen to a goal that has ended.
_AFTER_THE_END = {
    "goal.landing",
    "goal.landed",
    "order.dispatched",
    "order.reported",
    "reply.stale",
    "invariant.refused",
    "journal.mended",
}


# From which states of its subtask an event may come.
_SUBTASK_FROM: dict[str, tuple[str, ...]] = {
    "subtask.started": ("preparing",),
    "subtask.reported": ("executing",),
    "check.recorded": ("inspecting",),
    "verdict.recorded": ("verifying",),
    "subtask.committed": ("inspected", "passed"),
    "subtask.applied": ("applying",),
    "subtask.skipped": ("waiting",),
}
_ORDER_FROM: dict[str, tuple[str, ...]] = {
    "prepare": ("waiting",),
    "execute": ("prepared",),
    "inspect": ("reported",),
    "verify": ("inspected",),
    "apply": ("committed", "applying"),
}


def check(state: GoalState, type_: str, data: Data) -> list[str]:
    """Why this event may not be appended; empty when it may."""
    if state.ended and type_ not in _AFTER_THE_END:
        return [f"the goal is {state.status}, which is final: nothing is left to change"]
    if type_.startswith("subtask.") or type_ in _SUBTASK_FROM:
        reasons = _of_subtask(state, type_, data)
        if reasons:
            return reasons
    rule = _RULES.get(type_)
    return [] if rule is None else rule(state, data)


def _of_subtask(state: GoalState, type_: str, data: Data) -> list[str]:
    sub = state.subtasks.get(data["subtask"])
    if sub is None:
        return [f"there is no subtask {data['subtask']}"]
    if sub.status in SETTLED:
        return [f"{sub.spec.id} is {sub.status}: {type_} would change what is settled"]
    if sub.status not in _SUBTASK_FROM.get(type_, (sub.status,)):
        return [f"{sub.spec.id} is {sub.status}: {type_} cannot follow"]
    return []


def _paused(state: GoalState, data: Data) -> list[str]:
    return [] if state.status == "running" else [f"only a running goal can be paused, this one is {state.status}"]


def _resumed(state: GoalState, data: Data) -> list[str]:
    return [] if state.status == "paused" else [f"only a paused goal can be resumed, this one is {state.status}"]


def _landing(state: GoalState, data: Data) -> list[str]:
    if state.status != "completed":
        return [f"only a completed goal can be landed, this one is {state.status}"]
    if not state.spec.source:
        return ["the goal has no workspace to land in: it was started without -w"]
    if state.landing in ("wanted", "landing"):
        return ["the goal is being landed already"]
    if state.landing == "landed":
        return ["the goal has been landed"]
    return []


def _dispatched(state: GoalState, data: Data) -> list[str]:
    reasons = []
    if state.ended and data["kind"] != "land":
        reasons.append(f"the goal is {state.status}: nothing but landing may be ordered")
    if state.status == "paused":
        reasons.append("the goal is paused: nothing may be ordered")
    if data["name"] in state.orders:
        reasons.append(f"order {data['name']} was dispatched before")
    if any(o.agent == data["agent"] for o in state.open_orders()):
        reasons.append(f"{data['agent']} has an unfinished order")
    if not data["subtask"]:
        return reasons
    sub = state.subtasks.get(data["subtask"])
    if sub is None:
        return [*reasons, f"there is no subtask {data['subtask']}"]
    if sub.status not in _ORDER_FROM.get(data["kind"], ()):
        reasons.append(f"{sub.spec.id} is {sub.status}: nobody may be told to {data['kind']} it")
    if data["attempt"] != sub.attempt:
        reasons.append(f"attempt {data['attempt']} of {sub.spec.id} is not the present one")
    waiting = [d for d in sub.spec.depends_on if not _is_applied(state, d)]
    if waiting:
        reasons.append(f"{sub.spec.id} depends on {waiting[0]}, which is not applied")
    if data["kind"] == "verify" and data["agent"] == sub.author:
        reasons.append(f"{data['agent']} did {sub.spec.id} and may not judge it")
    return reasons


def _is_applied(state: GoalState, name: str) -> bool:
    sub = state.subtasks.get(name)
    return sub is not None and sub.status == "applied"


def _reported(state: GoalState, data: Data) -> list[str]:
    order = state.orders.get(data["order"])
    if order is None:
        return [f"no order {data['order']} was dispatched"]
    return [f"order {order.name} has been reported"] if order.reported else []


def _plan_accepted(state: GoalState, data: Data) -> list[str]:
    if state.version and state.replans >= state.spec.limits.max_replans:
        return [f"the goal has been planned anew {state.replans} times, the limit is {state.spec.limits.max_replans}"]
    busy = next((o for o in state.open_orders() if o.subtask), None)
    if busy is not None:
        return [f"a plan is being carried out: {busy.agent} has an order"]
    plan, faults = plans.decode(data)
    if plan is None:
        return faults
    return plan_refusals(plan, state.spec.limits.max_subtasks, state.finished(), state.unfinished())


def _verdict(state: GoalState, data: Data) -> list[str]:
    sub = state.subtasks[data["subtask"]]
    reasons = []
    if data["judge"] == sub.author:
        reasons.append(f"{data['judge']} did {sub.spec.id} and may not judge it")
    if data["changes"] != sub.changes:
        reasons.append("the verdict is on other bytes than those inspected")
    return reasons


def _committed(state: GoalState, data: Data) -> list[str]:
    sub = state.subtasks[data["subtask"]]
    reasons = []
    if not sub.checks_passed:
        reasons.append(f"{sub.spec.id} has not passed its checks")
    if data["changes"] != sub.changes:
        reasons.append("other bytes would be committed than those inspected")
    if sub.spec.level >= 2 and not _passing(sub):
        reasons.append(f"{sub.spec.id} has no passing verdict on these bytes")
    return reasons


def _passing(sub: SubState) -> bool:
    verdict = sub.verdict
    return (
        verdict is not None
        and verdict["passed"] is True
        and verdict["changes"] == sub.changes
        and not any(f["severity"] == "blocker" for f in verdict["findings"])
    )


def _retried(state: GoalState, data: Data) -> list[str]:
    sub = state.subtasks[data["subtask"]]
    reasons = []
    if data["attempt"] != sub.attempt + 1:
        reasons.append(f"attempt {data['attempt']} does not follow attempt {sub.attempt}")
    if len(sub.signatures) + 1 >= state.spec.limits.max_attempts:
        reasons.append(f"{sub.spec.id} has had its {state.spec.limits.max_attempts} attempts")
    return reasons


def _completed(state: GoalState, data: Data) -> list[str]:
    missing = [name for name, sub in state.subtasks.items() if sub.status != "applied"]
    if not state.subtasks:
        return ["a goal without a plan cannot be completed"]
    return [f"{missing[0]} is not applied"] if missing else []


_RULES: dict[str, Callable[[GoalState, Data], list[str]]] = {
    "goal.paused": _paused,
    "goal.resumed": _resumed,
    "goal.landing": _landing,
    "goal.completed": _completed,
    "order.dispatched": _dispatched,
    "order.reported": _reported,
    "plan.accepted": _plan_accepted,
    "verdict.recorded": _verdict,
    "subtask.committed": _committed,
    "subtask.retried": _retried,
}
