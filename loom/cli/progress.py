"""A goal in words: one line an event that a person wants to see, and the result at the end."""

from __future__ import annotations

from loom.core.goal.state import GoalState
from loom.spool import trees
from loom.spool.layout import GoalDir
from loom.wire.event import Event

MAX_SHOWN_BYTES = 1 << 20


def describe(state: GoalState, event: Event) -> str | None:
    """One line on what happened, or None for what is only bookkeeping. `state` is the one after the event."""
    data = event.data
    match event.type:
        case "goal.snapshot":
            return "workspace copied; planning" if state.spec.source else "no workspace, it begins empty; planning"
        case "plan.accepted":
            count = len(data["subtasks"])
            again = f" (version {data['version']})" if data["version"] > 1 else ""
            degraded = ", degraded: the planner gave nothing usable" if data["degraded"] else ""
            return f"plan{again}: {count} subtask{'s' if count != 1 else ''}{degraded}"
        case "plan.refused":
            return f"plan refused: {data['reasons'][0]}"
        case "order.dispatched" if data["kind"] in ("execute", "verify"):
            doing = "at work on" if data["kind"] == "execute" else "judging"
            return f"{counter(state)} {data['agent']} {doing} {data['subtask']}{_attempt(data['attempt'])}"
        case "subtask.applied":
            return f"{counter(state)} done: {data['subtask']}"
        case "subtask.retried":
            return f"{counter(state)} {data['subtask']} is tried again: {data['reason']}"
        case "subtask.failed" | "subtask.blocked" | "subtask.skipped":
            return f"{counter(state)} {data['subtask']} {event.type.partition('.')[2]}: {data['reason']}"
        case "invariant.refused":
            return f"refused {data['type']}: {data['reasons'][0]}"
        case "goal.landed":
            return landed(state)
        case "goal.paused" | "goal.resumed" | "goal.cancelled" | "goal.completed" | "goal.failed":
            reason = f": {state.reason}" if state.reason else ""
            return f"goal {event.type.partition('.')[2]}{reason}"
    return None


def is_failure(event: Event) -> bool:
    """Whether a goal, or its landing, has come to nothing with this event."""
    return event.type in ("goal.failed", "goal.cancelled") or (event.type == "goal.landed" and not event.data["ok"])


def counter(state: GoalState) -> str:
    """`[ 3/12]`: how many subtasks are applied."""
    total = len(state.subtasks)
    done = sum(1 for s in state.subtasks.values() if s.status == "applied")
    return f"[{done:>{len(str(total))}}/{total}]"


def _attempt(attempt: int) -> str:
    return f", attempt {attempt + 1}" if attempt else ""


def landed(state: GoalState) -> str:
    if state.landing == "landed":
        written = state.landed.get("written", [])
        shown = ", ".join(written[:5]) + (f" and {len(written) - 5} more" if len(written) > 5 else "")
        return f"landed in {state.spec.source}: {shown or 'nothing had changed'}"
    if reason := state.landed.get("reason"):
        return f"not landed: {reason}"
    conflicts = state.landed.get("conflicts", [])
    return f"not landed, changed meanwhile: {', '.join(conflicts[:5])}"


def result(state: GoalState, goal: GoalDir) -> str:
    """The synthesis, else the results in the plan's order: deliverables that are text, or what was reported."""
    subs = list(state.subtasks.values())
    chosen = [s for s in subs if s.spec.synthesis] or subs
    parts = []
    for sub in chosen:
        texts = [t for t in (_text(goal, path) for path in sub.spec.deliverables) if t] if sub.spec.synthesis else []
        parts.append("\n".join(texts) if texts else sub.summary)
    return "\n".join(p.rstrip("\n") + "\n" for p in parts if p.strip())


def _text(goal: GoalDir, path: str) -> str:
    data = trees.read_file(goal.workspace, path)
    if data is None or len(data) > MAX_SHOWN_BYTES:
        return ""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return ""
