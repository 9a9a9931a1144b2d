"""What a model program prints, read as an answer: NDJSON or plain text. Pure; loom.models.exec runs the program.

The first line decides. If it is a JSON object with `text` or `reply`, every line is one; else all of it is text.
"""

from __future__ import annotations

import codecs
from typing import Any, Literal, cast, get_args

from loom.models import decode
from loom.models.classify import clean
from loom.wire import errors
from loom.wire.chat import ChatReply, ChatRequest, StopReason

_STOPS: frozenset[str] = frozenset(get_args(StopReason))


class Output:
    """Feed it stdout; finish it when the program has ended with 0; then ask it for the reply."""

    def __init__(self, name: str, request: ChatRequest) -> None:
        self._name = name
        self._prefix = decode.call_prefix(request.messages)
        self._form: Literal["text", "lines", ""] = ""  # '' until the first line has decided
        self._buffer = bytearray()  # all there is until then; after that the line that has not ended
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._text: list[str] = []
        self._reply: dict[str, Any] | None = None

    def feed(self, piece: bytes, final: bool = False) -> list[str]:
        """The pieces of text that `piece` makes complete. Raises BrokenStream for a line that is no chunk."""
        self._buffer += piece
        if not self._form:
            self._form = self._decide(b"\n" in piece, final)
        before = len(self._text)
        if self._form == "text":
            self._say(self._decoder.decode(bytes(self._buffer), final))
            self._buffer.clear()
        elif self._form == "lines" and (b"\n" in piece or final):
            *lines, rest = bytes(self._buffer).split(b"\n")
            self._buffer = bytearray() if final else bytearray(rest)
            for line in (*lines, rest) if final else lines:
                if line.strip():
                    self._take(line)
        return self._text[before:]

    def finish(self) -> list[str]:
        """The program has ended well: what was held back, and the text of a reply that was not streamed."""
        before = len(self._text)
        self.feed(b"", final=True)
        if self._reply is not None:
            # A reply may repeat the streamed text, leave it out or add to it; it cannot take anything back.
            whole, said = self._reply.get("text", ""), "".join(self._text)
            if not isinstance(whole, str) or (whole and not whole.startswith(said)):
                raise self._broken("a reply whose text is not the text it streamed")
            self._say(whole[len(said) :])
        return self._text[before:]

    def reply(self) -> ChatReply:
        """The whole answer, after finish(). Raises BrokenStream when the reply's fields are not what they must be."""
        text, data = "".join(self._text), self._reply
        if data is None:
            return ChatReply(text, model=self._name)
        found = decode.calls(data.get("calls", []), self._prefix)
        if found is None:
            raise self._broken('a reply whose "calls" are no list of {"name", "input"}')
        stop = data.get("stop", "tool_calls" if found else "end")
        if not isinstance(stop, str) or stop not in _STOPS:
            raise self._broken(f'a reply whose "stop" is none of {", ".join(sorted(_STOPS))}')
        model = data.get("model") or self._name
        return ChatReply(text, found, cast(StopReason, stop), decode.usage(data.get("usage")), str(model))

    def _decide(self, line_ended: bool, final: bool) -> Literal["text", "lines", ""]:
        if len(self._buffer) > 1 and self._buffer[0] == ord("{") and not (line_ended or final):
            return ""  # quickly, for a long first line that comes in many pieces
        start = bytes(self._buffer).lstrip()
        if not start.startswith(b"{"):
            # Text is handed on at once, a prompt without a newline too; blank lines say nothing yet.
            return "text" if start or final else ""
        if b"\n" not in start and not final:
            return ""
        chunk = decode.json_object(start.split(b"\n", 1)[0])
        return "lines" if chunk is not None and ("text" in chunk or "reply" in chunk) else "text"

    def _take(self, line: bytes) -> None:
        chunk = decode.json_object(line)
        if chunk is None:
            raise self._broken(f"a line that is no JSON object: {clean(line.decode('utf-8', 'replace'))[:120]}")
        if self._reply is not None:
            return  # the reply was its last word
        if "text" in chunk:
            if not isinstance(chunk["text"], str):
                raise self._broken('a line whose "text" is no string')
            self._say(chunk["text"])
        if "reply" in chunk:
            if not isinstance(chunk["reply"], dict):
                raise self._broken('a line whose "reply" is no object')
            self._reply = chunk["reply"]

    def _say(self, text: str) -> None:
        if text:
            self._text.append(text)

    def _broken(self, found: str) -> errors.BrokenStream:
        return errors.BrokenStream(f"{self._name} printed {found}", hint="see docs/models.md, programs")
