"""The journal of a goal: append-only, hash-chained, exactly one writer (docs/protocol.md section 8, ADR-0005).

Enters: events to append; leaves: events in order, each checked against its own hash and the one before.
The truth of a goal is this file; `state.json` and `plan.json` are folds of it. A head {seq, hash} goes to
`heads/<goal>` at gates, at the end and every 64 records, so that cutting whole records off the end is seen.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from loom.spool import blobs, fs, locks, ndjson
from loom.wire import event as wire
from loom.wire.event import ZERO_HASH, Event
from loom.wire.jsontext import Malformed, dumps, loads_object, too_deep
from loom.wire.times import parse_us, rfc3339

HEAD_EVERY = 64
_TAIL_BYTES = 4 * wire.MAX_LINE_BYTES
_BLOB = "$blob"
_BLOB_DEPTH = 128


class JournalDamaged(Exception):
    """A record does not hold what the chain promises, and it is no torn end. The text names file and line."""


class JournalBusy(Exception):
    """Another process is this journal's writer."""


def _now_us() -> int:
    return time.time_ns() // 1000


class Journal:
    """The writer. Opening takes the lock, mends a torn end and reads the tail only: cost does not grow with history."""

    def __init__(self, path: Path, blob_dir: Path, head: Path, clock_us: Callable[[], int] = _now_us) -> None:
        self.path = path
        self._blobs = blob_dir
        self._head = head
        self._clock_us = clock_us
        fs.ensure_dir(path.parent)
        lock = locks.acquire(path.with_name("journal.lock"))
        if lock is None:
            raise JournalBusy(f"{path} is being written by another process")
        self._lock = lock
        self._fd = -1
        self._failed = False
        self._unsynced = False
        self.torn_bytes = 0
        try:
            self._fd = fs.open_append(path)
            last = self._mend()
            self.seq = last.seq if last else 0
            self.hash = last.hash if last else ZERO_HASH
            self._last_us = _us_of(path, last) if last else 0
            if not last:
                fs.calls.fsync_dir(str(path.parent))
        except BaseException:
            self.close()
            raise

    def append(self, type_: str, actor: Mapping[str, Any], cause: str, data: Mapping[str, Any]) -> Event:
        """Add one event; it is durable when this returns, and only then may it take effect."""
        event = self.stage(type_, actor, cause, data)
        self.sync()
        return event

    def stage(self, type_: str, actor: Mapping[str, Any], cause: str, data: Mapping[str, Any]) -> Event:
        """Add one event without syncing: several may share one sync(). Nothing may act on it before that.

        Raises ValueError for what could not be read back. After a failed write or sync the journal's end is
        unknown: it refuses everything (OSError) until it is opened anew.
        """
        ndjson.refuse_after_failure(self._failed, self.path)
        us = max(self._clock_us(), self._last_us + 1)
        event = Event(self.seq + 1, rfc3339(us), type_, actor, cause, data, self.hash)
        line, digest = wire.encode(event)
        if len(line) > wire.MAX_LINE_BYTES or too_deep(line) or _BLOB in data:
            payload = dumps(dict(data))
            if too_deep(payload, _BLOB_DEPTH):
                raise ValueError(f"the payload of {type_} is nested deeper than {_BLOB_DEPTH} levels")
            line, digest = wire.encode(event, {_BLOB: blobs.put(self._blobs, payload)})
            if len(line) > wire.MAX_LINE_BYTES or too_deep(line):
                raise ValueError(f"{type_}: actor and cause do not fit a line")
        self._failed = self._unsynced = True
        fs.append(self._fd, line)
        self._failed = False
        self.seq, self.hash, self._last_us = event.seq, digest, us
        return Event(event.seq, event.ts, type_, actor, cause, data, event.prev, digest)

    def sync(self) -> None:
        """Everything staged is durable when this returns; every 64 records the head is noted too."""
        ndjson.refuse_after_failure(self._failed, self.path)
        self._failed = True
        fs.calls.fdatasync(self._fd)
        self._failed = self._unsynced = False
        if self.seq // HEAD_EVERY != self._noted // HEAD_EVERY:
            self.note_head()

    _noted = 0

    def note_head(self) -> None:
        """Write {seq, hash} to heads/. A head may lag, never lead: what is staged is synced first."""
        if self._unsynced:
            fs.calls.fdatasync(self._fd)
            self._unsynced = False
        fs.ensure_dir(self._head.parent)
        fs.replace(self._head, dumps({"seq": self.seq, "hash": self.hash}) + b"\n")
        self._noted = self.seq

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        self._lock.release()

    def _mend(self) -> Event | None:
        size = os.fstat(self._fd).st_size
        start = max(0, size - _TAIL_BYTES)
        data = os.pread(self._fd, size - start, start)
        if start:  # the first line of the window is cut by it, not by a crash
            skip = data.find(b"\n") + 1
            start, data = start + skip, data[skip:]
        lines, _ = ndjson.whole_lines(data)
        last: Event | None = None
        good = start
        for number, line in enumerate(lines):
            event = self._check(line, last, lines[number + 1 :], good)
            if event is None:
                break
            last, good = event, good + len(line) + 1
        if last is None and start:
            raise JournalDamaged(f"{self.path}: no whole record in its last {_TAIL_BYTES} bytes")
        _refuse_cut(self.path, self._head, last.seq if last else 0)
        if good < size:
            self.torn_bytes = size - good
            ndjson.keep_torn(self.path, os.pread(self._fd, size - good, good), good)
            fs.calls.truncate(self._fd, good)
            fs.calls.fsync(self._fd)
        return last

    def _check(self, line: bytes, before: Event | None, behind: list[bytes], offset: int) -> Event | None:
        """The event in `line`; None for a torn end. Raises JournalDamaged when good records follow."""
        try:
            event = wire.decode(line)
        except wire.Foreign as error:
            raise JournalDamaged(f"{self.path}: at byte {offset}: {error}") from None
        except Malformed as error:
            if any(_is_event(later) for later in behind):
                raise JournalDamaged(f"{self.path}: at byte {offset}: {error}, and good records follow") from None
            return None
        if before is None and offset == 0 and (event.prev != ZERO_HASH or event.seq != 1):
            raise JournalDamaged(f"{self.path}: begins with record {event.seq}: what stood before it is missing")
        if before is not None and (event.prev != before.hash or event.seq != before.seq + 1):
            raise JournalDamaged(
                f"{self.path}: record {event.seq} at byte {offset} does not follow record {before.seq}"
            )
        return event


