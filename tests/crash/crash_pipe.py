"""The process of a pipe as cases for the harness: its real loop, with only the programs it runs doubled.

What the doubles did is counted, so that work that was done twice is seen. Every word that is sent must come out once,
in the batch, the parts or the sum that it belongs to, whatever was killed or failed.
"""

from __future__ import annotations

import contextlib
import io
import json
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from crash_cases import letter, lines_whole, stem, tidy
from crash_far_side import plain_files, swapped
from crash_processes import ENV
from harness import Case, crashes, note, noted

from loom.core.pipes import Ran
from loom.daemons import operating, pipe
from loom.daemons.service import Agent
from loom.spool import agents, locks, mailbox
from loom.spool.home import open_home
from loom.spool.layout import AgentDir, Home
from loom.wire import exits, ids
from loom.wire.agent import AgentSpec
from loom.wire.message import Message, decode
from loom.wire.weave import Operator, encode_operators

NAME = "p~a→b"
HOUR_S = 3600.0


def _command(text: str) -> Operator:
    return Operator("command", {"cmd": text, "timeout_s": HOUR_S})


def _window(size: int) -> Operator:
    return Operator("window", {"size": size, "timeout_s": HOUR_S})


SPLIT, UPPER, PICKY = _command("split"), _command("upper"), _command("picky")
TAP = Operator("tap", {"label": "seen"})
DEDUPE = Operator("dedupe", {"key": ".body"})
COUNT = Operator("accumulate", {"expr": "count"})
THROTTLE = Operator("throttle", {"max": 1, "per_s": HOUR_S})


# -- the far side --------------------------------------------------------------------------------------------------


def _run(root: Path, agent: Agent, text: str, data: bytes, cwd: str, timeout_s: float) -> Ran:
    """In place of a shell: the command's name says what it does."""
    body = data.decode()
    note(root, "ran", {"what": text, "on": body})
    if text == "picky" and "once" in body and not any(mailbox.attempts(agent.dir, stem(n)) for n in (1, 2, 3)):
        return Ran("missing", detail="it is not there")
    if text == "upper":
        return Ran("ok", (json.dumps([one["body"].upper() for one in json.loads(body)]),))
    return Ran("ok", tuple(body.split()))


def _jq(root: Path, agent: Agent, expression: str, data: bytes, cwd: str, timeout_s: float) -> Ran:
    """In place of jq: a key, or how many there were."""
    value = json.loads(data)
    note(root, "ran", {"what": expression, "on": data.decode()})
    return Ran("ok", (str((value[0] or 0) + 1) if expression == "count" else json.dumps(value["body"]),))


def _life(root: Path) -> None:
    """The pipe from its start to the end of its work. Raises OSError for 75."""
    with (
        swapped(operating, "command", partial(_run, root)),
        swapped(operating, "jq", partial(_jq, root)),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        status = pipe.serve_pipe(_box(root).path, drain=True)
    if status == exits.TRY_LATER:
        raise OSError("the pipe left with 75")
    assert status == exits.DONE, f"the pipe ended with {status}"


def _box(root: Path) -> AgentDir:
    return Home(root).agent(NAME)


def _make(root: Path, *operators: Operator) -> None:
    spec = AgentSpec(NAME, "pipe", runner="pipe", options={"operators": encode_operators(operators), "cwd": "/"})
    agents.create(Home(root), spec, "", "up")


def _setup(root: Path, operators: Sequence[Operator], bodies: Sequence[str]) -> None:
    open_home(root, ENV)
    _make(root, *operators)
    for number, body in enumerate(bodies, 1):
        mailbox.deliver(_box(root), *letter(number, body))


# -- what must be true ---------------------------------------------------------------------------------------------


def _published(root: Path) -> dict[str, Message]:
    found = {}
    for path in sorted(_box(root).outbox.glob("*.msg")):
        found[path.stem] = decode(path.read_bytes(), path.stem)
    return found


def _settled(root: Path, count: int) -> tuple[dict[str, Message], list[Message]]:
    """(the replies by request, what left by itself); nothing is in work, nothing torn, no lock held."""
    tidy(root)
    lines_whole(root)
    box = _box(root)
    plain_files(box.path)
    assert not locks.is_held(box.lock), "somebody still holds the lock"
    assert not mailbox.in_progress(box) and not list(box.inbox.glob("*.msg")), "a message is not finished"
    published = _published(root)
    replies = {}
    for number in range(1, count + 1):
        request = stem(number)
        attempt = mailbox.attempts(box, request)
        replies[request] = published.pop(ids.reply_stem(NAME, request, attempt))
        for earlier in range(attempt):
            assert published.pop(ids.reply_stem(NAME, request, earlier)).error
        assert box.processed(request).exists(), f"{request} is not done"
    assert all(message.from_ == NAME and message.origin for message in published.values())
    return replies, list(published.values())


def _ran_as_agreed(root: Path, twice: int = 0) -> None:
    """Programs ran once for each thing, and once more at most for each death."""
    ran = Counter((one["what"], one["on"]) for one in noted(root, "ran"))
    again = sum(count - 1 for count in ran.values())
    assert again <= crashes(root) + twice, f"{again} runs were made again: {ran}"


def _gathers_check(root: Path) -> None:
    replies, loose = _settled(root, 3)
    assert [reply.parts for reply in replies.values()] == [(), (), ()]
    batches = sorted(json.loads(message.body) for message in loose)
    assert batches == [["A", "B"], ["C", "D"]], batches
    _ran_as_agreed(root)


def _answers(root: Path) -> None:
    """What fails is tried again by a person, once."""
    _life(root)
    box = _box(root)
    for name in mailbox.failed(box):
        if mailbox.attempts(box, name) <= 1:
            mailbox.retry(box, NAME, name, "now")
    _life(root)


def _answers_check(root: Path) -> None:
    replies, loose = _settled(root, 3)
    assert loose == []
    said = [part for reply in replies.values() for part in (reply.parts or (reply.body,))]
    assert sorted(said) == ["1", "2", "3", "4", "5"], f"not counted once each: {said}"
    assert len(list((_box(root).pipe_state / "tap" / "seen").glob("*.msg"))) == 3
    _ran_as_agreed(root, twice=1)  # the retry asks again


def _changed_setup(root: Path) -> None:
    _setup(root, (SPLIT, THROTTLE, _window(9)), ("a b", "c"))
    _life(root)
    Home(root).wake_fifo(NAME).unlink()  # what is prepared is copied, and a FIFO cannot be


def _changed(root: Path) -> None:
    """A chain that takes the place of another: what that one held goes on as it is."""
    _make(root, TAP)
    mailbox.deliver(_box(root), *letter(3, "d"))
    _life(root)


def _changed_check(root: Path) -> None:
    replies, loose = _settled(root, 3)
    assert [reply.parts for reply in replies.values()] == [(), (), None]
    assert sorted(message.body for message in loose) == ["a", "b", "c"], [message.body for message in loose]


def _case(name: str, operators: Sequence[Operator], bodies: Sequence[str], work: Callable[[Path], None],
          check: Callable[[Path], None]) -> Case:  # fmt: skip
    return Case(name, partial(_setup, operators=operators, bodies=bodies), work, work, check, tidy, process="pipe")


PIPES = (
    _case("pipe gathers", (SPLIT, DEDUPE, _window(2), UPPER), ("a b", "b c", "d"), _life, _gathers_check),
    _case("pipe answers", (TAP, PICKY, COUNT), ("one two", "once three", "four"), _answers, _answers_check),
    Case("pipe is changed", _changed_setup, _changed, _changed, _changed_check, tidy, process="pipe"),
)
