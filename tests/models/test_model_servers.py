"""What each server of the OpenAI dialect makes of it: the shapes they really send, and what they mean to us.

One case is one answer as it stands on the wire, cut to what matters. Where servers agree with OpenAI there is no case.
"""

from __future__ import annotations

from typing import Any

import pytest
from model_far_side import STREAM, chat, delta, response, sse

from loom.models.classify import Endpoint
from loom.models.openai_answer import Answer
from loom.models.sse import SseParser
from loom.wire import errors
from loom.wire.chat import ChatMessage, ChatReply, ToolCall, Usage


def chunk(finish: str | None = None, usage: Any = None, **fields: Any) -> dict[str, Any]:
    """A chunk as most servers send it, `usage` beside it where they send one."""
    choice = {"index": 0, "delta": fields, "logprobs": None, "finish_reason": finish}
    return {"id": "c-1", "object": "chat.completion.chunk", "model": "m1", "choices": [choice], "usage": usage}


def call(index: int | None, call_id: str | None, name: str | None, arguments: str | None) -> dict[str, Any]:
    piece = {"index": index, "id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}
    return {n: v for n, v in piece.items() if v is not None}


def counted(**usage: Any) -> dict[str, Any]:
    return {"object": "chat.completion.chunk", "model": "m1", "choices": [], "usage": usage}


TOKENS = {"prompt_tokens": 11, "completion_tokens": 7, "total_tokens": 18}
A_CALL = (ToolCall("c1", "read", {"path": "a"}),)

# server, what it sends: the answer
ANSWERS: dict[str, tuple[bytes, ChatReply]] = {
    "openrouter: comments while it waits, its model's whole name, usage in a chunk with a choice": (
        b": OPENROUTER PROCESSING\n\n: OPENROUTER PROCESSING\n\n"
        + sse(
            chunk(content="", role="assistant") | {"provider": "X"},
            chunk(content="yes", role="assistant"),
            chunk("stop", content="") | {"native_finish_reason": "end_turn"},
            chunk(content="", role="assistant", usage=TOKENS | {"prompt_tokens_details": {"cached_tokens": 4}}),
        ),
        ChatReply("yes", usage=Usage(11, 7, 4), model="m1"),
    ),
    "deepseek: keep-alive comments, reasoning, usage with the last chunk, its own word for cached": (
        b": keep-alive\n\n"
        + sse(
            chunk(role="assistant", content=None, reasoning_content=""),
            chunk(content=None, reasoning_content="hm"),
            chunk(content="yes", reasoning_content=None),
            chunk("stop", {**TOKENS, "prompt_cache_hit_tokens": 8, "prompt_cache_miss_tokens": 3}, content=""),
        ),
        ChatReply("yes", usage=Usage(11, 7, 8), model="m1", reasoning="hm"),
    ),
    "vllm: usage in every chunk, reasoning in its newer field, an empty list of calls": (
        sse(
            chunk(role="assistant", content="", usage={"prompt_tokens": 11, "completion_tokens": 0}),
            chunk(reasoning="hm", tool_calls=[], usage={"prompt_tokens": 11, "completion_tokens": 1}),
            chunk("stop", {"prompt_tokens": 11, "completion_tokens": 7}, content="yes") | {"stop_reason": None},
            counted(**TOKENS),
        ),
        ChatReply("yes", usage=Usage(11, 7), model="m1", reasoning="hm"),
    ),
    "vllm: a call's name first, its arguments letter by letter": (
        sse(
            chunk(tool_calls=[call(0, "c1", "read", None)]),
            *(chunk(tool_calls=[{"index": 0, "function": {"arguments": c}}]) for c in '{"path": "a"}'),
            chunk("tool_calls", content="") | {"stop_reason": 128008},
            counted(**TOKENS),
        ),
        ChatReply("", A_CALL, "tool_calls", Usage(11, 7), "m1"),
    ),
    "llama.cpp: content null, timings, usage without being choosy": (
        sse(
            chunk(role="assistant", content=None),
            chunk(content="yes"),
            chunk("stop"),
            counted(**TOKENS) | {"timings": {"prompt_n": 11, "cache_n": 3}},
        ),
        ChatReply("yes", usage=Usage(11, 7), model="m1"),
    ),
    "ollama: whole calls that all have the index 0, and stop as their reason": (
        sse(
            chunk(role="assistant", content="", tool_calls=[call(0, "c1", "read", '{"path":"a"}')]),
            chunk(role="assistant", content="", tool_calls=[call(0, "c2", "list", "{}")]),
            chunk("stop", role="assistant", content=""),
            counted(**TOKENS) | {"system_fingerprint": "fp_ollama"},
        ),
        ChatReply("", (*A_CALL, ToolCall("c2", "list", {})), "tool_calls", Usage(11, 7), "m1"),
    ),
    "lm studio: calls in pieces whose name is empty after the first": (
        sse(
            chunk(role="assistant", tool_calls=[call(0, "c1", "read", "")]),
            chunk(tool_calls=[{"index": 0, "function": {"name": "", "arguments": '{"path":'}}]),
            chunk(tool_calls=[{"index": 0, "function": {"name": "", "arguments": '"a"}'}}]),
            chunk("tool_calls"),
        ),
        ChatReply("", A_CALL, "tool_calls", model="m1"),
    ),
    "litellm: usage in a chunk with a choice, empty usage in the others, calls with nulls": (
        sse(
            chunk(role="assistant", content=None, function_call=None, usage={}, tool_calls=[call(0, "c1", "read", "")]),
            chunk(tool_calls=[{"index": 0, "id": None, "function": {"name": None, "arguments": '{"path":"a"}'}}]),
            chunk("tool_calls", usage=TOKENS),
            chunk(usage={}, content=None),
        ),
        ChatReply("", A_CALL, "tool_calls", Usage(11, 7), "m1"),
    ),
    "mistral: content in parts, usage with the reason": (
        sse(chunk(content=[{"type": "text", "text": "y"}, {"type": "reference"}]), chunk("stop", TOKENS, content="es")),
        ChatReply("yes", usage=Usage(11, 7), model="m1"),
    ),
    "groq: usage under a name of its own as well": (
        sse(chunk(content="yes"), chunk("stop") | {"x_groq": {"usage": TOKENS}}, counted(**TOKENS)),
        ChatReply("yes", usage=Usage(11, 7), model="m1"),
    ),
    "azure: a first chunk about filters, without a choice": (
        sse(
            {"choices": [], "model": "", "prompt_filter_results": [{}]},
            chunk(content="yes"),
            chunk("stop") | {"content_filter_results": {}},
        ),
        ChatReply("yes", model="m1"),
    ),
    "gemini: a call without id and index, all at once": (
        sse(chunk("stop", tool_calls=[{"function": {"name": "read", "arguments": '{"path":"a"}'}}])),
        ChatReply("", (ToolCall("call_0_0", "read", {"path": "a"}),), "tool_calls", model="m1"),
    ),
    "any: a reason that is empty until the end, more than one choice": (
        sse(chunk("", content="yes"), {"choices": [{"index": 1, "delta": {"content": "no"}}]}, chunk("stop")),
        ChatReply("yes", model="m1"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("stream, reply", ANSWERS.values(), ids=ANSWERS.keys())
def test_an_answer(ask, stream: bytes, reply: ChatReply):
    assert ask(STREAM + stream)[1] == reply


@pytest.mark.parametrize("stream, reply", ANSWERS.values(), ids=ANSWERS.keys())
def test_an_answer_cut_at_every_byte(stream: bytes, reply: ChatReply):
    for at in range(len(stream) + 1):
        parser, answer, said = SseParser(), Answer(Endpoint("lab", "m1", "http://x/v1"), chat()), ""
        for piece in (stream[:at], stream[at:]):
            for event in parser.feed(piece):
                said += "".join(answer.add_event(event))
        assert (said, answer.reply()) == (reply.text, reply)


# server, status and body: the error, and what of it is shown
REFUSALS: dict[str, tuple[int, str, type[errors.LoomError], str]] = {
    "openrouter, no credit": (
        402, '{"error": {"message": "Insufficient credits", "code": 402}}', errors.Config, "Insufficient credits"),
    "openrouter, moderation": (
        403, '{"error": {"code": 403, "message": "flagged", "metadata": {}}}', errors.Config, "flagged"),
    "openrouter, upstream is busy": (
        429, '{"error": {"message": "Provider returned error", "code": 429, "metadata": {"raw": "m1 is busy"}}}',
        errors.TryLater, "m1 is busy"),
    "deepseek, no balance": (
        402, '{"error": {"message": "Insufficient Balance", "type": "unknown_error", "code": "invalid_request_error"}}',
        errors.Config, "Insufficient Balance"),
    "vllm, too long": (
        400, '{"object": "error", "message": "This model\'s maximum context length is 4096 tokens. However, you '
        'requested 9000", "type": "BadRequestError", "param": null, "code": 400}', errors.ContextOverflow, "9000"),
    "vllm, newer": (
        404, '{"error": {"message": "The model `m1` does not exist.", "type": "NotFoundError", "code": 404}}',
        errors.ModelNotFound, "does not exist"),
    "vllm, a wrong field": (
        400, '{"error": {"message": "[{\'type\': \'extra_forbidden\'}]", "type": "Bad Request", "code": 400}}',
        errors.BadInput, "extra_forbidden"),
    "vllm, fastapi": (
        422, '{"detail": [{"loc": ["body", "messages"], "msg": "field required", "type": "missing"}]}',
        errors.BadInput, "field required"),
    "llama.cpp, loading": (
        503, '{"error": {"code": 503, "message": "Loading model", "type": "unavailable_error"}}',
        errors.TryLater, "Loading model"),
    "llama.cpp, too long": (
        400, '{"error": {"code": 400, "message": "request (4390 tokens) exceeds the available context size (4096 '
        'tokens), try increasing it", "type": "exceed_context_size_error", "n_prompt_tokens": 4390, "n_ctx": 4096}}',
        errors.ContextOverflow, "4390"),
    "llama.cpp, too long, older": (
        500, '{"error": {"code": 500, "message": "Context size has been exceeded.", "type": "server_error"}}',
        errors.ContextOverflow, "exceeded"),
    "llama.cpp, key": (
        401, '{"error": {"code": 401, "message": "Invalid API Key", "type": "authentication_error"}}',
        errors.Config, "Invalid API Key"),
    "ollama, not pulled": (
        404, '{"error": {"message": "model \\"m1\\" not found, try pulling it first", "type": "api_error"}}',
        errors.ModelNotFound, "try pulling it"),
    "ollama, no tools": (
        400, '{"error": {"message": "registry.ollama.ai/library/m1 does not support tools", "type": "api_error"}}',
        errors.BadInput, "does not support tools"),
    "lm studio, no model": (
        404, '{"error": "No models loaded. Please load a model"}', errors.ModelNotFound, "No models"),
    "lm studio, too long": (
        400, '{"error": "The number of tokens to keep from the initial prompt is greater than the context length."}',
        errors.ContextOverflow, "greater than"),
    "litellm, busy": (
        429, '{"error": {"message": "litellm.RateLimitError: slow down", "type": "throttling_error", "code": "429"}}',
        errors.TryLater, "slow down"),
    "litellm, key": (
        401, '{"error": {"message": "Authentication Error, No api key", "type": "auth_error", "code": "401"}}',
        errors.Config, "No api key"),
    "litellm, budget": (
        400, '{"error": {"message": "Budget has been exceeded! Current cost: 1.0", "type": "budget_exceeded"}}',
        errors.BadInput, "Budget has been exceeded"),
    "gemini, a list": (
        429, '[{"error": {"code": 429, "message": "Resource exhausted", "status": "RESOURCE_EXHAUSTED"}}]',
        errors.TryLater, "Resource exhausted"),
    "a gateway's page": (
        502, "<html><head><title>502 Bad Gateway</title></head></html>", errors.Unavailable, "502 Bad Gateway"),
}  # fmt: skip


@pytest.mark.parametrize("status, body, kind, shown", REFUSALS.values(), ids=REFUSALS.keys())
def test_a_refusal(ask, status: int, body: str, kind: type[errors.LoomError], shown: str):
    with pytest.raises(errors.LoomError) as caught:
        ask(response(status, body.encode()))
    assert type(caught.value) is kind
    assert shown in str(caught.value)


# server: an error in the middle of a stream
BREAKS: dict[str, tuple[bytes, type[errors.LoomError], str]] = {
    "openrouter": (
        sse(chunk("error", content="") | {"error": {"code": 502, "message": "Provider disconnected"}}, done=False),
        errors.Unavailable, "Provider disconnected"),
    "openrouter, without words": (sse(chunk("error", content="")), errors.BrokenStream, "provider behind it"),
    "deepseek, overloaded": (sse(chunk("insufficient_system_resource")), errors.TryLater, "overloaded"),
    "vllm, older": (
        sse({"object": "error", "message": "engine died", "type": "InternalServerError", "code": 500}),
        errors.Unavailable, "engine died"),
    "vllm": (
        sse({"error": {"object": "error", "message": "engine died", "type": "InternalServerError", "code": 500}}),
        errors.Unavailable, "engine died"),
    "llama.cpp, older": (
        b'error: {"code":500,"message":"Context size has been exceeded.","type":"server_error"}\n\n',
        errors.ContextOverflow, "exceeded"),
    "llama.cpp": (
        sse({"error": {"code": 500, "message": "slot is gone", "type": "server_error"}}, done=False),
        errors.Unavailable, "slot is gone"),
    "ollama": (sse({"error": {"message": "an error was encountered", "type": "api_error"}}, done=False),
        errors.BrokenStream, "was encountered"),
    "lm studio": (
        b'event: error\ndata: {"error":{"message":"Compute error."},"message":"Compute error."}\n\n',
        errors.BrokenStream, "Compute error"),
    "litellm": (
        sse({"error": {"message": "litellm.InternalServerError: x", "type": None, "param": None, "code": "500"}}),
        errors.Unavailable, "InternalServerError"),
}  # fmt: skip


@pytest.mark.parametrize("stream, kind, shown", BREAKS.values(), ids=BREAKS.keys())
def test_an_error_in_the_middle_of_a_stream(ask, stream: bytes, kind: type[errors.LoomError], shown: str):
    with pytest.raises(errors.LoomError) as caught:
        ask(STREAM + sse(chunk(content="half an"), done=False) + stream)
    assert type(caught.value) is kind
    assert shown in str(caught.value)


# thoughts in pieces


def text(said: str = "", **more: Any) -> dict[str, Any]:
    piece = {"type": "reasoning.text", "format": "anthropic-claude-v1", "index": 0, **more}
    return piece | ({"text": said} if said else {})


def summary(said: str, **more: Any) -> dict[str, Any]:
    return {"type": "reasoning.summary", "summary": said, "format": "openai-responses-v1", "index": 0, **more}


def sealed(data: str, **more: Any) -> dict[str, Any]:
    return {"type": "reasoning.encrypted", "data": data, "format": "openai-responses-v1", "index": 0, **more}


DETAILS: dict[str, tuple[list[dict[str, Any]], list[dict[str, Any]]]] = {
    "a text whose signature comes last and without text": (
        [text("Let"), text(" me see"), text(signature="Et8B")], [text("Let me see", signature="Et8B")]),
    "a signature that is null until the end": (
        [text("Let", signature=None), text(" me", signature=None), text("", signature="Et8B")],
        [text("Let me", signature="Et8B")]),
    "two texts, each signed, with the same index": (
        [text("a"), text(signature="1"), text("b"), text(signature="2")],
        [text("a", signature="1"), text("b", signature="2")]),
    "two texts told apart by their index": ([text("a"), text("b", index=1)], [text("a"), text("b", index=1)]),
    "a summary in pieces, then what is sealed": (
        [summary("One"), summary(" two"), sealed("abc", id="rs_1")], [summary("One two"), sealed("abc", id="rs_1")]),
    "sealed blocks are whole, each for itself": ([sealed("a"), sealed("b")], [sealed("a"), sealed("b")]),
    "types in turn": ([text("a"), sealed("x"), text("b")], [text("a"), sealed("x"), text("b")]),
    "an id that comes with the first piece only": (
        [summary("a", id="rs_1"), summary("b")], [summary("ab", id="rs_1")]),
}  # fmt: skip


@pytest.mark.parametrize("pieces, whole", DETAILS.values(), ids=DETAILS.keys())
def test_openrouters_thoughts_are_given_back_as_blocks(ask, server, pieces, whole):
    asks = delta("tool_calls", tool_calls=[call(0, "c1", "read", "{}")])
    reply = ask(STREAM + sse(*(delta(reasoning_details=[p]) for p in pieces), asks))[1]
    assert reply.thoughts == ({"dialect": "openai", "field": "reasoning_details", "value": whole},)
    said = (ChatMessage("user", "go"), ChatMessage("assistant", "", reply.calls, thoughts=reply.thoughts))
    ask(STREAM + sse(delta("stop")), messages=(*said, ChatMessage("tool", "x", call_id="c1")))
    assert server.requests[1]["messages"][1]["reasoning_details"] == whole


def test_deepseeks_thoughts_are_given_back_while_the_turn_lasts(ask, server):
    asks = delta("tool_calls", tool_calls=[call(0, "c1", "read", "{}")])
    reply = ask(STREAM + sse(delta(reasoning_content="hm "), delta(reasoning_content="so"), asks))[1]
    said = (ChatMessage("user", "go"), ChatMessage("assistant", "", reply.calls, thoughts=reply.thoughts))
    ask(STREAM + sse(delta("stop")), messages=(*said, ChatMessage("tool", "x", call_id="c1")))
    assert server.requests[1]["messages"][1]["reasoning_content"] == "hm so"
