"""What is known of a runner that ended badly: `crashes/<ts>-<ulid>.json`, and where its details are found.

Written whole and synced, the newest hundred kept. For people and for `agent show`; supervision keeps its counts
in memory and reads none of this (docs/protocol.md section 7).
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from loom.spool import fs, ndjson
from loom.spool.layout import AgentDir
from loom.wire import ids
from loom.wire.jsontext import Malformed, dumps, loads_object
from loom.wire.times import day_of

KEEP = 100
_SUFFIX = ".json"
_TAIL_BYTES = 4096
_LOG_TAIL_BYTES = 64 << 10


def write(agent: AgentDir, now_ms: int, record: dict[str, Any]) -> Path:
    """Keep one record and drop the oldest over KEEP."""
    fs.ensure_dir(agent.crashes)
    path = agent.crashes / f"{ids.message_stem(now_ms, os.urandom(10))}{_SUFFIX}"
    fs.replace(path, dumps(record) + b"\n")
    for name in names(agent)[:-KEEP]:
        fs.remove(agent.crashes / name)
    return path


def names(agent: AgentDir) -> list[str]:
    """File names of all records, oldest first."""
    try:
        return sorted(n for n in os.listdir(agent.crashes) if n.endswith(_SUFFIX) and not n.startswith("."))
    except FileNotFoundError:
        return []


def newest(agent: AgentDir) -> dict[str, Any] | None:
    """The last record, or None."""
    for name in reversed(names(agent)):
        try:
            return loads_object(fs.read(agent.crashes / name, 1 << 20))
        except (FileNotFoundError, Malformed, fs.NotRegular, fs.TooLarge):
            continue
    return None


def stderr_size(agent: AgentDir) -> int:
    """Where the next incarnation's part of stderr.log begins."""
    try:
        return agent.stderr.stat().st_size
    except FileNotFoundError:
        return 0


def stderr_tail(agent: AgentDir, begin: int) -> str:
    """The last 4 KiB of stderr.log written since it was `begin` bytes long."""
    data = _tail(agent.stderr, _TAIL_BYTES, begin)
    return data.decode("utf-8", "replace")


def last_error(agent: AgentDir, since: str, now_ms: int) -> tuple[str, str]:
    """(error_type, error) of the last error that the runner itself logged since the time `since` (RFC 3339)."""
    lines, _ = ndjson.whole_lines(_tail(agent.log_of(day_of(now_ms)), _LOG_TAIL_BYTES, 0))
    for line in reversed(lines):
        try:
            record = loads_object(line)
        except Malformed:
            continue
        if str(record.get("ts", "")) < since:
            break
        if record.get("level") == "error" and isinstance(record.get("error_type"), str):
            return record["error_type"], str(record.get("error") or record.get("last_error") or "")
    return "", ""


def _tail(path: Path, limit: int, begin: int) -> bytes:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return b""
    try:
        size = os.fstat(fd).st_size
        start = max(begin if begin <= size else 0, size - limit)  # shorter than at the start: it was rotated
        return os.pread(fd, limit, start)
    except OSError:
        return b""
    finally:
        os.close(fd)
