"""What claim, acknowledgement and recovery cost when 1,000 and when 1,000,000 messages have been processed."""

from __future__ import annotations

import os
import time
from pathlib import Path

from measure import Row, Table, say
from world import disk_of, scratch

from loom.spool import mailbox
from loom.spool.layout import Box
from loom.wire import ids, message
from loom.wire.message import Message

NAME = "g"


def run(quick: bool) -> Table:
    sizes = (1_000, 100_000 if quick else 1_000_000)
    table = Table(
        "growth", "one process; microseconds by message; all old ones in one day's directory, the worst there is"
    )
    with scratch(on_disk=True) as place:
        table.notes.append(f"disk: {disk_of(place)}")
        for size in sizes:
            say(f"growth: making {size} old messages")
            box = Box(place / str(size))
            mailbox.create(box)
            _make_old(box, size)
            for what, samples in _measured(box, 100 if quick else 400).items():
                table.rows.append(Row(f"{what}, {size:,} old", samples, unit="µs"))
    small, large = (f"{size:,} old" for size in sizes)
    for what in ("claim", "acknowledge", "recover"):
        table.at_most(f"{what}: {large} / {small}", f"{what}, {large}", f"{what}, {small}", 1.3)
    return table


def _letter(number: int) -> tuple[str, bytes]:
    now = 1_790_000_000_000 + number
    stem = ids.message_stem(now, number.to_bytes(10, "big"))
    return stem, message.encode(Message(ids.ulid_of(stem), "bench", now, f"message {number}"))


def _make_old(box: Box, count: int) -> None:
    """Processed requests and sent replies under their names. Empty: nothing reads them."""
    for number in range(count):
        stem = ids.message_stem(1_790_000_000_000 + number % 80_000_000, (10**9 + number).to_bytes(10, "big"))
        for path in (box.processed(stem), box.sent(stem)):
            if number == 0:
                path.parent.mkdir(parents=True, exist_ok=True)
            os.close(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600))


def _measured(box: Box, count: int) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {"claim": [], "acknowledge": [], "recover": []}
    for number in range(count):
        mailbox.deliver(box, *_letter(number))
        inbox = mailbox.Inbox(box)
        began = time.perf_counter()
        claimed = inbox.claim()
        found["claim"].append((time.perf_counter() - began) * 1e6)
        assert claimed is not None
        mailbox.answer(box, *message.reply_to(claimed.message, claimed.stem, NAME, 0, "done", 1))
        began = time.perf_counter()
        for name in mailbox.in_progress(box):
            taken = mailbox.take(box, name)
            assert isinstance(taken, mailbox.Claimed)
            mailbox.look(box, NAME, taken.stem, mailbox.attempts(box, taken.stem))
        found["recover"].append((time.perf_counter() - began) * 1e6)
        began = time.perf_counter()
        mailbox.acknowledge(box, claimed.stem)
        found["acknowledge"].append((time.perf_counter() - began) * 1e6)
        Path(box.outbox / f"{ids.reply_stem(NAME, claimed.stem)}.msg").unlink()
    return found
