"""Server-sent events: bytes as they arrive, in any pieces, to events. Pure.

Follows the WHATWG parsing rules: lines end with LF, CR or CRLF; a blank line ends an event; lines that start with a
colon are comments; several data lines are joined with LF; an event without data is none. One liberty: an `error:`
field that holds an object, which llama.cpp's server sent for years, is data of that meaning. Bytes are split into
lines before they are decoded, so a UTF-8 sequence may be cut anywhere; what is not UTF-8 becomes U+FFFD.
"""

from __future__ import annotations

from loom.wire.errors import BrokenStream
from loom.wire.record import record

MAX_EVENT_BYTES = 8 << 20  # one event may carry a whole answer, when a server does not really stream


@record
class SseEvent:
    """One event. `event` is its type, '' when the server gave none. `id` and `retry` serve reconnecting: ignored."""

    data: str
    event: str = ""


class SseParser:
    """Feed it bytes, get the events that are complete. One parser for one stream."""

    def __init__(self, max_event_bytes: int = MAX_EVENT_BYTES) -> None:
        self._max = max_event_bytes
        self._line = bytearray()  # the line that has not ended yet
        self._data: list[str] = []
        self._size = 0
        self._event = ""
        self._after_cr = False  # a CR ended the last line: an LF now belongs to it
        self._first = True  # a byte order mark may stand before the first line

    def feed(self, piece: bytes) -> list[SseEvent]:
        """The events that end in `piece`, in order. Raises BrokenStream when one grows over the limit."""
        if self._after_cr and piece:
            self._after_cr = False
            if piece.startswith(b"\n"):
                piece = piece[1:]
        if piece.endswith(b"\r"):
            self._after_cr = True
        lines = piece.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
        events: list[SseEvent] = []
        for ended in lines[:-1]:
            self._line += ended
            event = self._end_line()
            if event is not None:
                events.append(event)
        self._line += lines[-1]
        self._check(len(self._line))
        return events

    def finish(self) -> list[SseEvent]:
        """The stream is over: the event whose blank line is missing, if all its lines have ended.

        Kinder than the rules, which drop it: some servers end with `data: [DONE]` and a single newline. A line
        that has not ended is dropped, because nobody knows what was to follow.
        """
        event = self._dispatch()
        return [] if event is None else [event]

    def _end_line(self) -> SseEvent | None:
        self._check(len(self._line))
        line = self._line.decode("utf-8", "replace")
        self._line.clear()
        if self._first:
            self._first = False
            line = line.removeprefix("\ufeff")
        if not line:
            return self._dispatch()
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if name == "data":
            self._size += len(value)
            self._data.append(value)
        elif name == "event":
            self._event = value
        elif name == "error" and value.startswith("{"):
            self._size += len(value)
            self._data.append(f'{{"error":{value}}}')
        return None

    def _dispatch(self) -> SseEvent | None:
        data, event = self._data, self._event
        self._data, self._event, self._size = [], "", 0
        return SseEvent("\n".join(data), event) if data else None

    def _check(self, more: int) -> None:
        # Every data line counts for one at least, so that empty ones cannot pile up.
        if self._size + len(self._data) + more > self._max:
            raise BrokenStream(f"the answer has an event over {self._max} bytes; this is no chat stream")
