"""agent.json: strict, because a person may have edited it; whatever is wrong is a Config that names the file."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loom.wire.agent import (
    POLICIES,
    AgentLimits,
    AgentSpec,
    Restart,
    decode,
    decode_limits,
    decode_restart,
    encode,
    parse_size,
)
from loom.wire.errors import Config

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda v: st.lists(v, max_size=3) | st.dictionaries(texts, v, max_size=3),
    max_leaves=6,
)
seconds = st.floats(0, 1e8)
FIELDS = ["v", "name", "model", "runner", "tools", "restart", "options", "env", "idle_s", "unsafe_no_sandbox", "schema"]
specs = st.builds(
    AgentSpec,
    name=st.from_regex(r"[a-z][a-z0-9-]{0,63}", fullmatch=True),
    model=texts.filter(bool),
    runner=texts,
    tools=st.lists(texts, max_size=3).map(tuple),
    restart=st.builds(Restart, st.sampled_from(POLICIES), seconds, seconds, st.integers(1, 10**6), seconds),
    options=st.dictionaries(texts, st.integers() | texts, max_size=3),
    env=st.dictionaries(st.from_regex("[A-Z_]+", fullmatch=True), st.from_regex("[^\0]*", fullmatch=True), max_size=3),
    idle_s=st.none() | seconds,
    unsafe_no_sandbox=st.booleans(),
    schema=st.none() | st.dictionaries(texts, values, max_size=3),
    rest=st.dictionaries(texts.filter(lambda t: t not in FIELDS), texts, max_size=2),
)
PLAIN = {"v": 1, "name": "a", "model": "builtin/echo"}


@given(specs)
def test_what_is_written_is_read_back(spec: AgentSpec):
    assert decode(encode(spec), "here") == spec


@given(specs)
def test_people_find_one_field_a_line(spec: AgentSpec):
    lines = encode(spec).split(b"\n")
    assert len(lines) == len(FIELDS) - (spec.schema is None) + len(spec.rest) + 3


@given(st.binary(max_size=200))
def test_any_bytes_are_a_config_error_that_names_the_file(data: bytes):
    with pytest.raises(Config, match=r"agents/a/agent\.json"):
        decode(data, "agents/a/agent.json")


@given(st.dictionaries(st.sampled_from(FIELDS), values, max_size=5), st.sampled_from([*FIELDS, ""]))
def test_a_field_of_any_type_is_a_spec_or_a_config_error(changes: dict[str, Any], dropped: str):
    raw = {**PLAIN, **changes}
    raw.pop(dropped, None)
    try:
        spec = decode(json.dumps(raw).encode(), "here")
    except Config as error:
        assert "here" in str(error)
        return
    assert decode(encode(spec), "here") == spec


@pytest.mark.parametrize("changes, word", [
    ({"name": "A"}, "agent name"), ({"name": 1}, "'name'"), ({"model": ""}, "'model'"), ({"v": 2}, "version 2"),
    ({"tools": "read-file"}, "'tools'"), ({"tools": [1]}, "'tools'"), ({"env": {"A": 1}}, "'env'"),
    ({"env": {"A=B": "x"}}, "'env'"), ({"env": {"": "x"}}, "'env'"), ({"env": {"A": "\0"}}, "'env'"),
    ({"options": []}, "'options'"), ({"idle_s": -1}, "'idle_s'"), ({"idle_s": True}, "'idle_s'"),
    ({"restart": "sometimes"}, "sometimes"), ({"restart": {"limits": 3}}, "limits"),
    ({"restart": {"limit": 0}}, "limit"),
    ({"restart": {"limit": 1.5}}, "limit"), ({"restart": {"base_s": "1"}}, "base_s"), ({"restart": 5}, "restart"),
    ({"restart": {"policy": []}}, "policy"),
])  # fmt: skip
def test_the_error_names_what_is_wrong(changes: dict[str, Any], word: str):
    with pytest.raises(Config, match=word):
        decode(json.dumps({**PLAIN, **changes}).encode(), "here")


@pytest.mark.parametrize("missing", ["name", "model"])
def test_a_missing_field_is_named(missing: str):
    raw = {k: v for k, v in PLAIN.items() if k != missing}
    with pytest.raises(Config, match=f"'{missing}' is missing"):
        decode(json.dumps(raw).encode(), "here")


@pytest.mark.parametrize("word", POLICIES)
def test_a_policy_alone_has_the_default_numbers(word: str):
    assert decode_restart(word) == Restart(policy=word)


@pytest.mark.parametrize("value", ["yes", 1, "true", None])
def test_only_true_switches_the_sandbox_off(value: Any):
    assert decode(json.dumps({**PLAIN, "unsafe_no_sandbox": value}).encode(), "here").unsafe_no_sandbox is False


def test_a_name_that_stands_twice_is_refused():
    with pytest.raises(Config, match="here cannot be read: the name 'model' stands twice in one object"):
        decode(json.dumps(PLAIN).encode()[:-1] + b', "model": "builtin/extract"}', "here")


def test_limits_are_written_and_read_back_and_only_when_there_are_some():
    limits = AgentLimits(memory=256 << 20, cpu_s=1.5, files=64, processes=8, disk=1 << 30)
    spec = AgentSpec("a", "builtin", limits=limits)
    assert decode(encode(spec), "here") == spec
    assert b"limits" not in encode(AgentSpec("a", "builtin"))
    assert decode_limits({"memory": "256MiB", "cpu_s": 1.5, "files": 64, "processes": 8, "disk": "1 GB"}) == limits


@pytest.mark.parametrize(
    "raw, words",
    [
        ([], "not an object"),
        ({"memroy": 1}, "no limit 'memroy', only memory"),
        ({"memory": "much"}, "not a size like 256MiB"),
        ({"memory": 1024}, "at least 33554432"),
        ({"cpu_s": 0}, "at least 0.1"),
        ({"cpu_s": float("nan")}, "at least 0.1"),
        ({"files": 64.5}, "files is 64.5"),
        ({"processes": True}, "processes is True"),
        ({"disk": "9999999999999999999"}, "not a size"),
        ({"files": "64"}, "expected a number"),
    ],
)
def test_wrong_limits_are_refused_with_a_reason(raw: object, words: str):
    with pytest.raises(ValueError, match=words):
        decode_limits(raw)


@pytest.mark.parametrize(
    "text, size", [("0", 0), ("512", 512), ("1k", 1024), (" 64 MB ", 64 << 20), ("2GiB", 2 << 30), ("1T", 1 << 40)]
)
def test_sizes_as_people_write_them(text: str, size: int):
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "M", "-1", "1.5G", "1 PiB", "0x10", "1 B B"])
def test_what_is_no_size(text: str):
    with pytest.raises(ValueError, match="not a size"):
        parse_size(text)
