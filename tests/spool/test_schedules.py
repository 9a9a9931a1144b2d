"""Definitions of jobs: what is wrong with one is said with its file and line; what is known of slots survives."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loom.spool import schedules, zones
from loom.spool.layout import Home
from loom.wire import ids, schedule
from loom.wire.errors import Config
from loom.wire.schedule import Intent, Job, Post, Slots

GOOD = 'every: 1h\nto: a\nbody: "x"\n'


def parse(text: str) -> Job:
    return schedules.parse(text.encode(), "j", Path("j.yml"))


def test_a_definition_becomes_a_job():
    assert parse(GOOD) == Job("j", every_s=3600, to="a", body="x")
    assert parse("cron: '@daily'\ngoal: do it\nworkspace: /w\nland: true\noverlap: replace\n").land
    assert parse("every: 90s\nto: a\ndriver: [./watch, -v]\ntimeout: 2m\n").driver == ("./watch", "-v")


@pytest.mark.parametrize(("text", "said"), [
    ("", "j.yml:1: expected"),
    ("- a", "j.yml:1: expected"),
    ("every: [", "j.yml:1: not valid YAML"),
    (GOOD + "evry: 2h", "j.yml:4: a job has no 'evry'"),
    (GOOD + "to: b", "j.yml:4: 'to' is set twice, first in line 2"),
    ("every: 10\nto: a\nbody: x", "j.yml:1: every: 10 is no duration"),
    ("every: 0s\nto: a\nbody: x", "j.yml:1: every: '0s' is too short; the least is 1s"),
    (GOOD + "model: !!timestamp x", "j.yml:4: 'x' cannot be read as timestamp"),
    ('every: 1h\nto: a\nbody: "\\ud800"', "j.yml:3: '\\ud800' holds half a surrogate pair"),
    ('every: 1h\nto: a\ndriver: [d, "\\udfff"]', "j.yml:3: '\\udfff' holds half a surrogate pair"),
    ('every: 1h\nto: a\n"bo\\ud800dy": x', "j.yml:3: the key 'bo\\ud800dy' holds half a surrogate pair"),
    (GOOD + "model: 0x" + "f" * 5000, "j.yml:4: a number has more than 256 bits"),
    (GOOD + "model: &m [*m]", "j.yml:4: an alias makes a value hold itself"),
    ('every: 1h\nto: a\ndriver: "./a\\0b"', "j.yml:3: driver: it holds a NUL"),
    ('every: 1h\ngoal: g\nworkspace: "/a\\0b"', "j.yml:3: workspace: it holds a NUL"),
    (GOOD + "cron: '* * * * *'", "j.yml:4: a job has either `cron` or `every`"),
    ("to: a\nbody: x", "either `cron` or `every`"),
    ("every: 1h\nbody: x", "either `to`, for messages, or `goal`"),
    ("every: 1h\nto: a", "either `body` or `driver`"),
    ("every: 1h\nto: A\nbody: x", "j.yml:2: 'A' is no agent's name"),
    ("every: 1h\ngoal: g\nbody: x", "j.yml:3: `body` goes with `to`"),
    (GOOD + "model: m", "j.yml:4: `model` goes with `goal`"),
    (GOOD + "overlap: replace", "j.yml:4: `replace` goes with `goal`"),
    (GOOD + "overlap: wait", "'wait' is not one of skip, queue"),
    ("every: 1h\nto: a\ndriver: d\noverlap: queue", "a driver runs once at a time"),
    ("every: 1h\ngoal: g\nland: true", "`land` needs a `workspace`"),
    ("every: 1h\ngoal: g\nland: 1", "neither true nor false"),
    ("every: 1h\nto: a\ndriver: []", "a program, or a list"),
    ("every: 1h\nto: a\nbody: 12", "12 is no text"),
])  # fmt: skip
def test_what_is_wrong_is_said_with_file_and_line(text: str, said: str):
    with pytest.raises(Config) as caught:
        parse(text)
    assert said in str(caught.value)


TENS = [f"&x{n} [{', '.join([f'*x{n - 1}' if n else 'ha'] * 10)}]" for n in range(7)]
LAUGHS = f"[{', '.join(TENS)}]"  # 400 bytes that stand for ten million values


@pytest.mark.parametrize(
    "text", [f"zone: {LAUGHS}\n", f"every: {LAUGHS}\n", f"driver: {LAUGHS}\n", f"to: {'A' * 900_000}"]
)
def test_a_value_without_bounds_is_refused_in_few_words_and_little_memory(text: str):
    tracemalloc.start()
    try:
        with pytest.raises(Config) as caught:
            parse(text)
        assert tracemalloc.get_traced_memory()[1] < 64 << 20
    finally:
        tracemalloc.stop()
    assert len(caught.value.line()) < 400


@given(st.binary(max_size=60))
def test_any_bytes_are_a_job_or_a_refusal(data: bytes):
    try:
        schedules.parse(data, "j", Path("j.yml"))
    except Config:
        pass


def test_what_is_known_of_slots_survives_and_damage_is_named(tmp_path: Path):
    place = Home(tmp_path).schedule("j")
    assert schedules.read_slots(place) is None
    name = ids.slot_stem("j", 60, 1)
    intent = Intent(60, (Post(name, "a", "b"),))
    known = Slots(60, (60,), (120,), intent, {"slot": 60}, {"seen": [1]}, {"error": "e"}, "every 1m")
    schedules.lock(place).release()  # type: ignore[union-attr]
    schedules.write_slots(place, known)
    assert schedules.read_slots(place) == known
    assert list(schedules.posted(Home(tmp_path))) == [name]
    place.slots.write_bytes(b'{"v":1,')
    with pytest.raises(Config, match=r"slots\.json cannot be read"):
        schedules.read_slots(place)
    assert list(schedules.posted(Home(tmp_path))) == []


def test_names_follow_from_job_and_slot():
    """Another program that serves slots computes the same ones: docs/schedules.md."""
    assert ids.slot_stem("nightly", 1_800_000_000) == "1800000000000-01MCC5RM00BG9QC7MXM6228JV7"
    assert ids.slot_stem("nightly", 1_800_000_000, 7) == "1800000000007-01MCC5RM07DMQK2W3T4ZX2YN1Q"
    assert ids.slot_goal("nightly", 1_800_000_000, "20270115") == "20270115-nightly-m6228jv7"
    assert len({ids.slot_stem(job, slot, part) for job in "ab" for slot in (1, 2) for part in (0, 1)}) == 8
    assert ids.is_goal(ids.slot_goal("x" * 64, 1_800_000_000, "20270115"))
    assert ids.is_goal(ids.slot_goal("a--b-", 1, "19700101"))


def test_durations_are_written_as_they_are_read():
    for text in ("1s", "90s", "5m", "2h", "1d", "36h"):
        assert schedule.duration_text(schedule.duration_s(text)) == text


def test_a_zone_that_is_not_known_is_named():
    with pytest.raises(Config, match="'Mars/Olympus' is not known"):
        zones.offset_of("Mars/Olympus")
    for name in ("", "../../etc/passwd", "/etc/localtime", "Europe"):
        with pytest.raises(Config):
            zones.offset_of(name)
