"""HTTP/1.1 as a client speaks it: one request written, one answer read, on a socket that somebody else opened.

Just what an answer of a model server needs: the status, the headers, and a body by length, in chunks or until the end.
`http.client` does more and brings the parser of e-mail and TLS with it, a fifth of what a filter would spend on imports
(ADR-0021). Times are the socket's, and its errors pass through as they are.

Source: RFC 9112. Liberal where servers are: lines may end with LF alone, and a header line that is none is skipped.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

MAX_LINE_BYTES = 1 << 16
MAX_HEADERS = 128
_RECV_BYTES = 1 << 16
_MAX_DIGITS = 15  # of a length
# Sets of characters, in place of expressions that would be compiled in each filter.
_HEX = b"0123456789abcdefABCDEF"
_TOKEN = "!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"


class Malformed(ValueError):
    """What came is no HTTP, or ended inside of an answer."""


class Ended(Malformed):
    """The connection ended where a line was to come."""


class Stream(Protocol):
    """What is read: a socket, plain or with TLS."""

    def recv(self, bufsize: int, /) -> bytes: ...


def request(method: str, target: str, headers: Mapping[str, str], body: bytes) -> bytes:
    """A whole request. Raises ValueError for a target or header that would be more than one; it shows no value."""
    if not target.isascii() or not target.isprintable() or " " in target:
        raise ValueError("a target has characters that none may have")
    lines = [f"{method} {target} HTTP/1.1"]
    length = {"Content-Length": str(len(body))} if body or method == "POST" else {}
    for name, value in {**headers, "Accept-Encoding": "identity", **length}.items():
        if not name or name.strip(_TOKEN) or "\r" in value or "\n" in value or "\0" in value:
            raise ValueError(f"the header {name[:40]!r} cannot be sent")
        lines.append(f"{name}: {value}")
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


class Answer:
    """One answer as it arrives. First `head`, then `read` until it gives b"".

    status   three digits
    reason   the text beside them
    headers  by lower-case name; the last one wins
    left     bytes of the body that are still to come; None: as many as there are chunks, or until the end
    closes   the server ends the connection after this
    """

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._got = bytearray()  # received and not read
        self._ended = False  # the server sends no more
        self._chunked = False
        self._chunk = 0  # bytes of the present chunk that are still to come
        self._first_chunk = True
        self.status = 0
        self.reason = ""
        self.headers: dict[str, str] = {}
        self.left: int | None = 0
        self.closes = True

    def begins(self) -> bool:
        """Wait for the first byte; False when the connection ends without one."""
        return bool(self._got) or self._receive()

    def head(self, body: bool = True) -> None:
        """Read status and headers. `body` False: none follows, whatever they say. Raises Malformed."""
        line = self._line()
        version, _, rest = line.partition(b" ")
        code, _, reason = rest.partition(b" ")
        if version[:-1] != b"HTTP/1." or not version[-1:].isdigit() or not (code.isdigit() and len(code) == 3):
            raise Malformed(f"it does not speak HTTP/1: {line[:60].decode('latin-1')!r}")
        self.status = int(code)
        self.reason = reason.strip().decode("latin-1")
        self.headers = self._headers()
        connection = self.headers.get("connection", "").lower()
        self._chunked = self.headers.get("transfer-encoding", "").strip().lower() == "chunked"
        self._chunk, self._first_chunk = 0, True
        if not body or self.status in (204, 304) or self.status < 200:
            self.left, self._chunked = 0, False
        else:
            self.left = None if self._chunked else _length(self.headers.get("content-length", ""))
        kept = "close" not in connection if version != b"HTTP/1.0" else "keep-alive" in connection
        self.closes = not kept or (self.left is None and not self._chunked)

    def read(self, limit: int) -> bytes:
        """At most that many bytes of the body, as soon as there are some; b"" at its end.

        Raises Malformed for a chunk that is none. That an answer with a length ended early shows in `left`.
        """
        if self._chunked:
            return self._read_chunk(limit)
        if self.left is not None:
            limit = min(limit, self.left)
        piece = self._take(limit)
        if self.left is not None:
            self.left -= len(piece)
        return piece

    @property
    def overlong(self) -> bool:
        """Whether more came than this answer: nothing on such a connection can be trusted."""
        return bool(self._got)

    def _read_chunk(self, limit: int) -> bytes:
        if not self._chunk:
            if not self._first_chunk and self._line():
                raise Malformed("a chunk is longer than its length says")
            self._first_chunk = False
            self._chunk = self._chunk_length()
            if not self._chunk:
                self._skip_trailer()
                self._chunked, self.left = False, 0
                return b""
        piece = self._take(min(limit, self._chunk))
        if not piece:
            raise Malformed(f"it ended inside of a chunk, {self._chunk} bytes before its end")
        self._chunk -= len(piece)
        return piece

    def _chunk_length(self) -> int:
        line = self._line()
        digits = line.partition(b";")[0].strip()
        if digits.strip(_HEX) or not 0 < len(digits) <= _MAX_DIGITS:
            raise Malformed(f"no length of a chunk: {line[:40].decode('latin-1')!r}")
        return int(digits, 16)

    def _skip_trailer(self) -> None:
        for _ in range(MAX_HEADERS):
            try:
                if not self._line():
                    return
            except Ended:
                return  # all of the body was there
        raise Malformed("its trailer does not end")

    def _headers(self) -> dict[str, str]:
        found: dict[str, str] = {}
        name = ""
        for _ in range(MAX_HEADERS):
            line = self._line().decode("latin-1")
            if not line:
                return found
            if line[0] in " \t":  # goes on with the line before, as old servers write
                if name:
                    found[name] += f" {line.strip()}"
                continue
            before, colon, value = line.partition(":")
            name = before.strip().lower() if colon else ""
            if name:
                found[name] = value.strip()
        raise Malformed(f"it sent over {MAX_HEADERS} headers")

    def _line(self) -> bytes:
        """The next line without its end. Raises Ended when the connection ends before that."""
        while (end := self._got.find(b"\n")) < 0 and len(self._got) <= MAX_LINE_BYTES:
            if not self._receive():
                raise Ended("it ended the connection inside of its answer")
        if end < 0 or end > MAX_LINE_BYTES:
            raise Malformed(f"it sent a line over {MAX_LINE_BYTES} bytes")
        line = bytes(self._got[:end])
        del self._got[: end + 1]
        return line.removesuffix(b"\r")

    def _take(self, limit: int) -> bytes:
        """At most that many bytes of what has arrived; waits only when that is nothing."""
        if limit <= 0 or (not self._got and not self._receive()):
            return b""
        piece = bytes(self._got[:limit])
        del self._got[:limit]
        return piece

    def _receive(self) -> bool:
        if self._ended:
            return False
        piece = self._stream.recv(_RECV_BYTES)
        self._got += piece
        self._ended = not piece
        return not self._ended


def _length(said: str) -> int | None:
    """What Content-Length says; None when it says nothing that can be a length."""
    return int(said) if said.isascii() and said.isdigit() and len(said) <= _MAX_DIGITS else None
