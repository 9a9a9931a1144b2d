"""The invariants: whoever proposes it, what breaks a rule is refused, and says why (docs/goals.md section 6)."""

from __future__ import annotations

from typing import Any

import pytest
from goal_sim import World, digest, spec, subtask, verdict
from hypothesis import given
from hypothesis import strategies as st

from loom.core.goal.check import check
from loom.core.goal.reduce import first, reduce
from loom.core.goal.state import ENDED, from_json, to_json
from loom.wire import goal as goal_wire
from loom.wire.event import Event
from loom.wire.jsontext import dumps, loads

PLAN = {"version": 2, "degraded": False}


def order(kind: str, agent: str, name: str = "", attempt: int = 0, stem: str = "new") -> dict[str, Any]:
    roles = {"plan": "planner", "execute": "executor", "verify": "verifier"}
    return {
        "kind": kind,
        "role": roles.get(kind, "keeper"),
        "agent": agent,
        "subtask": name,
        "attempt": attempt,
        "name": stem,
        "message": digest(9),
        "deadline_us": 99,
    }


def begun(*subtasks: dict[str, Any], **fields: Any) -> World:
    world = World(spec(**fields))
    world.plan(*(subtasks or (subtask("a"),)))
    return world


def before(kind: str, name: str = "a") -> World:
    """A goal in which an order of this kind for `a` is what comes next; its own decision is not carried out."""
    world = begun()
    steps = ["prepare", "execute", "inspect", "verify", "apply"]
    world.go_on(*steps[: steps.index(kind)])
    return world


def refused(world: World, type_: str, data: dict[str, Any]) -> str:
    reasons = check(world.state, type_, data)
    assert reasons, f"{type_} was not refused"
    return reasons[0]


# -- orders ---------------------------------------------------------------------------------------------------------


def test_an_order_of_a_known_name_is_refused():
    world = begun()
    name = world.one("prepare").name
    assert refused(world, "order.dispatched", order("plan", "planner-1", stem=name)).endswith("was dispatched before")


def test_a_busy_agent_gets_no_order():
    world = begun(subtask("a"), subtask("b"))
    assert refused(world, "order.dispatched", order("prepare", "keeper-1", "b")) == "keeper-1 has an unfinished order"


def test_an_order_is_for_a_subtask_that_is_there_and_for_its_present_attempt():
    world = begun(subtask("a"), subtask("b"))
    assert refused(world, "order.dispatched", order("prepare", "keeper-2", "x")) == "there is no subtask x"
    assert "is not the present one" in refused(world, "order.dispatched", order("prepare", "keeper-2", "b", attempt=1))


def test_dependencies_are_applied_first():
    world = begun(subtask("a"), subtask("b", "a"))
    reason = refused(world, "order.dispatched", order("prepare", "keeper-2", "b"))
    assert reason == "b depends on a, which is not applied"


@pytest.mark.parametrize("kind", ["execute", "inspect", "verify", "apply"])
def test_no_step_is_left_out(kind: str):
    world = begun(subtask("a"), subtask("b"))
    assert "nobody may be told to" in refused(world, "order.dispatched", order(kind, "somebody", "b"))


def test_who_did_it_may_not_be_asked_to_judge_it_nor_judge():
    world = before("verify")
    judging = world.one("verify")
    world.force("order.reported", {"order": judging.name, "ok": True, "data": {}, "error": None})
    # Once more in the state in which a verifier is looked for.
    world.force("verdict.recorded", {"subtask": "a", **verdict(False), "inconclusive": True, "changes": "", "why": ""})
    asked = order("verify", "executor-1", "a")
    assert refused(world, "order.dispatched", asked) == "executor-1 did a and may not judge it"
    assert check(world.state, "order.dispatched", {**asked, "agent": "verifier-1"}) == []
    world.force("order.dispatched", {**asked, "agent": "verifier-1"})
    said = {"subtask": "a", "judge": "executor-1", "changes": world.state.subtasks["a"].changes}
    assert refused(world, "verdict.recorded", said) == "executor-1 did a and may not judge it"
    assert check(world.state, "verdict.recorded", {**said, "judge": "verifier-1"}) == []


