"""Which code a supervisor runs, as it says in `run/supervisor.json`: for people, and for whoever asks it to reload.

Nothing is decided by that file. Whether what it says holds is told by pid and start time: those of the lock's holder.
"""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path

from loom.spool import fs, locks
from loom.spool.layout import Home
from loom.wire.jsontext import dumps, loads_object
from loom.wire.record import record
from loom.wire.release import VERSION

_PACKAGE = Path(__file__).resolve().parent.parent
_MOST = 1 << 16


@record
class Running:
    """answered: how many requests to reload have come to an end in this process. status: of the last one, 0 when the
    code was replaced; else why not is in `error`. before: the code it ran until its last replacement. groups: where its
    agents have cgroups of their own, "" where none were delegated."""

    pid: int
    start: int
    code: str
    before: str = ""
    answered: int = 0
    status: int = 0
    error: str = ""
    groups: str = ""


@cache
def code() -> str:
    """This package as `VERSION DIGEST`, the digest being of all its modules as they lie on the disk now."""
    sums = hashlib.sha256()
    for path in sorted(_PACKAGE.rglob("*.py")):
        sums.update(f"{path.relative_to(_PACKAGE)}\0".encode())
        sums.update(hashlib.sha256(path.read_bytes()).digest())
    return f"{VERSION} {sums.hexdigest()[:12]}"


def write(home: Home, running: Running) -> None:
    """Raises OSError."""
    fields = {name: getattr(running, name) for name in Running.__match_args__}
    fs.hint(home.supervisor_record, dumps({"v": 1, **fields}).decode())


def read(home: Home) -> Running | None:
    """What the supervisor that serves `home` now says of itself; None: there is none, or it has not said."""
    who = locks.holder(home.supervisor_lock)
    if who is None:
        return None
    try:
        known = loads_object(fs.read(home.supervisor_record, _MOST))
        found = Running(**{name: known[name] for name in Running.__match_args__ if name in known})
    except (OSError, ValueError, TypeError, fs.NotRegular, fs.TooLarge):
        return None
    return found if (found.pid, found.start) == (who.pid, who.start) else None
