"""One process, held by a pidfd: a signal sent through it can never reach another that got the same number.

    see its end      the descriptor becomes readable
    signal it        send(): refused by the kernel once the process is gone
    learn its exit   reap() for a child, exit_of() for anybody's process

Linux only. Where the kernel is too old for PIDFD_GET_INFO (before 6.15), exit_of() still reads it from a zombie.
"""

from __future__ import annotations

import errno
import os
import signal
import struct
import sys

from loom.wire.errors import Config

_GET_INFO = (3 << 30) | (64 << 16) | (0xFF << 8) | 11  # _IOWR(0xFF, 11, struct pidfd_info of 64 bytes)
_INFO_EXIT = 1 << 3
_INFO = struct.Struct("=QQ11Ii")


def check_supported() -> None:
    """Raises Config where processes cannot be supervised."""
    if sys.platform != "linux":
        raise Config(
            f"supervision needs Linux (pidfd, inotify), this is {sys.platform}",
            hint="run agents in the foreground, or loom in a Linux container",
        )


def start_of(pid: int) -> int | None:
    """The start time of a process in clock ticks since boot, or None when there is no such process."""
    fields = stat_of(pid)
    return int(fields[19]) if fields else None


def stat_of(pid: int) -> list[bytes]:
    """The fields of /proc/PID/stat from the third (the state) on; empty when there is no such process."""
    try:
        fd = os.open(f"/proc/{pid}/stat", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return []
    try:
        data = os.read(fd, 4096)
    except OSError:
        return []  # it ended between the two calls
    finally:
        os.close(fd)
    # Counted from behind the command name, which may itself hold spaces and parentheses.
    return data[data.rindex(b")") + 2 :].split() if data else []


def open_pidfd(pid: int, start: int | None = None) -> int | None:
    """A descriptor for exactly this process, or None when it is gone; with `start` its start time is checked after.

    Without `start` only for one's own child that has not been reaped: nobody else can have its number.
    """
    check_supported()
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return None
    if start is not None and start_of(pid) != start:
        os.close(fd)
        return None
    return fd


def send(fd: int, number: int) -> bool:
    """Send a signal. False when the process has ended or is not ours to signal."""
    try:
        signal.pidfd_send_signal(fd, number)
    except (ProcessLookupError, PermissionError):
        return False
    return True


def ended(fd: int) -> bool:
    """Whether the process has ended, reaped or not."""
    import select

    poller = select.poll()
    poller.register(fd, select.POLLIN)
    return bool(poller.poll(0))


def reap(fd: int) -> int | None:
    """Take a child's exit: its status, or minus the signal's number. None while it runs or when it is not our child."""
    try:
        info = os.waitid(os.P_PIDFD, fd, os.WEXITED | os.WNOHANG)
    except ChildProcessError:
        return None
    if info is None:
        return None
    return int(info.si_status) if info.si_code == os.CLD_EXITED else -int(info.si_status)


def exit_of(fd: int, pid: int, start: int) -> int | None:
    """How a process that is no child of ours ended, as reap() says it; None when nobody can tell (any more)."""
    for _ in range(2):
        status = _info_status(fd)  # filled in when it was reaped
        if status is None:
            status = _zombie_status(pid, start)  # not reaped yet; if that happens right now, the second round knows
        if status is not None:
            return os.waitstatus_to_exitcode(status)
    return None


def _info_status(fd: int) -> int | None:
    import fcntl

    buffer = bytearray(_INFO.pack(_INFO_EXIT, *[0] * 13))
    try:
        fcntl.ioctl(fd, _GET_INFO, buffer)
    except OSError as error:
        if error.errno in (errno.ENOTTY, errno.EINVAL, errno.ESRCH, errno.EREMOTE, errno.EPERM):
            return None
        raise
    fields = _INFO.unpack(buffer)
    return int(fields[-1]) if fields[0] & _INFO_EXIT else None


def _zombie_status(pid: int, start: int) -> int | None:
    fields = stat_of(pid)
    if len(fields) < 50 or fields[0] != b"Z" or int(fields[19]) != start:
        return None
    return int(fields[49])
