"""The Anthropic messages dialect: api.anthropic.com and what speaks like it.

Three things differ from chat/completions. A limit for the answer must be named; what the system says stands apart from
the messages; and messages alternate, so that the results of one answer's calls are one user message. A model that
thinks wants its signed thoughts back as long as the turn lasts.

Source: the provider's reference of POST /v1/messages, version 2023-06-01.
"""

from __future__ import annotations

import re
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from typing import Any

from loom.models.anthropic_answer import DIALECT, Answer
from loom.models.base import ModelContext
from loom.models.classify import Endpoint
from loom.models.dialect import ServerModel
from loom.models.proxies import Proxy
from loom.wire import errors
from loom.wire.chat import ChatMessage, ChatRequest, Chunk

VERSION = "2023-06-01"
MAX_TOKENS = 16_384  # asked for when nobody says; a model that can do less says how much
_LESS = re.compile(r"max_tokens: \d+ > (\d+)")
_NO_SCHEMA = re.compile(r"output_config|output_format|output format|structured output|schema", re.IGNORECASE)


class AnthropicModel(ServerModel):
    """One model at one server of this dialect."""

    def _set_up(self, endpoint: Endpoint) -> None:
        base = endpoint.base_url.rstrip("/")
        self._url = base + ("/messages" if base.endswith("/v1") else "/v1/messages")
        self._max_tokens = MAX_TOKENS
        self._with_schema = True

    def stream(self, request: ChatRequest) -> Iterator[Chunk]:
        """Ask and yield the answer as it comes; see loom.models.base.Model."""
        for last_try in (False, False, True):
            said = False
            try:
                with closing(self._ask(request)) as chunks:
                    for chunk in chunks:
                        said = True
                        yield chunk
                return
            except errors.BadInput as error:
                if said or last_try or not self._less(request, str(error)):
                    raise

    def _less(self, request: ChatRequest, refusal: str) -> bool:
        """Ask for less from now on, if that is what was refused: a smaller limit, no schema. Both come before any text.

        The server knows only schemas of a certain kind, e.g. every object closed: the others stand in the prompt alone.
        """
        less = _LESS.search(refusal)
        if less is not None and request.max_tokens is None and "max_tokens" not in request.options:
            self._max_tokens = int(less.group(1))
            return True
        if less is None and self._with_schema and request.schema is not None and _NO_SCHEMA.search(refusal):
            self._with_schema = False
            return True
        return False

    def _ask(self, request: ChatRequest) -> Generator[Chunk, None, None]:
        answer = Answer(self._endpoint, request)
        yield from self._post(self._url, self._headers(), self._body(request), lambda r: self._events(r, answer))
        yield answer.reply()

    def _headers(self) -> dict[str, str]:
        headers = {"Accept": "text/event-stream", "anthropic-version": VERSION}
        if self._endpoint.key:
            headers["x-api-key"] = self._endpoint.key
        return headers

    def _body(self, request: ChatRequest) -> dict[str, Any]:
        limit = request.max_tokens if request.max_tokens is not None else self._max_tokens
        body: dict[str, Any] = {
            "max_tokens": limit,
            **{name: value for name, value in request.options.items() if name != "seed"},  # it knows no seeds
            "model": self._endpoint.model,
            "messages": self._messages(request.messages),
            "stream": True,
        }
        if request.schema is not None and self._with_schema:
            given = request.options.get("output_config")
            form = {"type": "json_schema", "schema": dict(request.schema)}
            body["output_config"] = {**(given if isinstance(given, dict) else {}), "format": form}
        system = "\n\n".join(m.text for m in request.messages if m.role == "system" and m.text)
        if system:
            body["system"] = system
        if request.tools:
            body["tools"] = [
                {"name": t.name, "description": t.description, "input_schema": dict(t.input_schema)}
                for t in request.tools
            ]
        return body

    def _messages(self, messages: Sequence[ChatMessage]) -> list[dict[str, Any]]:
        """The messages, those of one side that follow each other made one."""
        out: list[dict[str, Any]] = []
        for message in messages:
            if message.role == "system":
                continue
            role = "assistant" if message.role == "assistant" else "user"
            blocks = self._blocks(message)
            if out and out[-1]["role"] == role:
                out[-1]["content"] += blocks
            elif blocks:
                out.append({"role": role, "content": blocks})
        return out

    def _blocks(self, message: ChatMessage) -> list[dict[str, Any]]:
        """The content of one message. There may be no empty text in it."""
        if message.role == "tool":
            result = {"type": "tool_result", "tool_use_id": message.call_id, "content": message.text}
            return [result | ({"is_error": True} if message.is_error else {})]
        blocks: list[dict[str, Any]] = [dict(t["block"]) for t in message.thoughts if t.get("dialect") == DIALECT]
        for image in message.images:
            from base64 import b64encode  # here, because few messages have images

            data = b64encode(self._blob(image.blob)).decode("ascii")
            source = {"type": "base64", "media_type": image.media_type, "data": data}
            blocks.append({"type": "image", "source": source})
        if message.text.strip():
            blocks.append({"type": "text", "text": message.text})
        for call in message.calls:
            given = {"unreadable_arguments": call.raw} if call.input is None else dict(call.input)
            blocks.append({"type": "tool_use", "id": call.id, "name": call.name, "input": given})
        return blocks


def open_model(endpoint: Endpoint, context: ModelContext, proxy: Proxy | None) -> AnthropicModel:
    """The registry's way in."""
    return AnthropicModel(endpoint, context.timeouts, context.blob, proxy, context.heard)
