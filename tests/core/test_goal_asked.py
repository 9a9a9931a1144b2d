"""What people may ask of a goal and when: pause, resume, cancel, land; and how a goal that ended stays."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from goal_sim import TIMEOUT_US, World, spec

STEPS = ("snapshot", "plan", "prepare", "execute", "inspect", "verify", "apply")


def at(step: int, **fields: object) -> World:
    """A goal of one subtask, whose next answer will be that of STEPS[step]."""
    world = World(spec(**fields))
    world.settle()
    for kind in STEPS[:step]:
        world.answer(kind)
    return world


def completed(**fields: object) -> World:
    world = at(len(STEPS), **fields)
    assert world.state.status == "completed"
    return world


@pytest.mark.parametrize("step", range(len(STEPS)))
def test_a_paused_goal_takes_reports_and_orders_nothing(step: int):
    world = at(step)
    assert world.ask("paused") and not world.ask("paused")
    before = world.types().count("order.dispatched")
    world.answer(STEPS[step])
    world.restart()
    assert world.types().count("order.dispatched") == before
    assert world.ask("resumed") and not world.ask("resumed")
    world.finish()
    assert world.state.status == "completed"


@pytest.mark.parametrize("step", range(len(STEPS)))
def test_a_deadline_passes_for_a_paused_goal_too(step: int):
    world = at(step)
    world.ask("paused")
    world.now_us += TIMEOUT_US + 1
    world.settle()
    assert world.open() == []
    world.finish()
    assert world.state.quiet


@pytest.mark.parametrize("paused", [False, True])
@pytest.mark.parametrize("step", range(len(STEPS)))
def test_a_goal_can_be_cancelled_at_any_time_and_nothing_follows(step: int, paused: bool):
    world = at(step)
    order = world.one(STEPS[step])
    if paused:
        world.ask("paused")
    assert world.ask("cancelled")
    count = len(world.events)
    world.settle()
    assert world.state.status == "cancelled" and world.state.quiet and len(world.events) == count
    world.report(order, world.well(order))
    world.now_us += TIMEOUT_US + 1
    world.settle()
    world.restart()
    assert [e.type for e in world.events[count:]] == ["order.reported"]
    for verb in ("cancelled", "paused", "resumed", "landing"):
        assert not world.ask(verb)


def test_a_goal_that_completed_stays_so():
    world = completed(source="/s")
    for verb in ("cancelled", "paused", "resumed"):
        assert not world.ask(verb)
    assert world.state.status == "completed"


# -- landing --------------------------------------------------------------------------------------------------------


def test_a_goal_lands_by_itself_only_when_that_was_asked_for():
    assert completed(source="/s").state.quiet
    assert completed(land=True).state.quiet
    world = completed(source="/s", land=True)
    assert not world.state.quiet and world.payloads[world.one("land").name].payload["source"] == "/s"
    world.answer("land")
    assert world.state.quiet and world.state.landing == "landed"


def test_a_goal_that_failed_or_has_no_workspace_is_not_landed():
    world = at(1, source="/s", land=True)
    world.answer("plan", message="no")
    assert world.state.status == "failed" and world.state.quiet and not world.ask("landing")
    assert not completed().ask("landing")
    assert not at(3, source="/s").ask("landing")


def test_after_a_conflict_it_can_be_asked_again_and_after_success_not():
    world = completed(source="/s")
    assert world.ask("landing") and not world.ask("landing")
    world.settle()
    assert not world.ask("landing")
    world.answer("land", data={"written": [], "conflicts": ["a.md"]})
    assert world.state.landing == "conflict" and world.state.landed["conflicts"] == ["a.md"]
    assert world.ask("landing")
    world.settle()
    world.answer("land")
    assert world.state.landing == "landed" and not world.ask("landing")


Trouble = Callable[[World], None]


def _keeper_fails(world: World) -> None:
    world.answer("land", message="the disk is full")


def _nobody_answers(world: World) -> None:
    world.now_us += TIMEOUT_US + 1
    world.settle()


def _order_cannot_be_sent(world: World) -> None:
    world.append("invariant.refused", {"type": "order.dispatched", "reasons": ["too large"], "asked": False})
    world.settle()


@pytest.mark.parametrize("trouble", [_keeper_fails, _nobody_answers, _order_cannot_be_sent])
def test_a_landing_that_comes_to_nothing_comes_to_an_end(trouble: Trouble):
    world = completed(source="/s", land=True)
    trouble(world)
    world.restart()
    assert world.state.quiet and world.state.landing == "conflict" and world.state.landed["conflicts"]
    assert world.state.status == "completed"


def test_landing_survives_a_restart_at_every_event():
    for killed_after in range(3):
        world = completed(source="/s")
        world.ask("landing")
        world.settle(killed_after)
        world.restart()
        world.answer("land")
        assert world.types().count("goal.landed") == 1


# -- refusals -------------------------------------------------------------------------------------------------------


def test_what_the_goal_itself_may_not_do_is_not_proposed_for_ever():
    world = at(2)
    world.append("invariant.refused", {"type": "order.dispatched", "reasons": ["no"], "asked": False, "subtask": "a"})
    assert world.status("a") == "blocked" and world.state.subtasks["a"].final
    world = at(0)
    world.append("invariant.refused", {"type": "order.dispatched", "reasons": ["no"], "asked": False, "subtask": ""})
    world.settle()
    assert (world.state.status, world.state.reason) == ("failed", "refused: no")


def test_what_somebody_asked_for_in_vain_changes_nothing():
    world = at(3)
    before = world.state
    world.append("invariant.refused", {"type": "goal.resumed", "reasons": ["no"], "asked": True, "subtask": "a"})
    assert world.state.subtasks == before.subtasks and world.state.status == "running"


def test_after_the_end_nobody_waits_for_orders_any_longer():
    world = at(3)
    world.ask("cancelled")
    world.now_us += TIMEOUT_US + 1
    assert world.decisions() == [] and world.state.quiet
