"""Where a message from an outbox goes."""

from __future__ import annotations

import pytest

from loom.core.routing import decode, targets
from loom.wire.errors import Config
from loom.wire.message import Message


def message(**fields: str) -> Message:
    return Message("ID", fields.pop("from_", "a"), 1, "hi", **fields)


@pytest.mark.parametrize("routes, fields, expected", [
    ({}, {}, []),
    ({}, {"to": "b"}, ["b"]),
    ({"a": ["c", "d"]}, {}, ["c", "d"]),
    ({"a": ["c", "d"]}, {"to": "b"}, ["c", "d"]),
    ({"a": ["c", "d", "c"]}, {}, ["c", "d"]),
    ({"x": ["c"]}, {"to": "b"}, ["b"]),
    ({"a": []}, {"to": "b"}, ["b"]),
    ({"a": ["c"]}, {"kind": "plan", "to": "router"}, ["router"]),
    ({"a": ["c"]}, {"kind": "plan"}, []),
])  # fmt: skip
def test_an_answer_goes_to_who_asked_the_rest_where_routes_say(
    routes: dict[str, list[str]], fields: dict[str, str], expected: list[str]
):
    assert targets(routes, message(**fields)) == expected


def test_routes_are_read_in_their_order():
    raw = {"v": 1, "routes": [{"from": "a", "to": "b"}, {"from": "c", "to": "b"}, {"from": "a", "to": "c"}]}
    assert decode(raw, "routes.json") == {"a": ["b", "c"], "c": ["b"]}
    assert decode({"v": 1, "routes": []}, "routes.json") == {}


@pytest.mark.parametrize("raw, words", [
    ({}, "not a list of routes of version 1"),
    ({"v": 2, "routes": []}, "version 1"),
    ({"v": 1, "routes": {}}, "version 1"),
    ({"v": 1, "routes": [{"from": "a", "to": "b"}, {"from": "a"}]}, "route 2 has no"),
    ({"v": 1, "routes": ["a"]}, "route 1 has no"),
    ({"v": 1, "routes": [{"from": 1, "to": "b"}]}, "route 1 has no"),
])  # fmt: skip
def test_what_is_no_list_of_routes_names_the_file(raw: dict[str, object], words: str):
    with pytest.raises(Config, match=words) as told:
        decode(raw, "here/routes.json")
    assert "here/routes.json" in str(told.value)
