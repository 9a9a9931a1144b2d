"""The runner and the filter as cases for the harness: whole lives of the real programs, with only the far side doubled.

A life of a runner is what the supervisor starts: lock, recovery, mailbox loop, exit status (service.serve). A filter
is the command line that a person types, begun and resumed.
"""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from crash_cases import Worker as Kernel
from crash_cases import answered_once, letter, lines_whole, stem, tidy
from crash_far_side import asked_as_agreed, far_side, make_note, one_life, plain_files
from harness import Case, crashes, noted, undisturbed

from loom.cli import main as command_line
from loom.daemons.runner import ChatWorker
from loom.spool import agents, locks, mailbox, ndjson
from loom.spool.home import open_home
from loom.spool.layout import AgentDir, Home
from loom.wire import exits
from loom.wire.agent import AgentSpec
from loom.wire.chat import ChatRequest
from loom.wire.errors import BadInput

AGENT = "worker"
ENV = {"LOOM_ALLOW_FILESYSTEM": "1"}


# -- the runner ------------------------------------------------------------------------------------------------


def _answer(number: int, step: int, request: ChatRequest, box: AgentDir, stem: str) -> str | tuple[str, dict[str, Any]]:
    body = next(m.text for m in reversed(request.messages) if m.role == "user")
    if "fails once" in body and mailbox.attempts(box, stem) == 0:
        raise BadInput("this cannot be answered")
    if "tool" in body and step == 0:
        return make_note(number)
    return f"answer {number} to {body}"


def _runner(root: Path) -> None:
    with far_side(root, _answer):
        one_life(root / "agents" / AGENT, ChatWorker)


_LETTERS = (letter(1, "one"), letter(2, "use a tool"))


def _runner_setup(root: Path) -> None:
    home = open_home(root, ENV)
    box = agents.create(home, AgentSpec(AGENT, "builtin/echo", tools=("note",)), "You are a test.", "up")
    for name, data in _LETTERS:
        mailbox.deliver(box, name, data)


def _runner_check(root: Path) -> None:
    tidy(root)
    lines_whole(root)
    answered_once(root, Kernel(), {stem(1): 0, stem(2): 0})
    _as_agreed(root)


def _as_agreed(root: Path) -> None:
    box = Home(root).agent(AGENT)
    asked_as_agreed(root, [box], root / "blobs")
    plain_files(box.path)
    assert not locks.is_held(box.lock), "somebody still holds the lock"


def _failing_setup(root: Path) -> None:
    home = open_home(root, ENV)
    box = agents.create(home, AgentSpec(AGENT, "builtin/echo"), "", "up")
    for name, data in (letter(1, "fails once"), letter(2, "two")):
        mailbox.deliver(box, name, data)


def _failing(root: Path) -> None:
    """What fails is tried again by a person, once."""
    _runner(root)
    box = Home(root).agent(AGENT)
    for name in mailbox.failed(box):
        if mailbox.attempts(box, name) <= 1:
            mailbox.retry(box, AGENT, name, "now")
    _runner(root)


def _failing_check(root: Path) -> None:
    tidy(root)
    lines_whole(root)
    box = Home(root).agent(AGENT)
    for name, attempt in ((stem(1), 1), (stem(2), 0)):
        assert box.processed(name).exists(), f"{name} is not done"
        assert mailbox.attempts(box, name) == attempt
        found = [mailbox.find_reply(box, AGENT, name, a) for a in range(attempt + 2)]
        assert [r.error for r in found if r is not None] == [True] * attempt + [False]
    _as_agreed(root)


# -- the filter ------------------------------------------------------------------------------------------------

POET = "poet"


def _poem(number: int, step: int, request: ChatRequest, box: AgentDir, stem: str) -> str | tuple[str, dict[str, Any]]:
    return make_note(number) if step == 0 else f"answer {number}"


