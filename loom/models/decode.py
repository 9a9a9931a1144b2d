"""What providers, programs and scripts send, turned into records without trusting any of it. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from loom.wire import jsontext
from loom.wire.chat import ChatMessage, ToolCall, Usage

_ESCAPE = re.compile(
    rb"\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}"  # a proper pair
    rb"|\\u[dD][89a-fA-F][0-9a-fA-F]{2}"  # half of one
    rb"|\\.",
    re.DOTALL,
)


def json_object(data: bytes) -> dict[str, Any] | None:
    """The object these bytes are, or None.

    Half a surrogate pair becomes U+FFFD instead of spoiling the whole: servers that cut text by UTF-16 units send
    an emoji as two halves in two chunks.
    """
    if b"\\u" in data:
        data = _ESCAPE.sub(_mend, data)
    try:
        return jsontext.loads_object(data)
    except jsontext.Malformed:
        return None


def _mend(found: re.Match[bytes]) -> bytes:
    escape = found.group()
    return b"\\ufffd" if len(escape) == 6 else escape


def arguments(raw: str) -> dict[str, Any] | None:
    """A tool call's arguments, or None when they are not a JSON object. Nothing at all means no arguments."""
    if not raw.strip():
        return {}
    try:
        return jsontext.loads_object(raw.encode("utf-8", "surrogatepass"))
    except jsontext.Malformed:
        return None


def text_of(value: object) -> str:
    """Text that is a string, or a list of parts like {"type": "text", "text": …}; '' for anything else."""
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        parts = [part.get("text") for part in value if isinstance(part, dict) and part.get("type") == "text"]
        return "".join(part for part in parts if isinstance(part, str))
    return ""


def count(value: object) -> int:
    """A token count: zero for what is none."""
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0


def usage(data: object) -> Usage:
    """Token counts in our own names; zeros for what is missing or wrong."""
    if not isinstance(data, dict):
        return Usage()
    return Usage(count(data.get("input_tokens")), count(data.get("output_tokens")), count(data.get("cached_tokens")))


def calls(data: object, prefix: str | None) -> tuple[ToolCall, ...] | None:
    """Tool calls as programs and scripts write them: [{"name", "input", "id"?}]. None when it is not such a list.

    A call without an id is given one that begins with `prefix` (see call_prefix), or '' when that is None.
    """
    if not isinstance(data, list):
        return None
    out: list[ToolCall] = []
    for index, item in enumerate(data):
        if not isinstance(item, dict) or not isinstance(item.get("name"), str):
            return None
        given, call_id, raw = item.get("input", {}), item.get("id"), item.get("raw", "")
        if not (given is None or isinstance(given, dict)) or not isinstance(raw, str):
            return None
        if not isinstance(call_id, str) or not call_id:
            call_id = "" if prefix is None else f"{prefix}{index}"
        out.append(ToolCall(call_id, item["name"], given, raw))
    return tuple(out)


def call_prefix(messages: Sequence[ChatMessage]) -> str:
    """Beginning of the ids for calls that came without one: unique in a conversation, the same when asked again."""
    return f"call_{assistant_turns(messages)}_"


def assistant_turns(messages: Sequence[ChatMessage]) -> int:
    """How often the model has spoken so far."""
    return sum(1 for message in messages if message.role == "assistant")
