"""Locks: flock decides who is alive and who may act (docs/protocol.md sections 4 and 7, ADR-0007).

A lock file is never unlinked while its owner may live; its content, the holder's incarnation, is written after
the lock is taken and is trusted only while the lock is held and the process it names still has that start time.
"""

from __future__ import annotations

import errno
import fcntl
import os
import time
from pathlib import Path
from types import TracebackType

from loom.spool import fs
from loom.wire.record import record


@record
class Incarnation:
    """One process, not only its number: `start` is its start time in clock ticks since boot."""

    pid: int
    start: int
    boot: str

    def text(self) -> str:
        return f"{self.pid} {self.start} {self.boot}"

    @property
    def epoch(self) -> str:
        return f"{self.pid}.{self.start}"


def boot_id() -> str:
    """The kernel's name for this boot; constant where there is none (macOS has no /proc)."""
    global _boot_id
    if not _boot_id:
        try:
            _boot_id = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        except OSError:
            return "unknown-boot"  # perhaps for want of descriptors only: not kept
    return _boot_id


_boot_id = ""


def start_time(pid: int) -> int | None:
    """The start time of a process in clock ticks since boot, or None when there is no such process."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        if os.path.isdir("/proc/self"):
            return None
        return _start_time_elsewhere(pid)
    # Field 22; counted from behind the command name, which may itself hold spaces and parentheses.
    return int(stat[stat.rindex(b")") + 2 :].split()[19])


def _start_time_elsewhere(pid: int) -> int | None:
    import psutil

    try:
        return int(psutil.Process(pid).create_time() * 100)
    except psutil.Error:
        return None


def own_incarnation() -> Incarnation:
    pid = os.getpid()
    return Incarnation(pid, start_time(pid) or 0, boot_id())


def parse_incarnation(text: str) -> Incarnation | None:
    """The inverse of Incarnation.text, or None."""
    fields = text.split()
    if len(fields) != 3 or not fields[0].isdigit() or not fields[1].isdigit():
        return None
    return Incarnation(int(fields[0]), int(fields[1]), fields[2])


class Lock:
    """A held flock. Close it, or die, to let go. A context manager."""

    def __init__(self, fd: int, path: Path) -> None:
        self.fd = fd
        self.path = path
        self._signed_by = 0

    def sign(self, who: Incarnation) -> None:
        """Write the holder into the file, for adoption by a new supervisor."""
        fs.calls.truncate(self.fd, 0)
        fs.write_all(self.fd, who.text().encode())
        self._signed_by = os.getpid()

    def release(self) -> None:
        if self.fd >= 0:
            if self._signed_by == os.getpid():  # not by a forked child: the lock is still its parent's
                try:
                    fs.calls.truncate(self.fd, 0)  # or the next holder, unsigned yet, would pass for us
                except OSError:
                    pass
            os.close(self.fd)
            self.fd = -1

    def __enter__(self) -> Lock:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.release()


def take_over(fd: int, path: Path) -> Lock:
    """The lock that this very process took before an exec, by the descriptor that it kept over it.

    Raises ValueError when `fd` is not that: it must be held, and signed by who we are.
    """
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)  # of the same open file: nothing changes when it is held
        signed = parse_incarnation(os.pread(fd, 200, 0).decode("ascii", "replace"))
    except OSError as error:
        raise ValueError(f"descriptor {fd} is not the lock {path}: {error}") from None
    if signed != own_incarnation():
        raise ValueError(f"the lock {path} is not signed by this process")
    lock = Lock(fd, path)
    lock._signed_by = os.getpid()
    return lock


_PROBES = 20  # times 5 ms: far longer than is_held() of another process keeps its shared lock


def acquire(path: Path, *, wait: bool = False) -> Lock | None:
    """Take the lock, or None when another process has it. With `wait` it blocks until it is free.

    The descriptor is closed on exec; flock follows the open file, so a lock must be taken after the last fork.
    """
    fd = fs.open_append(path)
    for probe in range(_PROBES):
        try:
            fcntl.flock(fd, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
            return Lock(fd, path)
        except OSError as error:
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                os.close(fd)
                raise
        if probe + 1 < _PROBES:
            # Somebody who only asks whether the lock is held has it shared for a moment: that is no owner.
            time.sleep(0.005)
    os.close(fd)
    return None


def holder(path: fs.Place) -> Incarnation | None:
    """Who holds this lock now: None when nobody does or the holder is not (any longer) the process it names."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        return None
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                raise
            who = parse_incarnation(os.pread(fd, 200, 0).decode("ascii", "replace"))
            return who if who is not None and alive(who) else None
        return None
    finally:
        os.close(fd)


def is_held(path: fs.Place) -> bool:
    """Whether any process holds this lock."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            return True
        raise
    finally:
        os.close(fd)
    return False


def taken_by(path: Path) -> int | None:
    """The pid by which the kernel knows whoever took this lock; None when it does not tell."""
    try:
        node = os.stat(path)
        lines = Path("/proc/locks").read_text(encoding="ascii").splitlines()
    except (OSError, UnicodeDecodeError):
        return None
    place = f"{os.major(node.st_dev):02x}:{os.minor(node.st_dev):02x}:{node.st_ino}"
    for fields in map(str.split, lines):
        if len(fields) > 5 and fields[1] == "FLOCK" and fields[5] == place and fields[4].isdigit():
            return int(fields[4])
    return None


def alive(who: Incarnation) -> bool:
    """Whether exactly this process still lives: same boot, same pid, same start time, and no zombie."""
    if who.boot != boot_id() or start_time(who.pid) != who.start:
        return False
    try:
        stat = Path(f"/proc/{who.pid}/stat").read_bytes()
    except OSError:
        return not os.path.isdir("/proc/self")
    return stat[stat.rindex(b")") + 2 :][:1] not in (b"Z", b"X")
