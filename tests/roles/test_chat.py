"""What a model is asked: prompt, as much of the history as it can hold, the message and what goes with it."""

from __future__ import annotations

import re
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from loom.roles import chat
from loom.roles.chat import Asked
from loom.wire.chat import ChatMessage, Image, ToolSpec


def pairs(*sizes: int) -> list[dict[str, Any]]:
    """A history of questions and answers, each of so many characters; the n-th begins with n."""
    return [{"role": role, "text": f"{n:04}{role[0]}".ljust(size, "x")}
            for n, size in enumerate(sizes) for role in ("user", "assistant")]  # fmt: skip


def begun(history: list[dict[str, Any]], window: int | None = None, **more: Any) -> chat.Begun:
    return chat.begin("m", more.pop("prompt", ""), history, Asked(more.pop("text", "?"), window=window, **more))


def test_a_history_that_fits_is_told_whole():
    found = begun(pairs(10, 10))
    assert found.left_out == ""
    assert [(m.role, m.text[:5]) for m in found.request.messages] == [
        ("user", "0000u"), ("assistant", "0000a"), ("user", "0001u"), ("assistant", "0001a"), ("user", "?"),
    ]  # fmt: skip


def test_without_a_window_two_hundred_messages_and_as_many_thousand_characters_are_kept():
    many = begun(pairs(*[10] * 150))
    assert len(many.request.messages) == 201
    assert many.left_out == (
        "history: the oldest 100 of 300 messages were left out (limit 200 messages, 200000 characters)"
    )
    assert len(begun(pairs(90_000, 60_000, 40_000)).request.messages) == 5


def test_with_one_as_many_as_it_holds_are_kept():
    # A window of 1000 tokens, a quarter of it for the answer: 3000 characters for the rest.
    found = begun(pairs(*[500] * 10), window=1000, text="x" * 500, prompt="y" * 400)
    assert found.left_out == "history: the oldest 16 of 20 messages were left out (window 1000 tokens)"
    assert len(begun(pairs(*[500] * 10), window=1000, text="x" * 500, prompt="y" * 600).request.messages) == 4
    assert len(begun(pairs(*[1] * 1000), window=10_000).request.messages) == 2001


def test_tools_images_and_the_schema_take_their_part():
    def kept(**more: Any) -> int:
        tools = more.pop("tools", ())
        return len(chat.begin("m", "", pairs(*[400] * 20), Asked("?", window=4000, **more), tools).request.messages)

    everything = kept()
    assert kept(images=(Image("image/png", "0" * 64),)) < everything
    assert kept(schema={"description": "z" * 8000}) < everything
    assert kept(tools=[ToolSpec("t", "z" * 8000, {})]) < everything


def test_a_message_that_leaves_no_room_goes_alone():
    found = begun(pairs(10), window=10, text="x" * 500)
    assert [m.text for m in found.request.messages] == ["x" * 500]
    assert found.left_out.startswith("history: the oldest 2 of 2")


@given(st.lists(st.integers(5, 3000), max_size=30), st.none() | st.integers(1, 20_000), st.integers(0, 5000))
@settings(max_examples=200, derandomize=True, deadline=None)
def test_what_is_kept_is_the_newest_whole_pairs_and_what_is_left_out_is_told(
    sizes: list[int], window: int | None, length: int
):
    history = pairs(*sizes)
    found = begun(history, window, text="?" * length, prompt="be kind")
    system, *kept, message = found.request.messages
    assert (system.role, message.text) == ("system", "?" * length)
    assert len(kept) % 2 == 0
    assert [(m.role, m.text) for m in kept] == [(r["role"], r["text"]) for r in history[len(history) - len(kept) :]]
    told = re.match(r"history: the oldest (\d+) of (\d+) ", found.left_out)
    left = len(history) - len(kept)
    assert (None if told is None else (int(told[1]), int(told[2]))) == ((left, len(history)) if left else None)
    if window is not None and kept:
        assert sum(len(m.text) for m in found.request.messages) <= window * 3 + 4


def test_a_pair_that_lost_a_half_is_not_begun_with():
    history = pairs(10, 10)
    assert [m.text[:5] for m in begun(history[1:]).request.messages] == ["0001u", "0001a", "?"]


def test_the_schema_stands_in_the_prompt_and_in_the_request():
    schema = {"type": "integer"}
    asked = begun([], prompt="Be kind.\n", schema=schema).request
    assert asked.schema == schema
    assert asked.messages[0].text.startswith("Be kind.\n\nYour answer must be one JSON value")
    assert asked.messages[0].text.endswith('{"type":"integer"}')
    assert begun([], schema=schema).request.messages[0].role == "system"
    assert begun([], prompt=" ").request.messages == (ChatMessage("user", "?"),)


def test_images_go_with_the_message():
    image = Image("image/png", "0" * 64)
    assert begun(pairs(5), images=(image,)).request.messages[-1] == ChatMessage("user", "?", images=(image,))
