"""The one table of settings: what fits a row is taken, everything else is refused with the nearest right word."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loom.wire.chat import Usage
from loom.wire.errors import Config
from loom.wire.provider import Price
from loom.wire.settings import TABLE, check, defaults, flatten, is_group, providers, row_of

anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=4,
)


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row.key)
def test_every_default_fits_its_own_row_and_null_means_it(row: Any):
    key = row.key.replace("*", "x")
    assert row_of(key) == row
    expected = tuple(row.default) if row.type == "str list" else row.default
    assert check(key, row.default, "here") == check(key, None, "here") == expected
    assert not is_group(key) and is_group(key.rpartition(".")[0]) == ("." in key)


@given(st.sampled_from([row.key.replace("*", "x") for row in TABLE]), anything)
@settings(max_examples=300, derandomize=True)
def test_any_value_is_taken_as_its_type_or_refused(key: str, value: Any):
    row = row_of(key)
    assert row is not None
    try:
        found = check(key, value, "here:1")
    except Config as error:
        assert f"here:1: {key} is" in str(error) and len(str(error)) < 400
        return
    types = {"str": str, "int": int, "float": int | float, "bool": bool, "str list": tuple}
    assert isinstance(found, types[row.type]) and (row.type == "bool" or not isinstance(found, bool))
    if row.type in ("int", "float"):
        assert row.least <= found < float("inf")
    assert not row.choices or found in row.choices


@pytest.mark.parametrize("key, value", [
    ("pools.executor", 0), ("pools.executor", "4"), ("pools.executor", 2.0), ("pools.executor", True),
    ("goal.order_timeout", float("inf")), ("goal.order_timeout", float("nan")), ("goal.order_timeout", 0.5),
    ("goal.min_confidence", -0.1), ("gates", "human"), ("gates", False), ("model", 7), ("providers.x.dialect", "soap"),
    ("providers.x.key_command", "cat key"), ("providers.x.key_command", [1]),
])  # fmt: skip
def test_what_does_not_fit_is_refused(key: str, value: Any):
    with pytest.raises(Config, match=rf"here: {re.escape(key)} is "):
        check(key, value, "here")


def test_a_huge_value_is_named_in_a_few_words():
    bomb: list[Any] = ["lol"]
    for _ in range(40):
        bomb = [bomb] * 9
    with pytest.raises(Config) as told:
        check("model", bomb, "here")
    assert len(str(told.value)) < 1000


@pytest.mark.parametrize("key, word", [
    ("modle", "model"), ("pool.executor", "pools.executor"), ("goal.max_subtask", "goal.max_subtasks"),
    ("providers.x.base-url", "providers.*.base_url"),
])  # fmt: skip
def test_an_unknown_key_is_answered_with_the_nearest(key: str, word: str):
    with pytest.raises(Config) as told:
        check(key, 1, "here")
    assert word in str(told.value.hint)


@pytest.mark.parametrize(
    "key", ["", ".", "model.x", "providers", "providers.x", "providers.a.b.key", "zzzzz", "x" * 10**6]
)
def test_what_is_no_key_is_none(key: str):
    assert row_of(key) is None
    with pytest.raises(Config) as told:
        check(key, 1, "here")
    assert len(str(told.value)) < 300


def test_groups_are_what_settings_begin_with():
    assert is_group("models") and is_group("models.tiers") and is_group("providers.anything")
    assert not is_group("model") and not is_group("providers.a.b") and not is_group("x")


def test_nested_mappings_are_dotted_keys():
    assert dict(flatten({"a": {"b": 1, "c": {}}, "d": None})) == {"a.b": 1, "d": None}


def test_providers_by_their_alias():
    found = providers(
        {"model": "x", "providers.a.key": "k", "providers.b.key_command": ("x",), "providers.a.dialect": ""}
    )
    assert set(found) == {"a", "b"} and found["a"].key == "k" and found["b"].key_command == ("x",)


def test_the_page_names_every_setting_with_its_default():
    page = (Path(__file__).parents[2] / "docs" / "settings.md").read_text()
    rows = dict(re.findall(r"^\| `([^`]+)` \|(.*)\|$", page, re.MULTILINE))
    assert list(rows) == [row.key for row in TABLE]
    for row in TABLE:
        assert row.what in rows[row.key]
        if row.type in ("int", "float") or row.default:
            number = isinstance(row.default, int | float)
            assert (f"`{row.default:g}`" if number else f"`{row.default}`") in rows[row.key]
    assert set(defaults()) == {row.key for row in TABLE if "*" not in row.key}


def test_a_provider_has_a_context_and_a_price():
    found = providers({
        "providers.lab.context": 8192, "providers.lab.price.input": 2, "providers.lab.price.output": 10.5,
        "providers.own.price.cached": 0, "providers.plain.base_url": "http://x",
    })  # fmt: skip
    assert (found["lab"].context, found["lab"].price) == (8192, Price(2, 10.5))
    assert found["own"].price == Price(0.0, 0.0, 0)
    assert (found["plain"].context, found["plain"].price) == (None, None)


@pytest.mark.parametrize("price, usd", [(Price(2, 10), 0.0003), (Price(2, 10, 1), 0.00025), (Price(0, 0), 0.0)])
def test_what_tokens_cost(price: Price, usd: float):
    assert price.usd(Usage(100, 10, 50)) == pytest.approx(usd)


@pytest.mark.parametrize("key, value", [
    ("providers.x.context", -1), ("providers.x.context", "8k"), ("providers.x.price", 3),
    ("providers.x.price.input", -1),
    ("providers.x.price.input", "2"), ("providers.x.price.outptu", 1), ("providers.x.price.input", float("nan")),
])  # fmt: skip
def test_a_context_or_a_price_that_is_none_is_refused(key: str, value: Any):
    with pytest.raises(Config, match="here: "):
        check(key, value, "here")
