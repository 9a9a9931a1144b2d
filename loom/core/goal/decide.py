"""What should happen now: decide(state, now, free) (docs/goals.md sections 1 to 3, ADR-0012).

Pure: the router carries the decisions out, in order, each checked against the invariants, appended and synced before
it takes effect. Called again until it has nothing to say; after a restart it says the same for the same state.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from loom.core.checks import PROTECTED
from loom.core.confidence import confidence, signature
from loom.core.goal.state import SETTLED, GoalState, SubState
from loom.core.plan import fresh, overlaps, refusals, single, with_synthesis_last
from loom.wire import plan as plans
from loom.wire.order import ROLE_OF_KIND
from loom.wire.record import field, record

MAX_VERIFY_TRIES = 2
MAX_PLAN_TRIES = 2
MAX_APPLY_TRIES = 3
TRIES_PER_RUNG = 2
MAX_RESULTS_CHARS = 200_000
MAX_CLAIM_CHARS = 20_000
MAX_REASONS = 20
MAX_REASON_CHARS = 400
TOP_TIER = 3
WRITE_TOOLS = ("read-file", "write-file", "list-files", "search-files")
READ_TOOLS = ("read-file", "list-files", "search-files")


@record
class Propose:
    """Append this event."""

    type: str
    data: Mapping[str, Any]


@record
class Dispatch:
    """Send this order. A payload value {"$text": digest} or {"$json": digest} stands for a blob's content."""

    kind: str
    agent: str
    subtask: str = ""
    attempt: int = 0
    model: str = ""
    tools: tuple[str, ...] = ()
    payload: Mapping[str, Any] = field(default_factory=dict)

    @property
    def role(self) -> str:
        return ROLE_OF_KIND[self.kind]


Decision = Propose | Dispatch


class _Free:
    """Agents without an order, by role; each is given away once."""

    def __init__(self, free: Mapping[str, Sequence[str]]) -> None:
        self._free = {role: list(names) for role, names in free.items()}

    def take(self, kind: str, but_not: str = "") -> str | None:
        names = self._free.get(ROLE_OF_KIND[kind], [])
        name = next((n for n in names if n != but_not), None)
        if name is not None:
            names.remove(name)
        return name


def decide(state: GoalState, now_us: int, free: Mapping[str, Sequence[str]]) -> list[Decision]:
    """The next decisions, in order. `free`: agents of each role that have no order of any goal."""
    pool = _Free(free)
    late = _late(state, now_us)
    if late or state.status == "paused":
        return late
    if state.ended:
        return _landing(state, pool)
    if not state.base:
        return _snapshot(state, pool)
    if _needs_plan(state):
        return _planning(state, pool)
    if given_up := _given_up(state):
        return given_up
    decisions: list[Decision] = []
    for sub in state.subtasks.values():
        decisions.extend(_advance(state, sub, pool))
    # One after the other, because each looks at the state and not at what was decided a moment ago.
    return decisions or _apply(state, pool) or _start(state, pool) or _end(state)


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


def _failure(report: Mapping[str, Any]) -> str:
    error = report["error"] or {}
    return f"{report['agent']}: {error.get('message') or 'failed'}"


def _snapshot(state: GoalState, pool: _Free) -> list[Decision]:
    report = state.report
    if report is not None:
        if not report["ok"]:
            return [Propose("goal.failed", {"reason": f"the workspace could not be copied: {_failure(report)}"})]
        return [Propose("goal.snapshot", {"base": report["data"]["base"], "files": report["data"]["files"]})]
    if state.in_flight("snapshot"):
        return []
    return _dispatch(pool, "snapshot", payload={"source": state.spec.source})


def _dispatch(pool: _Free, kind: str, **fields: Any) -> list[Decision]:
    agent = pool.take(kind, fields.pop("but_not", ""))
    return [] if agent is None else [Dispatch(kind, agent, **fields)]


# -- planning --------------------------------------------------------------------------------------------------


def _needs_plan(state: GoalState) -> bool:
    """No plan yet, or what is left of it cannot succeed and another one is allowed."""
    if not state.version or state.in_flight("plan") or state.refused or _is_plan_report(state):
        return True
    subs = state.subtasks.values()
    stuck = any(s.status in ("failed", "blocked") and not s.final for s in subs)
    hopeless = any(s.status in ("failed", "blocked") and (s.final or s.spec.critical) for s in subs)
    if not stuck or hopeless or state.degraded or state.replans >= state.spec.limits.max_replans:
        return False
    return all(s.status in SETTLED or (s.status == "waiting" and not _ready(state, s)) for s in subs)


def _is_plan_report(state: GoalState) -> bool:
    return state.report is not None and state.report["kind"] == "plan"


def _planning(state: GoalState, pool: _Free) -> list[Decision]:
    if _is_plan_report(state):
        assert state.report is not None
        return _judge_plan(state, state.report)
    if state.in_flight("plan"):
        return []
    if len(state.refused) >= MAX_PLAN_TRIES:
        if state.version:
            return [
                Propose("goal.failed", {"reason": f"no other way was found: {state.refused[-1][0]}; {_worst(state)}"})
            ]
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
    return _dispatch(pool, "plan", model=state.spec.models["planner"], payload=payload)


