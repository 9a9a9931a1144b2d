"""HTTP requests to a model server, one after the other, their answers streamed. Nothing else in loom/models uses
sockets but loom.models.connecting, which opens them for this module.

It is synchronous and speaks HTTP by loom.models.http1: httpx costs about 100 ms of import, more than everything else a
filter loads (ADR-0021). A connection is kept for the next request to the same server, for half a minute, and never
shared over a fork.
Redirects are followed only where the key may go, to the same server. Compression is not asked for and undone where
it comes all the same. Certificates are checked against the system's, or SSL_CERT_FILE.

Waiting is bounded by silence, not by length: a long answer may take as long as it keeps coming.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import SplitResult, urljoin

from loom.models import http1
from loom.models.address import split_url
from loom.models.base import Timeouts, not_told
from loom.models.classify import Phase, unreachable
from loom.models.connecting import authorization, connect, refused_by_proxy
from loom.models.proxies import Proxy
from loom.wire import errors
from loom.wire.record import field, record

if TYPE_CHECKING:
    import ssl

MAX_BODY_BYTES = 64 << 20
MAX_REDIRECTS = 3
_REST_S = 0.05  # waited for the formal end of an answer that is complete, so that its connection can be kept
_REST_BYTES = 1 << 16
_PIECE_BYTES = 1 << 16
# What the kernel says of a connection whose other end has vanished without a word: its probes came to nothing.
_VANISHED = frozenset({errno.ETIMEDOUT, errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EHOSTDOWN, errno.ENETDOWN})


DEFAULT = Timeouts()


@record
class Response:
    """An answer whose body is still coming.

    headers  by lower-case name; the last one wins
    chunks   the body in pieces as they arrive, not compressed; raises BrokenStream when it stops before its end
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
        except errors.LoomError:
            pass
        return bytes(got[:limit_bytes])


class Client:
    """The way to one model server. For one thread; two answers at a time use two connections.

    heard  called for each piece of an answer
    """

    def __init__(
        self, timeouts: Timeouts = DEFAULT, proxy: Proxy | None = None, heard: Callable[[], None] = not_told
    ) -> None:
        self._timeouts = timeouts
        self._heard = heard
        self._proxy = proxy
        self._tls: ssl.SSLContext | None = None
        self._kept: _Link | None = None

    @contextmanager
    def request(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str],
        body: bytes = b"",
        *,
        hint: str = "",
        max_body_bytes: int = MAX_BODY_BYTES,
    ) -> Iterator[Response]:
        """Ask. The answer lives as long as the `with` block; one that is left by an exception loses its connection.

        hint  what to check when the server cannot be reached; '' gives general advice
        Raises Unavailable until the head of an answer is there, BrokenStream after that, Config for an unusable url.
        Any status is a Response: what it means is for loom.models.classify.
        """
        for hop in range(MAX_REDIRECTS + 1):
            with self._exchange(method, url, headers, body, hint, max_body_bytes) as response:
                target = _same_server(url, response) if hop < MAX_REDIRECTS else ""
                if not target:
                    yield response
                    return
            url = target

    @contextmanager
    def _exchange(
        self, method: str, url: str, headers: Mapping[str, str], body: bytes, hint: str, limit: int
    ) -> Iterator[Response]:
        parts = split_url(url)
        link, answer = self._ask(method, parts, headers, body, hint)
        try:
            if answer.status == 407 and self._proxy is not None:
                raise refused_by_proxy(self._proxy)
            incoming = _Body(answer, link.sock, parts.netloc, self._timeouts, limit, self._heard)
            encoding = answer.headers.get("content-encoding", "")
            yield Response(answer.status, answer.headers, _plain(incoming.pieces(), encoding, parts.netloc, limit))
            if incoming.skip_rest():
                link.rest()
                self._keep(link, parts)
        finally:
            if self._kept is not link:
                link.close()

    def _ask(
        self, method: str, parts: SplitResult, headers: Mapping[str, str], body: bytes, hint: str
    ) -> tuple[_Link, http1.Answer]:
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        if self._proxy is not None and parts.scheme == "http":
            target = f"http://{parts.netloc}{target}"
            headers = {**headers, **authorization(self._proxy)}
        kept = self._take(parts)
        if kept is not None:
            try:
                return kept, kept.ask(method, target, headers, body, self._timeouts)
            except _Unanswered:
                pass  # the server had given the connection up, most likely before it saw this: once more, on a new one
        link = self._open(parts, hint)
        try:
            return link, link.ask(method, target, headers, body, self._timeouts)
        except _Unanswered as silence:
            raise _failure("head", parts.netloc, silence) from None

    def _open(self, parts: SplitResult, hint: str) -> _Link:
        secure = parts.scheme == "https"
        if secure and self._tls is None:  # once: reading the system's certificates takes 20 ms
            import ssl  # here, because a server on this machine has no use for it

            self._tls = ssl.create_default_context()
            self._tls.set_alpn_protocols(["http/1.1"])
        try:
            tls = self._tls if secure else None
            return _Link(connect(parts, self._proxy, self._timeouts, hint, tls), parts)
        except errors.LoomError:
            self._tls = None  # its certificates are read anew: they may have changed, or been out of reach for a moment
            raise

    def _keep(self, link: _Link, parts: SplitResult) -> None:
        if link.is_fit_for(parts, self._timeouts.kept_s):  # it may have been ended by the server right after its answer
            if self._kept is not None:
                self._kept.close()
            self._kept = link

    def _take(self, parts: SplitResult) -> _Link | None:
        """The kept connection, when it leads to this server and is fit to be used."""
        link, self._kept = self._kept, None
        if link is None or link.is_fit_for(parts, self._timeouts.kept_s):
            return link
        link.close()
        return None