def test_a_verdict_is_on_the_bytes_that_were_inspected():
    world = before("verify")
    said = {"subtask": "a", "judge": "verifier-1", "changes": digest(77)}
    assert refused(world, "verdict.recorded", said) == "the verdict is on other bytes than those inspected"


def test_nothing_is_ordered_while_the_goal_is_paused():
    world = begun(subtask("a"), subtask("b"))
    world.ask("paused")
    assert "the goal is paused" in refused(world, "order.dispatched", order("prepare", "keeper-2", "b"))


def test_a_report_is_on_an_order_that_was_given_and_not_reported():
    world = begun()
    done = world.of("order.dispatched")[0]["name"]
    assert refused(world, "order.reported", {"order": "ghost"}) == "no order ghost was dispatched"
    assert refused(world, "order.reported", {"order": done}) == f"order {done} has been reported"


# -- commits --------------------------------------------------------------------------------------------------------


def inspected(passed: bool = True, **fields: Any) -> World:
    """A goal whose subtask was inspected; the verifier, if it has one, is at it."""
    world = begun(subtask("a", **fields))
    world.go_on("prepare", "execute")
    one = world.one("inspect")
    world.report(one, world.well(one) if passed else world.badly_checked(one))
    world.carry_out(world.decisions()[0])
    assert world.status("a") == "inspected"
    return world


def commit(world: World, **fields: Any) -> dict[str, Any]:
    return {
        "subtask": "a",
        "attempt": 0,
        "changes": world.state.subtasks["a"].changes,
        "confidence": 1.0,
        **fields,
    }


def judged(**said: Any) -> World:
    world = inspected()
    world.force("order.dispatched", order("verify", "verifier-1", "a"))
    data = {"subtask": "a", "judge": "verifier-1", "changes": world.state.subtasks["a"].changes, "why": ""}
    world.force("verdict.recorded", {**data, **verdict(True), **said})
    return world


def test_no_commit_without_passed_checks():
    world = inspected(passed=False, level=1)
    assert refused(world, "subtask.committed", commit(world)) == "a has not passed its checks"


def test_no_commit_of_other_bytes_than_those_inspected():
    world = inspected(level=1)
    assert check(world.state, "subtask.committed", commit(world)) == []
    assert "other bytes" in refused(world, "subtask.committed", commit(world, changes=digest(77)))


def test_no_commit_at_level_2_without_a_passing_verdict_on_these_bytes_and_without_a_blocker():
    world = inspected()
    no = "a has no passing verdict on these bytes"
    assert refused(world, "subtask.committed", commit(world)) == no
    assert check(judged().state, "subtask.committed", commit(judged())) == []
    assert refused(judged(passed=False), "subtask.committed", commit(judged())) == no
    assert refused(judged(changes=digest(77)), "subtask.committed", commit(judged())) == no
    blocker = judged(findings=verdict(False)["findings"])
    assert refused(blocker, "subtask.committed", commit(blocker)) == no


def test_nothing_is_committed_or_applied_twice():
    world = judged()
    world.force("subtask.committed", commit(world))
    assert refused(world, "subtask.committed", commit(world)) == "a is committed: subtask.committed cannot follow"
    assert refused(world, "subtask.applied", {"subtask": "a"}) == "a is committed: subtask.applied cannot follow"
    world.force("order.dispatched", order("apply", "keeper-1", "a"))
    world.force("subtask.applied", {"subtask": "a", "attempt": 0})
    for type_ in ("subtask.applied", "subtask.committed", "subtask.retried", "subtask.failed", "subtask.blocked"):
        assert refused(world, type_, {"subtask": "a"}).startswith("a is applied:")
    once_more = order("apply", "keeper-2", "a", stem="newer")
    assert refused(world, "order.dispatched", once_more) == "a is applied: nobody may be told to apply it"


@pytest.mark.parametrize("type_", [
    "subtask.started", "subtask.reported", "subtask.committed", "subtask.applied", "subtask.retried", "subtask.failed",
    "subtask.blocked", "subtask.skipped", "check.recorded", "verdict.recorded",
])  # fmt: skip
def test_of_a_subtask_that_is_not_in_the_plan_nothing_is_recorded(type_: str):
    assert refused(begun(), type_, {"subtask": "ghost"}) == "there is no subtask ghost"


