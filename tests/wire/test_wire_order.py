"""Orders in a message's data, and what may be relied on in a report."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loom.wire.errors import BadInput
from loom.wire.order import ROLE_OF_KIND, Order, decode, report_fault, to_json

texts = st.text(max_size=10)
orders = st.builds(
    Order,
    st.sampled_from(sorted(ROLE_OF_KIND)),
    texts,
    st.lists(texts, max_size=2).map(tuple),
    texts,
    texts.filter(bool),
    payload=st.dictionaries(texts, st.integers()),
)
anything = st.recursive(
    st.none() | st.booleans() | st.integers() | texts,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(texts, inner, max_size=2),
    max_leaves=4,
)


@given(orders)
def test_an_order_is_read_as_it_was_written(order: Order):
    assert decode(order.kind, to_json(order)) == order
    assert order.role == ROLE_OF_KIND[order.kind]


@given(
    st.sampled_from([*ROLE_OF_KIND, "", "x"]),
    st.dictionaries(st.sampled_from(["model", "tools", "workspace", "cwd", "payload"]), anything),
)
@settings(max_examples=200, derandomize=True)
def test_what_is_no_order_is_bad_input_and_nothing_else(kind: str, data: dict[str, Any]):
    try:
        order = decode(kind, data)
    except BadInput as error:
        assert error.kind == "bad_order"
    else:
        assert order.cwd and isinstance(order.payload, dict)


@pytest.mark.parametrize("data", [{}, {"payload": []}, {"payload": {}, "tools": "x"}, {"payload": {}, "tools": [1]},
                                  {"payload": {}, "model": 1}, {"payload": {}, "cwd": None}])  # fmt: skip
def test_an_order_has_a_payload_and_fields_of_their_types(data: dict[str, Any]):
    with pytest.raises(BadInput):
        decode("plan", data)


@given(st.sampled_from([*ROLE_OF_KIND, "other"]), st.dictionaries(st.sampled_from(
    ["base", "files", "status", "reason", "summary", "failed_calls", "passed", "checks", "findings", "changes", "diff",
     "confidence", "inconclusive", "why", "conflicts", "written", "plan", "unusable"]), anything))  # fmt: skip
@settings(max_examples=300, derandomize=True)
def test_any_report_has_a_fault_in_words_or_none(kind: str, data: dict[str, Any]):
    assert isinstance(report_fault(kind, data), str)


def test_a_digest_is_no_path():
    for bad in ("", "../../etc/passwd", "0" * 63, "0" * 65, "A" * 64, "0" * 64 + "\n"):
        assert "'base'" in report_fault("snapshot", {"base": bad, "files": "0" * 64})
    assert report_fault("snapshot", {"base": "a" * 64, "files": "0" * 64}) == ""
