"""What the operators of a pipe do with each item, what they hold, and that a journal's fold is the state."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loom.core.pipes import MOST_KEYS, Effect, Held, Pending, Ran, State, arrive, asks, due_ms, over, record_of
from loom.wire.errors import Config
from loom.wire.weave import PARAMETERS, Operator, decode_operators, encode_operators

NOW = 1_000_000
COMMAND = Operator("command", {"cmd": "cat", "timeout_s": 30.0})
TAP = Operator("tap", {"label": "x"})
WINDOW = Operator("window", {"size": 3, "timeout_s": 30.0})
BUFFER = Operator("buffer", {"until": "length > 2", "timeout_s": 30.0})
DEDUPE = Operator("dedupe", {"key": ".body"})
THROTTLE = Operator("throttle", {"max": 2, "per_s": 10.0})
ACCUMULATE = Operator("accumulate", {"expr": "1"})
ALL = (COMMAND, TAP, WINDOW, BUFFER, DEDUPE, THROTTLE, ACCUMULATE)


def ok(*lines: str) -> Ran:
    return Ran("ok", lines)


HOLDS_TWO = Held([("a", NOW - 10), ("b", NOW - 5)])


@pytest.mark.parametrize("operator, here, ran, effect", [
    # a command: each line is a message, non-zero drops, what crashed or took too long changes nothing
    (COMMAND, Held(), ok("1", "2"), Effect("change", bodies=("1", "2"))),
    (COMMAND, Held(), ok(), Effect("change")),
    (COMMAND, Held(), Ran("nonzero", detail="exit 1"), Effect("drop", why="exit 1")),
    (COMMAND, Held(), Ran("crashed", detail="boom"), Effect("forward", forward=("n",), why="boom")),
    (COMMAND, Held(), Ran("timeout", detail="late"), Effect("forward", forward=("n",), why="late")),
    (COMMAND, Held(), Ran("flood", detail="much"), Effect("drop", fault="much")),
    (COMMAND, Held(), Ran("missing", detail="none"), Effect("drop", fault="none")),
    (TAP, Held(), None, Effect("forward", forward=("n",))),
    (WINDOW, Held(), None, Effect("hold", hold=True)),
    (WINDOW, HOLDS_TWO, None, Effect("flush", batch=("a", "b", "n"), free=("a", "b"))),
    (BUFFER, HOLDS_TWO, ok("true"), Effect("flush", batch=("a", "b", "n"), free=("a", "b"))),
    (BUFFER, HOLDS_TWO, ok("7"), Effect("flush", batch=("a", "b", "n"), free=("a", "b"))),
    (BUFFER, HOLDS_TWO, ok("null"), Effect("hold", hold=True)),
    (BUFFER, HOLDS_TWO, ok("false"), Effect("hold", hold=True)),
    (BUFFER, HOLDS_TWO, Ran("nonzero", detail="bad"), Effect("hold", hold=True, why="until: bad")),
    (DEDUPE, Held(), ok('"k"'), Effect("forward", forward=("n",), key='"k"')),
    (DEDUPE, Held(seen={'"k"': None}), ok('"k"'), Effect("drop", key='"k"')),
    (DEDUPE, Held(), Ran("nonzero", detail="bad"), Effect("forward", forward=("n",), why="key: bad")),
    (DEDUPE, Held(), ok(), Effect("forward", forward=("n",), why="key: it gave nothing")),
    (THROTTLE, Held(passed_ms=[NOW - 1]), None, Effect("forward", forward=("n",), passed_ms=NOW)),
    (THROTTLE, Held(passed_ms=[NOW - 2, NOW - 1]), None, Effect("hold", hold=True)),
    (THROTTLE, Held(passed_ms=[NOW - 20_000, NOW - 1]), None, Effect("forward", forward=("n",), passed_ms=NOW)),
    (THROTTLE, Held(passed_ms=[NOW + 9, NOW + 9]), None, Effect("forward", forward=("n",), passed_ms=NOW)),
    (THROTTLE, Held([("a", 1)]), None, Effect("hold", hold=True)),  # nobody overtakes
    (ACCUMULATE, Held(), ok("5"), Effect("fold", bodies=("5",))),
    (ACCUMULATE, Held(), Ran("nonzero", detail="bad"), Effect("keep", forward=("n",), why="expr: bad")),
])  # fmt: skip
def test_what_an_operator_does(operator: Operator, here: Held, ran: Ran | None, effect: Effect):
    assert arrive(operator, here, "n", NOW, ran) == effect


@pytest.mark.parametrize("operator, effect", [
    (COMMAND, Effect("forward", forward=("n",))),
    (DEDUPE, Effect("forward", forward=("n",))),
    (ACCUMULATE, Effect("forward", forward=("n",))),
    (WINDOW, Effect("hold", hold=True)),
])  # fmt: skip
def test_a_failure_is_gathered_like_any_message_but_no_expression_reads_its_text(operator: Operator, effect: Effect):
    assert asks(operator, failure=True) == ""
    assert arrive(operator, Held(), "n", NOW, None, failure=True) == effect


@pytest.mark.parametrize("operator, here, due, effect", [
    (WINDOW, Held(), None, None),
    (TAP, Held(), None, None),
    (WINDOW, Held([("a", NOW)]), NOW + 30_000, None),
    (WINDOW, Held([("a", NOW - 30_000), ("b", NOW)]), NOW, Effect("flush", batch=("a", "b"), free=("a", "b"))),
    (BUFFER, Held([("a", NOW - 31_000)]), NOW - 1000, Effect("flush", batch=("a",), free=("a",), timed_out=True)),
    (WINDOW, Held([("a", NOW + 10**9)]), NOW + 30_000, None),  # the clock was set back: no longer than its timeout
    (THROTTLE, Held([("a", 1), ("b", 2)], passed_ms=[NOW - 4000, NOW - 1000]), NOW + 6000, None),
    (THROTTLE, Held([("a", 1), ("b", 2)], passed_ms=[NOW - 4000]), NOW,
     Effect("release", forward=("a",), free=("a",), passed_ms=NOW)),
])  # fmt: skip
def test_what_time_does(operator: Operator, here: Held, due: float | None, effect: Effect | None):
    assert due_ms(operator, here, NOW) == due
    assert over(operator, here, NOW) == effect


# -- the fold ------------------------------------------------------------------------------------------------------


class Chain:
    """A chain worked by hand: every effect recorded and folded, as the process does it."""

    def __init__(self, *operators: Operator) -> None:
        self.state = State(operators)
        self.records: list[dict[str, Any]] = []
        self.made = 0

    def tell(self, record: dict[str, Any]) -> None:
        self.records.append(record)
        self.state.apply(record)

    def carry_out(self, effect: Effect, place: int, name: str, now_ms: int) -> None:
        out = list(effect.forward)
        for _ in [*effect.bodies, *([1] if effect.batch else [])]:
            self.made += 1
            out.append(f"made-{self.made}")
        self.tell(record_of(effect, place, name, out, now_ms))

    def enter(self, name: str, now_ms: int, ran: Ran) -> list[str]:
        """What the message becomes at once."""
        self.tell({"t": "enter", "message": name})
        self.pump(name, now_ms, ran)
        ready = [item.name for item in self.state.ready(name)]
        self.tell({"t": "answered", "message": name})
        return ready

    def pump(self, root: str, now_ms: int, ran: Ran) -> None:
        while (item := self.state.next_of(root)) is not None:
            if item.place == len(self.state.operators):
                self.tell({"t": "left", "message": item.name})
                continue
            operator, here = self.state.operators[item.place], self.state.at[item.place]
            self.carry_out(arrive(operator, here, item.name, now_ms, ran), item.place, item.name, now_ms)

    def left(self) -> list[str]:
        return [record["message"] for record in self.records if record["t"] == "left"]

    def pass_time(self, now_ms: int) -> None:
        for place, operator in enumerate(self.state.operators):
            while (effect := over(operator, self.state.at[place], now_ms)) is not None:
                self.carry_out(effect, place, "", now_ms)
        self.pump("", now_ms, ok("true"))


def test_lines_of_a_command_are_the_answer():
    assert Chain(COMMAND, TAP).enter("m1", NOW, ok("a", "b")) == ["made-1", "made-2"]


def test_what_is_held_is_answered_by_nothing_and_leaves_by_itself():
    chain = Chain(WINDOW)
    assert [chain.enter(f"m{n}", NOW, ok()) for n in (1, 2, 3)] == [[], [], []]
    assert chain.left() == ["made-1"]
    assert chain.state.at[0].held == []


def test_lines_that_are_held_leave_when_their_time_comes():
    chain = Chain(COMMAND, THROTTLE)
    assert chain.enter("m1", NOW, ok("a", "b", "c")) == ["made-1", "made-2"]
    assert chain.left() == []
    chain.pass_time(NOW + 9999)
    assert chain.left() == []
    chain.pass_time(NOW + 10_000)
    assert chain.left() == ["made-3"]


def test_dedupe_forgets_what_is_long_ago():
    chain = Chain(DEDUPE)
    for n in range(MOST_KEYS + 1):
        assert chain.enter(f"m{n}", NOW, ok(str(n))) == [f"m{n}"]
    assert len(chain.state.at[0].seen) == MOST_KEYS
    assert chain.enter("again", NOW, ok(str(MOST_KEYS))) == []
    assert chain.enter("anew", NOW, ok("0")) == ["anew"]


def test_accumulate_keeps_the_last_state():
    chain = Chain(ACCUMULATE)
    assert chain.enter("m1", NOW, ok("1")) == ["made-1"]
    assert chain.enter("m2", NOW, ok("2")) == ["made-2"]
    assert chain.state.at[0].value == "made-2"


def test_of_a_chain_that_is_no_more_everything_goes_to_the_end():
    chain = Chain(TAP, WINDOW, TAP)
    chain.enter("m1", NOW, ok())
    chain.tell({"t": "enter", "message": "m2"})
    chain.tell({"t": "enter", "message": "m3"})
    chain.carry_out(Effect("forward", forward=("m3",)), 0, "m3", NOW)
    assert chain.state.at_the_end(1) == [
        (Pending("m1", 1), 1),
        (Pending("m2", 0, "m2"), 0),
        (Pending("m3", 1, "m3"), 1),
    ]


_RAN = st.sampled_from([ok(), ok("true"), ok("1"), ok("1", "2"), Ran("nonzero"), Ran("timeout")])
_STEP = st.tuples(st.integers(0, 40_000), _RAN)


def snapshot(state: State) -> object:
    pending = [(p.name, p.place, p.root) for p in state.pending]
    held = [(h.held, list(h.seen), h.passed_ms, h.value) for h in state.at]
    return pending, held, sorted(state.entered)


@given(st.lists(st.sampled_from(ALL), min_size=1, max_size=4), st.lists(_STEP, max_size=12), st.data())
def test_a_journal_is_its_fold_wherever_it_is_read_again(
    operators: list[Operator], steps: Sequence[tuple[int, Ran]], data: st.DataObject
):
    """Folding the records, or the records that a state is written anew as, gives the same state; nothing is lost."""
    chain, now = Chain(*operators), NOW
    for number, (later, ran) in enumerate(steps):
        now += later
        chain.pass_time(now)
        chain.enter(f"m{number}", now, ran)
    cut = data.draw(st.integers(0, len(chain.records)))
    first = State(operators)
    for record in chain.records[:cut]:
        first.apply(record)
    again = State(operators)
    for record in first.records():
        again.apply(record)
    for record in chain.records[cut:]:
        first.apply(record)
        again.apply(record)
    assert snapshot(first) == snapshot(again) == snapshot(chain.state)


@given(st.lists(_STEP, min_size=1, max_size=15))
def test_nothing_is_held_for_ever_and_nothing_leaves_twice(steps: Sequence[tuple[int, Ran]]):
    chain, now = Chain(THROTTLE, WINDOW, BUFFER), NOW
    for number, (later, ran) in enumerate(steps):
        now += later
        chain.pass_time(now)
        chain.enter(f"m{number}", now, ran)
    for _ in range(3 * len(steps) + 3):
        now += 30_000
        chain.pass_time(now)
    assert [here.held for here in chain.state.at] == [[], [], []]
    assert chain.state.pending == []
    assert len(set(chain.left())) == len(chain.left()) >= 1


# -- operators in files ----------------------------------------------------------------------------------------------


def test_operators_are_written_as_they_are_read():
    assert decode_operators(encode_operators(ALL), "here") == ALL
    assert {operator.kind for operator in ALL} == set(PARAMETERS)


@pytest.mark.parametrize("raw", [
    None, [], "x", [1], [{"operator": "x"}], [{"operator": "tap"}], [{"operator": "tap", "label": ""}],
    [{"operator": "window", "size": 0, "timeout_s": 1.0}], [{"operator": "window", "size": 1, "timeout_s": 0}],
    [{"operator": "tap", "label": "x", "more": 1}],
])  # fmt: skip
def test_what_is_no_list_of_operators_names_the_file(raw: object):
    with pytest.raises(Config, match=r"^here"):
        decode_operators(raw, "here")
