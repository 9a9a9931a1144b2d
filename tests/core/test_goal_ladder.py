"""What failure leads to: again with the findings, a higher tier, a new plan, the end (docs/goals.md section 3)."""

from __future__ import annotations

from typing import Any

import pytest
from goal_sim import INCONCLUSIVE, MODELS, World, spec, subtask, verdict

DIFFERENT = ("the file is empty", "row has columns", "not UTF", "nested too deeply", "out of luck", "no such thing")


def world_of(*subtasks: dict[str, Any], **fields: Any) -> World:
    world = World(spec(**fields))
    world.plan(*(subtasks or (subtask("a"),)))
    return world


def fail_checks(world: World, detail: str, name: str = "a") -> None:
    world.go_on("prepare", "execute", name=name)
    world.answer("inspect", name, data=world.badly_checked(world.one("inspect", name), detail))


def tiers(world: World) -> list[int]:
    return [e["tier"] for e in world.of("subtask.started")]


def test_the_first_failure_is_tried_again_with_the_findings_in_a_tree_of_its_own():
    world = world_of()
    fail_checks(world, "the file is empty")
    assert world.state.subtasks["a"].attempt == 1
    world.go_on("prepare")
    told = world.payloads[world.one("execute").name].payload
    assert told["findings"][0]["what"] == "not-empty: the file is empty"
    world.finish()
    assert world.state.status == "completed" and world.state.subtasks["a"].findings == ()


def test_each_model_has_two_tries_while_it_fails_differently_each_time():
    world = world_of(models={**MODELS, "executor-2": "m/e2", "executor-3": "m/e3"}, max_attempts=9)
    for detail in DIFFERENT[:6]:
        fail_checks(world, detail)
    assert tiers(world) == [1, 1, 2, 2, 3, 3] and world.status("a") == "failed"


def test_a_better_model_that_fails_like_the_one_before_it_has_no_second_try():
    world = world_of(models={**MODELS, "executor-2": "m/e2", "executor-3": "m/e3"}, max_attempts=9)
    for detail in (DIFFERENT[0], DIFFERENT[1], DIFFERENT[1], DIFFERENT[2], DIFFERENT[3]):
        fail_checks(world, detail)
    assert tiers(world) == [1, 1, 2, 3, 3] and world.status("a") == "failed"


def test_the_same_failure_twice_climbs_at_once():
    world = world_of(models={**MODELS, "executor-3": "m/e3"}, max_attempts=6)
    fail_checks(world, "line 3 of /tmp/x is wrong")
    fail_checks(world, "line 99 of /var/y is wrong")  # digits and paths do not make another failure of it
    world.go_on("prepare")
    assert tiers(world) == [1, 1, 3]
    assert world.payloads[world.one("execute").name].model == "m/e3"


def test_without_another_model_the_second_failure_is_the_last_of_this_plan():
    world = world_of()
    fail_checks(world, DIFFERENT[0])
    fail_checks(world, DIFFERENT[1])
    assert world.status("a") == "failed" and world.one("plan")


@pytest.mark.parametrize("most", [1, 2, 3, 4])
def test_no_subtask_has_more_attempts_than_the_limit(most: int):
    world = world_of(
        models={**MODELS, "executor-2": "m/e2", "executor-3": "m/e3"}, max_attempts=most, max_replans=0
    )  # fmt: skip
    for detail in DIFFERENT[:most]:
        fail_checks(world, detail)
    assert world.state.status == "failed"
    assert [o["attempt"] for o in world.of("order.dispatched") if o["kind"] == "execute"] == list(range(most))


def test_a_rejection_by_the_verifier_is_a_failure_with_its_findings():
    world = world_of()
    world.go_on("prepare", "execute", "inspect")
    world.answer("verify", data=verdict(False, "invented"))
    retried = world.of("subtask.retried")[0]
    assert retried["reason"] == "not verified: invented" and retried["findings"][0]["what"] == "invented"


def test_no_conclusion_is_asked_for_once_more_and_no_work_is_done_again():
    world = world_of()
    world.go_on("prepare", "execute", "inspect")
    world.answer("verify", data=INCONCLUSIVE)
    assert world.status("a") == "verifying"
    world.answer("verify", data=verdict(True))
    world.finish()
    assert world.state.status == "completed"
    assert world.types().count("subtask.reported") == 1


@pytest.mark.parametrize("trouble", ["inconclusive", "error", "liar", "both"])
def test_no_conclusion_twice_blocks_for_good_and_the_executor_is_left_alone(trouble: str):
    world = world_of()
    world.go_on("prepare", "execute", "inspect")
    liar = verdict(True, findings=verdict(False)["findings"])
    said: dict[str, list[Any]] = {
        "inconclusive": [INCONCLUSIVE, INCONCLUSIVE],
        "error": [None, None],
        "liar": [liar, liar],
        "both": [INCONCLUSIVE, None],
    }
    for data in said[trouble]:
        order = world.one("verify")
        world.report(order, data)
        world.settle()
    assert world.status("a") == "blocked" and world.state.subtasks["a"].final
    assert world.state.status == "failed" and world.state.reason.startswith("a blocked: not verified:")
    assert world.types().count("subtask.reported") == 1 and "subtask.committed" not in world.types()


