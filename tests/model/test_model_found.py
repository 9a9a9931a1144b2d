"""What the model has found in the code, each as a test of its own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from loom.spool import fs, mailbox
from loom.spool.layout import Box
from loom.wire import ids, message
from loom.wire.message import Message

STEM = ids.message_stem(1_790_000_000_000, bytes(10))


def letter(body: str) -> bytes:
    return message.encode(Message(ids.ulid_of(STEM), "user", 1, body))


@pytest.fixture
def box(tmp_path: Path) -> Box:
    made = Box(tmp_path / "box")
    mailbox.create(made)
    return made


class Meanwhile(fs.Calls):
    """Something happens at the first link, just before it or just after it was tried."""

    def __init__(self, before: Callable[[], object], after: Callable[[], object] = lambda: None) -> None:
        self.before, self.after = before, after

    def link(self, source: str, target: str) -> None:
        before, self.before = self.before, lambda: None
        after, self.after = self.after, lambda: None
        before()
        try:
            super().link(source, target)
        finally:
            after()


def deliver(box: Box, data: bytes) -> bool:
    return mailbox.deliver(box, STEM, data)


def deliver_all(box: Box, data: bytes) -> bool:
    return mailbox.deliver_all(box, [(STEM, data)])[0]


@pytest.mark.parametrize("send", [deliver, deliver_all])
def test_of_two_senders_with_one_key_and_other_bytes_one_is_refused_however_fast_the_first_is_claimed(
    box: Box, send: Callable[[Box, bytes], bool], monkeypatch: pytest.MonkeyPatch
):
    def first_is_sent_and_claimed() -> None:
        assert mailbox.deliver(box, STEM, letter("first"))
        assert mailbox.Inbox(box).claim() is not None

    monkeypatch.setattr(fs, "calls", Meanwhile(first_is_sent_and_claimed))
    with pytest.raises(mailbox.Conflict):
        send(box, letter("second"))


def test_a_message_that_is_refused_does_not_vouch_for_the_same_bytes_of_a_third_sender(box: Box):
    mailbox.deliver(box, STEM, letter("first"))
    assert mailbox.Inbox(box).claim() is not None
    (box.inbox / f"{STEM}.msg").write_bytes(letter("second"))  # as the refused sender left it
    with pytest.raises(mailbox.Conflict):
        mailbox.deliver(box, STEM, letter("second"))


@pytest.mark.parametrize("send", [deliver, deliver_all])
def test_two_senders_of_the_same_message_are_both_told_yes_when_it_is_claimed_between_them(
    box: Box, send: Callable[[Box, bytes], bool], monkeypatch: pytest.MonkeyPatch
):
    """It ended in FileNotFoundError: the name that was taken at the link was gone when it was to be synced."""
    data = letter("the same")
    monkeypatch.setattr(
        fs, "calls", Meanwhile(lambda: mailbox.deliver(box, STEM, data), lambda: mailbox.Inbox(box).claim())
    )
    assert send(box, data) is False
    assert [p.name for p in box.in_progress.glob("*.msg")] == [f"{STEM}.msg"]
