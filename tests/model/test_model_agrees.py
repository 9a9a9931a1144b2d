"""Model and code do the same: from the same files, operation by operation, to the same files.

The real functions run on a real home; a double notes which files they look at, and which they change. The program
of model_programs.py runs on the same files. Compared are every look, link, move, replacement, removal and record
in their order, and what lies where at the end. So whoever changes the order of the code changes the model too, or this
fails.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import model_programs as programs
import pytest
from model_checker import Files, Op, alone
from model_real import Outside, Process, Runner, letter, make_home, stem
from support import scratch

from loom.daemons.router import Router
from loom.spool import fs, mailbox, ndjson
from loom.spool.layout import Home
from loom.wire import ids
from loom.wire import message as wire
from loom.wire.jsontext import loads_object

M = stem(1)
R0, R1 = (ids.reply_stem("a", M, attempt) for attempt in (0, 1))
NAMES = {M: "m", R0: "m>a0", R1: "m>a1"}
STEMS = {name: found for found, name in NAMES.items()}
_SHOWN = ("inbox", ".in-progress", ".processed", ".failed", ".unreadable", "outbox", ".sent", ".refused", "turns")


def modelled(home: Home, path: str) -> str:
    """The path as the model names it; empty for what the model leaves out."""
    below = path.removeprefix(f"{home.agents}/").split("/")
    if len(below) < 2 or below[0] not in ("a", "b") or fs.TMP in below:
        return ""
    if below[1] == "conversations":
        return f"{below[0]}/conversation" if below[-1].endswith(".ndjson") else ""
    place = [part for part in below[1:] if part in _SHOWN]
    if not place:
        return ""
    directory = f"{below[0]}/{place[-1]}/"
    if below[-1] in _SHOWN:
        return directory
    name = below[-1]
    for found, short in NAMES.items():
        name = name.replace(found, short)
    return directory + name.replace(".msg", "").replace(".ndjson", "").replace(".error.json", ".error")


class Noted(fs.Calls):
    """Notes what changes, and through the functions of `watch` what is looked at."""

    def __init__(self, home: Home) -> None:
        self.home = home
        self.ops: list[tuple[str, ...]] = []
        self._open: dict[int, str] = {}

    def note(self, kind: str, *paths: str) -> None:
        found = [modelled(self.home, str(path)) for path in paths]
        if all(found):
            self.ops.append((kind, *found))

    def link(self, source: str, target: str) -> None:
        self.note("link", target)
        super().link(source, target)

    def rename(self, source: str, target: str) -> None:
        self.note("replace", target)
        super().rename(source, target)

    def rename_noreplace(self, source: str, target: str) -> None:
        self.note("move", source, target)
        super().rename_noreplace(source, target)

    def unlink(self, path: str) -> None:
        self.note("remove", path)
        super().unlink(path)

    def open_append(self, path: str, mode: int) -> int:
        fd = super().open_append(path, mode)
        self._open[fd] = path
        return fd

    def write(self, fd: int, data: bytes | memoryview) -> int:
        path = modelled(self.home, self._open.get(fd, ""))
        if path and bytes(data[:1]) == b"{":
            kind = str(loads_object(bytes(data)).get("t", "said"))
            if kind != "request":  # which survives no better than it matters
                self.ops.append(("append", path, kind))
        return super().write(fd, data)

    def watch(self, patch: pytest.MonkeyPatch) -> None:
        patch.setattr(fs, "calls", self)
        listdir, open_regular, settle = os.listdir, fs._open_regular, fs.settle

        def look(kind: str, real: Callable[..., Any]) -> Callable[..., Any]:
            def looked(path: Any) -> Any:
                self.note(kind, path)
                return real(path)

            return looked

        patch.setattr(os.path, "lexists", look("exists", os.path.lexists))
        patch.setattr(fs, "is_there", look("exists", fs.is_there))
        patch.setattr(os, "listdir", look("list", listdir))
        patch.setattr(fs, "_open_regular", look("read", open_regular))
        patch.setattr(fs, "settle", look("exists", settle))
        tail = ndjson._tail

        def tailed(fd: int, last: int) -> tuple[int, bytes]:
            self.note("read", self._open[fd])  # of a conversation only the end
            return tail(fd, last)

        patch.setattr(ndjson, "_tail", tailed)


def compared(ops: list[Op]) -> list[tuple[str, ...]]:
    """The model's operations as the double notes those of the code."""
    found: list[tuple[str, ...]] = []
    for kind, *rest in ops:
        if str(rest[0]).startswith("~") or kind in ("lock", "unlock", "witness", "note"):
            continue
        if kind == "append":
            found.append((kind, rest[0], rest[1][0] if "/turns/" in rest[0] else "said"))
        else:
            found.append(("list" if kind == "await" else kind, *rest[: 2 if kind == "move" else 1]))
    return found


