"""goal.md: what was asked comes back to the letter, and a file that is no goal is refused with its name."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from loom.wire.errors import Config
from loom.wire.goal import GoalSpec, Limits, decode, encode, from_json, to_json

MODELS = {"planner": "a", "executor": "b", "verifier": "c"}
chars = st.characters(exclude_categories=["Cs"], exclude_characters="\x00")
goal_texts = st.text(chars, max_size=80) | st.lists(
    st.sampled_from(["---", "--- ", "\n", "\r", "\r\n", " ", "a", "# b", "{", "}", "\u2028", "..."]), max_size=8
).map("".join)
specs = st.builds(
    GoalSpec,
    id=st.just("20260101-a-b"),
    text=goal_texts,
    by=st.text(chars, max_size=20),
    created_ms=st.integers(0, 2**50),
    models=st.dictionaries(st.sampled_from(["executor-2", "executor-3"]), st.text(chars, max_size=9)).map(
        lambda more: {**MODELS, **more}
    ),
    source=st.text(chars, max_size=30),
    land=st.booleans(),
    umask=st.integers(0, 0o777),
    cwd=st.text(chars, max_size=30),
    limits=st.builds(Limits, max_attempts=st.integers(1, 9), min_confidence=st.floats(0, 1)),
)


def spec(text: str = "Do it.") -> GoalSpec:
    return GoalSpec("20260101-a-b", text, "ada", 1, MODELS)


@given(specs)
@settings(max_examples=200, derandomize=True)
@example(spec("---\n---\n"))
@example(spec("\n\na\n\n"))
@example(spec("a\r\nb\r"))
@example(spec(""))
def test_a_goal_is_read_as_it_was_written(goal: GoalSpec):
    assert decode(encode(goal), "goal.md") == goal
    assert from_json(json.loads(json.dumps(to_json(goal)))) == goal


def test_people_can_read_it_and_yaml_can_too():
    import yaml

    data = encode(spec("Do it.\n---\nWell."))
    front, body = data.decode().removeprefix("---\n").split("\n---\n\n", 1)
    assert yaml.safe_load(front)["limits"]["max_attempts"] == 4 and body == "Do it.\n---\nWell.\n"


def test_a_goal_whose_last_line_break_an_editor_took_loses_nothing_else():
    assert decode(encode(spec()).rstrip(b"\n"), "goal.md").text == "Do it."


@given(st.binary(max_size=80) | st.text(alphabet='-\n{}":, abc', max_size=60).map(str.encode))
@settings(max_examples=200, derandomize=True)
def test_what_is_no_goal_is_refused_with_the_name_of_the_file(data: bytes):
    with pytest.raises(Config, match=r"here/goal\.md is not a goal"):
        decode(data, "here/goal.md")


@pytest.mark.parametrize("change", [
    {"v": 2}, {"v": None}, {"more": 1}, {"id": 7}, {"text": None}, {"by": ["x"]}, {"created_ms": "now"},
    {"land": "yes"},
    {"umask": "022"}, {"umask": True}, {"source": None}, {"models": {}}, {"models": 5},
    {"models": {**MODELS, "planner": 1}},
    {"models": {**MODELS, "executor-2": None}}, {"limits": None}, {"limits": {"max_subtasks": "many"}},
    {"limits": {"max_replans": 1.5}}, {"limits": {"min_confidence": True}}, {"limits": {"more": 1}},
    {"limits": {"order_timeout_s": None}},
])  # fmt: skip
def test_a_field_of_the_wrong_type_is_found_when_it_is_read_and_not_when_it_is_used(change: dict[str, Any]):
    with pytest.raises((KeyError, TypeError, ValueError)):
        from_json({**to_json(spec()), **change})


@pytest.mark.parametrize("name", ["v", "id", "by", "created_ms", "models", "limits"])
def test_a_missing_field_is_found_too(name: str):
    raw = to_json(spec())
    del raw[name]
    with pytest.raises((KeyError, TypeError, ValueError)):
        from_json(raw)