def _judge_plan(state: GoalState, report: Mapping[str, Any]) -> list[Decision]:
    if not report["ok"]:
        return [Propose("goal.failed", {"reason": f"no plan: {_failure(report)}"})]
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


# -- subtasks --------------------------------------------------------------------------------------------------


def _ready(state: GoalState, sub: SubState) -> bool:
    return all(d in state.subtasks and state.subtasks[d].status == "applied" for d in sub.spec.depends_on)


def _start(state: GoalState, pool: _Free) -> list[Decision]:
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
        if sub.status != "waiting" or not _ready(state, sub):
            continue
        if any(overlaps(mine, theirs) for mine in sub.spec.deliverables for theirs in running):
            continue
        started = _dispatch(pool, "prepare", subtask=name, attempt=sub.attempt)
        if not started:
            break
        decisions.extend(started)
        running.extend(sub.spec.deliverables)
    return decisions


def _advance(state: GoalState, sub: SubState, pool: _Free) -> list[Decision]:
    """One subtask, one step on."""
    if sub.report is not None:
        return _on_report(state, sub, sub.report)
    name = sub.spec.id
    match sub.status:
        case "prepared":
            return _dispatch(
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
            return _dispatch(pool, "inspect", subtask=name, attempt=sub.attempt, payload=payload)
        case "inspected":
            return _judged(state, sub, pool)
        case "passed":
            return _commit(state, sub)
    return []


def _apply(state: GoalState, pool: _Free) -> list[Decision]:
    """Bring the next committed changes into the goal's tree: one after the other, and never while it is being copied.

    An apply that failed may have been done in part. It is repeated, because nothing else may begin before it is whole.
    """
    if state.in_flight("prepare") or state.in_flight("apply"):
        return []
    for name, sub in state.subtasks.items():
        failed = sub.status == "applying" and sub.report is not None and not sub.report["ok"]
        if sub.status == "committed" or (failed and _may_apply_again(state, sub)):
            return _dispatch(pool, "apply", subtask=name, attempt=sub.attempt, payload={"changes": sub.changes})
    return []


def _given_up(state: GoalState) -> list[Decision]:
    """The end, when a tree stays behind the journal: nothing may begin in it and nothing else brings it up to it."""
    for name, sub in state.subtasks.items():
        report = sub.report
        if sub.status == "applying" and report is not None and not report["ok"] and not _may_apply_again(state, sub):
            return [Propose("goal.failed", {"reason": f"{name} was committed and not applied: {_failure(report)}"})]
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
            return [_verdict_event(sub, report, {"findings": [], "inconclusive": True, "why": _failure(report)})]
        if report["kind"] == "apply":
            return []  # see _apply and _given_up
        return _failed(state, sub, _failure(report), [], final=final)
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


def _judged(state: GoalState, sub: SubState, pool: _Free) -> list[Decision]:
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
    return _dispatch(
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


# -- the end ---------------------------------------------------------------------------------------------------


def _end(state: GoalState) -> list[Decision]:
    """Nothing to start and nothing under way: the goal is over, one way or the other."""
    subs = state.subtasks
    if any(s.status not in (*SETTLED, "waiting") for s in subs.values()) or state.open_orders():
        return []
    hopeless = any(s.status in ("failed", "blocked") and s.spec.critical for s in subs.values())
    if not hopeless and any(s.status == "waiting" and _ready(state, s) for s in subs.values()):
        return []  # only a free keeper is missing
    if all(s.status == "applied" for s in subs.values()):
        return [Propose("goal.completed", {})]
    skipped: list[Decision] = [
        Propose("subtask.skipped", {"subtask": n, "reason": _missing(state, s)})
        for n, s in subs.items()
        if s.status == "waiting"
    ]
    return [*skipped, Propose("goal.failed", {"reason": _worst(state)})]


def _worst(state: GoalState) -> str:
    """The first subtask that stands in the way, and why."""
    worst = next(s for s in state.subtasks.values() if s.status in ("failed", "blocked"))
    return f"{worst.spec.id} {worst.status}: {worst.reason}"


def _missing(state: GoalState, sub: SubState) -> str:
    waiting = [d for d in sub.spec.depends_on if d not in state.subtasks or state.subtasks[d].status != "applied"]
    return f"depends on {waiting[0]}" if waiting else "a critical subtask failed"


def _landing(state: GoalState, pool: _Free) -> list[Decision]:
    report = state.report
    if state.landing == "" and state.status == "completed" and state.spec.land and state.spec.source:
        return [Propose("goal.landing", {"by": state.spec.by})]
    if state.landing == "wanted":
        payload = {"source": state.spec.source, "base": state.base}
        return _dispatch(pool, "land", payload=payload)
    if state.landing == "landing" and report is not None and report["kind"] == "land":
        if not report["ok"]:
            why = _failure(report)
            return [Propose("goal.landed", {"ok": False, "written": [], "conflicts": [why], "reason": why})]
        data = report["data"]
        ok = not data["conflicts"]
        return [Propose("goal.landed", {"ok": ok, "written": data["written"], "conflicts": data["conflicts"]})]
    return []
