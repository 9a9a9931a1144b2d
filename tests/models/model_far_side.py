"""The far side of the network: a real HTTP server on a real port that says byte by byte what a test tells it to."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from loom.wire.chat import ChatMessage, ChatReply, ChatRequest, TextDelta

HOLD = b"<hold the connection open until the test is over>"
KEY = "sk-test-0123456789abcdef"


@dataclass
class Server:
    """Answers the n-th request with the n-th of `answers`, each the raw pieces of a response."""

    url: str = ""
    answers: list[Iterable[bytes]] = field(default_factory=list)
    requests: list[dict[str, Any]] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    over: threading.Event = field(default_factory=threading.Event)

    @property
    def port(self) -> int:
        return int(self.url.rsplit(":", 1)[1].split("/")[0])


def chat(*texts: str, **more: Any) -> ChatRequest:
    """A request whose messages are user and assistant in turn."""
    said = texts or ("hello",)
    messages = tuple(ChatMessage("user" if i % 2 == 0 else "assistant", text) for i, text in enumerate(said))
    return ChatRequest(**{"model": "m1", "messages": messages, **more})


def collect(model: Any, request: ChatRequest) -> tuple[str, ChatReply]:
    """The streamed text and the reply. Every stream is TextDelta pieces and one ChatReply with the same text."""
    *deltas, reply = model.stream(request)
    assert all(isinstance(d, TextDelta) and d.text for d in deltas)
    assert isinstance(reply, ChatReply)
    text = "".join(d.text for d in deltas)
    assert reply.text == text
    return text, reply


def response(status: int, body: bytes, **headers: str) -> bytes:
    """A whole HTTP response with a Content-Length."""
    lines = {"Content-Type": "application/json", "Content-Length": str(len(body))}
    lines |= {name.replace("_", "-"): value for name, value in headers.items()}
    head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    return f"HTTP/1.1 {status} X\r\n{head}\r\n".encode() + body


STREAM = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n"


def sse(*chunks: object, done: bool = True) -> bytes:
    """Chunks as a stream of events."""
    events = [b"data: " + json.dumps(c, ensure_ascii=False).encode() + b"\n\n" for c in chunks]
    return b"".join(events) + (b"data: [DONE]\n\n" if done else b"")


def delta(finish: str | None = None, **fields: Any) -> dict[str, Any]:
    """One chunk of a chat/completions stream."""
    return {"model": "m1-0425", "choices": [{"index": 0, "delta": fields, "finish_reason": finish}]}
