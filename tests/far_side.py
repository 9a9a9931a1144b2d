"""A far side that keeps its connections: HTTP/1.1 by hand, over TCP or TLS, behind a proxy where a test wants one.

Unlike the server of conftest.py it answers many requests on one connection, and says what each came over.
"""

from __future__ import annotations

import json
import select
import socket
import ssl
import struct
import threading
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

CUT = b"<close the connection>"
RESET = b"<reset the connection>"
HOLD = b"<say nothing until the test is over>"


@dataclass(frozen=True)
class Asked:
    """One request as it came. `connection` counts from 0."""

    connection: int
    method: str
    target: str
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class FarSide:
    """Answers the n-th request with the n-th of `answers`, each the raw pieces of a response, and may be a context.

    tls   what it needs to be an https server
    """

    tls: ssl.SSLContext | None = None
    answers: list[Iterable[bytes]] = field(default_factory=list)
    asked: list[Asked] = field(default_factory=list)
    ended: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))  # one more for each connection

    def __enter__(self) -> FarSide:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.over = threading.Event()
        self._lock = threading.Lock()
        self._open: list[socket.socket] = []
        self._threads: list[threading.Thread] = [threading.Thread(target=self._accept)]
        self._threads[0].start()
        return self

    def __exit__(self, *why: object) -> None:
        self._stop()
        assert len(self.asked) <= len(self.answers), "it was asked more often than the test knows"

    def _stop(self) -> None:
        self.over.set()
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._threads[0].join()
        with self._lock:
            for conn in self._open:
                try:
                    conn.shutdown(socket.SHUT_RDWR)
                except OSError:
                    pass
        for thread in self._threads:
            thread.join()

    @property
    def url(self) -> str:
        return f"{'https' if self.tls else 'http'}://127.0.0.1:{self.port}/v1"

    def serve(self, conn: socket.socket, number: int) -> None:
        """Answer on one connection until it ends. A proxy does something else."""
        while (asked := read_request(conn, number)) is not None:
            with self._lock:
                self.asked.append(asked)
                answer = self.answers[len(self.asked) - 1] if len(self.asked) <= len(self.answers) else [CUT]
            if not self.play(conn, answer):
                return

    def play(self, conn: socket.socket, answer: Iterable[bytes]) -> bool:
        """Say it. False when the connection is over."""
        for piece in answer:
            if piece is HOLD:
                self.over.wait(60)
                return False
            if piece is RESET:
                conn.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                return False
            if piece is CUT:
                return False
            conn.sendall(piece)
        return True

    def _accept(self) -> None:
        for number in range(1000):
            try:
                conn, _ = self._listener.accept()
            except OSError:
                return
            with self._lock:
                self._open.append(conn)
                thread = threading.Thread(target=self._connected, args=(conn, number))
                self._threads.append(thread)
                thread.start()

    def _connected(self, conn: socket.socket, number: int) -> None:
        try:
            conn.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self.tls is not None:
                conn = self.tls.wrap_socket(conn, server_side=True)
                with self._lock:
                    self._open.append(conn)  # the plain one has nothing to close any more
            self.serve(conn, number)
        except OSError:
            pass  # the client had enough
        finally:
            conn.close()
            self.ended.release()


def read_request(conn: socket.socket, number: int) -> Asked | None:
    """The next request on a connection; None when there is none."""
    data = b""
    while b"\r\n\r\n" not in data:
        piece = conn.recv(1 << 16)
        if not piece:
            return None
        data += piece
    head, _, body = data.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    method, target, _ = first.split(" ")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    length = int(headers.get("content-length", "0"))
    while len(body) < length:
        piece = conn.recv(1 << 16)
        if not piece:
            return None
        body += piece
    return Asked(number, method, target, headers, body)


class ProxySide(FarSide):
    """An HTTP proxy that leads everything to one server, whatever the host is called. It may want a user.

    Tunnels are counted in `asked` like other requests. `answers` are only used where it is to refuse.
    """

    def __init__(self, to_port: int, user: str = "") -> None:
        super().__init__()
        self.to_port = to_port
        self.user = user

    def __exit__(self, *why: object) -> None:
        self._stop()

    def serve(self, conn: socket.socket, number: int) -> None:
        while (asked := read_request(conn, number)) is not None:
            self.asked.append(asked)
            if self.answers:
                self.play(conn, self.answers[len(self.asked) - 1])
                return
            if self.user and asked.headers.get("proxy-authorization") != self.user:
                conn.sendall(b"HTTP/1.1 407 Who are you\r\nContent-Length: 0\r\n\r\n")
                continue
            with socket.create_connection(("127.0.0.1", self.to_port)) as server:
                if asked.method == "CONNECT":
                    conn.sendall(b"HTTP/1.1 200 Go ahead\r\n\r\n")
                else:
                    path = "/" + asked.target.split("/", 3)[3]
                    lines = "".join(f"{n}: {v}\r\n" for n, v in asked.headers.items() if not n.startswith("proxy-"))
                    server.sendall(f"{asked.method} {path} HTTP/1.1\r\n{lines}\r\n".encode() + asked.body)
                _pass_on(conn, server)
                return


def _pass_on(one: socket.socket, other: socket.socket) -> None:
    """Bytes in both directions until either end has had enough."""
    pairs = {one: other, other: one}
    while True:
        for sock in select.select(list(pairs), [], [])[0]:
            data = sock.recv(1 << 16)
            if not data:
                return
            pairs[sock].sendall(data)
