"""One step of a turn as it is recorded: what was asked, what came back, which tools began and ended (ADR-0004)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from loom.wire.chat import ChatReply, ChatRequest, ToolCall
from loom.wire.record import field, record


@record(frozen=False)
class Step:
    """`intents` and `results` by call id; a call in `intents` that has no result was interrupted by a crash."""

    request: ChatRequest
    reply: ChatReply | None = None
    intents: dict[str, ToolCall] = field(default_factory=dict)
    results: dict[str, Mapping[str, Any]] = field(default_factory=dict)
