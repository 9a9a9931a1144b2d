"""Events of a journal: each line carries the hash of its bytes, and no byte can change unseen."""

from __future__ import annotations

import json
from hashlib import sha256
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loom.wire.event import ZERO_HASH, Event, Foreign, decode, encode
from loom.wire.jsontext import Malformed

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
objects = st.dictionaries(texts, st.none() | st.booleans() | st.integers() | texts | st.lists(texts, max_size=3))
hashes = st.binary(min_size=32, max_size=32).map(bytes.hex)
events = st.builds(Event, st.integers(), texts, texts, objects, texts, objects, hashes)

EXAMPLE = Event(1, "2026-01-31T12:00:00.000000Z", "began", {"name": "a"}, "", {"text": 'x","hash":"y'}, ZERO_HASH)


@given(events)
def test_what_is_written_is_read_back(event: Event):
    line, digest = encode(event)
    assert line.endswith(b"\n") and line.count(b"\n") == 1
    read = decode(line[:-1])
    assert read == Event(event.seq, event.ts, event.type, event.actor, event.cause, event.data, event.prev, digest)


@given(events)
def test_the_hash_is_that_of_the_bytes_before_it_and_the_last_member(event: Event):
    line, digest = encode(event)
    body, _, tail = line.rpartition(b',"hash":"')
    assert sha256(body).hexdigest() == digest
    assert tail == digest.encode() + b'"}\n'
    assert list(json.loads(line))[-1] == "hash"


def test_every_changed_bit_and_byte_is_noticed():
    line = encode(EXAMPLE)[0][:-1]
    for place in range(len(line)):
        for changed in {line[place] ^ (1 << bit) for bit in range(8)} | {0, 10, 32, 34, 125}:
            if changed == line[place]:
                continue
            with pytest.raises(Malformed):
                decode(line[:place] + bytes([changed]) + line[place + 1 :])


def test_every_missing_or_added_byte_is_noticed():
    line = encode(EXAMPLE)[0][:-1]
    for place in range(len(line)):
        for changed in (line[:place], line[:place] + line[place + 1 :], line[:place] + b" " + line[place:]):
            with pytest.raises(Malformed):
                decode(changed)
    with pytest.raises(Malformed):
        decode(line + b" ")


@given(st.binary(max_size=400))
def test_any_bytes_are_malformed(data: bytes):
    with pytest.raises(Malformed):
        decode(data)


def forged(raw: dict[str, Any]) -> bytes:
    """A line whose hash fits, whatever it says."""
    body = json.dumps(raw, separators=(",", ":")).encode()[:-1]
    return body + b',"hash":"' + sha256(body).hexdigest().encode() + b'"}'


@pytest.mark.parametrize(
    "changes",
    [{"v": 2}, {"seq": "1"}, {"seq": True}, {"data": []}, {"actor": None}, {"ts": 1}, {"prev": None}, {"cause": 0}],
)
def test_a_whole_line_that_is_no_event_of_ours_is_foreign_not_torn(changes: dict[str, Any]):
    raw = json.loads(encode(EXAMPLE)[0])
    del raw["hash"]
    assert decode(forged(raw)).seq == 1
    with pytest.raises(Foreign):
        decode(forged({**raw, **changes}))


def test_a_line_that_brings_a_hash_of_its_own_is_malformed():
    body = b'{"v":1,"hash":"' + b"0" * 64 + b'"'
    with pytest.raises(Malformed):
        decode(body + b',"hash":"' + sha256(b"other").hexdigest().encode() + b'"}')
