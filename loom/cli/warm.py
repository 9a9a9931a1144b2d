"""Handing a filter over to a supervisor, which has in memory what a filter needs (docs/cli.md, ADR-0032).

The command then only waits: it passes signals on and ends as the filter ends. Whatever does not fit, and whatever goes
wrong before the filter has begun, leaves the work to the command itself, as if nothing had been tried.

Everything here comes before the first import that costs: it uses the C modules under `socket` and `signal`.
"""

from __future__ import annotations

import os
import posix
import sys

from loom.wire import warm

TYPE_CHECKING = False
if TYPE_CHECKING:
    from _socket import socket
    from types import FrameType

_HAND_S = 1.0  # within which it must be ready
_PATH_BYTES = 107  # of a socket's address
_SIGKILL = 9
_ALONE = ("--debug", "--detach", "--version", "--help", "-h")


def run(args: list[str]) -> int | None:
    """The exit status of the filter `args`, carried out by the supervisor; None: it is for us to carry out.

    Does not return when the filter was killed: we end by the same signal.
    """
    home = _home_of(args)
    if home is None or not os.path.exists(path := f"{home}/{warm.SOCKET}"):
        return None
    if not _is_plain():
        return None
    try:
        return _hand_over(path, args)
    except OSError:
        return None


def _home_of(args: list[str]) -> str | None:
    """The home of a filter's command line; None: it is something else, or something that only we can do."""
    if os.environ.get("LOOM_WARM") == "0" or not {"agent", "start"}.issubset(args) or not set(_ALONE).isdisjoint(args):
        return None
    home, rest = os.environ.get("LOOM_HOME", ""), iter(args)
    for word in rest:
        if word == "--home" or word.startswith("--home="):
            home = word[7:] or next(rest, "")
        elif word not in ("-q", "--quiet", "-v", "--verbose"):
            break
    if word != "agent" or next(rest, "") != "start":
        return None
    if any("/fd/" in each or "/proc/" in each for each in args):  # what is open here, or is us
        return None
    # Typed input is a conversation, or read under the rules of this terminal's jobs.
    given = any(each.partition("=")[0] in ("--prompt", "--resume") for each in args)
    if os.isatty(0) and ("--stdin" in args or not given):
        return None
    if not home:
        return f"{os.environ['HOME']}/.loom" if os.environ.get("HOME") else None
    return os.path.expanduser(home)


def _is_plain() -> bool:
    """Whether nothing was asked of this interpreter that another process of it does not have."""
    env, flags = posix.environ, sys.flags
    return not (
        None in (sys.stdin, sys.stdout, sys.stderr)
        or "LOOM_AGENT_DIR" in os.environ  # what an agent starts belongs to its tree
        or b"" in env
        or any(warm.decides(name) for name in env)
        or sys.warnoptions
        or sys._xoptions
        or flags.debug
        or flags.verbose
        or flags.inspect
        or os.getuid() != os.geteuid()
    )


