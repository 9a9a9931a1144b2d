"""What one run of gc goes by, and what it did: the time, the policy, whether it only says, and the report."""

from __future__ import annotations

import mmap
import os
import stat
from collections import Counter
from collections.abc import Callable
from hashlib import blake2b
from pathlib import Path

from loom.core.retention import Policy, is_old
from loom.spool import fs
from loom.spool.layout import Home
from loom.wire.record import field, record

# (path, what it is, why it stays; empty: it goes)
Tell = Callable[[Path, str, str], None]

NO_FILE = "it is no regular file"


def tell_nobody(path: Path, what: str, why: str) -> None:
    """For a run whose report is enough."""


@record(frozen=False)
class Report:
    """What went (or, in a dry run, would go), by kind; what is old and stays, by reason; bytes that were freed."""

    gone: Counter[str] = field(default_factory=Counter)
    stays: Counter[str] = field(default_factory=Counter)
    freed_bytes: int = 0


@record
class Broom:
    """One run of gc. `now_s` is when it began: nothing in it looks at the clock again."""

    home: Home
    now_s: float
    policy: Policy
    dry_run: bool
    tell: Tell = tell_nobody
    report: Report = field(default_factory=Report)

    def age_s(self, path: Path) -> float | None:
        """Seconds since a file was changed, moved or renamed (its ctime); None when there is none."""
        try:
            return self.now_s - os.lstat(path).st_ctime
        except (FileNotFoundError, NotADirectoryError):
            return None

    def is_old(self, path: Path, days: float) -> bool:
        age_s = self.age_s(path)
        return age_s is not None and is_old(age_s, days)

    @staticmethod
    def is_odd(path: Path) -> bool:
        """Whether something lies there that is no regular file: a directory, a link, a FIFO."""
        try:
            return not stat.S_ISREG(os.lstat(path).st_mode)
        except (FileNotFoundError, NotADirectoryError):
            return False

    def goes(self, path: Path, what: str) -> None:
        """Note that something goes."""
        self.report.gone[what] += 1
        try:
            found = os.lstat(path)
            self.report.freed_bytes += found.st_size if stat.S_ISREG(found.st_mode) else 0
        except FileNotFoundError:
            pass
        self.tell(path, what, "")

    def stays(self, path: Path, what: str, why: str) -> None:
        """Note that something is old and stays all the same."""
        self.report.stays[why] += 1
        self.tell(path, what, why)

    def remove(self, path: Path, what: str) -> None:
        """Take a regular file away, or only say so. Anything else under its name is none of loom's and stays."""
        if self.is_odd(path):
            self.stays(path, what, NO_FILE)
            return
        self.goes(path, what)
        if not self.dry_run:
            fs.remove(path)


class Crowd:
    """Names that stand somewhere, in bounded memory: a Bloom filter of 16 MiB.

    `in` is true for every name that was added and, about once in a million for a million names, for another one. That
    one stays a little longer; the next run draws other places.
    """

    _BITS = 27
    _PLACES = 4

    def __init__(self) -> None:
        self._bits = mmap.mmap(-1, 1 << (self._BITS - 3))  # pages that no name falls on cost nothing
        self._salt = os.urandom(8)

    def add(self, name: str) -> None:
        for place in self._places(name):
            self._bits[place >> 3] |= 1 << (place & 7)

    def __contains__(self, name: str) -> bool:
        return all(self._bits[place >> 3] & (1 << (place & 7)) for place in self._places(name))

    def _places(self, name: str) -> list[int]:
        drawn = int.from_bytes(
            blake2b(name.encode("utf-8", "surrogateescape"), digest_size=16, salt=self._salt).digest(), "big"
        )
        return [(drawn >> (32 * n)) & ((1 << self._BITS) - 1) for n in range(self._PLACES)]
