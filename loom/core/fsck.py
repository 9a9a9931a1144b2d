"""What a finding of fsck means, and which of two copies of a message is the right one (ADR-0017). Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

from loom.wire import exits

# mend    can be mended by --repair          mended  has been
# person  a person decides                   busy    somebody is at work there; not looked into, or not mended
# waits   a state of the life of a message that its runner ends; nothing is wrong
# note    worth knowing; nothing is wrong, and --repair changes it all the same
Status = Literal["mend", "mended", "person", "busy", "waits", "note"]

# The life of a message in the order in which it moves; a copy in a later place is the one that counts.
LIFE = ("inbox", "in-progress", "failed", "processed")
SENDING = ("outbox", "sent")


def surplus(places: Sequence[str], life: Sequence[str]) -> list[str]:
    """Of the places where the same bytes stand under one name: those that a move has left behind."""
    return sorted(places, key=life.index)[:-1]


def exit_status(statuses: Iterable[str]) -> int:
    """0 clean or all mended, 1 something is left to be mended or decided, 75 somebody was at work."""
    seen = set(statuses)
    if seen & {"mend", "person"}:
        return exits.FAILED
    return exits.TRY_LATER if "busy" in seen else exits.DONE
