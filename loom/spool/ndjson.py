"""NDJSON files that survive a crash: append, and read back up to the last whole line (docs/protocol.md section 8).

Shared by turn records, journals, conversations and logs. A torn or NUL-filled end is what a crash leaves; it is
cut off before anything is appended, and kept beside the file.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

from loom.spool import fs
from loom.wire.jsontext import MAX_DEPTH, Malformed, dumps, loads_object, too_deep

MAX_LINE_BYTES = 64 << 10
_TAIL_BYTES = 64 << 10  # read first of a long file, then twice as much, until enough lines are there
_MOST_TAIL_BYTES = 2 << 20


class Damaged(Exception):
    """A good record stands behind a bad one: no torn end, so nothing is cut. Names the file and the line."""


def whole_lines(data: bytes) -> tuple[list[bytes], bytes]:
    """(complete lines without newlines, the unfinished end)."""
    end = data.rfind(b"\n") + 1
    return data[:end].split(b"\n")[:-1] if end else [], data[end:]


def read_objects(path: Path) -> list[dict[str, Any]]:
    """The objects of a file that other processes may be appending to: unfinished and damaged lines are left out."""
    try:
        lines, _ = whole_lines(fs.read(path))
    except (FileNotFoundError, fs.NotRegular):
        return []
    found = []
    for line in lines:
        try:
            found.append(loads_object(line))
        except Malformed:
            continue
    return found


class Appender:
    """The one writer of an NDJSON file. Opening cuts off a torn end; `records` are those that were whole.

    last  read no more than about so many lines of the end, and at most 2 MiB: of a file that grows for ever the
          beginning is neither read nor checked. None: the whole file

    After a failed write or sync the end of the file is unknown: nothing more is written until it is opened anew.
    """

    def __init__(self, path: Path, last: int | None = None) -> None:
        self.path = path
        self.created = not path.exists()
        self._fd = fs.open_append(path)
        self._dir_synced = False
        self._failed = False
        try:
            self.records, self.cut = _repair(path, self._fd, last)
        except BaseException:
            self.close()
            raise

    def append(self, record: dict[str, Any]) -> None:
        """One line, one write. Durable only after sync(). Raises ValueError for what could not be read back."""
        line = dumps(record)
        if too_deep(line):
            raise ValueError(f"a record of {self.path.name} is nested deeper than {MAX_DEPTH} levels")
        refuse_after_failure(self._failed, self.path)
        self._failed = True
        fs.append(self._fd, line + b"\n")
        self._failed = False

    def settle_name(self) -> None:
        """Make the name of a file that goes on for ever durable before its first record, and never again.

        So a file that holds a record has a durable name, whoever wrote it, and sync() need not see to it each time.
        """
        if not self.records:
            fs.calls.fsync_dir(str(self.path.parent))
        self._dir_synced = True

    def sync(self) -> None:
        """Everything appended so far survives a power cut, the file's name included."""
        refuse_after_failure(self._failed, self.path)
        self._failed = True
        fs.calls.fdatasync(self._fd)
        if not self._dir_synced:
            fs.calls.fsync_dir(str(self.path.parent))
            self._dir_synced = True
        self._failed = False

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def torn_bytes(path: Path) -> int:
    """How many bytes opening the file would cut off its end. Raises Damaged as that would."""
    data = fs.read(path)
    return len(data) - _good(path, data)[1]


def _repair(path: Path, fd: int, last: int | None) -> tuple[list[dict[str, Any]], int]:
    """(good records, bytes cut off). Raises Damaged when a good record stands behind a bad one."""
    start, data = (0, fs.read(path)) if last is None else _tail(fd, last)
    records, good = _good(path, data, start)
    if start and not records:
        return _repair(path, fd, None)  # the torn end begins before what was read
    cut = len(data) - good
    if cut:
        keep_torn(path, data[good:], start + good)
        fs.calls.truncate(fd, start + good)
        fs.calls.fsync(fd)
    return records, cut


def _good(path: Path, data: bytes, start: int = 0) -> tuple[list[dict[str, Any]], int]:
    """(the records that are whole, how many bytes they take); `data` is the file from byte `start` on."""
    lines, _ = whole_lines(data)
    records: list[dict[str, Any]] = []
    good = 0
    for number, line in enumerate(lines):
        try:
            records.append(loads_object(line))
        except Malformed as error:
            if any(_is_good(later) for later in lines[number + 1 :]):
                before = fs.read(path)[: start + good].count(b"\n")
                raise Damaged(f"{path}:{before + 1}: {error}, and good records stand behind it") from None
            break
        good += len(line) + 1
    return records, good


def _tail(fd: int, last: int) -> tuple[int, bytes]:
    """(offset, bytes from there to the end): `last` whole lines of the end if there are so many, or 2 MiB of it.

    A torn end without any newline is read to where it begins, however long it is.
    """
    size = os.fstat(fd).st_size
    wanted = _TAIL_BYTES
    while wanted < size:
        start = size - wanted
        data = os.pread(fd, wanted, start)
        # The first line of what was read is cut by us and not by a crash; so the line before the last ones is needed.
        newlines = data.count(b"\n")
        if newlines > last or (newlines > 1 and wanted >= _MOST_TAIL_BYTES):
            begin = data.find(b"\n") + 1
            for _ in range(newlines - 1 - last):
                begin = data.find(b"\n", begin) + 1
            return start + begin, data[begin:]
        wanted *= 2
    return 0, os.pread(fd, size, 0)


def refuse_after_failure(failed: bool, path: Path) -> None:
    """Raises OSError: a record behind a torn one would be lost with it, and a second fsync may lie."""
    if failed:
        raise OSError(errno.EIO, "an earlier write failed; open the file anew to go on", str(path))


def keep_torn(path: Path, torn: bytes, offset: int) -> None:
    """Keep what is cut off an NDJSON file beside it; the same cut repeated after a crash is the same file."""
    from hashlib import sha256  # here, because few files are torn

    target = path.with_name(f"{path.name}.torn.{offset}")
    if not fs.publish(target, torn) and fs.read(target) != torn:
        fs.publish(path.with_name(f"{target.name}.{sha256(torn).hexdigest()[:12]}"), torn)


def _is_good(line: bytes) -> bool:
    try:
        loads_object(line)
    except Malformed:
        return False
    return True
