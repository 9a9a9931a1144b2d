"""The providers' own clients as judges: the same bytes from the same server mean the same to theirs and to ours.

Each case is what the far side sends and what that means. `theirs` stands where their client takes it otherwise, with
the reason why ours does not follow. Their packages take seconds to load, so this is no part of `make check`.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import anthropic
import openai
import pytest
from anthropic.types.message_create_params import MessageCreateParamsStreaming
from far_side import CUT, HOLD, FarSide
from model_far_side import chat, collect
from openai.types.chat.completion_create_params import CompletionCreateParamsStreaming
from pydantic import ConfigDict, TypeAdapter, with_config

from loom.models.anthropic import AnthropicModel
from loom.models.classify import Endpoint
from loom.models.openai import OpenAIModel
from loom.models.transport import Timeouts
from loom.wire import errors
from loom.wire.chat import ChatMessage, ChatRequest, Image, ToolCall, ToolSpec

pytestmark = pytest.mark.slow

QUICK_S = 0.3
Call = tuple[str, str, str]  # id, name, arguments as sorted JSON, or as they came when they are none


@dataclass(frozen=True)
class Outcome:
    """What an answer means, in words both sides share: a reply, or the kind of its error.

    usage   tokens of input, those that were cached included; of output; cached ones
    error   busy, key, absent, bad, away, broken; '' for a reply
    """

    text: str = ""
    calls: tuple[Call, ...] = ()
    stop: str = "end"
    usage: tuple[int, int, int] = (0, 0, 0)
    error: str = ""


@dataclass(frozen=True)
class Case:
    """One answer. `quick`: both sides are to give up after QUICK_S of silence."""

    pieces: tuple[bytes, ...]
    outcome: Outcome
    theirs: Outcome | None = None
    why: str = ""
    quick: bool = False


def failed(kind: str) -> Outcome:
    return Outcome(error=kind)


@pytest.fixture
def far() -> Iterator[FarSide]:
    with FarSide() as side:
        yield side


# both dialects


def head(status: str = "200 OK", **lines: str) -> bytes:
    given = {"Content_Type": "text/event-stream", **lines}
    text = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in given.items())
    return f"HTTP/1.1 {status}\r\n{text}\r\n".encode()


def whole(body: bytes, status: str = "200 OK", **lines: str) -> tuple[bytes, ...]:
    return (head(status, Content_Length=str(len(body)), **lines) + body,)


def chunked(body: bytes, size: int, end: bytes = b"0\r\n\r\n") -> tuple[bytes, ...]:
    pieces = [body[at : at + size] for at in range(0, len(body), size)]
    return (head(Transfer_Encoding="chunked"), *(b"%x\r\n%s\r\n" % (len(p), p) for p in pieces), end)


def refusals(body: Callable[[str], str]) -> dict[str, Case]:
    """Statuses both dialects share."""
    kinds = {
        400: "bad", 401: "key", 403: "key", 404: "absent", 422: "bad", 429: "busy", 500: "away", 502: "away",
        503: "away", 529: "away",
    }  # fmt: skip
    return {
        f"status {status}": Case(whole(body(str(status)).encode(), f"{status} X"), failed(kind))
        for status, kind in kinds.items()
    }


def transfers(stream: bytes, meant: Outcome) -> dict[str, Case]:
    """One good stream, in every manner in which it may come; and the manners in which it may not."""
    moved = head("307 Moved", Location="/elsewhere", Content_Length="0")
    return {
        "every byte alone": Case(chunked(stream, 1), meant),
        "all at once": Case(whole(stream), meant),
        "until the connection ends": Case((head(Connection="close") + stream, CUT), meant),
        "lines that end with CR LF": Case(whole(stream.replace(b"\n", b"\r\n")), meant),
        "comments between": Case(whole(b": hello\n\n" + stream.replace(b"\n\n", b"\n\n: still here\n\n")), meant),
        "a byte order mark": Case(whole(b"\xef\xbb\xbf" + stream), meant),
        "compressed though nobody asked": Case(whole(gzip.compress(stream), Content_Encoding="gzip"), meant),
        "after a redirect within the server": Case((moved, b""), meant),
        "an early answer before": Case((b"HTTP/1.1 103 Early Hints\r\n\r\n", *whole(stream)), meant),
        "a chunk that is cut": Case((*chunked(stream[: len(stream) // 3], 50, b"ff\r\nda"), CUT), failed("broken")),
        "a body that is shorter than it said": Case(
            (head(Content_Length="99999") + stream[: len(stream) // 3], CUT), failed("broken")
        ),
        "silence in the middle": Case(
            (*chunked(stream[: len(stream) // 3], 50, b""), HOLD), failed("broken"), quick=True
        ),
        "silence from the start": Case((HOLD,), failed("away"), quick=True),
        "nothing at all": Case((CUT,), failed("away")),
        "no HTTP": Case((b"SSH-2.0-OpenSSH\r\n", CUT), failed("away")),
    }


# openai


def sse(*chunks: Any, done: bool = True) -> bytes:
    events = [b"data: " + json.dumps(c, ensure_ascii=False).encode() + b"\n\n" for c in chunks]
    return b"".join(events) + (b"data: [DONE]\n\n" if done else b"")


def delta(finish: str | None = None, **fields: Any) -> dict[str, Any]:
    choice = {"index": 0, "delta": fields, "finish_reason": finish}
    return {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m1", "choices": [choice]}


def counted() -> dict[str, Any]:
    usage = {
        "prompt_tokens": 11, "completion_tokens": 7, "total_tokens": 18, "prompt_tokens_details": {"cached_tokens": 3},
    }  # fmt: skip
    return delta() | {"choices": [], "usage": usage}


def calls(*pieces: dict[str, Any]) -> dict[str, Any]:
    return delta(tool_calls=list(pieces))


def call(index: int, call_id: str, name: str, arguments: str = "") -> dict[str, Any]:
    return {"index": index, "id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}


def more(index: int, arguments: str) -> dict[str, Any]:
    return {"index": index, "function": {"arguments": arguments}}


HELLO = sse(
    delta(role="assistant", content=""), delta(content="Grüß "), delta(content="dich 🧵"), delta("stop"), counted()
)
SAID = Outcome("Grüß dich 🧵", usage=(11, 7, 3))
READ = ("c1", "read", '{"path": "a"}')

OPENAI: dict[str, Case] = {
    **transfers(HELLO, SAID),
    **refusals(lambda status: json.dumps({"error": {"message": f"no {status}", "type": "x", "code": None}})),
    "calls in pieces that take turns": Case(
        whole(sse(
            calls(call(0, "c1", "read", '{"pa')), calls(call(1, "c2", "list")), calls(more(0, 'th": ')),
            calls(more(1, "{"), more(0, '"a"}')), calls(more(1, "}")), delta("tool_calls"), counted(),
        )),
        Outcome(calls=(READ, ("c2", "list", "{}")), stop="tool_calls", usage=(11, 7, 3))),
    "text and a call": Case(
        whole(sse(delta(content="Let me see."), calls(call(0, "c1", "read", '{"path": "a"}')), delta("tool_calls"))),
        Outcome("Let me see.", (READ,), "tool_calls")),
    "a call without arguments": Case(
        whole(sse(calls(call(0, "c1", "read")), delta("tool_calls"))),
        Outcome(calls=(("c1", "read", "{}"),), stop="tool_calls")),
    "arguments that are no JSON": Case(
        whole(sse(calls(call(0, "c1", "read", '{"pa')), delta("tool_calls"))),
        Outcome(calls=(("c1", "read", '{"pa'),), stop="tool_calls")),
    "the limit is reached": Case(whole(sse(delta(content="x"), delta("length"))), Outcome("x", stop="length")),
    "a filter ends it": Case(whole(sse(delta(content="x"), delta("content_filter"))), Outcome("x", stop="refusal")),
    "no usage": Case(whole(sse(delta(content="x"), delta("stop"))), Outcome("x")),
    "an empty answer": Case(whole(sse(delta("stop"))), Outcome()),
    "usage that is null on the way": Case(
        whole(sse(delta(content="x") | {"usage": None}, delta("stop") | {"usage": None}, counted())),
        Outcome("x", usage=(11, 7, 3))),
    "thoughts are no answer": Case(
        whole(sse(delta(reasoning_content="hm"), delta(content="x"), delta("stop"))), Outcome("x")),
    "a field nobody knows": Case(
        whole(sse(delta(content="x", mood="fine") | {"weather": []}, delta("stop"))), Outcome("x")),
    "an error in the middle": Case(
        whole(sse(delta(content="x"), {"error": {"message": "boom", "type": "server_error"}})), failed("broken")),
    "garbage in the middle": Case(whole(sse(delta(content="x")) .replace(b"[DONE]", b"{not json")), failed("broken")),
    "an error in the middle that has a meaning": Case(
        whole(sse(delta(content="x"), {"error": {"message": "slow down", "code": 429}})), failed("busy"),
        failed("broken"), "who is told to slow down waits longer before the next try"),
    "a refusal in words": Case(
        whole(sse(delta(refusal="I cannot."), delta("stop"))), Outcome("I cannot.", stop="refusal"), Outcome(""),
        "people read the words as text, and programs that it is a refusal"),
    "stop after calls": Case(
        whole(sse(calls(call(0, "c1", "read", '{"path": "a"}')), delta("stop"))),
        Outcome(calls=(READ,), stop="tool_calls"), Outcome(calls=(READ,)),
        "several servers say stop where OpenAI says tool_calls; the calls are to be made"),
    "no reason at the end": Case(
        whole(sse(delta(content="half an"), done=False)), failed("broken"), Outcome("half an", stop="none"),
        "an answer is one only when the server said that it is complete"),
    "one object instead of a stream": Case(
        whole(json.dumps({
            "id": "c", "object": "chat.completion", "created": 1, "model": "m1",
            "choices": [{"index": 0, "message": {"role": "assistant", "content": "x"}, "finish_reason": "stop"}],
        }).encode(), Content_Type="application/json"),
        Outcome("x"), failed("broken"), "several servers do not stream with tools, whatever was asked for"),
}  # fmt: skip


def ours_openai(far: FarSide, quick: bool, request: ChatRequest | None = None) -> Outcome:
    timeouts = Timeouts(QUICK_S, QUICK_S, QUICK_S) if quick else Timeouts()
    return ours(OpenAIModel(Endpoint("lab", "m1", far.url, "K", "sk-x"), timeouts), request)


def ours(model: Any, request: ChatRequest | None = None) -> Outcome:
    try:
        text, reply = collect(model, request or chat())
    except errors.LoomError as error:
        return failed(OURS[type(error)])
    made = tuple((c.id, c.name, json.dumps(c.input) if c.input is not None else c.raw) for c in reply.calls)
    usage = reply.usage
    return Outcome(text, made, reply.stop, (usage.input_tokens, usage.output_tokens, usage.cached_tokens))


OURS: dict[type, str] = {
    errors.TryLater: "busy", errors.Config: "key", errors.ModelNotFound: "absent", errors.BadInput: "bad",
    errors.Unavailable: "away", errors.BrokenStream: "broken",
}  # fmt: skip


def as_json(arguments: str) -> str:
    try:
        return json.dumps(json.loads(arguments or "{}"))
    except ValueError:
        return arguments


def theirs_openai(far: FarSide, quick: bool) -> Outcome:
    client = openai.OpenAI(
        base_url=far.url, api_key="sk-x", max_retries=0, timeout=QUICK_S if quick else 60.0,
        http_client=openai.DefaultHttpxClient(trust_env=False),
    )  # fmt: skip
    begun = False
    try:
        asked = client.chat.completions.create(
            model="m1", messages=[{"role": "user", "content": "hello"}], stream=True,
            stream_options={"include_usage": True},
        )  # fmt: skip
        begun = True
        text, made, finish, usage = "", dict[int, list[str]](), "", None
        for chunk in asked:
            usage = chunk.usage or usage
            for choice in chunk.choices:
                text += choice.delta.content or ""
                finish = choice.finish_reason or finish
                for piece in choice.delta.tool_calls or ():
                    one = made.setdefault(piece.index, ["", "", ""])
                    function = piece.function
                    one[0] += piece.id or ""
                    one[1] += (function.name if function else "") or ""
                    one[2] += (function.arguments if function else "") or ""
        if not begun or (not finish and not text and not made):
            return failed("broken")
    except Exception as error:
        return failed(kind_of(error, begun, openai))
    finally:
        client.close()
    words = {"stop": "end", "content_filter": "refusal", "": "none"}
    details = usage.prompt_tokens_details if usage else None
    tokens = (
        (usage.prompt_tokens, usage.completion_tokens, (details and details.cached_tokens) or 0) if usage else (0, 0, 0)
    )
    return Outcome(text, tuple((i, n, as_json(a)) for i, n, a in made.values()), words.get(finish, finish), tokens)


def kind_of(error: Exception, begun: bool, package: Any) -> str:
    """What an exception of theirs means. Raises what is none of them: a fault of this test."""
    if isinstance(error, package.APIStatusError) and not begun:
        status = error.status_code
        known = {400: "bad", 422: "bad", 401: "key", 403: "key", 404: "absent", 429: "busy"}
        return known.get(status) or ("away" if status >= 500 else f"status {status}")
    if isinstance(error, package.APIConnectionError):
        return "broken" if begun else "away"
    of_http = any(c.__name__ == "HTTPError" and c.__module__.startswith("httpx") for c in type(error).__mro__)
    if begun and (of_http or isinstance(error, package.APIError | ValueError | AssertionError)):
        return "broken"
    raise error


def served(far: FarSide, case: Case) -> None:
    """Twice the same: once for each side. A redirect is followed by the good stream, whatever the path."""
    for _ in range(2):
        if case.pieces[-1] == b"":
            far.answers += [case.pieces[:1], whole(HELLO if case.outcome == SAID else TALK)]
        else:
            far.answers.append(case.pieces)


def busy_or_away(outcome: Outcome) -> Outcome:
    """We tell servers that are overloaded (503, 529) from those that are broken; their clients do not."""
    return replace(outcome, error="away") if outcome.error == "busy" else outcome


def judged(case: Case, far: FarSide, mine: Callable[..., Outcome], other: Callable[..., Outcome]) -> None:
    served(far, case)
    said, judge = mine(far, case.quick), other(far, case.quick)
    expected = case.outcome
    if b" 503 " in case.pieces[0][:14] or b" 529 " in case.pieces[0][:14]:
        said = busy_or_away(said)
    assert said == expected
    if case.theirs is None:
        assert judge == expected
    else:
        assert case.why
        assert judge == case.theirs


@pytest.mark.parametrize("case", OPENAI.values(), ids=OPENAI.keys())
def test_openais_client_agrees(case: Case, far: FarSide):
    judged(case, far, ours_openai, theirs_openai)


# anthropic


def events(*items: dict[str, Any]) -> bytes:
    return "".join(f"event: {i['type']}\ndata: {json.dumps(i, ensure_ascii=False)}\n\n" for i in items).encode()


def start(**usage: int) -> dict[str, Any]:
    message = {
        "id": "msg_1", "type": "message", "role": "assistant", "model": "m1", "content": [], "stop_reason": None,
        "stop_sequence": None, "usage": {"input_tokens": 11, "output_tokens": 1, **usage},
    }  # fmt: skip
    return {"type": "message_start", "message": message}


def block(index: int, begun: dict[str, Any], *deltas: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        {"type": "content_block_start", "index": index, "content_block": begun},
        *({"type": "content_block_delta", "index": index, "delta": d} for d in deltas),
        {"type": "content_block_stop", "index": index},
    ]


def words(index: int, *pieces: str) -> list[dict[str, Any]]:
    return block(index, {"type": "text", "text": ""}, *({"type": "text_delta", "text": p} for p in pieces))


def use(index: int, call_id: str, name: str, *pieces: str) -> list[dict[str, Any]]:
    begun = {"type": "tool_use", "id": call_id, "name": name, "input": {}}
    return block(index, begun, *({"type": "input_json_delta", "partial_json": p} for p in pieces))


def end(reason: str = "end_turn", **usage: int) -> list[dict[str, Any]]:
    delta = {"stop_reason": reason, "stop_sequence": None}
    return [{"type": "message_delta", "delta": delta, "usage": {"output_tokens": 7, **usage}}, {"type": "message_stop"}]


TALK = events(start(), {"type": "ping"}, *words(0, "Grüß ", "dich 🧵"), *end())
TALKED = Outcome("Grüß dich 🧵", usage=(11, 7, 0))
THOUGHT = block(
    0,
    {"type": "thinking", "thinking": "", "signature": ""},
    {"type": "thinking_delta", "thinking": "hm"},
    {"type": "signature_delta", "signature": "Et8B"},
)


def error_event(kind: str) -> bytes:
    return events({"type": "error", "error": {"type": kind, "message": "no"}})


ANTHROPIC: dict[str, Case] = {
    **transfers(TALK, TALKED),
    **refusals(lambda status: json.dumps({"type": "error", "error": {"type": "x", "message": f"no {status}"}})),
    "a byte order mark": Case(
        whole(b"\xef\xbb\xbf" + TALK), TALKED, failed("broken"),
        "the standard of event streams says that one may stand there"),
    "text and two calls": Case(
        whole(events(start(), *words(0, "Let me see."), *use(1, "c1", "read", "", '{"pa', 'th": "a"}'),
                     *use(2, "c2", "list"), *end("tool_use"))),
        Outcome("Let me see.", (READ, ("c2", "list", "{}")), "tool_calls", (11, 7, 0))),
    "thoughts are no answer": Case(
        whole(events(start(), *THOUGHT, *words(1, "x"), *end())), Outcome("x", usage=(11, 7, 0))),
    "sealed thoughts": Case(
        whole(events(start(), *block(0, {"type": "redacted_thinking", "data": "abc"}), *words(1, "x"), *end())),
        Outcome("x", usage=(11, 7, 0))),
    "usage with what was cached": Case(
        whole(events(start(cache_read_input_tokens=100, cache_creation_input_tokens=20), *words(0, "x"), *end())),
        Outcome("x", usage=(131, 7, 100))),
    "the limit is reached": Case(
        whole(events(start(), *words(0, "x"), *end("max_tokens"))), Outcome("x", stop="length", usage=(11, 7, 0))),
    "a refusal": Case(
        whole(events(start(), *words(0, "x"), *end("refusal"))), Outcome("x", stop="refusal", usage=(11, 7, 0))),
    "a stop sequence": Case(
        whole(events(start(), *words(0, "x"), *end("stop_sequence"))), Outcome("x", usage=(11, 7, 0))),
    "an empty answer": Case(whole(events(start(), *end())), Outcome(usage=(11, 7, 0))),
    "an event nobody knows": Case(
        whole(events(start(), {"type": "weather", "sky": "blue"}, *words(0, "x"), *end())),
        Outcome("x", usage=(11, 7, 0))),
    "an error in the middle": Case(
        whole(events(start(), *words(0, "x")) + error_event("api_error")), failed("broken")),
    "garbage in the middle": Case(
        whole(events(start(), *words(0, "x")) + b"event: message_delta\ndata: {not json\n\n"), failed("broken")),
    "an error in the middle that has a meaning": Case(
        whole(events(start(), *words(0, "x")) + error_event("overloaded_error")), failed("busy"), failed("broken"),
        "who is told that it is overloaded waits longer before the next try"),
    "no reason at the end": Case(
        whole(events(start(), *words(0, "half an"))), failed("broken"),
        Outcome("half an", stop="none", usage=(11, 1, 0)),
        "an answer is one only when the server said that it is complete"),
    "arguments that are cut": Case(
        whole(events(start(), *use(0, "c1", "read", '{"path": "a", "x'), *end("tool_use"))),
        Outcome(calls=(("c1", "read", '{"path": "a", "x'),), stop="tool_calls", usage=(11, 7, 0)),
        Outcome(calls=(READ,), stop="tool_calls", usage=(11, 7, 0)),
        "half of the arguments is none: the model is told, and no tool is run with a guess"),
}  # fmt: skip


def ours_anthropic(far: FarSide, quick: bool) -> Outcome:
    timeouts = Timeouts(QUICK_S, QUICK_S, QUICK_S) if quick else Timeouts()
    return ours(AnthropicModel(Endpoint("lab", "m1", far.url, "K", "sk-x"), timeouts))


def theirs_anthropic(far: FarSide, quick: bool) -> Outcome:
    limit_s = QUICK_S if quick else 60.0
    client = anthropic.Anthropic(
        base_url=far.url.removesuffix("/v1"), api_key="sk-x", max_retries=0, timeout=limit_s,
        http_client=anthropic.DefaultHttpxClient(trust_env=False),
    )  # fmt: skip
    begun = False
    try:
        asked = client.messages.stream(model="m1", max_tokens=100, messages=[{"role": "user", "content": "hello"}])
        with asked as stream:
            begun = True
            message = stream.get_final_message()
    except Exception as error:
        return failed(kind_of(error, begun, anthropic))
    finally:
        client.close()
    text = "".join(b.text for b in message.content if b.type == "text")
    made = tuple((b.id, b.name, json.dumps(b.input)) for b in message.content if b.type == "tool_use")
    words = {"end_turn": "end", "stop_sequence": "end", "tool_use": "tool_calls", "max_tokens": "length", None: "none"}
    usage = message.usage
    cached = usage.cache_read_input_tokens or 0
    read = usage.input_tokens + cached + (usage.cache_creation_input_tokens or 0)
    stop = words.get(message.stop_reason, str(message.stop_reason))
    return Outcome(text, made, stop, (read, usage.output_tokens, cached))


@pytest.mark.parametrize("case", ANTHROPIC.values(), ids=ANTHROPIC.keys())
def test_anthropics_client_agrees(case: Case, far: FarSide):
    judged(case, far, ours_anthropic, theirs_anthropic)


# what we send


SAID_SO_FAR = (
    ChatMessage("system", "be brief"),
    ChatMessage("user", "look at this", images=(Image("image/png", "d1"),)),
    ChatMessage(
        "assistant", "Let me see.", (ToolCall("c1", "read", {"path": "ä"}), ToolCall("c2", "read", None, "{bad"))
    ),
    ChatMessage("tool", "text", call_id="c1"),
    ChatMessage("tool", "no such file", call_id="c2", is_error=True),
    ChatMessage("user", "and now?"),
)
SPEC = ToolSpec("read", "reads a file", {"type": "object", "properties": {"path": {"type": "string"}}})


@pytest.mark.parametrize(
    "kind, shape, options",
    [
        (OpenAIModel, CompletionCreateParamsStreaming, {"seed": 7, "temperature": 0.5, "top_p": 1, "stop": ["x"]}),
        (AnthropicModel, MessageCreateParamsStreaming, {"seed": 7, "stop_sequences": ["x"]}),
    ],
)
def test_a_request_has_the_shape_that_their_types_describe(
    far: FarSide, kind: Any, shape: Any, options: dict[str, Any]
):
    model = kind(Endpoint("lab", "m1", far.url, "K", "sk-x"), blob=lambda digest: b"\x89PNG")
    far.answers.append(whole(HELLO if kind is OpenAIModel else TALK))
    collect(model, ChatRequest("m1", SAID_SO_FAR, (SPEC,), 99, options))
    body = far.asked[0].json
    strict = with_config(ConfigDict(extra="forbid"))(shape)
    TypeAdapter(strict).validate_python(body)  # raises for what is missing, of another type, or unknown to them
    assert body["messages"] and body["tools"] and body.get("stop", body.get("stop_sequences")) == ["x"]
