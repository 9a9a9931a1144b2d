"""Journal events: the record and its bytes, hash-chained (docs/protocol.md section 8, ADR-0005).

`hash` is the last member of a line and covers the line's bytes before `,"hash":`; `prev` is the hash of the
line before. Anyone can check a chain with sha256sum and a text editor.
"""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import sha256
from typing import Any

from loom.wire.jsontext import Malformed, dumps, loads_object
from loom.wire.record import record

VERSION = 1
MAX_LINE_BYTES = 64 << 10
ZERO_HASH = "0" * 64
_HASH_MEMBER = b',"hash":"'
_TAIL_BYTES = len(_HASH_MEMBER) + 64 + len(b'"}')


class Foreign(Malformed):
    """The line is whole and its hash fits, but it is no event that this version knows: never a torn end."""


@record
class Event:
    """One thing that happened to a goal.

    seq    1, 2, 3 …      ts     RFC 3339 UTC with microseconds, strictly increasing
    cause  the name of the file that caused it, or `seq:N`
    data   the payload, already resolved when it lies in a blob
    """

    seq: int
    ts: str
    type: str
    actor: Mapping[str, Any]
    cause: str
    data: Mapping[str, Any]
    prev: str
    hash: str = ""


def encode(event: Event, data: Mapping[str, Any] | None = None) -> tuple[bytes, str]:
    """(the line with its newline, its hash). `data` replaces the event's own when that lies in a blob."""
    body = dumps(
        {
            "v": VERSION,
            "seq": event.seq,
            "ts": event.ts,
            "type": event.type,
            "actor": dict(event.actor),
            "cause": event.cause,
            "data": dict(event.data if data is None else data),
            "prev": event.prev,
        }
    )[:-1]
    digest = sha256(body).hexdigest()
    return body + _HASH_MEMBER + digest.encode() + b'"}\n', digest


def decode(line: bytes) -> Event:
    """One line without its newline. Raises Malformed when its hash is not that of its bytes, and Foreign, a kind of
    Malformed, when its bytes are as they were written and yet no event of this version.
    """
    if len(line) <= _TAIL_BYTES or line[-_TAIL_BYTES : -_TAIL_BYTES + len(_HASH_MEMBER)] != _HASH_MEMBER:
        raise Malformed("no hash at the end of the line")
    raw = loads_object(line)
    digest = sha256(line[:-_TAIL_BYTES]).hexdigest()
    if raw.get("hash") != digest:
        raise Malformed("the hash is not that of the line's bytes")
    if raw.get("v") != VERSION:
        raise Foreign(f"event version {raw.get('v')!r}, this loom reads {VERSION}")
    seq, data, actor = raw.get("seq"), raw.get("data"), raw.get("actor")
    texts = [raw.get(name) for name in ("ts", "type", "cause", "prev")]
    if type(seq) is not int or not isinstance(data, dict) or not isinstance(actor, dict):
        raise Foreign("a field is missing or of the wrong type")
    if not all(isinstance(t, str) for t in texts):
        raise Foreign("a field is missing or of the wrong type")
    return Event(seq, raw["ts"], raw["type"], actor, raw["cause"], data, raw["prev"], digest)
