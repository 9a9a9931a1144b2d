"""The Anthropic dialect against a real server: what is an answer, what is not, and what is sent."""

from __future__ import annotations

import json
from base64 import b64decode
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from model_far_side import HOLD, KEY, STREAM, chat, collect, response

from loom.models.anthropic import MAX_TOKENS, AnthropicModel
from loom.models.anthropic_answer import Answer
from loom.models.classify import Endpoint, is_transient
from loom.models.sse import SseEvent
from loom.models.transport import DEFAULT, Timeouts
from loom.wire import errors
from loom.wire.chat import ChatMessage, ChatReply, ChatRequest, Image, ToolCall, ToolSpec, Usage


def event(kind: str, **fields: Any) -> dict[str, Any]:
    return {"type": kind, **fields}


def events(*items: dict[str, Any]) -> bytes:
    """Events as a stream of this dialect."""
    lines = (f"event: {i['type']}\ndata: {json.dumps(i, ensure_ascii=False)}\n\n" for i in items)
    return "".join(lines).encode()


def start(**usage: int) -> dict[str, Any]:
    return event("message_start", message={"id": "msg_1", "model": "m1-0425", "usage": {"input_tokens": 11, **usage}})


def block(index: int, *pieces: dict[str, Any], **begun: Any) -> list[dict[str, Any]]:
    deltas = [event("content_block_delta", index=index, delta=piece) for piece in pieces]
    begin = event("content_block_start", index=index, content_block=begun)
    return [begin, *deltas, event("content_block_stop", index=index)]


def text(index: int, *pieces: str) -> list[dict[str, Any]]:
    return block(index, *({"type": "text_delta", "text": p} for p in pieces), type="text", text="")


def call(index: int, call_id: str, name: str, *pieces: str) -> list[dict[str, Any]]:
    deltas = ({"type": "input_json_delta", "partial_json": p} for p in pieces)
    return block(index, *deltas, type="tool_use", id=call_id, name=name, input={})


def end(reason: str, **usage: int) -> list[dict[str, Any]]:
    stopped = event("message_delta", delta={"stop_reason": reason, "stop_sequence": None}, usage=usage)
    return [stopped, event("message_stop")]


HELLO = [start(), event("ping"), *text(0, "Grüß ", "dich 🧵"), *end("end_turn", output_tokens=7)]


@pytest.fixture
def ask(server):
    """Ask a model at the server; gives the streamed text and the reply, having checked that they agree."""

    def asked(*answer: bytes, timeouts: Timeouts = DEFAULT, **request: Any) -> tuple[str, ChatReply]:
        if answer:
            server.answers.append(answer)
        endpoint = Endpoint("anthropic", "m1", server.url, "ANTHROPIC_API_KEY", KEY)
        return collect(
            AnthropicModel(endpoint, timeouts, lambda digest: f"bytes of {digest}".encode()), chat(**request)
        )

    return asked


def test_text_comes_as_it_is_spoken_and_then_whole(ask):
    said, reply = ask(STREAM + events(*HELLO))
    assert said == "Grüß dich 🧵"
    assert reply == ChatReply(said, (), "end", Usage(11, 7, 0), "m1-0425")


def test_the_answer_is_the_same_when_every_byte_comes_alone(ask):
    stream = STREAM + events(*HELLO)
    assert ask(*[stream[i : i + 1] for i in range(len(stream))])[0] == "Grüß dich 🧵"


@given(st.lists(st.integers(1, 400), max_size=6))
def test_the_answer_does_not_depend_on_how_its_bytes_are_cut(cuts):
    from loom.models.sse import SseParser

    data = events(*HELLO)
    parser, answer, said, at = SseParser(), Answer(Endpoint("a", "m", "http://x"), chat()), "", 0
    for cut in [*sorted(cuts), len(data)]:
        for one in parser.feed(data[at:cut]) if cut > at else ():
            said += "".join(answer.add_event(one))
        at = max(at, cut)
    assert said == answer.reply().text == "Grüß dich 🧵"


