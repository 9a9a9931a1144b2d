"""Signs of life of a runner that works, given by its loop and never by a timer (docs/liveness.md, ADR-0029).

    heartbeat   touched while something long is under way; holds for how many seconds at most it may stay as it is, and
                what is being done: `300 tool run-shell`
    why         the shape of the last hang met over the message in work, and what was done: for people

A thread that beats would beat on in a process whose work hangs. Agents that have nothing to do write nothing. Neither
file is worth a sync, and a disk that refuses one stops nobody: the turn's record is a sign too.
"""

from __future__ import annotations

import time
from pathlib import Path

from loom.spool import fs
from loom.spool.layout import AgentDir

EVERY_S = 1.0  # however much comes from a model, the file is touched this seldom
_MAX_BYTES = 1000
_MOST_S = 1e8  # a longer promise than years is none


class Heartbeat:
    """The signs of one agent; `agent` None: nobody watches (a filter), and nothing is written."""

    def __init__(self, agent: AgentDir | None = None) -> None:
        self._agent = agent
        self._last_s = float("-inf")
        self._why = ""

    def beat(self) -> None:
        """The work goes on."""
        now = time.monotonic()
        if self._agent is not None and now - self._last_s >= EVERY_S:
            self._last_s = now
            try:
                fs.touch(self._agent.heartbeat)
            except OSError:
                pass

    def expect(self, within_s: float, doing: str) -> None:
        """For so long at most there may be no other sign: what is done now has a deadline of its own."""
        if self._agent is not None:
            self._last_s = time.monotonic()
            _hint(self._agent.heartbeat, f"{min(within_s, _MOST_S):g} {doing}")

    def why(self, reason: str) -> None:
        """What keeps this message from getting on, in a line that begins with a shape's name."""
        if self._agent is not None and reason != self._why:
            self._why = reason
            _hint(self._agent.why, reason)

    def done(self) -> None:
        """The message is finished: what held it up is over, whoever had written it."""
        self._why = ""
        if self._agent is not None:
            clear(self._agent)


NOBODY = Heartbeat()


def say(agent: AgentDir, reason: str) -> None:
    """For the supervisor: the same file."""
    _hint(agent.why, reason)


def clear(agent: AgentDir) -> None:
    """Nothing is wrong any more."""
    _remove(agent.why)


def forget(agent: AgentDir) -> None:
    """A promise ends with the process that gave it: before the next one starts."""
    _remove(agent.heartbeat)


def reason(agent: AgentDir) -> str:
    """What stands in `why`, one line; empty when there is none, or none that begins with a shape."""
    try:
        text = " ".join(fs.read(agent.why, _MAX_BYTES * 10).decode("utf-8", "replace").split())[:_MAX_BYTES]
    except (OSError, fs.NotRegular, fs.TooLarge):
        return ""
    from loom.wire import hang  # here, because filters have no need of it

    return text if hang.shape_of(text) else ""


def promised_s(agent: AgentDir) -> float | None:
    """The seconds that the heartbeat file holds; None when it holds none."""
    try:
        first = fs.read(agent.heartbeat, _MAX_BYTES).split(maxsplit=1)[:1]
        seconds = float(first[0]) if first else -1.0
    except (OSError, fs.NotRegular, fs.TooLarge, ValueError):
        return None
    return seconds if 0 <= seconds < 1e9 else None


def _remove(path: Path) -> None:
    """Looked for before it is removed: mostly there is nothing."""
    if fs.is_there(path):
        try:
            fs.remove(path)
        except OSError:
            pass


def _hint(path: Path, text: str) -> None:
    try:
        fs.hint(path, text)
    except OSError:
        pass
