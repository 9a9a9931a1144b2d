"""Names: what may be called how, and how the names of messages and replies come about."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loom.wire import ids
from loom.wire.errors import Usage

random80 = st.binary(min_size=10, max_size=10)
times_ms = st.integers(0, 10**13 - 1)
stems = st.builds(ids.message_stem, times_ms, random80)
agents = st.from_regex(r"[a-z][a-z0-9-]{0,63}", fullmatch=True)

TOO_ODD = [
    "", " ", "A", "Agent", "1a", "-a", "a_b", "a.b", "a/b", "..", ".", "a\n", "a\0", "ä", "a b", "a" * 65, "٣", "ａ",
    "a~b",
]  # fmt: skip


@pytest.mark.parametrize("name", ["a", "my-agent", "a1", "a-", "a--b", "z" * 64])
def test_a_good_agent_name(name: str):
    assert ids.check_agent(name) == name
    assert ids.is_agent(name)


@pytest.mark.parametrize("name", TOO_ODD)
def test_no_agent_name(name: str):
    assert not ids.is_agent(name)
    with pytest.raises(Usage) as error:
        ids.check_agent(name, reserved_ok=True)
    assert "\n" not in str(error.value) and "\0" not in str(error.value)


@pytest.mark.parametrize(
    "name",
    ["planner", "planner-1", "executor-x", "executor-", "verifiers", "keeper9", "router", "supervisor", "user"],
)
def test_a_reserved_name_is_refused_to_users_only(name: str):
    with pytest.raises(Usage, match="reserved"):
        ids.check_agent(name)
    assert ids.check_agent(name, reserved_ok=True) == name


@pytest.mark.parametrize("name", ["router-1", "users", "user-1", "my-planner", "supervisors"])
def test_a_name_that_only_looks_reserved_is_free(name: str):
    assert ids.check_agent(name) == name


@pytest.mark.parametrize("name, good", [
    ("main", True), ("a.b_c-d", True), ("0", True), ("x" * 64, True), ("..", False), (".a", False), ("-a", False),
    ("A", False), ("", False), ("x" * 65, False), ("a/b", False), ("a\n", False), ("_a", False),
])  # fmt: skip
def test_thread_names(name: str, good: bool):
    assert ids.is_thread(name) is good
    if not good:
        with pytest.raises(Usage):
            ids.check_thread(name)


@pytest.mark.parametrize("name, good", [
    ("20260728-fix-build-a1b2", True), ("20260728-x", True), ("20260728", False), ("20260728-", False),
    ("2026072-x", False), ("20260728-a--b", False), ("20260728-a-", False), ("20260728-A", False),
    ("20260728-" + "a" * 80, False), ("20260728-a\n", False),
])  # fmt: skip
def test_goal_ids(name: str, good: bool):
    assert ids.is_goal(name) is good
    if not good:
        with pytest.raises(Usage):
            ids.check_goal(name)


@pytest.mark.parametrize("name, good", [("s1", True), ("0-a", True), ("", False), ("-a", False), ("a.b", False),
                                        ("a" * 65, False), ("a\n", False)])  # fmt: skip
def test_subtask_names(name: str, good: bool):
    assert ids.is_subtask(name) is good


@given(st.text(max_size=300), st.binary(min_size=4, max_size=8))
def test_a_goal_id_made_of_any_text_is_a_goal_id(text: str, draw: bytes):
    assert ids.is_goal(ids.goal_id(text, "20260728", draw))


@given(st.text(max_size=40) | st.binary(max_size=40).map(lambda b: b.decode("utf-8", "surrogateescape")))
def test_what_is_taken_as_a_name_cannot_leave_its_directory(name: str):
    for is_name in (ids.is_agent, ids.is_thread, ids.is_goal, ids.is_subtask, ids.is_stem):
        if is_name(name):
            assert name.isascii() and "/" not in name and name not in (".", "..") and name.isprintable()


@given(times_ms, random80)
def test_a_message_name_says_its_time_and_its_ulid(ts_ms: int, draw: bytes):
    stem = ids.message_stem(ts_ms, draw)
    assert ids.is_stem(stem) and len(stem) == 40
    assert ids.time_of(stem) == ts_ms
    assert ids.ulid_of(stem) == ids.encode_ulid(ts_ms, draw)
    assert ids.stem_of(f"{stem}.msg") == stem


@given(times_ms, times_ms, random80, random80)
def test_names_sort_by_time(one: int, other: int, first: bytes, second: bytes):
    names = sorted([ids.message_stem(one, first), ids.message_stem(other, second)])
    assert [ids.time_of(n) for n in names] == sorted([one, other])


@given(st.integers(0, 2**48 - 1), random80)
def test_a_ulid_holds_its_128_bits(ts_ms: int, draw: bytes):
    value = 0
    for char in ids.encode_ulid(ts_ms, draw):
        value = value << 5 | ids.CROCKFORD.index(char)
    assert value == ts_ms << 80 | int.from_bytes(draw, "big")


@pytest.mark.parametrize("ts_ms, draw", [(-1, bytes(10)), (2**48, bytes(10)), (0, bytes(9)), (0, bytes(11))])
def test_a_ulid_of_the_wrong_size_is_refused(ts_ms: int, draw: bytes):
    with pytest.raises(ValueError):
        ids.encode_ulid(ts_ms, draw)


@pytest.mark.parametrize("ts_ms", [10**13, -1])
def test_a_time_that_does_not_fit_thirteen_digits_makes_no_name(ts_ms: int):
    with pytest.raises(ValueError):
        ids.message_stem(ts_ms, bytes(10))


GOOD = "1790000000000-01KNCB2N00000000000000000A"


@pytest.mark.parametrize("name", [
    f"{GOOD}", f"{GOOD}.MSG", f"{GOOD}.msg~", f"{GOOD}.msg\n", f"{GOOD}\n.msg", f".{GOOD}.msg", f"x/{GOOD}.msg",
    GOOD.lower() + ".msg", GOOD.replace("A", "I") + ".msg", GOOD.replace("A", "U") + ".msg", GOOD[1:] + ".msg",
    GOOD.replace("-0", "-8") + ".msg", GOOD.replace("1790", "١٧٩٠") + ".msg", ".msg", "", "msg",
])  # fmt: skip
def test_what_is_no_message_file(name: str):
    assert ids.stem_of(name) is None


@given(agents, stems, st.integers(0, 1000), st.integers(0, 1000))
def test_a_reply_name_is_a_message_name_of_the_requests_time(agent: str, request: str, attempt: int, part: int):
    reply = ids.reply_stem(agent, request, attempt, part)
    assert ids.is_stem(reply)
    assert ids.time_of(reply) == ids.time_of(request)
    assert reply == ids.reply_stem(agent, request, attempt, part)


@given(st.lists(st.tuples(agents, stems, st.integers(0, 50), st.integers(0, 50)), unique=True, min_size=2, max_size=6))
def test_different_answers_have_different_names(keys: list[tuple[str, str, int, int]]):
    assert len({ids.reply_stem(*key) for key in keys}) == len(keys)


def test_attempt_and_part_are_not_confused():
    names = {ids.reply_stem("a", GOOD, attempt, part) for attempt in range(12) for part in range(12)}
    assert len(names) == 144
