"""Programs with one well-known mistake each. The crash tests must find every one of them, each run.

A mistake that is not found means that the tests have gone blind, not that it is harmless. What only a power cut
shows (no fsync of a file, of a directory) is not among them: killing processes cannot show it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from crash_cases import KERNEL, Worker, working
from harness import Case, explore

from loom.spool import fs, journal, mailbox, ndjson
from loom.wire import ids

CASES = {case.name: case for case in KERNEL}


@contextmanager
def swapped(module: Any, name: str, bad: Any) -> Iterator[None]:
    good = getattr(module, name)
    setattr(module, name, bad)
    try:
        yield
    finally:
        setattr(module, name, good)


def mutated(case: Case, module: Any, name: str, bad: Any) -> Case:
    """The case with a bad function in place of a good one: in what it does, not in what the oracles see."""

    def under(work: Callable[[Path], None]) -> Callable[[Path], None]:
        def run(root: Path) -> None:
            with swapped(module, name, bad):
                work(root)

        return run

    return replace(
        case,
        workflow=under(case.workflow),
        recover=under(case.recover),
        rival=under(case.rival) if case.rival else None,
    )


def publish_in_place(target: Path, data: bytes) -> bool:
    try:
        fd = fs.calls.create(str(target), 0o600)
    except FileExistsError:
        return False
    with os.fdopen(fd, "wb", closefd=True):
        fs.write_all(fd, data)
        fs.calls.fsync(fd)
    return True


def replace_in_place(path: Path, data: bytes, *, mode: int = 0o600) -> None:
    fs.remove(path)
    fd = fs.calls.create(str(path), mode)
    fs.write_all(fd, data)
    os.close(fd)


def publish_with_one_name_for_all(target: Path, data: bytes) -> bool:
    temporary = target.parent / fs.TMP / "new"
    fd = fs.calls.create(str(temporary), 0o600)
    fs.write_all(fd, data)
    os.close(fd)
    fs.calls.link(str(temporary), str(target))
    fs.calls.unlink(str(temporary))
    return True


def random_reply_stem(agent: str, request: str, attempt: int = 0, part: int = 0) -> str:
    return ids.message_stem(ids.time_of(request), os.urandom(10))


def repair_nothing(path: Path, fd: int) -> tuple[list[dict[str, Any]], int]:
    return ndjson.read_objects(path), 0


def mend_nothing(self: journal.Journal) -> Any:
    events = list(journal.read(self.path, Path()))
    return events[-1] if events else None


def mark_sent_first(box: Any, name: str, data: bytes, good: Any = mailbox.deliver) -> bool:
    """Deliver by marking the reply as sent before it is copied."""
    mailbox.mark_sent(Worker().box(box.path.parent.parent), name)
    return bool(good(box, name, data))


MUTANTS = {
    "messages written in place": mutated(CASES["send"], fs, "publish", publish_in_place),
    "blobs written in place": mutated(CASES["blobs"], fs, "publish", publish_in_place),
    "state written in place": mutated(CASES["state files"], fs, "replace", replace_in_place),
    "one temporary name for all": mutated(CASES["blobs"], fs, "publish", publish_with_one_name_for_all),
    "random reply names": mutated(CASES["work"], ids, "reply_stem", random_reply_stem),
    "turn appended behind a torn end": mutated(CASES["work"], ndjson, "_repair", repair_nothing),
    "journal appended behind a torn end": mutated(CASES["journal"], journal.Journal, "_mend", mend_nothing),
    "acknowledged before the answer": working(Worker(acknowledges_first=True)),
    "no claim": working(Worker(claims=False)),
    "no lock": working(Worker(locked=False)),
    "answer of the model not recorded": working(Worker(records_reply=False)),
    "tool run without an intent": working(Worker(notes_intent=False)),
    "marked as sent before it is copied": mutated(CASES["route"], mailbox, "deliver", mark_sent_first),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_the_mistake_is_found(name: str):
    assert explore(MUTANTS[name], until_failure=True).failures, f"nobody noticed: {name}"


def test_the_cases_that_were_mutated_are_right_themselves():
    """Otherwise the mutants would be found for a reason that is not theirs."""
    for case in (*KERNEL, working(Worker())):
        report = explore(case, kills=False, errors=("EIO",), at_most=2)
        assert not report.failures, report.failures
