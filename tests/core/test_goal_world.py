"""Goals under every kind of luck: chance decides who answers what, when, twice or never, and who is killed where."""

from __future__ import annotations

from typing import Any

import pytest
from goal_sim import INCONCLUSIVE, TIMEOUT_US, World, spec, subtask, verdict
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from loom.core.goal.state import OrderState

PHASES = (Phase.generate, Phase.shrink)  # explaining a failure takes minutes here
NAMES = ("a", "b", "c", "d", "e")
TIERS = {"executor-2": "m/e2", "executor-3": "m/e2"}


@st.composite
def subtasks(draw: st.DrawFn, finished: tuple[str, ...] = ()) -> list[dict[str, Any]]:
    """A plan that can be accepted. Some paths are below a directory of another subtask: that plan is refused."""
    names = draw(st.lists(st.sampled_from(NAMES), min_size=1, max_size=5, unique=True))
    known = list(finished)
    found = []
    for name in names:
        depends_on = draw(st.lists(st.sampled_from(known), max_size=2, unique=True)) if known else []
        found.append(
            subtask(
                name,
                *depends_on,
                deliverables=draw(st.sampled_from([[f"{name}.md"], [], [f"{name}/"], [f"{name}.md", f"{name}.csv"]])),
                level=draw(st.sampled_from([1, 2, 2])),
                tier=draw(st.sampled_from([1, 1, 2, 3])),
                critical=draw(st.integers(0, 9)) == 0,
            )
        )
        known.append(name)
    found[-1]["synthesis"] = draw(st.booleans())
    return found


def bad_plans() -> st.SearchStrategy[dict[str, Any]]:
    return st.sampled_from(
        [
            {"unusable": "there is no JSON"},
            {"plan": {"subtasks": []}},
            {"plan": {"subtasks": [subtask("a", "b"), subtask("b", "a")]}},
            {"plan": {"subtasks": [subtask("a", "ghost")]}},
            {"plan": {"subtasks": [subtask("a", deliverables=["d/"]), subtask("b", deliverables=["d/x"])]}},
            {"plan": {"subtasks": [subtask("a", level=3)]}},
            {"plan": 7},
        ]
    )


ERRORS = st.fixed_dictionaries(
    {
        "message": st.sampled_from(["it broke", "file /tmp/x7 is gone", "out of luck"]),
        "exit_status": st.sampled_from([70, 70, 75, 124, 78, None]),
    }
)


@st.composite
def replies(draw: st.DrawFn, world: World, order: OrderState) -> tuple[dict[str, Any] | None, dict[str, Any]]:
    """(data, {}) or (None, error): well in most cases."""
    luck = draw(st.integers(0, 9))
    if order.kind == "snapshot" and luck < 9:
        return world.well(order), {}
    if luck == 9 or (luck == 8 and order.kind != "plan"):
        return None, draw(ERRORS)
    if luck == 7:
        return draw(st.sampled_from([{}, {"status": "blocked"}, {"passed": True, "confidence": "high"}])), {}
    match order.kind:
        case "plan" if luck >= 5:
            return draw(bad_plans()), {}
        case "plan":
            finished = tuple(world.state.finished())
            return {"plan": {"subtasks": draw(subtasks(finished))}}, {}
        case "execute" if luck == 6:
            return {"status": "blocked", "reason": "a file is missing"}, {}
        case "inspect" if luck >= 5:
            return world.badly_checked(order, draw(st.sampled_from(["the file is empty", "row 3 has 4 columns"]))), {}
        case "verify" if luck >= 4:
            lie = verdict(True, findings=verdict(False)["findings"])
            return draw(st.sampled_from([verdict(False), verdict(False, "no source"), INCONCLUSIVE, lie])), {}
        case "apply" | "land" if luck == 6:
            return {"written": [], "conflicts": ["a.md"]}, {}
    return world.well(order), {}


def goals() -> st.SearchStrategy[Any]:
    return st.builds(
        spec,
        max_attempts=st.integers(1, 4),
        max_replans=st.integers(0, 2),
        source=st.sampled_from(["", "/work"]),
        land=st.booleans(),
        models=st.sampled_from(
            [{"planner": "p", "executor": "e", "verifier": "v", **more} for more in ({}, TIERS, {"executor-3": "m/e3"})]
        ),
    )


def pools() -> st.SearchStrategy[dict[str, int]]:
    return st.fixed_dictionaries(
        {
            "planner": st.just(1),
            "executor": st.integers(1, 3),
            "verifier": st.integers(1, 2),
            "keeper": st.integers(1, 2),
        }
    )


