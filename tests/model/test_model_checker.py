"""The model checker itself: it finds races, kills, dead ends and endless loops where they are, and only there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from model_checker import Fault, Files, World, explore


def _fine(files: Files, kills: Mapping[str, int] | None = None) -> str:
    return ""


def _world(processes: Mapping[str, tuple[Any, ...]], kills: int = 0, at_rest: Any = _fine) -> World:
    return World("small", processes, kills, tuple(processes), _fine, at_rest)


def counts(f: Fault) -> Any:
    seen = yield ("read", "total")
    yield ("replace", "total", (seen or 0) + 1)


def locked(f: Fault) -> Any:
    yield ("lock", "x/lock")
    seen = yield ("read", "total")
    yield ("replace", "total", (seen or 0) + 1)
    yield ("unlock", "x/lock")


def _two(files: Files) -> str:
    return "" if files["total"] == 2 else f"the total is {files['total']}"


def test_a_lost_update_is_found_with_its_shortest_trace():
    found = explore(_world({"one": (counts,), "other": (counts,)}, at_rest=_two))
    assert found.wrong == "comes to rest: the total is 1"
    assert len(found.trace) == 4


def test_a_lock_prevents_it_until_somebody_is_killed_in_between():
    assert not explore(_world({"one": (locked,), "other": (locked,)}, at_rest=_two)).wrong
    killed = explore(_world({"one": (locked,), "other": (locked,)}, kills=1, at_rest=_two))
    assert "the total is 3" in killed.wrong
    assert sum("is killed" in line for line in killed.trace) == 1


def waits(f: Fault, mine: str, other: str) -> Any:
    yield ("lock", f"{mine}/lock")
    yield ("lock", f"{other}/lock")
    yield ("note", f"{mine}/done", True)
    yield ("unlock", f"{other}/lock")
    yield ("unlock", f"{mine}/lock")


def test_a_deadlock_is_a_state_of_rest_that_is_objected_to():
    def done(files: Files) -> str:
        return "" if {"a/done", "b/done"} <= set(files) else "somebody waits for ever"

    found = explore(_world({"one": (waits, "a", "b"), "other": (waits, "b", "a")}, at_rest=done))
    assert found.wrong == "comes to rest: somebody waits for ever"


def polls(f: Fault) -> Any:
    if (yield ("exists", "given")):
        return None
    return (polls,)


def gives(f: Fault) -> Any:
    if (yield ("exists", "asked")):
        yield ("note", "given", True)


def asks(f: Fault) -> Any:
    yield ("note", "asked", True)


def test_an_endless_loop_is_found_only_where_there_is_no_way_out():
    assert not explore(_world({"polls": (polls,), "gives": (asks_and_gives,)})).wrong
    found = explore(_world({"polls": (polls,), "gives": (gives,), "asks": (asks,)}))
    assert found.wrong == "never comes to rest from here on"


def asks_and_gives(f: Fault) -> Any:
    yield from asks(f)
    yield from gives(f)


@pytest.mark.parametrize("reduced", [True, False])
def test_what_nobody_else_looks_at_is_followed_in_one_order_only(reduced: bool):
    def alone(f: Fault, mine: str) -> Any:
        for number in range(4):
            yield ("replace", f"{mine}/{number}", True)

    world = _world({name: (alone, name) for name in "abc"})
    assert explore(world, reduced=reduced).states == (13 if reduced else 125)
