"""An inbox full of what a careless or hostile sender can leave there, with good messages in between.

The good ones are claimed in their order, nothing blocks, and every odd one that is a `.msg` ends in `.unreadable/`
with the reason beside it.
"""

from __future__ import annotations

import json
import os
import random
import socket
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from support import forked, in_namespace

from loom.spool import mailbox
from loom.spool.layout import Box
from loom.spool.mailbox import Inbox
from loom.wire import ids, message
from loom.wire.message import Message

SEED = 7
START_MS = 1_790_000_000_000


def stem(number: int) -> str:
    return ids.message_stem(START_MS + number, number.to_bytes(10, "big"))


def good(name: str) -> bytes:
    return message.encode(Message(ids.ulid_of(name), "user", 1, "good"))


def content(data: Callable[[str], bytes]) -> Callable[[Path], None]:
    return lambda path: path.write_bytes(data(path.name[:-4]))  # type: ignore[return-value]


def changed(**fields: object) -> Callable[[Path], None]:
    return content(lambda name: json.dumps({**json.loads(good(name)), **fields}).encode())


def bind(path: Path) -> None:
    here = os.getcwd()
    os.chdir(path.parent)
    try:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(path.name)
    finally:
        os.chdir(here)


def full_directory(path: Path) -> None:
    path.mkdir()
    (path / "inside").write_text("x")