class _Unanswered(ConnectionError):
    """The connection ended before the first byte of an answer."""


class _Link:
    """One connection and what is under way on it. `ask` closes it when it fails."""

    def __init__(self, sock: socket.socket, parts: SplitResult) -> None:
        self.sock = sock
        self._where = parts.netloc
        self._to = (parts.scheme, parts.netloc)
        self._pid = os.getpid()
        self._resting_since = 0.0
        self._answer: http1.Answer | None = None

    def ask(
        self, method: str, target: str, headers: Mapping[str, str], body: bytes, timeouts: Timeouts
    ) -> http1.Answer:
        """Send a request and wait for the head of its answer. Raises _Unanswered when nothing of one came."""
        try:
            self._send(method, target, headers, body, timeouts)
            self._answer = _answer(self.sock, method)
            return self._answer
        except OSError as error:
            self.close()
            if isinstance(error, _Unanswered):
                raise
            if not _is_silence(error):
                raise _failure("head", self._where, error) from None
            silent = f"nothing came within {timeouts.first_byte_s:g} s"
            raise unreachable("first_byte", self._where, silent, kind="silent_stream") from None
        except http1.Malformed as error:
            self.close()
            raise _failure("head", self._where, error) from None
        except BaseException:
            self.close()
            raise

    def _send(self, method: str, target: str, headers: Mapping[str, str], body: bytes, timeouts: Timeouts) -> None:
        self.sock.settimeout(timeouts.idle_s)
        try:
            self.sock.sendall(http1.request(method, target, {"Host": self._where, **headers}, body))
        except TimeoutError:
            unread = f"it read nothing for {timeouts.idle_s:g} s"
            raise unreachable("send", self._where, unread, kind="silent_stream") from None
        except (BrokenPipeError, ConnectionResetError):
            pass  # it may have refused a large request before reading all of it: its answer says why
        except OSError as error:
            if self._resting_since:  # it was kept, and is no connection any more
                raise _Unanswered(str(error)) from None
            raise _failure("send", self._where, error) from None
        except ValueError:  # its text shows the header, which may be the key
            raise errors.Config(f"the request for {self._where} has a header that cannot be sent") from None
        self.sock.settimeout(timeouts.first_byte_s)

    def rest(self) -> None:
        """Nothing is under way until the next `ask`."""
        self._resting_since = time.monotonic()

    def is_fit_for(self, parts: SplitResult, kept_s: float) -> bool:
        """Whether this server can be asked on it: not when it was opened before a fork, rested long, or has ended.

        A byte that came while nothing was asked is no answer to anything: such a connection is done with too.
        """
        if self._pid != os.getpid() or self._to != (parts.scheme, parts.netloc):
            return False
        if time.monotonic() - self._resting_since > kept_s:
            return False
        if self._answer is not None and self._answer.overlong:
            return False
        poller = select.poll()
        poller.register(self.sock, select.POLLIN)
        waiting: Any = getattr(self.sock, "pending", None)  # of TLS: received, and not seen by poll
        return not poller.poll(0) and not (waiting is not None and waiting())

    def close(self) -> None:
        self.sock.close()


