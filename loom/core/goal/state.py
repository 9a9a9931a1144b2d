"""The state of a goal: what the fold of its journal knows (docs/goals.md section 1, ADR-0012).

Frozen records; every change is a new record made by loom.core.goal.reduce. `to_json`/`from_json` are the snapshot
in state.json, which is derived: it may be deleted at any time.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any, Literal

from loom.wire import goal as goals
from loom.wire import plan as plans
from loom.wire.goal import GoalSpec
from loom.wire.plan import Subtask
from loom.wire.record import field, record

REDUCER_VERSION = 1

Status = Literal["running", "paused", "completed", "failed", "cancelled"]
ENDED: tuple[Status, ...] = ("completed", "failed", "cancelled")
SubStatus = Literal[
    "waiting",
    "preparing",
    "prepared",
    "executing",
    "reported",
    "inspecting",
    "inspected",
    "verifying",
    "passed",
    "committed",
    "applying",
    "applied",
    "blocked",
    "failed",
    "skipped",
]
SETTLED: tuple[SubStatus, ...] = ("applied", "blocked", "failed", "skipped")


@record
class OrderState:
    """An order that was dispatched. `message` is the digest of its bytes; `reply` the only name its report may have."""

    name: str
    kind: str
    role: str
    agent: str
    subtask: str
    attempt: int
    message: str
    deadline_us: int
    reported: bool = False


@record
class SubState:
    """One subtask and how far it is.

    attempt     0, 1, 2 …; each has its own tree       tier   model tier of this attempt
    report      the last order's report that was not acted on yet: {kind, ok, data, error}
    findings    what the last attempt failed on        signatures  of failures so far, oldest first
    failed_here how many of the failures were at the present tier
    written     files its tool wrote, changed or not
    changes     blob of the change list that was inspected: the bytes that are judged, committed and applied
    final       blocked in a way that no new plan may go round
    """

    spec: Subtask
    status: SubStatus = "waiting"
    attempt: int = 0
    tier: int = 1
    report: Mapping[str, Any] | None = None
    findings: tuple[Mapping[str, str], ...] = ()
    signatures: tuple[str, ...] = ()
    failed_here: int = 0
    summary: str = ""
    author: str = ""
    failed_calls: int = 0
    written: tuple[str, ...] = ()
    changes: str = ""
    diff: str = ""
    checks: tuple[Mapping[str, Any], ...] = ()
    checks_passed: bool = False
    verdict: Mapping[str, Any] | None = None
    verify_tries: int = 0
    confidence: float | None = None
    reason: str = ""
    final: bool = False
    ever_applied: bool = False


@record
class GoalState:
    """A goal after `seq` events.

    base     digest of the snapshot's manifest, '' before it is taken; `files` of its file list
    refused  why the last proposed plans were refused, this planning round
    landing  '' | wanted | landing | landed | conflict
    """

    spec: GoalSpec
    seq: int = 0
    status: Status = "running"
    reason: str = ""
    base: str = ""
    files: str = ""
    version: int = 0
    degraded: bool = False
    replans: int = 0
    refused: tuple[tuple[str, ...], ...] = ()
    report: Mapping[str, Any] | None = None  # of an order that belongs to no subtask: snapshot, plan, land
    subtasks: Mapping[str, SubState] = field(default_factory=dict)
    orders: Mapping[str, OrderState] = field(default_factory=dict)
    causes: frozenset[str] = frozenset()
    landing: str = ""
    landed: Mapping[str, Any] = field(default_factory=dict)
    usage: Mapping[str, int] = field(default_factory=dict)

    @property
    def ended(self) -> bool:
        return self.status in ENDED

    @property
    def quiet(self) -> bool:
        """Nothing more will happen by itself: ended, and no landing under way."""
        return self.ended and self.landing not in ("wanted", "landing")

    @property
    def resting(self) -> bool:
        """Nothing more will happen until somebody asks: quiet, or paused with no order out."""
        return self.quiet or (self.status == "paused" and not self.open_orders())

    def finished(self) -> dict[str, Subtask]:
        """The applied subtasks by id: no new plan changes them."""
        return {name: sub.spec for name, sub in self.subtasks.items() if sub.status == "applied"}

    def unfinished(self) -> dict[str, Subtask]:
        """The other subtasks by id: what is left of the plan."""
        return {name: sub.spec for name, sub in self.subtasks.items() if sub.status != "applied"}

    def is_ready(self, sub: SubState) -> bool:
        """Whether all that a subtask depends on is applied."""
        return all(d in self.subtasks and self.subtasks[d].status == "applied" for d in sub.spec.depends_on)

    def obstacle(self) -> str:
        """The first subtask that stands in the way, and why. There is one."""
        worst = next(s for s in self.subtasks.values() if s.status in ("failed", "blocked"))
        return f"{worst.spec.id} {worst.status}: {worst.reason}"

    def open_orders(self) -> list[OrderState]:
        """Dispatched and not reported, oldest first."""
        return [o for o in self.orders.values() if not o.reported]

    def in_flight(self, kind: str) -> bool:
        """Whether an order of this kind, for whatever subtask, is dispatched and not reported."""
        return any(o.kind == kind for o in self.open_orders())


def to_json(state: GoalState) -> dict[str, Any]:
    """The snapshot's form."""
    raw = {f.name: getattr(state, f.name) for f in fields(state)}
    return {
        **raw,
        "spec": goals.to_json(state.spec),
        "subtasks": {k: _sub_to_json(s) for k, s in state.subtasks.items()},
        "orders": {k: asdict(o) for k, o in state.orders.items()},
        "causes": sorted(state.causes),
        "refused": [list(r) for r in state.refused],
    }


def from_json(raw: Mapping[str, Any]) -> GoalState:
    """Raises KeyError, TypeError or ValueError: the caller then folds the journal from its beginning."""
    return GoalState(
        **{
            **raw,
            "spec": goals.from_json(raw["spec"]),
            "subtasks": {k: _sub_from_json(s) for k, s in raw["subtasks"].items()},
            "orders": {k: OrderState(**o) for k, o in raw["orders"].items()},
            "causes": frozenset(raw["causes"]),
            "refused": tuple(tuple(r) for r in raw["refused"]),
        }
    )


def _sub_to_json(sub: SubState) -> dict[str, Any]:
    raw = {f.name: getattr(sub, f.name) for f in fields(sub)}
    lists = {name: list(raw[name]) for name in ("findings", "signatures", "checks", "written")}
    return {**raw, **lists, "spec": plans.subtask_to_json(sub.spec)}


def _sub_from_json(raw: Mapping[str, Any]) -> SubState:
    lists = {name: tuple(raw[name]) for name in ("findings", "signatures", "checks", "written")}
    return SubState(**{**raw, **lists, "spec": spec_from_json(raw["spec"])})


def spec_from_json(raw: Mapping[str, Any]) -> Subtask:
    """A subtask that was accepted once. Raises ValueError when it is none."""
    plan, faults = plans.decode({"subtasks": [raw]})
    if plan is None:
        raise ValueError("; ".join(faults))
    return plan.subtasks[0]
