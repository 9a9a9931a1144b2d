"""Messages between agents: the record, its bytes, and what makes bytes unacceptable (docs/protocol.md section 2)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from loom.wire import ids
from loom.wire.jsontext import MAX_DEPTH, Malformed, dumps, loads_object, too_deep
from loom.wire.record import field, record, replace

VERSION = 1
MAX_BYTES = 1 << 20
MAX_ATTEMPTS = 16  # as far as an attempt is looked for by the name of its reply


class Unreadable(Exception):
    """These bytes are not a message we can take; `reason` is a stable word for NAME.error.json."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


@record
class Message:
    """One message, as it lies in a `.msg` file; never edited after delivery (ADR-0002).

    id       the ULID of the file's name
    ts_ms    Unix milliseconds by the sender's clock: for people to read, never for ordering
    origin   slash-joined names of the messages that led here, the root first, the direct cause last
    rest     fields this version does not know, written back unchanged
    """

    id: str
    from_: str
    ts_ms: int
    body: str
    origin: str = ""
    reply_to: str = ""
    to: str = ""
    thread: str = ""
    error: bool = False
    kind: str = ""
    data: Mapping[str, Any] | None = None
    goal: str = ""
    deadline_ms: int | None = None
    trace: str = ""
    parts: tuple[str, ...] | None = None
    rest: Mapping[str, Any] = field(default_factory=dict)


_TEXT = ("origin", "reply_to", "to", "thread", "kind", "goal", "trace")
_KNOWN = {"v", "id", "from", "ts", "body", "error", "data", "deadline", "parts", *_TEXT}


def encode(message: Message) -> bytes:
    """The bytes of a `.msg` file. Fields with their default are left out.

    Raises ValueError over MAX_BYTES, or when it is nested too deep for anybody to read it.
    """
    out: dict[str, Any] = {"v": VERSION, "id": message.id, "from": message.from_, "ts": message.ts_ms}
    for name in _TEXT:
        if value := getattr(message, name):
            out[name] = value
    if message.error:
        out["error"] = True
    if message.deadline_ms is not None:
        out["deadline"] = message.deadline_ms
    out["body"] = message.body
    if message.data is not None:
        out["data"] = dict(message.data)
    if message.parts is not None:
        out["parts"] = list(message.parts)
    out.update({k: v for k, v in message.rest.items() if k not in _KNOWN})
    data = dumps(out) + b"\n"
    if len(data) > MAX_BYTES:
        raise ValueError(f"the message has {len(data)} bytes, the limit is {MAX_BYTES}")
    if too_deep(data):
        raise ValueError(f"the message is nested deeper than {MAX_DEPTH} levels")
    return data


def decode(data: bytes, stem: str) -> Message:
    """The message in `data`, which lay under the name `stem`. Raises Unreadable; nothing else, whatever the bytes."""
    if len(data) > MAX_BYTES:
        raise Unreadable("too_large", f"{len(data)} bytes, the limit is {MAX_BYTES}")
    try:
        raw = loads_object(data)
    except Malformed as error:
        raise Unreadable("malformed", str(error)) from None
    version = raw.get("v")
    if not isinstance(version, int) or isinstance(version, bool):
        raise Unreadable("no_version", "field 'v' is missing or not a whole number")
    if version > VERSION:
        raise Unreadable(
            "newer_version", f"written in message version {version}, this loom reads {VERSION}: upgrade loom"
        )
    _check_types(raw)
    if raw["id"] != ids.ulid_of(stem):
        raise Unreadable("wrong_id", f"field 'id' is {ascii(raw['id'])[:40]}, the name says {ids.ulid_of(stem)}")
    if raw.get("thread") and not ids.is_thread(raw["thread"]):
        raise Unreadable("bad_field", f"field 'thread' is {ascii(raw['thread'])[:40]}, which is no thread name")
    parts = raw.get("parts")
    return Message(
        id=raw["id"],
        from_=raw["from"],
        ts_ms=raw["ts"],
        body=raw["body"],
        error=raw.get("error", False),
        data=raw.get("data"),
        deadline_ms=raw.get("deadline"),
        parts=None if parts is None else tuple(parts),
        rest={k: v for k, v in raw.items() if k not in _KNOWN},
        **{name: raw.get(name, "") for name in _TEXT},
    )


def _check_types(raw: Mapping[str, Any]) -> None:
    for name in ("id", "from", "body"):
        if not isinstance(raw.get(name), str):
            raise Unreadable("bad_field", f"field {name!r} is missing or not a string")
    for name in _TEXT:
        if name in raw and not isinstance(raw[name], str):
            raise Unreadable("bad_field", f"field {name!r} is not a string")
    for name, required in (("ts", True), ("deadline", False)):
        value = raw.get(name)
        if (required or name in raw) and (not isinstance(value, int) or isinstance(value, bool)):
            raise Unreadable("bad_field", f"field {name!r} is missing or not a whole number")
    if not isinstance(raw.get("error", False), bool):
        raise Unreadable("bad_field", "field 'error' is not true or false")
    if "data" in raw and not isinstance(raw["data"], dict):
        raise Unreadable("bad_field", "field 'data' is not an object")
    parts = raw.get("parts", [])
    if not isinstance(parts, list) or not all(isinstance(p, str) for p in parts):
        raise Unreadable("bad_field", "field 'parts' is not a list of strings")


def reply_to(
    request: Message, request_stem: str, agent: str, attempt: int, body: str, now_ms: int, **fields: Any
) -> tuple[str, Message]:
    """The answer of `agent` to `request` as (stem, message): derived name, origin grown by the request's name."""
    stem = ids.reply_stem(agent, request_stem, attempt)
    message = Message(
        id=ids.ulid_of(stem),
        from_=agent,
        ts_ms=now_ms,
        body=body,
        origin=f"{request.origin}/{request_stem}" if request.origin else request_stem,
        to=request.reply_to,
        thread=request.thread,
        kind=request.kind,
        goal=request.goal,
        trace=request.trace,
    )
    return stem, replace(message, **fields)


def split_parts(stem: str, reply: Message) -> list[tuple[str, Message]]:
    """The parts of a reply as messages, each under the reply's name with that part's number.

    Every part keeps the reply's sender, origin and thread.
    """
    request = reply.origin.rpartition("/")[2]
    attempt = next((n for n in range(MAX_ATTEMPTS) if ids.reply_stem(reply.from_, request, n) == stem), 0)
    found = []
    for number, body in enumerate(reply.parts or (), 1):
        name = ids.reply_stem(reply.from_, request, attempt, number)
        found.append((name, replace(reply, id=ids.ulid_of(name), body=body, parts=None)))
    return found
