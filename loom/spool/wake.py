"""Waking a process: a courtesy, never the truth, which is polling (docs/protocol.md section 6).

A sleeper waits in poll(2) on its FIFO `run/wake/<agent>`; a sender writes one byte. Whatever goes wrong on the
sender's side is fine: the sleeper looks by itself.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

from loom.spool import fs


def listen(fifo: Path) -> int:
    """The sleeper's end: made when missing, drained. O_RDWR keeps it from ever seeing an end of file."""
    try:
        fs.calls.mkfifo(str(fifo), fs.FILE_MODE)
    except FileExistsError:
        if not stat.S_ISFIFO(os.lstat(fifo).st_mode):
            fs.remove(fifo)
            fs.calls.mkfifo(str(fifo), fs.FILE_MODE)
    except FileNotFoundError:
        fs.ensure_dir(fifo.parent)
        fs.calls.mkfifo(str(fifo), fs.FILE_MODE)
    fd = os.open(fifo, os.O_RDWR | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    drain(fd)
    return fd


def is_heard(fifo: Path, fd: int) -> bool:
    """Whether what is rung there reaches this descriptor: somebody may have removed or replaced the FIFO."""
    try:
        there, ours = os.lstat(fifo), os.fstat(fd)
    except OSError:
        return False
    return (there.st_dev, there.st_ino) == (ours.st_dev, ours.st_ino)


def drain(fd: int) -> None:
    """Take all bytes out, so that the next poll waits again."""
    try:
        while os.read(fd, 4096):
            pass
    except BlockingIOError:
        pass


def ring(fifo: Path) -> bool:
    """Write one byte. False when nobody listens there."""
    try:
        fd = os.open(fifo, os.O_WRONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        if not stat.S_ISFIFO(os.fstat(fd).st_mode):
            return False
        os.write(fd, b"\n")
        return True
    except OSError as error:
        return error.errno == errno.EAGAIN  # full: it has enough to wake it
    finally:
        os.close(fd)


def ring_agent(wake_dir: Path, name: str) -> None:
    """Wake an agent; when it does not listen, the supervisor, which starts it if it should run."""
    if not ring(wake_dir / name):
        ring(wake_dir / "supervisor")
