"""A client process that may be killed at any time: `soak_sender.py HOME BOOK SEED COUNT FIRST_MS WAITING AGENT…`.

Message i of this sender has always the same name, agent and bytes. A name is written into the book only when the
delivery has returned; a new process goes on behind the last name in it, and sends once more what its predecessor had
sent and not booked. It holds back while WAITING messages wait, so that it lives as long as the others.
"""

from __future__ import annotations

import os
import random
import select
import sys
from hashlib import sha256
from pathlib import Path

from loom.spool import agents, mailbox, wake
from loom.spool.layout import Home
from loom.wire import ids
from loom.wire.message import Message, encode

SENDER = "soak"
THREAD_LENGTH = 20  # messages of one conversation


def letter(seed: str, number: int, first_ms: int, names: list[str]) -> tuple[str, str, bytes]:
    """(agent, name, bytes) of a sender's message."""
    draw = sha256(f"{seed} {number}".encode()).digest()
    stem = ids.message_stem(first_ms + number, draw[:10])
    agent = names[draw[10] % len(names)]
    body = f"{seed} {number}"
    thread = f"{seed}-{number // THREAD_LENGTH}"
    return agent, stem, encode(Message(ids.ulid_of(stem), SENDER, first_ms + number, body, thread=thread))


def main(home: Home, book: Path, seed: str, count: int, first_ms: int, most: int, names: list[str]) -> None:
    draw = random.Random(f"{seed} {os.getpid()}")
    fd = os.open(book, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600)
    booked = book.read_bytes()
    at = booked.count(b"\n")
    os.ftruncate(fd, booked.rfind(b"\n") + 1)  # a line that was torn by a kill was not booked
    while at < count:
        size = min(draw.choice((1, 1, 2, 8, 64)), most, count - at)
        batch: dict[str, list[tuple[str, bytes]]] = {}
        for number in range(at, at + size):
            agent, stem, data = letter(seed, number, first_ms, names)
            batch.setdefault(agent, []).append((stem, data))
        for agent, mail in batch.items():
            if len(mail) == 1:
                mailbox.deliver(home.agent(agent), *mail[0])
            else:
                mailbox.deliver_all(home.agent(agent), mail)
        stems = [letter(seed, number, first_ms, names)[:2] for number in range(at, at + size)]
        os.write(fd, "".join(f"{agent} {stem}\n" for agent, stem in stems).encode())
        at += size
        for agent in batch:
            wake.ring_agent(home.wake, agent)
            while agents.waiting(home.agent(agent)) > most:
                select.select([], [], [], 0.02)


if __name__ == "__main__":
    place, its_book, its_seed, number_of, first, most_waiting, *its_agents = sys.argv[1:]
    main(Home(Path(place)), Path(its_book), its_seed, int(number_of), int(first), int(most_waiting), its_agents)
