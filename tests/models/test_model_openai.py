"""The OpenAI dialect against a real server: what is an answer, what is not, and what is sent."""

from __future__ import annotations

import json
import re
import socket
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st
from model_far_side import HOLD, KEY, STREAM, chat, collect, delta, response, sse

from loom.models.classify import Endpoint, is_transient
from loom.models.openai import OpenAIModel
from loom.models.openai_answer import Answer
from loom.models.sse import SseEvent, SseParser
from loom.models.transport import Timeouts
from loom.wire import errors
from loom.wire.chat import ChatMessage, ChatReply, ChatRequest, ToolCall, ToolSpec, Usage

USAGE = {"prompt_tokens": 11, "completion_tokens": 7, "prompt_tokens_details": {"cached_tokens": 3}}
HELLO = [
    delta(role="assistant", content=""),
    delta(content="Grüß "),
    delta(content="dich 🧵"),
    delta("stop"),
    {"choices": [], "usage": USAGE},
]
CALLS = [
    delta(tool_calls=[{"index": 0, "id": "c1", "function": {"name": "read", "arguments": '{"pa'}}]),
    delta(tool_calls=[{"index": 1, "id": "c2", "function": {"name": "list", "arguments": ""}}]),
    delta(tool_calls=[{"index": 0, "function": {"arguments": 'th": "a"}'}}]),
    delta("tool_calls"),
]


def test_text_comes_as_it_is_spoken_and_then_whole(ask):
    text, reply = ask(STREAM + sse(*HELLO))
    assert text == "Grüß dich 🧵"
    assert reply == ChatReply(text, (), "end", Usage(11, 7, 3), "m1-0425")


def test_the_answer_is_the_same_when_every_byte_comes_alone(ask):
    stream = STREAM + sse(*HELLO)
    assert ask(*[stream[i : i + 1] for i in range(len(stream))])[0] == "Grüß dich 🧵"


def test_a_chunked_body_is_put_together(ask):
    body = sse(*HELLO)
    chunks = b"".join(b"%x\r\n%s\r\n" % (len(body[i : i + 7]), body[i : i + 7]) for i in range(0, len(body), 7))
    head = STREAM.replace(b"\r\n\r\n", b"\r\nTransfer-Encoding: chunked\r\n\r\n")
    assert ask(head + chunks + b"0\r\n\r\n")[0] == "Grüß dich 🧵"


def test_the_answer_ends_with_done_even_when_the_server_keeps_the_connection(ask):
    assert ask(STREAM + sse(*HELLO), HOLD)[0] == "Grüß dich 🧵"


def test_a_body_of_known_length_ends_there_even_when_the_server_keeps_the_connection(ask):
    body = sse(*HELLO, done=False)
    assert ask(response(200, body, Content_Type="text/event-stream"), HOLD)[0] == "Grüß dich 🧵"


def test_text_is_handed_on_before_the_answer_is_complete(server):
    server.answers.append([STREAM + sse(delta(content="first"), done=False), HOLD])
    stream = OpenAIModel(Endpoint("lab", "m1", server.url)).stream(chat())
    assert next(stream).text == "first"
    stream.close()


def test_tool_calls_are_assembled_by_index(ask):
    _, reply = ask(STREAM + sse(*CALLS))
    assert reply.calls == (ToolCall("c1", "read", {"path": "a"}), ToolCall("c2", "list", {}))
    assert reply.stop == "tool_calls"


@pytest.mark.parametrize("raw", ['{"path": ', "[1]", '"a"', "null", "{'path': 1}", '{"a": NaN}', "[" * 5000])
def test_arguments_that_are_no_object_are_kept_as_they_came(ask, raw):
    call = {"index": 0, "id": "c1", "function": {"name": "read", "arguments": raw}}
    _, reply = ask(STREAM + sse(delta(tool_calls=[call]), delta("tool_calls")))
    assert reply.calls == (ToolCall("c1", "read", None, raw),)


@pytest.mark.parametrize("index", [{"index": 0}, {}])
def test_calls_of_servers_that_do_not_count_are_told_apart_by_their_ids(ask, index):
    calls = [{**index, "id": f"c{n}", "function": {"name": "read", "arguments": f'{{"n": {n}}}'}} for n in (1, 2)]
    _, reply = ask(STREAM + sse(delta(tool_calls=calls), delta("stop")))
    assert [(c.id, c.input) for c in reply.calls] == [("c1", {"n": 1}), ("c2", {"n": 2})]
    assert reply.stop == "tool_calls"