@pytest.mark.parametrize("type_", ["subtask.started", "subtask.reported", "check.recorded", "verdict.recorded"])
def test_what_was_not_ordered_is_not_recorded(type_: str):
    world = begun(subtask("a"), subtask("b"))
    assert refused(world, type_, {"subtask": "b"}) == f"b is waiting: {type_} cannot follow"


# -- limits ---------------------------------------------------------------------------------------------------------


def test_attempts_are_counted_one_by_one_and_stay_under_their_limit():
    world = begun(max_attempts=2)
    again = {"subtask": "a", "attempt": 1, "tier": 1, "findings": [], "signature": "x", "reason": "x"}
    assert "does not follow" in refused(world, "subtask.retried", {**again, "attempt": 2})
    assert check(world.state, "subtask.retried", again) == []
    world.force("subtask.retried", again)
    assert refused(world, "subtask.retried", {**again, "attempt": 2}) == "a has had its 2 attempts"


def test_plans_stay_under_their_limits_and_are_judged_whoever_proposes_them():
    world = begun(max_replans=1, max_subtasks=1)
    good = {**PLAN, "subtasks": [subtask("b")]}
    assert refused(world, "plan.accepted", good) == "a plan is being carried out: keeper-1 has an order"
    world.report(world.one("prepare"), {})
    assert check(world.state, "plan.accepted", good) == []
    assert "limit is 1" in refused(world, "plan.accepted", {**PLAN, "subtasks": [subtask("b"), subtask("c")]})
    assert "not in the plan" in refused(world, "plan.accepted", {**PLAN, "subtasks": [subtask("b", "ghost")]})
    assert "no list" in refused(world, "plan.accepted", {**PLAN, "subtasks": []})
    world.force("plan.accepted", good)
    assert refused(world, "plan.accepted", good) == "the goal has been planned anew 1 times, the limit is 1"


# -- the goal -------------------------------------------------------------------------------------------------------

ANY = {"subtask": "a", "order": "x", "reasons": ["x"], "reason": "x", "kind": "plan", "agent": "x", "name": "x"}
EVENTS = [
    "goal.created", "goal.paused", "goal.resumed", "goal.completed", "goal.failed", "goal.cancelled", "goal.snapshot",
    "plan.proposed", "plan.accepted", "plan.refused", "check.recorded", "verdict.recorded", "budget.reserved",
    "subtask.started", "subtask.reported", "subtask.blocked", "subtask.committed", "subtask.applied",
    "subtask.retried", "subtask.failed", "subtask.skipped",
]  # fmt: skip


@pytest.mark.parametrize("status", ENDED)
def test_terminal_states_are_final_landing_excepted(status: str):
    world = begun()
    open_order = world.one("prepare")
    if status == "completed":
        world.finish()
    else:
        world.propose(f"goal.{status}", {"reason": "x"})
    assert world.state.status == status
    for type_ in EVENTS:
        assert "which is final" in refused(world, type_, ANY)
    reason = refused(world, "order.dispatched", order("prepare", "keeper-9", "a"))
    assert "nothing but landing may be ordered" in reason
    assert check(world.state, "order.dispatched", order("land", "keeper-9")) == []
    assert check(world.state, "reply.stale", {}) == check(world.state, "invariant.refused", {}) == []
    assert check(world.state, "journal.mended", {"torn_bytes": 1}) == [], "a cut may tear the end of any journal"
    if status != "completed":
        assert check(world.state, "order.reported", {"order": open_order.name}) == []


def test_a_goal_is_completed_when_everything_is_applied_and_there_was_something():
    world = World()
    assert refused(world, "goal.completed", {}) == "a goal without a plan cannot be completed"
    assert refused(begun(), "goal.completed", {}) == "a is not applied"


