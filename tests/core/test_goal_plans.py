"""Planning and planning anew: what a planner says, twice nothing usable, and what a new plan may touch."""

from __future__ import annotations

from typing import Any

import pytest
from goal_sim import World, spec, subtask

from loom.core.goal.check import check

CYCLE = {"plan": {"subtasks": [subtask("a", "b"), subtask("b", "a")]}}


def begun(**fields: Any) -> World:
    world = World(spec(**fields))
    world.settle()
    world.answer("snapshot")
    return world


def block(world: World, name: str, reason: str = "cannot") -> None:
    world.until("execute", name)
    world.answer("execute", name, data={"status": "blocked", "reason": reason})


def told(world: World) -> Any:
    return world.payloads[world.one("plan").name].payload


def test_a_workspace_that_cannot_be_copied_ends_the_goal():
    world = World()
    world.settle()
    world.answer("snapshot", message="no such directory")
    assert world.state.reason == "the workspace could not be copied: keeper-1: no such directory"


def test_a_planner_that_fails_ends_the_goal():
    world = begun()
    world.answer("plan", message="no model")
    assert (world.state.status, world.state.reason) == ("failed", "no plan: planner-1: no model")


def test_a_refused_plan_goes_back_with_the_reasons_once():
    world = begun()
    world.answer("plan", data=CYCLE)
    assert told(world)["refused"] == ["circular dependency: a → b → a"]
    world.answer("plan", data={"plan": {"subtasks": [subtask("a")]}})
    assert world.state.version == 1 and not world.state.degraded and world.state.refused == ()


@pytest.mark.parametrize("killed_after", [None, 0, 1, 2])
def test_unusable_twice_becomes_one_degraded_subtask_however_the_router_is_killed(killed_after: int | None):
    world = begun(text="Write a book.")
    world.answer("plan", data={"unusable": "no JSON"})
    world.report(world.one("plan"), CYCLE)
    world.settle(killed_after)
    assert world.types().count("plan.refused") == 2 and world.types().count("plan.accepted") == 1
    assert list(world.state.subtasks) == ["execute-goal"] and world.state.degraded
    assert world.state.subtasks["execute-goal"].spec.instruction == "Write a book."
    block(world, "execute-goal")
    assert world.state.status == "failed" and world.open("plan") == []


def test_a_goal_without_a_word_can_be_degraded_too():
    world = begun(text="")
    world.answer("plan", data=CYCLE)
    world.answer("plan", data=CYCLE)
    assert world.state.subtasks["execute-goal"].spec.instruction


def test_a_plan_with_thousands_of_faults_is_refused_in_words_that_fit_a_message():
    world = begun()
    bad = [{**subtask(f"s{n}", "x" * 5000), "level": 9} for n in range(3000)]
    world.answer("plan", data={"plan": {"subtasks": bad}})
    reasons = told(world)["refused"]
    assert len(reasons) == 21 and len("".join(reasons)) < 10_000 and reasons[-1] == "… and 2980 more faults"


def test_a_new_plan_keeps_what_is_applied_and_gives_what_failed_a_tree_of_its_own():
    world = begun()
    world.answer("plan", data={"plan": {"subtasks": [subtask("a"), subtask("b"), subtask("c", "b")]}})
    world.complete("a")
    block(world, "b")
    before = world.state.subtasks["a"]
    world.answer("plan", data={"plan": {"subtasks": [subtask("b", "a"), subtask("d", "a", "b")]}})
    assert world.state.subtasks["a"] == before
    assert set(world.state.subtasks) == {"a", "b", "d"} and world.state.subtasks["b"].attempt == 1
    assert world.state.replans == 1
    world.finish()
    assert world.state.status == "completed"


def test_what_a_new_plan_says_of_a_finished_subtask_changes_nothing():
    world = begun()
    world.answer("plan", data={"plan": {"subtasks": [subtask("a"), subtask("b")]}})
    world.complete("a")
    block(world, "b")
    before = world.state.subtasks["a"]
    again = subtask("a", "b", deliverables=["other.md"], instruction="do otherwise", synthesis=True)
    world.answer("plan", data={"plan": {"subtasks": [again, subtask("c", "a")]}})
    assert world.state.subtasks["a"] == before and set(world.state.subtasks) == {"a", "c"}


def test_a_new_plan_may_not_take_over_the_files_of_a_finished_subtask_not_even_by_describing_it_anew():
    world = begun()
    world.answer("plan", data={"plan": {"subtasks": [subtask("a"), subtask("b")]}})
    world.complete("a")
    block(world, "b")
    theft = [subtask("a", deliverables=["x.md"]), subtask("c", deliverables=["a.md"])]
    world.answer("plan", data={"plan": {"subtasks": theft}})
    assert told(world)["refused"] == ["deliverable a.md belongs to a and to c"]


