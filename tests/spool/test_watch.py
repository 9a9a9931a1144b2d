"""Hearing of changes: by link, by rename, by writing in place; and of the loss of events."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from loom.spool import watch
from loom.spool.watch import Event, Watch


def test_what_arrives_is_heard_under_the_key_of_its_directory(tmp_path: Path) -> None:
    one, two, other = tmp_path / "one", tmp_path / "two", tmp_path / "other"
    for directory in (one, two, other):
        directory.mkdir()
    (other / "source").write_text("x")
    w = Watch()
    w.add(one, watch.ARRIVALS, ("inbox", "one"))
    w.add(two, watch.REPLACED, "two")
    assert w.read() == []
    os.link(other / "source", one / "linked")
    (other / "source").rename(one / "moved")
    (one / "linked").rename(two / "replaced")
    (two / "unheard").mkdir()
    assert w.read() == [
        Event(("inbox", "one"), watch.CREATED, "linked"),
        Event(("inbox", "one"), watch.MOVED_TO, "moved"),
        Event("two", watch.MOVED_TO, "replaced"),
    ]
    w.close()


def test_names_that_are_no_utf8_and_long_ones_come_whole(tmp_path: Path) -> None:
    w = Watch()
    w.add(tmp_path, watch.CREATED, 1)
    names = [os.fsdecode(b"\xff\xfe"), "x" * 255, "a b\nc"]
    for name in names:
        (tmp_path / name).touch()
    assert [event.name for event in w.read()] == names
    w.close()


def test_a_directory_that_goes_is_told_and_forgotten(tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    w = Watch()
    w.add(gone, watch.CREATED, "gone")
    gone.rmdir()
    assert [(e.key, bool(e.mask & watch.IGNORED)) for e in w.read()] == [("gone", True)]
    gone.mkdir()
    (gone / "x").touch()
    assert w.read() == []
    w.close()


def test_a_removed_watch_is_silent(tmp_path: Path) -> None:
    w = Watch()
    number = w.add(tmp_path, watch.CREATED, "it")
    w.remove(number)
    (tmp_path / "x").touch()
    assert w.read() == []
    w.close()


def test_links_and_files_are_not_watched(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path)
    w = Watch()
    for name in ("file", "link", "missing"):
        with pytest.raises(OSError):
            w.add(tmp_path / name, watch.CREATED, name)
    w.close()


def test_lost_events_are_told(tmp_path: Path) -> None:
    most = int(Path("/proc/sys/fs/inotify/max_queued_events").read_text())
    if most > 20_000:
        pytest.skip("the queue is too long to be filled here")
    w = Watch()
    w.add(tmp_path, watch.CREATED | watch.DELETED, "it")
    for number in range(most // 2 + 10):
        name = tmp_path / str(number % 2)
        name.touch()
        name.unlink()
    last = w.read()[-1]
    assert (last.key, last.mask) == (None, watch.OVERFLOW)
    w.close()
