"""A program and all that it ever starts, in a pid namespace of their own: they end together, and with us.

    we ─ holder ─┊─ init ─ the program ─ what it starts, however often it forks and whatever session it makes
                 ┊ (1 of the namespace)

When init ends, the kernel kills everything else in the namespace, and init ends with the holder, the holder with us
(PDEATHSIG): so nothing outlives a `kill -9` of ours, be its environment cleared and its signals ignored. The holder
is what our caller waits for; it ends as the program has ended, when nobody is left in the namespace. A signal to its
group that asks to end reaches everybody inside.

Needs root, or user namespaces that anybody may make: `available()` tries once. Without them the program is started
plainly, and what leaves its group is left to subreapers and the search for its mark (loom/proc/tree.py).
"""

from __future__ import annotations

import ctypes
import errno
import os
import resource
import select
import signal
import sys

from loom.proc.spawn import close_from

_CLONE_NEWUSER, _CLONE_NEWPID = 0x10000000, 0x20000000
_PR_SET_PDEATHSIG = 1
_ASKING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_IGNORED = (*_ASKING, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)
_libc = ctypes.CDLL(None, use_errno=True)


def enter() -> None:
    """Called between fork and exec: returns in the process that is to exec, inside, where that is possible.

    The caller must have one thread. Raises OSError when no processes can be made.
    """
    if not available():
        return
    _unshare()
    told, tells = os.pipe()
    init = os.fork()
    if init:
        _hold(init, told)
    _libc.prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
    os.close(told)
    if _is_unread(tells):
        os._exit(1)  # the holder ended before we asked to end with it
    program = os.fork()
    if program:
        _be_init(program, tells)
    os.close(tells)
    os.setsid()  # that of the holder has no number in here


def available() -> bool:
    """Whether this process may make pid namespaces, found out by making one. A fork keeps what its parent found.

    A trial that was killed, or for which there were no processes, says nothing: it is made again, then or later.
    """
    global _available
    for _ in range(_TRIALS):
        if _available is not None:
            break
        _available = _tried()
    return bool(_available)


_TRIALS = 5
_available: bool | None = None


def _tried() -> bool | None:
    if sys.platform != "linux":
        return False
    try:
        pid = os.fork()
    except OSError:
        return None
    if pid == 0:
        status = _UNKNOWN
        try:
            status = _trial()
        finally:
            os._exit(status)
    return {_MAY: True, _MAY_NOT: False}.get(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))


_MAY, _MAY_NOT, _UNKNOWN = 0, 1, 2


def _trial() -> int:
    try:
        _unshare()
    except OSError as error:
        return _UNKNOWN if error.errno in (errno.EAGAIN, errno.ENOMEM) else _MAY_NOT
    inner = os.fork()
    if inner == 0:
        os._exit(_MAY)
    return _MAY if os.waitpid(inner, 0)[1] == 0 else _UNKNOWN


def _unshare() -> None:
    """The next child is the first of a new namespace. Not as root: in a user namespace in which we are who we are."""
    uid, gid = os.geteuid(), os.getegid()
    if uid == 0 and _libc.unshare(_CLONE_NEWPID) == 0:
        return
    if _libc.unshare(_CLONE_NEWUSER | _CLONE_NEWPID) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    _tell("setgroups", "deny")
    _tell("uid_map", f"{uid} {uid} 1")
    _tell("gid_map", f"{gid} {gid} 1")


def _tell(name: str, text: str) -> None:
    fd = os.open(f"/proc/self/{name}", os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)


def _is_unread(fd: int) -> bool:
    """Whether nobody reads the other end of this pipe any more."""
    poller = select.poll()
    poller.register(fd, 0)
    return bool(poller.poll(0))


def _alone_with(fd: int) -> None:
    """Keep this descriptor, as 0, and no other: pipes of the program must end with the program."""
    for number in _IGNORED:
        signal.signal(number, signal.SIG_IGN)
    os.dup2(fd, 0)
    close_from(1)


def _be_init(program: int, tells: int) -> None:
    """Collect whoever ends in the namespace, until the program does; never returns."""
    try:
        _alone_with(tells)
        for number in _ASKING:
            signal.signal(number, _pass_on)
        while True:
            pid, status = os.wait()
            if pid == program:
                os.write(0, status.to_bytes(4, "little"))
                return
    finally:
        os._exit(0)


def _pass_on(number: int, frame: object) -> None:
    """Whoever asks the group to end asks everybody in the namespace."""
    try:
        os.kill(-1, number)
    except ProcessLookupError:
        pass  # nobody is left but us


def _hold(init: int, told: int) -> None:
    """Wait until the namespace is empty, then end as the program did; never returns."""
    try:
        _alone_with(told)
        data = os.read(0, 4)
        os.waitpid(init, 0)
        status = int.from_bytes(data, "little") if len(data) == 4 else int(signal.SIGKILL)
        if os.WIFEXITED(status):
            os._exit(os.WEXITSTATUS(status))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        number = os.WTERMSIG(status)
        if number != signal.SIGKILL:
            signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
    finally:
        os._exit(1)
