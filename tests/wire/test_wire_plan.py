"""A plan as planners write it: read with its faults named, never with an exception; and the paths it may name."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loom.wire.plan import Plan, Subtask, decode, is_workspace_path, subtask_to_json, to_json

anything = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 5) | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
FIELDS = [
    "id", "title", "instruction", "description", "depends_on", "acceptance", "deliverables", "reads", "tier", "level",
    "critical", "synthesis", "gate", "role",
]  # fmt: skip
raw_subtasks = st.dictionaries(st.sampled_from(FIELDS), anything | st.just("a"), max_size=14)


@given(anything | st.fixed_dictionaries({"subtasks": anything | st.lists(anything | raw_subtasks, max_size=3)}))
@settings(max_examples=300, derandomize=True, deadline=None)
def test_anything_is_a_plan_or_has_faults_and_a_plan_is_written_as_it_is_read(raw: Any):
    plan, faults = decode(raw)
    assert (plan is None) == bool(faults)
    assert all(isinstance(f, str) and len(f) < 300 for f in faults)
    if plan is not None:
        assert decode(json.loads(json.dumps(to_json(plan)))) == (plan, [])
        for s in plan.subtasks:
            assert s.title.strip() and s.instruction.strip() and 1 <= s.tier <= 3 and 1 <= s.level <= 2
            assert all(is_workspace_path(p) for p in (*s.deliverables, *s.reads))


def one(**fields: Any) -> tuple[Subtask | None, list[str]]:
    plan, faults = decode({"subtasks": [{"id": "a", "instruction": "do it", **fields}]})
    return (plan.subtasks[0] if plan else None), faults


@pytest.mark.parametrize("fields, words", [
    ({"id": "A"}, "lower-case"), ({"id": "a/b"}, "lower-case"), ({"id": ""}, "lower-case"), ({"id": 1}, "lower-case"),
    ({"id": "a" * 65}, "at most 64"), ({"instruction": " \n"}, "`instruction` is missing"),
    ({"instruction": 5}, "`instruction` is missing"), ({"depends_on": [1]}, "`depends_on` is not a list of strings"),
    ({"deliverables": {"a": 1}}, "`deliverables` is not a list"), ({"tier": 0}, "from 1 to 3"),
    ({"tier": 4}, "from 1 to 3"),
    ({"tier": True}, "whole number"), ({"tier": 1.0}, "whole number"), ({"tier": "1"}, "whole number"),
    ({"level": 3}, "from 1 to 2"), ({"level": 0}, "from 1 to 2"), ({"gate": True}, "`gate` is not available"),
    ({"deliverables": ["../a"]}, "not a path inside the workspace"), ({"reads": ["/etc/passwd"]}, "not a path inside"),
])  # fmt: skip
def test_what_is_wrong_with_a_subtask_is_said(fields: dict[str, Any], words: str):
    found, faults = one(**fields)
    assert found is None and words in faults[0]


def test_all_faults_are_named():
    assert len(one(tier=9, level=9, reads=["..", "/"], acceptance=7)[1]) == 5


def test_what_is_missing_has_a_default():
    found, _ = one()
    assert found == Subtask("a", "do it", "do it")
    assert one(title=" ", instruction="\n Do it.\nThen more.")[0] == Subtask("a", "Do it.", "\n Do it.\nThen more.")
    assert one(instruction=None, description="x")[0] == Subtask("a", "x", "x")
    assert one(gate=None, role="executor", unknown=1)[0] == Subtask("a", "do it", "do it")


def test_lists_may_be_single_words_and_repeat_themselves():
    found, _ = one(depends_on="b", reads=["x", "x", "./y"], deliverables=["d//", "e/"])
    assert found is not None
    assert (found.depends_on, found.reads, found.deliverables) == (("b",), ("x", "y"), ("d/", "e/"))


def test_only_a_degraded_plan_says_so():
    assert decode({"subtasks": [{"id": "a", "instruction": "x"}], "degraded": "yes"})[0] == Plan(
        (Subtask("a", "x", "x"),), degraded=False
    )
    plan = Plan((Subtask("a", "x", "x"),), degraded=True)
    assert decode(to_json(plan)) == (plan, [])


@pytest.mark.parametrize(
    "path", ["a", "a/b", "a/", ".github/x", "a b", "é", "..a", "a..", "-x", "a" * 255, ".gitignore"]
)
def test_a_path_inside(path: str):
    assert is_workspace_path(path)


@pytest.mark.parametrize("path", [
    "", "/", "/a", ".", "..", "./", "a//b", "a//", "a/../b", "a/..", "a/.", ".git", ".git/config", "a/.git/x", "a\nb",
    "a\x00", "a\u2028b", "a\x7f", "\ud800", "a" * 256, "é" * 128, "a/" * 501,
])  # fmt: skip
def test_a_path_that_leaves_or_means_something_else(path: str):
    assert not is_workspace_path(path)


def test_fields_of_a_subtask_are_all_written():
    subtask = Subtask("a", "t", "i", ("b",), ("c",), ("d/",), ("e",), 3, 1, True, True)
    assert decode({"subtasks": [subtask_to_json(subtask)]})[0] == Plan((subtask,))