def _refuse_cut(path: Path, head: Path, seq: int) -> None:
    """Raises JournalDamaged when the noted head lies behind the last whole record: it was durable, no crash took it."""
    noted = read_head(head)
    if noted is not None and noted[0] > seq:
        raise JournalDamaged(_cut(path, noted[0]))


def _cut(path: Path, seq: int) -> str:
    return f"{path}: the head noted at record {seq} is not in the journal: records were cut off or changed"


def _is_event(line: bytes) -> bool:
    try:
        wire.decode(line)
    except wire.Foreign:
        return True
    except Malformed:
        return False
    return True


def _us_of(path: Path, event: Event) -> int:
    try:
        return parse_us(event.ts)
    except ValueError as error:
        raise JournalDamaged(f"{path}: record {event.seq}: {error}") from None


def read(path: Path, blob_dir: Path, after: int = 0) -> Iterator[Event]:
    """Events with seq > `after`, payloads resolved, the whole chain checked. An unfinished last line is left out.

    Raises JournalDamaged naming the line, FileNotFoundError, blobs.BlobDamaged.
    """
    before = ZERO_HASH
    seq = 0
    lines, _ = ndjson.whole_lines(fs.read(path))
    for number, line in enumerate(lines, 1):
        try:
            event = wire.decode(line)
        except Malformed as error:
            foreign = isinstance(error, wire.Foreign)
            if foreign or any(_is_event(later) for later in lines[number:]):
                raise JournalDamaged(f"{path}:{number}: {error}") from None
            return  # a torn end that its writer has not mended yet
        if event.prev != before or event.seq != seq + 1:
            raise JournalDamaged(f"{path}:{number}: record {event.seq} does not follow record {seq}")
        before, seq = event.hash, event.seq
        if event.seq > after:
            yield resolve(event, blob_dir)


class Tail:
    """Following a journal that another process writes: each read() gives what is new. Checks each record's own hash."""

    def __init__(self, path: Path, blob_dir: Path) -> None:
        self._path, self._blobs = path, blob_dir
        self._offset = 0

    def read(self) -> list[Event]:
        """Events appended since the last call; none while there is no journal. Raises JournalDamaged."""
        try:
            fd = os.open(self._path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:
            return []
        try:
            size = os.fstat(fd).st_size
            data = os.pread(fd, max(0, size - self._offset), self._offset)
        finally:
            os.close(fd)
        lines, unfinished = ndjson.whole_lines(data)
        try:
            events = [resolve(wire.decode(line), self._blobs) for line in lines]
        except Malformed as error:
            raise JournalDamaged(f"{self._path}: behind byte {self._offset}: {error}") from None
        self._offset += len(data) - len(unfinished)
        return events


def resolve(event: Event, blob_dir: Path) -> Event:
    """The event with its payload fetched, when that was too large for a line."""
    digest = event.data.get(_BLOB)
    if not isinstance(digest, str):
        return event
    try:
        data = loads_object(blobs.get(blob_dir, digest), _BLOB_DEPTH)
    except FileNotFoundError:  # not to be taken for a journal that is not there
        raise blobs.BlobDamaged(f"the payload of record {event.seq}, blob {digest}, is missing") from None
    return Event(event.seq, event.ts, event.type, event.actor, event.cause, data, event.prev, event.hash)


def torn_bytes(path: Path, head: Path) -> int:
    """How many bytes opening the journal would cut off its end. Raises JournalDamaged where opening it would."""
    data = fs.read(path)
    lines, _ = ndjson.whole_lines(data)
    good = records = 0
    for number, line in enumerate(lines):
        try:
            wire.decode(line)
        except wire.Foreign:
            pass  # as it was written
        except Malformed as error:
            if any(_is_event(later) for later in lines[number + 1 :]):
                raise JournalDamaged(f"{path}:{number + 1}: {error}, and good records follow") from None
            break
        good += len(line) + 1
        records += 1
    _refuse_cut(path, head, records)
    return len(data) - good


def hole(path: Path, head: Path) -> int | None:
    """The line that holds zeros and has good records behind it, from 1, when a power cut may have left it; else None.

    It may where no noted head says that the line had been synced. Then nothing from there on had taken effect, since a
    sync behind it would have covered it too. It need not have been a power cut: nothing is cut off by itself.
    """
    lines, _ = ndjson.whole_lines(fs.read(path))
    number = next((n for n, line in enumerate(lines, 1) if not _is_event(line)), len(lines) + 1)
    if not any(_is_event(line) for line in lines[number:]) or b"\0" not in lines[number - 1]:
        return None
    noted = read_head(head)
    return number if noted is None or noted[0] < number else None


def read_head(path: Path) -> tuple[int, str] | None:
    """{seq, hash} as noted, or None."""
    try:
        raw = loads_object(fs.read(path, 4096))
        return int(raw["seq"]), str(raw["hash"])
    except (FileNotFoundError, fs.NotRegular, fs.TooLarge, KeyError, TypeError, ValueError):
        return None


def audit(path: Path, blob_dir: Path, head: Path) -> list[str]:
    """Check the whole chain and the noted head. Every fault as one line naming the place; empty when all is well."""
    hashes: dict[int, str] = {}
    try:
        for event in read(path, blob_dir):
            hashes[event.seq] = event.hash
        lines, _ = ndjson.whole_lines(fs.read(path))
    except (JournalDamaged, blobs.BlobDamaged, fs.NotRegular, ValueError) as error:
        return [str(error)]
    except FileNotFoundError as error:
        return [f"missing: {error.filename}"]
    noted = read_head(head)
    if noted is None and head.exists():
        return [f"{head}: cannot be read"]
    if noted is not None and hashes.get(noted[0]) != noted[1]:
        return [_cut(path, noted[0])]
    # A line without its newline may be half written this very moment; one with it that is no record is damage.
    if len(lines) > len(hashes) and not _is_event(lines[len(hashes)]):
        return [f"{path}:{len(hashes) + 1}: damaged or torn end: opening the journal cuts it off and keeps it"]
    return []
