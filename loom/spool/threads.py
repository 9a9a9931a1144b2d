"""Conversations: `conversations/<thread>.ndjson`, two lines a message, keyed by its name (docs/protocol.md section 4).

Whoever reads a history in order to answer holds the thread's lock until the answer is appended, so that turns of
one conversation follow one another.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from loom.spool import fs, locks, ndjson
from loom.spool.layout import AgentDir
from loom.wire.errors import Config
from loom.wire.message import Message

LAST_LINES = 256  # no turn takes up more: what a message costs must not grow with all that was said before it
_MAX_TEXT_BYTES = ndjson.MAX_LINE_BYTES - 1024


class Thread:
    """One conversation, held. `history` is the newest part of what was said, oldest first: some hundred lines."""

    def __init__(self, path: Path, lock: locks.Lock) -> None:
        self._lock = lock
        self._file = ndjson.Appender(path, LAST_LINES)
        try:
            self._file.settle_name()
        except BaseException:
            self._file.close()
            raise
        self.history = self._file.records

    def append(self, stem: str, said: list[tuple[str, str]]) -> None:
        """Add (role, text) lines under a message's name, unless they stand there already; durable afterwards.

        A text longer than a line holds is cut with a mark: the message itself lies whole in the mailbox.
        """
        known = {(r.get("name"), r.get("role")) for r in self.history[-50:]}
        for role, text in said:
            if (stem, role) not in known:
                record: dict[str, Any] = {"name": stem, "role": role, "text": _cut(text)}
                self._file.append(record)
                self.history.append(record)
        self._file.sync()

    def close(self) -> None:
        self._file.close()
        self._lock.release()


def _cut(text: str) -> str:
    # Escapes can make a character up to six bytes long on the line.
    if len(text) * 6 < _MAX_TEXT_BYTES or len(text.encode()) * 2 < _MAX_TEXT_BYTES:
        return text
    return text[: _MAX_TEXT_BYTES // 6] + " […]"


def name_of(message: Message) -> str:
    """The conversation a message belongs to: its own, `main` without one, none for typed orders."""
    return "" if message.kind else message.thread or "main"


def hold(agent: AgentDir, thread: str) -> Thread | None:
    """Open a conversation for one turn, or None when another process is in the middle of one.

    Raises Config when the file is damaged in its middle: what was said there is for a person to decide.
    """
    path = agent.conversation(thread)
    fs.ensure_dir(path.parent)
    lock = locks.acquire(path.with_suffix(".lock"))
    if lock is None:
        return None
    try:
        return Thread(path, lock)
    except ndjson.Damaged as error:
        lock.release()
        raise Config(f"a conversation is damaged: {error}", hint="mend that line or move the file away") from None
    except BaseException:
        lock.release()
        raise
