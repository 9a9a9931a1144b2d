"""The fold: state' = reduce(state, event), pure and total (docs/goals.md section 1, ADR-0012).

Enters: a state, an event whose payload is resolved. Leaves: the next state. It judges nothing: whether an event may
be appended is decided in loom.core.goal.check, what to do next in loom.core.goal.decide.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

from loom.core.goal.state import GoalState, OrderState, Status, SubState, spec_from_json
from loom.wire import goal as goals
from loom.wire.event import Event

_STATUS_OF_ORDER = {
    "prepare": "preparing",
    "execute": "executing",
    "inspect": "inspecting",
    "verify": "verifying",
    "apply": "applying",
}


def fold(events: Iterable[Event], state: GoalState | None = None) -> GoalState:
    """The state after these events. The first event of a journal is goal.created."""
    for event in events:
        state = first(event) if state is None else reduce(state, event)
    if state is None:
        raise ValueError("a journal without events has no state")
    return state


def first(event: Event) -> GoalState:
    """The state a journal begins with. Raises ValueError when it does not begin with goal.created."""
    if event.type != "goal.created":
        raise ValueError(f"a goal's journal begins with goal.created, not {event.type}")
    spec = goals.from_json(event.data["goal"])
    return GoalState(spec, seq=event.seq, causes=frozenset({event.cause}))


def reduce(state: GoalState, event: Event) -> GoalState:
    """The state after one more event; an event of a type we do not know changes nothing but `seq`."""
    causes = state.causes if event.cause.startswith("seq:") else state.causes | {event.cause}
    state = replace(state, seq=event.seq, causes=causes)
    handler = _HANDLERS.get(event.type)
    return state if handler is None else handler(state, event.data)


Data = Mapping[str, Any]


def _sub(state: GoalState, name: str, **changes: Any) -> GoalState:
    sub = state.subtasks.get(name)
    if sub is None:
        return state
    return replace(state, subtasks={**state.subtasks, name: replace(sub, **changes)})


def _status(status: Status) -> Callable[[GoalState, Data], GoalState]:
    def change(state: GoalState, data: Data) -> GoalState:
        return replace(state, status=status, reason=data.get("reason", ""))

    return change


def _dispatched(state: GoalState, data: Data) -> GoalState:
    order = OrderState(
        name=data["name"],
        kind=data["kind"],
        role=data["role"],
        agent=data["agent"],
        subtask=data["subtask"],
        attempt=data["attempt"],
        message=data["message"],
        deadline_us=data["deadline_us"],
    )
    state = replace(state, orders={**state.orders, order.name: order})
    if order.kind == "land":
        return replace(state, landing="landing")
    if not order.subtask:
        return state
    sub = state.subtasks.get(order.subtask)
    if sub is None or order.kind not in _STATUS_OF_ORDER:
        return state
    tries = {"verify_tries": sub.verify_tries + 1} if order.kind == "verify" else {}
    return _sub(state, order.subtask, status=_STATUS_OF_ORDER[order.kind], report=None, **tries)


def _reported(state: GoalState, data: Data) -> GoalState:
    order = state.orders.get(data["order"])
    if order is None:
        return state
    state = replace(
        state,
        orders={**state.orders, order.name: replace(order, reported=True)},
        usage=_added(state.usage, data.get("usage") or {}),
    )
    report = {"kind": order.kind, "agent": order.agent, **{k: data.get(k) for k in ("ok", "data", "error")}}
    if not order.subtask:
        return replace(state, report=report)
    sub = state.subtasks.get(order.subtask)
    if sub is None or sub.attempt != order.attempt:
        return state
    return _sub(state, order.subtask, report=report)


def _added(usage: Mapping[str, int], more: Mapping[str, Any]) -> dict[str, int]:
    total = dict(usage)
    for name, count in more.items():
        if isinstance(count, int):
            total[name] = total.get(name, 0) + count
    return total


def _snapshot(state: GoalState, data: Data) -> GoalState:
    return replace(state, base=data["base"], files=data["files"], report=None)


def _plan_refused(state: GoalState, data: Data) -> GoalState:
    return replace(state, report=None, refused=(*state.refused, tuple(data["reasons"])))


def _plan_accepted(state: GoalState, data: Data) -> GoalState:
    """Applied subtasks stay as they are; the rest is what the new plan says."""
    subtasks = {name: sub for name, sub in state.subtasks.items() if sub.status == "applied"}
    for raw in data["subtasks"]:
        spec = spec_from_json(raw)
        if spec.id not in subtasks:
            before = state.subtasks.get(spec.id)
            # Counted over all plans: an id that was dropped and comes back must not find the tree of its past.
            attempt = max((o.attempt + 1 for o in state.orders.values() if o.subtask == spec.id), default=0)
            findings = before.findings if before is not None else ()
            subtasks[spec.id] = SubState(spec, attempt=attempt, tier=spec.tier, findings=findings)
    return replace(
        state,
        report=None,
        refused=(),
        version=data["version"],
        degraded=data["degraded"],
        replans=state.replans + (1 if state.version else 0),
        subtasks=subtasks,
    )


def _prepared(state: GoalState, data: Data) -> GoalState:
    return _sub(state, data["subtask"], status="prepared", report=None)


def _sub_reported(state: GoalState, data: Data) -> GoalState:
    return _sub(
        state,
        data["subtask"],
        status="reported",
        report=None,
        summary=data["summary"],
        author=data["author"],
        failed_calls=data["failed_calls"],
        written=tuple(data.get("written", ())),
    )


def _checked(state: GoalState, data: Data) -> GoalState:
    return _sub(
        state,
        data["subtask"],
        status="inspected",
        report=None,
        changes=data["changes"],
        diff=data["diff"],
        checks=tuple(data["checks"]),
        checks_passed=data["passed"],
        verdict=None,
        verify_tries=0,
    )


def _verdict(state: GoalState, data: Data) -> GoalState:
    status = "passed" if data["passed"] else "inspected"
    return _sub(state, data["subtask"], status=status, report=None, verdict=dict(data))


def _committed(state: GoalState, data: Data) -> GoalState:
    return _sub(state, data["subtask"], status="committed", report=None, confidence=data["confidence"])


def _applied(state: GoalState, data: Data) -> GoalState:
    return _sub(state, data["subtask"], status="applied", report=None, findings=(), ever_applied=True)


def _retried(state: GoalState, data: Data) -> GoalState:
    sub = state.subtasks.get(data["subtask"])
    if sub is None:
        return state
    return _sub(
        state,
        data["subtask"],
        status="waiting",
        report=None,
        attempt=data["attempt"],
        tier=data["tier"],
        findings=tuple(data["findings"]),
        signatures=(*sub.signatures, data["signature"]),
        failed_here=sub.failed_here + 1 if data["tier"] == sub.tier else 0,
        reason=data["reason"],
        verdict=None,
        verify_tries=0,
        changes="",
        diff="",
    )


def _ended(status: str) -> Callable[[GoalState, Data], GoalState]:
    def change(state: GoalState, data: Data) -> GoalState:
        sub = state.subtasks.get(data["subtask"])
        if sub is None:
            return state
        more = {"signatures": (*sub.signatures, data["signature"])} if "signature" in data else {}
        findings = {"findings": tuple(data["findings"])} if "findings" in data else {}
        return _sub(
            state,
            data["subtask"],
            status=status,
            report=None,
            reason=data["reason"],
            final=data.get("final", False),
            **more,
            **findings,
        )

    return change


def _landing(state: GoalState, data: Data) -> GoalState:
    return replace(state, landing="wanted", report=None)


def _landed(state: GoalState, data: Data) -> GoalState:
    return replace(state, landing="landed" if data["ok"] else "conflict", landed=dict(data), report=None)


def _refused(state: GoalState, data: Data) -> GoalState:
    """What the goal itself proposed and an invariant refused is not proposed again: its subtask, or the goal, stops."""
    if data.get("asked"):
        return state
    reason = f"refused: {data['reasons'][0]}"
    if data.get("subtask") in state.subtasks:
        return _sub(state, data["subtask"], status="blocked", report=None, reason=reason, final=True)
    if state.ended:
        landed = {"ok": False, "written": [], "conflicts": [reason], "reason": reason}
        return replace(state, landing="conflict", landed=landed)
    return replace(state, status="failed", reason=reason)


_HANDLERS: dict[str, Callable[[GoalState, Data], GoalState]] = {
    "goal.paused": _status("paused"),
    "goal.resumed": _status("running"),
    "goal.cancelled": _status("cancelled"),
    "goal.completed": _status("completed"),
    "goal.failed": _status("failed"),
    "goal.snapshot": _snapshot,
    "goal.landing": _landing,
    "goal.landed": _landed,
    "invariant.refused": _refused,
    "order.dispatched": _dispatched,
    "order.reported": _reported,
    "plan.accepted": _plan_accepted,
    "plan.refused": _plan_refused,
    "subtask.started": _prepared,
    "subtask.reported": _sub_reported,
    "check.recorded": _checked,
    "verdict.recorded": _verdict,
    "subtask.committed": _committed,
    "subtask.applied": _applied,
    "subtask.retried": _retried,
    "subtask.failed": _ended("failed"),
    "subtask.blocked": _ended("blocked"),
    "subtask.skipped": _ended("skipped"),
}
