"""What gc takes away without archiving it: litter in `.tmp/`, crash records, old logs, filters that were left."""

from __future__ import annotations

import gzip
import re
from collections.abc import Iterator
from pathlib import Path

from loom.core.retention import DAY_S, LITTER_S
from loom.spool import fs, locks
from loom.spool.archive import Member
from loom.spool.broom import NO_FILE, Broom
from loom.spool.fs import TMP
from loom.spool.layout import Home
from loom.wire import ids
from loom.wire.times import day_of

_LITTER_DAYS = LITTER_S / DAY_S
_LOG = re.compile(r"(\d{4}-\d\d-\d\d)\.ndjson(\.gz)?")
_CRASH_SUFFIX = ".json"


def sweep(broom: Broom) -> None:
    """Everything here but the packing of logs, which needs space."""
    for directory in places(broom.home):
        for name in fs.names(directory / TMP) if not (directory / TMP).is_symlink() else ():
            path = directory / TMP / name
            if is_litter(broom, path):
                remove_all(broom, path, "litter")
    for agent in boxes(broom.home):
        for name in fs.names(agent / "crashes"):
            path = agent / "crashes" / name
            if ids.is_stem(name.removesuffix(_CRASH_SUFFIX)) and broom.is_old(path, broom.policy.crashes):
                broom.remove(path, "crash")
        _sweep_steps(broom, agent)
    for owner in _with_logs(broom.home):
        for name in fs.names(owner / "logs"):
            path = owner / "logs" / name
            if _LOG.fullmatch(name) and broom.is_old(path, broom.policy.logs):
                broom.remove(path, "log")
    for name in fs.names(broom.home.filters):
        if ids.is_stem(name):
            _sweep_filter(broom, broom.home.filters / name)


def _sweep_steps(broom: Broom, instance: Path) -> None:
    """Intermediate results of a pipe, but for those that its journal still speaks of.

    A pipe that works writes one before the record that names it: none goes that is younger than litter may be.
    """
    days = max(broom.policy.steps, _LITTER_DAYS)
    old = [
        step / name
        for step in directories(instance / "steps")
        for name in fs.names(step)
        if ids.stem_of(name) is not None and broom.is_old(step / name, days)
    ]
    if not old:
        return
    journal: str | None
    try:
        journal = fs.read(instance / "state" / "journal.ndjson").decode("utf-8", "replace")
    except FileNotFoundError:
        journal = ""
    except (fs.NotRegular, NotADirectoryError, PermissionError):
        journal = None
    for path in old:
        if journal is None:
            broom.stays(path, "step", "the journal of its pipe cannot be read")
        elif path.stem not in journal:
            broom.remove(path, "step")


def places(home: Home) -> Iterator[Path]:
    """Every directory whose `.tmp/` is loom's: all that hold files of state. Blobs are seen to where they are counted.

    Not those in workspaces, in trees of attempts and in what an agent may have made in its directory: they belong to
    people.
    """
    yield from (home.path, home.agents, home.pipes, home.goals, home.heads, home.secrets, home.archive)
    yield home.path / "logs"
    for agent in boxes(home):
        yield agent
        yield from (agent / below for below in ("inbox", "outbox", "turns", "conversations", "logs", "crashes"))
        yield from (below for place in ("steps", "state") for below in directories(agent / place))
        yield from (agent / below for below in ("inbox/.failed", "inbox/.unreadable", "outbox/.refused"))
    yield home.schedules
    for job in directories(home.schedules):
        yield from (job, job / "logs")
    for goal in directories(home.goals):
        yield from (goal, goal / "control")
        for subtask in directories(goal / "subtasks"):
            yield from directories(subtask)


def _with_logs(home: Home) -> Iterator[Path]:
    yield from boxes(home)
    yield from directories(home.schedules)


def boxes(home: Home) -> Iterator[Path]:
    """The directories of agents, of pipes and of their instances."""
    yield from directories(home.agents)
    yield from directories(home.pipes)


