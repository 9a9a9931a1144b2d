"""A schema for the answer, as each kind of model is told of it; and what happens when a server does not know it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from model_far_side import KEY, STREAM, Server, chat, collect, delta, response, sse

from loom.models.anthropic import AnthropicModel
from loom.models.classify import Endpoint
from loom.models.openai import OpenAIModel
from loom.wire import errors
from loom.wire.chat import ToolSpec, request_from_json, request_to_json

SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
TOOL = ToolSpec("read", "reads", {"type": "object"})
SAID = STREAM + sse(delta(content='{"n":1}'), delta("stop"))
MESSAGES_SAID = STREAM + b"".join(
    f"event: {event['type']}\ndata: {json.dumps(event)}\n\n".encode()
    for event in (
        {"type": "message_start", "message": {"model": "m1", "usage": {}}},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": '{"n":1}'}},
        {"type": "content_block_stop", "index": 0},
        {"type": "message_delta", "delta": {"stop_reason": "end_turn"}},
        {"type": "message_stop"},
    )
)


def refusal(status: int, message: str) -> bytes:
    return response(status, json.dumps({"error": {"message": message}}).encode())


def openai(server: Server) -> OpenAIModel:
    return OpenAIModel(Endpoint("lab", "m1", server.url, "LAB_API_KEY", KEY))


def anthropic(server: Server) -> AnthropicModel:
    return AnthropicModel(Endpoint("anthropic", "m1", server.url, "ANTHROPIC_API_KEY", KEY))


def test_a_request_keeps_its_schema_and_says_nothing_without_one():
    asked = chat(schema=SCHEMA)
    assert request_from_json(request_to_json(asked)) == asked
    assert "schema" not in request_to_json(chat())


def test_openai_is_given_it_as_response_format(server: Server):
    server.answers.append([SAID])
    assert collect(openai(server), chat(schema=SCHEMA))[0] == '{"n":1}'
    form = {"type": "json_schema", "json_schema": {"name": "answer", "schema": SCHEMA}}
    assert server.requests[0]["response_format"] == form


def test_without_a_schema_there_is_no_such_field(server: Server):
    server.answers += [[SAID], [SAID]]
    collect(openai(server), chat())
    # Where every word must fit the schema, no tool could be called.
    collect(openai(server), chat(schema=SCHEMA, tools=(TOOL,)))
    assert ["response_format" in r for r in server.requests] == [False, False]


@pytest.mark.parametrize("status, message", [
    (400, "Unrecognized request argument supplied: response_format"),
    (422, "body.response_format.type: Input should be 'text' or 'json_object'"),
    (400, "Invalid schema: JSON schema conversion failed"),
    (400, "failed to parse grammar"),
    (500, 'response_format type must be one of "text" or "json_object", but got: json_schema'),
])  # fmt: skip
def test_a_server_that_refuses_it_is_asked_once_more_without(server: Server, status: int, message: str):
    server.answers += [[refusal(status, message)], [SAID], [SAID]]
    model = openai(server)
    for _ in range(2):
        assert collect(model, chat(schema=SCHEMA))[0] == '{"n":1}'
    assert ["response_format" in r for r in server.requests] == [True, False, False]


def test_every_field_that_helps_may_be_refused_in_its_turn(server: Server):
    server.answers += [[refusal(400, "unknown field stream_options")], [refusal(400, "unknown field response_format")]]
    server.answers.append([SAID])
    assert collect(openai(server), chat(schema=SCHEMA))[0] == '{"n":1}'
    assert [("stream_options" in r, "response_format" in r) for r in server.requests] == [
        (True, True), (False, True), (False, False),
    ]  # fmt: skip


@pytest.mark.parametrize("more", [{}, {"options": {"response_format": {"type": "json_object"}}}])
def test_a_refusal_of_what_we_did_not_send_is_one(server: Server, more: dict[str, Any]):
    server.answers.append([refusal(400, "response_format is not supported")])
    with pytest.raises(errors.BadInput, match="response_format"):
        collect(openai(server), chat(**more))
    assert len(server.requests) == 1


def test_a_refusal_without_it_too_is_the_answer(server: Server):
    server.answers += [[refusal(400, "json_schema is odd")], [refusal(400, "json_schema is odd")]]
    with pytest.raises(errors.BadInput):
        collect(openai(server), chat(schema=SCHEMA))
    assert len(server.requests) == 2


def test_anthropic_is_given_it_as_output_config(server: Server):
    server.answers += [[MESSAGES_SAID], [MESSAGES_SAID], [MESSAGES_SAID]]
    model = anthropic(server)
    form = {"type": "json_schema", "schema": SCHEMA}
    for asked in (
        chat(schema=SCHEMA),
        chat(schema=SCHEMA, tools=(TOOL,), options={"output_config": {"effort": "low"}}),
        chat(),
    ):
        assert collect(model, asked)[0] == '{"n":1}'
    assert [r.get("output_config") for r in server.requests] == [
        {"format": form}, {"effort": "low", "format": form}, None,
    ]  # fmt: skip


@pytest.mark.parametrize("message", [
    "output_config.format.schema: For 'object' type, 'additionalProperties' must be explicitly set to false",
    "Schema is too complex",
    "output_config: Extra inputs are not permitted",
    "'m1' does not support structured outputs",
])  # fmt: skip
def test_anthropic_is_asked_once_more_without_what_it_refuses(server: Server, message: str):
    server.answers += [[refusal(400, message)], [MESSAGES_SAID], [MESSAGES_SAID]]
    model = anthropic(server)
    for _ in range(2):
        assert collect(model, chat(schema=SCHEMA))[0] == '{"n":1}'
    assert ["output_config" in r for r in server.requests] == [True, False, False]


def test_anthropic_may_refuse_the_limit_and_the_schema(server: Server):
    server.answers += [[refusal(400, "max_tokens: 16384 > 8192, which is the maximum")]]
    server.answers += [[refusal(400, "output_config: Extra inputs are not permitted")], [MESSAGES_SAID]]
    collect(anthropic(server), chat(schema=SCHEMA))
    assert [(r["max_tokens"], "output_config" in r) for r in server.requests] == [
        (16384, True), (8192, True), (8192, False),
    ]  # fmt: skip


def test_anthropic_s_refusal_of_something_else_is_one(server: Server):
    for message in ("messages: roles must alternate", "tools.0.input_schema: invalid"):
        server.answers += [[refusal(400, message)]]
        with pytest.raises(errors.BadInput, match=message.split(":")[0]):
            collect(anthropic(server), chat())
    assert len(server.requests) == 2