class GoalMachine(RuleBasedStateMachine):
    """Any order of answers, deadlines, controls, kills and restarts. The monitor of the world watches each event."""

    @initialize(goal=goals(), pools=pools())
    def begin(self, goal: Any, pools: dict[str, int]) -> None:
        self.world = World(goal, pools)
        self.gone: list[OrderState] = []
        self.world.settle()

    @precondition(lambda self: self.world.open())
    @rule(data=st.data())
    def somebody_answers(self, data: st.DataObject) -> None:
        order = data.draw(st.sampled_from(self.world.open()))
        self._reply(order, data)
        self.world.settle()

    @precondition(lambda self: self.world.open())
    @rule(data=st.data(), crash_after=st.integers(0, 4))
    def somebody_answers_and_the_router_is_killed(self, data: st.DataObject, crash_after: int) -> None:
        self._reply(data.draw(st.sampled_from(self.world.open())), data)
        self.world.settle(crash_after)

    @precondition(lambda self: len(self.world.open()) > 1)
    @rule(data=st.data())
    def all_answer_at_once(self, data: st.DataObject) -> None:
        for order in data.draw(st.permutations(self.world.open())):
            self._reply(order, data)
        self.world.settle()

    def _reply(self, order: OrderState, data: st.DataObject) -> None:
        said, error = data.draw(replies(self.world, order))
        self.world.report(order, said, **error)
        self.gone.append(order)

    @precondition(lambda self: self.gone)
    @rule(data=st.data())
    def a_reply_arrives_again(self, data: st.DataObject) -> None:
        order = data.draw(st.sampled_from(self.gone))
        before = self.world.state
        self.world.report(order, self.world.well(order))
        after = self.world.state
        assert (before.subtasks, before.report, before.status) == (after.subtasks, after.report, after.status)
        self.world.settle()

    @rule()
    def time_passes_and_nobody_answers(self) -> None:
        self.gone.extend(self.world.open())
        self.world.now_us += TIMEOUT_US + 1
        self.world.settle()

    @rule(verb=st.sampled_from(["paused", "resumed", "resumed", "landing"]))
    def somebody_asks(self, verb: str) -> None:
        status = self.world.state.status
        taken = self.world.ask(verb)
        assert taken == (
            (verb, status) in (("paused", "running"), ("resumed", "paused"))
            or (verb == "landing" and self.world.state.landing == "wanted")
        )
        self.world.settle()

    @precondition(lambda self: len(self.world.events) > 25)
    @rule()
    def somebody_cancels(self) -> None:
        ended = self.world.state.ended
        assert self.world.ask("cancelled") is not ended
        self.world.settle()
        assert self.world.state.ended

    @rule()
    def the_router_starts_anew(self) -> None:
        self.world.restart()

    @invariant()
    def a_state_is_its_events(self) -> None:
        if hasattr(self, "world"):
            assert self.world.state.seq == len(self.world.events)

    def teardown(self) -> None:
        """From wherever it is, a goal ends when everybody does well."""
        if hasattr(self, "world") and not self.world.failed:
            self.world.finish()
            self.world.restart()
            assert self.world.state.quiet, self.world.state.status


GoalMachine.TestCase.settings = settings(
    max_examples=150, stateful_step_count=40, deadline=None, derandomize=True, phases=PHASES
)
TestGoalMachine = pytest.mark.filterwarnings("ignore")(GoalMachine.TestCase)


@given(st.data(), goals(), pools())
@settings(max_examples=200, deadline=None, derandomize=True, phases=PHASES)
def test_every_goal_ends_and_every_kill_is_survived(data: st.DataObject, goal: Any, pools: dict[str, int]) -> None:
    world = World(goal, pools)
    world.settle(data.draw(st.integers(0, 2)))
    while orders := world.open():
        order = data.draw(st.sampled_from(orders))
        said, error = data.draw(replies(world, order))
        world.report(order, said, **error)
        world.settle(data.draw(st.none() | st.integers(0, 3)))
    world.restart()
    assert world.state.quiet
    assert world.state.status == "completed" or world.state.reason


@given(st.data(), goals(), subtasks())
@settings(max_examples=60, deadline=None, derandomize=True, phases=PHASES)
def test_any_acceptable_plan_is_completed_when_all_do_well(
    data: st.DataObject, goal: Any, plan: list[dict[str, Any]]
) -> None:
    world = World(goal)
    world.plan(*plan)
    while orders := world.open():
        order = data.draw(st.sampled_from(orders))
        world.report(order, world.well(order))
        world.settle()
    assert world.state.status == "completed"
    assert len(world.of("subtask.applied")) == len(plan)
