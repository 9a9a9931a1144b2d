"""A goal without processes: the driver does what the router does, the test plays all roles, a monitor watches.

Everything is in memory. Each event goes through `check`, is appended as JSON as a journal would hold it, and is
looked at by the monitor, which keeps books of its own and asks nothing of the code under test but its events.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from loom.core.goal.check import check
from loom.core.goal.decide import decide
from loom.core.goal.decisions import Decision, Dispatch, Propose
from loom.core.goal.reduce import fold, reduce
from loom.core.goal.state import GoalState, OrderState, from_json, to_json
from loom.core.plan import overlaps
from loom.wire import goal as goal_wire
from loom.wire import order as order_wire
from loom.wire.event import Event
from loom.wire.goal import GoalSpec, Limits
from loom.wire.jsontext import dumps, loads

MAX_EVENTS = 3000
TIMEOUT_US = 1_000_000
POOLS = {"planner": 1, "executor": 2, "verifier": 2, "keeper": 1}
MODELS = {"planner": "m/p", "executor": "m/e", "verifier": "m/v"}


def digest(number: int) -> str:
    return f"{number:064x}"


def spec(text: str = "Do it.", **fields: Any) -> GoalSpec:
    """A goal; fields of its limits may be given beside its own."""
    names = ("max_subtasks", "max_attempts", "max_replans", "min_confidence")
    limits = Limits(**{k: fields.pop(k) for k in names if k in fields})
    return GoalSpec("20260101-do-it-abcd", text, "ada", 1, fields.pop("models", MODELS), limits=limits, **fields)


def subtask(name: str, *depends_on: str, **fields: Any) -> dict[str, Any]:
    """A subtask as a planner would write it; it delivers a file of its own name unless told otherwise."""
    return {
        "id": name,
        "instruction": f"do {name}",
        "depends_on": list(depends_on),
        "deliverables": [f"{name}.md"],
        **fields,
    }


def verdict(passed: bool, what: str = "it is wrong", **fields: Any) -> dict[str, Any]:
    finding = {"severity": "blocker", "where": "a.md:1", "what": what, "evidence": ""}
    return {
        "passed": passed,
        "confidence": 0.9,
        "findings": [] if passed else [finding],
        "inconclusive": False,
        **fields,
    }


INCONCLUSIVE = verdict(False, findings=[], inconclusive=True, why="it could not be judged")


class World:
    """One goal: `state` as the router has it, `events` as the journal has them, `now_us` as everybody has it."""

    def __init__(self, goal: GoalSpec | None = None, pools: Mapping[str, int] = POOLS) -> None:
        self.pools = {role: [f"{role}-{n}" for n in range(1, count + 1)] for role, count in pools.items()}
        self.now_us = 1
        self.events: list[Event] = []
        self.payloads: dict[str, Dispatch] = {}
        self.monitor = Monitor()
        self._count = 0
        self.failed = False  # a rule was broken: nothing more can be learnt
        data = {"goal": goal_wire.to_json(goal or spec())}
        self.state = fold([self._record("goal.created", data, "goal.md")])
        self.monitor.max_attempts = self.state.spec.limits.max_attempts
        self.monitor.max_replans = self.state.spec.limits.max_replans

    # -- what the router does ------------------------------------------------------------------------------------

    def _record(self, type_: str, data: Mapping[str, Any], cause: str) -> Event:
        """The event as it comes back from the journal."""
        seq = len(self.events) + 1
        assert seq < MAX_EVENTS, f"no end: {[e.type for e in self.events[-12:]]}"
        event = Event(seq, f"t{seq}", type_, {}, cause, loads(dumps(dict(data))), "")
        self.events.append(event)
        return event

    def append(self, type_: str, data: Mapping[str, Any], cause: str = "") -> None:
        event = self._record(type_, data, cause or f"seq:{self.state.seq}")
        before = self.state
        # What runs on has what was proposed, what starts anew has what was recorded: both must come to the same.
        live = Event(event.seq, event.ts, type_, {}, event.cause, data, "")
        self.state = reduce(before, live)
        assert self.state == reduce(before, event)
        self.failed = True
        self.monitor.saw(before, event, self.state)
        self.failed = False

    def force(self, type_: str, data: Mapping[str, Any]) -> None:
        """An event that no rule is asked about, to come to a state that does not come about by itself."""
        self.state = reduce(self.state, self._record(type_, data, f"seq:{self.state.seq}"))

    def propose(self, type_: str, data: Mapping[str, Any], cause: str = "") -> bool:
        """What a person asks for: refused without consequences when it may not be."""
        reasons = check(self.state, type_, data)
        if not reasons:
            self.append(type_, data, cause)
            return True
        self.append("invariant.refused", {"type": type_, "reasons": reasons, "asked": True, "subtask": ""}, cause)
        return False

    def ask(self, verb: str) -> bool:
        """A control file."""
        self._count += 1
        return self.propose(f"goal.{verb}", {"by": "ada"}, f"control-{self._count}")

    def free(self) -> dict[str, list[str]]:
        busy = {o.agent for o in self.state.open_orders()}
        return {role: [n for n in names if n not in busy] for role, names in self.pools.items()}

    def decisions(self) -> list[Decision]:
        return decide(self.state, self.now_us, self.free())

    def settle(self, crash_after: int | None = None) -> None:
        """Carry out what is decided until nothing is. `crash_after`: so many events later the router is killed."""
        left = crash_after
        while decisions := self.decisions():
            for decision in decisions:
                if left == 0:
                    self.restart()
                    left = None
                    break
                self.carry_out(decision)
                left = None if left is None else left - 1
        self.monitor.at_rest(self.state, self.free())

    def carry_out(self, decision: Decision) -> None:
        """Append one decision, which `check` must have nothing against."""
        if isinstance(decision, Propose):
            type_, data = decision.type, decision.data
        else:
            type_, data = "order.dispatched", self._order(decision)
            self.payloads[data["name"]] = decision
        assert check(self.state, type_, data) == [], (type_, data)
        self.append(type_, data)

    def _order(self, decision: Dispatch) -> dict[str, Any]:
        self._count += 1
        return {
            "role": decision.role,
            "agent": decision.agent,
            "kind": decision.kind,
            "subtask": decision.subtask,
            "attempt": decision.attempt,
            "name": f"order-{self._count}",
            "message": digest(self._count),
            "deadline_us": self.now_us + TIMEOUT_US,
        }

    def restart(self) -> None:
        """Fold again from the beginning, and from a snapshot of every tenth event: the same state, the same plans."""
        again = fold(self.events)
        assert again == self.state
        assert decide(again, self.now_us, self.free()) == self.decisions()
        for cut in range(1, len(self.events), 10):
            snapshot = from_json(loads(dumps(to_json(fold(self.events[:cut]))), 256))
            assert fold(self.events[cut:], snapshot) == self.state
        self.state = from_json(loads(dumps(to_json(again)), 256))
        assert self.state == again

    # -- what the roles do ---------------------------------------------------------------------------------------

    def open(self, kind: str = "", name: str = "") -> list[OrderState]:
        """Orders under way, the oldest first; those the router gave up on are not among them."""
        return [o for o in self.state.open_orders() if kind in ("", o.kind) and name in ("", o.subtask)]

    def one(self, kind: str, name: str = "") -> OrderState:
        found = self.open(kind, name)
        assert len(found) == 1, f"{kind} {name}: {found} of {self.open()}"
        return found[0]

    def report(self, order: OrderState, data: Mapping[str, Any] | None = None, **error: Any) -> None:
        """The reply to an order arrives, for the first time or once more; without data it is a failure."""
        cause = f"reply-{order.name}"
        if cause in self.state.causes:
            return
        known = self.state.orders[order.name]
        if known.reported:
            self.append("reply.stale", {"agent": order.agent, "reply": cause}, cause)
            return
        if data is not None and (fault := order_wire.report_fault(order.kind, data)):
            data, error = None, {"type": "bad_report", "message": fault}
        usage = {"input_tokens": 2}
        if data is None:
            told = {"type": "error", "message": "it broke", "exit_status": 70, **error}
            report = {"order": order.name, "ok": False, "data": None, "error": told, "usage": usage}
        else:
            report = {"order": order.name, "ok": True, "data": dict(data), "error": None, "usage": usage}
        assert check(self.state, "order.reported", report) == []
        self.append("order.reported", report, cause)

    def answer(self, kind: str, name: str = "", data: Mapping[str, Any] | None = None, **error: Any) -> None:
        """Answer the one order of a kind, well unless said otherwise, and let follow what follows."""
        order = self.one(kind, name)
        self.report(order, self.well(order) if data is None and not error else data, **error)
        self.settle()

    def well(self, order: OrderState) -> dict[str, Any]:
        """What a role that does its work well reports. A planner has to be told."""
        self._count += 1
        one = {"name": "exists", "where": f"{order.subtask}.md", "passed": True, "detail": ""}
        return {
            "snapshot": {"base": digest(1), "files": digest(2)},
            "plan": {"plan": {"subtasks": [subtask("a")]}},
            "prepare": {},
            "execute": {"status": "done", "summary": f"did {order.subtask}", "failed_calls": 0},
            "inspect": {
                "passed": True,
                "checks": [one],
                "findings": [],
                "changes": digest(1000 + self._count),
                "diff": digest(3),
            },
            "verify": verdict(True),
            "apply": {"written": [f"{order.subtask}.md"], "conflicts": []},
            "land": {"written": ["a.md"], "conflicts": []},
        }[order.kind]

    def badly_checked(self, order: OrderState, detail: str = "the file is empty") -> dict[str, Any]:
        failed = {"name": "not-empty", "where": f"{order.subtask}.md", "passed": False, "detail": detail}
        return {**self.well(order), "passed": False, "checks": [failed]}

    def plan(self, *subtasks: Mapping[str, Any]) -> None:
        """Begin: the snapshot is taken and this plan is proposed."""
        self.settle()
        self.answer("snapshot")
        self.answer("plan", data={"plan": {"subtasks": [dict(s) for s in subtasks]}})

    def go_on(self, *kinds: str, name: str = "") -> None:
        """Answer these orders of a subtask well, one after the other."""
        for kind in kinds:
            self.answer(kind, name)

    def until(self, kind: str, name: str) -> OrderState:
        """Go on with a subtask until it has this order; others only give the keeper free."""
        for _ in range(20):
            if found := self.open(kind, name):
                return found[0]
            order = (self.open(name=name) or self.open("prepare"))[0]
            self.answer(order.kind, order.subtask)
        raise AssertionError(f"{name} never comes to {kind}")

    def complete(self, *names: str) -> None:
        """Go on with these subtasks until they are applied."""
        for name in names:
            self.until("apply", name)
            self.answer("apply", name)

    def finish(self, rounds: int = 500) -> None:
        """Everybody does well from now on."""
        if self.state.status == "paused":
            self.ask("resumed")
        self.settle()
        for _ in range(rounds):
            orders = self.open()
            if self.state.quiet or not orders:
                break
            self.report(orders[0], self.well(orders[0]))
            self.settle()

    def types(self) -> list[str]:
        return [e.type for e in self.events]

    def of(self, type_: str) -> list[Mapping[str, Any]]:
        return [e.data for e in self.events if e.type == type_]

    def status(self, name: str) -> str:
        return self.state.subtasks[name].status


class Monitor:
    """Books kept from the events alone, and what must hold of them."""

    def __init__(self) -> None:
        self.max_attempts = self.max_replans = 0
        self.open: dict[str, Mapping[str, Any]] = {}
        self.names: set[str] = set()
        self.plan: dict[str, Mapping[str, Any]] = {}
        self.applied: set[str] = set()
        self.authors: dict[str, str] = {}
        self.checked: dict[str, tuple[str, bool]] = {}
        self.verdicts: dict[str, Mapping[str, Any]] = {}
        self.committed: dict[str, tuple[int, str]] = {}
        self.attempts: dict[str, set[int]] = {}
        self.failures: dict[str, int] = {}
        self.plans = 0
        self.paused = False
        self.ended = ""

    def saw(self, before: GoalState, event: Event, after: GoalState) -> None:
        if self.ended:
            assert after.status == self.ended, f"{event.type} changed a goal that is {self.ended}"
        kind, _, _ = event.type.partition(".")
        rule = getattr(self, f"_{event.type.replace('.', '_')}", None)
        if rule is not None:
            rule(event.data)
        if kind == "subtask":
            assert event.data["subtask"] not in self.applied or event.type == "subtask.applied"
        if after.ended and not self.ended:
            self.ended = after.status
        self.paused = after.status == "paused"
        self._apart(after)

    def _apart(self, state: GoalState) -> None:
        """Subtasks that share a deliverable are never under way at once."""
        under_way = [
            s for s in state.subtasks.values() if s.status not in ("waiting", "applied", "failed", "blocked", "skipped")
        ]
        for number, one in enumerate(under_way):
            for other in under_way[number + 1 :]:
                shared = [(a, b) for a in one.spec.deliverables for b in other.spec.deliverables if overlaps(a, b)]
                assert not shared, f"{one.spec.id} and {other.spec.id} share {shared}"

    def _order_dispatched(self, data: Mapping[str, Any]) -> None:
        assert not self.paused, "nothing is ordered while the goal is paused"
        assert not self.ended or data["kind"] == "land"
        assert data["name"] not in self.names
        assert data["agent"] not in {o["agent"] for o in self.open.values()}, f"{data['agent']} is busy"
        kinds = [o["kind"] for o in self.open.values()]
        if data["kind"] == "prepare":
            assert "apply" not in kinds, "no copy is made of a tree that is being changed"
            assert all(name in self.applied for name in self.committed), "the tree is behind the journal"
        if data["kind"] == "apply":
            assert "apply" not in kinds and "prepare" not in kinds
            assert self.committed[data["subtask"]][0] == data["attempt"]
            assert data["subtask"] not in self.applied, "applied twice"
        name = data["subtask"]
        if name:
            assert name in self.plan, f"{name} is not in the plan"
            assert all(d in self.applied for d in self.plan[name]["depends_on"]), f"{name} is not ready"
        if data["kind"] == "execute":
            assert data["attempt"] not in self.attempts.get(name, ()), f"{name}: the same attempt is made twice"
            self.attempts.setdefault(name, set()).add(data["attempt"])
            assert len(self.attempts[name]) <= self.max_attempts * (1 + self.max_replans)
        if data["kind"] == "verify":
            assert data["agent"] != self.authors[name], f"{data['agent']} judges itself"
        self.names.add(data["name"])
        self.open[data["name"]] = data

    def _order_reported(self, data: Mapping[str, Any]) -> None:
        del self.open[data["order"]]

    def _plan_accepted(self, data: Mapping[str, Any]) -> None:
        assert not [o for o in self.open.values() if o["subtask"]], "a new plan while the old one is carried out"
        self.plans += 1
        assert self.plans <= 1 + self.max_replans
        failed = {n: s for n, s in self.plan.items() if n not in self.applied}
        assert {s["id"]: s for s in data["subtasks"]} != failed, "a plan that has failed is tried again as it is"
        self.plan = {n: s for n, s in self.plan.items() if n in self.applied}
        for raw in data["subtasks"]:
            assert raw["id"] not in self.applied, "a finished subtask is planned again"
            self.plan[raw["id"]] = raw
        self.failures.clear()

    def _subtask_reported(self, data: Mapping[str, Any]) -> None:
        self.authors[data["subtask"]] = data["author"]

    def _check_recorded(self, data: Mapping[str, Any]) -> None:
        self.checked[data["subtask"]] = (data["changes"], data["passed"])
        self.verdicts.pop(data["subtask"], None)

    def _verdict_recorded(self, data: Mapping[str, Any]) -> None:
        assert data["judge"] != self.authors[data["subtask"]]
        self.verdicts[data["subtask"]] = data

    def _subtask_committed(self, data: Mapping[str, Any]) -> None:
        name = data["subtask"]
        assert self.checked[name] == (data["changes"], True)
        if self.plan[name].get("level", 2) >= 2:
            assert self.verdicts[name]["passed"] and self.verdicts[name]["changes"] == data["changes"]
            assert not [f for f in self.verdicts[name]["findings"] if f["severity"] == "blocker"]
        assert 0 <= data["confidence"] <= 1
        assert name not in self.applied
        self.committed[name] = (data["attempt"], data["changes"])

    def _subtask_applied(self, data: Mapping[str, Any]) -> None:
        name = data["subtask"]
        assert name not in self.applied, f"{name} is applied twice"
        assert self.committed[name][0] == data["attempt"]
        self.applied.add(name)

    def _subtask_retried(self, data: Mapping[str, Any]) -> None:
        name = data["subtask"]
        self.committed.pop(name, None)
        self.failures[name] = self.failures.get(name, 0) + 1
        assert self.failures[name] < self.max_attempts
        assert 1 <= data["tier"] <= 3

    def _subtask_failed(self, data: Mapping[str, Any]) -> None:
        self.committed.pop(data["subtask"], None)

    def _goal_completed(self, data: Mapping[str, Any]) -> None:
        assert self.plan and set(self.plan) == self.applied

    def at_rest(self, state: GoalState, free: Mapping[str, Sequence[str]]) -> None:
        """Nothing is decided: then everything that could go on does, or the goal has ended or is paused."""
        if state.quiet or state.status == "paused":
            return
        assert state.open_orders(), f"nothing is under way, nothing is decided: {state.status} {state.reason}"
        if state.ended or not state.version or state.in_flight("plan"):
            return
        subs = state.subtasks.values()
        if any(s.status in ("failed", "blocked") and s.spec.critical for s in subs):
            return
        changing = [s for s in subs if s.status in ("committed", "applying")]
        under_way = [s for s in subs if s.status not in ("waiting", "applied", "failed", "blocked", "skipped")]
        for sub in subs:
            ready = all(d in state.subtasks and state.subtasks[d].status == "applied" for d in sub.spec.depends_on)
            shares = any(overlaps(a, b) for s in under_way for a in s.spec.deliverables for b in sub.spec.deliverables)
            if sub.status == "waiting" and ready and not shares and not changing:
                assert not free["keeper"], f"{sub.spec.id} could start"
            if sub.status == "prepared":
                assert not free["executor"], f"{sub.spec.id} could be executed"
            if sub.status == "reported":
                assert not free["keeper"], f"{sub.spec.id} could be inspected"
            if sub.status == "inspected":
                assert not free["verifier"], f"{sub.spec.id} could be verified"
        if any(s.status == "committed" for s in changing):
            assert not free["keeper"] or any(o.kind in ("apply", "prepare") for o in state.open_orders())