def test_a_pass_that_names_a_blocker_is_no_pass():
    world = world_of()
    world.go_on("prepare", "execute", "inspect")
    world.answer("verify", data=verdict(True, findings=verdict(False)["findings"]))
    recorded = world.of("verdict.recorded")[0]
    assert (recorded["passed"], recorded["inconclusive"]) == (False, True)


@pytest.mark.parametrize("kind", ["prepare", "execute", "inspect", "verify", "apply"])
def test_a_configuration_error_ends_the_goal_without_trying_again(kind: str):
    world = world_of()
    steps = ["prepare", "execute", "inspect", "verify", "apply"]
    world.go_on(*steps[: steps.index(kind)])
    world.answer(kind, exit_status=78, message="no such model")
    assert world.state.status == "failed" and "no such model" in world.state.reason
    assert world.types().count("plan.accepted") == 1 and "subtask.retried" not in world.types()


def test_what_is_final_is_not_planned_around_but_the_others_are_finished_first():
    world = world_of(subtask("a"), subtask("b"), subtask("c", "a"))
    world.go_on("prepare", name="a")
    world.answer("execute", "a", exit_status=78, message="no such model")
    assert world.state.status == "running"
    world.finish()
    assert (world.status("b"), world.status("c")) == ("applied", "skipped")
    assert world.state.status == "failed"


def test_blocked_goes_back_to_planning_when_everything_else_is_done():
    world = world_of(subtask("a"), subtask("b"))
    world.go_on("prepare", name="a")
    world.answer("execute", "a", data={"status": "blocked", "reason": "the file is missing"})
    assert world.open("plan") == []
    world.complete("b")
    told = world.payloads[world.one("plan").name].payload["replan"]
    assert told == {
        "finished": [{"id": "b", "title": "do b"}],
        "failed": [{"id": "a", "title": "do a", "reason": "the file is missing"}],
    }


def test_a_critical_failure_starts_nothing_more_and_ends_the_goal():
    world = world_of(subtask("a", critical=True), subtask("b"), subtask("c"))
    world.go_on("prepare", name="a")
    world.answer("execute", "a", data={"status": "blocked", "reason": "cannot"})
    world.finish()
    assert world.state.status == "failed" and world.status("c") == "skipped"
    assert "plan" not in [o["kind"] for o in world.of("order.dispatched")[2:]]


@pytest.mark.parametrize("grave", ["critical", "final"])
def test_what_is_hopeless_is_not_planned_anew_for_the_sake_of_the_rest(grave: str):
    world = world_of(subtask("a", critical=grave == "critical"), subtask("b"))
    world.until("execute", "b")
    world.answer("execute", "b", data={"status": "blocked", "reason": "cannot"})
    world.until("execute", "a")
    if grave == "critical":
        world.answer("execute", "a", data={"status": "blocked", "reason": "cannot"})
    else:
        world.answer("execute", "a", exit_status=78, message="no such model")
    assert world.state.status == "failed" and world.types().count("plan.accepted") == 1


def test_too_little_confidence_blocks_because_nobody_can_be_asked():
    world = world_of(min_confidence=0.95)
    world.go_on("prepare", "execute", "inspect")
    world.answer("verify", data=verdict(True, confidence=0.1))
    assert world.state.status == "failed" and "below 0.95" in world.state.reason


# -- applying -------------------------------------------------------------------------------------------------------


def test_a_conflict_leads_to_another_attempt_from_the_tree_as_it_is_now():
    world = world_of()
    world.go_on("prepare", "execute", "inspect", "verify")
    world.answer("apply", data={"written": [], "conflicts": ["a.md"]})
    assert world.state.subtasks["a"].attempt == 1
    world.finish()
    assert world.state.status == "completed"


def test_an_apply_that_broke_is_repeated_with_the_same_changes_before_anything_else_begins():
    world = world_of(subtask("a"), subtask("b"))
    first = world.until("apply", "a")
    changes = world.payloads[first.name].payload
    world.answer("apply", "a", message="the disk is full")
    again = world.one("apply")
    assert again.name != first.name and world.payloads[again.name].payload == changes
    assert again.attempt == first.attempt and "subtask.retried" not in world.types()
    world.finish()
    assert world.state.status == "completed" and world.types().count("subtask.committed") == 2


def test_an_apply_that_keeps_breaking_ends_the_goal_because_the_tree_is_behind_the_journal():
    world = world_of()
    world.go_on("prepare", "execute", "inspect", "verify")
    for _ in range(3):
        world.answer("apply", message="the disk is full")
    assert world.state.status == "failed" and "committed and not applied" in world.state.reason
    assert world.types().count("plan.accepted") == 1 and not world.ask("landing")
