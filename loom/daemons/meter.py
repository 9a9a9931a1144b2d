"""Measuring a running agent that has limits: often while it works, seldom while it waits (docs/protocol.md section 7).

What is too much, and when to look again, is decided in loom/core/limits.py.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

from loom.core import limits as core
from loom.proc import usage
from loom.spool import agents
from loom.spool.layout import AgentDir
from loom.wire.agent import AgentLimits

_DISK_S = 1.0  # between two walks through its directory at least
_DISK_SHARE = 20  # and this many times as long as the walk took


class Meter:
    """`due_s` is when to look next, by the monotonic clock."""

    def __init__(
        self,
        agent: AgentDir,
        limits: AgentLimits,
        pid: int,
        now_s: float,
        spent: tuple[int, float, float] | None = None,
        group: Path | None = None,
    ) -> None:
        """`spent` is that of a former meter of this process; without it what it has used so far is not counted."""
        self.limits = limits
        self.due_s = now_s
        self._agent = agent
        self._pid, self._group = pid, group
        self._pause_s = core.BUSY_S
        self._claims, self._cpu_s, self._cpu_before_s = spent or (-1, 0.0, 0.0)
        self._known = spent is not None
        self._disk_at = 0.0

    @property
    def spent(self) -> tuple[int, float, float]:
        """(which message, seconds of processor time so far, those of them before this message)."""
        return self._claims, self._cpu_s, self._cpu_before_s

    def hurry(self, now_s: float) -> None:
        """It was seen to do something."""
        self._pause_s = core.BUSY_S
        self.due_s = min(self.due_s, now_s + core.BUSY_S)

    def look(self, now_s: float) -> str:
        """Measure it; which limit it exceeds, in words, empty when none."""
        found = usage.of(self._pid, self._group, count_files=self.limits.files is not None)
        claims = self._claimed()
        if not self._known:
            self._cpu_s, self._known = found.cpu_s, True
        if claims != self._claims:  # another message, or none: its time begins anew
            self._claims, self._cpu_before_s = claims, self._cpu_s
        spent_s, self._cpu_s = found.cpu_s - self._cpu_s, found.cpu_s
        busy = spent_s > 0 or found.processes > 1
        self._pause_s = core.pause_s(self._pause_s, busy=busy)
        self.due_s = now_s + self._pause_s
        cpu_s = found.cpu_s - self._cpu_before_s
        memory = found.memory
        if self.limits.memory is not None and memory > self.limits.memory:
            memory = usage.exact_memory_of(self._pid, self._group)
        used = core.Usage(memory, cpu_s, found.most_files, found.processes, self._disk(now_s))
        return core.exceeded(self.limits, used)

    def _claimed(self) -> int:
        """Another number after each claim and each end of a message."""
        try:
            return os.stat(self._agent.in_progress).st_mtime_ns
        except OSError:
            return -1

    def _disk(self, now_s: float) -> int | None:
        """Only while there is a message to fail for it: ending an idle process makes no room."""
        if self.limits.disk is None or now_s < self._disk_at or not agents.has_claimed(self._agent):
            return None
        began = time.monotonic()
        size = usage.disk_of(str(self._agent.path))
        self._disk_at = now_s + max(_DISK_S, _DISK_SHARE * (time.monotonic() - began))
        return size
