"""The JSON object in a model's answer is found wherever it stands, and looking for it never takes long."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from loom.core.extract import json_object, json_objects

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=10,
)
objects = st.builds(lambda rest, value: {**rest, "key": value}, st.dictionaries(texts, values, max_size=3), values)
prose = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="{}"), max_size=40)
written = st.builds(json.dumps, objects, indent=st.sampled_from([None, 2]), ensure_ascii=st.booleans())


@given(prose, objects, prose, st.sampled_from([None, 2]), st.booleans(), st.sampled_from(["%s", "```json\n%s\n```"]))
@settings(max_examples=200, derandomize=True, deadline=None)
@example('He said "', {"key": '"}{'}, "", None, True, "%s")
@example("```\n", {"key": "\n```\n"}, "```", 2, True, "%s")
def test_an_object_in_any_prose_without_braces_is_found_exactly(
    before: str, value: dict[str, Any], after: str, indent: int | None, plain: bool, frame: str
):
    text = frame % json.dumps(value, indent=indent, ensure_ascii=plain).replace("%", "%%") if "%%" in frame else (
        frame.replace("%s", json.dumps(value, indent=indent, ensure_ascii=plain))
    )  # fmt: skip
    assert json_object(before + text + after, "key") == value


@pytest.mark.parametrize("text, found", [
    ('{"key": 1}', 1),
    ('```\n{"key": 1}\n```', 1),
    ('```json   \n{"key": 1}\n   ```', 1),
    ('```json\n{"key": 1}', 1),
    ('{"key": 1} or ```\n{"key": 2}\n```', 2),
    ('first {"key": 1} then {"key": 2}', 1),
    ('{"other": 1} {"key": 2}', 2),
    ('a set {1, 2} and {"key": 2}', 2),
    ('a { alone and {"key": 2}', 2),
    ('one " alone and {"key": 2}', 2),
    ('{"a": {"key": 1}, "key": 2}', 2),
    ('{"key": 1,}', 1),
    ('{"key": [1, 2, ], }', [1, 2]),
    ('{"key": True, "b": None, "c": [False]}', True),
    ('{"key": 1, // why\n "b": 2}', 1),
    ('{"key": "http://x//y", // "quoted" words\n}', "http://x//y"),
    ('{"key": "True, ,} // None",}', "True, ,} // None"),
    ('{"key": "a\nb\tc",}', "a\nb\tc"),
    ('{"key": "a\nb"}', "a\nb"),
    ('{"key": "\\"", }', '"'),
    ('{"key": "}"} }', "}"),
    ('{"key": 1}}}}', 1),
])  # fmt: skip
def test_what_models_make_of_json_is_understood(text: str, found: Any):
    result = json_object(text, "key")
    assert result is not None and result["key"] == found


@pytest.mark.parametrize("text", [
    "", "no JSON", "key", '"key": 1', "[1]", '[{"k": 1}]', '{"key": 1', '{"key": NaN}', "{'key': 1}", '{"key"}',
    '{"outer": {"key": 1}}', '{"a": "key"}', '{"key": 1e999}', '{"key": "\\ud800"}', "{" * 9 + '"key" 1' + "}" * 9,
    '{"key": ' + "[" * 50 + "]" * 50 + "}",
])  # fmt: skip
def test_what_is_no_object_with_that_key_is_none(text: str):
    assert json_object(text, "key") is None


def test_all_objects_are_given_those_in_fences_first():
    text = '{"key": 1} ```\n{"key": 2}\n``` {"x": 0} {"key": {"key": 4}}'
    assert [o["key"] for o in json_objects(text, "key")] == [2, 1, 2, {"key": 4}]


@given(st.text(alphabet='{}[]",:\\`/\nkeyTrue1 \x00\u2028', max_size=200))
@settings(max_examples=300, derandomize=True, deadline=None)
def test_any_text_gives_objects_or_nothing(text: str):
    for found in json_objects(text, "key"):
        assert "key" in found


SIZE = 2 << 20
HOSTILE = {
    "open braces": "{" * SIZE,
    "open braces with the key": "{" * SIZE + '"key": 1}',
    "keys that never close": '{"key": ' * (SIZE // 8),
    "keys that close badly": '{"key": x} ' * (SIZE // 11),
    "a key in every brace": '{"key" {' * (SIZE // 8) + "}" * 1000,
    "pairs": "{}" * (SIZE // 2) + '{"key"',
    "quotes": '{"' * (SIZE // 2) + "key",
    "backslashes": '{"key": "' + "\\" * SIZE,
    "words": '{"key": ' + "True " * (SIZE // 5) + "}",
    "comments": '{"key": ' + "//\n" * (SIZE // 3) + "}",
    "slashes": '{"key": ' + "/" * SIZE + "}",
    "commas": '{"key": ' + ", " * (SIZE // 2) + "}",
    "commas and space": '{"key": 1' + ("," + " " * 1000) * (SIZE // 1001) + "}",
    "space": '{"key":' + " " * SIZE + "}",
    "fences": "```\n" * (SIZE // 4) + "key",
    "fences with braces": '```\n{"key":\n' * (SIZE // 12),
    "ticks": "`" * SIZE + "{key}",
    "lists": '{"key": ' + "[" * SIZE + "}",
    "a long language": "```" + "a" * SIZE + "\n{key}",
    "blanks before a fence": "```\n" + "\n   " * (SIZE // 4) + "{key}",
    "one large object": json.dumps({"key": ["x" * 100] * 15_000}),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_two_megabytes_of_anything_take_seconds_at_most(name: str):
    began = time.process_time()
    found = json_object(HOSTILE[name], "key")
    assert time.process_time() - began < 6
    assert (found is not None) == (name == "one large object")
