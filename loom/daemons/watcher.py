"""Watching one running agent: what is seen of it goes to loom.core.liveness (docs/liveness.md, ADR-0029).

Only while it has something to do, and then a few times within its shortest deadline: ten thousand idle agents cost
nothing, one that works some fifty microseconds every quarter of a minute.
"""

from __future__ import annotations

import math
import os

from loom.core import liveness as core
from loom.proc import pidfd
from loom.spool import agents, fs, heartbeat, mailbox
from loom.spool.layout import AgentDir
from loom.wire import ids


class Watcher:
    """`due_s` is when to look next, by the monotonic clock; infinite while it has nothing to do.

    own   a runner of ours, which gives signs while it works; others promise what their heartbeat file says, and nothing
          before they have written one
    """

    def __init__(self, agent: AgentDir, pid: int, now_s: float, deadlines: core.Deadlines, *, own: bool) -> None:
        self._agent = agent
        self._pid = pid
        self._own = own
        self._known: core.Watched | None = None
        self._told = ""
        self.due_s = math.inf
        self.stir(now_s, deadlines)

    def stir(self, now_s: float, deadlines: core.Deadlines) -> None:
        """It may have something to do: looked at soon. Costs nothing while it is watched already."""
        if self.due_s == math.inf:
            self.due_s = now_s + core.pause_s(core.Facts(message="any"), deadlines)

    def look(self, now_s: float, deadlines: core.Deadlines) -> core.Hang | None:
        """See how it is; what must be done about it."""
        facts = self._facts()
        before, (self._known, hang) = self._known, core.look(self._known, facts, now_s, deadlines)
        if self._known is None:
            self.due_s = math.inf
            heartbeat.clear(self._agent)
        else:
            self.due_s = now_s + self._known.pause_s
            if not self._own and before is not None and before.message != facts.message:
                heartbeat.clear(self._agent)  # runners of ours do it themselves
        if before is None or self._known is None or before.message != self._known.message:
            self._told = ""
        return hang

    def is_news(self, hang: core.Hang) -> bool:
        """Whether this was not told before of the same message: a nudge may be given many times."""
        before, self._told = self._told, hang.shape
        return before != hang.shape

    def _facts(self) -> core.Facts:
        stem, turn = self._in_work()
        if not stem:
            return core.Facts(mail=agents.has_mail(self._agent), state=self._state())
        beat = _token(self._agent.heartbeat)
        promised_s = heartbeat.promised_s(self._agent)
        if promised_s is None and self._own and turn:
            promised_s = 0.0
        return core.Facts(stem, False, f"{turn} {beat}", promised_s, self._state())

    def _in_work(self) -> tuple[str, str]:
        """The message it works on, and a token of its turn; one without a turn only when none of those claimed has one.

        What lies there and cannot be moved, so that no runner ever takes it up, has none: nobody is restarted for it.
        """
        try:
            names = os.listdir(self._agent.in_progress)
        except (FileNotFoundError, NotADirectoryError):
            return "", ""
        stems = sorted(stem for stem in map(ids.stem_of, names) if stem is not None)
        turns = [_token(self._agent.turn(stem, mailbox.attempts(self._agent, stem))) for stem in stems]
        return next((both for both in zip(stems, turns, strict=True) if both[1]), (stems[0] if stems else "", ""))

    def _state(self) -> str:
        fields = pidfd.stat_of(self._pid)
        return fields[0].decode("ascii", "replace") if fields else ""


def _token(path: str | os.PathLike[str]) -> str:
    try:
        return fs.token(os.fspath(path))
    except (FileNotFoundError, NotADirectoryError):
        return ""
