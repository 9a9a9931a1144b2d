"""One finding of fsck, and how one is mended or only told."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from loom.core.fsck import Status
from loom.spool.layout import Home
from loom.wire.record import record

_NOT_OURS = (errno.EPERM, errno.EACCES, errno.EROFS, errno.EBUSY)
# A directory, a link or a device stands where a file belongs, or the other way round.
_WRONG_KIND = (errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.EEXIST, errno.ENXIO)
_MAX_DEPTH = 100  # directories below the home
_MAX_PATH_BYTES = 3800  # with any name behind it a path the kernel takes


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
            if error.errno not in (*_NOT_OURS, *_WRONG_KIND):
                raise
            return Finding(path, what, "person", f"it cannot be mended: {error.strerror}")
        return Finding(path, what, "mended", todo)

    def is_too_deep(self, directory: Path) -> bool:
        """Whether this lies deeper than anything of loom's, and than is looked into."""
        depth = len(directory.parts) - len(self.home.path.parts)
        return depth > _MAX_DEPTH or len(os.fsencode(directory)) > _MAX_PATH_BYTES


def person(path: Path, what: str, todo: str = "look at it; mend it or move it away") -> Finding:
    """`what` may be an error that begins with the path."""
    return Finding(path, what.removeprefix(str(path)).lstrip(": "), "person", todo)


def guarded(path: Path, findings: Findings) -> Findings:
    """These findings; what ends them because something of the wrong kind stands in the way is one more."""
    try:
        yield from findings
    except OSError as error:
        if (told := in_the_way(path, error)) is None:
            raise
        yield told


def in_the_way(path: Path, error: OSError) -> Finding | None:
    """What an error says of the kind of a file; None for any other error. `path` is told where it names none."""
    if error.errno not in _WRONG_KIND:
        return None
    place = Path(os.fsdecode(error.filename)) if isinstance(error.filename, str | bytes) else path
    what = f"cannot be used: {error.strerror}; not all was looked into here"
    return person(place, what, "move away what is no file or no directory there, and check again")
