"""Which blobs somebody refers to, and what becomes of the others (docs/protocol.md sections 1 and 10, ADR-0016).

A reference is 64 hexadecimal digits wherever they stand: in a message in any state, a turn, a conversation, a journal,
a document of a goal, a filter; and in a blob that is referred to itself. Archives, logs and workspaces do not count.

A blob goes in two steps. Old and without a reference, it is set aside: renamed into `.tmp/` of its directory, where
blobs.get still finds it. 36 hours later it is looked for once more: it goes, or it comes back when somebody refers to
it. So a writer may rely on a blob that it finds in place, even at the moment in which that is set aside: nobody waits
and no lock is needed.
"""

from __future__ import annotations

import os
import re
from array import array
from bisect import bisect_left
from collections.abc import Iterator
from pathlib import Path

from loom.spool import fs
from loom.spool.broom import Broom
from loom.spool.fs import TMP
from loom.spool.layout import Home
from loom.spool.litter import boxes, directories, is_litter, remove_all

_DIGEST = re.compile(r"[0-9a-f]{64}")
_MENTION = re.compile(rb"[0-9a-f]{64}")
_TAIL = 63
_UNSEEN, _SEEN, _FOLLOWED = 0, 1, 2
_NOT_IN_HOME = ("blobs", "archive", "run", "index", "logs", "secrets", "lost+found")


def sweep_blobs(broom: Broom) -> None:
    """Set aside what is old and unreferenced, bring back or remove what was set aside before."""
    for shard in shards(broom.home):
        for name in fs.names(shard / TMP):
            if not _DIGEST.fullmatch(name) and is_litter(broom, shard / TMP / name):
                remove_all(broom, shard / TMP / name, "litter")
    marks = Marks(broom)
    if not marks.any():
        return
    try:
        for path in sources(broom.home):
            marks.follow(path)
        marks.follow_blobs()
    except Unseeable as error:
        broom.stays(broom.home.blobs, "blobs", f"{error} may not be read, and may refer to any of them")
        return
    if not broom.dry_run and marks.any(_UNSEEN):
        fs.sync_tree(broom.home.path)  # references that went away must not come back after a power cut
    for shard in shards(broom.home):
        for digest in _blobs(shard / TMP):
            _sweep_aside(broom, marks, shard / TMP / digest, shard / digest)
        for digest in _blobs(shard):
            path = shard / digest
            if broom.is_old(path, broom.policy.blobs) and not marks.is_seen(digest):
                broom.goes(path, "blob")
                if not broom.dry_run:
                    fs.ensure_dir(shard / TMP)
                    fs.calls.rename(str(path), str(shard / TMP / digest))


def _sweep_aside(broom: Broom, marks: Marks, aside: Path, path: Path) -> None:
    if marks.is_seen(aside.name):
        broom.stays(aside, "blob set aside", "somebody refers to it again")
        if not broom.dry_run and fs.move(aside, path) == "conflict":
            fs.remove(aside)  # the one in place is damaged or not; fsck says so
    elif is_litter(broom, aside):
        broom.remove(aside, "blob set aside")


def shards(home: Home) -> Iterator[Path]:
    for path in directories(home.blobs):
        if re.fullmatch(r"[0-9a-f]{2}", path.name):
            yield path


def digests(directory: Path) -> Iterator[str]:
    for name in fs.names(directory):
        if _DIGEST.fullmatch(name):
            yield name


def _blobs(directory: Path) -> Iterator[str]:
    """Those under which a file lies: what else has such a name, fsck tells."""
    return (digest for digest in digests(directory) if not Broom.is_odd(directory / digest))


