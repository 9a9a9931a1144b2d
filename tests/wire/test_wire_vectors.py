"""docs/vectors.json: names and hashes for implementations in other languages, recomputed here by hand.

Nothing below calls loom to check a vector: the few lines from the protocol page stand here once more. To write
the file anew after a change of the protocol (which takes a decision record): python tests/wire/test_wire_vectors.py
"""

from __future__ import annotations

import json
import struct
import sys
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

VECTORS = Path(__file__).parents[2] / "docs" / "vectors.json"
ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"


def crockford(ts_ms: int, random80: bytes) -> str:
    """128 bits, big endian, five at a time from the left of 130."""
    data = struct.pack(">Q", ts_ms)[2:] + random80
    bits = "00" + "".join(f"{byte:08b}" for byte in data)
    return "".join(ALPHABET[int(bits[i : i + 5], 2)] for i in range(0, 130, 5))


def vectors(kind: str) -> list[Any]:
    return [pytest.param(v, id=str(i)) for i, v in enumerate(json.loads(VECTORS.read_bytes())[kind])]


@pytest.mark.parametrize("vector", vectors("message_names"))
def test_message_names(vector: dict[str, Any]):
    name = f"{vector['ts_ms']:013d}-{crockford(vector['ts_ms'], bytes.fromhex(vector['random80']))}"
    assert vector["name"] == f"{name}.msg"


@pytest.mark.parametrize("vector", vectors("reply_names"))
def test_reply_names(vector: dict[str, Any]):
    request = vector["request"].removesuffix(".msg")
    fields = [b"loom1", b"reply", vector["agent"].encode(), request.encode()]
    seed = b"\0".join([*fields, b"%d" % vector["attempt"], b"%d" % vector["part"]])
    digits = request[:13]
    assert vector["reply"] == f"{digits}-{crockford(int(digits), sha256(seed).digest()[:10])}.msg"


@pytest.mark.parametrize("vector", vectors("messages"))
def test_message_bytes(vector: dict[str, Any]):
    data = vector["bytes"].encode()
    assert sha256(data).hexdigest() == vector["sha256"]
    assert json.loads(data) == vector["fields"]
    assert data == json.dumps(vector["fields"], ensure_ascii=False, separators=(",", ":")).encode() + b"\n"
    assert vector["fields"]["id"] == vector["name"][14:40]


def test_event_lines():
    before = "0" * 64
    for number, vector in enumerate(json.loads(VECTORS.read_bytes())["journal"], 1):
        line = vector["line"].encode()
        body, found = line[: -len(',"hash":""}') - 64], line[-66:-2].decode()
        assert line == body + b',"hash":"' + found.encode() + b'"}'
        assert sha256(body).hexdigest() == found == vector["hash"]
        fields = json.loads(line)
        assert (fields["seq"], fields["prev"]) == (number, before)
        before = found


def test_there_are_enough_of_each():
    found = json.loads(VECTORS.read_bytes())
    keys = {(v["agent"], v["attempt"], v["part"]) for v in found["reply_names"]}
    for position in range(3):
        assert len({key[position] for key in keys}) >= 3
    assert min(len(found[k]) for k in ("message_names", "reply_names", "messages", "journal")) >= 3


def test_loom_computes_these_vectors():
    assert generate() == json.loads(VECTORS.read_bytes())


def generate() -> dict[str, Any]:
    from loom.wire import event, ids, message

    times = (0, 1, 1_790_000_000_000, 1_790_000_000_001, 9_999_999_999_999)
    draws = (bytes(10), b"\xff" * 10, bytes(range(10)))
    names = [(ts, draw, ids.message_stem(ts, draw)) for ts in times for draw in draws]
    request = ids.message_stem(1_790_000_000_000, bytes(range(10)))
    other = ids.message_stem(1_790_000_000_000, bytes(range(1, 11)))
    answers = [
        (agent, name, attempt, part)
        for agent in ("a", "worker", "planner-1", "z" * 64)
        for name in (request, other)
        for attempt, part in ((0, 0), (1, 0), (0, 1), (2, 11), (21, 1))
    ]
    plain = message.Message(ids.ulid_of(request), "user", 1_790_000_000_000, 'Hallo, Welt ☕\n\t"quoted" \\ \x7f')
    full = message.Message(
        ids.ulid_of(other), "user", 0, "", thread="t.1", reply_to="a", error=True, kind="k",
        data={"n": 2**70, "f": 0.5}, goal="20260728-x", deadline_ms=5, trace="00-" + "0" * 32,
        parts=("a", ""), rest={"x-new": None}, to="b",
        origin=request,
    )  # fmt: skip
    reply_name, reply = message.reply_to(plain, request, "worker", 0, "done", 1_790_000_000_500)
    written = [(request, plain), (other, full), (reply_name, reply)]
    lines = []
    before = event.ZERO_HASH
    for seq, (type_, data) in enumerate((("began", {}), ("said", {"text": 'ü","hash":"'}), ("n", {"n": [1, None]})), 1):
        ts = f"2026-07-28T12:00:00.00000{seq}Z"
        line, before = event.encode(event.Event(seq, ts, type_, {"name": "a"}, f"seq:{seq - 1}", data, before))
        lines.append({"line": line.decode().removesuffix("\n"), "hash": before})
    return {
        "about": "Test vectors of the filesystem protocol, version 1 (docs/protocol.md, sections 2 and 8)",
        "message_names": [{"ts_ms": t, "random80": r.hex(), "name": f"{n}.msg"} for t, r, n in names],
        "reply_names": [
            {"agent": a, "request": f"{n}.msg", "attempt": k, "part": p, "reply": f"{ids.reply_stem(a, n, k, p)}.msg"}
            for a, n, k, p in answers
        ],
        "messages": [
            {
                "name": f"{n}.msg",
                "fields": json.loads(message.encode(m)),
                "bytes": message.encode(m).decode(),
                "sha256": sha256(message.encode(m)).hexdigest(),
            }
            for n, m in written
        ],
        "journal": lines,
    }


if __name__ == "__main__":
    sys.path.insert(0, str(VECTORS.parents[1]))
    VECTORS.write_text(json.dumps(generate(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