def test_calls_without_an_id_get_one_that_is_unique_in_the_conversation_and_stable(ask, server):
    call = {"index": 0, "function": {"name": "read", "arguments": {"n": 1}}}
    server.answers += [[STREAM + sse(delta(tool_calls=[call]), delta("stop"))]] * 3
    messages = (ChatMessage("user", "a"), ChatMessage("assistant", "b"), ChatMessage("user", "c"))
    ids = [ask(messages=m)[1].calls[0].id for m in (messages[:1], messages, messages)]
    assert ids == ["call_0_0", "call_1_0", "call_1_0"]


@pytest.mark.parametrize(
    "finish, stop",
    [("stop", "end"), ("length", "length"), ("content_filter", "refusal"), ("eos", "end"), ("tool_calls", "end")],
)
def test_finish_reasons(ask, finish, stop):
    assert ask(STREAM + sse(delta(finish, content="x")))[1].stop == stop


def test_a_refusal_is_text_and_says_so(ask):
    text, reply = ask(STREAM + sse(delta(refusal="I cannot."), delta("stop")))
    assert (text, reply.stop) == ("I cannot.", "refusal")


def test_reasoning_is_not_part_of_the_answer(ask):
    chunks = [delta(reasoning_content="hm"), delta(reasoning="hm"), delta(content="yes"), delta("stop")]
    assert ask(STREAM + sse(*chunks))[0] == "yes"


def test_usage_may_be_missing(ask):
    assert ask(STREAM + sse(delta("stop", content="x")))[1].usage == Usage()


def test_an_empty_answer_is_an_answer(ask):
    assert ask(STREAM + sse(delta("stop")))[1] == ChatReply("", model="m1-0425")


def test_an_answer_that_is_not_streamed_is_accepted(ask):
    whole = {"choices": [{"message": {"content": "all at once"}, "finish_reason": "stop"}], "usage": USAGE}
    text, reply = ask(response(200, json.dumps(whole).encode()))
    assert (text, reply.usage.output_tokens) == ("all at once", 7)


def test_an_emoji_cut_in_two_by_the_server_does_not_break_the_stream(ask):
    stream = b'data: {"choices": [{"delta": {"content": "a\\ud83e"}}]}\n\n'
    assert ask(STREAM + stream + sse(delta("stop")))[0] == "a\ufffd"


BROKEN = {
    "nothing": STREAM,
    "no finish": STREAM + sse(*HELLO[:3], done=False),
    "cut in an event": STREAM + sse(*HELLO)[:90],
    "length not reached": STREAM.replace(b"\r\n\r\n", b"\r\nContent-Length: 9999\r\n\r\n")
    + sse(*HELLO[:3], done=False),
    "chunk cut": STREAM.replace(b"\r\n\r\n", b"\r\nTransfer-Encoding: chunked\r\n\r\n") + b"ff\r\ndata:",
    "garbage": STREAM + b"data: {not json}\n\n",
    "a list": STREAM + b"data: [1]\n\n",
    "html": response(200, b"<html><body>Welcome!</body></html>", Content_Type="text/html"),
    "json cut": response(200, b'{"choices": [{"mess'),
    "error in the stream": STREAM + sse(delta(content="x"), {"error": {"message": "boom"}}),
    "error as finish": STREAM + sse(delta("error", content="x")),
}


@pytest.mark.parametrize("stream", BROKEN.values(), ids=BROKEN.keys())
def test_what_is_not_a_whole_answer_is_a_broken_stream(ask, stream):
    with pytest.raises(errors.BrokenStream) as caught:
        ask(stream)
    assert is_transient(caught.value)
    assert caught.value.exit_status == 69


def test_a_break_after_the_finish_reason_only_costs_the_token_counts(ask):
    head = STREAM.replace(b"\r\n\r\n", b"\r\nContent-Length: 9999\r\n\r\n")
    text, reply = ask(head + sse(*HELLO[:4], done=False))
    assert (text, reply.usage) == ("Grüß dich 🧵", Usage())


def test_an_error_in_the_stream_keeps_its_meaning(ask):
    with pytest.raises(errors.TryLater, match="slow down"):
        ask(STREAM + sse({"error": {"message": "slow down", "code": 429}}))


