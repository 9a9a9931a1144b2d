"""SIGTERM and SIGINT for processes that must finish or record a step before they leave (docs/protocol.md section 7).

A time limit works in the same way, through SIGALRM. The signal sets a flag, and wakes a poll through a descriptor. Only inside `interruptible()`, where nothing is
half written (waiting for a model, pausing before a retry), does it raise at once.
"""

from __future__ import annotations

import os
import select
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Leaving(BaseException):
    """A signal asked this process to leave; not an Exception, so that no handler of errors swallows it."""

    def __init__(self, signum: int) -> None:
        super().__init__(signum)
        self.signum = signum


class OutOfTime(BaseException):
    """The time that limit() gave is over."""


class Stopping:
    """One per process. `signum` is 0 until a signal came."""

    def __init__(self) -> None:
        self.signum = 0
        self._late = False
        self._raise = False
        self.fd, self._bell = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK) if hasattr(os, "pipe2") else os.pipe()

    def install(self, *signums: int) -> None:
        """Handle these signals from now on (SIGTERM and SIGINT by default)."""
        for signum in signums or (signal.SIGTERM, signal.SIGINT):
            signal.signal(signum, self._on_signal)

    def _on_signal(self, signum: int, frame: FrameType | None) -> None:
        self.signum = signum
        try:
            os.write(self._bell, b"\n")
        except BlockingIOError:
            pass
        if self._raise:
            self._raise = False
            raise Leaving(signum)

    def forget(self) -> None:
        """What came is dealt with: wait for the next."""
        if self.signum:
            self.signum = 0
            os.read(self.fd, 4096)

    @contextmanager
    def limit(self, seconds: float | None) -> Iterator[None]:
        """Inside, what raises Leaving for a signal raises OutOfTime when so many seconds have passed. None: no limit."""
        if seconds is None:
            yield
            return
        self._late = seconds <= 0
        before = signal.signal(signal.SIGALRM, self._on_alarm)
        signal.setitimer(signal.ITIMER_REAL, max(seconds, 0.0))
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0.0)
            signal.signal(signal.SIGALRM, before)
            self._late = False

    def _on_alarm(self, signum: int, frame: FrameType | None) -> None:
        self._late = True
        if self._raise:
            self._raise = False
            raise OutOfTime

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """Inside, the signal raises Leaving at once, also when it came just before."""
        self._raise = True
        try:
            self.check()
            yield
        finally:
            self._raise = False

    def check(self) -> None:
        """Raise Leaving when a signal came, OutOfTime when the limit has passed."""
        if self.signum:
            raise Leaving(self.signum)
        if self._late:
            raise OutOfTime

    def wait(self, timeout_s: float | None, *fds: int) -> list[int]:
        """Wait for input, a hang-up or an error on `fds`, a signal or the timeout; which descriptors had something."""
        poller = select.poll()
        for fd in (self.fd, *fds):
            poller.register(fd, select.POLLIN)
        ready = poller.poll(None if timeout_s is None else max(0, int(timeout_s * 1000)))
        return [fd for fd, _ in ready if fd != self.fd]
