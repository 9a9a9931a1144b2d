"""One subtask after the other: prepared, executed, inspected, judged, committed and applied, or tried again.

docs/goals.md sections 2 and 3. A part of loom.core.goal.decide.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from loom.core.checks import PROTECTED
from loom.core.confidence import confidence, signature
from loom.core.goal.decisions import Decision, Free, Propose, dispatch, failure
from loom.core.goal.state import SETTLED, GoalState, SubState
from loom.core.plan import overlaps
from loom.wire import plan as plans

MAX_VERIFY_TRIES = 2
MAX_APPLY_TRIES = 3
TRIES_PER_RUNG = 2
MAX_RESULTS_CHARS = 200_000
MAX_CLAIM_CHARS = 20_000
TOP_TIER = 3
WRITE_TOOLS = ("read-file", "write-file", "list-files", "search-files")
READ_TOOLS = ("read-file", "list-files", "search-files")


def start(state: GoalState, pool: Free) -> list[Decision]:
    """Start what may start, in the plan's order; two subtasks that own the same file do not run at once.

    None starts from a tree that is behind the journal: what was committed is applied first.
    """
    if any(s.status in ("failed", "blocked") and s.spec.critical for s in state.subtasks.values()):
        return []
    if any(s.status in ("committed", "applying") for s in state.subtasks.values()):
        return []
    running = [d for s in state.subtasks.values() if s.status not in (*SETTLED, "waiting") for d in s.spec.deliverables]
    decisions: list[Decision] = []
    for name, sub in state.subtasks.items():
        if sub.status != "waiting" or not state.is_ready(sub):
            continue
        if any(overlaps(mine, theirs) for mine in sub.spec.deliverables for theirs in running):
            continue
        started = dispatch(pool, "prepare", subtask=name, attempt=sub.attempt)
        if not started:
            break
        decisions.extend(started)
        running.extend(sub.spec.deliverables)
    return decisions


def advance(state: GoalState, sub: SubState, pool: Free) -> list[Decision]:
    """One subtask, one step on."""
    if sub.report is not None:
        return _on_report(state, sub, sub.report)
    name = sub.spec.id
    match sub.status:
        case "prepared":
            return dispatch(
                pool,
                "execute",
                subtask=name,
                attempt=sub.attempt,
                model=_executor_model(state, sub.tier),
                tools=WRITE_TOOLS,
                payload={
                    "subtask": plans.subtask_to_json(sub.spec),
                    "results": _results(state, sub),
                    "findings": [dict(f) for f in sub.findings],
                },
            )
        case "reported":
            # Doing again what was done before, where little has changed, is work too: a verifier judges it then.
            written = list(sub.written) if sub.spec.level >= 2 else []
            payload = {
                "spec": plans.subtask_to_json(sub.spec),
                "kept": sub.ever_applied,
                "written": written,
                "free": state.degraded,
            }
            return dispatch(pool, "inspect", subtask=name, attempt=sub.attempt, payload=payload)
        case "inspected":
            return _judged(state, sub, pool)
        case "passed":
            return _commit(state, sub)
    return []


def apply(state: GoalState, pool: Free) -> list[Decision]:
    """Bring the next committed changes into the goal's tree: one after the other, and never while it is being copied.

    An apply that failed may have been done in part. It is repeated, because nothing else may begin before it is whole.
    """
    if state.in_flight("prepare") or state.in_flight("apply"):
        return []
    for name, sub in state.subtasks.items():
        failed = sub.status == "applying" and sub.report is not None and not sub.report["ok"]
        if sub.status == "committed" or (failed and _may_apply_again(state, sub)):
            return dispatch(pool, "apply", subtask=name, attempt=sub.attempt, payload={"changes": sub.changes})
    return []


def given_up(state: GoalState) -> list[Decision]:
    """The end, when a tree stays behind the journal: nothing may begin in it and nothing else brings it up to it."""
    for name, sub in state.subtasks.items():
        report = sub.report
        if sub.status == "applying" and report is not None and not report["ok"] and not _may_apply_again(state, sub):
            return [Propose("goal.failed", {"reason": f"{name} was committed and not applied: {failure(report)}"})]
    return []


def _may_apply_again(state: GoalState, sub: SubState) -> bool:
    """Whether a failed apply is repeated."""
    if _is_config_failure(sub.report):
        return False
    tries = [o for o in state.orders.values() if (o.kind, o.subtask, o.attempt) == ("apply", sub.spec.id, sub.attempt)]
    return len(tries) < MAX_APPLY_TRIES


def _is_config_failure(report: Mapping[str, Any] | None) -> bool:
    return report is not None and (report["error"] or {}).get("exit_status") == 78


def _executor_model(state: GoalState, tier: int) -> str:
    models = state.spec.models
    return models.get(f"executor-{tier}") or models["executor"]


def _results(state: GoalState, sub: SubState) -> list[dict[str, str]]:
    """What the subtasks it depends on reported, each cut so that all fit into one order."""
    share = max(200, MAX_RESULTS_CHARS // max(1, len(sub.spec.depends_on)))
    return [
        {"id": d, "title": state.subtasks[d].spec.title, "summary": state.subtasks[d].summary[:share]}
        for d in sub.spec.depends_on
    ]


def _on_report(state: GoalState, sub: SubState, report: Mapping[str, Any]) -> list[Decision]:
    if not report["ok"]:
        final = _is_config_failure(report)
        if report["kind"] == "verify" and not final:
            return [_verdict_event(sub, report, {"findings": [], "inconclusive": True, "why": failure(report)})]
        if report["kind"] == "apply":
            return []  # see apply and given_up
        return _failed(state, sub, failure(report), [], final=final)
    data = report["data"]
    name = sub.spec.id
    match report["kind"]:
        case "prepare":
            return [Propose("subtask.started", {"subtask": name, "attempt": sub.attempt, "tier": sub.tier})]
        case "execute":
            if data.get("status") == "blocked":
                return [Propose("subtask.blocked", {"subtask": name, "reason": data["reason"]})]
            return [
                Propose(
                    "subtask.reported",
                    {
                        "subtask": name,
                        "summary": data.get("summary", ""),
                        "author": report["agent"],
                        "failed_calls": data.get("failed_calls", 0),
                        "written": data.get("written", []),
                    },
                )
            ]
        case "inspect":
            fields = {k: data[k] for k in ("passed", "checks", "findings", "changes", "diff")}
            return [Propose("check.recorded", {"subtask": name, "attempt": sub.attempt, **fields})]
        case "verify":
            return [_verdict_event(sub, report, data)]
        case "apply":
            if data["conflicts"]:
                return _failed(state, sub, f"conflict with what was committed meanwhile: {data['conflicts'][0]}", [])
            return [Propose("subtask.applied", {"subtask": name, "attempt": sub.attempt})]
    return []


def _verdict_event(sub: SubState, report: Mapping[str, Any], data: Mapping[str, Any]) -> Propose:
    findings = data.get("findings", [])
    inconclusive, why = data.get("inconclusive") is True, data.get("why", "")
    if data.get("passed") is True and any(f["severity"] == "blocker" for f in findings):
        inconclusive, why = True, "the verdict passes and has a blocker"
    return Propose(
        "verdict.recorded",
        {
            "subtask": sub.spec.id,
            "attempt": sub.attempt,
            "judge": report["agent"],
            "changes": sub.changes,
            "passed": data.get("passed") is True and not inconclusive,
            "confidence": data.get("confidence", 0.0),
            "findings": findings,
            "inconclusive": inconclusive,
            "why": why,
        },
    )


def _judged(state: GoalState, sub: SubState, pool: Free) -> list[Decision]:
    """After the checks, and again after a verdict that was no pass."""
    if not sub.checks_passed:
        failed = [c for c in sub.checks if not c["passed"]]
        floor = next((c for c in failed if c["name"] == PROTECTED), None)
        if floor is not None:
            reason = f"{floor['where']}: {floor['detail']}"
            return [Propose("subtask.blocked", {"subtask": sub.spec.id, "reason": reason, "final": True})]
        findings = [
            {"severity": "blocker", "where": c["where"], "what": f"{c['name']}: {c['detail']}", "evidence": ""}
            for c in failed[:20]
        ]
        what = f"{findings[0]['where']} {findings[0]['what']}" if findings else "the keeper did not say which"
        return _failed(state, sub, f"checks failed: {what}", findings)
    if sub.spec.level < 2:
        return _commit(state, sub)
    verdict = sub.verdict
    if verdict is not None and not verdict["inconclusive"]:
        findings = list(verdict["findings"])
        what = findings[0]["what"] if findings else "the verifier did not pass it"
        return _failed(state, sub, f"not verified: {what}", findings)
    if verdict is not None and sub.verify_tries >= MAX_VERIFY_TRIES:
        why = verdict["why"] or "the verifier came to no conclusion"
        return [Propose("subtask.blocked", {"subtask": sub.spec.id, "reason": f"not verified: {why}", "final": True})]
    return dispatch(
        pool,
        "verify",
        but_not=sub.author,
        subtask=sub.spec.id,
        attempt=sub.attempt,
        model=state.spec.models["verifier"],
        tools=READ_TOOLS,
        payload={
            "subtask": plans.subtask_to_json(sub.spec),
            "checks": [dict(c) for c in sub.checks],
            "diff": {"$text": sub.diff},
            "claim": sub.summary[:MAX_CLAIM_CHARS],
        },
    )


def _commit(state: GoalState, sub: SubState) -> list[Decision]:
    passed = sum(1 for c in sub.checks if c["passed"])
    verdict = sub.verdict["confidence"] if sub.verdict is not None else None
    limits = state.spec.limits
    sure = confidence(passed, len(sub.checks), verdict, sub.attempt, limits.max_attempts, sub.failed_calls)
    if sure < limits.min_confidence:
        reason = (
            f"confidence {sure} is below {limits.min_confidence}: a person would be asked here, "
            "which this version cannot do"
        )
        return [Propose("subtask.blocked", {"subtask": sub.spec.id, "reason": reason, "final": True})]
    data = {"subtask": sub.spec.id, "attempt": sub.attempt, "changes": sub.changes, "confidence": sure}
    return [Propose("subtask.committed", data)]


def _failed(
    state: GoalState, sub: SubState, reason: str, findings: Sequence[Mapping[str, str]], final: bool = False
) -> list[Decision]:
    """Climb the ladder: retry with the findings, retry at a higher tier, then leave it to a new plan."""
    mark = signature(reason)
    common = {"subtask": sub.spec.id, "reason": reason, "findings": [dict(f) for f in findings], "signature": mark}
    tier = _next_tier(state, sub, stuck=bool(sub.signatures) and sub.signatures[-1] == mark)
    if final or tier is None or len(sub.signatures) + 1 >= state.spec.limits.max_attempts:
        return [Propose("subtask.failed", {**common, "final": final})]
    return [Propose("subtask.retried", {**common, "attempt": sub.attempt + 1, "tier": tier})]


def _next_tier(state: GoalState, sub: SubState, stuck: bool) -> int | None:
    """The tier to try next: the same one twice, then the next that is another model; None when there is none.

    stuck  it failed as it did before, perhaps at the tier below: there is no second try
    """
    if not stuck and sub.failed_here + 1 < TRIES_PER_RUNG:
        return sub.tier
    present = _executor_model(state, sub.tier)
    return next((t for t in range(sub.tier + 1, TOP_TIER + 1) if _executor_model(state, t) != present), None)
