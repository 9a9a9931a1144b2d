"""Logs for reading: `logs/YYYY-MM-DD.ndjson`, one object a line, whole lines at once (docs/protocol.md section 8).

Logs decide nothing and are not synced. Many processes may append to one file: O_APPEND keeps lines whole.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from loom.spool import fs, ndjson
from loom.wire.jsontext import dumps
from loom.wire.times import day_of, rfc3339

LEVELS = ("debug", "info", "warning", "error")
_CUT = 2000  # characters of a field that is too long for its line


class Log:
    """An NDJSON log directory; a new file each UTC day. `quiet` fields go to every record (agent, filter, goal)."""

    def __init__(self, directory: Path, level: str = "info", **fields: Any) -> None:
        self._directory = directory
        self._least = LEVELS.index(level) if level in LEVELS else 1
        self._fields = fields
        self._day = ""
        self._fd = -1

    def info(self, event: str, **fields: Any) -> None:
        self.write("info", event, fields)

    def warning(self, event: str, **fields: Any) -> None:
        self.write("warning", event, fields)

    def error(self, event: str, **fields: Any) -> None:
        self.write("error", event, fields)

    def debug(self, event: str, **fields: Any) -> None:
        self.write("debug", event, fields)

    def write(self, level: str, event: str, *records: Mapping[str, Any]) -> None:
        """A line for each record, all with one write. A disk that refuses them does not stop the work they tell of."""
        if not records or LEVELS.index(level) < self._least:
            return
        now_us = time.time_ns() // 1000
        same = {"ts": rfc3339(now_us), "level": level, "event": event, **self._fields}
        lines = b"".join([_line({**same, **fields}) for fields in records])
        try:
            fd = self._file(day_of(now_us // 1000))
            fs.append(fd, lines if _ends_whole(fd) else b"\n" + lines)
        except OSError:
            self.close()

    def _file(self, day: str) -> int:
        if day != self._day or self._fd < 0:
            self.close()
            self._fd = fs.open_append(self._directory / f"{day}.ndjson")
            self._day = day
        return self._fd

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def _line(record: dict[str, Any]) -> bytes:
    try:
        line = dumps(record) + b"\n"
    except (TypeError, ValueError):  # a file name that is no UTF-8, an object: told as far as it can be
        record = {k: str(v).encode("ascii", "backslashreplace").decode() for k, v in record.items()}
        line = dumps(record) + b"\n"
    if len(line) > ndjson.MAX_LINE_BYTES:
        cut = {k: v[:_CUT] + "…" if isinstance(v, str) and len(v) > _CUT else v for k, v in record.items()}
        line = dumps(cut) + b"\n"
        if len(line) > ndjson.MAX_LINE_BYTES:
            line = dumps({k: record[k] for k in ("ts", "level", "event")} | {"cut": True}) + b"\n"
    return line


def _ends_whole(fd: int) -> bool:
    """False after half a line, of ours or of a process that was killed: the next one must not be glued to it."""
    size = os.fstat(fd).st_size
    return not size or os.pread(fd, 1, size - 1) == b"\n"
