"""SIGTERM and SIGINT for processes that must finish or record a step before they leave (docs/protocol.md section 7).

The signal sets a flag, and wakes a poll through a descriptor. Only inside `interruptible()`, where nothing is
half written (waiting for a model, pausing before a retry), does it raise at once. A time limit (`limit`) works in the
same way, through SIGALRM.
"""

from __future__ import annotations

import os
import select
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

LOOK_S = 1.0  # how often limit() asks whether the work is still wanted


class Leaving(BaseException):
    """A signal asked this process to leave; not an Exception, so that no handler of errors swallows it."""

    def __init__(self, signum: int) -> None:
        super().__init__(signum)
        self.signum = signum


class OutOfTime(BaseException):
    """The time that limit() gave is over."""


class Unwanted(BaseException):
    """Nobody needs the work any longer."""


class Stopping:
    """One per process. `signum` is 0 until a signal came."""

    def __init__(self) -> None:
        self.signum = 0
        self._until: float | None = None
        self._unwanted: Callable[[], bool] | None = None
        self._end: type[OutOfTime] | type[Unwanted] | None = None
        self._raise = False
        self.fd, self._bell = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK) if hasattr(os, "pipe2") else os.pipe()

    def install(self, *signums: int) -> None:
        """Handle these signals from now on (SIGTERM and SIGINT by default)."""
        for signum in signums or (signal.SIGTERM, signal.SIGINT):
            signal.signal(signum, self._on_signal)

    def install_terminal(self) -> None:
        """The same, and SIGHUP: the terminal was closed. Not under nohup, which is asking to go on."""
        self.install()
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
            self.install(signal.SIGHUP)

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
    def limit(self, seconds: float | None, unwanted: Callable[[], bool] | None = None) -> Iterator[None]:
        """Inside, what raises Leaving for a signal raises OutOfTime when so many seconds have passed. None: none.

        It raises Unwanted when `unwanted`, asked every second, says that nobody needs the work any longer.
        """
        if seconds is None and unwanted is None:
            yield
            return
        self._until = None if seconds is None else time.monotonic() + seconds
        self._unwanted, self._end = unwanted, None
        before = signal.signal(signal.SIGALRM, self._on_alarm)
        try:
            self._look_at_limit()
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0.0)
            signal.signal(signal.SIGALRM, before)
            self._end = None

    def _on_alarm(self, signum: int, frame: FrameType | None) -> None:
        self._look_at_limit()
        if self._end is not None and self._raise:
            self._raise = False
            raise self._end

    def _look_at_limit(self) -> None:
        """Whether the limit is reached; else when to look again."""
        left_s = LOOK_S if self._until is None else self._until - time.monotonic()
        if left_s <= 0:
            self._end = OutOfTime
        elif self._unwanted is not None and self._unwanted():
            self._end = Unwanted
        else:
            signal.setitimer(signal.ITIMER_REAL, left_s if self._unwanted is None else min(left_s, LOOK_S))

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
        """Raise Leaving when a signal came, OutOfTime or Unwanted when the limit is reached."""
        if self.signum:
            raise Leaving(self.signum)
        if self._end is not None:
            raise self._end

    def wait(self, timeout_s: float | None, *fds: int) -> list[int]:
        """Wait for input, a hang-up or an error on `fds`, a signal or the timeout; which descriptors had something."""
        poller = select.poll()
        for fd in (self.fd, *fds):
            poller.register(fd, select.POLLIN)
        ready = poller.poll(None if timeout_s is None else max(0, int(timeout_s * 1000)))
        return [fd for fd, _ in ready if fd != self.fd]
