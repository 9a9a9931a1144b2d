"""`archive/YYYY-MM-DD.ndjson.gz`: what gc put away, by the day in the messages' names (docs/protocol.md section 10).

    {"agent":A,"state":"processed"|"sent"|"turn"|"error","file":"inbox/.processed/…","text":"…"}

`file` is where it lay, below the agent's directory. A file over a mebibyte stands on several lines: each but the last
has "more":true. Bytes that are not UTF-8 are in "base64" instead of "text". A day's file is only ever replaced whole,
by one that begins with the bytes of the old one. A line may stand twice, when gc was killed before it had taken away
what it had archived; the two are alike.
"""

from __future__ import annotations

import gzip
import os
import time
import zlib
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

from loom.spool import fs
from loom.wire import ids
from loom.wire.jsontext import dumps, loads_object


class Member:
    """What is written is packed, as one member of a gzip file; several behind one another are one such file."""

    def __init__(self, file: fs.NewFile) -> None:
        self._file = file
        self._packing = zlib.compressobj(6, zlib.DEFLATED, 31)  # 31: with the head and the sum of gzip

    def write(self, data: bytes) -> None:
        self._file.write(self._packing.compress(data))

    def end(self) -> None:
        self._file.write(self._packing.flush())


class Damaged(Exception):
    """An archive that no reader of gzip gets to the end of."""


class _Reading:
    """Follows a gzip file of any number of members, piece by piece, in bounded memory. Raises Damaged."""

    def __init__(self) -> None:
        self._member = zlib.decompressobj(31)
        self._begun = False

    def feed(self, piece: bytes) -> None:
        try:
            while piece:
                self._begun = True
                self._member.decompress(piece, 1 << 20)
                piece = self._member.unconsumed_tail
                if self._member.eof:
                    piece = self._member.unused_data
                    self._member, self._begun = zlib.decompressobj(31), False
        except zlib.error as error:
            raise Damaged(str(error)) from None

    def end(self) -> None:
        if self._begun:
            raise Damaged("it ends in the middle")


def check(path: Path) -> None:
    """Read an archive to its end. Raises Damaged, FileNotFoundError, fs.NotRegular."""
    reading = _Reading()
    for piece in fs.pieces(path):
        reading.feed(piece)
    reading.end()


class Addition:
    """Files that are being added to one day. Nothing happens before keep(); a context manager.

    A day's file that cannot be read to its end would hide what stands behind the damage: it is set aside, as
    NAME.damaged.ULID, and a new one begun.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.count = 0
        self._new = fs.NewFile(path)
        self._old_bytes = 0
        try:
            self._copy_old()
        except (Damaged, fs.NotRegular):
            self._new.__exit__(None, None, None)
            unique = ids.encode_ulid(time.time_ns() // 1_000_000, os.urandom(10))
            fs.move(path, path.with_name(f"{path.name}.damaged.{unique}"))
            self._new = fs.NewFile(path)
            self._old_bytes = 0
        except BaseException:
            self._new.__exit__(None, None, None)
            raise
        self._member = Member(self._new)

    def _copy_old(self) -> None:
        reading = _Reading()
        try:
            for piece in fs.pieces(self.path):
                reading.feed(piece)
                self._old_bytes += self._new.write(piece)
        except FileNotFoundError:
            return
        reading.end()

    def add(self, agent: str, state: str, below: str, path: Path) -> None:
        """One file. Raises FileNotFoundError when it is gone; then nothing was added."""
        pieces = fs.pieces(path)
        piece = next(pieces, b"")
        while True:
            following = next(pieces, None)
            line: dict[str, Any] = {"agent": agent, "state": state, "file": below}
            try:
                line["text"] = piece.decode("utf-8")
            except UnicodeDecodeError:
                line["base64"] = b64encode(piece).decode("ascii")
            if following is not None:
                line["more"] = True
            self._member.write(dumps(line) + b"\n")
            if following is None:
                break
            piece = following
        self.count += 1

    def keep(self) -> None:
        """Durable when this returns: the day's file holds what was added."""
        self._member.end()
        self._new.keep()

    def added(self) -> Iterator[tuple[str, str, str]]:
        """(agent, state, file) of everything that was added, read back from the archive: only that may go."""
        with self.path.open("rb") as file:
            file.seek(self._old_bytes)
            with gzip.GzipFile(fileobj=file) as lines:
                for line in lines:
                    record = loads_object(line[:-1])
                    if not record.get("more"):
                        yield record["agent"], record["state"], record["file"]

    def __enter__(self) -> Addition:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._new.__exit__(kind, error, tb)
