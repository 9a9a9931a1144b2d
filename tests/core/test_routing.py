"""Where a message from an outbox goes."""

from __future__ import annotations

import pytest

from loom.core.routing import decode, encode, hops, read, share_of, targets
from loom.wire.errors import Config
from loom.wire.jsontext import loads_object
from loom.wire.message import Message
from loom.wire.weave import Route


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
    ({"v": 1, "routes": [{"from": "a", "to": "b", "pipe": 1}]}, "route 1 has one of"),
    ({"v": 1, "routes": [{"from": "a", "to": "b", "pipe": "P!"}]}, "route 1 has a pipe and a name"),
    ({"v": 1, "routes": [{"from": "a", "to": "b"}, {"from": "b", "to": "a"}]}, "circular route detected: a → b → a"),
])  # fmt: skip
def test_what_is_no_list_of_routes_names_the_file(raw: dict[str, object], words: str):
    with pytest.raises(Config, match=words) as told:
        decode(raw, "here/routes.json")
    assert "here/routes.json" in str(told.value)


def test_a_pipe_lies_between():
    assert hops([Route("a", "b", "p"), Route("a", "c")]) == {"a": ["p~a→b", "c"], "p~a→b": ["b"]}


def test_replicas_share_one_instance_on_either_side():
    routes = [Route(f"w-{n}", f"v-{m}", "p", "w", "v") for n in (1, 2) for m in (1, 2)]
    assert hops(routes) == {"w-1": ["p~w→v"], "w-2": ["p~w→v"], "p~w→v": [("v-1", "v-2")]}


def test_of_a_group_each_message_goes_to_one_and_always_to_the_same():
    group = ("w-1", "w-2", "w-3")
    routes = hops([Route("a", name, share="w") for name in group])
    ids = [f"{n:026d}" for n in range(300)]
    found = {one: targets(routes, Message(one, "a", 1, "hi")) for one in ids}
    assert all(len(names) == 1 and names == [share_of(group, one)] for one, names in found.items())
    shares = [sum(names == [name] for names in found.values()) for name in group]
    assert min(shares) > 60, shares


def test_a_smaller_group_moves_only_what_the_one_that_left_had():
    group = ("w-1", "w-2", "w-3")
    ids = [f"{n:026d}" for n in range(300)]
    moved = [one for one in ids if share_of(group, one) != share_of(group[:2], one)]
    assert all(share_of(group, one) == "w-3" for one in moved)


def test_routes_are_written_as_they_are_read():
    routes = (Route("a", "b"), Route("a", "w-1", "p", "", "w", "mine"), Route("w-1", "c", "", "w"))
    assert read(loads_object(encode(routes)), "routes.json") == routes
    assert read(loads_object(encode(())), "routes.json") == ()
