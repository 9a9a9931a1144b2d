"""How a goal that goes well goes on: which order follows which report, who gets it, and what waits for what."""

from __future__ import annotations

from typing import Any

import pytest
from goal_sim import MODELS, TIMEOUT_US, World, digest, spec, subtask

from loom.core.goal.subtasks import READ_TOOLS, WRITE_TOOLS

ALL = ("prepare", "execute", "inspect", "verify", "apply")


def test_one_subtask_from_its_plan_to_the_end():
    world = World()
    world.plan(subtask("a"))
    world.go_on(*ALL, name="a")
    assert world.types() == [
        "goal.created",
        *("order.dispatched", "order.reported", "goal.snapshot"),
        *("order.dispatched", "order.reported", "plan.accepted"),
        *("order.dispatched", "order.reported", "subtask.started"),
        *("order.dispatched", "order.reported", "subtask.reported"),
        *("order.dispatched", "order.reported", "check.recorded"),
        *("order.dispatched", "order.reported", "verdict.recorded", "subtask.committed"),
        *("order.dispatched", "order.reported", "subtask.applied"),
        "goal.completed",
    ]
    assert world.state.status == "completed" and world.state.quiet
    assert world.state.usage == {"input_tokens": 14}


def test_a_subtask_of_level_1_is_committed_without_a_verifier():
    world = World()
    world.plan(subtask("a", level=1))
    world.go_on("prepare", "execute", "inspect", "apply", name="a")
    assert world.state.status == "completed" and "verdict.recorded" not in world.types()


def test_what_each_role_is_told():
    world = World(spec("Write it.", source="/src"))
    world.settle()
    told = world.payloads
    assert told[world.one("snapshot").name].payload == {"source": "/src"}
    world.answer("snapshot")
    plan = told[world.one("plan").name]
    assert (plan.model, plan.payload["goal"], plan.payload["files"]) == ("m/p", "Write it.", {"$json": digest(2)})
    assert plan.payload["refused"] == [] and "replan" not in plan.payload
    world.answer("plan", data={"plan": {"subtasks": [subtask("a"), subtask("b", "a")]}})
    world.go_on("prepare", name="a")
    execute = told[world.one("execute").name]
    assert (execute.model, execute.tools, execute.payload["results"]) == ("m/e", WRITE_TOOLS, [])
    world.go_on("execute", "inspect", name="a")
    verify = told[world.one("verify").name]
    assert (verify.model, verify.tools) == ("m/v", READ_TOOLS)
    assert verify.payload["claim"] == "did a" and verify.payload["diff"] == {"$text": digest(3)}
    world.go_on("verify", "apply", name="a")
    world.go_on("prepare", name="b")
    assert told[world.one("execute").name].payload["results"] == [{"id": "a", "title": "do a", "summary": "did a"}]


def test_a_long_claim_and_long_results_are_cut_so_that_an_order_can_be_sent():
    world = World()
    world.plan(*[subtask(f"s{n}") for n in range(10)], subtask("z", *[f"s{n}" for n in range(10)]))
    while orders := world.open():
        order = orders[0]
        well = world.well(order)
        world.report(order, {**well, "summary": "x" * 900_000} if order.kind == "execute" else well)
        world.settle()
    assert world.state.status == "completed"
    for order in world.payloads.values():
        assert len(str(order.payload)) < 300_000


def test_a_subtask_starts_when_its_own_dependencies_are_applied_and_not_when_a_whole_layer_is():
    world = World(pools={"planner": 1, "executor": 4, "verifier": 4, "keeper": 4})
    world.plan(subtask("slow"), subtask("fast"), subtask("after", "fast"))
    world.go_on("prepare", name="slow")
    world.complete("fast")
    assert world.status("after") == "preparing" and world.status("slow") == "executing"


def test_two_subtasks_with_the_same_deliverable_run_one_after_the_other():
    world = World(pools={"planner": 1, "executor": 4, "verifier": 4, "keeper": 4})
    # No plan of a planner is like this; a refusal in the state machine must not be the only thing that prevents it.
    raw = [subtask("a", deliverables=["d/"], level=1), subtask("b", deliverables=["d/x.md"], level=1)]
    world.settle()
    world.answer("snapshot")
    world.append("order.reported", {"order": world.one("plan").name, "ok": True, "data": {}, "error": None})
    world.append("plan.accepted", {"version": 1, "subtasks": raw, "degraded": False})
    world.settle()
    assert (world.status("a"), world.status("b")) == ("preparing", "waiting")
    world.complete("a")
    assert (world.status("a"), world.status("b")) == ("applied", "preparing")


def test_nothing_is_copied_from_a_tree_that_is_behind_the_journal():
    world = World(pools={"planner": 1, "executor": 4, "verifier": 4, "keeper": 2})
    world.plan(subtask("a", level=1), subtask("b"), subtask("c"), subtask("d"))
    world.go_on("prepare", "execute", name="a")
    world.answer("prepare", "b")
    inspect = world.one("inspect", "a")
    assert [o.subtask for o in world.open("prepare")] == ["c"]
    world.report(inspect, world.well(inspect))
    world.settle()
    # a is committed; c is still being copied, so a waits for it, and d waits for a although a keeper is free.
    assert world.status("a") == "committed" and [o.subtask for o in world.open("prepare")] == ["c"]
    world.answer("prepare", "c")
    assert world.status("a") == "applying" and world.open("prepare") == []
    world.answer("apply", "a")
    assert [o.subtask for o in world.open("prepare")] == ["d"]