def directories(path: Path) -> Iterator[Path]:
    """The directories in a directory, `.tmp` and links left out."""
    for name in fs.names(path):
        below = path / name
        if name != TMP and not below.is_symlink() and below.is_dir():
            yield below


def is_litter(broom: Broom, path: Path) -> bool:
    """Whether nothing in it was changed for 36 hours: a tree may be in the middle of being made."""
    return _is_all_old(broom, path, _LITTER_DAYS)


def _is_all_old(broom: Broom, path: Path, days: float, without: str = "") -> bool:
    left = [path]
    while left:
        found = left.pop()
        if not broom.is_old(found, days):
            return False
        if not found.is_symlink() and found.is_dir():
            left += [found / name for name in fs.names(found) if found != path or name != without]
    return True


def remove_all(broom: Broom, path: Path, what: str) -> None:
    """Take a file or a whole tree away, or only say so."""
    broom.goes(path, what)
    if not broom.dry_run:
        fs.remove_tree(path)


def _sweep_filter(broom: Broom, path: Path) -> None:
    """One that was interrupted can be resumed for as long as messages are kept; one without its message is litter."""
    if not path.is_dir():
        if broom.is_old(path, broom.policy.messages):
            broom.stays(path, "filter", "it is no directory")
        return
    message = path / f"{path.name}.msg"
    days = broom.policy.messages if message.exists() else _LITTER_DAYS
    if path.is_symlink() or not _is_all_old(broom, path, days, without="lock"):
        return
    if broom.is_odd(path / "lock"):
        broom.stays(path, "filter", "its lock is no regular file")
        return
    if broom.dry_run:
        if locks.is_held(path / "lock"):
            broom.stays(path, "filter", "it is at work")
        else:
            broom.goes(path, "filter")
        return
    lock = locks.acquire(path / "lock")
    if lock is None:
        broom.stays(path, "filter", "it is at work")
        return
    with lock:
        if not broom.is_odd(message):
            fs.remove(message)  # first: with it the directory counts
        remove_all(broom, path, "filter")


# -- logs --------------------------------------------------------------------------------------------------------


def pack_logs(broom: Broom) -> None:
    """Logs of past days become `.gz` beside where they lay."""
    today = day_of(int(broom.now_s * 1000))
    for owner in _with_logs(broom.home):
        for name in fs.names(owner / "logs"):
            found = _LOG.fullmatch(name)
            path = owner / "logs" / name
            if found is None or found[2] or found[1] == today or not broom.is_old(path, broom.policy.logs_packed):
                continue
            if broom.is_odd(path) or broom.is_odd(_packed(path)):
                broom.stays(path, "log", NO_FILE)
                continue
            broom.goes(path, "packed log")
            if not broom.dry_run:
                _pack(broom, path)


def _packed(path: Path) -> Path:
    return path.with_name(f"{path.name}.gz")


def _pack(broom: Broom, path: Path) -> None:
    """Lines that were written to a day that is packed already go behind the others."""
    packed = _packed(path)
    try:
        if not _holds(packed, path):
            with fs.NewFile(packed) as new:
                if packed.exists():
                    for piece in fs.pieces(packed):
                        new.write(piece)
                member = Member(new)
                for piece in fs.pieces(path):
                    member.write(piece)
                member.end()
                new.keep()
    except (FileNotFoundError, fs.NotRegular):
        return  # a person was quicker, or it is none of ours
    if broom.is_old(path, broom.policy.logs_packed):
        fs.remove(path)


def _holds(packed: Path, path: Path) -> bool:
    """Whether the packed file has these very bytes: then we were killed before we could take them away."""
    try:
        with gzip.open(packed) as old:
            for piece in fs.pieces(path):
                if old.read(len(piece)) != piece:
                    return False
            return not old.read(1)
    except FileNotFoundError:
        return False
    except (EOFError, gzip.BadGzipFile, OSError) as error:
        if isinstance(error, OSError) and not isinstance(error, gzip.BadGzipFile):
            raise
        return False
