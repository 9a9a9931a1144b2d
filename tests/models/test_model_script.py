"""Scripts: which entry answers depends on the request alone, and mistakes in the file name their line."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from model_far_side import chat, collect

from loom.models.base import ModelContext
from loom.models.registry import check_model, open_model
from loom.models.script import ERRORS, parse
from loom.wire import errors
from loom.wire.chat import ChatMessage, ToolCall, Usage


@pytest.fixture
def script(tmp_path):
    """Writes entries, one a line, and opens the file anew."""

    def make(*entries: object, as_list: bool = False):
        lines = [e if isinstance(e, str) else json.dumps(e) for e in entries]
        (tmp_path / "s.ndjson").write_text("[" + ",\n".join(lines) + "]" if as_list else "\n".join(lines) + "\n")
        return open_model("script/s.ndjson", ModelContext(env={}, cwd=str(tmp_path)))

    return make


def say(model, *texts: str) -> str:
    return collect(model, chat(*texts))[0]


@pytest.mark.parametrize("as_list", [False, True])
def test_the_answers_come_in_order(script, as_list):
    model = script({"text": "one"}, {"text": "two"}, as_list=as_list)
    assert say(model, "a") == "one"
    assert say(model, "a", "one", "b") == "two"


def test_a_killed_process_goes_on_where_it_was(script):
    history = ("a", "one", "b")
    assert say(script({"text": "one"}, {"text": "two"}), *history) == "two"
    assert say(script({"text": "one"}, {"text": "two"}), *history) == "two"


def test_a_tool_step_counts_because_the_model_has_spoken(script):
    model = script({"calls": [{"name": "read", "input": {"path": "a"}}]}, {"text": "done"})
    _, reply = collect(model, chat("go"))
    assert reply.calls == (ToolCall("call_0_0", "read", {"path": "a"}),)
    assert reply.stop == "tool_calls"
    done = (
        ChatMessage("user", "go"),
        ChatMessage("assistant", "", reply.calls),
        ChatMessage("tool", "text of a", call_id="call_0_0"),
    )
    assert collect(model, chat(messages=done))[0] == "done"


def test_past_the_end_is_bad_input_that_names_file_and_step(script):
    with pytest.raises(errors.BadInput, match=r"script s\.ndjson has no answer for step 2") as caught:
        say(script({"text": "one"}), "a", "one", "b")
    assert caught.value.exit_status == 65


def test_a_match_selects_by_the_last_user_text_and_counts_from_there(script):
    model = script(
        {"text": "default one"},
        {"match": "(?i)weather", "calls": [{"name": "look", "input": {}}]},
        {"match": "(?i)weather", "text": "sunny"},
        {"text": "default two"},
    )
    assert say(model, "hi") == "default one"
    assert collect(model, chat("hi", "default one", "the weather?"))[1].calls[0].name == "look"
    looked = (ChatMessage("user", "the weather?"), ChatMessage("assistant"), ChatMessage("tool", "sun", call_id="x"))
    assert collect(model, chat(messages=looked))[0] == "sunny"
    assert say(model, "hi", "default one", "bye") == "default two"


def test_an_error_comes_once_and_a_retry_gets_past_it(script):
    model = script(
        {"error": "try_later", "retry_after": 2}, {"error": "unavailable", "message": "down"}, {"text": "ok"}
    )
    with pytest.raises(errors.TryLater) as caught:
        say(model, "a")
    assert caught.value.retry_after_s == 2
    with pytest.raises(errors.Unavailable, match="down"):
        say(model, "a")
    assert say(model, "a") == "ok"
    assert say(model, "a") == "ok"


def test_errors_are_no_steps(script):
    model = script({"text": "one"}, {"error": "unavailable"}, {"text": "two"})
    assert say(model, "a") == "one"
    with pytest.raises(errors.Unavailable):
        say(model, "a", "one", "b")
    assert say(model, "a", "one", "b") == "two"


def test_an_error_at_the_end_is_for_good(script):
    model = script({"error": "bad_input", "message": "never"})
    for _ in range(3):
        with pytest.raises(errors.BadInput, match="never"):
            say(model, "a")


def test_an_error_with_a_text_breaks_off_in_the_middle(script):
    stream = script({"error": "broken_stream", "text": "half an"}).stream(chat())
    assert next(stream).text == "half "
    assert next(stream).text == "an"
    with pytest.raises(errors.BrokenStream):
        next(stream)


@pytest.mark.parametrize("word, kind", ERRORS.items())
def test_every_error_word(script, word, kind):
    with pytest.raises(kind):
        say(script({"error": word}), "a")


def test_usage_stop_and_delay(script):
    model = script({"text": "x", "delay_s": 0.001, "usage": {"input_tokens": 3, "output_tokens": 4}, "stop": "length"})
    _, reply = collect(model, chat())
    assert (reply.usage, reply.stop) == (Usage(3, 4), "length")
    assert parse(b'{"text": "x", "delay_s": 2}', "s")[0].delay_s == 2.0


def test_a_missing_file_is_known_at_once(tmp_path):
    for tried in (open_model, check_model):
        with pytest.raises(errors.NotFound, match=r"absent\.ndjson"):
            tried("script/absent.ndjson", ModelContext(env={}, cwd=str(tmp_path)))


@pytest.mark.parametrize(
    "line, said",
    [
        ("not json", "not JSON"),
        ("7", "not a JSON object"),
        ("{}", "says nothing"),
        ('{"tetx": "a"}', "did you mean 'text'"),
        ('{"text": 1}', '"text" must be a string'),
        ('{"error": "oops"}', "unknown error 'oops'"),
        ('{"calls": [{"input": {}}]}', '"calls" must be'),
        ('{"text": "a", "delay_s": -1}', '"delay_s" must be'),
        ('{"text": "a", "delay_s": true}', '"delay_s" must be'),
        ('{"text": "a", "match": "("}', "no regular expression"),
        ('{"text": "a", "stop": "soon"}', '"stop" must be'),
        ('{"text": "a", "stop": []}', '"stop" must be'),
    ],
)
def test_a_mistake_names_its_line(script, line, said):
    with pytest.raises(errors.Config) as caught:
        script({"text": "fine"}, "", line)
    assert "s.ndjson:3: " in caught.value.line()
    assert said in caught.value.line()


def test_a_mistake_in_a_list_names_the_line_or_the_entry(script):
    with pytest.raises(errors.Config, match=r"s\.ndjson:2: "):
        script({"text": "fine"}, "oops", as_list=True)
    with pytest.raises(errors.Config, match=r"s\.ndjson: entry 2: "):
        script({"text": "fine"}, "7", as_list=True)


@given(st.binary(max_size=200))
def test_any_bytes_are_a_script_or_an_error_of_ours(data):
    try:
        parse(data, "s")
    except errors.Config:
        pass


FIELDS = [
    "text",
    "calls",
    "error",
    "message",
    "retry_after",
    "delay_s",
    "match",
    "stop",
    "usage",
    "name",
    "input",
    "id",
]
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(["(", "length", "try_later", ""]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(FIELDS), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from(FIELDS), VALUES))
def test_any_fields_are_an_entry_or_an_error_of_ours(entry):
    try:
        parse(json.dumps(entry).encode(), "s")
    except errors.Config:
        pass
