"""When a turn gets nowhere, and when it only looks as if it did."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loom.core.rounds import is_barren, period
from loom.wire.chat import ChatMessage, ChatReply, ChatRequest, ToolCall, ToolSpec
from loom.wire.turn import Step

ASKED = ChatRequest("m", (ChatMessage("user", "Do it."),))
TOOLS = {
    "read": ToolSpec("read", "reads", {}, idempotent=True),
    "write": ToolSpec("write", "writes", {}, writes=True),
}
OK = {"status": "ok", "result": 1}


def step(name: str = "read", result: dict[str, Any] | None = None, **given: Any) -> Step:
    call = ToolCall("1", name, given, "")
    return Step(ASKED, ChatReply("", (call,), stop="tool_calls"), {"1": call}, {"1": OK if result is None else result})


A, B, C = step(path="a"), step(path="b"), step(path="c")


@pytest.mark.parametrize(
    "steps, length",
    [
        ([A, A, A], 1),
        ([A, A], 0),
        ([B, A, A, A], 1),
        ([A, B] * 3, 2),
        ([B, A, B, A, B, A, B], 2),
        ([A, B, C] * 3, 3),
        ([A, B, C] * 2, 0),
        ([A, A, B] * 3, 3),
        ([], 0),
    ],
)
def test_after_how_many_steps_it_begins_again(steps: list[Step], length: int) -> None:
    assert period(steps, TOOLS) == length


@pytest.mark.parametrize(
    "one, other, same",
    [
        (step(path="a b"), step(path=" A  B\n"), True),
        (step(path="a", limit=1), step(limit=1, path="a"), True),
        (step(path="a", deep={"x": ["Y"]}), step(path="a", deep={"x": ["y"]}), True),
        (step(flag=True), step(flag=1), False),
        (step("write", text="a b"), step("write", text="a  b"), True),
        (step("write", text="readme"), step("write", text="README"), False),
        (step("unknown", path="a"), step("unknown", path="A"), False),
        (step(path="a"), step(path="a", result={"status": "ok", "result": 2}), False),
        (step(path="a", result={"status": "error", "error": "1"}), step(path="a", result={"status": "error"}), True),
        (step("read", path="a"), step("write", path="a"), False),
    ],
)
def test_what_says_the_same_in_other_words(one: Step, other: Step, same: bool) -> None:
    assert (period([one, other, one], TOOLS) == 1) == same


def test_an_artifact_is_a_result_that_was_not_there_before() -> None:
    failed = {"status": "error", "error": "no"}
    assert is_barren([A, B, A, B, B, A], 4, TOOLS)
    assert not is_barren([A, B, A, B, B, C], 4, TOOLS)
    assert is_barren([step(path=str(n), result=failed) for n in range(4)], 4, TOOLS)
    assert not is_barren([step(path="a", result={"status": "ok", "result": n}) for n in range(9)], 4, TOOLS)
    assert not is_barren([A, A, A], 4, TOOLS)


STEPS = st.lists(st.builds(lambda name, n: step(name, path=str(n)), st.sampled_from(sorted(TOOLS)), st.integers(0, 4)))


@given(STEPS)
def test_who_goes_round_finds_nothing_new(steps):
    if length := period(steps, TOOLS):
        assert is_barren(steps, 2 * length, TOOLS)


@given(STEPS)
def test_something_new_is_neither(steps):
    fresh = [*steps, step("write", path="never seen before")]
    assert period(fresh, TOOLS) == 0 and not is_barren(fresh, 1, TOOLS)
