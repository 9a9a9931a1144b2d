"""How often the disk is made to wait for one durable message, counted by strace from outside.

Two runs of the same program with a different number of messages; their difference is what a message costs, and what
a start or a new day costs falls out. What is counted is exact: one sync more or less is noticed.
"""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import results
from soak_cases import LOOM, environment
from soak_strace import SYNCS, need_strace, run
from support import ROOT

from loom.spool import agents, mailbox
from loom.spool.home import open_home
from loom.spool.layout import Home
from loom.wire import ids
from loom.wire.agent import AgentSpec
from loom.wire.message import Message, encode

FEW, MANY = 2, 6
# A runner that does nothing but what every runner must: claim, look, answer, acknowledge.
MAILBOX = """
import sys
from pathlib import Path
from loom.spool import locks, mailbox
from loom.spool.layout import AgentDir
from loom.wire import message
box = AgentDir(Path(sys.argv[1]))
with locks.acquire(box.lock):
    inbox = mailbox.Inbox(box)
    while (claimed := inbox.claim()) is not None:
        assert mailbox.look(box, box.name, claimed.stem, 0) == ("work", None)
        stem, reply = message.reply_to(claimed.message, claimed.stem, box.name, 0, "done", 1)
        assert mailbox.answer(box, stem, reply)
        mailbox.acknowledge(box, claimed.stem)
"""


def _stem(number: int) -> str:
    return f"{1790000000000 + number}-{number:026d}"


def _deliver(home: Home, count: int, **fields: str) -> None:
    for number in range(count):
        stem = _stem(number)
        mailbox.deliver(home.agent("a"), stem, encode(Message(ids.ulid_of(stem), "user", 1, "hello", **fields)))  # type: ignore[arg-type]


def _syncs(place: Path, command: Callable[[Home], Sequence[str]], count: int, **fields: str) -> Counter[str]:
    """Syncs by what was synced, of one program that finds `count` messages in the inbox of `a`."""
    home = open_home(place / f"home-{count}")
    agents.create(home, AgentSpec("a", "builtin/echo"), "", "down")
    _deliver(home, count, **fields)
    ended = run(command(home), environment(home), place / "log", trace=SYNCS)
    assert ended.status == 0, ended.err
    assert not agents.has_mail(home.agent("a"))
    return Counter(_what(call.text, home) for call in ended.calls)


def _each(place: Path, command: Callable[[Home], Sequence[str]], **fields: str) -> dict[str, float]:
    """Syncs of one message, by what was synced."""
    place.mkdir()
    few, many = _syncs(place, command, FEW, **fields), _syncs(place, command, MANY, **fields)
    return {what: (many[what] - few[what]) / (MANY - FEW) for what in many if many[what] != few[what]}


def _what(call: str, home: Home) -> str:
    """`fsync outbox/.tmp/FILE` from a line of strace."""
    match = re.match(r"(\w+)\(\d+<([^>]*)>", call)
    assert match is not None, call
    path = match.group(2).removeprefix(f"{home.path}/agents/a/")
    path = re.sub(r"\.tmp/[0-9a-f]{20}", ".tmp/FILE", path)
    return f"{match.group(1)} {re.sub(r'[0-9]{13}-[0-9A-Z]{26}', 'NAME', path)}"


def _sent(place: Path) -> dict[str, float]:
    """Syncs of one `loom send` to an agent that is there."""
    home = open_home(place / "home")
    agents.create(home, AgentSpec("a", "builtin/echo"), "", "down")
    ended = run((*LOOM, "send", "a", "hello"), environment(home), place / "log", trace=SYNCS)
    assert ended.status == 0, ended.err
    return {what: float(count) for what, count in Counter(_what(c.text, home) for c in ended.calls).items()}


def test_syncs_of_one_durable_message(tmp_path: Path):
    need_strace(SYNCS)
    (tmp_path / "send").mkdir()
    agent = str(ROOT / "runners" / "agent")
    send = _sent(tmp_path / "send")
    bare = _each(tmp_path / "bare", lambda home: (sys.executable, "-c", MAILBOX, str(home.agent("a").path)))
    turn = _each(
        tmp_path / "turn", lambda h: (sys.executable, agent, str(h.agent("a").path), "--drain"), kind="question"
    )
    talk = _each(tmp_path / "talk", lambda h: (sys.executable, agent, str(h.agent("a").path), "--drain"))
    for title, found in (("send", send), ("mailbox", bare), ("one-call turn", turn), ("in a conversation", talk)):
        print(f"{title}: {sum(found.values()):g}")
        for what, count in sorted(found.items()):
            print(f"    {count:g} {what}")
    asked = {"fsync inbox/.tmp/FILE": 1, "fsync inbox": 1}
    answered = {"fsync outbox/.tmp/FILE": 1, "fsync outbox": 1}
    said = {"fdatasync conversations/main.ndjson": 1}
    assert send == asked
    assert bare == answered
    assert turn == answered  # the answer is durable once it is published; the turn's last reply needs no sync
    assert talk == answered | said
    results.note(
        "syncs of a message",
        "none",
        mailbox_alone=int(sum(send.values()) + sum(bare.values())),
        with_a_turn_of_one_call=int(sum(send.values()) + sum(turn.values())),
        in_a_conversation=int(sum(send.values()) + sum(talk.values())),
    )
