"""The plain agent: its prompt, the thread's history and the message become a request; the answer is the text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from loom.wire.chat import ChatMessage, ChatRequest, Image, Role, ToolSpec, tool_to_json
from loom.wire.jsontext import dumps
from loom.wire.record import record

MAX_HISTORY = 200
MAX_HISTORY_CHARS = 200_000
CHARS_PER_TOKEN = 4
IMAGE_TOKENS = 1_600  # about what the large providers count for one
_FOR_THE_ANSWER = 4  # one part in so many of the window


@record
class Asked:
    """What a turn is begun with.

    text    the message
    images  those that go with it
    window  how many tokens the model can hold; None when that is not known
    schema  what the answer must fit
    """

    text: str
    images: tuple[Image, ...] = ()
    window: int | None = None
    schema: Mapping[str, Any] | None = None


@record
class Begun:
    """The first request of a turn, and how much of the history was left out for its size."""

    request: ChatRequest
    left_out: str = ""


def begin(
    model: str,
    prompt: str,
    history: Sequence[Mapping[str, Any]],
    asked: Asked,
    tools: Sequence[ToolSpec] = (),
    options: Mapping[str, Any] | None = None,
) -> Begun:
    """The first request of a turn."""
    system = _system(prompt, asked.schema)
    message = ChatMessage("user", asked.text, images=asked.images)
    limit = MAX_HISTORY_CHARS
    if asked.window is not None:
        others = len(system) + len(asked.text) + sum(len(dumps(tool_to_json(tool))) for tool in tools)
        left = asked.window - asked.window // _FOR_THE_ANSWER - len(asked.images) * IMAGE_TOKENS
        limit = left * CHARS_PER_TOKEN - others
    kept = _recent(history, limit, None if asked.window else MAX_HISTORY)
    left_out = ""
    if len(kept) < len(history):
        why = f"window {asked.window} tokens" if asked.window else f"limit {MAX_HISTORY} messages, {limit} characters"
        left_out = f"history: the oldest {len(history) - len(kept)} of {len(history)} messages were left out ({why})"
    messages = [ChatMessage("system", system)] if system else []
    messages += [*kept, message]
    request = ChatRequest(model, tuple(messages), tuple(tools), options=dict(options or {}), schema=asked.schema)
    return Begun(request, left_out)


def _system(prompt: str, schema: Mapping[str, Any] | None) -> str:
    if schema is None:
        return prompt if prompt.strip() else ""
    from loom.core import answer  # here, because most turns have no schema

    wanted = answer.prompt(schema)
    return f"{prompt.rstrip()}\n\n{wanted}" if prompt.strip() else wanted


def _recent(history: Sequence[Mapping[str, Any]], chars: int, count: int | None) -> list[ChatMessage]:
    """The newest part of a history that fits, in whole pairs of a user's line and its answer."""
    kept: list[ChatMessage] = []
    pair: list[ChatMessage] = []
    size = 0
    for line in reversed(history):
        role: Role = "assistant" if line.get("role") == "assistant" else "user"
        said = str(line.get("text", ""))
        size += len(said)
        pair.append(ChatMessage(role, said))
        if size > chars or (count is not None and len(kept) + len(pair) > count):
            break
        if role == "user":
            kept += pair
            pair = []
    return kept[::-1]