@pytest.mark.parametrize("landing, reason", [
    ("wanted", "the goal is being landed already"),
    ("landing", "the goal is being landed already"),
    ("landed", "the goal has been landed"),
])  # fmt: skip
def test_a_goal_is_landed_once(landing: str, reason: str):
    world = begun(source="/s")
    assert refused(world, "goal.landing", {}) == "only a completed goal can be landed, this one is running"
    world.finish()
    assert check(world.state, "goal.landing", {}) == []
    world.force("goal.landing", {})
    if landing != "wanted":
        world.force("order.dispatched", order("land", "keeper-1"))
    if landing == "landed":
        world.force("goal.landed", {"ok": True, "written": [], "conflicts": []})
    assert world.state.landing == landing and refused(world, "goal.landing", {}) == reason


# -- the fold -------------------------------------------------------------------------------------------------------


def test_a_journal_begins_with_the_goal():
    with pytest.raises(ValueError, match=r"begins with goal\.created"):
        first(Event(1, "t", "goal.paused", {}, "x", {}, ""))


def test_what_a_newer_version_records_changes_nothing():
    world = begun()
    after = reduce(world.state, Event(99, "t", "gate.opened", {}, "a-file", {"gate": "x"}, ""))
    assert after.seq == 99 and "a-file" in after.causes
    assert (after.subtasks, after.orders, after.status) == (world.state.subtasks, world.state.orders, "running")


@given(st.sampled_from(["order.reported", "order.dispatched", "subtask.retried", "subtask.applied", "subtask.failed",
                        "subtask.started", "verdict.recorded", "check.recorded", "subtask.reported"]))  # fmt: skip
def test_the_fold_is_defined_for_subtasks_and_orders_that_are_not_there(type_: str):
    world = begun()
    data = {
        **order("verify", "verifier-1", "ghost"),
        **dict.fromkeys(("judge", "signature", "reason", "summary", "author", "changes", "diff"), "x"),
        **{"order": "ghost", "attempt": 7, "tier": 1, "findings": [], "passed": True},  # noqa: PIE800
        **{"failed_calls": 0, "checks": [], "confidence": 1},  # noqa: PIE800
    }
    after = reduce(world.state, Event(99, "t", type_, {}, "seq:1", data, ""))
    assert after.subtasks == world.state.subtasks


def test_the_report_of_an_earlier_attempt_is_not_taken_for_that_of_the_present_one():
    world = begun()
    old = world.one("prepare")
    world.force(
        "subtask.retried", {"subtask": "a", "attempt": 1, "tier": 1, "findings": [], "signature": "x", "reason": ""}
    )
    world.force("order.reported", {"order": old.name, "ok": True, "data": {}, "error": None})
    assert world.state.subtasks["a"].report is None and world.state.orders[old.name].reported


def test_a_snapshot_is_the_state_also_with_everything_in_it():
    world = begun(subtask("a"), subtask("b"), source="/s")
    world.until("execute", "a")
    world.answer("execute", "a", data={"status": "blocked", "reason": "x"})
    world.complete("b")
    world.answer("plan", data={"unusable": "no"})
    again = from_json(loads(dumps(to_json(world.state)), 256))
    assert again == world.state and again.refused == (("no",),)


@pytest.mark.parametrize("spoil", [
    lambda raw: raw.pop("spec"),
    lambda raw: raw.update(more=1),
    lambda raw: raw["spec"].pop("limits"),
    lambda raw: raw["subtasks"]["a"]["spec"].update(instruction=""),
    lambda raw: raw["subtasks"]["a"].update(more=1),
    lambda raw: raw["orders"].update(x={}),
    lambda raw: raw.update(causes=None),
])  # fmt: skip
def test_a_snapshot_that_is_none_raises_what_its_reader_expects(spoil: Any):
    raw = loads(dumps(to_json(begun().state)), 256)
    spoil(raw)
    with pytest.raises((KeyError, TypeError, ValueError)):
        from_json(raw)


def test_the_goal_in_the_journal_is_the_goal_that_was_asked_for():
    asked = spec("Write\n---\nit.", source="/s", land=True, umask=0o22)
    assert first(Event(1, "t", "goal.created", {}, "goal.md", {"goal": goal_wire.to_json(asked)}, "")).spec == asked