@pytest.mark.parametrize(
    "answer, kind, said",
    [
        ((HOLD,), errors.Unavailable, "silent"),  # no head
        ((STREAM, HOLD), errors.Unavailable, "silent"),  # a head and no body
        ((STREAM, b"data: {", HOLD), errors.BrokenStream, "silent"),
        ((b"",), errors.Unavailable, "no proper answer"),
        ((b"SSH-2.0-OpenSSH\r\n",), errors.Unavailable, "no proper answer"),
        ((b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 500 + b"\r\n",), errors.Unavailable, "no proper answer"),
    ],
)
def test_silence_and_nonsense_end_in_an_error(ask, answer, kind, said):
    with pytest.raises(kind, match=said) as caught:
        ask(*answer, timeouts=Timeouts(first_byte_s=0.2, idle_s=0.2))
    assert is_transient(caught.value)


@pytest.mark.parametrize("alias, hint", [("lab", "base_url"), ("ollama", "ollama serve")])
def test_nobody_there_names_the_host_and_what_to_do(alias, hint):
    with socket.socket() as taken:  # nobody else gets the port, and nobody listens on it
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        model = OpenAIModel(Endpoint(alias, "m1", f"http://127.0.0.1:{port}/v1"))
        with pytest.raises(errors.Unavailable) as caught:
            collect(model, chat())
    assert f"127.0.0.1:{port}" in caught.value.line()
    assert hint in caught.value.line()


def test_https_to_a_server_without_tls_says_so(server):
    server.answers.append([b""])
    model = OpenAIModel(Endpoint("lab", "m1", server.url.replace("http:", "https:")))
    with pytest.raises(errors.Unavailable, match="TLS"):
        collect(model, chat())


def test_a_name_without_a_host_says_so():
    with pytest.raises(errors.Unavailable, match=r"cannot find the host no-such-host\.invalid"):
        collect(OpenAIModel(Endpoint("lab", "m1", "http://no-such-host.invalid/v1")), chat())


def test_the_request_on_the_wire(ask, server):
    spec = ToolSpec("read", "reads a file", {"type": "object"})
    said = (
        ChatMessage("system", "be brief"),
        ChatMessage("user", "go"),
        ChatMessage("assistant", "", (ToolCall("c1", "read", {"path": "ä"}), ToolCall("c2", "read", None, "{bad"))),
        ChatMessage("tool", "text", call_id="c1"),
        ChatMessage("tool", "no such file", call_id="c2", is_error=True),
    )
    options = {"temperature": 0, "stream": False, "model": "other"}
    ask(STREAM + sse(*HELLO), messages=said, tools=(spec,), max_tokens=9, options=options)
    assert server.paths == ["/v1/chat/completions"]
    assert server.headers[0]["authorization"] == f"Bearer {KEY}"
    assert "accept-encoding" not in server.headers[0] or server.headers[0]["accept-encoding"] == "identity"
    body = server.requests[0]
    messages = body.pop("messages")
    assert body == {
        "model": "m1",
        "stream": True,
        "stream_options": {"include_usage": True},
        "temperature": 0,
        "max_tokens": 9,
        "tools": [
            {
                "type": "function",
                "function": {"name": "read", "description": "reads a file", "parameters": {"type": "object"}},
            }
        ],
    }
    assert [m["role"] for m in messages] == ["system", "user", "assistant", "tool", "tool"]
    arguments = [json.loads(c["function"]["arguments"]) for c in messages[2]["tool_calls"]]
    assert arguments == [{"path": "ä"}, {"unreadable_arguments": "{bad"}]
    assert [m["content"] for m in messages[3:]] == ["text", "error: no such file"]


def test_a_server_that_cannot_count_tokens_is_asked_again_without(ask, server):
    server.answers.append([response(400, b'{"error": {"message": "Unrecognized argument: stream_options"}}')])
    server.answers.append([STREAM + sse(*HELLO)])
    assert ask()[0] == "Grüß dich 🧵"
    assert ["stream_options" in r for r in server.requests] == [True, False]


def test_a_large_request_that_is_refused_before_it_was_read_still_says_why():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/v1"

        def refuse() -> None:
            conn, _ = listener.accept()
            with conn:
                conn.recv(1000)
                conn.sendall(response(413, b'{"error": "too big"}', Connection="close"))
                conn.shutdown(socket.SHUT_WR)
                while conn.recv(1 << 16):
                    pass

        thread = threading.Thread(target=refuse)
        thread.start()
        with pytest.raises(errors.ContextOverflow, match="too big"):
            collect(OpenAIModel(Endpoint("lab", "m1", url)), chat("x" * 4_000_000))
        thread.join()