def test_a_new_plan_of_nothing_but_finished_subtasks_is_no_way_to_complete_a_goal():
    world = begun()
    world.answer("plan", data={"plan": {"subtasks": [subtask("a"), subtask("b")]}})
    world.complete("a")
    block(world, "b")
    for _ in range(2):
        world.answer("plan", data={"plan": {"subtasks": [subtask("a")]}})
    assert world.state.status == "failed"
    assert world.state.reason.startswith("b blocked: ")
    assert "; no other way was found: every subtask of the plan is finished" in world.state.reason


def test_an_id_that_was_dropped_and_comes_back_does_not_find_the_tree_of_its_past():
    world = begun(max_replans=3)
    world.answer("plan", data={"plan": {"subtasks": [subtask("a")]}})
    block(world, "a")
    world.answer("plan", data={"plan": {"subtasks": [subtask("b")]}})
    block(world, "b")
    world.answer("plan", data={"plan": {"subtasks": [subtask("a")]}})
    assert world.one("prepare").attempt == 1


def test_a_synthesis_sees_the_results_of_finished_subtasks_after_a_new_plan_too():
    world = begun()
    world.answer(
        "plan", data={"plan": {"subtasks": [subtask("a"), subtask("b"), subtask("all", synthesis=True)]}}
    )  # fmt: skip
    world.complete("a")
    block(world, "b")
    world.answer("plan", data={"plan": {"subtasks": [subtask("c"), subtask("all", synthesis=True)]}})
    assert set(world.state.subtasks["all"].spec.depends_on) == {"a", "c"}


@pytest.mark.parametrize("most", [0, 1, 2])
def test_a_goal_is_planned_anew_only_so_often(most: int):
    world = begun(max_replans=most)
    for n in range(most + 1):
        world.answer("plan", data={"plan": {"subtasks": [subtask(f"s{n}")]}})
        block(world, f"s{n}", f"reason {n}")
    assert world.state.status == "failed" and world.state.reason == f"s{most} blocked: reason {most}"
    assert world.state.replans == most


def test_the_reply_to_an_older_question_is_stale():
    world = begun()
    order = world.one("plan")
    world.answer("plan", data={"plan": {"subtasks": [subtask("a")]}})
    before = world.state
    world.append("reply.stale", {"agent": "planner-1", "reply": "reply-x"}, "reply-x")
    world.report(order, CYCLE)
    world.settle()
    assert world.state.subtasks == before.subtasks and world.state.version == 1


HOPELESS = {"plan": {"subtasks": [subtask("a"), subtask("b", "a")]}}
SAME = "the plan has the same subtasks as the one that has just failed: it is no other way"


def test_the_plan_that_has_just_failed_is_not_tried_again_and_the_planner_is_told_why():
    world = begun()
    world.answer("plan", data=HOPELESS)
    block(world, "a")
    assert told(world)["refused"] == []
    world.answer("plan", data=HOPELESS)
    assert told(world)["refused"] == [SAME] and world.open("prepare") == []
    world.answer("plan", data={"plan": {"subtasks": [subtask("a", instruction="do a otherwise"), subtask("b", "a")]}})
    world.finish()
    assert world.state.status == "completed" and world.types().count("plan.accepted") == 2


@pytest.mark.parametrize("killed_after", [None, 0, 1, 2])
def test_said_twice_it_ends_the_goal_and_the_reason_names_what_failed(killed_after: int | None):
    world = begun()
    world.answer("plan", data=HOPELESS)
    block(world, "a", "no such tool")
    world.answer("plan", data=HOPELESS)
    world.report(world.one("plan"), HOPELESS)
    world.settle(killed_after)
    assert world.state.status == "failed"
    assert world.state.reason == f"a blocked: no such tool; no other way was found: {SAME}"
    assert len(world.of("subtask.blocked")) == 1 and world.types().count("plan.accepted") == 1


def test_what_was_finished_meanwhile_makes_no_other_plan():
    world = begun()
    world.answer("plan", data=HOPELESS)
    world.complete("a")
    block(world, "b")
    world.answer("plan", data=HOPELESS)
    assert told(world)["refused"] == [SAME]


def test_nobody_else_brings_such_a_plan_into_the_journal_either():
    world = begun()
    world.answer("plan", data=HOPELESS)
    block(world, "a")
    again = {"version": 2, "degraded": False, "subtasks": HOPELESS["plan"]["subtasks"]}
    assert check(world.state, "plan.accepted", again) == [SAME]
