"""A new connection to a model server: TCP, the proxy's tunnel, TLS. What goes over it is loom.models.transport's.

A peer that has vanished without a word (a half-open connection) is found by the kernel's probes within half of the
silence that is allowed, a minute at most, also while a slow model is waited for.
"""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING
from urllib.parse import SplitResult

from loom.models import http1
from loom.models.base import Timeouts
from loom.models.classify import clean, unreachable
from loom.models.proxies import Proxy
from loom.wire import errors

if TYPE_CHECKING:
    import ssl

_PROBES = 3  # without an answer, and the peer counts as gone


def connect(
    parts: SplitResult, proxy: Proxy | None, timeouts: Timeouts, hint: str, context: ssl.SSLContext | None
) -> socket.socket:
    """A socket on which the server can be asked. `context` is given for https and only then.

    Raises Unavailable, Config where the proxy refuses us. Each step of it may take `timeouts.connect_s`.
    """
    timeout_s = timeouts.connect_s
    port = parts.port or (443 if context is not None else 80)
    host = parts.hostname or ""
    if proxy is None:
        sock = _dial(host, port, parts.netloc, timeout_s, hint)
    else:
        sock = _dial(proxy.host, proxy.port, f"the proxy {proxy.where}", timeout_s, f"check {proxy.variable}")
    try:
        _probe(sock, timeouts)
        if proxy is not None and context is not None:
            _tunnel(sock, proxy, f"[{host}]:{port}" if ":" in host else f"{host}:{port}", timeout_s)
        return sock if context is None else _secured(sock, context, parts)
    except BaseException:
        sock.close()
        raise


def authorization(proxy: Proxy) -> dict[str, str]:
    """The header a proxy knows us by; for the proxy alone."""
    if not proxy.user:
        return {}
    from base64 import b64encode

    return {"Proxy-Authorization": "Basic " + b64encode(proxy.user.encode("utf-8", "replace")).decode("ascii")}


def refused_by_proxy(proxy: Proxy) -> errors.Config:
    """407: the proxy does not know us."""
    what = "refused the user and password" if proxy.user else "wants a user and password"
    return errors.Config(
        f"the proxy {proxy.where} {what} (407)",
        hint=f"write {proxy.variable}=http://user:password@{proxy.where}",
    )


def _dial(host: str, port: int, where: str, timeout_s: float, hint: str) -> socket.socket:
    try:
        # As bytes: an address of ours is ASCII, and the codec for others takes a millisecond to load.
        sock = socket.create_connection((host.encode("ascii"), port), timeout_s)  # type: ignore[arg-type]
    except (socket.gaierror, UnicodeError) as error:
        raise unreachable("resolve", where, getattr(error, "strerror", None) or str(error), hint) from None
    except TimeoutError:
        raise unreachable("connect", where, f"no answer within {timeout_s:g} s", hint) from None
    except OSError as error:
        errors.raise_lack(error, f"cannot connect to {where}")
        raise unreachable("connect", where, error.strerror or str(error), hint) from None
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


def _probe(sock: socket.socket, timeouts: Timeouts) -> None:
    """Have the kernel ask a silent peer whether it is there: a quarter of our patience later, and soon again."""
    patience_s = timeouts.first_byte_s
    first_s, next_s = max(1, min(30, int(patience_s / 4))), max(1, min(10, int(patience_s / 12)))
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", first_s), ("TCP_KEEPINTVL", next_s), ("TCP_KEEPCNT", _PROBES)):
        if hasattr(socket, name):  # macOS calls them otherwise; there the probes of the system have to do
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def _tunnel(sock: socket.socket, proxy: Proxy, target: str, timeout_s: float) -> None:
    """Have the proxy connect us with `target`. The server says nothing before we do, so no byte of it is lost."""
    head = {"Host": target, **authorization(proxy)}
    lines = "".join(f"{name}: {value}\r\n" for name, value in head.items())
    where = f"the proxy {proxy.where}"
    try:
        sock.sendall(f"CONNECT {target} HTTP/1.1\r\n{lines}\r\n".encode("ascii"))
        answer = http1.Answer(sock)
        answer.head(body=False)
        status, reason = answer.status, answer.reason
    except TimeoutError:
        raise unreachable("first_byte", where, f"nothing came within {timeout_s:g} s") from None
    except (OSError, http1.Malformed) as error:
        raise unreachable("head", where, str(error), f"check {proxy.variable}") from None
    if status == 407:
        raise refused_by_proxy(proxy)
    if not 200 <= status < 300:
        text = clean(f"{where} did not connect us with {target}: {status} {reason}")
        if status >= 500 or status in (408, 429):
            raise errors.Unavailable(text, hint="try again")
        raise errors.Config(text, hint=f"check {proxy.variable}, or name the server in NO_PROXY")


def _secured(sock: socket.socket, context: ssl.SSLContext, parts: SplitResult) -> socket.socket:
    try:
        return context.wrap_socket(sock, server_hostname=parts.hostname)
    except (OSError, ValueError) as error:
        errors.raise_lack(error, f"cannot connect to {parts.netloc}")
        reason = getattr(error, "verify_message", "") or getattr(error, "reason", "") or str(error)
        raise unreachable("tls", parts.netloc, str(reason)) from None
