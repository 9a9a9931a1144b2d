"""Answers that weak models spoil are seen for what they are; those that only look like it are left alone."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loom.core.first_aid import MAX_REPEATS, endless, written_call

TOOLS = ("read-file", "search-files")
CALL = '{"name": "read-file", "arguments": {"path": "a"}}'


@pytest.mark.parametrize("text", [
    CALL,
    CALL.replace("arguments", "input"),
    CALL.replace("arguments", "parameters"),
    CALL.replace("read-file", "read_file"),
    '{"arguments": {"name": "x"}, "name": "read-file"}',
    f"I will read it.\n```json\n{CALL}\n```",
    f"```\n{CALL}\n```\n",
    f"```tool_call\n{CALL}```",
    f"Let me see. <tool_call>{CALL}</tool_call>",
    f"<tool_call>\n{CALL}",
    "<function=read-file>{\"path\": \"a\"}</function>",
    "<function=read-file>\n<parameter=path>\na\n</parameter>\n</function>\n</tool_call>",
    '{"name": "read-file", "arguments": {"path": ',
])  # fmt: skip
def test_a_call_written_down_is_seen(text: str):
    assert written_call(text, TOOLS) == "read-file"


@pytest.mark.parametrize("text", [
    "", "Done.", '{"name": "read-file"}', '{"name": "rm", "arguments": {}}', '{"name": "Ada", "input": 3}',
    f"The log holds ```json\n{CALL}\n``` and nothing else.", f"In <tool_call>{CALL}</tool_call> it stands.",
    f"Quoted: {CALL}", "I would call read-file with its arguments.", "<function=rm>{}</function>",
    "<function=read-file>{}</function> is how it is written.", f"[{CALL}]", "```", "```json\n```",
])  # fmt: skip
def test_what_only_speaks_of_a_call_is_left_alone(text: str):
    assert written_call(text, TOOLS) == ""


def test_without_tools_there_is_no_call():
    assert written_call(CALL, ()) == ""


MARKS = ["<tool_call>", "</tool_call>", "```", "```json", "<function=rm>", "</function>", "{", "}"]


@given(
    st.text(max_size=80) | st.lists(st.sampled_from([*MARKS, " ", "\n"]), max_size=6).map("".join),
    st.sampled_from(["```json\n%s\n```", "<tool_call>%s</tool_call>"]),
)
@settings(max_examples=100, derandomize=True, deadline=None)
def test_prose_before_a_call_does_not_hide_it_and_prose_behind_it_does(prose: str, frame: str):
    call = frame % CALL
    assert written_call(f"{prose}\n{call}", TOOLS) == "read-file"
    assert written_call(f"{call}\nand so on", TOOLS) == ""


@given(st.text(st.sampled_from('{}`<>"/=_-\n :anmetoul'), max_size=80))
@settings(max_examples=200, derandomize=True, deadline=None)
def test_any_text_is_looked_at_in_peace(text: str):
    assert written_call(text, TOOLS) in ("", *TOOLS)
    assert isinstance(endless(text, ()), str)


@pytest.mark.parametrize("text, phrase", [
    ("I am stuck.\n" * MAX_REPEATS, "I am stuck."),
    ("It begins well.\n" + "and on\n\n" * MAX_REPEATS, "and on"),
    ("so " * 17 + "very " * MAX_REPEATS, "very"),
    ("A. " + "the cat sat on the mat, " * 400, "the cat sat on the mat,"),
    ("one\ntwo\n" * (MAX_REPEATS + 1), "one\ntwo"),
    ("我不知道。" * 60, "我不知道。"),
])  # fmt: skip
def test_what_is_said_for_ever_is_seen(text: str, phrase: str):
    found = endless(text, ())
    assert found and found in phrase * 2


@pytest.mark.parametrize("text", [
    "", "I am stuck.\n" * (MAX_REPEATS - 1), "I am stuck.\n" * 100 + "No, I am not.", "-" * 500, "=-" * 300, "0" * 5000,
    "0, " * 300, "| - | - |\n" * 90, json.dumps(["null"] * 300), json.dumps([{"a": None}] * 300, indent=1),
    "\n".join(f"line {n}" for n in range(500)), "aaaa" * 100,
])  # fmt: skip
def test_rules_paddings_lists_and_ends_are_left_alone(text: str):
    assert endless(text, ()) == ""


def test_what_was_given_as_often_may_be_quoted():
    text = "lorem ipsum\n" * 80
    assert endless(text, ["Say it back."]) == "lorem ipsum"
    assert endless(text, ["Say it back.", text]) == ""


@given(st.text(st.characters(categories=["L", "N", "P", "Zs"]), min_size=4, max_size=150), st.integers(50, 90))
@settings(max_examples=100, derandomize=True, deadline=None)
def test_any_phrase_that_says_something_is_seen_when_it_does_not_end(phrase: str, times: int):
    told = {char for char in phrase if char.isalnum()}
    found = endless("Well: " + phrase * times, ())
    if not phrase.endswith(" ") and len(told) > 1:
        assert found
    elif not told:
        assert not found
