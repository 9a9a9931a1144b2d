"""The journal: a chain that shows every change of itself, one writer, and a torn end that costs nothing else."""

from __future__ import annotations

import errno
import json
import os
from hashlib import sha256
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from support import forked

from loom.spool import blobs, fs, journal
from loom.spool.journal import Journal, JournalBusy, JournalDamaged, audit, read, read_head
from loom.wire.event import MAX_LINE_BYTES, ZERO_HASH
from loom.wire.times import parse_us


class Goal:
    """A journal in a directory, with a clock that stands still."""

    def __init__(self, root: Path) -> None:
        self.path = root / "goals" / "g" / "journal.ndjson"
        self.blobs = root / "blobs"
        self.head = root / "heads" / "g"
        self.blobs.mkdir(parents=True)

    def open(self, us: int = 1_790_000_000_000_000) -> Journal:
        return Journal(self.path, self.blobs, self.head, lambda: us)

    def events(self) -> list[Any]:
        return list(read(self.path, self.blobs))

    def audit(self) -> list[str]:
        return audit(self.path, self.blobs, self.head)

    def lines(self) -> list[bytes]:
        return self.path.read_bytes().split(b"\n")[:-1]


@pytest.fixture
def goal(quick_path: Path) -> Goal:
    return Goal(quick_path)


def written(goal: Goal, count: int, head: bool = True) -> None:
    book = goal.open()
    for i in range(count):
        book.append("step", {"name": "test"}, f"seq:{i}", {"i": i})
    if head:
        book.note_head()
    book.close()


def test_events_come_back_in_order_chained_and_dated(goal: Goal):
    written(goal, 5)
    events = goal.events()
    assert [e.seq for e in events] == [1, 2, 3, 4, 5]
    assert [e.prev for e in events] == [ZERO_HASH, *(e.hash for e in events[:-1])]
    times = [parse_us(e.ts) for e in events]
    assert all(b - a == 1 for a, b in pairwise(times)), "a clock that stands still is moved on"
    assert [e.data["i"] for e in read(goal.path, goal.blobs, after=3)] == [3, 4]
    assert goal.audit() == []


def test_a_clock_that_goes_back_does_not_take_the_journal_with_it(goal: Goal):
    written(goal, 1)
    book = goal.open(us=5)
    book.append("later", {}, "", {})
    book.close()
    first, second = goal.events()
    assert first.ts < second.ts


def test_anybody_can_check_the_chain_without_loom(goal: Goal):
    written(goal, 3)
    before = "0" * 64
    for line in goal.lines():
        body = line[: line.rindex(b',"hash":')]
        assert json.loads(line)["prev"] == before
        before = sha256(body).hexdigest()
        assert json.loads(line)["hash"] == before


def test_reopening_goes_on_where_it_stopped(goal: Goal):
    for i in range(4):
        book = goal.open()
        assert book.seq == i
        book.append("step", {}, "", {"i": i})
        book.close()
    assert [e.data["i"] for e in goal.events()] == [0, 1, 2, 3]


def test_every_flipped_byte_every_dropped_line_and_every_cut_is_found(goal: Goal):
    """With the head noted at the end, exhaustively."""
    written(goal, 4)
    data = goal.path.read_bytes()
    unseen = []
    for place in range(len(data)):
        goal.path.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
        if not goal.audit():
            unseen.append(("flipped", place))
        goal.path.write_bytes(data[:place])
        if not goal.audit():
            unseen.append(("cut", place))
    lines = goal.lines() if goal.path.write_bytes(data) else []
    for number in range(len(lines)):
        for changed in (
            lines[:number] + lines[number + 1 :],
            [*lines[:number], lines[number], *lines[number:]],
            lines[:number] + lines[number + 1 :] + [lines[number]],
        ):
            if changed == lines:
                continue
            goal.path.write_bytes(b"".join(line + b"\n" for line in changed))
            if not goal.audit():
                unseen.append(("lines", number))
    assert unseen == []
    goal.path.write_bytes(data)
    assert goal.audit() == []


def test_every_flipped_byte_of_the_noted_head_is_found(goal: Goal):
    written(goal, 2)
    data = goal.head.read_bytes()
    for place in range(len(data) - 1):
        goal.head.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
        assert goal.audit(), f"byte {place}"


