"""The mailbox alone, as a program: what `peers/sqlite_queue.py` is, on loom's files.

    mailbox_program.py DIR work N [BATCH] [NAME]     take N requests, answer and acknowledge each
    mailbox_program.py DIR ask N [BATCH] [NAME]      deliver N requests, BATCH in flight, and wait for their answers

Prints "ready", waits for a line, then prints seconds. Polls as often as its peer does.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from loom.spool import fs, mailbox
from loom.spool.layout import Box
from loom.wire import ids, message
from loom.wire.message import Message

BODY = "x" * 1024
PAUSE_S = 0.0002
NOW_MS = 1_790_000_000_000
PATIENCE_S = 120.0


def work(box: Box, name: str, count: int, batch: int) -> None:
    inbox = mailbox.Inbox(box)
    done = 0
    while done < count:
        claimed = inbox.claim()
        if claimed is None:
            time.sleep(PAUSE_S)
            continue
        group = [claimed]
        while len(group) < batch and (more := inbox.claim()) is not None:
            group.append(more)
        replies = [message.reply_to(c.message, c.stem, name, 0, BODY, NOW_MS) for c in group]
        if len(group) == 1:
            mailbox.answer(box, *replies[0])
        else:
            fs.publish_all((box.outbox / f"{stem}.msg", message.encode(reply)) for stem, reply in replies)
        for c in group:
            mailbox.acknowledge(box, c.stem)
        done += len(group)


def ask(box: Box, name: str, count: int, batch: int) -> None:
    done = 0
    while done < count:
        now = time.time_ns() // 1_000_000
        stems = [ids.message_stem(now, os.urandom(10)) for _ in range(batch)]
        mail = [(stem, message.encode(Message(ids.ulid_of(stem), "bench", now, BODY))) for stem in stems]
        if batch == 1:
            mailbox.deliver(box, *mail[0])
        else:
            mailbox.deliver_all(box, mail)
        for stem in stems:
            path = box.outbox / f"{ids.reply_stem(name, stem)}.msg"
            until = time.monotonic() + PATIENCE_S
            while not path.exists():
                if time.monotonic() > until:
                    raise TimeoutError(f"no answer to {stem}")
                time.sleep(PAUSE_S)
        done += batch


def main() -> None:
    place, role, count = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    batch = int(sys.argv[4]) if len(sys.argv) > 4 else 1
    name = sys.argv[5] if len(sys.argv) > 5 else "worker"
    box = Box(place / name)
    mailbox.create(box)
    print("ready", flush=True)
    sys.stdin.readline()
    began = time.perf_counter()
    (work if role == "work" else ask)(box, name, count, batch)
    print(time.perf_counter() - began, flush=True)


if __name__ == "__main__":
    main()
