"""The chunks of one chat/completions answer, put together. Pure: the part of the dialect without sockets."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from loom.models import classify, decode
from loom.models.classify import Endpoint
from loom.models.sse import SseEvent
from loom.wire import errors, jsontext
from loom.wire.chat import ChatReply, ChatRequest, StopReason, ToolCall, Usage
from loom.wire.record import field, record

DIALECT = "openai"
_MAX_CALLS = 1024
_STOP: dict[str, StopReason] = {
    "stop": "end",
    "tool_calls": "tool_calls",
    "function_call": "tool_calls",
    "length": "length",
    "content_filter": "refusal",
}


@record(frozen=False)
class _Call:
    """A tool call whose pieces are still coming."""

    id: str = ""
    name: str = ""
    arguments: list[str] = field(default_factory=list)


class Answer:
    """Give it every event of a stream; when `complete`, ask it for the reply.

    done      the server has said [DONE]: nothing follows
    complete  the answer is whole; at most the token counts are missing
    """

    def __init__(self, endpoint: Endpoint, request: ChatRequest) -> None:
        self.done = False
        self._endpoint = endpoint
        self._prefix = decode.call_prefix(request.messages)
        self._text: list[str] = []
        self._calls: list[_Call] = []
        self._by_index: dict[int, _Call] = {}
        self._finish = ""
        self._refused = False
        self._usage = Usage()
        self._model = endpoint.model
        self._reasoning: dict[str, list[str]] = {}  # by the field it comes in: servers differ, some send it twice
        self._details: list[Any] = []

    @property
    def complete(self) -> bool:
        return self.done or bool(self._finish)

    def add_event(self, event: SseEvent) -> Iterator[str]:
        """Take one event; yields the text in it."""
        if self.done:
            return
        if event.data.strip() == "[DONE]":
            self.done = True
            return
        yield from self.add_whole(event.data.encode("utf-8", "replace"))

    def add_whole(self, data: bytes) -> Iterator[str]:
        """Take a whole answer that was not streamed, which a chunk looks like; yields the text in it.

        Raises BrokenStream for what is no chunk, or the error the server sent in its place.
        """
        chunk = classify.sent_object(self._endpoint, data)
        if chunk.get("error"):
            raise classify.stream_error(self._endpoint, chunk["error"])
        if chunk.get("object") == "error":  # vLLM, before it did as others do
            raise classify.stream_error(self._endpoint, chunk)
        if isinstance(chunk.get("model"), str) and chunk["model"]:
            self._model = chunk["model"]
        self._count(chunk.get("usage"))
        choices = chunk.get("choices")
        for choice in choices if isinstance(choices, list) else ():
            if isinstance(choice, dict) and choice.get("index") in (0, None):
                yield from self._choose(choice)

    def reply(self) -> ChatReply:
        """The whole answer. Raises BrokenStream when it is not complete."""
        text = "".join(self._text)
        if not self.complete:
            got = f"{len(text)} characters and {len(self._calls)} tool calls" if text or self._calls else "nothing"
            raise errors.BrokenStream(
                f"{self._endpoint.name}: the answer ended without finish_reason, after {got}", hint="try again"
            )
        calls = self._finished_calls()
        thoughts = self._thoughts() if calls else ()  # without calls the turn is over, and nobody will ask for them
        reasoning = "".join(next(iter(self._reasoning.values()), ()))
        return ChatReply(text, calls, self._stop(), self._usage, self._model, reasoning, thoughts)

    def _choose(self, choice: dict[str, Any]) -> Iterator[str]:
        finish = choice.get("finish_reason")
        if finish == "error":
            raise classify.stream_error(self._endpoint, "the provider behind it failed")
        if finish == "insufficient_system_resource":  # DeepSeek, when it is overloaded
            raise classify.stream_error(self._endpoint, {"code": 503, "message": "it broke off, being overloaded"})
        delta = choice.get("delta") or choice.get("message")
        if isinstance(delta, dict):
            yield from self._add_delta(delta)
        if isinstance(finish, str) and finish:
            self._finish = finish

    def _add_delta(self, delta: dict[str, Any]) -> Iterator[str]:
        refusal = decode.text_of(delta.get("refusal"))
        self._refused = self._refused or bool(refusal)
        # What a model thinks to itself is not part of its answer.
        for name in ("reasoning_content", "reasoning"):
            thought = decode.text_of(delta.get(name))
            if thought:
                self._reasoning.setdefault(name, []).append(thought)
        details = delta.get("reasoning_details")
        for detail in details if isinstance(details, list) else ():
            self._add_detail(detail)
        for text in (decode.text_of(delta.get("content")), refusal):
            if text:
                self._text.append(text)
                yield text
        pieces = delta.get("tool_calls")
        for piece in pieces if isinstance(pieces, list) else ():
            if isinstance(piece, dict):
                self._add_call(piece)

    def _add_detail(self, piece: object) -> None:
        """Take a piece of OpenRouter's details.

        One block comes in many pieces, and a signature is good for the whole block alone. Pieces belong together as
        long as the type stays the same: every one may have the index 0. A signature ends a block.
        """
        last = self._details[-1] if self._details else None
        if not isinstance(piece, dict) or not isinstance(last, dict):
            self._details.append(piece)
            return
        name = {"reasoning.text": "text", "reasoning.summary": "summary"}.get(str(piece.get("type")), "")
        more = decode.text_of(piece.get(name))
        alike = all(piece.get(n) in (None, last.get(n)) or last.get(n) is None for n in ("type", "index", "id"))
        if not name or not alike or (more and last.get("signature")):
            self._details.append(piece)
            return
        said = decode.text_of(last.get(name)) + more
        self._details[-1] = last | {n: v for n, v in piece.items() if v is not None} | ({name: said} if said else {})

    def _add_call(self, piece: dict[str, Any]) -> None:
        function = piece.get("function")
        if not isinstance(function, dict):
            function = {}
        call_id, name, given = piece.get("id"), function.get("name"), function.get("arguments")
        call_id = call_id if isinstance(call_id, str) else ""
        name = name if isinstance(name, str) else ""
        call = self._slot(piece.get("index"), call_id, name)
        call.id = call.id or call_id
        call.name = call.name or name
        if isinstance(given, str):
            call.arguments.append(given)
        elif isinstance(given, dict):
            call.arguments.append(jsontext.dumps(given).decode("utf-8"))

    def _slot(self, index: object, call_id: str, name: str) -> _Call:
        """The call a piece belongs to: by index, where servers count properly.

        Another id together with a name begins a new call: some servers give every call index 0, others give none.
        """
        known = self._by_index.get(index) if isinstance(index, int) else (self._calls[-1] if self._calls else None)
        if known is not None and not (call_id and name and known.id and call_id != known.id):
            return known
        if len(self._calls) >= _MAX_CALLS:
            raise errors.BrokenStream(f"{self._endpoint.name} asked for over {_MAX_CALLS} tool calls at once")
        call = _Call()
        self._calls.append(call)
        if isinstance(index, int):
            self._by_index[index] = call
        return call

    def _finished_calls(self) -> tuple[ToolCall, ...]:
        out: list[ToolCall] = []
        taken: set[str] = set()
        for position, call in enumerate(self._calls):
            raw = "".join(call.arguments)
            given = decode.arguments(raw)
            call_id = call.id if call.id and call.id not in taken else f"{self._prefix}{position}"
            taken.add(call_id)
            out.append(ToolCall(call_id, call.name, given, raw if given is None else ""))
        return tuple(out)

    def _thoughts(self) -> tuple[Mapping[str, Any], ...]:
        """What is to be given back beside the calls: OpenRouter's details, else the field that DeepSeek wants."""
        if self._details:
            return ({"dialect": DIALECT, "field": "reasoning_details", "value": self._details},)
        content = "".join(self._reasoning.get("reasoning_content", ()))
        return ({"dialect": DIALECT, "field": "reasoning_content", "value": content},) if content else ()

    def _stop(self) -> StopReason:
        if self._refused:
            return "refusal"
        stop = _STOP.get(self._finish, "end")
        if stop in ("end", "tool_calls"):
            # Some servers say "stop" after tool calls. "length" stays, for then the last call may be cut.
            return "tool_calls" if self._calls else "end"
        return stop

    def _count(self, usage: object) -> None:
        if not isinstance(usage, dict) or not usage:  # some send an empty one with every chunk
            return
        details = usage.get("prompt_tokens_details")
        cached = details.get("cached_tokens") if isinstance(details, dict) else usage.get("prompt_cache_hit_tokens")
        self._usage = Usage(
            decode.count(usage.get("prompt_tokens")), decode.count(usage.get("completion_tokens")), decode.count(cached)
        )
