"""A request as a built-in model reads it, and its answer as a stream.

The models keep nothing between two steps. Where they are they read from the conversation: the calls they made and
what the tools answered. So a runner that was killed goes on with the same next step.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from loom.wire.chat import ChatMessage, ChatReply, ChatRequest, Chunk, TextDelta, ToolCall, Usage
from loom.wire.record import record

READ = "read-file"
WRITE = "write-file"
CALLS_PER_STEP = 16
LARGEST_FILE_BYTES = 8 * 1024 * 1024
_PIECE = re.compile(r"[^\n]{1,4096}\n?|\n")


@record
class Step:
    """What a model does next: say something, or ask for tools as (name, input) in order."""

    text: str = ""
    calls: tuple[tuple[str, dict[str, Any]], ...] = ()


@record
class Builtin:
    """A model that is a function of the request."""

    name: str
    answer: Callable[[ChatRequest], Step]

    def stream(self, request: ChatRequest) -> Iterator[Chunk]:
        """The answer in pieces, the complete reply last."""
        step = self.answer(request)
        number = 1 + sum(1 for m in request.messages if m.calls)
        calls = tuple(ToolCall(f"call-{number}-{i}", name, data) for i, (name, data) in enumerate(step.calls, start=1))
        for piece in _PIECE.findall(step.text):
            yield TextDelta(piece)
        yield ChatReply(
            text=step.text,
            calls=calls,
            stop="tool_calls" if calls else "end",
            usage=Usage(
                input_tokens=sum(len(m.text.split()) for m in request.messages),
                output_tokens=len(step.text.split()) + sum(len(json.dumps(data).split()) for _, data in step.calls),
            ),
            model=self.name,
        )


def last_user_text(request: ChatRequest) -> str:
    """What was said last by a person or another agent; empty when nothing was."""
    return next((m.text for m in reversed(request.messages) if m.role == "user"), "")


def answer_json(data: object, prose: str = "") -> Step:
    """A final answer: one JSON object in a fenced block, and a line for people."""
    block = f"```json\n{json.dumps(data, ensure_ascii=False, indent=2)}\n```\n"
    return Step(f"{block}\n{prose}\n" if prose else block)


@record
class Exchange:
    """One tool call and what came of it. `error` is empty exactly when the call succeeded."""

    name: str
    input: dict[str, Any]
    result: dict[str, Any]
    error: str


@record
class Reading:
    """How far a file has been read: its text, the offset to go on from, or why it cannot be read."""

    text: str = ""
    next_offset: int | None = None
    error: str = ""
    begun: bool = False

    @property
    def done(self) -> bool:
        """Whether there is nothing more to ask for, be it that the file is read or that it cannot be."""
        return bool(self.error) or (self.begun and self.next_offset is None)


class Transcript:
    """An order and all that was done on it: the last user message that holds one, and the exchanges after it."""

    def __init__(self, request: ChatRequest, opening: str) -> None:
        """`opening` is how the first line of an order begins, e.g. "# Subtask"; later messages may only nag."""
        marks = [i for i, m in enumerate(request.messages) if m.role == "user"]
        orders = [i for i in marks if request.messages[i].text.lstrip().startswith(opening)] or marks
        at = orders[-1] if orders else len(request.messages)
        self.order = request.messages[at].text if orders else ""
        self.exchanges = _exchanges(request.messages[at:])
        self._granted = {spec.name.replace("_", "-"): spec.name for spec in request.tools}
        self._readings: dict[str, Reading] = {}
        for exchange in self.exchanges:
            if self.is_tool(exchange, READ):
                path = str(exchange.input.get("path", ""))
                self._readings[path] = _continued(self._readings.get(path, Reading()), exchange)

    def has_tool(self, name: str) -> bool:
        """Whether the request grants the tool."""
        return name in self._granted

    def call(self, name: str, **data: Any) -> tuple[str, dict[str, Any]]:
        """A call of a granted tool, by the name under which it was granted."""
        return self._granted.get(name, name), data

    def is_tool(self, exchange: Exchange, name: str) -> bool:
        """Whether the exchange was with this tool."""
        return exchange.name == self._granted.get(name, name)

    def reading(self, path: str) -> Reading:
        """What is known of a file."""
        return self._readings.get(path, Reading())

    def read_next(self, paths: Sequence[str]) -> Step | None:
        """The next reads until all of `paths` are done; None when they are."""
        calls = []
        for path in dict.fromkeys(paths):
            reading = self.reading(path)
            if not reading.done:
                offset = {} if reading.next_offset is None else {"offset": reading.next_offset}
                calls.append(self.call(READ, path=path, **offset))
        return Step(calls=tuple(calls[:CALLS_PER_STEP])) if calls else None


def _exchanges(messages: Sequence[ChatMessage]) -> tuple[Exchange, ...]:
    """The calls in order, each with its result; a call without one counts as failed."""
    answers = {m.call_id: m for m in messages if m.role == "tool"}
    return tuple(_exchange(call, answers.get(call.id)) for m in messages for call in m.calls)


def _exchange(call: ToolCall, answer: ChatMessage | None) -> Exchange:
    data = dict(call.input or {})
    if answer is None:
        return Exchange(call.name, data, {}, "the tool gave no result")
    try:
        parsed = json.loads(answer.text)
    except ValueError:
        parsed = None
    if not isinstance(parsed, dict):
        said = " ".join(answer.text.split())[:200]
        return Exchange(call.name, data, {}, said if answer.is_error and said else "the tool's result is not JSON")
    if answer.is_error or parsed.get("status") != "ok":
        return Exchange(call.name, data, {}, str(parsed.get("error") or "the tool failed without a reason"))
    result = parsed.get("result")
    return Exchange(call.name, data, result if isinstance(result, dict) else {}, "")


def _continued(before: Reading, exchange: Exchange) -> Reading:
    """The reading after one more answer of the tool."""
    if exchange.error:
        return Reading(before.text, error=exchange.error, begun=True)
    content = exchange.result.get("content")
    if not isinstance(content, str):
        return Reading(before.text, error="the tool gave no text", begun=True)
    asked = _number(exchange.input.get("offset"))
    text = before.text + content
    if max(len(text), _number(exchange.result.get("size_bytes"))) > LARGEST_FILE_BYTES:
        return Reading(error=f"larger than {LARGEST_FILE_BYTES // 1024 // 1024} MiB", begun=True)
    if not exchange.result.get("truncated"):
        return Reading(text, begun=True)
    following = _number(exchange.result.get("next_offset")) or asked + len(content.encode(errors="surrogatepass"))
    if following <= asked:
        return Reading(text, error="the tool does not get beyond a truncated part", begun=True)
    return Reading(text, next_offset=following, begun=True)


def _number(value: object) -> int:
    return value if isinstance(value, int) else 0
