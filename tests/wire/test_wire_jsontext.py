"""JSON in both directions: nothing but Malformed on the way in, the same values from both encoders on the way out."""

from __future__ import annotations

import dataclasses
import datetime
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loom.wire import jsontext
from loom.wire.jsontext import MAX_DEPTH, Malformed, dumps, loads, loads_object, too_deep

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | texts
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4), max_leaves=20
)


@pytest.fixture(params=["json", "orjson"], autouse=True)
def encoder(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(jsontext, "_fast", None)
    if request.param == "orjson":
        jsontext.use_orjson()
    return str(request.param)


def both(value: Any) -> list[bytes | type[Exception]]:
    """What each encoder makes of a value: bytes or the kind of its refusal."""
    results: list[bytes | type[Exception]] = []
    before = jsontext._fast
    try:
        for prepare in (lambda: setattr(jsontext, "_fast", None), jsontext.use_orjson):
            prepare()
            try:
                results.append(dumps(value))
            except (TypeError, ValueError) as error:
                results.append(TypeError if isinstance(error, TypeError) else ValueError)
    finally:
        jsontext._fast = before
    return results


@given(st.binary(max_size=200))
def test_any_bytes_give_a_value_or_malformed(data: bytes):
    try:
        value = loads(data)
    except Malformed:
        return
    assert loads(dumps(value)) == value


@given(st.text(alphabet='{}[]",:\\u0123dDtruefalsn-+.eE \n\x00', max_size=60))
def test_what_looks_like_json_gives_a_value_or_malformed(text: str):
    try:
        value = loads(text.encode())
    except Malformed:
        return
    assert loads(dumps(value)) == value


@given(values)
def test_what_is_written_is_read_back(value: Any):
    assert loads(dumps(value)) == value


@given(values)
def test_both_encoders_write_the_same_values(value: Any):
    plain, fast = both(value)
    assert isinstance(plain, bytes) and isinstance(fast, bytes)
    assert json.loads(plain) == json.loads(fast)
    assert repr(json.loads(plain)) == repr(json.loads(fast))


@dataclasses.dataclass
class Record:
    text: str


@pytest.mark.parametrize(
    "value, refusal",
    [
        (float("nan"), ValueError),
        ([1, {"a": float("inf")}], ValueError),
        ({"a": None, "b": float("-inf")}, ValueError),
        ("\ud800", ValueError),
        ({"\udfff": 1}, ValueError),
        (Record("a"), TypeError),
        (datetime.datetime(2026, 1, 1), TypeError),
        (b"bytes", TypeError),
        ({1, 2}, TypeError),
    ],
)
def test_both_encoders_refuse_the_same(value: Any, refusal: type[Exception]):
    assert both(value) == [refusal, refusal]


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize("depth", [300, 100_000])
def test_what_nests_too_deep_to_be_written_is_a_value_error_or_written(depth: int):
    for result in both(nested(depth)):
        assert result is ValueError or isinstance(result, bytes)


@pytest.mark.parametrize("number", [2**53 + 1, 2**63, 2**64, -(2**64), 10**300, 10**4000])
def test_whole_numbers_of_any_size_come_back_as_they_were(number: int):
    assert loads(dumps({"n": number}))["n"] == number
    assert loads(str(number).encode()) == number


@pytest.mark.parametrize(
    "text",
    [
        "NaN", "Infinity", "-Infinity", "[NaN]", "1e999", "[-1e999]", "1" * 5000,
        "", " ", "{", "]", "{'a':1}", '{"a":1,}', "[1,]", "01", "+1", ".5", "1.", '"\n"', "nul", "1 2",
        '"\\ud800"', '["\\udc00\\ud800"]', '{"\\ud83d":1}', "\ufeff{}", "/*c*/1", '"\\x41"',
    ],
)  # fmt: skip
def test_what_is_no_strict_json_is_malformed(text: str):
    with pytest.raises(Malformed):
        loads(text.encode())


@pytest.mark.parametrize("text", ['{"a":1,"a":1}', '[{"b":{"a":1,"\\u0061":2}}]', '{"a":{},"b":1,"a":{}}'])
def test_a_name_that_stands_twice_is_refused_where_names_are_unique(text: str):
    with pytest.raises(Malformed, match="the name 'a' stands twice"):
        loads(text.encode(), unique=True)
    loads(text.encode())  # elsewhere the last one counts


@pytest.mark.parametrize("data", [b"\xff", b'"\xc3"', b'"\xed\xa0\x80"', b'"\xf4\x90\x80\x80"', b"\xef\xbb\xbf{}"])
def test_what_is_no_utf8_is_malformed(data: bytes):
    with pytest.raises(Malformed):
        loads(data)


def test_a_pair_of_surrogate_escapes_is_one_character():
    assert loads(b'"\\ud83d\\ude00"') == "😀"


@pytest.mark.parametrize("opening, closing", [("[", "]"), ('{"a":', "}")])
def test_depth_is_limited_and_the_limit_itself_is_allowed(opening: str, closing: str):
    def at(depth: int) -> bytes:
        return f"{opening * depth}1{closing * depth}".encode()

    loads(at(MAX_DEPTH))
    assert not too_deep(at(MAX_DEPTH))
    for depth in (MAX_DEPTH + 1, 1000, 200_000):
        assert too_deep(at(depth))
        with pytest.raises(Malformed, match="deeper than 64"):
            loads(at(depth))
    with pytest.raises(Malformed):
        loads((opening * 200_000).encode())


def test_brackets_in_strings_do_not_count_as_depth():
    text = '["' + "[{" * 500 + '\\"' + "[" * 500 + '"]'
    assert not too_deep(text.encode())
    assert len(loads(text.encode())[0]) == 1501


@pytest.mark.parametrize("text, kind", [("[]", "an array"), ('"a"', "a string"), ("1", "a number"), ("null", "null"),
                                        ("true", "a boolean"), ("1.5", "a number")])  # fmt: skip
def test_what_is_no_object_is_named(text: str, kind: str):
    with pytest.raises(Malformed, match=kind):
        loads_object(text.encode())


@given(values)
def test_too_deep_agrees_with_loads(value: Any):
    data = dumps(value)
    for limit in range(5):
        fails = False
        try:
            loads(data, limit)
        except Malformed:
            fails = True
        assert fails == too_deep(data, limit)
