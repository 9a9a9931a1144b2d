"""The events of one messages answer, put together. Pure: the part of the dialect without sockets."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from loom.models import classify, decode
from loom.models.classify import Endpoint
from loom.models.sse import SseEvent
from loom.wire import errors
from loom.wire.chat import ChatReply, ChatRequest, StopReason, ToolCall, Usage
from loom.wire.record import field, record

DIALECT = "anthropic"
_MAX_BLOCKS = 4096
_STOP: dict[str, StopReason] = {
    "end_turn": "end",
    "stop_sequence": "end",
    "tool_use": "tool_calls",
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "refusal": "refusal",
}


@record(frozen=False)
class _Block:
    """One block of the content, whose pieces are still coming. `given` is what began it."""

    given: dict[str, Any]
    text: list[str] = field(default_factory=list)  # of text, thinking or a call's arguments, by the block's type
    signature: str = ""


class Answer:
    """Give it every event of a stream; when `complete`, ask it for the reply.

    done      the server has said message_stop: nothing follows
    complete  the answer is whole: the server said why it stopped
    """

    def __init__(self, endpoint: Endpoint, request: ChatRequest) -> None:
        self.done = False
        self._endpoint = endpoint
        self._prefix = decode.call_prefix(request.messages)
        self._blocks: dict[int, _Block] = {}
        self._stop = ""
        self._usage: dict[str, int] = {}
        self._model = endpoint.model

    @property
    def complete(self) -> bool:
        return self.done or bool(self._stop)

    def add_event(self, event: SseEvent) -> Iterator[str]:
        """Take one event; yields the text in it. Raises BrokenStream for what is none, or the error that was sent."""
        if self.done:
            return
        data = classify.sent_object(self._endpoint, event.data.encode("utf-8", "replace"))
        match data.get("type"):
            case "error":
                raise classify.stream_error(self._endpoint, data.get("error"))
            case "message_start":
                self._begin(_mapping(data.get("message")))
            case "content_block_start":
                yield from self._open(data.get("index"), _mapping(data.get("content_block")))
            case "content_block_delta":
                yield from self._extend(data.get("index"), _mapping(data.get("delta")))
            case "message_delta":
                self._end(_mapping(data.get("delta")).get("stop_reason"))
                self._count(data.get("usage"))
            case "message_stop":
                self.done = True

    def add_whole(self, body: bytes) -> Iterator[str]:
        """Take an answer that was not streamed; yields its text."""
        data = classify.sent_object(self._endpoint, body)
        if data.get("type") == "error":
            raise classify.stream_error(self._endpoint, data.get("error"))
        self._begin(data)
        content = data.get("content")
        for index, block in enumerate(content if isinstance(content, list) else ()):
            yield from self._open(index, _mapping(block))
        self._end(data.get("stop_reason"))
        self.done = bool(self._stop)

    def reply(self) -> ChatReply:
        """The whole answer. Raises BrokenStream when it is not complete."""
        blocks = [self._blocks[index] for index in sorted(self._blocks)]
        text = "".join("".join(b.text) for b in blocks if b.given.get("type") == "text")
        if not self.complete:
            got = f"{len(text)} characters in {len(blocks)} blocks" if blocks else "nothing"
            raise errors.BrokenStream(
                f"{self._endpoint.name}: the answer ended without stop_reason, after {got}", hint="try again"
            )
        calls = self._calls(blocks)
        stop: StopReason = _STOP.get(self._stop, "end")
        if stop in ("end", "tool_calls"):
            stop = "tool_calls" if calls else "end"
        thoughts = [_thought(b) for b in blocks if b.given.get("type") in ("thinking", "redacted_thinking")]
        reasoning = "".join("".join(b.text) for b in blocks if b.given.get("type") == "thinking")
        return ChatReply(
            text,
            calls,
            stop,
            self._counted(),
            self._model,
            reasoning,
            # Without calls the turn is over, and nobody will ask for them.
            tuple({"dialect": DIALECT, "block": t} for t in thoughts) if calls else (),
        )

    def _begin(self, message: Mapping[str, Any]) -> None:
        if isinstance(message.get("model"), str) and message["model"]:
            self._model = message["model"]
        self._count(message.get("usage"))

    def _open(self, index: object, given: Mapping[str, Any]) -> Iterator[str]:
        if not isinstance(index, int) or len(self._blocks) >= _MAX_BLOCKS:
            raise errors.BrokenStream(f"{self._endpoint.name} sent a block with the index {index!r:.40}")
        block = self._blocks[index] = _Block(dict(given))
        begun = given.get({"text": "text", "thinking": "thinking"}.get(str(given.get("type")), ""))
        block.signature = decode.text_of(given.get("signature"))
        if isinstance(begun, str) and begun:
            block.text.append(begun)
            if given["type"] == "text":
                yield begun

    def _extend(self, index: object, delta: Mapping[str, Any]) -> Iterator[str]:
        block = self._blocks.get(index) if isinstance(index, int) else None
        if block is None:
            raise errors.BrokenStream(f"{self._endpoint.name} went on with a block that it had not begun")
        kind = delta.get("type")
        if kind == "signature_delta":
            block.signature += decode.text_of(delta.get("signature"))
            return
        field_of = {"text_delta": "text", "thinking_delta": "thinking", "input_json_delta": "partial_json"}
        piece = decode.text_of(delta.get(field_of.get(str(kind), "")))
        if piece:
            block.text.append(piece)
            if kind == "text_delta" and block.given.get("type") == "text":
                yield piece

    def _end(self, reason: object) -> None:
        if isinstance(reason, str) and reason:
            self._stop = reason

    def _calls(self, blocks: list[_Block]) -> tuple[ToolCall, ...]:
        out: list[ToolCall] = []
        taken: set[str] = set()
        for position, block in enumerate(b for b in blocks if b.given.get("type") == "tool_use"):
            raw = "".join(block.text)
            begun = block.given.get("input")
            given = decode.arguments(raw) if raw or not isinstance(begun, dict) else begun
            call_id = decode.text_of(block.given.get("id"))
            if not call_id or call_id in taken:
                call_id = f"{self._prefix}{position}"
            taken.add(call_id)
            out.append(ToolCall(call_id, decode.text_of(block.given.get("name")), given, raw if given is None else ""))
        return tuple(out)

    def _count(self, usage: object) -> None:
        """Counts are cumulative, and message_delta repeats some of those of message_start."""
        for name, value in _mapping(usage).items():
            if isinstance(value, int) and not isinstance(value, bool):
                self._usage[name] = value

    def _counted(self) -> Usage:
        """Usage in our terms: input tokens include those that were cached."""
        cached = decode.count(self._usage.get("cache_read_input_tokens"))
        stored = decode.count(self._usage.get("cache_creation_input_tokens"))
        fresh = decode.count(self._usage.get("input_tokens"))
        return Usage(fresh + cached + stored, decode.count(self._usage.get("output_tokens")), cached)


def _thought(block: _Block) -> dict[str, Any]:
    """A block of thinking as it must be given back: whole, with its signature."""
    if block.given.get("type") == "redacted_thinking":
        return block.given
    return {"type": "thinking", "thinking": "".join(block.text), "signature": block.signature}


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}
