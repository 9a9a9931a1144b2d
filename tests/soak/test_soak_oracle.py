"""The oracle of the soak finds what is known to be wrong: each fault is put into a home that had passed."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from soak_cases import NAMES, PROGRAMS, environment
from soak_oracle import Oracle, calls_are_bounded
from support import scratch

from loom.spool.layout import Home
from loom.wire import ids

STEM, OTHER = NAMES[:2]
REPLY = ids.reply_stem("a", STEM, 0)


@pytest.fixture(scope="module")
def finished() -> Iterator[Path]:
    """A home in which two messages went from `a` to `b`, by real programs."""
    place = scratch()
    home = Home(place / "home")
    agent = next(program for program in PROGRAMS if program.name == "agent")
    agent.setup(home)
    for command in agent.recover(home):
        subprocess.run(command, env=environment(home), check=True)
    shutil.rmtree(home.wake)
    yield home.path
    shutil.rmtree(place)


def check(home: Home, *promised: str) -> None:
    Oracle(home, [home.agent("a"), home.agent("b")], {"a": "b"}).check({"a": promised})


def _conversation(home: Home) -> Path:
    return home.agent("a").conversation("main")


def _say_twice(home: Home) -> None:
    path = _conversation(home)
    path.write_bytes(path.read_bytes() + path.read_bytes().splitlines(keepends=True)[0])


def _unsay(home: Home) -> None:
    path = _conversation(home)
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-1]))


def _answer_twice(home: Home) -> None:
    sent = home.agent("a").sent(REPLY)
    shutil.copy(sent, sent.with_name(f"{ids.reply_stem('a', STEM, 1)}.msg"))


def _ask_twice(home: Home) -> None:
    turn = home.agent("a").turn(STEM, 0)
    reply = next(line for line in turn.read_bytes().splitlines(keepends=True) if b'"t":"reply"' in line)
    turn.write_bytes(turn.read_bytes() + reply)


def _answer_otherwise(home: Home) -> None:
    for path in (home.agent("a").sent(REPLY), home.agent("b").processed(REPLY)):
        path.write_bytes(path.read_bytes().replace(b'"body":"', b'"body":"not '))


def _end_twice(home: Home) -> None:
    box = home.agent("a")
    shutil.copy(box.processed(STEM), box.failed)


def _fail_for_nothing(home: Home) -> None:
    box = home.agent("a")
    box.processed(STEM).rename(box.failed / f"{STEM}.msg")


FAULTS: dict[str, Callable[[Home], object]] = {
    "a message is lost": lambda home: home.agent("a").processed(STEM).unlink(),
    "a reply is lost": lambda home: home.agent("a").sent(REPLY).unlink(),
    "a routed message is lost": lambda home: home.agent("b").processed(REPLY).unlink(),
    "a message waits": lambda home: shutil.copy(home.agent("a").processed(STEM), home.agent("a").inbox),
    "a message is claimed": lambda home: shutil.copy(home.agent("a").processed(STEM), home.agent("a").in_progress),
    "a reply was not routed": lambda home: shutil.copy(home.agent("a").sent(REPLY), home.agent("a").outbox),
    "a routed message was changed": lambda home: home.agent("b").processed(REPLY).write_bytes(b"{}"),
    "a message ended twice": _end_twice,
    "a message failed without a reason": _fail_for_nothing,
    "there are two answers": _answer_twice,
    "the model was asked twice": _ask_twice,
    "the answer is not the recorded one": _answer_otherwise,
    "it was said twice": _say_twice,
    "it was not said": _unsay,
    "a line is torn": lambda home: _conversation(home).write_bytes(_conversation(home).read_bytes()[:-5]),
    "a temporary file lies about": lambda home: (home.agent("a").inbox / "0123456789abcdef0123").write_bytes(b"x"),
    "odd litter": lambda home: (home.agent("a").inbox / ".tmp" / "x").write_bytes(b"x"),
}


def test_a_home_at_rest_passes(finished: Path):
    check(Home(finished), STEM, OTHER)


@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_known_to_be_wrong_is_found(finished: Path, fault: str, tmp_path: Path):
    home = Home(tmp_path / "home")
    shutil.copytree(finished, home.path)
    FAULTS[fault](home)
    with pytest.raises((AssertionError, ValueError)):
        check(home, STEM, OTHER)


def test_a_promise_that_was_not_kept_is_found(finished: Path):
    with pytest.raises(AssertionError, match="nowhere"):
        check(Home(finished), NAMES[4])


@pytest.mark.parametrize("asked", [2, 5])
def test_a_model_that_was_asked_too_often_or_too_seldom_is_found(tmp_path: Path, asked: int):
    calls = tmp_path / "calls"
    calls.write_bytes(b"asked\n" * asked)
    with pytest.raises(AssertionError, match="calls for 3 replies"):
        calls_are_bounded(calls, 3, 1)
