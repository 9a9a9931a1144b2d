"""What the supervisor concludes from what it sees of one process, whatever it sees and whenever it looks."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loom.core import liveness
from loom.core.liveness import LATE_S, Deadlines, Facts, Hang, Watched, look, pause_s
from loom.wire.errors import Config
from loom.wire.hang import SHAPES, line, shape_of
from loom.wire.record import replace
from loom.wire.settings import defaults

NAME = "0000000000001-0000000000000000000000000A"
SHORT = Deadlines(respond_s=4.0, stopped_s=2.0, claim_s=0.0)
WORK = Facts(NAME, sign="1", promised_s=0.0, state="S")

FACTS = st.builds(
    Facts,
    st.sampled_from(["", NAME, NAME[:-1] + "B"]),
    st.booleans(),
    st.sampled_from(["1", "2", "3"]),
    st.none() | st.floats(0, 30),
    st.sampled_from(["S", "R", "D", "T", "t", ""]),
)
DEADLINES = st.builds(Deadlines, st.floats(0.1, 1000), st.floats(0.1, 1000), st.just(0.0) | st.floats(0.1, 1000))
GAPS = st.floats(-10, 2000)


def watch(seen: list[tuple[float, Facts]], deadlines: Deadlines = SHORT) -> list[Hang]:
    """What is found by looks at these times."""
    known: Watched | None = None
    found = []
    for at_s, facts in seen:
        known, hang = look(known, facts, at_s, deadlines)
        if hang is not None:
            found.append(hang)
    return found


def every(step_s: float, until_s: float, facts: Facts) -> list[tuple[float, Facts]]:
    return [(step_s * n, facts) for n in range(int(until_s / step_s) + 1)]


@pytest.mark.parametrize(
    "facts, deadlines, shape",
    [
        (WORK, SHORT, "not_responding"),
        (Facts(NAME, state="T"), SHORT, "stopped"),
        (Facts(mail=True, state="S"), SHORT, "unclaimed"),
        (Facts(NAME, promised_s=None), Deadlines(4.0, 2.0, 3.0), "claimed_too_long"),
    ],
)
def test_each_shape_of_the_supervisor(facts: Facts, deadlines: Deadlines, shape: str) -> None:
    (hang,) = watch(every(pause_s(facts, deadlines), 4.0, facts), deadlines)[:1]
    assert hang.shape == shape and shape_of(hang.why) == shape and hang.action == SHAPES[shape].action


@pytest.mark.parametrize(
    "facts",
    [
        Facts(NAME, sign="1", promised_s=None, state="S"),  # it has promised nothing
        Facts(NAME, sign="1", promised_s=1000.0, state="S"),  # it said that it would take long
        Facts(NAME, sign="1", promised_s=0.0, state="t"),  # somebody looks into it
        Facts(state="T"),  # stopped, and nothing to do
    ],
)
def test_who_is_left_alone(facts: Facts) -> None:
    assert watch(every(0.5, 400, facts)) == []


@given(st.lists(st.tuples(GAPS, FACTS), max_size=40), DEADLINES)
def test_nobody_is_found_to_hang_before_his_deadline_was_watched(seen, deadlines):
    """Whatever the clock does: a shape needs its whole deadline of looks that came in time."""
    known, now, watched_s = None, 0.0, 0.0
    for gap_s, facts in seen:
        now += gap_s
        in_time = known is not None and 0 <= now - known.looked_s <= known.pause_s + LATE_S
        watched_s = watched_s + min(now - known.looked_s, known.pause_s) if in_time else 0.0
        before, (known, hang) = known, look(known, facts, now, deadlines)
        if hang is None:
            continue
        assert before is not None
        needed = {"stopped": deadlines.stopped_s, "claimed_too_long": deadlines.claim_s}
        assert watched_s + 1e-6 >= needed.get(hang.shape, deadlines.respond_s)


@given(st.lists(st.tuples(st.floats(0, 5), FACTS), max_size=40), DEADLINES)
def test_a_new_sign_at_each_look_is_responding(seen, deadlines):
    now, looks = 0.0, []
    for number, (gap_s, facts) in enumerate(seen):
        now += gap_s
        looks.append((now, replace(facts, sign=str(number))))
    assert not any(hang.shape == "not_responding" for hang in watch(looks, deadlines))


@given(FACTS, st.builds(Deadlines, st.floats(1, 8), st.floats(1, 8), st.just(0.0) | st.floats(1, 8)))
def test_who_hangs_for_ever_is_found_in_the_end_and_who_is_idle_is_not_looked_at(facts, deadlines):
    known, hang = look(None, facts, 0.0, deadlines)
    assert (known is None) == (not facts.message and not facts.mail) and hang is None
    if known is None:
        return
    pause = known.pause_s
    most_s = max(deadlines.respond_s + (facts.promised_s or 0), deadlines.stopped_s, deadlines.claim_s) + 2 * pause
    found = watch([(pause * n, facts) for n in range(int(most_s / pause) + 2)], deadlines)
    held = facts.state == "t" or (facts.message and facts.promised_s is None and facts.state != "T")
    if not held or (deadlines.claim_s and facts.message):
        assert found


@given(FACTS, DEADLINES)
def test_there_are_several_looks_within_a_deadline(facts, deadlines):
    assert 0 < pause_s(facts, deadlines) <= 60
    assert pause_s(facts, deadlines) <= max(deadlines.respond_s / 4, liveness.LEAST_PAUSE_S)


def test_a_line_names_its_shape() -> None:
    for shape in SHAPES:
        assert shape_of(line(shape, "one\ntwo")) == shape
        assert "\n" not in line(shape, "one\ntwo")
    assert shape_of("nothing: of the kind") == "" == shape_of("")


@pytest.mark.parametrize("wrong", [{"claim_s": "1"}, {"respond_s": 0}, {"claim_s": True}, {"claim_s": float("nan")}])
def test_an_option_that_is_no_number_of_seconds_is_refused(wrong) -> None:
    with pytest.raises(Config, match="option"):
        liveness.own(wrong)


def test_options_come_before_settings() -> None:
    given = liveness.own({"claim_s": 5, "temperature": 1})
    assert given == {"claim_s": 5}
    found = liveness.deadlines(defaults(), given)
    assert found == Deadlines(600.0, 60.0, 5, 10.0) and liveness.deadlines(defaults(), {}) == Deadlines()
