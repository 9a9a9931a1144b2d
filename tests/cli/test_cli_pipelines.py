"""Filters in pipelines: with each dialect only answers reach stdout, and each kind of failure has its status and line.

The statuses are those of docs/cli.md.
"""

from __future__ import annotations

import json
import shlex
import socket
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from cli_user import COMMAND, DEADLINE_S, Loom
from far_side import CUT, HOLD, FarSide

KEY = "sk-test-0123456789"
ASK = ("agent", "start", "x", "--prompt", "hi")
AT_ONCE = "Retry-After: 0\r\n"


def whole(body: bytes, media_type: str, status: str = "200 OK", more: str = "") -> bytes:
    head = f"HTTP/1.1 {status}\r\nContent-Type: {media_type}\r\nContent-Length: {len(body)}\r\n{more}\r\n"
    return head.encode() + body


def refusal(status: int, message: str, kind: str = "error", more: str = "") -> bytes:
    error = {"message": message, "type": kind, "code": kind}
    return whole(json.dumps({"type": "error", "error": error}).encode(), "application/json", f"{status} X", more)


def events(*data: dict[str, Any]) -> bytes:
    return b"".join(f"event: {d.get('type', '')}\ndata: {json.dumps(d)}\n\n".encode() for d in data)


def lines(*data: dict[str, Any]) -> bytes:
    return b"".join(json.dumps(d).encode() + b"\n" for d in data)


def openai(text: str, stop: str) -> bytes:
    said = [{"choices": [{"delta": {"content": text}}]}] if text else []
    ended = [{"choices": [{"delta": {}, "finish_reason": stop}]}] if stop else []
    return events(*said, *ended)


def anthropic(text: str, stop: str) -> bytes:
    begun = {"type": "message_start", "message": {"model": "m1", "usage": {"input_tokens": 1}}}
    block = {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}
    said = {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": text}}
    ended = [{"type": "message_delta", "delta": {"stop_reason": stop}}, {"type": "message_stop"}] if stop else []
    return events(begun, block, said, *ended)


def ollama(text: str, stop: str) -> bytes:
    said = {"model": "m1", "message": {"content": text}, "done": False}
    return lines(said, *([{"message": {"content": ""}, "done": True, "done_reason": stop}] if stop else []))


@dataclass(frozen=True)
class Dialect:
    """How a server of this dialect answers. stops: how it says that an answer is over, cut off or refused."""

    name: str
    media_type: str
    write: Callable[[str, str], bytes]
    error: dict[str, Any]
    stops: dict[str, str]

    def says(self, text: str, stop: str = "end") -> bytes:
        return whole(self.write(text, self.stops[stop]), self.media_type)

    def breaks_off(self, text: str) -> list[bytes]:
        whole_one = whole(self.write(text, "") + b" " * 100, self.media_type)
        return [whole_one[:-50], CUT]

    def fails_inside(self) -> bytes:
        body = lines(self.error) if self.name == "ollama" else events(self.error)
        return whole(self.write("", "") + body, self.media_type)


OVERLOADED = {"type": "overloaded_error", "message": "overloaded"}
DIALECTS = {
    d.name: d
    for d in (
        Dialect(
            "openai",
            "text/event-stream",
            openai,
            {"error": OVERLOADED},
            {"end": "stop", "cut": "length", "refused": "content_filter"},
        ),
        Dialect(
            "anthropic",
            "text/event-stream",
            anthropic,
            {"type": "error", "error": OVERLOADED},
            {"end": "end_turn", "cut": "max_tokens", "refused": "refusal"},
        ),
        Dialect("ollama", "application/x-ndjson", ollama, {"error": OVERLOADED}, {"end": "stop", "cut": "length"}),
    )
}


@pytest.fixture
def far() -> Iterator[FarSide]:
    with FarSide() as side:
        yield side


@pytest.fixture(params=DIALECTS)
def dialect(request: pytest.FixtureRequest) -> Dialect:
    return DIALECTS[request.param]


def configure(loom: Loom, dialect: Dialect, url: str) -> None:
    """A home whose provider `lab` is a server of this dialect."""
    loom.home.mkdir()
    provider = f"    base_url: {url}\n    dialect: {dialect.name}\n    key: lab\n"
    (loom.home / "config.yml").write_text(f"model: lab/m1\nproviders:\n  lab:\n{provider}")
    loom.env["LAB_API_KEY"] = KEY


def test_a_pipeline_prints_the_last_answer_and_nothing_else(loom: Loom, far: FarSide, dialect: Dialect) -> None:
    configure(loom, dialect, far.url)
    far.answers += [[dialect.says(text)] for text in ("first ü", "second\n", "third")]
    stage = shlex.join([*COMMAND, "agent", "start"])
    script = f"echo begin | {stage} a | {stage} b --system Translate. | {stage} c"
    done = subprocess.run(["sh", "-c", script], env=loom.env, cwd=loom.place, capture_output=True, timeout=DEADLINE_S)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"third\n", b"")
    assert [asked.json["messages"][-1]["role"] for asked in far.asked] == ["user"] * 3
    contents = [asked.json["messages"][-1]["content"] for asked in far.asked]
    texts = [c if isinstance(c, str) else c[0]["text"] for c in contents]
    assert [text.strip() for text in texts] == ["begin", "first ü", "second"]


