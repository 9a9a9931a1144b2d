"""Locks between real processes: who holds it, whether that process lives, and that asking takes nothing away."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from support import forked, wait_until

from loom.spool import locks
from loom.spool.locks import Incarnation, acquire, alive, holder, is_held, own_incarnation, parse_incarnation


@contextmanager
def elsewhere(work: Callable[[], object]) -> Iterator[int]:
    """A child that does `work`, says so, and then waits until it is killed. Gives its pid."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            kept = work()
            os.write(writer, b"+" if kept is not None else b"-")
            signal.pause()
        finally:
            os._exit(1)
    os.close(writer)
    try:
        assert os.read(reader, 1) == b"+", "the child could not do its work"
        yield pid
    finally:
        os.close(reader)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def signed(path: Path) -> locks.Lock | None:
    lock = acquire(path)
    if lock is not None:
        lock.sign(own_incarnation())
    return lock


def test_one_of_two_processes_has_the_lock_and_is_named(tmp_path: Path):
    path = tmp_path / "lock"
    with elsewhere(lambda: signed(path)) as pid:
        assert is_held(path)
        assert acquire(path) is None
        who = holder(path)
        assert who is not None and who.pid == pid
        assert who == Incarnation(pid, locks.start_time(pid) or 0, locks.boot_id())
        assert alive(who)
    assert not is_held(path)
    assert holder(path) is None
    assert not alive(who)
    lock = acquire(path)
    assert lock is not None
    lock.release()


def test_a_lock_goes_with_its_holder_and_its_file_stays(tmp_path: Path):
    path = tmp_path / "deep" / "lock"
    with elsewhere(lambda: signed(path)) as pid:
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: not is_held(path))
        assert path.read_text().split()[0] == str(pid)
        assert holder(path) is None
        assert not alive(parse_incarnation(path.read_text())), "a zombie is not alive"  # type: ignore[arg-type]


def test_nobody_holds_what_was_never_taken(tmp_path: Path):
    assert not is_held(tmp_path / "none") and holder(tmp_path / "none") is None
    assert not (tmp_path / "none").exists(), "asking makes no file"


def test_asking_all_the_time_keeps_nobody_from_taking_it(tmp_path: Path):
    path = tmp_path / "lock"
    path.touch()

    def ask() -> None:
        while True:
            is_held(path)
            holder(path)

    children = []
    for _ in range(2):
        pid = os.fork()
        if pid == 0:
            try:
                ask()
            finally:
                os._exit(1)
        children.append(pid)
    try:
        for _ in range(100):
            lock = acquire(path)
            assert lock is not None
            lock.release()
    finally:
        for pid in children:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def test_asking_does_not_take_it_from_its_holder(tmp_path: Path):
    path = tmp_path / "lock"
    mine = signed(path)
    assert mine is not None
    for _ in range(10):
        assert forked(lambda: {"held": is_held(path), "pid": getattr(holder(path), "pid", 0)}).said == {
            "held": True,
            "pid": os.getpid(),
        }
        assert forked(lambda: {"got": acquire(path) is not None}).said == {"got": False}
    mine.release()
    mine.release()
    assert forked(lambda: {"got": acquire(path) is not None}).said == {"got": True}


def test_a_holder_that_let_go_is_not_taken_for_the_next_one(tmp_path: Path):
    """The first is alive and its name would still stand in the file; the second did not sign."""
    path = tmp_path / "lock"
    mine = signed(path)
    assert mine is not None
    mine.release()
    with elsewhere(lambda: acquire(path)):
        assert is_held(path)
        assert holder(path) is None


def test_a_forked_child_that_lets_go_does_not_wipe_its_parents_name(tmp_path: Path):
    path = tmp_path / "lock"
    mine = signed(path)
    assert mine is not None
    forked(lambda: mine.release())  # type: ignore[func-returns-value]
    who = forked(lambda: {"pid": getattr(holder(path), "pid", 0)}).said
    assert who == {"pid": os.getpid()}
    mine.release()


def test_waiting_takes_it_as_soon_as_it_is_free(tmp_path: Path):
    path = tmp_path / "lock"
    reader, writer = os.pipe()
    mine = acquire(path)
    assert mine is not None
    pid = os.fork()
    if pid == 0:
        try:
            os.close(mine.fd)  # flock follows the open file, which the fork shares
            os.write(writer, b"w")
            got = acquire(path, wait=True)
            os.write(writer, b"g" if got is not None else b"-")
        finally:
            os._exit(0)
    assert os.read(reader, 1) == b"w"
    mine.release()
    assert os.read(reader, 1) == b"g"
    os.waitpid(pid, 0)
    os.close(reader)
    os.close(writer)


def test_a_lock_does_not_follow_a_link(tmp_path: Path):
    (tmp_path / "target").write_text("precious")
    (tmp_path / "lock").symlink_to("target")
    with pytest.raises(OSError):
        acquire(tmp_path / "lock")
    assert (tmp_path / "target").read_text() == "precious"


def test_a_lock_is_not_inherited_by_programs(tmp_path: Path):
    lock = acquire(tmp_path / "lock")
    assert lock is not None
    assert not os.get_inheritable(lock.fd)
    lock.release()


def test_the_same_number_is_not_the_same_process():
    me = own_incarnation()
    assert alive(me)
    assert not alive(Incarnation(me.pid, me.start + 1, me.boot))
    assert not alive(Incarnation(me.pid, me.start, "another boot"))
    assert not alive(Incarnation(2**22 + 1, 0, me.boot))
    assert locks.start_time(2**22 + 1) is None
    assert me.epoch == f"{me.pid}.{me.start}"


@pytest.mark.parametrize("text", ["", "1", "1 2", "1 2 3 4", "a 2 b", "1 -2 b", "-1 2 b", "1.5 2 b", "\0 \0 \0"])
def test_what_names_no_incarnation(text: str):
    assert parse_incarnation(text) is None


@pytest.mark.parametrize("text", ["", "garbage", "1 2 3", "\xff" * 300])
def test_a_held_lock_with_any_text_in_it_has_no_known_holder(tmp_path: Path, text: str):
    path = tmp_path / "lock"
    with elsewhere(lambda: acquire(path)):
        path.write_text(text)
        assert is_held(path) and holder(path) is None


def test_incarnations_are_read_back():
    me = own_incarnation()
    assert parse_incarnation(me.text()) == me
