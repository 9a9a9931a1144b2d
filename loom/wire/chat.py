"""What is said to a model and what it says back, in no provider's dialect.

A dialect (loom/models/) turns a ChatRequest into its own request and its stream into Chunks; everything above
it, turn record and replay included, knows only these records.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from loom.wire.record import field, record

Role = Literal["system", "user", "assistant", "tool"]
StopReason = Literal["end", "tool_calls", "length", "refusal"]

IMAGE_TYPES = ("image/png", "image/jpeg", "image/gif", "image/webp")
MAX_IMAGES = 20  # of one message
MAX_IMAGE_BYTES = 5 << 20


@record
class ToolSpec:
    """A tool as a model sees it, taken from `tool describe` (docs/protocol.md, programs).

    idempotent  running it twice with the same input leaves the same state: it may be run again after a crash
    """

    name: str
    description: str
    input_schema: Mapping[str, Any]
    idempotent: bool = False
    network: bool = False
    writes: bool = False


@record
class ToolCall:
    """One call a model asks for. `input` is None when its arguments were not a JSON object; `raw` keeps them."""

    id: str
    name: str
    input: Mapping[str, Any] | None
    raw: str = ""


@record
class Image:
    """A picture that goes with a message: its bytes lie in blobs/ under this digest (docs/protocol.md section 2)."""

    media_type: str
    blob: str


@record
class ChatMessage:
    """One entry of the conversation. A `tool` message answers the call named by `call_id`.

    images    pictures of a `user` message
    thoughts  of an `assistant` message: ChatReply.thoughts, given back to the provider that sent them
    """

    role: Role
    text: str = ""
    calls: tuple[ToolCall, ...] = ()
    call_id: str = ""
    is_error: bool = False
    images: tuple[Image, ...] = ()
    thoughts: tuple[Mapping[str, Any], ...] = ()


@record
class ChatRequest:
    """All a model is given for one step.

    options  sampling settings, handed on as they are (seed …)
    schema   the JSON Schema that the last answer of the turn must fit; the prompt says so too, and the answer is
             checked by whoever asks: a dialect that can have the server keep to it, does
    """

    model: str
    messages: tuple[ChatMessage, ...]
    tools: tuple[ToolSpec, ...] = ()
    max_tokens: int | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    schema: Mapping[str, Any] | None = None


@record
class Usage:
    """Tokens of one call as the provider counted them; zeros where it does not say."""

    input_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            self.input_tokens + other.input_tokens,
            self.output_tokens + other.output_tokens,
            self.cached_tokens + other.cached_tokens,
        )


@record
class TextDelta:
    """A piece of the answer's text, in order."""

    text: str


@record
class ChatReply:
    """A model's whole answer to one request: the last item of every stream, and only of a complete one.

    reasoning  what the model thought on the way, where the provider tells; no part of the answer
    thoughts   the same as the provider wants it back with the next request of the turn, signatures included:
               {"dialect": D, …}; a dialect gives back only its own
    """

    text: str
    calls: tuple[ToolCall, ...] = ()
    stop: StopReason = "end"
    usage: Usage = Usage()
    model: str = ""
    reasoning: str = ""
    thoughts: tuple[Mapping[str, Any], ...] = ()


@record
class Notice:
    """What a person should know of how the answer came about; no part of it. `text` is one line.

    switched  another model of a chain is asked from here on
    cut       the server has probably left out a part of the request
    """

    kind: Literal["switched", "cut"]
    text: str


Chunk = TextDelta | Notice | ChatReply


def request_to_json(request: ChatRequest) -> dict[str, Any]:
    """The request as plain JSON data: the form in blobs, and on the stdin of an exec/ program."""
    return {
        "model": request.model,
        "messages": [message_to_json(m) for m in request.messages],
        "tools": [tool_to_json(t) for t in request.tools],
        "max_tokens": request.max_tokens,
        "options": dict(request.options),
        **({} if request.schema is None else {"schema": dict(request.schema)}),
    }