def test_without_a_noted_head_a_damaged_last_line_is_still_found(goal: Goal):
    written(goal, 2, head=False)
    data = goal.path.read_bytes()
    for place in range(len(data) - 1):
        goal.path.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
        assert goal.audit(), f"byte {place}"


def test_audit_names_the_place(goal: Goal):
    written(goal, 3)
    lines = goal.lines()
    goal.path.write_bytes(b"\n".join([lines[0], lines[1].replace(b'"i":1', b'"i":7'), lines[2]]) + b"\n")
    (fault,) = goal.audit()
    assert fault.startswith(f"{goal.path}:2:")
    goal.path.unlink()
    (fault,) = goal.audit()
    assert fault == f"missing: {goal.path}"


def test_a_lost_or_damaged_payload_is_found(goal: Goal):
    book = goal.open()
    book.append("big", {}, "", {"text": "x" * MAX_LINE_BYTES})
    book.close()
    (blob,) = [p for p in goal.blobs.rglob("*") if p.is_file()]
    data = blob.read_bytes()
    blob.write_bytes(data[:-1] + b"!")
    assert "blob" in goal.audit()[0]
    blob.unlink()
    assert "missing" in goal.audit()[0]


# -- the tail --------------------------------------------------------------------------------------------------


def test_a_journal_cut_anywhere_opens_with_its_whole_records_and_keeps_the_rest(goal: Goal):
    written(goal, 3, head=False)
    data = goal.path.read_bytes()
    ends = [i + 1 for i, byte in enumerate(data) if byte == 10]
    for cut in range(len(data) + 1):
        goal.path.write_bytes(data[:cut])
        whole = sum(1 for end in ends if end <= cut)
        assert [e.seq for e in goal.events()] == list(range(1, whole + 1)), "a reader ignores the unfinished end"
        book = goal.open()
        assert book.seq == whole
        assert book.torn_bytes == cut - ([0, *ends][whole])
        book.append("after", {}, "", {})
        book.close()
        assert [e.type for e in goal.events()] == ["step"] * whole + ["after"]
        torn = list(goal.path.parent.glob("*.torn.*"))
        assert sum(p.stat().st_size for p in torn) == book.torn_bytes
        for path in torn:
            assert path.read_bytes() == data[cut - book.torn_bytes : cut]
            path.unlink()


@pytest.mark.parametrize(
    "tail", [bytes(100), bytes(4096) + b"\n", b"\n\n\n", b"garbage\n", b'{"v":1}\n' * 3, b"\xff\n\0\n{"]
)
def test_a_torn_or_filled_end_is_cut_off_and_kept(goal: Goal, tail: bytes):
    written(goal, 2, head=False)
    good = goal.path.read_bytes()
    goal.path.write_bytes(good + tail)
    goal.open().close()
    assert goal.path.read_bytes() == good
    assert goal.path.with_name(f"journal.ndjson.torn.{len(good)}").read_bytes() == tail


@pytest.mark.parametrize("cut", [1, 30, "a line"])
def test_what_a_noted_head_says_was_durable_is_no_torn_end(goal: Goal, cut: int | str):
    written(goal, 3, head=True)
    whole = goal.path.read_bytes()
    left = whole[: -len(goal.lines()[-1])] if cut == "a line" else whole[: -int(cut)]
    goal.path.write_bytes(left)
    with pytest.raises(JournalDamaged, match="the head noted at record 3 is not in the journal"):
        goal.open()
    with pytest.raises(JournalDamaged):
        journal.torn_bytes(goal.path, goal.head)
    assert goal.path.read_bytes() == left


def test_two_torn_ends_at_one_place_are_both_kept(goal: Goal):
    written(goal, 1, head=False)
    good = goal.path.read_bytes()
    for tail in (b"one", b"two", b"one"):
        goal.path.write_bytes(good + tail)
        goal.open().close()
    kept = sorted(p.read_bytes() for p in goal.path.parent.glob("*.torn.*"))
    assert kept == [b"one", b"two"]


