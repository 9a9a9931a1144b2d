"""The OpenAI-compatible chat/completions dialect: OpenAI, OpenRouter, Ollama's /v1, vLLM, llama.cpp and many others.

Liberal in what it accepts, because "compatible" is a wide word: usage may be missing, tool calls may lack an id or
an index, a server may answer with one JSON object instead of a stream. Strict in one thing: an answer is one only
when the server said that it is complete, by a finish_reason or by [DONE].
"""

from __future__ import annotations

import re
from collections.abc import Generator, Iterator
from contextlib import closing
from typing import Any

from loom.models import classify
from loom.models.address import split_url
from loom.models.base import ModelContext
from loom.models.classify import Endpoint
from loom.models.dialect import ServerModel, functions
from loom.models.openai_answer import DIALECT, Answer
from loom.models.proxies import Proxy
from loom.wire import errors, jsontext
from loom.wire.chat import ChatMessage, ChatRequest, Chunk, Image, Notice, ToolCall, Usage

_OPENAI_ITSELF = "api.openai.com"
# How servers name the fields that help and that we can do without, when they refuse them.
_REFUSAL = {
    "stream_options": re.compile("stream_options"),
    "response_format": re.compile("response_format|json[ _]schema|grammar", re.IGNORECASE),
}
_CUT = (
    "{name} counted only {tokens} tokens: Ollama has probably left out the beginning of the request; set "
    "providers.ollama.context to what the model can hold"
)


class OpenAIModel(ServerModel):
    """One model at one server of this dialect."""

    def _set_up(self, endpoint: Endpoint) -> None:
        self._warned = False
        self._url = endpoint.base_url.rstrip("/") + "/chat/completions"
        self._host = split_url(self._url).hostname
        self._unwanted: set[str] = set()  # fields that this server does not take

    def stream(self, request: ChatRequest) -> Iterator[Chunk]:
        """Ask and yield the answer as it comes; see loom.models.base.Model."""
        while True:
            said = False
            try:
                with closing(self._ask(request)) as chunks:
                    for chunk in chunks:
                        said = True
                        yield chunk
                return
            except (errors.BadInput, errors.Unavailable) as error:
                # Some servers refuse a field that we can do without. Some call that a fault of their own (500).
                refused = {name for name in self._helpful(request) if _REFUSAL[name].search(str(error))}
                if said or not refused:
                    raise
                self._unwanted |= refused

    def _ask(self, request: ChatRequest) -> Generator[Chunk, None, None]:
        hint = classify.OLLAMA_DOWN if self._endpoint.alias == "ollama" else ""
        answer = Answer(self._endpoint, request)
        headers = {"Accept": "text/event-stream", **self._bearer()}
        yield from self._post(self._url, headers, self._body(request), lambda r: self._events(r, answer), hint)
        reply = answer.reply()
        if self._endpoint.alias == "ollama" and not self._warned and _is_cut(request, reply.usage):
            self._warned = True
            yield Notice("cut", _CUT.format(name=self.name, tokens=reply.usage.input_tokens))
        yield reply

    def _body(self, request: ChatRequest) -> dict[str, Any]:
        body: dict[str, Any] = {
            **request.options,
            "model": self._endpoint.model,
            "messages": [self._message(m) for m in request.messages],
            "stream": True,
        }
        body |= self._helpful(request)
        if request.tools:
            body["tools"] = functions(request.tools)
        if request.max_tokens is not None:
            # OpenAI's newer models refuse the old name; nobody else is sure to know the new one.
            name = "max_completion_tokens" if self._host == _OPENAI_ITSELF else "max_tokens"
            body[name] = request.max_tokens
        return body

    def _helpful(self, request: ChatRequest) -> dict[str, Any]:
        """Fields that help and that we can do without; not those that this server has refused."""
        fields: dict[str, Any] = {"stream_options": {"include_usage": True}}
        # Servers other than OpenAI itself may make every word fit the schema, and then no tool can be called.
        if request.schema is not None and (not request.tools or self._host == _OPENAI_ITSELF):
            form = {"name": "answer", "schema": dict(request.schema)}
            fields["response_format"] = {"type": "json_schema", "json_schema": form}
        return {name: value for name, value in fields.items() if name not in self._unwanted}

    def _message(self, message: ChatMessage) -> dict[str, Any]:
        if message.role == "tool":
            # The dialect has no field for a failed call, so the text says it.
            text = f"error: {message.text}" if message.is_error else message.text
            return {"role": "tool", "tool_call_id": message.call_id, "content": text}
        out: dict[str, Any] = {"role": message.role, "content": message.text}
        if message.images:
            text_part = [{"type": "text", "text": message.text}] if message.text else []
            out["content"] = [*text_part, *(self._image(i) for i in message.images)]
        if message.calls:
            out["content"] = message.text or None
            out["tool_calls"] = [_call(c) for c in message.calls]
            for thought in message.thoughts:
                if thought.get("dialect") == DIALECT:
                    out[thought["field"]] = thought["value"]
        return out

    def _image(self, image: Image) -> dict[str, Any]:
        from base64 import b64encode  # here, because few messages have images

        data = b64encode(self._blob(image.blob)).decode("ascii")
        return {"type": "image_url", "image_url": {"url": f"data:{image.media_type};base64,{data}"}}


def open_model(endpoint: Endpoint, context: ModelContext, proxy: Proxy | None) -> OpenAIModel:
    """The registry's way in."""
    return OpenAIModel(endpoint, context.timeouts, context.blob, proxy, context.heard)


def _call(call: ToolCall) -> dict[str, Any]:
    # Servers such as Ollama parse the arguments of past calls and refuse the whole request over a bad one.
    given = {"unreadable_arguments": call.raw} if call.input is None else dict(call.input)
    arguments = jsontext.dumps(given).decode("utf-8")
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": arguments}}


def _is_cut(request: ChatRequest, usage: Usage) -> bool:
    """Whether a request was much longer than what the server says it has read.

    In this dialect Ollama leaves out what does not fit and says nothing. Hardly any text has eight characters a token.
    """
    characters = sum(len(message.text) for message in request.messages)
    return characters > 8000 and 0 < usage.input_tokens < characters / 8
