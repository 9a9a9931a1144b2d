"""gc killed, torn and failed at every change it makes, and met there by the agents whose mail it looks at.

Its clock says that everything is old, so only the conditions protect what may not go: a reply that its target has not
read, one whose request came back after a power cut, a message whose name came back into an outbox, what has failed.
"""

from __future__ import annotations

import contextlib
import gzip
from collections import Counter
from pathlib import Path

from crash_cases import AGENT, Worker, agent_with, letter, note, noted, tidy
from harness import Case

from loom.spool import blobs, fs, locks, mailbox, retention
from loom.spool.layout import AgentDir, Home
from loom.wire import ids
from loom.wire.errors import TryLater
from loom.wire.jsontext import loads_object

FAR_S = 4_000_000_000.0  # everything is old
DONE, UNROUTED, UNREAD, CAME_BACK, FAILED, RESENT = range(1, 7)
BODIES = {
    DONE: "use a tool, huge",
    UNROUTED: "two",
    UNREAD: "three",
    CAME_BACK: "use a tool",
    FAILED: "fails once",
    RESENT: "six",
}
MAIL = {number: letter(number, body) for number, body in BODIES.items()}
REPLY = {number: ids.reply_stem(AGENT, name) for number, (name, _) in MAIL.items()}


def sender(root: Path) -> AgentDir:
    return Home(root).agent(AGENT)


def target(root: Path) -> AgentDir:
    return Home(root).agent("target")


def route(root: Path, *but_not: str) -> None:
    """What the router does with the worker's outbox."""
    held = locks.acquire(root / "router.lock")
    if held is None:
        return
    with held:
        box = sender(root)
        for name in mailbox.outgoing(box):
            if name[:-4] not in but_not:
                with contextlib.suppress(FileNotFoundError):
                    mailbox.deliver(target(root), name[:-4], mailbox.read_message(box.outbox / name))
                    mailbox.mark_sent(box, name[:-4])


def read(root: Path) -> None:
    """What the target does with its mail, after a look: what comes once more behind its back it reads twice."""
    box = target(root)
    held = locks.acquire(box.lock)
    if held is None:
        return
    with held:
        for name in mailbox.in_progress(box):
            if {"stem": name[:-4]} not in noted(root, "received"):  # killed before or after it was noted
                note(root, "received", {"stem": name[:-4]})
            mailbox.acknowledge(box, name[:-4])
        inbox = mailbox.Inbox(box)
        while (claimed := inbox.claim()) is not None:
            if mailbox.look(box, box.name, claimed.stem, 0)[0] == "work":
                note(root, "received", {"stem": claimed.stem})
            mailbox.acknowledge(box, claimed.stem)


def setup(root: Path) -> None:
    agent_with(*MAIL.values())(root)
    mailbox.create(target(root))
    Worker().run(root)
    box = sender(root)
    route(root, REPLY[UNROUTED], REPLY[UNREAD])
    read(root)
    route(root, REPLY[UNROUTED])
    came_back = f"{MAIL[CAME_BACK][0]}.msg"
    fs.move(box.processed(came_back[:-4]), box.in_progress / came_back)
    fs.move(box.sent(REPLY[RESENT]), box.outbox / f"{REPLY[RESENT]}.msg")
    for name in (".tmp/litter", "agents/worker/inbox/.tmp/litter", "agents/worker/logs/2026-01-01.ndjson"):
        fs.ensure_dir((root / name).parent)
        (root / name).write_bytes(b'{"half":true}\n')
    blobs.put(root / "blobs", b"nobody's")
    for path in [*root.rglob("*.msg"), *(root / "agents").rglob("turns/*.ndjson")]:
        text = path.read_bytes().decode()[::-1]  # backwards: or this book, too, would keep the blobs it names
        note(root, "kept", {"file": path.name, "backwards": text})


def gc(root: Path) -> None:
    with contextlib.suppress(TryLater):
        retention.collect(Home(root), now_s=FAR_S)


def everybody(root: Path) -> None:
    """All that go on working while gc is at work."""
    Worker().run(root)
    route(root)
    read(root)


def recover(root: Path) -> None:
    everybody(root)
    gc(root)
    everybody(root)
    gc(root)


def archived(root: Path) -> list[tuple[str, str]]:
    """(file, bytes) of every line of every archive; a torn one is an error."""
    found = []
    for path in (root / "archive").glob("*.gz"):
        for line in gzip.decompress(path.read_bytes()).splitlines():
            record = loads_object(line)
            assert not record.get("more")
            found.append((Path(record["file"]).name, record["text"]))
    return found


def nothing_lost(root: Path) -> None:
    """True at every moment: what was there lies in a mailbox, or can be read in the archive."""
    tidy(root)
    there = {(p.name, p.read_bytes().decode()) for p in (root / "agents").rglob("*") if p.is_file()}
    there |= set(archived(root))
    for kept in noted(root, "kept"):
        name, text = kept["file"], kept["backwards"][::-1]
        assert (name, text) in there or any(n == name and t.startswith(text) for n, t in there), f"lost: {name}"


def once_and_no_more(root: Path) -> None:
    nothing_lost(root)
    asked = Counter((a["stem"], a["attempt"], a["step"]) for a in noted(root, "asked"))
    assert set(asked.values()) == {1}, f"asked twice: {asked}"
    assert all(count == 1 for count in Counter(e["id"] for e in noted(root, "effects")).values())
    received = Counter(r["stem"] for r in noted(root, "received"))
    assert received == dict.fromkeys(REPLY.values(), 1), f"received: {received}"
    left = {p.name for p in (root / "agents").rglob("*.msg")}
    assert left == {f"{MAIL[FAILED][0]}.msg", f"{REPLY[FAILED]}.msg"}, left
    assert mailbox.attempts(sender(root), MAIL[FAILED][0]) == 1
    assert [p.name[:40] for p in sender(root).turns.glob("*.ndjson")] == [MAIL[FAILED][0]]
    assert not [p for p in (root / "blobs").glob("*/*") if p.is_file()], "a blob that nobody refers to is left"
    lines = Counter(name for name, _ in archived(root))
    assert lines.keys() >= {f"{name}.msg" for n, (name, _) in MAIL.items() if n != FAILED}


GC = Case("gc", setup, gc, recover, once_and_no_more, nothing_lost, rival=everybody, process="gc")


def met(work: Case) -> Case:
    """The agents' own work, and gc comes at each of their changes."""
    return Case("agents met by gc", work.setup, everybody, recover, once_and_no_more, nothing_lost, rival=gc)
