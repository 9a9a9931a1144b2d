"""One finding of fsck, and how one is mended or only told."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from pathlib import Path

from loom.core.fsck import Status
from loom.spool.layout import Home
from loom.wire.record import record

_NOT_OURS = (errno.EPERM, errno.EACCES, errno.EROFS, errno.EBUSY)


@record
class Finding:
    """What is wrong with a path. `todo`: what --repair does or did, or what a person can do."""

    path: Path
    what: str
    status: Status
    todo: str = ""


Findings = Iterator[Finding]


@record
class Check:
    """One run of fsck. Without `repair` it changes nothing."""

    home: Home
    repair: bool
    now_s: float

    def mend(self, path: Path, what: str, todo: str, act: Callable[[], object]) -> Finding:
        """Mend it, or say that it can be. What is not ours to change is for a person."""
        if not self.repair:
            return Finding(path, what, "mend", todo)
        try:
            act()
        except OSError as error:
            if error.errno not in _NOT_OURS:
                raise
            return Finding(path, what, "person", f"it cannot be mended: {error.strerror}")
        return Finding(path, what, "mended", todo)


def person(path: Path, what: str, todo: str = "look at it; mend it or move it away") -> Finding:
    return Finding(path, what, "person", todo)