def test_a_good_record_behind_damage_is_refused_with_its_place_and_nothing_is_changed(goal: Goal):
    written(goal, 3)
    lines = goal.lines()
    for number in range(2):
        damaged = [*lines[:number], lines[number][:-5] + b"xxxxx", *lines[number + 1 :]]
        data = b"".join(line + b"\n" for line in damaged)
        goal.path.write_bytes(data)
        offset = sum(len(line) + 1 for line in lines[:number])
        for _ in range(2):  # the refusal lets go of the lock
            with pytest.raises(JournalDamaged, match=f"at byte {offset}"):
                goal.open()
        with pytest.raises(JournalDamaged, match=f":{number + 1}:"):
            goal.events()
        assert goal.path.read_bytes() == data


@pytest.mark.parametrize("drop", [0, 1])
def test_a_missing_record_is_refused(goal: Goal, drop: int):
    written(goal, 3)
    lines = goal.lines()
    goal.path.write_bytes(b"".join(line + b"\n" for i, line in enumerate(lines) if i != drop))
    with pytest.raises(JournalDamaged):
        goal.open()
    with pytest.raises(JournalDamaged):
        goal.events()


def test_a_record_of_a_newer_version_is_refused_and_not_cut_off(goal: Goal):
    written(goal, 2)
    body = goal.lines()[1][: -len(',"hash":""}') - 64].replace(b'{"v":1', b'{"v":2')
    newer = goal.lines()[0] + b"\n" + body + b',"hash":"' + sha256(body).hexdigest().encode() + b'"}\n'
    goal.path.write_bytes(newer)
    with pytest.raises(JournalDamaged, match="version 2"):
        goal.open()
    with pytest.raises(JournalDamaged, match="version 2"):
        goal.events()
    assert goal.path.read_bytes() == newer


def test_a_tail_without_any_record_is_refused_and_not_eaten(goal: Goal):
    """More damage than a crash can make: opening it again and again must not shorten it."""
    written(goal, 3, head=False)
    data = goal.path.read_bytes() + bytes(5 * MAX_LINE_BYTES)
    goal.path.write_bytes(data)
    for _ in range(3):
        with pytest.raises(JournalDamaged):
            goal.open()
    assert goal.path.read_bytes() == data


def test_opening_reads_only_the_tail(goal: Goal, monkeypatch):
    book = goal.open()
    for _ in range(40):
        book.stage("step", {}, "", {"text": "x" * 30_000})
    book.close()
    size = goal.path.stat().st_size
    taken = []
    real = os.pread
    monkeypatch.setattr(os, "pread", lambda fd, count, at: taken.append(count) or real(fd, count, at))
    goal.open().close()
    assert sum(taken) < size // 2


# -- payloads --------------------------------------------------------------------------------------------------


def deep(levels: int) -> dict[str, Any]:
    value: Any = 1
    for _ in range(levels):
        value = {"a": value}
    return dict(value)


@pytest.mark.parametrize(
    "data",
    [
        {"text": "x" * MAX_LINE_BYTES},
        deep(64),
        deep(120),
        {"$blob": "a" * 64},
        {"$blob": "no digest"},
        {"$blob": 1, "text": "ü"},
    ],
    ids=["large", "deep", "deeper", "looks like a blob", "looks like a bad blob", "blob of a number"],
)
def test_a_payload_comes_back_whatever_it_is(goal: Goal, data: dict[str, Any]):
    book = goal.open()
    event = book.append("big", {}, "", data)
    book.append("next", {}, "", {})
    book.close()
    assert event.data == data
    assert max(map(len, goal.lines())) < MAX_LINE_BYTES
    goal.open().close()
    assert [e.data for e in goal.events()] == [data, {}]
    assert goal.audit() == []


@pytest.mark.parametrize("data", [deep(200), {"a": float("nan")}, {"a": "\ud800"}, {"a": object()}],
                         ids=["too deep", "NaN", "surrogate", "object"])  # fmt: skip
def test_what_could_not_be_read_back_is_refused_and_nothing_is_written(goal: Goal, data: dict[str, Any]):
    book = goal.open()
    book.append("first", {}, "", {})
    with pytest.raises((ValueError, TypeError)):
        book.append("bad", {}, "", data)
    book.append("second", {}, "", {})
    book.close()
    assert [e.type for e in goal.events()] == ["first", "second"]


