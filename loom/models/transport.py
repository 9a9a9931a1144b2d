"""One HTTP request to a model server, streamed, and nothing else: the only place in loom/models with a socket.

It is synchronous and uses http.client: httpx costs about 100 ms of import, more than everything else a filter
loads. It leaves out what a model call does not need: no redirects (they would carry the key elsewhere), no
proxies (HTTPS_PROXY and NO_PROXY are not read: give the proxy's own address as base_url), no compression (never
asked for), no reuse of connections. Certificates are checked against the system's, or SSL_CERT_FILE.

Waiting is bounded by silence, not by length: a long answer may take as long as it keeps coming.
"""

from __future__ import annotations

import http.client
import socket
import ssl
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import NoReturn
from urllib.parse import SplitResult

from loom.models.address import split_url
from loom.models.classify import Phase, unreachable
from loom.wire import errors

MAX_BODY_BYTES = 64 << 20
_PIECE_BYTES = 1 << 16


@dataclass(frozen=True, slots=True)
class Timeouts:
    """How much silence is too much. The head of the answer and its first byte each have `first_byte_s`."""

    connect_s: float = 10.0
    first_byte_s: float = 120.0
    idle_s: float = 60.0


DEFAULT = Timeouts()


@dataclass(frozen=True, slots=True)
class Response:
    """An answer whose body is still coming.

    headers  by lower-case name; the last one wins
    chunks   the body in pieces as they arrive; raises BrokenStream when it stops before its end
    """

    status: int
    headers: Mapping[str, str] = field(repr=False)
    chunks: Iterator[bytes]

    def start_of_body(self, limit_bytes: int) -> bytes:
        """At most that much of the body: for errors, where half of it is better than another error."""
        got = bytearray()
        try:
            for piece in self.chunks:
                got += piece
                if len(got) >= limit_bytes:
                    break
        except errors.Unavailable:
            pass
        return bytes(got[:limit_bytes])


@contextmanager
def post_stream(
    url: str,
    headers: Mapping[str, str],
    body: bytes,
    timeouts: Timeouts = DEFAULT,
    *,
    hint: str = "",
    max_body_bytes: int = MAX_BODY_BYTES,
) -> Iterator[Response]:
    """POST `body` to `url`. The connection lives as long as the `with` block, however that ends.

    hint  what to check when the server cannot be reached; '' gives general advice
    Raises Unavailable until the head of an answer is there, BrokenStream after that, Config for an unusable url.
    Any status is a Response: what it means is for loom.models.classify.
    """
    parts = split_url(url)
    where = parts.netloc
    sock = _connect(parts, timeouts, hint)
    try:
        connection = http.client.HTTPConnection(where, timeout=timeouts.connect_s)
        connection.sock = sock
        _send(connection, parts, headers, body, timeouts)
        try:
            answer = connection.getresponse()
        except TimeoutError:
            raise unreachable("first_byte", where, f"nothing came within {timeouts.first_byte_s:g} s") from None
        except (OSError, http.client.HTTPException, ValueError) as error:
            _failed("head", where, error)
        with answer:
            found = {name.lower(): value for name, value in answer.getheaders()}
            yield Response(answer.status, found, _chunks(answer, sock, where, timeouts, max_body_bytes))
    finally:
        sock.close()


def _connect(parts: SplitResult, timeouts: Timeouts, hint: str) -> socket.socket:
    where, secure = parts.netloc, parts.scheme == "https"
    address = (parts.hostname or "", parts.port or (443 if secure else 80))
    try:
        sock = socket.create_connection(address, timeouts.connect_s)
    except (socket.gaierror, UnicodeError) as error:
        raise unreachable("resolve", where, getattr(error, "strerror", None) or str(error), hint) from None
    except TimeoutError:
        raise unreachable("connect", where, f"no answer within {timeouts.connect_s:g} s", hint) from None
    except OSError as error:
        errors.raise_lack(error, f"cannot connect to {where}")
        raise unreachable("connect", where, error.strerror or str(error), hint) from None
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return _secured(sock, parts) if secure else sock


def _secured(sock: socket.socket, parts: SplitResult) -> socket.socket:
    try:
        return ssl.create_default_context().wrap_socket(sock, server_hostname=parts.hostname)
    except (OSError, ValueError) as error:
        sock.close()
        errors.raise_lack(error, f"cannot connect to {parts.netloc}")
        reason = getattr(error, "verify_message", "") or getattr(error, "reason", "") or str(error)
        raise unreachable("tls", parts.netloc, str(reason)) from None


def _send(
    connection: http.client.HTTPConnection,
    parts: SplitResult,
    headers: Mapping[str, str],
    body: bytes,
    timeouts: Timeouts,
) -> None:
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    sock = connection.sock
    assert sock is not None
    sock.settimeout(timeouts.idle_s)
    try:
        # The Host header is given, because http.client would add port 443 to it.
        connection.request("POST", target, body, {"Host": parts.netloc, **headers, "Connection": "close"})
    except TimeoutError:
        raise unreachable("send", parts.netloc, f"it read nothing for {timeouts.idle_s:g} s") from None
    except (BrokenPipeError, ConnectionResetError):
        pass  # it may have refused a large request before reading all of it: its answer says why
    except (OSError, http.client.HTTPException) as error:
        _failed("send", parts.netloc, error)
    sock.settimeout(timeouts.first_byte_s)


def _chunks(
    answer: http.client.HTTPResponse, sock: socket.socket, where: str, timeouts: Timeouts, limit: int
) -> Iterator[bytes]:
    # Counted here, because read1 of some 3.11 releases does not count and then waits for bytes that never come.
    left = answer.length
    total = 0
    while left != 0:
        try:
            piece = answer.read1(_PIECE_BYTES if left is None else min(left, _PIECE_BYTES))
        except TimeoutError:
            phase: Phase = "idle" if total else "first_byte"
            limit_s = timeouts.idle_s if total else timeouts.first_byte_s
            raise unreachable(phase, where, f"nothing came within {limit_s:g} s") from None
        except (OSError, http.client.HTTPException, ValueError) as error:
            _failed("body", where, error)
        if not piece:
            break
        total += len(piece)
        if total > limit:
            raise errors.BrokenStream(f"{where} sent over {limit} bytes; this is no chat answer, check base_url")
        sock.settimeout(timeouts.idle_s)
        left = None if left is None else left - len(piece)
        yield piece
    if left:
        raise unreachable("body", where, f"{left} bytes are missing")


def _failed(phase: Phase, where: str, error: Exception) -> NoReturn:
    reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
    raise unreachable(phase, where, str(reason)) from None
