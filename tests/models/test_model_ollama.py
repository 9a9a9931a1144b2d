"""Ollama in its own dialect, where it can be told how much to hold; and the word about it in the other one."""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Iterator
from typing import Any

import pytest
from far_side import CUT, FarSide
from hypothesis import given
from hypothesis import strategies as st
from model_far_side import STREAM, chat, collect, delta, response, sse

from loom.models.base import ModelContext
from loom.models.classify import Endpoint
from loom.models.ollama import Answer, OllamaModel
from loom.models.openai import OpenAIModel
from loom.models.registry import find_provider, open_model
from loom.wire import errors
from loom.wire.chat import ChatMessage, ChatReply, Image, Notice, ToolCall, ToolSpec, Usage
from loom.wire.provider import Provider


def lines(*items: dict[str, Any]) -> bytes:
    return b"".join(json.dumps(item, ensure_ascii=False).encode() + b"\n" for item in items)


def piece(content: str = "", **message: Any) -> dict[str, Any]:
    return {"model": "m1:latest", "message": {"role": "assistant", "content": content, **message}, "done": False}


def done(reason: str = "stop", **counts: int) -> dict[str, Any]:
    return piece() | {"done": True, "done_reason": reason, "total_duration": 12, **counts}


HELLO = lines(piece("Grüß "), piece("dich 🧵"), done(prompt_eval_count=11, eval_count=7))


@pytest.fixture
def far() -> Iterator[FarSide]:
    with FarSide() as side:
        yield side


def ollama(far: FarSide, context: int = 32768) -> OllamaModel:
    endpoint = Endpoint("ollama", "m1", far.url, context=context)
    return OllamaModel(endpoint, blob=lambda digest: f"bytes of {digest}".encode())


def answered(far: FarSide, body: bytes, **request: Any) -> tuple[str, ChatReply]:
    far.answers.append([response(200, body, Content_Type="application/x-ndjson")])
    return collect(ollama(far), chat(**request))


def test_text_comes_as_it_is_spoken_and_then_whole(far: FarSide):
    text, reply = answered(far, HELLO)
    assert reply == ChatReply("Grüß dich 🧵", usage=Usage(11, 7), model="m1:latest")
    assert text == reply.text


def test_the_answer_does_not_depend_on_how_its_bytes_are_cut(far: FarSide):
    body = HELLO[:-1]  # even the last line may lack its end
    asking = ollama(far)
    for at in range(len(body) + 1):
        pieces = [p for p in (body[:at], body[at:]) if p]
        chunks = b"".join(b"%x\r\n%s\r\n" % (len(p), p) for p in pieces)
        head = b"HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\nTransfer-Encoding: chunked\r\n\r\n"
        far.answers.append([head + chunks[:40], chunks[40:] + b"0\r\n\r\n"])
        assert collect(asking, chat())[0] == "Grüß dich 🧵"
    assert {a.connection for a in far.asked} == {0}


def test_the_request_on_the_wire(far: FarSide):
    said = (
        ChatMessage("system", "be brief"),
        ChatMessage("user", "look", images=(Image("image/png", "d1"),)),
        ChatMessage("assistant", "", (ToolCall("c1", "read", {"path": "ä"}), ToolCall("c2", "list", None, "{bad"))),
        ChatMessage("tool", "text", call_id="c1"),
        ChatMessage("tool", "no such file", call_id="c2", is_error=True),
    )
    spec = ToolSpec("read", "reads a file", {"type": "object"})
    options = {"seed": 7, "temperature": 0, "think": False, "keep_alive": "1h"}
    answered(far, HELLO, messages=said, tools=(spec,), max_tokens=9, options=options)
    asked = far.asked[0]
    assert (asked.method, asked.target) == ("POST", "/api/chat")
    body = asked.json
    messages = body.pop("messages")
    assert body == {
        "model": "m1",
        "stream": True,
        "truncate": False,
        "shift": False,
        "think": False,
        "keep_alive": "1h",
        "options": {"seed": 7, "temperature": 0, "num_ctx": 32768, "num_predict": 9},
        "tools": [
            {
                "type": "function",
                "function": {"name": "read", "description": "reads a file", "parameters": {"type": "object"}},
            }
        ],
    }
    assert messages[1] == {"role": "user", "content": "look", "images": [b64encode(b"bytes of d1").decode()]}
    assert [c["function"]["arguments"] for c in messages[2]["tool_calls"]] == [
        {"path": "ä"},
        {"unreadable_arguments": "{bad"},
    ]
    assert [(m["tool_name"], m["content"]) for m in messages[3:]] == [("read", "text"), ("list", "error: no such file")]