def once(ops: list[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """The two lines of a conversation are one here."""
    return [op for n, op in enumerate(ops) if not (n and op[0] == "append" and op[2] == "said" and op == ops[n - 1])]


# -- the same files on both sides --------------------------------------------------------------------------------


def reply(attempt: int, how: str) -> tuple[Any, ...]:
    return ("m", "a", attempt, how, 0, 0)


def _bytes(name: str, content: Any) -> bytes:
    if isinstance(content, str):
        return letter(STEMS[name], content)
    _, _, attempt, how, _, written = content
    request = wire.decode(letter(M, "one"), M)
    _, made = wire.reply_to(request, M, "a", attempt, "said", 1 + written, error=how == "error")
    return wire.encode(made)


def lay(home: Home, files: Files) -> None:
    """Put on the disk what the model begins with. The directories of the day are there, as they are in the model."""
    for name in ("a", "b"):
        for directory in (home.agent(name).processed(M).parent, home.agent(name).sent(R0).parent):
            fs.ensure_dir(directory)
    for path, content in files.items():
        agent, place, *rest = path.split("/")
        box = home.agent(agent)
        if place == "conversation":
            lines = ndjson.Appender(box.conversation("main"))
            for name, _ in content:
                lines.append({"name": STEMS[name], "role": "user", "text": "…"})
                lines.append({"name": STEMS[name], "role": "assistant", "text": "…"})
            lines.close()
            continue
        name = rest[0]
        if name.endswith(".error"):
            mailbox.write_error(box, M, content - 1, error_type="x", last_error="x", hint="", ts="before")
            continue
        found = STEMS[name]
        target = {
            "inbox": box.inbox / f"{found}.msg",
            ".in-progress": box.in_progress / f"{found}.msg",
            ".processed": box.processed(found),
            ".failed": box.failed / f"{found}.msg",
            ".unreadable": box.unreadable / f"{found}.msg",
            "outbox": box.outbox / f"{found}.msg",
            ".sent": box.sent(found),
        }[place]
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(_bytes(name, content))


def lying(home: Home) -> set[str]:
    found = {modelled(home, str(p)) for p in home.agents.rglob("*") if p.is_file() and p.stat().st_size}
    return found - {""}


def agree(room: Path, files: Files, begin: tuple[Any, ...], act: Callable[[Home], Any]) -> Any:
    """Run both on the same files and compare; what the code's function gave."""
    home = make_home(room / "home", "a", "b")
    lay(home, files)
    ops, after, _ = alone(begin, files)
    noted = Noted(home)
    outcome: Any = None
    with pytest.MonkeyPatch.context() as patch:
        noted.watch(patch)
        try:
            outcome = act(home)
        except mailbox.Conflict:
            outcome = "conflict"
    # A runner that drains looks into its inbox once more at the end; the model waits there.
    real = once(noted.ops)
    expected = once(compared(ops))
    if begin[0] is programs.worker:
        assert real.pop() == ("list", "a/inbox/")
    assert real == expected
    assert lying(home) == {path for path in after if not path.startswith("~") and not path.endswith("/lock")}
    return outcome


@pytest.fixture
def room() -> Iterator[Path]:
    path = scratch()
    yield path
    shutil.rmtree(path)


# -- the scenarios -------------------------------------------------------------------------------------------------

STATES = ("inbox", ".in-progress", ".processed", ".failed", ".unreadable")


@pytest.mark.parametrize("content", ["one", "other"])
@pytest.mark.parametrize("state", ["nowhere", *STATES])
def test_delivering(room: Path, state: str, content: str):
    files = {} if state == "nowhere" else {f"a/{state}/m": "one"}
    outcome = agree(
        room,
        files,
        (programs.deliver, "a", "m", content),
        lambda home: mailbox.deliver(home.agent("a"), M, letter(M, content)),
    )
    assert outcome == ("conflict" if files and content == "other" else not files)


OK, BAD = reply(0, "ok"), reply(0, "error")
LIVES: dict[str, Files] = {
    "waits": {"a/inbox/m": "one"},
    "waits, uses a tool": {"a/inbox/m": "use a tool"},
    "waits, fails": {"a/inbox/m": "fails once"},
    "waits, had failed": {"a/inbox/m": "fails once", "a/.failed/m.error": 1, "a/.sent/m>a0": BAD},
    "claimed": {"a/.in-progress/m": "one"},
    "claimed and waits again": {"a/.in-progress/m": "one", "a/inbox/m": "one"},
    "answered": {"a/.in-progress/m": "one", "a/outbox/m>a0": OK},
    "answered and said": {"a/.in-progress/m": "one", "a/outbox/m>a0": OK, "a/conversation": (("m", OK),)},
    "answered and sent": {"a/.in-progress/m": "one", "a/.sent/m>a0": OK},
    "failed, not filed": {"a/.in-progress/m": "one", "a/.sent/m>a0": BAD},
    "moved back by hand": {"a/inbox/m": "one", "a/outbox/m>a0": BAD},
    "done and sent again": {"a/inbox/m": "one", "a/.processed/m": "one", "a/.sent/m>a0": OK},
    "done, and its reply is archived": {"a/inbox/m": "one", "a/.processed/m": "one"},
}


@pytest.mark.parametrize("life", LIVES)
def test_a_life_of_a_runner(room: Path, life: str):
    agree(room, LIVES[life], (programs.worker, "a"), lambda home: Runner(home, "a", Outside()).run())


FAILED: dict[str, Files] = {
    "not there": {},
    "recorded": {"a/.failed/m": "one", "a/.failed/m.error": 1, "a/.sent/m>a0": BAD},
    "not recorded": {"a/.failed/m": "one", "a/outbox/m>a0": BAD},
    "waits already": {"a/.failed/m": "one", "a/.failed/m.error": 1, "a/inbox/m": "one"},
}


@pytest.mark.parametrize("how", FAILED)
def test_trying_again(room: Path, how: str):
    done = agree(
        room,
        FAILED[how],
        (programs.retry, "a", "m"),
        lambda home: mailbox.retry(home.agent("a"), "a", M, "now"),
    )
    assert done == bool(FAILED[how])


SENT: dict[str, Files] = {
    "for the first time": {"a/outbox/m>a0": OK},
    "after it was copied": {"a/outbox/m>a0": OK, "b/inbox/m>a0": OK},
    "after it was read": {"a/outbox/m>a0": OK, "b/.processed/m>a0": OK},
    "after it was sent": {"a/outbox/m>a0": OK, "b/inbox/m>a0": OK, "a/.sent/m>a0": OK},
    "too late": {},
}


@pytest.mark.parametrize("when", SENT)
def test_routing(room: Path, when: str):
    def act(home: Home) -> None:
        process = Process(home, "router")
        router = Router(process.agent, process.me)
        try:
            router._route(home.agent("a"), f"{R0}.msg")
            router._deliver()
        finally:
            router.close()
            process.close()

    agree(room, SENT[when], (programs.route, "a", "b", "m>a0"), act)


def test_every_program_bears_the_name_of_the_function_it_stands_for_or_says_so():
    for program, function in programs.MIRRORS.items():
        name = function.__name__.lstrip("_")
        assert program.__name__ == name or f"{name}" in (program.__doc__ or ""), (program, function)
