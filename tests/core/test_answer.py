"""A model's answer as JSON: found wherever it stands, never guessed."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loom.core import answer
from loom.core.extract import json_values
from loom.core.schema import equal

NUMBER = {"type": "object", "required": ["n"], "properties": {"n": {"type": "integer"}}, "additionalProperties": False}


@pytest.mark.parametrize("text, found", [
    ('{"n": 1}', 1),
    ('\n\n{"n": 1}\n', 1),
    ('```json\n{"n": 1}\n```', 1),
    ('```\n{"n": 1}', 1),
    ('Here you are:\n```json\n{"n": 1}\n```\nAnything else?', 1),
    ('The answer is {"n": 1}.', 1),
    ('As [1] says, {"n": 1,} it is', 1),
    ('{"n": 1} and once more {"n": 1}', 1),
    ('For {"m": 0} it is {"n": 1}', 1),
    ('The form {"n": 0} gives\n```\n{"n": 1}\n```', 1),
    ('```\n{"m": 0}\n``` no: {"n": 1}', 1),
    ('{ {"n": 1}', 1),
    ('[{"n": 1}, {"n": 2}] or {"n": 3}', 3),
])  # fmt: skip
def test_the_value_is_found_in_what_stands_around_it(text: str, found: int):
    assert answer.read(NUMBER, text) == (f'{{"n":{found}}}', [])


@pytest.mark.parametrize("schema, text, found", [
    ({"type": "integer"}, " 42\n", "42"), ({"type": "string"}, '"a b"', '"a b"'), ({"type": "null"}, "null", "null"),
    ({"type": "boolean"}, "True", "true"), ({"type": "array"}, "so: [1, 2]", "[1,2]"), ({}, "```\n7\n```", "7"),
    ({"type": "string"}, '"ü\\n"', '"ü\\n"'), ({"type": "number"}, "1e5", "100000.0"),
])  # fmt: skip
def test_any_type_may_be_asked_for(schema: dict[str, Any], text: str, found: str):
    assert answer.read(schema, text) == (found, [])


@pytest.mark.parametrize("text, fault", [
    ("one", "holds no JSON value"),
    ("", "holds no JSON value"),
    ('{"n": "1"}', "$.n must be of type integer"),
    ('{"n": 1} or {"n": 2}', "2 different JSON values"),
    ('```\n{"n": 1}\n```\n```\n{"n": 2}\n```', "2 different JSON values"),
    ('[{"n": 1}]', "$ must be of type object, not array"),
    ('{"m": [{"n": 1}]}', "lacks the required field 'n'"),
    ('{"n": 1', "holds no JSON value"),
])  # fmt: skip
def test_what_does_not_fit_or_is_not_clear_has_faults(text: str, fault: str):
    found, faults = answer.read(NUMBER, text)
    assert found == "" and fault in faults[0]


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**20), 10**20)
    | st.floats(allow_nan=False, allow_infinity=False)
    | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)
prose = st.text(st.characters(exclude_categories=["Cs"], exclude_characters='{}[]"`'), max_size=30)


@given(values, st.sampled_from([None, 2]), st.booleans())
@settings(max_examples=200, derandomize=True, deadline=None)
def test_a_json_document_is_read_as_it_is(value: Any, indent: int | None, plain: bool):
    found, faults = answer.read({}, json.dumps(value, indent=indent, ensure_ascii=plain))
    assert faults == [] and "\n" not in found and equal(json.loads(found), value)


@given(
    prose, st.dictionaries(texts, values, min_size=1, max_size=3) | st.lists(values, min_size=1), prose, st.booleans()
)
@settings(max_examples=200, derandomize=True, deadline=None)
def test_an_object_or_array_in_prose_is_found(before: str, value: Any, after: str, fenced: bool):
    written = json.dumps(value, ensure_ascii=False)
    frame = f"{before}\n```json\n{written}\n```\n{after}" if fenced else f"{before} {written} {after}"
    found, faults = answer.read({}, frame)
    assert faults == [] and equal(json.loads(found), value)


@given(st.text(st.sampled_from('{}[]",:\\`\n 1a'), max_size=60))
@settings(max_examples=300, derandomize=True, deadline=None)
def test_whatever_the_text_there_is_an_answer_or_a_fault(text: str):
    found, faults = answer.read({"type": "object"}, text)
    assert bool(found) != bool(faults)


def test_looking_for_values_has_an_end():
    for text in ("[" * 300_000, "{" * 300_000, '[1, "' * 60_000, "[1] " * 100_000):
        assert all(len(group) <= 400_000 for group in json_values(text))


def test_the_prompt_and_the_faults_are_told_in_full():
    assert answer.prompt(NUMBER).endswith(json.dumps(NUMBER, separators=(",", ":")))
    said = answer.ask_again(["$.n is 1", "x" * 1000])
    assert said.startswith(answer.AGAIN) and "\n- $.n is 1\n- xxx" in said and len(said) < 600
