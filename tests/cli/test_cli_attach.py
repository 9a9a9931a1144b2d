"""`--attach FILE`: pictures and texts that go with a message."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import struct
from pathlib import Path
from typing import Any

import pytest
from cli_user import Loom, Said
from support import wait_until

PNG = b"\x89PNG\r\n\x1a\n\x00\x00\x00\x0dIHDR" + struct.pack(">II5B", 1, 1, 8, 0, 0, 0, 0)
PICTURES = {
    "a.png": (PNG + b"rest", "image/png"),
    "b.jpg": (b"\xff\xd8\xff\xe0\x00\x10JFIF\x00rest", "image/jpeg"),
    "c.gif": (b"GIF89a\x01\x00\x01\x00\x00\x00\x00rest", "image/gif"),
    "d": (b"RIFF\x10\x00\x00\x00WEBPVP8 \x04\x00\x00\x00rest", "image/webp"),
}
SHOW = """
import json, sys
message = json.load(sys.stdin)['messages'][-1]
for image in message.get('images', []):
    image['held'] = open(image['path'], 'rb').read().hex()
print(json.dumps([message]))
"""


@pytest.fixture
def pictures(loom: Loom) -> list[str]:
    for name, (data, _) in PICTURES.items():
        (loom.place / name).write_bytes(data)
    return [word for name in PICTURES for word in ("--attach", name)]


def message_in(said: Said) -> Any:
    """The last message, as the model was given it."""
    (message,) = json.loads(said.out)
    return message


def shown(loom: Loom, *words: str, stdin: str = "look") -> Said:
    model = f"exec/{loom.program('show.py', SHOW)}"
    return loom("agent", "start", "x", "--model", model, *words, stdin=stdin)


def test_pictures_are_told_by_what_they_hold_and_lie_in_blobs(loom: Loom, pictures: list[str]) -> None:
    said = shown(loom, *pictures)
    message = message_in(said)
    assert message["text"] == "look"
    assert [(i["media_type"], i["blob"], i["held"]) for i in message["images"]] == [
        (kind, hashlib.sha256(data).hexdigest(), data.hex()) for data, kind in PICTURES.values()
    ]
    assert all(Path(i["path"]).is_relative_to(loom.home / "blobs") for i in message["images"])


def test_texts_stand_in_the_message_under_their_names(loom: Loom) -> None:
    (loom.place / "notes.md").write_text("# Notes\n```sh\nls\n```\n")
    (loom.place / "empty-line.txt").write_text("one")
    said = shown(loom, "--attach", "notes.md", "--attach", "empty-line.txt", "--prompt", "Read.")
    assert message_in(said)["text"] == (
        "Read.\n\nnotes.md:\n````\n# Notes\n```sh\nls\n```\n````\n\nempty-line.txt:\n```\none\n```"
    )


BAD = [
    (b"%PDF-1.7\xff\xfe", 65, "neither an image (png, jpeg, gif, webp) nor text"),
    (b"text\0with nul", 65, "neither"),
    (b"", 65, "empty"),
    (PNG + b"x" * (5 << 20), 65, "5242880"),
    (b"\x89PNG\r\n\x1a\n" + b"rubbish" * 9, 65, "begins as image/png and is none: its first chunk is b'ishr'"),
    (PNG[:16] + bytes(17), 65, "it is 0 x 0 pixels large"),
    (PNG[:20], 65, "it ends after 20 bytes"),
    (b"\xff\xd8\xff\x00rubbish", 65, "its first segment has the marker ff00"),
    (b"\xff\xd8\xff", 65, "it ends after 3 bytes"),
    (b"GIF89a\x00\x00\x00\x00rubbish", 65, "it is 0 x 0 pixels large"),
    (b"GIF89a", 65, "it ends after 6 bytes"),
    (b"RIFF\x10\x00\x00\x00WEBPrubbishrubbish", 65, "its first chunk is b'rubb'"),
    (b"RIFF\xff\x00\x00\x00WEBPVP8 \x04\x00\x00\x00rest", 65, "it holds 16 bytes of 255"),
    (None, 66, "no file"),
]


@pytest.mark.parametrize("data, status, hint", BAD, ids=[hint for _, _, hint in BAD])
def test_what_cannot_go_with_a_message_is_refused_in_a_line(
    loom: Loom, data: bytes | None, status: int, hint: str
) -> None:
    if data is not None:
        (loom.place / "f").write_bytes(data)
    said = loom("agent", "start", "x", "--model", "builtin/echo", "--attach", "f", stdin="look")
    assert (said.status, said.out) == (status, "")
    assert hint in said.err and said.err.count("\n") == 1
    assert loom.left() == []


def test_a_directory_and_too_many_pictures_are_refused(loom: Loom, pictures: list[str]) -> None:
    (loom.place / "dir").mkdir()
    assert loom("agent", "start", "x", "--model", "builtin/echo", "--attach", "dir", stdin="look").status == 65
    said = shown(loom, *pictures * 5, "--attach", "a.png")
    assert (said.status, "at most 20" in said.err) == (65, True)
    assert shown(loom, *pictures * 5).status == 0


def test_long_texts_have_the_limit_of_the_input(loom: Loom) -> None:
    (loom.place / "long.txt").write_text("x" * 2000)
    words = ("--attach", "long.txt", "--max-input")
    assert shown(loom, *words, "1000").status == 65
    assert shown(loom, *words, "2000").status == 0


def test_a_resumed_filter_still_has_them(loom: Loom, pictures: list[str]) -> None:
    waits = """