@pytest.mark.parametrize(
    "options, form",
    [
        ({"format": "json"}, "json"),
        ({"response_format": {"type": "json_object"}}, "json"),
        ({"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "array"}}}}, {"type": "array"}),
    ],
)
def test_the_form_of_an_answer_may_be_asked_for_in_either_word(far: FarSide, options: dict[str, Any], form: Any):
    answered(far, HELLO, options=options)
    assert far.asked[0].json["format"] == form
    assert "response_format" not in far.asked[0].json["options"]


def test_a_schema_is_the_form_of_the_answer_unless_a_tool_may_be_called(far: FarSide):
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}}
    answered(far, HELLO, schema=schema)
    answered(far, HELLO, schema=schema, tools=(ToolSpec("note", "notes", {"type": "object"}),))
    assert far.asked[0].json["format"] == schema
    assert "format" not in far.asked[1].json


def test_tool_calls_and_thoughts(far: FarSide):
    calls = [
        {"function": {"name": "read", "arguments": {"path": "a"}, "index": 0}},
        {"id": "call_x", "function": {"name": "list", "arguments": {}}},
    ]
    asked = piece(tool_calls=calls[:1]), piece(tool_calls=calls[1:])
    _, reply = answered(far, lines(piece(thinking="hm "), piece(thinking="so"), *asked, done()))
    assert reply.calls == (ToolCall("call_0_0", "read", {"path": "a"}), ToolCall("call_x", "list", {}))
    assert (reply.stop, reply.reasoning) == ("tool_calls", "hm so")
    said = (ChatMessage("user", "go"), ChatMessage("assistant", "", reply.calls, thoughts=reply.thoughts))
    answered(far, HELLO, messages=(*said, ChatMessage("tool", "x", call_id="call_0_0")))
    assert far.asked[1].json["messages"][1]["thinking"] == "hm so"  # as long as the turn lasts


@pytest.mark.parametrize("reason, stop", [("stop", "end"), ("length", "length"), ("load", "end")])
def test_reasons(far: FarSide, reason: str, stop: str):
    assert answered(far, lines(piece("x"), done(reason)))[1].stop == stop


@pytest.mark.parametrize(
    "body, kind, said",
    [
        (b"", errors.BrokenStream, "nothing"),
        (lines(piece("half an")), errors.BrokenStream, "7 characters"),
        (lines(piece("x")) + b"{not json}\n", errors.BrokenStream, "no JSON object"),
        (lines(piece("x"), {"error": "llama runner has terminated"}), errors.BrokenStream, "has terminated"),
        (lines({"error": {"code": 503, "message": "busy"}}), errors.TryLater, "busy"),
    ],
)
def test_what_is_not_a_whole_answer_is_an_error(far: FarSide, body: bytes, kind: type, said: str):
    with pytest.raises(errors.LoomError, match=said) as caught:
        answered(far, body)
    assert type(caught.value) is kind


