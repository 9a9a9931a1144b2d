"""The files of a pipe's instance: its state journal and its intermediate results (docs/weave.md, ADR-0023).

    pipes/<instance>/state/journal.ndjson      what each operator did with each item; the first line is the chain
    pipes/<instance>/state/tap/<label>/*.msg   what taps have copied
    pipes/<instance>/steps/<n>/*.msg           items before operator n, as message files; those before the first are
                                               written only when they are held

An item's file is durable before a record names it. The journal is one of an operator's memory, so it is replaced by
its fold when it has grown long; what the records mean is decided in loom/core/pipes.py.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from loom.spool import fs, ndjson
from loom.spool.layout import AgentDir
from loom.wire import message as wire
from loom.wire.jsontext import dumps
from loom.wire.message import Message

LONG = 4_000  # records after which the journal is written anew


class PipeState:
    """The journal of one instance, opened by the process that holds its lock. `records` are those it held."""

    def __init__(self, instance: AgentDir) -> None:
        self._steps, self._state = instance.pipe_steps, instance.pipe_state
        self._path = self._state / "journal.ndjson"
        fs.ensure_dir(self._state)
        self._file = ndjson.Appender(self._path)
        self.records = self._file.records
        self._count = len(self.records)
        if self.records:
            self._file.sync()  # who wrote them may have died before: what is built on them must not outlive them

    @property
    def is_long(self) -> bool:
        return self._count > LONG

    def append(self, record: dict[str, Any], *, sync: bool = True) -> None:
        """Add a record; durable when this returns, unless nothing is built on it."""
        self._file.append(record)
        self._count += 1
        if sync:
            self._file.sync()

    def rewrite(self, records: Iterable[dict[str, Any]]) -> None:
        """Put these records in place of all. A crash leaves the old ones or the new ones."""
        lines = [dumps(record) + b"\n" for record in records]
        self._file.close()
        fs.replace(self._path, b"".join(lines))
        self._file = ndjson.Appender(self._path)
        self._file.records = []
        self._count = len(lines)

    def close(self) -> None:
        self._file.close()

    # -- items ---------------------------------------------------------------------------------------------------

    def put(self, place: int, name: str, message: Message) -> None:
        """Write an item's file, durably. One that a crash left without a record is replaced."""
        self._put(self._steps / str(place) / f"{name}.msg", message)

    def tap(self, label: str, name: str, message: Message) -> None:
        self._put(self._state / "tap" / label / f"{name}.msg", message)

    def _put(self, path: Path, message: Message) -> None:
        if not path.parent.is_dir():
            fs.ensure_dir(path.parent)
        fs.replace(path, wire.encode(message))

    def get(self, place: int, name: str) -> Message:
        """An item's message. Raises FileNotFoundError and Unreadable."""
        return wire.decode(fs.read(self._steps / str(place) / f"{name}.msg", wire.MAX_BYTES), name)

    def has(self, place: int, name: str) -> bool:
        return (self._steps / str(place) / f"{name}.msg").exists()