# What the server does, how often it is asked, the status, a word of the line.
REFUSALS = {
    "key": (refusal(401, "bad key"), 1, 78, "refused the key"),
    "forbidden": (refusal(403, "not yours"), 1, 78, "refused the key"),
    "billing": (refusal(402, "no credit"), 1, 78, "credit"),
    "quota": (refusal(429, "you exceeded your quota", "insufficient_quota"), 1, 78, "credit"),
    "no such model": (refusal(404, "no m1 here", "not_found_error"), 1, 78, "m1"),
    "bad request": (refusal(400, "no such field", "invalid_request_error"), 1, 65, "no such field"),
    "too long": (refusal(400, "prompt is too long: 9 tokens > 8 maximum"), 1, 65, "larger window"),
    "too large": (refusal(413, "too large", "request_too_large"), 1, 65, "larger window"),
    "rate limit": (refusal(429, "slow down", "rate_limit_error", AT_ONCE), 5, 75, "slow down"),
    "overloaded": (refusal(529, "overloaded", "overloaded_error", AT_ONCE), 5, 75, "overloaded"),
    "its own fault": (refusal(500, "oops", "api_error", AT_ONCE), 5, 69, "oops"),
}


@pytest.mark.parametrize("kind", REFUSALS)
def test_a_refusal_has_its_status_and_one_line(loom: Loom, far: FarSide, dialect: Dialect, kind: str) -> None:
    answer, asked, status, word = REFUSALS[kind]
    configure(loom, dialect, far.url)
    far.answers += [[answer]] * asked
    fails(loom, status, word, tells_more=asked > 1)
    assert len(far.asked) == asked


def test_an_error_inside_of_a_stream_has_its_status_and_one_line(loom: Loom, far: FarSide, dialect: Dialect) -> None:
    configure(loom, dialect, far.url)
    far.answers += [[dialect.fails_inside()]] * 3
    fails(loom, 75, "overloaded", "--timeout", "7", tells_more=True)  # a third pause would be beyond it


def test_a_stream_that_breaks_off_is_no_answer(loom: Loom, far: FarSide, dialect: Dialect) -> None:
    configure(loom, dialect, far.url)
    far.answers += [dialect.breaks_off("half of\nan answer")]
    fails(loom, 69, "missing", out="half of\nan answer")


def test_an_answer_that_is_cut_off_is_bad_input(loom: Loom, far: FarSide, dialect: Dialect) -> None:
    configure(loom, dialect, far.url)
    far.answers += [[dialect.says("too much", "cut")]]
    fails(loom, 65, "cut off", out="too much")


@pytest.mark.parametrize("dialect", ["openai", "anthropic"], indirect=True)
def test_a_refusal_of_the_model_is_a_failure(loom: Loom, far: FarSide, dialect: Dialect) -> None:
    configure(loom, dialect, far.url)
    far.answers += [[dialect.says("I will not.", "refused")]]
    fails(loom, 1, "refused", out="I will not.")


def test_what_does_not_fit_its_schema_is_bad_input(loom: Loom, far: FarSide, dialect: Dialect) -> None:
    configure(loom, dialect, far.url)
    (loom.place / "n.json").write_text('{"type": "object", "required": ["n"]}')
    far.answers += [[dialect.says('{"m": 1}')]] * 3
    fails(loom, 65, "'n'", "--schema", "n.json", tells_more=True)
    assert len(far.asked) == 3


def test_a_server_that_falls_silent_meets_the_deadline(loom: Loom, far: FarSide, dialect: Dialect) -> None:
    configure(loom, dialect, far.url)
    far.answers += [[dialect.says("never ends")[:-20], HOLD]]
    said = loom("-q", *ASK, "--timeout", "1")
    assert (said.status, said.err.count("\n")) == (124, 1), said


def test_a_server_that_is_not_there_is_unavailable(loom: Loom, dialect: Dialect) -> None:
    with socket.socket() as taken:  # nobody else gets the port, and nobody listens on it
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        configure(loom, dialect, f"http://127.0.0.1:{port}/v1")
        fails(loom, 69, "refused", "--timeout", "7", tells_more=True)


def test_what_keeps_it_from_asking_is_told_too(loom: Loom, far: FarSide) -> None:
    configure(loom, DIALECTS["openai"], far.url)
    fails(loom, 78, "LAB_API_KEY", key="")
    fails(loom, 2, "nowhere", "--model", "nowhere/m1")
    fails(loom, 66, "none.json", "--schema", "none.json")
    assert far.asked == []


def fails(
    loom: Loom, status: int, word: str, *more: str, out: str = "", tells_more: bool = False, key: str = KEY
) -> None:
    """Ask, and see that it ends so.

    out         what was said before it failed
    tells_more  without -q every further try has a line of its own
    """
    said = loom(*(["-q"] if tells_more else []), *ASK, *more, LAB_API_KEY=key)
    assert (said.status, said.out) == (status, out), said
    assert said.err.startswith("loom: ") and said.err.endswith("\n") and said.err.count("\n") == 1, said
    assert word in said.err, said
    assert KEY not in said.err
