"""How often each route was used, for people: `agents/router/routed.json` (docs/weave.md).

Written as a hint after each round of the router, so a crash may lose what one round added; nothing is decided by it.
"""

from __future__ import annotations

import time

from loom.spool import fs
from loom.spool.layout import AgentDir
from loom.wire.jsontext import Malformed, dumps, loads_object
from loom.wire.record import record
from loom.wire.times import rfc3339

_VERSION = 1
_MAX_BYTES = 16 << 20


@record
class Count:
    """Messages that one sender's mail to one receiver came to, and when the last of them was delivered (RFC 3339)."""

    messages: int = 0
    last: str = ""


class Tally:
    """The router's own count. What stands in the file is gone on from."""

    def __init__(self, router: AgentDir) -> None:
        self._path = router.routed
        self._counts = read(router)
        self._changed = False

    def count(self, source: str, target: str) -> None:
        before = self._counts.get((source, target), Count())
        self._counts[source, target] = Count(before.messages + 1, rfc3339(time.time_ns() // 1000))
        self._changed = True

    def write(self) -> None:
        """Nothing happens without news, and where it cannot be written: nobody shall be hindered by a count."""
        if not self._changed:
            return
        lines = [
            dumps({"from": source, "to": target, "messages": one.messages, "last": one.last})
            for (source, target), one in sorted(self._counts.items())
        ]
        try:
            fs.hint(self._path, f'{{"v":{_VERSION},"routed":[\n' + b",\n".join(lines).decode() + "\n]}")
            self._changed = False
        except OSError:
            pass


def read(router: AgentDir) -> dict[tuple[str, str], Count]:
    """By (sender, receiver); empty when there is no count that can be read."""
    try:
        raw = loads_object(fs.read(router.routed, _MAX_BYTES))
        if raw.get("v") != _VERSION:
            return {}
        return {(str(r["from"]), str(r["to"])): Count(int(r["messages"]), str(r["last"])) for r in raw["routed"]}
    except (OSError, Malformed, fs.NotRegular, fs.TooLarge, KeyError, TypeError, ValueError):
        return {}