STATUSES = [
    (400, b'{"error": {"message": "bad field"}}', errors.BadInput, "bad field"),
    (400, b'{"error": {"code": "context_length_exceeded", "message": "x"}}', errors.ContextOverflow, "larger window"),
    (401, b'{"error": {"message": "Incorrect API key"}}', errors.Config, "LAB_API_KEY"),
    (403, b"{}", errors.Config, "refused the key"),
    (402, b'{"error": {"message": "no credit"}}', errors.Config, "billing"),
    (429, b'{"error": {"code": "insufficient_quota", "message": "x"}}', errors.Config, "billing"),
    (404, b'{"error": {"message": "no such model"}}', errors.ModelNotFound, "'m1'"),
    (405, b"", errors.Config, "base_url"),
    (307, b"", errors.Config, "redirects"),
    (408, b"", errors.Unavailable, "408"),
    (413, b"", errors.ContextOverflow, "413"),
    (422, b'{"detail": [{"msg": "field required"}]}', errors.BadInput, "field required"),
    (429, b'{"error": {"message": "slow down"}}', errors.TryLater, "slow down"),
    (500, b"<html><title>Oops</title></html>", errors.Unavailable, "HTML page \\(Oops\\)"),
    (502, b"\x00\xff", errors.Unavailable, "502"),
    (503, b"", errors.TryLater, "503"),
    (504, b"", errors.Unavailable, "504"),
    (529, b'{"error": {"message": "Overloaded"}}', errors.TryLater, "Overloaded"),
]


@pytest.mark.parametrize("status, body, kind, said", STATUSES)
def test_every_status_has_its_meaning(ask, status, body, kind, said):
    with pytest.raises(errors.LoomError) as caught:
        ask(response(status, body))
    assert type(caught.value) is kind
    assert re.search(said, caught.value.line())


def test_a_rate_limit_says_when_to_come_back(ask):
    with pytest.raises(errors.TryLater) as caught:
        ask(response(429, b"{}", Retry_After="7"))
    assert caught.value.retry_after_s == 7


def test_ollama_without_the_model_says_how_to_get_it(ask):
    with pytest.raises(errors.ModelNotFound) as caught:
        ask(response(404, b'{"error": {"message": "model \\"m1\\" not found"}}'), alias="ollama")
    assert caught.value.hint == "ollama pull m1"
    assert caught.value.exit_status == 78


@pytest.mark.parametrize("then", [(), (HOLD,)])
@pytest.mark.parametrize("body", [b"{}", b""])
def test_an_error_body_that_breaks_off_is_still_the_error(ask, body, then):
    head = response(401, b"").replace(b"Content-Length: 0", b"Content-Length: 999")
    with pytest.raises(errors.Config, match="refused the key"):
        ask(head + body, *then, timeouts=Timeouts(first_byte_s=0.2, idle_s=0.2))


PIECES = st.lists(st.binary(max_size=60) | st.sampled_from([sse(c, done=False) for c in HELLO + CALLS]), max_size=8)


@given(PIECES)
def test_whatever_a_server_streams_the_outcome_is_a_reply_or_an_error_of_ours(pieces):
    parser, answer = SseParser(), Answer(Endpoint("lab", "m1", "http://x/v1"), chat())
    try:
        for piece in pieces:
            for event in parser.feed(piece):
                list(answer.add_event(event))
        assert isinstance(answer.reply(), ChatReply)
    except errors.LoomError:
        pass


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                [
                    "choices",
                    "delta",
                    "message",
                    "content",
                    "tool_calls",
                    "function",
                    "arguments",
                    "id",
                    "index",
                    "name",
                    "usage",
                    "error",
                    "code",
                    "type",
                    "finish_reason",
                    "prompt_tokens",
                    "prompt_tokens_details",
                    "cached_tokens",
                    "refusal",
                    "text",
                    "model",
                    "metadata",
                ]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=20,
)


@given(st.lists(st.dictionaries(st.sampled_from(["choices", "usage", "error", "model"]), JSON), max_size=4))
def test_whatever_json_a_server_sends_the_outcome_is_a_reply_or_an_error_of_ours(chunks):
    answer = Answer(Endpoint("lab", "m1", "http://x/v1"), ChatRequest("m1", ()))
    try:
        for chunk in chunks:
            list(answer.add_event(SseEvent(json.dumps(chunk))))
        answer.reply()
    except errors.LoomError:
        pass