def _answer(sock: socket.socket, method: str) -> http1.Answer:
    """An answer whose head has come."""
    answer = http1.Answer(sock)
    try:
        begun = answer.begins()
    except OSError as error:
        if _is_silence(error) or error.errno in _VANISHED:
            raise
        raise _Unanswered(error.strerror or str(error)) from None
    if not begun:
        raise _Unanswered("it closed the connection without an answer")
    answer.head(body=method != "HEAD")
    return answer


class _Body:
    """The body of one answer as it arrives. `ended` as soon as all of it was read."""

    def __init__(
        self,
        answer: http1.Answer,
        sock: socket.socket,
        where: str,
        timeouts: Timeouts,
        limit: int,
        heard: Callable[[], None],
    ) -> None:
        self._answer, self._sock, self._where, self._heard = answer, sock, where, heard
        self._timeouts, self._limit = timeouts, limit
        self.ended = answer.left == 0
        self._broken = False  # nothing that comes after an error is believed

    def pieces(self) -> Iterator[bytes]:
        """The rest of it, not decoded. Raises BrokenStream, or Unavailable when there is not even a first byte."""
        total = 0
        while not self.ended:
            try:
                piece = self._read()
            except (OSError, http1.Malformed) as error:
                self._broken = True
                if not _is_silence(error):
                    raise _failure("body", self._where, error) from None
                phase: Phase = "idle" if total else "first_byte"
                limit_s = self._timeouts.idle_s if total else self._timeouts.first_byte_s
                raise unreachable(
                    phase, self._where, f"nothing came within {limit_s:g} s", kind="silent_stream"
                ) from None
            total += len(piece)
            if total > self._limit:
                raise _too_long(self._where, self._limit)
            if not piece:
                break
            self._sock.settimeout(self._timeouts.idle_s)
            self._heard()
            yield piece
        if self._answer.left:
            raise unreachable("body", self._where, f"{self._answer.left} bytes are missing")

    def skip_rest(self) -> bool:
        """Whether the answer is over, or can be brought to its end without waiting for it."""
        if self._broken or self._answer.closes:
            return False
        total = 0
        try:
            self._sock.settimeout(_REST_S)
            while not self.ended and total < _REST_BYTES:
                piece = self._read()
                total += len(piece)
                if not piece:
                    break
        except (OSError, http1.Malformed):
            return False
        return self.ended

    def _read(self) -> bytes:
        piece = self._answer.read(_PIECE_BYTES)
        self.ended = not piece or self._answer.left == 0
        return piece


def _plain(pieces: Iterator[bytes], encoding: str, where: str, limit: int) -> Iterator[bytes]:
    """The pieces with their Content-Encoding undone."""
    if not encoding:
        yield from pieces
        return
    from loom.models import encoding as encodings  # here, because it is not asked for

    if encodings.is_plain(encoding):
        yield from pieces
        return
    if not encodings.is_known(encoding):
        raise errors.Config(
            f"{where} encoded its answer as {encoding[:40]!r}, which was not asked for", hint="check base_url"
        )
    total = 0
    try:
        for piece in encodings.decoded(pieces):
            total += len(piece)
            if total > limit:
                raise _too_long(where, limit)
            yield piece
    except encodings.Undecodable as error:
        raise _failure("body", where, error) from None


def _same_server(url: str, response: Response) -> str:
    """Where a redirect leads, when it asks for the same request at the same server; '' for anything else."""
    location = response.headers.get("location", "")
    if response.status not in (307, 308) or not location:
        return ""
    try:
        target = urljoin(url, location).partition("#")[0]
        old, new = split_url(url), split_url(target)
    except (ValueError, errors.Config):
        return ""
    return target if (old.scheme, _place(old)) == (new.scheme, _place(new)) else ""


def _place(parts: SplitResult) -> tuple[str, int]:
    return parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)


def _too_long(where: str, limit: int) -> errors.BrokenStream:
    return errors.BrokenStream(f"{where} sent over {limit} bytes; this is no chat answer, check base_url")


def _is_silence(error: BaseException) -> bool:
    """Whether our own patience ended it; the kernel's TimeoutError, of a peer that is gone, has a number."""
    return isinstance(error, TimeoutError) and error.errno is None


def _failure(phase: Phase, where: str, error: BaseException) -> errors.Unavailable:
    reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
    kind = "half_open" if getattr(error, "errno", None) in _VANISHED else ""
    return unreachable(phase, where, str(reason), kind=kind)