def test_the_answer_ends_with_message_stop_even_when_the_server_keeps_the_connection(ask):
    assert ask(STREAM + events(*HELLO), HOLD)[0] == "Grüß dich 🧵"


def test_tool_calls_are_assembled_from_their_blocks(ask):
    stream = [start(), *text(0, "Let me see."), *call(1, "c1", "read", "", '{"pa', 'th": "a"}'), *call(2, "c2", "list")]
    said, reply = ask(STREAM + events(*stream, *end("tool_use", output_tokens=3)))
    assert said == "Let me see."
    assert reply.calls == (ToolCall("c1", "read", {"path": "a"}), ToolCall("c2", "list", {}))
    assert reply.stop == "tool_calls"


@pytest.mark.parametrize("raw", ['{"path": ', "[1]", '"a"', "null"])
def test_arguments_that_are_no_object_are_kept_as_they_came(ask, raw):
    _, reply = ask(STREAM + events(start(), *call(0, "c1", "read", raw), *end("tool_use")))
    assert reply.calls == (ToolCall("c1", "read", None, raw),)


@pytest.mark.parametrize(
    "reason, stop",
    [
        ("end_turn", "end"),
        ("stop_sequence", "end"),
        ("max_tokens", "length"),
        ("model_context_window_exceeded", "length"),
        ("refusal", "refusal"),
        ("pause_turn", "end"),
        ("tool_use", "end"),
    ],
)
def test_stop_reasons(ask, reason, stop):
    assert ask(STREAM + events(start(), *text(0, "x"), *end(reason)))[1].stop == stop


def test_usage_counts_what_was_cached_as_input_too(ask):
    begun = start(cache_read_input_tokens=100, cache_creation_input_tokens=20, output_tokens=1)
    _, reply = ask(STREAM + events(begun, *text(0, "x"), *end("end_turn", output_tokens=9)))
    assert reply.usage == Usage(131, 9, 100)


def test_an_answer_that_was_not_streamed_is_one_too(ask):
    body = {
        "type": "message",
        "model": "m1-0425",
        "content": [{"type": "text", "text": "yes"}, {"type": "tool_use", "id": "c1", "name": "f", "input": {"a": 1}}],
        "stop_reason": "tool_use",
        "usage": {"input_tokens": 2, "output_tokens": 3},
    }
    _, reply = ask(response(200, json.dumps(body).encode()))
    assert reply == ChatReply("yes", (ToolCall("c1", "f", {"a": 1}),), "tool_calls", Usage(2, 3), "m1-0425")


# -- thinking --------------------------------------------------------------------------------------------------

THOUGHT = block(
    0,
    {"type": "thinking_delta", "thinking": "hm, "},
    {"type": "thinking_delta", "thinking": "well"},
    {"type": "signature_delta", "signature": "c2ln"},
    type="thinking",
    thinking="",
    signature="",
)
HIDDEN = block(1, type="redacted_thinking", data="b3BhcXVl")


def test_thoughts_are_no_part_of_the_answer(ask):
    said, reply = ask(STREAM + events(start(), *THOUGHT, *text(1, "yes"), *end("end_turn")))
    assert (said, reply.reasoning, reply.thoughts) == ("yes", "hm, well", ())


def test_thoughts_before_a_call_are_given_back_as_they_were_signed(ask, server):
    stream = [start(), *THOUGHT, *HIDDEN, *call(2, "c1", "read", "{}"), *end("tool_use")]
    _, reply = ask(STREAM + events(*stream))
    said = ChatMessage("assistant", reply.text, reply.calls, thoughts=reply.thoughts)
    foreign = {"dialect": "openai", "field": "reasoning_details", "value": [1]}
    told = ChatMessage("tool", "result", call_id="c1")
    other = ChatMessage("assistant", "x", reply.calls, thoughts=(foreign,))
    ask(STREAM + events(*HELLO), messages=(ChatMessage("user", "a"), said, told, other, told))
    content = server.requests[1]["messages"][1]["content"]
    assert content[0] == {"type": "thinking", "thinking": "hm, well", "signature": "c2ln"}
    assert content[1] == {"type": "redacted_thinking", "data": "b3BhcXVl"}
    assert [b["type"] for b in content] == ["thinking", "redacted_thinking", "tool_use"]
    assert [b["type"] for b in server.requests[1]["messages"][3]["content"]] == ["text", "tool_use"]