@contextlib.contextmanager
def at_home(root: Path) -> Iterator[Home]:
    """This home is that of the command line."""
    os.environ |= {"LOOM_HOME": str(root / "home"), "LOOM_LOG": "info", **ENV}
    yield Home(root / "home")


def typed(root: Path, *words: str) -> int:
    """A command as a person types it; what it says goes into the book `said`. Raises OSError where the disk refused."""
    errors = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True)
    with (
        (root / "said").open("a", encoding="utf-8", buffering=1) as out,  # at once: what was said stays said
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(errors),
    ):
        status = command_line.main(list(words))
        errors.seek(0)
        error = errors.read()
    if status in (exits.DISK, exits.TRY_LATER):
        assert error.startswith("loom: ") or "\nloom: " in error, (
            f"status {status}, and no word of the cause: {error!r}"
        )
        raise OSError(error)
    assert status != exits.BUG, error
    return status


def said(root: Path) -> list[str]:
    """The lines that commands have printed."""
    return (root / "said").read_text().splitlines() if (root / "said").exists() else []


def _filter_setup(root: Path) -> None:
    home = open_home(root / "home", ENV)
    (home.path / "tools").mkdir(exist_ok=True)


def _filter(root: Path) -> None:
    with at_home(root), far_side(root, _poem):
        status = typed(root, "agent", "start", POET, "--model", "builtin/echo", "--prompt", "a poem", "--tools", "note",
                       "--thread", "verse", "--system", "You are a poet.", "-w", str(root))  # fmt: skip
        assert status == exits.DONE, status


def _filter_again(root: Path) -> None:
    """The person goes on with what was left; with nothing left and nothing said, asks anew."""
    with at_home(root), far_side(root, _poem):
        while (status := typed(root, "agent", "start", POET, "--resume")) == exits.DONE:
            pass
        assert status == exits.NOT_FOUND, status
    if not said(root):
        _filter(root)


def _filter_check(root: Path) -> None:
    home = Home(root / "home")
    tidy(home.path)
    lines_whole(home.path)
    told = said(root)
    answers = [a["text"] for a in noted(root, "asked") if a["step"] == 1]
    assert told and set(told) <= set(answers), f"said {told}, answered {answers}"
    assert len(set(told)) == 1, f"the same question has two answers: {told}"
    assert len(told) <= 1 + crashes(root), f"said {len(told)} times"
    # Of the two questions of the turn each was answered once more at most for each death.
    asked = noted(root, "asked")
    assert len(asked) <= 2 + crashes(root), f"{len(asked)} questions"
    effects = [e["id"] for e in noted(root, "effects")]
    assert len(effects) == len(set(effects)), f"a tool acted twice: {effects}"
    left = [p for p in home.filters.iterdir() if (p / f"{p.name}.msg").exists()] if home.filters.is_dir() else []
    assert not left, f"a finished filter is left: {left}"
    lines = ndjson.read_objects(home.agent(POET).conversation("verse"))
    keys = [(line["name"], line["role"]) for line in lines]
    assert len(keys) == len(set(keys)), f"said twice in the conversation: {keys}"
    assert [line["text"] for line in lines][-1] == told[-1]


def _filter_crashed(root: Path) -> None:
    """What counts is whole: a directory with a message has its agent and its prompt."""
    home = Home(root / "home")
    tidy(home.path)
    for place in home.filters.iterdir() if home.filters.is_dir() else ():
        if (place / f"{place.name}.msg").exists():
            assert (place / "agent.json").exists() and (place / "prompt.md").exists(), f"half a filter: {place}"


PROCESSES = (
    Case("runner", _runner_setup, _runner, _runner, _runner_check, process="runner"),
    Case("runner fails and retries", _failing_setup, _failing, _failing, _failing_check, process="runner"),
    Case("filter", _filter_setup, _filter, _filter_again, _filter_check, _filter_crashed, process="filter"),
)

__all__ = ["AGENT", "ENV", "PROCESSES", "at_home", "typed", "undisturbed"]