def request_from_json(data: Mapping[str, Any]) -> ChatRequest:
    """The inverse of request_to_json; resume sends exactly what was recorded."""
    return ChatRequest(
        model=data["model"],
        messages=tuple(message_from_json(m) for m in data["messages"]),
        tools=tuple(tool_from_json(t) for t in data.get("tools", ())),
        max_tokens=data.get("max_tokens"),
        options=data.get("options", {}),
        schema=data.get("schema"),
    )


def tool_to_json(tool: ToolSpec) -> dict[str, Any]:
    """One tool as `tool describe` prints it."""
    return {
        "name": tool.name,
        "description": tool.description,
        "input_schema": dict(tool.input_schema),
        "idempotent": tool.idempotent,
        "network": tool.network,
        "writes": tool.writes,
    }


def tool_from_json(data: Mapping[str, Any]) -> ToolSpec:
    """Raises KeyError or TypeError when a required field is missing: the caller names the tool in its error."""
    return ToolSpec(
        name=str(data["name"]),
        description=str(data["description"]),
        input_schema=dict(data["input_schema"]),
        idempotent=data.get("idempotent") is True,
        network=data.get("network") is True,
        writes=data.get("writes") is True,
    )


def message_to_json(message: ChatMessage) -> dict[str, Any]:
    """Fields with their default are left out."""
    out: dict[str, Any] = {"role": message.role, "text": message.text}
    if message.calls:
        out["calls"] = calls_to_json(message.calls)
    if message.call_id:
        out["call_id"] = message.call_id
    if message.is_error:
        out["is_error"] = True
    if message.images:
        out["images"] = [{"media_type": i.media_type, "blob": i.blob} for i in message.images]
    if message.thoughts:
        out["thoughts"] = [dict(t) for t in message.thoughts]
    return out


def message_from_json(data: Mapping[str, Any]) -> ChatMessage:
    """The inverse of message_to_json."""
    return ChatMessage(
        role=data["role"],
        text=data.get("text", ""),
        calls=calls_from_json(data.get("calls", ())),
        call_id=data.get("call_id", ""),
        is_error=data.get("is_error", False),
        images=tuple(Image(i["media_type"], i["blob"]) for i in data.get("images", ())),
        thoughts=tuple(data.get("thoughts", ())),
    )


def calls_to_json(calls: Sequence[ToolCall]) -> list[dict[str, Any]]:
    """Tool calls as they stand in turn records."""
    return [
        {"id": c.id, "name": c.name, "input": None if c.input is None else dict(c.input)}
        | ({"raw": c.raw} if c.raw else {})
        for c in calls
    ]


def calls_from_json(data: Sequence[Mapping[str, Any]]) -> tuple[ToolCall, ...]:
    """The inverse of calls_to_json."""
    return tuple(ToolCall(c["id"], c["name"], c.get("input"), c.get("raw", "")) for c in data)


def reply_to_json(reply: ChatReply) -> dict[str, Any]:
    """A model's answer as it stands in a turn record."""
    return {
        "text": reply.text,
        "calls": calls_to_json(reply.calls),
        "stop": reply.stop,
        "usage": usage_to_json(reply.usage),
        "model": reply.model,
        **({"reasoning": reply.reasoning} if reply.reasoning else {}),
        **({"thoughts": [dict(t) for t in reply.thoughts]} if reply.thoughts else {}),
    }


def reply_from_json(data: Mapping[str, Any]) -> ChatReply:
    """The inverse of reply_to_json."""
    usage = data.get("usage", {})
    return ChatReply(
        text=data["text"],
        calls=calls_from_json(data.get("calls", ())),
        stop=data.get("stop", "end"),
        usage=Usage(**usage),
        model=data.get("model", ""),
        reasoning=data.get("reasoning", ""),
        thoughts=tuple(data.get("thoughts", ())),
    )


def usage_to_json(usage: Usage) -> dict[str, int]:
    """Token counts by name."""
    return {
        "input_tokens": usage.input_tokens,
        "output_tokens": usage.output_tokens,
        "cached_tokens": usage.cached_tokens,
    }
