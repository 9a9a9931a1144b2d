"""Filters that a supervisor carries out for their commands: a fork of it has in memory all that they need (ADR-0032).

    command             supervisor            fork
    connects            accepts, forks
            ←──────────────────────────────── here
    request ─────────────────────────────────→ reads it, becomes like the command (loom/proc/likeness.py)
            ←──────────────────────────────── ready
    go ──────────────────────────────────────→ from here on the filter is its
    waits, passes signals on                   carries it out
            ←──────────────────────────────── how it ended
            ←────────────────── the same, when the fork could not say it

The supervisor itself reads nothing of what a command says, so that none can hold it up. Nobody is told why a filter
is not taken: its command carries it out, and says what is wrong with it.
"""

from __future__ import annotations

import array
import fcntl
import gc
import os
import signal
import socket
import struct
import sys
import traceback
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import NoReturn, Protocol

from loom.daemons import programs
from loom.proc import likeness, pidfd, spawn, tree
from loom.spool import config, fs
from loom.spool.layout import Home
from loom.wire import exits, warm
from loom.wire.errors import LoomError

_PACKAGE = Path(__file__).resolve().parent.parent
_MOST = 64  # filters at once, those included that have not said yet what they want
_AT_ONCE = 8  # connections between two looks at agents
_HAND_S = 2  # for the whole request; longer than a command waits
_KEPT = 3  # where a fork has its connection
_ALL = signal.valid_signals()
_TERMINAL = 4  # which of the fields of pidfd.stat_of() is the controlling terminal, 0 for none
_CREDENTIALS = struct.Struct("3i")


class Loop(Protocol):
    """What is needed of the loop that it lives in."""

    def listen(self, fd: int, handler: Callable[[], None]) -> None: ...
    def unlisten(self, fd: int) -> None: ...


class Filters:
    """The socket of a home, and the forks that work for those who have connected to it."""

    def __init__(self, home: Home, env: Mapping[str, str], loop: Loop) -> None:
        self._home, self._path, self._loop = home, home.filters_socket, loop
        self._kind = _kind(env)
        self._code = _stamps()
        self._socket: socket.socket | None = None
        self._is: tuple[int, int] | None = None  # the file that is our socket's name
        self._running: dict[int, int] = {}  # pid of each fork: its pidfd
        self._connections: dict[int, socket.socket] = {}  # by pid: where its command hears how it ended

    def pids(self) -> list[int]:
        return list(self._running)

    def connections(self) -> dict[int, int]:
        """The descriptor of each fork's connection to its command, by pid."""
        return {pid: connection.fileno() for pid, connection in self._connections.items()}

    def look(self) -> None:
        """Listen, anew when somebody has removed the socket. Raises OSError."""
        if self._socket is not None and _file(self._path) == self._is:
            return
        self.close()
        made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        try:
            fs.bind(made, self._path)
            made.listen(_MOST)
        except OSError:
            made.close()
            raise
        self._socket, self._is = made, _file(self._path)
        self._loop.listen(made.fileno(), self._come)

    def close(self) -> None:
        """Take no more of them. Those who are at work go on."""
        if self._socket is not None:
            self._loop.unlisten(self._socket.fileno())
            self._socket.close()
            self._socket = None
            if _file(self._path) == self._is:
                fs.remove(self._path)

    def go_on(self, pids: Iterable[int], connections: Mapping[int, int]) -> None:
        """With those whom other code of this process has forked: to be reaped, and spared, and their end told.

        connections   as connections() gave them to that code; older code hands none over
        """
        known = {pid: socket.socket(fileno=fd) for pid, fd in connections.items()}
        for pid in set(pids).intersection(tree.children_of_ours()):
            self._watch(pid, known.pop(pid, None))
        for connection in known.values():
            connection.close()

    def _come(self) -> None:
        assert self._socket is not None
        for _ in range(_AT_ONCE):
            try:
                connection, _address = self._socket.accept()
            except BlockingIOError:
                return
            except OSError:
                self.close()  # no descriptors left: until the next look, or we would be told of it without end
                raise
            peer, uid, _ = _CREDENTIALS.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
            # Without a number it is in another container.
            if uid != os.geteuid() or peer <= 0 or len(self._running) >= _MOST:
                connection.close()
                continue
            try:
                self._watch(self._fork(connection, peer), connection)
            except OSError:
                connection.close()  # no processes left: its command is one

    def _watch(self, pid: int, connection: socket.socket | None) -> None:
        handle = spawn.handle_of(pid)
        self._running[pid] = handle
        if connection is not None:
            self._connections[pid] = connection
        self._loop.listen(handle, lambda: self._ended(pid))

    def _ended(self, pid: int) -> None:
        handle, connection = self._running.pop(pid), self._connections.pop(pid, None)
        self._loop.unlisten(handle)
        status = pidfd.reap(handle)
        os.close(handle)
        if connection is not None:
            if status is not None:
                _say(connection, *((warm.ENDED, status) if status >= 0 else (warm.KILLED, -status)))
            connection.close()

    def _fork(self, connection: socket.socket, peer: int) -> int:
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                stream.flush()
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _ALL)
        try:
            pid = os.fork()
            if pid == 0:
                self._child(connection, peer)
            return pid
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def _child(self, connection: socket.socket, peer: int) -> NoReturn:
        """Everything from here on happens in the fork, which never returns."""
        status = exits.BUG
        try:
            connection = _alone(connection)
            connection.send(warm.HERE)
            other = self._begin(connection, peer)
            status = _work(other)
            sys.stdout.flush()
            signal.pthread_sigmask(signal.SIG_BLOCK, _ALL)  # that its command ends now is no news
            _say(connection, warm.ENDED, status)
        except BaseException:
            pass  # a connection that ends says enough
        finally:
            os._exit(status)

    def _begin(self, connection: socket.socket, peer: int) -> likeness.Look:
        """Become what the command is. Raises what keeps us from it; the command carries itself out then."""
        data, fds = _received(connection)
        kind, streams, argv, env = warm.decode(data)
        if kind != self._kind or self._code != _stamps(self._code):
            raise likeness.Unlike("it is another program")
        if _has_terminal(peer) and _has_key_command(self._home):
            raise likeness.Unlike("a command of its user may ask on its terminal")
        other = likeness.take_over(peer, fds[0], env)
        likeness.take_streams(fds[1:], streams)
        for fd in fds:
            os.close(fd)
        sys.argv = [os.fsdecode(word) for word in argv]
        tree.set_name("loom")
        signal.alarm(0)  # who has come so far may think about it: it costs no more than a filter at work
        handle = os.pidfd_open(os.getpid())
        socket.send_fds(connection, [warm.READY], [handle])
        os.close(handle)
        if connection.recv(1) != warm.GO:
            raise likeness.Unlike("it is not to begin")
        _end_with(connection, signal.SIGKILL if signal.SIGHUP in other.ignored else signal.SIGHUP)
        return other


