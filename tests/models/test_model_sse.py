"""The SSE parser: events are the same however the bytes are cut, and garbage never breaks it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loom.models.sse import SseEvent, SseParser
from loom.wire.errors import BrokenStream


def parse(*pieces: bytes) -> list[SseEvent]:
    parser = SseParser()
    return [e for piece in pieces for e in parser.feed(piece)] + parser.finish()


@pytest.mark.parametrize(
    "stream, events",
    [
        (b"data: a\n\n", [SseEvent("a")]),
        (b"data: a\r\n\r\n", [SseEvent("a")]),
        (b"data: a\r\rdata: b\r\r", [SseEvent("a"), SseEvent("b")]),
        (b"data:a\n\n", [SseEvent("a")]),  # the blank after the colon is optional
        (b"data:  a\n\n", [SseEvent(" a")]),  # and only one of them is dropped
        (b"data: a\ndata: b\n\n", [SseEvent("a\nb")]),  # several lines are joined
        (b"data\n\n", [SseEvent("")]),  # a field without a colon has an empty value
        (b": keep-alive\n\ndata: a\n\n", [SseEvent("a")]),  # comments are skipped
        (b"event: error\ndata: a\n\ndata: b\n\n", [SseEvent("a", "error"), SseEvent("b")]),
        (b"id: 7\nretry: 10\ndata: a\n\n", [SseEvent("a")]),
        (b"event: ping\n\n", []),  # no data, no event
        (b"\xef\xbb\xbfdata: a\n\n", [SseEvent("a")]),  # a byte order mark
        ("data: käse 🧀\n\n".encode(), [SseEvent("käse 🧀")]),
        (b"data: \xff\n\n", [SseEvent("\ufffd")]),
        (b"data: [DONE]\n", [SseEvent("[DONE]")]),  # the blank line is missing, the line is whole
        (b"data: a\n\ndata: hal", [SseEvent("a")]),  # a line that has not ended is none
        (b"", []),
    ],
)
def test_events_are_those_of_the_rules_wherever_the_bytes_are_cut(stream, events):
    assert parse(stream) == events
    assert parse(*[stream[i : i + 1] for i in range(len(stream))]) == events
    for cut in range(len(stream) + 1):
        assert parse(stream[:cut], stream[cut:]) == events, cut


def test_an_event_over_the_limit_is_refused_however_it_is_made():
    for stream in (b"data: " + b"x" * 200, b"data: xxxxxxx\n" * 30, b"data\n" * 200):
        with pytest.raises(BrokenStream):
            SseParser(max_event_bytes=100).feed(stream)


def test_the_limit_is_for_one_event_not_for_the_stream():
    parser = SseParser(max_event_bytes=100)
    assert len([e for _ in range(50) for e in parser.feed(b"data: 0123456789\n\n")]) == 50


@given(st.lists(st.binary(max_size=30)))
def test_any_bytes_in_any_pieces_give_the_events_of_the_whole(pieces):
    assert parse(*pieces) == parse(b"".join(pieces))


LINE = st.text(st.characters(exclude_characters="\r\n", exclude_categories=["Cs"]), max_size=20)


@given(st.lists(st.lists(LINE, min_size=1, max_size=3), max_size=5), st.sampled_from(["\n", "\r\n", "\r"]), st.data())
def test_what_was_written_is_what_is_read(events, newline, data):
    stream = "".join("".join(f"data: {line}{newline}" for line in lines) + newline for lines in events).encode()
    cut = data.draw(st.integers(0, len(stream)))
    assert [e.data for e in parse(stream[:cut], stream[cut:])] == ["\n".join(lines) for lines in events]
