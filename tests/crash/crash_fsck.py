"""`loom fsck --repair` as a case for the harness: a home with damage of many kinds, mended, killed, mended again.

Afterwards there is nothing left that --repair could mend, a second run finds the same, and no message is lost.
"""

from __future__ import annotations

import os
from pathlib import Path

from crash_cases import NOW_US, letter, lines_whole, note, noted, tidy
from crash_cli import _failed_setup, _typed
from crash_processes import at_home
from harness import Case

from loom.spool import agents, fs, fsck, mailbox
from loom.spool.journal import Journal
from loom.spool.layout import Home
from loom.spool.turns import Turn
from loom.wire import exits, message
from loom.wire.chat import ChatMessage, ChatRequest

AGENT = "worker"


def _setup(root: Path) -> None:
    """Failed without a reason, answered and not acknowledged, torn ends, wrong modes, a missing directory, litter."""
    _failed_setup(root)
    home = Home(root / "home")
    box = home.agent(AGENT)
    for number in (3, 4):
        mailbox.deliver(box, *letter(number, f"message {number}"))
    claimed = mailbox.Inbox(box).claim()
    assert claimed is not None
    mailbox.answer(box, *message.reply_to(claimed.message, claimed.stem, AGENT, 0, "answer", 1))
    turn = Turn(box.turn(claimed.stem, 0), home.blobs)
    turn.open("boot", "1.1")
    turn.request(ChatRequest("test/model", (ChatMessage("user", "message 3"),)))
    turn.close()
    goal = home.goal("20260922-a-test-abcd")
    book = Journal(goal.journal, home.blobs, home.head(goal.id), lambda: NOW_US)
    for number in range(3):
        book.append("test", {}, "", {"i": number})
    book.close()
    for torn in (goal.journal, box.turn(claimed.stem, 0)):
        with torn.open("ab") as file:
            file.write(b'{"half')
    box.spec.chmod(0o644)
    (box.path / "crashes").rmdir()
    fs.ensure_dir(home.agents / fs.TMP)
    (home.agents / fs.TMP / "litter").write_text("half")
    os.utime(home.agents / fs.TMP / "litter", (1, 1))
    for path in (root / "home").rglob("*.msg"):
        note(root, "kept", {"file": path.name, "bytes": path.read_text()})


def _repair(root: Path) -> None:
    _typed(root, "fsck", "--repair", ends=(exits.DONE, exits.FAILED))


def _nothing_lost(root: Path) -> None:
    home = Home(root / "home")
    tidy(home.path)
    there = {(p.name, p.read_text()) for p in home.path.rglob("*.msg")}
    for kept in noted(root, "kept"):
        assert (kept["file"], kept["bytes"]) in there, f"lost: {kept['file']}"


def _mended(root: Path) -> None:
    _nothing_lost(root)
    home = Home(root / "home")
    lines_whole(home.path)
    with at_home(root):
        left = [(str(f.path), f.what) for f in fsck.check(home) if f.status == "mend"]
    assert not left, f"not mended: {left}"
    box = home.agent(AGENT)
    agents.read_spec(box)
    assert all(box.error_of(stem).exists() for stem in mailbox.failed(box))


FSCK = Case("loom fsck --repair", _setup, _repair, _repair, _mended, _nothing_lost, process="fsck")