def test_an_actor_too_large_for_a_line_is_refused(goal: Goal):
    book = goal.open()
    with pytest.raises(ValueError):
        book.append("bad", {"name": "x" * MAX_LINE_BYTES}, "", {})
    book.close()
    assert goal.events() == []


# -- one writer, heads, failures -------------------------------------------------------------------------------


def test_a_second_writer_is_refused(goal: Goal):
    book = goal.open()
    with pytest.raises(JournalBusy):
        goal.open()

    def other() -> dict[str, str]:
        try:
            goal.open()
        except JournalBusy as error:
            return {"busy": str(error)}
        return {}

    assert str(goal.path) in forked(other).said["busy"]
    book.close()
    book.close()
    goal.open().close()


def test_heads_are_noted_every_64_records_and_never_lead(goal: Goal):
    book = goal.open()
    for i in range(1, 130):
        book.append("step", {}, "", {})
        head = read_head(goal.head)
        assert (head[0] if head else 0) == i // 64 * 64
    book.close()


def test_noting_a_head_syncs_what_is_staged(goal: Goal, monkeypatch):
    book = goal.open()
    seen = []

    class Watching(fs.Calls):
        def fdatasync(self, fd: int) -> None:
            seen.append("sync")
            super().fdatasync(fd)

        def rename(self, source: str, target: str) -> None:
            seen.append("head")
            super().rename(source, target)

    monkeypatch.setattr(fs, "calls", Watching())
    book.stage("step", {}, "", {})
    book.note_head()
    assert seen == ["sync", "head"]
    book.note_head()
    assert seen == ["sync", "head", "head"]
    book.close()


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b'{"seq":null,"hash":"x"}', b'{"seq":[],"hash":1}', b"\xff", b"{}"])
def test_a_damaged_head_is_named_by_the_audit(goal: Goal, text: bytes):
    written(goal, 1)
    goal.head.write_bytes(text)
    assert read_head(goal.head) is None
    (fault,) = goal.audit()
    assert str(goal.head) in fault


@pytest.mark.parametrize("method", ["write", "fdatasync"])
def test_after_a_failed_write_nothing_is_appended_until_it_is_opened_anew(goal: Goal, monkeypatch, method: str):
    book = goal.open()
    book.append("first", {}, "", {})

    class Full(fs.Calls):
        """Half of a line fits; or the sync is refused."""

        def write(self, fd: int, data: bytes | memoryview) -> int:
            if method == "write":
                if len(data) < 100:
                    raise OSError(errno.ENOSPC, "no space")
                return os.write(fd, data[: len(data) // 2])
            return os.write(fd, data)

        def fdatasync(self, fd: int) -> None:
            raise OSError(errno.EIO, "sync")

    with monkeypatch.context() as patch:
        patch.setattr(fs, "calls", Full())
        with pytest.raises(OSError):
            book.append("second", {}, "", {})
    for again in (lambda: book.append("third", {}, "", {}), book.sync):
        with pytest.raises(OSError, match="open the file anew"):
            again()
    book.close()
    book = goal.open()
    book.append("fourth", {}, "", {})
    book.close()
    kept = [] if method == "write" else ["second"]
    assert [e.type for e in goal.events()] == ["first", *kept, "fourth"]


def test_a_blob_is_found_again_and_a_wrong_digest_is_no_path(goal: Goal):
    digest = blobs.put(goal.blobs, b"data")
    assert blobs.put(goal.blobs, b"data") == digest
    assert blobs.get(goal.blobs, digest) == b"data"
    for bad in ("", "../../etc/passwd", "A" * 64, "a" * 63, digest + "\n"):
        with pytest.raises(ValueError):
            blobs.path_of(goal.blobs, bad)
    with pytest.raises(FileNotFoundError):
        blobs.get(goal.blobs, "0" * 64)
    blobs.path_of(goal.blobs, digest).write_bytes(b"date")
    with pytest.raises(blobs.BlobDamaged):
        blobs.get(goal.blobs, digest)