# -- what is sent ----------------------------------------------------------------------------------------------


def test_what_is_sent(ask, server):
    tool = ToolSpec("read", "reads", {"type": "object"})
    messages = (
        ChatMessage("system", "Be brief."),
        ChatMessage("user", "a", images=(Image("image/png", "d1"),)),
        ChatMessage("assistant", "", (ToolCall("c1", "read", {"p": 1}), ToolCall("c2", "read", None, "{bad"))),
        ChatMessage("tool", "one", call_id="c1"),
        ChatMessage("tool", "two", call_id="c2", is_error=True),
        ChatMessage("user", "go on"),
    )
    ask(STREAM + events(*HELLO), messages=messages, tools=(tool,), options={"temperature": 0.5, "seed": 7})
    sent, headers = server.requests[0], server.headers[0]
    assert server.paths == ["/v1/messages"]
    assert (headers["x-api-key"], headers["anthropic-version"]) == (KEY, "2023-06-01")
    assert "authorization" not in headers
    image = sent["messages"][0]["content"][0]["source"]
    assert (image["media_type"], b64decode(image["data"])) == ("image/png", b"bytes of d1")
    sent["messages"][0]["content"].pop(0)
    assert sent == {
        "model": "m1",
        "max_tokens": MAX_TOKENS,
        "stream": True,
        "temperature": 0.5,
        "system": "Be brief.",
        "tools": [{"name": "read", "description": "reads", "input_schema": {"type": "object"}}],
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "a"}]},
            {
                "role": "assistant",
                "content": [
                    {"type": "tool_use", "id": "c1", "name": "read", "input": {"p": 1}},
                    {"type": "tool_use", "id": "c2", "name": "read", "input": {"unreadable_arguments": "{bad"}},
                ],
            },
            {
                "role": "user",
                "content": [
                    {"type": "tool_result", "tool_use_id": "c1", "content": "one"},
                    {"type": "tool_result", "tool_use_id": "c2", "content": "two", "is_error": True},
                    {"type": "text", "text": "go on"},
                ],
            },
        ],
    }


def test_a_limit_that_is_too_high_for_the_model_is_lowered_to_what_it_says(ask, server):
    said = f"max_tokens: {MAX_TOKENS} > 4096, which is the maximum allowed number of output tokens for m1"
    refused = {"type": "error", "error": {"type": "invalid_request_error", "message": said}}
    server.answers += [[response(400, json.dumps(refused).encode())], [STREAM + events(*HELLO)]]
    assert ask()[0] == "Grüß dich 🧵"
    assert [r["max_tokens"] for r in server.requests] == [MAX_TOKENS, 4096]


def test_a_limit_that_somebody_asked_for_is_not_changed(ask, server):
    said = "max_tokens: 9999 > 4096, which is the maximum allowed number of output tokens for m1"
    refused = {"type": "error", "error": {"type": "invalid_request_error", "message": said}}
    with pytest.raises(errors.BadInput, match="max_tokens: 9999 > 4096"):
        ask(response(400, json.dumps(refused).encode()), max_tokens=9999)
    assert len(server.requests) == 1


@pytest.mark.parametrize("base", ["", "/", "/v1", "/v1/"])
def test_the_address_may_name_the_version_or_not(server, base):
    server.answers.append([STREAM + events(*HELLO)])
    url = server.url.removesuffix("/v1") + base
    collect(AnthropicModel(Endpoint("anthropic", "m1", url)), chat())
    assert server.paths == ["/v1/messages"]