class Marks:
    """Which of the blobs that could go are referred to: nine bytes for each of them, whatever their number."""

    def __init__(self, broom: Broom) -> None:
        self._broom = broom
        self._keys: dict[str, array[int]] = {}  # the first 16 digits, sorted, by shard
        self._flags: dict[str, bytearray] = {}
        for shard in shards(broom.home):
            found = {_key(digest) for digest in _blobs(shard / TMP)}
            old = (d for d in _blobs(shard) if broom.is_old(shard / d, broom.policy.blobs))
            found.update(_key(digest) for digest in old)
            if found:
                self._keys[shard.name] = array("Q", sorted(found))
                self._flags[shard.name] = bytearray(len(found))

    def any(self, flag: int | None = None) -> bool:
        return bool(self._keys) if flag is None else any(flag in flags for flags in self._flags.values())

    def is_seen(self, digest: str) -> bool:
        """Whether somebody refers to it, or it was not there when we began."""
        at = self._at(digest)
        return at is None or self._flags[digest[:2]][at] != _UNSEEN

    def _at(self, digest: str) -> int | None:
        keys = self._keys.get(digest[:2])
        if keys is None:
            return None
        at = bisect_left(keys, _key(digest))
        return at if at < len(keys) and keys[at] == _key(digest) else None

    def follow(self, path: Path) -> None:
        """Mark all that a file mentions. Raises Unseeable when it may not be read."""
        for digest in mentions(path):
            at = self._at(digest)
            if at is not None and self._flags[digest[:2]][at] == _UNSEEN:
                self._flags[digest[:2]][at] = _SEEN

    def follow_blobs(self) -> None:
        """What blobs mention: those too young to go, then those that are marked, until no new ones are."""
        for shard in shards(self._broom.home):
            for digest in _blobs(shard):
                if self._at(digest) is None:
                    self._follow_blob(shard / digest)
        while self.any(_SEEN):
            for shard in shards(self._broom.home):
                self._follow_shard(shard)

    def _follow_shard(self, shard: Path) -> None:
        flags = self._flags.get(shard.name, bytearray())
        todo = {at for at, flag in enumerate(flags) if flag == _SEEN}
        for at in todo:
            flags[at] = _FOLLOWED
        for place in (shard, shard / TMP) if todo else ():
            for digest in _blobs(place):
                if self._at(digest) in todo:
                    self._follow_blob(place / digest)

    def _follow_blob(self, path: Path) -> None:
        """Only records of loom refer to blobs, and those are JSON objects: a large file of a user is not read."""
        if next(fs.pieces(path, 1), b"") == b"{":
            self.follow(path)


class Unseeable(Exception):
    """A file may not be read that may refer to blobs. The text is its path."""


def mentions(path: Path) -> Iterator[str]:
    """Everything in a file that could be a digest. Nothing for one that is gone, or no file."""
    tail = b""
    try:
        for piece in fs.pieces(path):
            text = tail + piece
            for found in _MENTION.finditer(text):
                yield found[0].decode("ascii")
            tail = text[-_TAIL:]
    except (FileNotFoundError, fs.NotRegular):
        return
    except PermissionError:
        raise Unseeable(str(path)) from None


def sources(home: Home) -> Iterator[Path]:
    """Every file that may refer to a blob.

    First where mail is on its way, in the order in which it moves: what moves while we read is read at least once.
    """
    for below in ("outbox", "inbox", "inbox/.in-progress"):
        for agent in boxes(home):
            yield from (agent / below / name for name in fs.names(agent / below) if name.endswith(".msg"))
    yield from _files(home.path, ())


def _files(directory: Path, parts: tuple[str, ...]) -> Iterator[Path]:
    try:
        entries = os.scandir(directory)
    except FileNotFoundError:
        return
    except PermissionError:
        raise Unseeable(str(directory)) from None
    with entries:
        for entry in entries:
            below = (*parts, entry.name)
            if entry.is_dir(follow_symlinks=False):
                if not _is_left_out(below):
                    yield from _files(directory / entry.name, below)
            elif entry.is_file(follow_symlinks=False):
                yield directory / entry.name


def _is_left_out(parts: tuple[str, ...]) -> bool:
    match parts:
        case (name,):
            return name in _NOT_IN_HOME
        case ("agents" | "pipes", _, "logs") | ("goals", _, "workspace") | ("goals", _, "subtasks", _, _, "tree"):
            return True
    return False


def _key(digest: str) -> int:
    return int(digest[:16], 16)
