"""Lists of models: what each kind of server tells of their sizes and prices."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from far_side import HOLD, FarSide
from model_far_side import response

from loom.models.listing import Listed, list_models
from loom.models.transport import Timeouts
from loom.wire import errors
from loom.wire.provider import Price, Provider


@pytest.fixture
def far() -> Iterator[FarSide]:
    with FarSide() as side:
        yield side


def listed(far: FarSide, *answers: Any, alias: str = "lab", dialect: str = "openai", **more: Any) -> tuple[Listed, ...]:
    far.answers += [[response(200, json.dumps(answer).encode())] for answer in answers]
    return list_models(Provider(alias, dialect, far.url), "sk-key", None, **more)


SERVERS: dict[str, tuple[dict[str, Any], Listed]] = {
    "openai": ({"id": "m1", "object": "model", "owned_by": "x"}, Listed("m1")),
    "openrouter": (
        {
            "id": "a/m1",
            "context_length": 131072,
            "pricing": {"prompt": "0.0000025", "completion": "0.00001", "input_cache_read": "0.00000125"},
        },
        Listed("a/m1", 131072, Price(2.5, 10.0, 1.25)),
    ),
    "openrouter, free": (
        {"id": "m1", "context_length": 8192, "pricing": {"prompt": "0", "completion": "0"}},
        Listed("m1", 8192, Price(0.0, 0.0)),
    ),
    "openrouter, it depends": ({"id": "m1", "pricing": {"prompt": "-1", "completion": "-1"}}, Listed("m1")),
    "vllm": ({"id": "m1", "max_model_len": 4096}, Listed("m1", 4096)),
    "llama.cpp": ({"id": "m1", "meta": {"n_ctx_train": 131072, "n_ctx": 8192}}, Listed("m1", 8192)),
    "llama.cpp, older": ({"id": "m1", "meta": {"n_ctx_train": 131072}}, Listed("m1", 131072)),
    "groq": ({"id": "m1", "context_window": 8192, "active": True}, Listed("m1", 8192)),
    "nonsense": (
        {"id": "m1", "context_length": "many", "pricing": {"prompt": "cheap", "completion": None}, "meta": []},
        Listed("m1"),
    ),
}


@pytest.mark.parametrize("item, model", SERVERS.values(), ids=SERVERS.keys())
def test_what_servers_of_the_openai_dialect_tell(far: FarSide, item: dict[str, Any], model: Listed):
    assert listed(far, {"object": "list", "data": [item, {"id": ""}, "x", {}]}) == (model,)
    assert (far.asked[0].method, far.asked[0].target) == ("GET", "/v1/models")
    assert far.asked[0].headers["authorization"] == "Bearer sk-key"


def test_anthropics_list(far: FarSide):
    data = {"data": [{"type": "model", "id": "m2"}, {"id": "m1", "max_input_tokens": 200_000}], "has_more": False}
    assert listed(far, data, dialect="anthropic") == (Listed("m1", 200_000), Listed("m2"))
    assert far.asked[0].target == "/v1/models?limit=1000"
    assert far.asked[0].headers["x-api-key"] == "sk-key"
    assert "anthropic-version" in far.asked[0].headers


@pytest.mark.parametrize("alias, dialect", [("ollama", "openai"), ("gpu", "ollama")])
def test_ollamas_list_with_the_size_of_each(far: FarSide, alias: str, dialect: str):
    tags = {"models": [{"name": "llama3.2:latest", "size": 1}, {"name": "qwen3:4b"}, {"name": "broken:1b"}]}
    shown = {"model_info": {"general.architecture": "llama", "llama.context_length": 131072}, "parameters": 'stop "x"'}
    less = {"model_info": {"qwen3.context_length": 40960}, "parameters": "num_ctx                        8192\nseed 1"}
    found = listed(far, tags, shown, less, {"error": "no"}, alias=alias, dialect=dialect)
    assert found == (Listed("broken:1b"), Listed("llama3.2", 131072), Listed("qwen3:4b", 8192))
    assert [a.target for a in far.asked] == ["/api/tags", *["/api/show"] * 3]
    assert [a.json["model"] for a in far.asked[1:]] == ["llama3.2:latest", "qwen3:4b", "broken:1b"]
    assert {a.connection for a in far.asked} == {0}


@pytest.mark.parametrize("data", [{}, {"data": None}, {"data": {}}, {"data": [None, 1, []]}])
def test_a_list_of_nothing_is_empty(far: FarSide, data: dict[str, Any]):
    assert listed(far, data) == ()


@pytest.mark.parametrize(
    "answer, kind",
    [
        ([response(401, b'{"error": "wrong key"}')], errors.Config),
        ([response(200, b"<html>")], errors.BrokenStream),
        ([response(200, b"[]")], errors.BrokenStream),
        ([HOLD], errors.Unavailable),
    ],
)
def test_a_server_that_tells_nothing_is_an_error(far: FarSide, answer: list[bytes], kind: type):
    far.answers.append(answer)
    with pytest.raises(errors.LoomError) as caught:
        listed(far, timeouts=Timeouts(1.0, 0.2, 0.2))
    assert type(caught.value) is kind
