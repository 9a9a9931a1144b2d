"""The plain agent: its prompt, the thread's history and the message become a request; the answer is the text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from loom.wire.chat import ChatMessage, ChatRequest, Role, ToolSpec

MAX_HISTORY = 200
MAX_HISTORY_CHARS = 200_000


def request(
    model: str,
    prompt: str,
    history: Sequence[Mapping[str, Any]],
    text: str,
    tools: Sequence[ToolSpec] = (),
    options: Mapping[str, Any] | None = None,
) -> ChatRequest:
    """The first request of a turn."""
    messages: list[ChatMessage] = []
    if prompt.strip():
        messages.append(ChatMessage("system", prompt))
    messages.extend(_recent(history))
    messages.append(ChatMessage("user", text))
    return ChatRequest(model, tuple(messages), tuple(tools), options=dict(options or {}))


def _recent(history: Sequence[Mapping[str, Any]]) -> list[ChatMessage]:
    """The newest part of a history that fits, beginning with a user's line."""
    kept: list[ChatMessage] = []
    size = 0
    for record in reversed(history[-MAX_HISTORY:]):
        role: Role = "assistant" if record.get("role") == "assistant" else "user"
        said = str(record.get("text", ""))
        size += len(said)
        if size > MAX_HISTORY_CHARS:
            break
        kept.append(ChatMessage(role, said))
    while kept and kept[-1].role == "assistant":
        kept.pop()
    return kept[::-1]
