"""Messages as bytes: what is written is read back, what is unknown is kept, and nothing but Unreadable is raised."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loom.wire import ids, message
from loom.wire.message import MAX_BYTES, Message, Unreadable, decode, encode, reply_to

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | texts
values = st.recursive(scalars, lambda v: st.lists(v, max_size=3) | st.dictionaries(texts, v, max_size=3), max_leaves=8)
stems = st.builds(ids.message_stem, st.integers(0, 10**13 - 1), st.binary(min_size=10, max_size=10))
threads = st.just("") | st.from_regex(r"[a-z0-9][a-z0-9._-]{0,63}", fullmatch=True)
KNOWN = {
    "v", "id", "from", "ts", "body", "origin", "reply_to", "to", "thread", "error", "kind", "data", "goal", "deadline",
    "trace", "parts",
}  # fmt: skip


@st.composite
def messages(draw: st.DrawFn) -> tuple[str, Message]:
    stem = draw(stems)
    fields = {name: draw(texts) for name in ("origin", "reply_to", "to", "kind", "goal", "trace")}
    return stem, Message(
        id=ids.ulid_of(stem),
        from_=draw(texts),
        ts_ms=draw(st.integers()),
        body=draw(texts),
        thread=draw(threads),
        error=draw(st.booleans()),
        data=draw(st.none() | st.dictionaries(texts, values, max_size=3)),
        deadline_ms=draw(st.none() | st.integers()),
        parts=draw(st.none() | st.lists(texts, max_size=3).map(tuple)),
        rest=draw(st.dictionaries(texts.filter(lambda t: t not in KNOWN), values, max_size=3)),
        **fields,
    )


STEM = "1790000000000-01KNCB2N00000000000000000A"
PLAIN = {"v": 1, "id": ids.ulid_of(STEM), "from": "a", "ts": 1, "body": "b"}


@given(messages())
def test_what_is_written_is_read_back(pair: tuple[str, Message]):
    stem, original = pair
    assert decode(encode(original), stem) == original


@given(st.dictionaries(texts.filter(lambda t: t not in KNOWN), values, min_size=1, max_size=4))
def test_unknown_fields_are_kept_and_written_back(extra: dict[str, Any]):
    read = decode(json.dumps({**PLAIN, **extra}).encode(), STEM)
    assert read.rest == extra
    again = json.loads(encode(read))
    assert {k: again[k] for k in extra} == extra


@given(st.binary(max_size=300))
def test_any_bytes_are_a_message_or_unreadable(data: bytes):
    with pytest.raises(Unreadable):
        decode(data, STEM)


@given(st.dictionaries(st.sampled_from(sorted(KNOWN)), values, max_size=6), st.sampled_from(sorted(KNOWN)))
def test_a_field_of_any_type_is_a_message_or_unreadable(changes: dict[str, Any], dropped: str):
    raw = {**PLAIN, **changes}
    raw.pop(dropped, None)
    try:
        read = decode(json.dumps(raw).encode(), STEM)
    except Unreadable as error:
        assert error.reason and str(error).isprintable()
        return
    assert decode(encode(read), STEM) == read


@given(messages(), st.data())
def test_a_changed_byte_gives_a_message_or_unreadable(pair: tuple[str, Message], data: st.DataObject):
    stem, original = pair
    raw = bytearray(encode(original))
    raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    try:
        read = decode(bytes(raw), stem)
    except Unreadable:
        return
    assert decode(encode(read), stem) == read


@given(messages(), st.data())
def test_half_a_message_is_unreadable(pair: tuple[str, Message], data: st.DataObject):
    stem, original = pair
    raw = encode(original)
    with pytest.raises(Unreadable):
        decode(raw[: data.draw(st.integers(0, len(raw) - 2))], stem)


@pytest.mark.parametrize(
    "changes, reason",
    [
        ({"v": None}, "no_version"),
        ({"v": "1"}, "no_version"),
        ({"v": True}, "no_version"),
        ({"v": 1.0}, "no_version"),
        ({"v": 2}, "newer_version"),
        ({"v": 10**40}, "newer_version"),
        ({"id": "01KNCB2N00000000000000000B"}, "wrong_id"),
        ({"id": "\x1b[31m"}, "wrong_id"),
        ({"id": 1}, "bad_field"),
        ({"body": None}, "bad_field"),
        ({"from": []}, "bad_field"),
        ({"ts": 1.5}, "bad_field"),
        ({"ts": True}, "bad_field"),
        ({"deadline": None}, "bad_field"),
        ({"error": 1}, "bad_field"),
        ({"data": []}, "bad_field"),
        ({"data": None}, "bad_field"),
        ({"parts": "a"}, "bad_field"),
        ({"parts": ["a", 1]}, "bad_field"),
        ({"parts": None}, "bad_field"),
        ({"thread": "../x"}, "bad_field"),
        ({"thread": "A"}, "bad_field"),
        ({"reply_to": 5}, "bad_field"),
    ],
)
def test_the_reason_is_a_stable_word(changes: dict[str, Any], reason: str):
    with pytest.raises(Unreadable) as error:
        decode(json.dumps({**PLAIN, **changes}).encode(), STEM)
    assert error.value.reason == reason
    assert str(error.value).isprintable()


def test_a_newer_message_says_what_to_do():
    with pytest.raises(Unreadable, match="upgrade loom"):
        decode(json.dumps({**PLAIN, "v": 2, "body": {"new": "form"}}).encode(), STEM)


def test_a_megabyte_is_allowed_and_one_byte_more_is_not():
    bare = Message(ids.ulid_of(STEM), "a", 1, "")
    room = MAX_BYTES - len(encode(bare))
    full = encode(Message(ids.ulid_of(STEM), "a", 1, "x" * room))
    assert len(full) == MAX_BYTES
    assert decode(full, STEM).body == "x" * room
    with pytest.raises(ValueError):
        encode(Message(ids.ulid_of(STEM), "a", 1, "x" * (room + 1)))
    with pytest.raises(Unreadable) as error:
        decode(full + b" ", STEM)
    assert error.value.reason == "too_large"


def test_what_nobody_could_read_is_not_written():
    data: dict[str, Any] = {}
    for _ in range(62):
        data = {"a": data}
    at_the_limit = Message(ids.ulid_of(STEM), "a", 1, "", data=data)
    assert decode(encode(at_the_limit), STEM) == at_the_limit
    for bad in ({"a": data}, {"a": float("nan")}, {"a": "\ud800"}):
        with pytest.raises(ValueError):
            encode(Message(ids.ulid_of(STEM), "a", 1, "", data=bad))


def test_defaults_are_left_out_and_known_names_in_rest_are_not_written():
    plain = Message(ids.ulid_of(STEM), "a", 1, "b", rest={"v": 9, "from": "mallory", "new": 1})
    assert json.loads(encode(plain)) == {**PLAIN, "new": 1}


@given(messages(), st.integers(0, 9))
def test_a_reply_names_what_it_answers(pair: tuple[str, Message], attempt: int):
    stem, request = pair
    name, reply = reply_to(request, stem, "worker", attempt, "done", 5, parts=("a", "b"))
    assert name == ids.reply_stem("worker", stem, attempt)
    assert reply.id == ids.ulid_of(name)
    assert reply.origin.split("/")[-1] == stem
    assert reply.origin.removesuffix(stem).removesuffix("/") == request.origin
    assert (reply.to, reply.thread, reply.kind) == (request.reply_to, request.thread, request.kind)
    assert (reply.from_, reply.body, reply.parts, reply.error) == ("worker", "done", ("a", "b"), False)
    assert decode(encode(reply), name) == reply


def test_version_one_is_what_is_written():
    assert message.VERSION == 1
    assert json.loads(encode(decode(json.dumps(PLAIN).encode(), STEM)))["v"] == 1