def test_nobody_gets_a_second_order_and_all_get_one():
    world = World(pools={"planner": 1, "executor": 2, "verifier": 1, "keeper": 3})
    world.plan(*[subtask(name) for name in "abcdef"])
    assert len(world.open("prepare")) == 3
    for _ in range(6):
        order = world.open("prepare")[0]
        world.answer("prepare", order.subtask)
    assert sorted(o.agent for o in world.open("execute")) == ["executor-1", "executor-2"]
    assert [s.status for s in world.state.subtasks.values()].count("prepared") == 4


def test_without_a_free_keeper_nothing_is_decided_and_nothing_fails():
    world = World()
    world.settle()
    world.answer("snapshot")
    order = world.one("plan")
    world.report(order, {"plan": {"subtasks": [subtask("a")]}})
    world.pools["keeper"] = []
    while decisions := world.decisions():
        for decision in decisions:
            world.carry_out(decision)
    assert world.state.status == "running" and world.open() == []
    world.pools["keeper"] = ["keeper-1"]
    world.finish()
    assert world.state.status == "completed"


@pytest.mark.parametrize("models, tier, expected", [
    ({}, 3, "m/e"),
    ({"executor-2": "big"}, 1, "m/e"),
    ({"executor-2": "big"}, 2, "big"),
    ({"executor-2": "big"}, 3, "m/e"),
    ({"executor-2": "", "executor-3": "huge"}, 3, "huge"),
])  # fmt: skip
def test_the_tier_of_a_subtask_chooses_its_model(models: dict[str, str], tier: int, expected: str):
    world = World(spec(models={**MODELS, **models}))
    world.plan(subtask("a", tier=tier))
    world.go_on("prepare", name="a")
    assert world.payloads[world.one("execute").name].model == expected


# -- reports that cannot be used ----------------------------------------------------------------------------------

GOOD_CHECK = {"name": "x", "where": "", "passed": True, "detail": ""}


@pytest.mark.parametrize("kind, data", [
    ("snapshot", {}),
    ("snapshot", {"base": "x", "files": digest(1)}),
    ("snapshot", {"base": digest(1), "files": None}),
    ("plan", {}),
    ("execute", {"status": "blocked"}),
    ("execute", {"summary": 7}),
    ("execute", {"summary": "x", "failed_calls": -1}),
    ("execute", {"summary": "x", "failed_calls": "no"}),
    ("inspect", {}),
    ("inspect", {"passed": "yes", "checks": [], "findings": [], "changes": digest(1), "diff": digest(2)}),
    ("inspect", {"passed": True, "checks": [{}], "findings": [], "changes": digest(1), "diff": digest(2)}),
    ("inspect", {"passed": True, "checks": [GOOD_CHECK], "findings": [1], "changes": digest(1), "diff": digest(2)}),
    ("inspect", {"passed": True, "checks": [GOOD_CHECK], "findings": [], "changes": "../x", "diff": digest(2)}),
    ("verify", {}),
    ("verify", {"passed": True, "confidence": 2}),
    ("verify", {"passed": True, "confidence": "high"}),
    ("verify", {"passed": True, "findings": [{"severity": "blocker"}]}),
    ("verify", {"passed": True, "findings": "none"}),
    ("apply", {}),
    ("apply", {"conflicts": "a.md"}),
    ("land", {"conflicts": []}),
])  # fmt: skip
def test_a_report_that_lacks_something_is_the_failure_of_its_order(kind: str, data: dict[str, Any]):
    world = World(spec(source="/s", land=True))
    world.settle()
    for _ in range(20):
        order = world.open()[0]
        if order.kind == kind:
            break
        world.answer(order.kind, order.subtask)
    world.report(world.one(kind), data)
    assert world.events[-1].data["error"]["type"] == "bad_report"
    world.settle()
    world.finish()
    assert world.state.quiet


def test_checks_that_failed_without_saying_which_are_a_failure_all_the_same():
    world = World()
    world.plan(subtask("a"))
    world.go_on("prepare", "execute")
    world.answer("inspect", data={**world.well(world.one("inspect")), "passed": False})
    assert world.of("subtask.retried")[0]["reason"] == "checks failed: the keeper did not say which"


# -- time -----------------------------------------------------------------------------------------------------------


def test_an_order_nobody_answers_counts_as_failed_and_its_late_reply_is_stale():
    world = World()
    world.plan(subtask("a"))
    order = world.one("prepare")
    world.now_us += TIMEOUT_US
    assert world.decisions() == []
    world.now_us += 2
    world.settle()
    assert world.of("order.reported")[-1]["error"]["type"] == "deadline"
    assert world.of("subtask.retried")[0]["reason"] == "keeper-1: keeper-1 did not answer in time"
    world.report(order, {})
    assert world.events[-1].type == "reply.stale"
    before = world.state
    world.settle()
    assert world.state == before
    world.finish()
    assert world.state.status == "completed"