@pytest.mark.parametrize(
    "status, body, kind, said",
    [
        (404, b'{"error": "model \\"m1\\" not found"}', errors.ModelNotFound, "ollama pull m1"),
        (400, b'{"error": "the input length exceeds the context length"}', errors.ContextOverflow, "larger window"),
        (500, b'{"error": "model requires more system memory"}', errors.Unavailable, "system memory"),
    ],
)
def test_refusals(far: FarSide, status: int, body: bytes, kind: type, said: str):
    far.answers.append([response(status, body)])
    with pytest.raises(errors.LoomError) as caught:
        collect(ollama(far), chat())
    assert type(caught.value) is kind and said in caught.value.line()


def test_a_line_without_an_end_is_given_up(far: FarSide):
    far.answers.append([b"HTTP/1.1 200 OK\r\n\r\n" + b'{"a": "' + b"x" * (9 << 20), CUT])
    with pytest.raises(errors.BrokenStream, match="line over"):
        collect(ollama(far), chat())


@given(
    st.lists(
        st.binary(max_size=40) | st.sampled_from([lines(piece("a")), lines(done()), b'{"message": []}']), max_size=5
    )
)
def test_whatever_comes_the_outcome_is_a_reply_or_an_error_of_ours(items: list[bytes]):
    answer = Answer(Endpoint("ollama", "m1", "http://x"), chat())
    try:
        for item in items:
            list(answer.add(item))
        assert isinstance(answer.reply(), ChatReply)
    except errors.LoomError:
        pass


# which dialect


@pytest.mark.parametrize(
    "provider, kind",
    [
        (None, OpenAIModel),
        (Provider("ollama", "", "", key_file="/dev/null"), OpenAIModel),
        (Provider("ollama", "", "", context=16384), OllamaModel),
        (Provider("ollama", "ollama", ""), OllamaModel),
    ],
)
def test_a_context_that_is_asked_for_takes_the_dialect_that_can(provider: Provider | None, kind: type, tmp_path: Any):
    if provider is not None and provider.key_file:
        (tmp_path / "key").write_text("sk-x")
        provider = Provider("ollama", "", "", key_file=str(tmp_path / "key"))
    context = ModelContext(env={}, providers={} if provider is None else {"ollama": provider})
    assert type(open_model("llama3", context)) is kind


def test_another_machines_ollama_is_an_alias(far: FarSide):
    gpu = Provider("gpu", "ollama", f"http://127.0.0.1:{far.port}", context=8192)
    far.answers.append([response(200, HELLO)])
    assert collect(open_model("gpu/m1", ModelContext(env={}, providers={"gpu": gpu})), chat())[0]
    assert far.asked[0].json["options"] == {"num_ctx": 8192}


def test_an_alias_without_a_dialect_speaks_openais():
    context = ModelContext(env={}, providers={"lab": Provider("lab", "", "http://lab/v1")})
    assert find_provider("lab", context).dialect == "openai"
    assert type(open_model("lab/m", context)) is OpenAIModel


# the other dialect, which cuts in silence


def notices(server: Any, alias: str, text: str, counted: int, times: int = 1) -> list[Notice]:
    usage = {"choices": [], "usage": {"prompt_tokens": counted, "completion_tokens": 1}}
    server.answers += [[STREAM + sse(delta(content="x"), delta("stop"), usage)]] * times
    model = OpenAIModel(Endpoint(alias, "m1", server.url))
    return [c for _ in range(times) for c in model.stream(chat(text)) if isinstance(c, Notice)]


def test_a_request_that_was_cut_is_told_once(server):
    found = notices(server, "ollama", "a word " * 5000, 2048, times=2)
    assert [n.kind for n in found] == ["cut"]
    assert "2048 tokens" in found[0].text and "providers.ollama.context" in found[0].text


@pytest.mark.parametrize(
    "alias, text, counted",
    [
        ("ollama", "a word " * 5000, 10_000),  # as it should be
        ("ollama", "hello", 1),
        ("ollama", "a word " * 5000, 0),  # it does not count
        ("lab", "a word " * 5000, 2048),
    ],
)
def test_nothing_is_told_where_nothing_is_known_to_be_missing(server, alias: str, text: str, counted: int):
    assert notices(server, alias, text, counted) == []