# what lies under a good name -> the reason it must be given
UNDER_A_GOOD_NAME: dict[str, tuple[Callable[[Path], None], str]] = {
    "empty": (content(lambda n: b""), "malformed"),
    "torn": (content(lambda n: good(n)[: len(good(n)) // 2]), "malformed"),
    "newline only": (content(lambda n: b"\n"), "malformed"),
    "NULs": (content(lambda n: bytes(4096)), "malformed"),
    "binary": (content(lambda n: random.Random(n).randbytes(5000)), "malformed"),
    "not UTF-8": (content(lambda n: good(n).replace(b"good", b"\xff\xfe")), "malformed"),
    "lone surrogate": (content(lambda n: good(n).replace(b"good", b"\\ud800")), "malformed"),
    "deep": (content(lambda n: b"[" * 200_000), "malformed"),
    "deep and closed": (content(lambda n: b'{"a":' * 70 + b"1" + b"}" * 70), "malformed"),
    "deep data": (content(lambda n: good(n)[:-2] + b',"data":' + b'{"a":' * 64 + b"1" + b"}" * 65), "malformed"),
    "array": (content(lambda n: b"[]"), "malformed"),
    "two": (content(lambda n: good(n) * 2), "malformed"),
    "NaN": (content(lambda n: good(n).replace(b'"ts":1', b'"ts":NaN')), "malformed"),
    "infinite": (content(lambda n: good(n).replace(b'"ts":1', b'"ts":1e999')), "malformed"),
    "5000 digits": (content(lambda n: good(n).replace(b'"ts":1', b'"ts":' + b"9" * 5000)), "malformed"),
    "huge": (content(lambda n: good(n).replace(b"good", b"x" * (1 << 20))), "too_large"),
    "sparse": (lambda path: os.truncate(_touched(path), 1 << 40), "too_large"),
    "newer": (changed(v=2), "newer_version"),
    "no version": (changed(v=None), "no_version"),
    "another id": (changed(id=ids.ulid_of(stem(999_999))), "wrong_id"),
    "no body": (changed(body=None), "bad_field"),
    "bad thread": (changed(thread="../../etc"), "bad_field"),
    "escape in field": (changed(id="\x1b[2J"), "wrong_id"),
    "directory": (lambda path: path.mkdir(), "directory"),
    "full directory": (full_directory, "directory"),
    "link to a file": (lambda path: path.symlink_to("/etc/passwd"), "link"),
    "link to itself": (lambda path: path.symlink_to(path.name), "link"),
    "dangling link": (lambda path: path.symlink_to("nowhere"), "link"),
    "link to a FIFO": (lambda path: path.symlink_to("/proc/self/fd/0"), "link"),
    "fifo": (lambda path: os.mkfifo(path), "fifo"),
    "socket": (bind, "socket"),
}

ODD_NAMES: list[bytes] = [
    b"x.msg", b" .msg", b"\n.msg", b"a\nb.msg", b"\x1b[31mred.msg", b"\x07.msg", b"\x7f.msg", b"-rf.msg", b"~.msg",
    b"$(id).msg", b"\xff\xfe.msg", b"\xff" * 251 + b".msg", b"x" * 251 + b".msg",
    "é".encode() * 125 + b"x.msg", "\u202e.msg".encode(), "😀".encode() * 62 + b".msg", b"%00.msg", b"\\.msg",
    b"'\".msg",
    stem(5).lower().encode() + b".msg", stem(5)[1:].encode() + b".msg", stem(5).encode() + b".x.msg",
    b"1790000000000-8ZZZZZZZZZZZZZZZZZZZZZZZZZ.msg", b"179000000000x-00000000000000000000000000.msg",
]  # fmt: skip
IGNORED: list[bytes] = [b"note.txt", b"x.msg.swp", b".hidden.msg", b"\x1b[31m", b"x.MSG", b"\xff"]


def _touched(path: Path) -> Path:
    path.touch()
    return path


@pytest.fixture
def box(tmp_path: Path) -> Box:
    made = Box(tmp_path)
    mailbox.create(made)
    return made


def test_good_messages_pass_and_each_odd_entry_is_set_aside_with_its_reason(box: Box):
    rng = random.Random(SEED)
    kinds = list(UNDER_A_GOOD_NAME) * 6
    rng.shuffle(kinds)
    expected_good, expected_odd = [], {}
    for number, kind in enumerate(kinds):
        name = stem(2 * number)
        make, reason = UNDER_A_GOOD_NAME[kind]
        make(box.inbox / f"{name}.msg")
        expected_odd[f"{name}.msg"] = reason
        if number % 5 == 0:
            name = stem(2 * number + 1)
            mailbox.deliver(box, name, good(name))
            expected_good.append(name)
    for raw in ODD_NAMES:
        path = os.fsencode(box.inbox) + b"/" + raw
        Path(os.fsdecode(path)).write_bytes(b"x")
        expected_odd[os.fsdecode(raw)] = "bad_name"
    for raw in IGNORED:
        Path(os.fsdecode(os.fsencode(box.inbox) + b"/" + raw)).write_bytes(b"x")

    started = time.monotonic()
    inbox = Inbox(box)
    claimed = []
    while (found := inbox.claim()) is not None:
        claimed.append(found.stem)
    assert time.monotonic() - started < 20, "something held up the queue"

    assert len(expected_odd) >= 200
    assert claimed == expected_good
    assert mailbox.in_progress(box) == [f"{name}.msg" for name in expected_good]
    assert dict(inbox.set_aside) == expected_odd
    notes = {}
    for path in box.unreadable.iterdir():
        if path.name.endswith(".error.json"):
            note = json.loads(path.read_bytes())
            notes[note["name"]] = note["reason"]
            assert set(note) == {"reason", "detail", "name"}
            assert all(text.isascii() and text.isprintable() for text in note.values()), note
            assert os.path.lexists(path.with_name(path.name.removesuffix(".error.json"))), f"no entry beside {path}"
    assert notes == {ascii(name)[1:-1]: reason for name, reason in expected_odd.items()}
    ours = {".tmp", ".in-progress", ".processed", ".failed", ".unreadable"}
    left = set(os.listdir(box.inbox)) - ours
    assert left == {os.fsdecode(n) for n in IGNORED}, "what is no .msg stays"
    assert inbox.odd == left, "each is told, hidden ones too"


@pytest.mark.parametrize("kind", UNDER_A_GOOD_NAME)
def test_what_was_found_odd_is_set_aside_unchanged(box: Box, kind: str):
    make, reason = UNDER_A_GOOD_NAME[kind]
    name = f"{stem(1)}.msg"
    make(box.inbox / name)
    before = os.lstat(box.inbox / name)
    assert Inbox(box).claim() is None
    after = os.lstat(box.unreadable / name)
    assert (after.st_ino, after.st_mode, after.st_size) == (before.st_ino, before.st_mode, before.st_size)
    assert json.loads((box.unreadable / f"{name}.error.json").read_bytes())["reason"] == reason


def test_a_second_odd_entry_of_a_name_keeps_the_first(box: Box):
    name = f"{stem(1)}.msg"
    for text in (b"first", b"second", b"third"):
        (box.inbox / name).write_bytes(text)
        assert Inbox(box).claim() is None
    entries = [p for p in box.unreadable.iterdir() if p.is_file() and not p.name.endswith(".error.json")]
    assert {p.read_bytes() for p in entries} == {b"first", b"second", b"third"}
    for path in entries:
        assert path.with_name(path.name + ".error.json").exists()


@pytest.mark.parametrize("kind", ["file", "directory"])
def test_an_entry_we_may_not_read_is_set_aside_or_skipped(box: Box, tmp_path: Path, kind: str):
    """For root the permission bits do not count, so root becomes somebody else in a child."""
    bad, fine = box.inbox / f"{stem(1)}.msg", box.inbox / f"{stem(2)}.msg"
    if kind == "file":
        bad.write_bytes(good(stem(1)))
    else:
        bad.mkdir()
    fine.write_bytes(good(stem(2)))
    bad.chmod(0)
    if os.geteuid() == 0:
        owner = 65_534
        for path in (box.path, *box.path.rglob("*")):
            if path != bad:
                os.chown(path, owner, owner)
        if kind == "file":
            os.chown(bad, owner, owner)
        for parent in tmp_path.parents:
            if parent.stat().st_mode & 0o001 == 0 and parent.stat().st_uid == 0:
                parent.chmod(parent.stat().st_mode | 0o001)

    def work() -> dict[str, object]:
        if os.geteuid() == 0:
            os.setgroups([])
            os.setresgid(owner, owner, owner)
            os.setresuid(owner, owner, owner)
        inbox = Inbox(box)
        first = inbox.claim()
        assert first is not None and first.stem == stem(2)
        assert inbox.claim() is None
        return {"set_aside": inbox.set_aside}

    ended = forked(work)
    assert ended.status == 0, ended.said
    if kind == "file":
        assert ended.said["set_aside"] == [[f"{stem(1)}.msg", "not_permitted"]]
        assert not bad.exists()
    elif os.geteuid() == 0:
        assert ended.said["set_aside"] == [], "somebody else's directory cannot be moved: it is skipped"
        assert bad.exists()


MOUNTED = """
import sys
from pathlib import Path
from loom.spool import mailbox
from loom.spool.layout import Box
inbox = mailbox.Inbox(Box(Path(sys.argv[1])))
claimed = inbox.claim()
assert claimed is not None and claimed.message.body == "good", claimed
assert inbox.claim() is None
"""


def test_a_mount_point_among_the_messages_is_skipped(box: Box):
    first, second = box.inbox / f"{stem(1)}.msg", box.inbox / f"{stem(2)}.msg"
    first.write_bytes(good(stem(1)).replace(b"good", b"covered"))
    second.write_bytes(good(stem(2)))
    in_namespace(MOUNTED, str(box.path), mounts=f"mount --bind /etc/hostname {first}")