def _alone(connection: socket.socket) -> socket.socket:
    """Nothing of the supervisor's is left to us: no descriptor, no handler, no session; and no more time than it takes.

    Signals stay blocked but the one that ends us when the command says nothing.
    """
    os.setsid()
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(_HAND_S)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGALRM])
    if connection.fileno() != _KEPT:
        os.dup2(connection.detach(), _KEPT, inheritable=False)
        connection = socket.socket(fileno=_KEPT)
    spawn.close_from(_KEPT + 1)
    connection.setblocking(True)
    return connection


def _received(connection: socket.socket) -> tuple[bytes, list[int]]:
    """(request, descriptors). Raises ValueError when it is none."""
    places = array.array("i")
    data = bytearray()
    length = -1
    while length != len(data) - warm.LENGTH:
        space = socket.CMSG_SPACE(warm.PLACES * places.itemsize)
        piece, passed, _, _ = connection.recvmsg(1 << 18, space, socket.MSG_CMSG_CLOEXEC)
        for level, kind, content in passed:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                places.frombytes(content[: len(content) - len(content) % places.itemsize])
        data += piece
        if len(data) >= warm.LENGTH:
            length = int.from_bytes(data[: warm.LENGTH], "big")
        if not piece or length > warm.MOST_BYTES or 0 <= length < len(data) - warm.LENGTH or len(places) > warm.PLACES:
            raise ValueError("no request")
    if len(places) != warm.PLACES:
        raise ValueError("no request")
    return bytes(data[warm.LENGTH :]), list(places)


def _end_with(connection: socket.socket, number: int) -> None:
    """From now on the command's end sends us this signal, as does one that has ended by now."""
    fd = connection.fileno()
    fcntl.fcntl(fd, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(fd, fcntl.F_SETSIG, number)
    fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) | fcntl.FASYNC)
    try:
        ended = not connection.recv(1, socket.MSG_DONTWAIT)
    except BlockingIOError:
        ended = False
    if ended:
        os.kill(os.getpid(), number)  # blocked until we heed signals


def _work(other: likeness.Look) -> int:
    """The exit status. Signals come from here on, as they come to a command."""
    try:
        likeness.take_signals(other)
        gc.freeze()
        gc.enable()
        return programs.entry_of(programs.FILTER)(sys.argv[1:])  # type: ignore[arg-type]
    except KeyboardInterrupt:
        return exits.INTERRUPTED
    except BaseException:
        traceback.print_exc()
        return exits.BUG


def _has_terminal(pid: int) -> bool:
    """Whether /dev/tty is something to this process; to us it is nothing."""
    return pidfd.stat_of(pid)[_TERMINAL : _TERMINAL + 1] not in ([], [b"0"])


def _has_key_command(home: Home) -> bool:
    """Whether a program that prints a key may be run: of all that a filter starts only this has its session."""
    try:
        values = config.load(home, {}).values
    except LoomError:
        return False  # the filter says what is wrong with it
    return any(value and key.endswith(".key_command") for key, value in values.items())


def _say(connection: socket.socket, word: bytes, number: int) -> None:
    try:
        connection.send(word + bytes([number & 0xFF]), socket.MSG_NOSIGNAL | socket.MSG_DONTWAIT)
    except OSError:
        pass  # nobody is there to be told


def _kind(env: Mapping[str, str]) -> bytes:
    place, path = str(_PACKAGE.parent), env.get("PYTHONPATH", "")
    return warm.kind(place, path, sys.version, sys.prefix, sys.getfilesystemencoding(), sys.flags.optimize)


def _stamps(known: Mapping[str, tuple[int, int]] | None = None) -> dict[str, tuple[int, int]]:
    """Time and size of each module of ours as it lies on the disk: of all, or of those that are `known`."""
    paths = known if known is not None else [str(path) for path in _PACKAGE.rglob("*.py")]
    found = {path: os.stat(path) for path in paths}
    return {path: (stat.st_mtime_ns, stat.st_size) for path, stat in found.items()}


def _file(path: Path) -> tuple[int, int] | None:
    try:
        found = os.lstat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino
