"""Hearing of changes in directories: one raw inotify instance for any number of them (docs/protocol.md section 6).

A courtesy like all waking: events may be lost (OVERFLOW says so), an instance may not be had at all (OSError), and
whoever watches also looks by itself from time to time.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
import sys
from collections.abc import Hashable
from pathlib import Path

from loom.wire.record import record

MODIFIED = 0x2
CLOSED = 0x8  # closed after writing
MOVED_FROM = 0x40
MOVED_TO = 0x80
CREATED = 0x100
DELETED = 0x200
OVERFLOW = 0x4000
IGNORED = 0x8000  # the directory is gone
_ONLY_DIRECTORIES = 0x01000000
_NO_LINKS = 0x02000000

ARRIVALS = CREATED | MOVED_TO | CLOSED  # a name appeared: link, rename or mv, cp or a shell's redirection
REPLACED = MOVED_TO | CLOSED  # a file has new content: rename over it, or written in place

_EVENT = struct.Struct("iIII")


@record
class Event:
    """`name` in the directory added under `key`; key None and mask OVERFLOW: events were lost, look everywhere."""

    key: Hashable
    mask: int
    name: str


class Watch:
    """An inotify instance; `fd` becomes readable when there is something to read()."""

    def __init__(self) -> None:
        if sys.platform != "linux":
            raise OSError(errno.ENOSYS, "inotify is Linux only")
        self._libc = ctypes.CDLL(None, use_errno=True)
        self.fd = self._call(self._libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC), "inotify_init1")
        self._keys: dict[int, Hashable] = {}

    def add(self, directory: Path, mask: int, key: Hashable) -> int:
        """Watch a directory, reporting under `key`; the number returned is for remove(). Raises OSError."""
        flags = mask | _ONLY_DIRECTORIES | _NO_LINKS
        number = self._libc.inotify_add_watch(self.fd, os.fsencode(directory), ctypes.c_uint32(flags))
        self._keys[self._call(number, str(directory))] = key
        return int(number)

    def remove(self, number: int) -> None:
        self._keys.pop(number, None)
        self._libc.inotify_rm_watch(self.fd, number)

    def read(self) -> list[Event]:
        """All that happened since the last time; empty when nothing did."""
        events: list[Event] = []
        while True:
            try:
                data = os.read(self.fd, 1 << 16)
            except BlockingIOError:
                return events
            events.extend(self._decode(data))

    def _decode(self, data: bytes) -> list[Event]:
        events = []
        offset = 0
        while offset < len(data):
            number, mask, _, length = _EVENT.unpack_from(data, offset)
            offset += _EVENT.size
            name = os.fsdecode(data[offset : offset + length].rstrip(b"\0"))
            offset += length
            key = self._keys.pop(number, None) if mask & IGNORED else self._keys.get(number)
            if key is not None or mask & OVERFLOW:
                events.append(Event(key, mask, name))
        return events

    def close(self) -> None:
        os.close(self.fd)

    @staticmethod
    def _call(result: int, what: str) -> int:
        if result < 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code), what)
        return result


class BestEffort:
    """A Watch for who also looks by itself: where there is none, or no more can be watched, nothing is raised.

    complete   False when not everything asked for is watched; `why` says what went wrong and what would help
    absent     errors that mean that a directory is not there, or not to be watched: nothing is missing then
    """

    def __init__(self, absent: tuple[type[OSError], ...] = (FileNotFoundError, NotADirectoryError)) -> None:
        self._absent = absent
        self._watch: Watch | None = None
        self.complete = True
        self.why = ""
        try:
            self._watch = Watch()
        except OSError as error:
            self._give_up(error)

    @property
    def fds(self) -> list[int]:
        """What becomes readable when there is something to read()."""
        return [] if self._watch is None else [self._watch.fd]

    def add(self, directory: Path, mask: int, key: Hashable) -> int | None:
        """The number of the watch, the same one for the same directory; None when it is not watched."""
        if self._watch is None:
            return None
        try:
            return self._watch.add(directory, mask, key)
        except self._absent:
            return None
        except OSError as error:
            self._give_up(error)
            return None

    def remove(self, number: int) -> None:
        if self._watch is not None:
            self._watch.remove(number)

    def read(self) -> list[Event]:
        return [] if self._watch is None else self._watch.read()

    def close(self) -> None:
        """From now on nothing is heard."""
        if self._watch is not None:
            self._watch.close()
        self._watch = None
        self.complete = False

    def _give_up(self, error: OSError) -> None:
        self.complete = False
        self.why = f"{error.strerror or error}: raise fs.inotify.max_user_instances and fs.inotify.max_user_watches"