def _hand_over(path: str, args: list[str]) -> int | None:
    import _socket

    with_fds: list[int] = []
    passing = _Passing()
    connection = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC)
    try:
        connection.settimeout(_HAND_S)
        if len(os.fsencode(path)) > _PATH_BYTES:
            with_fds.append(os.open(os.path.dirname(path), os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC))
            path = f"/proc/self/fd/{with_fds[0]}/{os.path.basename(path)}"
        connection.connect(path)
        if not _is_ours(connection.getsockopt(_socket.SOL_SOCKET, _socket.SO_PEERCRED, 12)):
            return None
        with_fds.append(os.open(".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC))
        passing.install()
        passing.to = _begun(connection, _request(args), (with_fds[-1], 0, 1, 2))
        if passing.to < 0:
            return None
        passing.pass_on()
        connection.settimeout(None)
        said = _last_word(connection)
    finally:
        for fd in with_fds:
            os.close(fd)
        if passing.to < 0:
            passing.undo()
        connection.close()
    if said[:1] == warm.ENDED:
        return said[1]
    return _die(said[1] if said[:1] == warm.KILLED else passing.last or _SIGKILL)


def _is_ours(credentials: bytes) -> bool:
    """Whether who listens there is the user that we are: it is going to be told all our keys."""
    return int.from_bytes(credentials[4:8], sys.byteorder) == os.getuid()


def _request(args: list[str]) -> bytes:
    streams = f"{sys.stdin.encoding} {sys.stdin.errors} {sys.stdout.encoding} {sys.stdout.errors}"
    place = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    path = os.environ.get("PYTHONPATH", "")
    kind = warm.kind(place, path, sys.version, sys.prefix, sys.getfilesystemencoding(), sys.flags.optimize)
    return warm.encode(kind, streams, [os.fsencode(each) for each in (sys.argv[0], *args)], posix.environ)


def _begun(connection: socket, request: bytes, fds: tuple[int, ...]) -> int:
    """A pidfd of the filter when it has been told to begin; -1: it has not been told, and never begins."""
    import _socket

    try:
        if connection.recv(1) != warm.HERE:
            return -1
        rights = b"".join([fd.to_bytes(4, sys.byteorder) for fd in fds])
        sent = connection.sendmsg([request], [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, rights)])
        connection.sendall(request[sent:])
        answer, passed, *_ = connection.recvmsg(1, _socket.CMSG_SPACE(4), _socket.MSG_CMSG_CLOEXEC)
        if answer != warm.READY or not passed:
            return -1
        connection.send(warm.GO)
    except OSError:
        return -1
    return int.from_bytes(passed[0][2][:4], sys.byteorder)


def _last_word(connection: socket) -> bytes:
    """What is said at the filter's end; nothing when whoever could say it was killed."""
    try:
        return connection.recv(2)
    except OSError:
        return b""


class _Passing:
    """Signals that are meant for the filter. Until there is one they are kept. `last`: the newest that ends it."""

    def __init__(self) -> None:
        import _signal  # type: ignore[import-not-found]

        self._signal = _signal
        self.to = -1
        self.last = 0
        self._kept: list[int] = []
        self._before: dict[int, object] = {}

    def install(self) -> None:
        names = ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT", "SIGTSTP", "SIGCONT")
        for number in [getattr(self._signal, name) for name in names]:
            before = self._signal.getsignal(number)
            if before != self._signal.SIG_IGN:
                self._before[number] = before
                self._signal.signal(number, self._came)

    def undo(self) -> None:
        """As if nothing had been tried: what came comes now."""
        for number, before in self._before.items():
            self._signal.signal(number, before)
        for number in self._kept:
            self._signal.raise_signal(number)

    def pass_on(self) -> None:
        """There is a filter now: give it what came before."""
        while self._kept:
            self._came(self._kept.pop(0), None)

    def _came(self, number: int, frame: FrameType | None) -> None:
        if self.to < 0:
            self._kept.append(number)
        elif number == self._signal.SIGTSTP:
            self._stop()
        else:
            if number != self._signal.SIGCONT:
                self.last = number
            self._send(number)

    def _stop(self) -> None:
        """Stop the filter, and ourselves as we would have been stopped; who goes on with us goes on with it."""
        self._send(self._signal.SIGSTOP)  # it has no terminal, and would not heed one's signal
        self._signal.signal(self._signal.SIGTSTP, self._signal.SIG_DFL)
        self._signal.raise_signal(self._signal.SIGTSTP)
        self._signal.signal(self._signal.SIGTSTP, self._came)
        self._send(self._signal.SIGCONT)

    def _send(self, number: int) -> None:
        try:
            self._signal.pidfd_send_signal(self.to, number)
        except OSError:
            pass  # it has ended: we are about to hear of it


def _die(number: int) -> int:
    """End by this signal, without a core of ours: the filter has left its own."""
    import _signal
    import resource

    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    if number not in (_signal.SIGKILL, _signal.SIGSTOP):
        _signal.signal(number, _signal.SIG_DFL)
    _signal.pthread_sigmask(_signal.SIG_UNBLOCK, [number])
    os.kill(os.getpid(), number)
    return 128 + number