# -- errors ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "status, kind, raised",
    [
        (400, "invalid_request_error", errors.BadInput),
        (401, "authentication_error", errors.Config),
        (403, "permission_error", errors.Config),
        (404, "not_found_error", errors.ModelNotFound),
        (413, "request_too_large", errors.ContextOverflow),
        (429, "rate_limit_error", errors.TryLater),
        (500, "api_error", errors.Unavailable),
        (529, "overloaded_error", errors.TryLater),
    ],
)
def test_error_statuses(ask, status, kind, raised):
    body = {"type": "error", "error": {"type": kind, "message": "because"}}
    with pytest.raises(raised, match="because") as caught:
        ask(response(status, json.dumps(body).encode(), Retry_After="7"))
    if isinstance(caught.value, errors.TryLater | errors.Unavailable):
        assert caught.value.retry_after_s == 7


def test_a_prompt_that_is_too_long(ask):
    body = {"type": "error", "error": {"type": "invalid_request_error", "message": "prompt is too long: 9 > 8 maximum"}}
    with pytest.raises(errors.ContextOverflow):
        ask(response(400, json.dumps(body).encode()))


@pytest.mark.parametrize(
    "kind, raised",
    [("overloaded_error", errors.TryLater), ("api_error", errors.BrokenStream), ("odd", errors.BrokenStream)],
)
def test_an_error_in_the_middle_of_a_stream(ask, kind, raised):
    failed = event("error", error={"type": kind, "message": "Overloaded"})
    with pytest.raises(raised, match="Overloaded") as caught:
        ask(STREAM + events(start(), *text(0, "half"), failed))
    assert is_transient(caught.value)


@pytest.mark.parametrize("upto", range(len(HELLO) - 2))
def test_a_stream_that_ends_early_is_an_error_and_no_answer(ask, upto):
    with pytest.raises(errors.BrokenStream, match="without stop_reason"):
        ask(STREAM + events(*HELLO[:upto]))


def test_a_stream_cut_after_its_stop_reason_is_whole(ask):
    assert ask(STREAM + events(*HELLO[:-1]))[0] == "Grüß dich 🧵"


@pytest.mark.parametrize(
    "odd",
    [
        b"data: hello\n\n",
        b"data: [1]\n\n",
        events(event("content_block_delta", index=4, delta={"type": "text_delta", "text": "x"})),
        events(event("content_block_start", index="0", content_block={"type": "text"})),
    ],
)
def test_what_is_no_event_breaks_the_stream(ask, odd):
    with pytest.raises(errors.BrokenStream):
        ask(STREAM + events(start()) + odd + events(*end("end_turn")))


def test_events_and_blocks_of_kinds_that_come_later_are_passed_over(ask):
    later = [event("new_thing", x=1), *block(0, {"type": "new_delta", "y": 2}, type="server_tool_use", id="s")]
    assert ask(STREAM + events(start(), *later, *text(1, "yes"), *end("end_turn")))[0] == "yes"


def test_silence_in_the_middle_is_an_error(ask):
    with pytest.raises(errors.BrokenStream, match="fell silent"):
        ask(STREAM + events(start(), *text(0, "half")), HOLD, timeouts=Timeouts(5, 5, 0.1))


def test_the_key_stands_in_no_error(ask):
    body = {"type": "error", "error": {"type": "authentication_error", "message": f"invalid x-api-key {KEY}"}}
    with pytest.raises(errors.Config) as caught:
        ask(response(401, json.dumps(body).encode()))
    assert KEY not in str(caught.value) and "ANTHROPIC_API_KEY" in caught.value.line()


def test_an_event_after_the_end_says_nothing():
    answer = Answer(Endpoint("a", "m", "http://x"), ChatRequest("m", ()))
    for item in [*HELLO, *text(0, "more")]:
        list(answer.add_event(SseEvent(json.dumps(item), item["type"])))
    assert answer.reply().text == "Grüß dich 🧵"
