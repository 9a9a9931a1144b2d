"""Ollama's own dialect, /api/chat: the one in which it can be told how much of a request to hold.

Its /v1 has no field for that, and cuts what does not fit without a word. Here the context is asked for (`num_ctx`), and
what does not fit is refused. Used where providers.X.context is set, or providers.X.dialect says so.

Source: Ollama's docs/api.md, and api/types.go for `truncate` and `shift`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from loom.models import classify, decode
from loom.models.base import ModelContext
from loom.models.classify import Endpoint
from loom.models.dialect import ServerModel, functions
from loom.models.proxies import Proxy
from loom.models.transport import Response
from loom.wire import errors
from loom.wire.chat import ChatMessage, ChatReply, ChatRequest, Chunk, StopReason, TextDelta, ToolCall, Usage

DIALECT = "ollama"
MAX_LINE_BYTES = 8 << 20
_BESIDE = ("format", "keep_alive", "think")  # options that are none of the model's


class OllamaModel(ServerModel):
    """One model at one server of this dialect."""

    def _set_up(self, endpoint: Endpoint) -> None:
        self._url = native_url(endpoint.base_url) + "/api/chat"

    def stream(self, request: ChatRequest) -> Iterator[Chunk]:
        """Ask and yield the answer as it comes; see loom.models.base.Model."""
        answer = Answer(self._endpoint, request)

        def read(response: Response) -> Iterator[TextDelta]:
            for line in _lines(response, self.name):
                for text in answer.add(line):
                    yield TextDelta(text)

        yield from self._post(self._url, self._bearer(), self._body(request), read, classify.OLLAMA_DOWN)
        yield answer.reply()

    def _body(self, request: ChatRequest) -> dict[str, Any]:
        options = {name: value for name, value in request.options.items() if name not in _BESIDE}
        body: dict[str, Any] = {name: request.options[name] for name in _BESIDE if name in request.options}
        form = options.pop("response_format", None)
        if "format" not in body and isinstance(form, Mapping):
            body["format"] = _format(form)
        if request.schema is not None and not request.tools:  # it makes every word fit, and then no tool can be called
            body.setdefault("format", dict(request.schema))
        if self._endpoint.context:
            options["num_ctx"] = self._endpoint.context
        if request.max_tokens is not None:
            options["num_predict"] = request.max_tokens
        body |= {
            "model": self._endpoint.model,
            "messages": self._messages(request.messages),
            "stream": True,
            "truncate": False,  # refuse what does not fit; servers that do not know these two ignore them
            "shift": False,
            "options": options,
        }
        if request.tools:
            body["tools"] = functions(request.tools)
        return body

    def _messages(self, messages: Sequence[ChatMessage]) -> list[dict[str, Any]]:
        called = {call.id: call.name for message in messages for call in message.calls}
        return [self._message(message, called) for message in messages]

    def _message(self, message: ChatMessage, called: Mapping[str, str]) -> dict[str, Any]:
        if message.role == "tool":
            # There is no field for a failed call, so the text says it; answers belong to calls by the tool's name.
            text = f"error: {message.text}" if message.is_error else message.text
            name = called.get(message.call_id, "")
            return {"role": "tool", "content": text, "tool_name": name, "tool_call_id": message.call_id}
        out: dict[str, Any] = {"role": message.role, "content": message.text}
        if message.images:
            from base64 import b64encode  # here, because few messages have them

            out["images"] = [b64encode(self._blob(image.blob)).decode("ascii") for image in message.images]
        for thought in message.thoughts:
            if thought.get("dialect") == DIALECT:
                out["thinking"] = thought["thinking"]
        if message.calls:
            out["tool_calls"] = [
                {
                    "id": call.id,
                    "function": {
                        "name": call.name,
                        "arguments": {"unreadable_arguments": call.raw} if call.input is None else dict(call.input),
                    },
                }
                for call in message.calls
            ]
        return out


class Answer:
    """The lines of one answer, put together. Pure."""

    def __init__(self, endpoint: Endpoint, request: ChatRequest) -> None:
        self._endpoint = endpoint
        self._prefix = decode.call_prefix(request.messages)
        self._text: list[str] = []
        self._thought: list[str] = []
        self._calls: list[ToolCall] = []
        self._last: Mapping[str, Any] | None = None
        self._model = endpoint.model

    def add(self, line: bytes) -> Iterator[str]:
        """Take one line; yields the text in it. Raises BrokenStream for what is none, or the error in it."""
        data = classify.sent_object(self._endpoint, line)
        if data.get("error"):
            raise classify.stream_error(self._endpoint, data["error"])
        self._model = decode.text_of(data.get("model")) or self._model
        message = data.get("message")
        if isinstance(message, dict):
            self._thought.append(decode.text_of(message.get("thinking")))
            for call in message.get("tool_calls") or ():
                self._add_call(call)
            text = decode.text_of(message.get("content"))
            if text:
                self._text.append(text)
                yield text
        if data.get("done") is True:
            self._last = data

    def reply(self) -> ChatReply:
        """The whole answer. Raises BrokenStream when it is not complete."""
        text = "".join(self._text)
        if self._last is None:
            got = f"{len(text)} characters and {len(self._calls)} tool calls" if text or self._calls else "nothing"
            raise errors.BrokenStream(
                f"{self._endpoint.name}: the answer ended before it was done, after {got}", hint="try again"
            )
        stop: StopReason = "tool_calls" if self._calls else "end"
        if self._last.get("done_reason") == "length":
            stop = "length"
        counted = Usage(decode.count(self._last.get("prompt_eval_count")), decode.count(self._last.get("eval_count")))
        thought = "".join(self._thought)
        # Without calls the turn is over, and nobody will ask for them.
        thoughts = ({"dialect": DIALECT, "thinking": thought},) if thought and self._calls else ()
        return ChatReply(text, tuple(self._calls), stop, counted, self._model, thought, thoughts)

    def _add_call(self, call: object) -> None:
        function = call.get("function") if isinstance(call, dict) else None
        if not isinstance(call, dict) or not isinstance(function, dict):
            return
        given = function.get("arguments")
        raw = given if isinstance(given, str) else ""
        parsed = decode.arguments(raw) if isinstance(given, str) else given if isinstance(given, dict) else {}
        call_id = decode.text_of(call.get("id"))
        if not call_id or any(known.id == call_id for known in self._calls):
            call_id = f"{self._prefix}{len(self._calls)}"
        name = decode.text_of(function.get("name"))
        self._calls.append(ToolCall(call_id, name, parsed, raw if parsed is None else ""))


def open_model(endpoint: Endpoint, context: ModelContext, proxy: Proxy | None) -> OllamaModel:
    """The registry's way in."""
    return OllamaModel(endpoint, context.timeouts, context.blob, proxy, context.heard)


def native_url(base_url: str) -> str:
    """Where /api/… is, for a base_url that may end with the other dialect's /v1."""
    return base_url.rstrip("/").removesuffix("/v1")


def _format(form: Mapping[str, Any]) -> Any:
    """What the other dialect calls response_format: a schema, or "json"."""
    schema = form.get("json_schema")
    inner = schema.get("schema") if isinstance(schema, Mapping) else None
    return inner if isinstance(inner, Mapping) else "json"


def _lines(response: Response, name: str) -> Iterator[bytes]:
    """The lines of the body that are not empty; the last one may lack its end."""
    rest = bytearray()
    for piece in response.chunks:
        rest += piece
        *lines, last = rest.split(b"\n")
        rest = bytearray(last)
        yield from (bytes(line) for line in lines if line.strip())
        if len(rest) > MAX_LINE_BYTES:
            raise errors.BrokenStream(f"{name} sent a line over {MAX_LINE_BYTES} bytes; this is no chat stream")
    if rest.strip():
        yield bytes(rest)