import pathlib, time
if not pathlib.Path('go').exists():
    pathlib.Path('waiting').touch()
    time.sleep(60)
"""
    source = waits + SHOW
    model = f"exec/{loom.program('wait.py', source)}"
    filter_ = loom.start("agent", "start", "x", "--model", model, "--prompt", "look", *pictures)
    wait_until(lambda: (loom.place / "waiting").exists())
    os.kill(filter_.pid, signal.SIGKILL)
    filter_.communicate()
    for name in PICTURES:
        (loom.place / name).unlink()
    (loom.place / "go").touch()
    said = loom("agent", "start", "x", "--resume")
    assert [i["held"] for i in message_in(said)["images"]] == [data.hex() for data, _ in PICTURES.values()]


def test_a_detached_agent_is_sent_them(loom: Loom, pictures: list[str]) -> None:
    model = f"exec/{loom.program('show.py', SHOW)}"
    assert loom("agent", "start", "x", "--model", model, "--detach").status == 0
    (loom.place / "note.txt").write_text("a note\n")
    words = ("send", "x", "look", *pictures, "--attach", "note.txt", "--wait")
    message = message_in(loom(*words))
    assert message["text"] == "look\n\nnote.txt:\n```\na note\n```"
    assert [i["held"] for i in message["images"]] == [data.hex() for data, _ in PICTURES.values()]


def test_sending_twice_under_a_name_is_sending_once_only_with_the_same_pictures(
    loom: Loom, pictures: list[str]
) -> None:
    loom("agent", "start", "x", "--model", "builtin/echo", "--detach")
    words = ("send", "x", "look", "--name", "1700000000000-01HF7YAT00000000000000000A")
    assert loom(*words, *pictures).status == 0
    assert loom(*words, *pictures).status == 0
    assert loom(*words).status == 65


def test_where_it_makes_no_sense_it_is_refused(loom: Loom, pictures: list[str]) -> None:
    for words in (("--detach",), ("--resume",)):
        said = shown(loom, *pictures, *words)
        assert (said.status, "--attach" in said.err) == (2, True)
    loom("agent", "start", "x", "--model", "builtin/echo", "--detach")
    assert loom("send", "x", "--stdin-lines", *pictures, stdin="a\nb\n").status == 2


def test_fsck_names_a_message_whose_picture_is_lost(loom: Loom, pictures: list[str]) -> None:
    loom("agent", "start", "x", "--model", "builtin/echo", "--detach")
    loom("agent", "stop", "x")
    loom("send", "x", "look", *pictures)
    assert "blob" not in loom("fsck").out
    (path,) = (loom.home / "blobs").glob(f"*/{hashlib.sha256(PICTURES['a.png'][0]).hexdigest()}")
    path.unlink()
    assert f"blob '{path.name}', which is lost" in loom("fsck").out
