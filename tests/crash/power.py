"""What a power cut may leave: a workflow is run once, and every state its disk may have at any moment is recovered.

A subclass of `fs.Calls` makes the real calls and writes down what each one changed: which name in which directory
(an inode, not a path), which bytes of which file, what was synced. Between the calls it looks at the books of the
outside world (`crash_cases.note`): they say what somebody had been told by then, and no power cut takes that back.

From the record two models of a disk say what may be there after a cut behind each call:

    ext4    names change in one order for the whole file system: some first part of what was done since the last
            sync is there. Bytes that were not synced may be missing, in each file by itself.
    posix   nothing has an order. Each name in each directory is as it was or as it became, until that directory is
            synced; each file's bytes likewise, until that file is synced.

In both, bytes that were not synced are there, or not, or in part, or are zeros in place of them; but none is there
behind one that is not, in one file: a hole in front of good records is damage, which a journal refuses and leaves to a
person. A rename never loses
both names: within a directory, and of a directory, it is there or it is not; of a file between directories the new
name may be there beside the old one, but the old one is not gone before the new one is there. File systems in use
keep that, and without it nothing could be moved. A hint or a turn may be lost; a message that is moved may not.

Files in `.tmp/` whose names were drawn are left out: nobody finds them again after a crash, so states that differ in
them alone are one. Each distinct state (files and books) is made once, in a directory of its own, and a child
process recovers there with the real code. What it leaves must satisfy the case's oracles.

To see that every sync is needed, one place that syncs is taken out of the record, as if it had not been called
(`without`): the states that become possible must show it.
"""

from __future__ import annotations

import errno
import itertools
import json
import math
import os
import pickle
import random
import re
import shutil
import signal
import stat
import sys
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from harness import KILLED, Case
from support import BUG, ENVIRONMENT, forked, scratch

from loom.spool import fs

MODELS = ("ext4", "posix")
ALL = 1 << 10  # so many combinations are tried one and all; of more of them a part
SAMPLE = 192  # and so many drawn ones beside those with one or two differences
DEADLINE_S = 30
BOOKS = {"received", "kept", "asked", "effects"}  # that a setup may have begun; any new file in the root is one
_DRAWN = re.compile(r"[0-9a-f]{20}")
_LOOM = str(Path(fs.__file__).parents[1])

Node = int  # an inode: a number of the record's own, never used twice
Key = tuple[str, int, str]  # ("name", directory, name), ("bytes", inode, ""), ("mode", inode, "")
_MODES: Key = ("modes", -1, "")  # stands for all modes that were not synced
Books = tuple[tuple[str, bytes], ...]


@dataclass(frozen=True, slots=True)
class Inode:
    """What an inode was when it appeared. `data`: the bytes of a file, the text of a link."""

    kind: str
    data: bytes
    mode: int


@dataclass(frozen=True, slots=True)
class Step:
    """One call that changed or synced something.

    kind   name (names: pairs of key and inode, None for gone), write, truncate, mode; syncs: file, data, dir, all
    site   who called it: `module:function way/call`
    """

    kind: str
    site: str
    names: tuple[tuple[Key, Node | None], ...] = ()
    node: Node = -1
    data: bytes = b""
    number: int = 0


@dataclass(slots=True)
class Record:
    """A run, call by call, on a directory that was wholly on the disk when it began.

    books   what the outside world had noted when the call after steps[i] was made; books[0] before the first
    begun   from this step on cuts are looked at: what came before is the history of another record
    """

    inodes: list[Inode] = field(default_factory=list)
    before: dict[Key, Node] = field(default_factory=dict)
    steps: list[Step] = field(default_factory=list)
    books: list[Books] = field(default_factory=list)
    names: dict[Node, dict[str, Node]] = field(default_factory=dict)
    bytes: dict[Node, bytes] = field(default_factory=dict)
    numbers: dict[int, Node] = field(default_factory=dict)
    calls: int = 0
    begun: int = 0

    def sites(self) -> set[str]:
        """Every place that synced something."""
        return {s.site for s in self.steps[self.begun :] if s.kind in ("file", "data", "dir", "all")}


# -- recording -------------------------------------------------------------------------------------------------


class Recorder(fs.Calls):
    """Makes the calls and writes them down. At call `kill_at` the process is gone before it makes it."""

    def __init__(self, root: Path, record: Record, kill_at: int = 0, kept: Path | None = None) -> None:
        self.root = os.path.realpath(root)
        self.record = record
        self._kill_at, self._kept = kill_at, kept
        record.calls = 0
        if not record.inodes:
            self._known(self.root, None, "")
        self._look()

    def _known(self, path: str, directory: Node | None, name: str) -> None:
        """Take in what is there before the run: it is on the disk."""
        found = os.lstat(path)
        node = self._new(found, _content(path, found))
        if directory is not None:
            self.record.before["name", directory, name] = node
            self.record.names[directory][name] = node
        if stat.S_ISDIR(found.st_mode):
            for entry in sorted(os.listdir(path)):
                if directory is not None or entry not in BOOKS:
                    self._known(f"{path}/{entry}", node, entry)

    def _new(self, found: os.stat_result, data: bytes) -> Node:
        record = self.record
        node = len(record.inodes)
        record.inodes.append(Inode(_kind(found.st_mode), data, stat.S_IMODE(found.st_mode)))
        record.numbers[found.st_ino] = node
        record.bytes[node] = data
        if stat.S_ISDIR(found.st_mode):
            record.names[node] = {}
        return node

    def _look(self) -> None:
        """Note what the outside world knows by now: files in the root that no call of ours has made."""
        ours = self.record.names[0]
        books = [e for e in os.scandir(self.root) if e.name not in ours and e.is_file(follow_symlinks=False)]
        now = tuple(sorted((e.name, _content(e.path, e.stat())) for e in books))
        del self.record.books[len(self.record.steps) :]
        self.record.books.append(now)

    def _begin(self) -> None:
        self._look()
        self.record.calls += 1
        if self.record.calls == self._kill_at:
            assert self._kept is not None
            self._kept.write_bytes(pickle.dumps(self.record))
            os._exit(KILLED)

    def _add(self, kind: str, **fields: Any) -> None:
        self.record.steps.append(Step(kind, _site(), **fields))

    def _place(self, path: str) -> tuple[Node, str]:
        """(directory, name) of a path below the root. No link is followed on the way: ours lead nowhere."""
        *above, name = os.path.relpath(os.path.abspath(path), self.root).split("/")
        directory = 0
        for part in above:
            directory = self.record.names[directory][part]
        return directory, name

    def _put(self, *changes: tuple[str, Node | None]) -> None:
        """Names that changed together."""
        keys = []
        for path, node in changes:
            directory, name = self._place(path)
            keys.append((("name", directory, name), node))
            if node is None:
                del self.record.names[directory][name]
            else:
                self.record.names[directory][name] = node
        self._add("name", names=tuple(keys))

    def _at(self, path: str) -> Node:
        if os.path.abspath(path) == self.root:
            return 0
        directory, name = self._place(path)
        return self.record.names[directory][name]

    def _of(self, fd: int) -> Node:
        return self.record.numbers[os.fstat(fd).st_ino]

    def mkdir(self, path: str, mode: int) -> None:
        self._begin()
        super().mkdir(path, mode)
        self._put((path, self._new(os.lstat(path), b"")))

    def create(self, path: str, mode: int) -> int:
        self._begin()
        fd = super().create(path, mode)
        self._put((path, self._new(os.fstat(fd), b"")))
        return fd

    def open_append(self, path: str, mode: int) -> int:
        self._begin()
        fd = super().open_append(path, mode)
        directory, name = self._place(path)
        if name not in self.record.names[directory]:
            self._put((path, self._new(os.fstat(fd), b"")))
        return fd

    def write(self, fd: int, data: bytes | memoryview) -> int:
        self._begin()
        written = super().write(fd, data)
        node = self._of(fd)
        data = bytes(data[:written])
        self.record.bytes[node] += data  # nothing of ours writes anywhere but at the end
        self._add("write", node=node, data=data)
        return written

    def fsync(self, fd: int) -> None:
        self._begin()
        super().fsync(fd)
        self._add("file", node=self._of(fd))

    def fdatasync(self, fd: int) -> None:
        self._begin()
        super().fdatasync(fd)
        self._add("data", node=self._of(fd))

    def fsync_dir(self, path: str) -> None:
        self._begin()
        super().fsync_dir(path)
        self._add("dir", node=self._at(path))

    def sync_file_system(self, path: str) -> None:
        self._begin()
        super().sync_file_system(path)
        self._add("all")

    def link(self, source: str, target: str) -> None:
        self._begin()
        super().link(source, target)
        self._put((target, self._at(source)))

    def rename(self, source: str, target: str) -> None:
        self._begin()
        super().rename(source, target)
        self._put((target, self._at(source)), (source, None))

    def rename_noreplace(self, source: str, target: str) -> None:
        self._begin()
        super().rename_noreplace(source, target)
        self._put((target, self._at(source)), (source, None))

    def unlink(self, path: str) -> None:
        self._begin()
        super().unlink(path)
        self._put((path, None))

    def rmdir(self, path: str) -> None:
        self._begin()
        super().rmdir(path)
        self._put((path, None))

    def truncate(self, fd: int, size: int) -> None:
        self._begin()
        super().truncate(fd, size)
        node = self._of(fd)
        self.record.bytes[node] = _cut(self.record.bytes[node], size)
        self._add("truncate", node=node, number=size)

    def chmod(self, fd: int, mode: int) -> None:
        self._begin()
        super().chmod(fd, mode)
        self._add("mode", node=self._of(fd), number=mode)

    def symlink(self, text: str, path: str) -> None:
        self._begin()
        super().symlink(text, path)
        self._put((path, self._new(os.lstat(path), os.fsencode(text))))

    def mkfifo(self, path: str, mode: int) -> None:
        self._begin()
        super().mkfifo(path, mode)
        self._put((path, self._new(os.lstat(path), b"")))

    def finish(self) -> None:
        """The run is over: the books' last lines, and a look whether the record knows everything."""
        self._look()
        self._compare(self.root, 0)

    def _compare(self, path: str, directory: Node) -> None:
        """Whatever changed a file without one of our calls would be missing in every state."""
        known = self.record.names[directory]
        there = set(os.listdir(path))
        if directory == 0:
            there &= known.keys()  # the rest are books
        assert there == known.keys(), f"changed behind our back: {path}: {sorted(there ^ known.keys())}"
        for name, node in known.items():
            found = os.lstat(f"{path}/{name}")
            if stat.S_ISDIR(found.st_mode):
                self._compare(f"{path}/{name}", node)
            else:
                same = _content(f"{path}/{name}", found) == self.record.bytes[node]
                assert same, f"changed behind our back: {path}/{name}"


def _kind(mode: int) -> str:
    kinds = {stat.S_IFREG: "file", stat.S_IFDIR: "dir", stat.S_IFLNK: "link", stat.S_IFIFO: "fifo"}
    return kinds[stat.S_IFMT(mode)]


def _content(path: str, found: os.stat_result) -> bytes:
    if stat.S_ISLNK(found.st_mode):
        return os.fsencode(os.readlink(path))
    return Path(path).read_bytes() if stat.S_ISREG(found.st_mode) else b""


def _cut(data: bytes, size: int) -> bytes:
    return data[:size].ljust(size, b"\0")


def _site() -> str:
    """`module:function way/call` of the nearest caller outside fs.py: which way of writing, and the call it led to.

    Callers outside the package are this project's tests: all of them are `test`.
    """
    frame: FrameType | None = sys._getframe(2)
    while frame is not None and frame.f_code.co_filename == __file__ and frame.f_code.co_name not in _CALLS:
        frame = frame.f_back
    assert frame is not None
    call = way = frame.f_code.co_name
    while frame is not None and frame.f_code.co_filename in (__file__, fs.__file__):
        if frame.f_code.co_filename == fs.__file__:
            way = frame.f_code.co_name
        frame = frame.f_back
    who = "test"
    if frame is not None and frame.f_code.co_filename.startswith(_LOOM):
        who = f"{Path(frame.f_code.co_filename).stem}:{frame.f_code.co_name}"
    return f"{who} {call}" if way == call else f"{who} {way}/{call}"


_CALLS = frozenset(name for name in vars(fs.Calls) if not name.startswith("_"))


def record(work: Callable[[Path], None], root: Path, room: Path, history: Record | None = None, kill_at: int = 0
           ) -> Record:  # fmt: skip
    """What `work(root)` does, behind a `history`. With `kill_at` it is killed there, and the disk loses nothing."""
    kept = room / "record"

    def run() -> dict[str, Any]:
        kept_record = history or Record()
        kept_record.begun = len(kept_record.steps)
        recorder = Recorder(root, kept_record, kill_at, kept)
        fs.calls = recorder
        work(root)
        fs.calls = fs.Calls()
        recorder.finish()
        kept.write_bytes(pickle.dumps(kept_record))
        return {}

    ended = forked(run)
    if ended.status != (KILLED if kill_at else 0):
        raise AssertionError(f"the recording ended with {ended.status}: {ended.said.get('trace')}")
    found: Record = pickle.loads(kept.read_bytes())
    return found


# -- the disk --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Version:
    """What a name, a file's bytes or a mode may be, and the step that made it so; -1: it was so before."""

    step: int
    value: Any


@dataclass(frozen=True, slots=True)
class Tie:
    """When `key` has a version of step `step` or later, so has `other`; `both`: and the other way round."""

    step: int
    key: Key
    other: Key
    both: bool


World = dict[Key, list[Version]]


class Bytes:
    """A file's content: what is on the disk for certain, and what was done since."""

    def __init__(self, data: bytes) -> None:
        self.durable = Version(-1, data)
        self.done: list[tuple[int, Step]] = []
        self._known: dict[tuple[int, int], list[Version]] = {}

    def settle(self, step: int) -> None:
        self.durable, self.done = Version(step, _after(self.durable.value, self.done)), []

    def versions(self, until: int) -> list[Version]:
        """What may be found, whatever was done before step `until`; the last one is all of it."""
        done = [(n, s) for n, s in self.done if n < until]
        asked = self.durable.step, done[-1][0] if done else -1
        if asked not in self._known:
            self._known[asked] = self._versions(done)
        return self._known[asked]

    def _versions(self, done: list[tuple[int, Step]]) -> list[Version]:
        found = {self.durable.value: self.durable.step}
        now = longest = self.durable.value
        for n, step in done:
            if step.kind == "truncate":
                now = _cut(now, step.number)
            else:
                for part in (len(step.data) // 2, len(step.data) - 1):
                    found.setdefault(now + step.data[:part], n)
                found.setdefault(now + bytes(len(step.data)), n)
                now += step.data
                if len(now) < len(longest):  # written over what truncating was to take away
                    found.setdefault(now + longest[len(now) :], n)
            longest = max(longest, now, key=len)
            found.setdefault(now, n)
        last, kept = (done[-1][0] if done else -1), len(self.durable.value)
        if now.startswith(self.durable.value) and len(now) > kept:
            middle = (kept + len(now)) // 2
            found.setdefault(now[:kept] + bytes(len(now) - kept), last)
            found.setdefault(now[:middle] + bytes(len(now) - middle), last)
        step = found.pop(now)
        return [*(Version(n, data) for data, n in found.items()), Version(step, now)]


def _after(data: bytes, done: Iterable[tuple[int, Step]]) -> bytes:
    for _, step in done:
        data = _cut(data, step.number) if step.kind == "truncate" else data + step.data
    return data


class Disk:
    """Follows a record and says, step by step, what may be on the disk. Subclasses are the models."""

    def __init__(self, record: Record) -> None:
        self.record = record
        self.names: World = {key: [Version(-1, node)] for key, node in record.before.items()}
        self.bytes = {n: Bytes(i.data) for n, i in enumerate(record.inodes) if i.kind == "file"}
        self.modes: World = {("mode", n, ""): [Version(-1, i.mode)] for n, i in enumerate(record.inodes)}
        self.ties: list[Tie] = []

    def feed(self, n: int, step: Step) -> None:
        raise NotImplementedError

    def worlds(self, n: int, whole: bool) -> Iterator[tuple[World, list[Key]]]:
        """(what may be, the keys of which one must have a version of step n; empty for no such condition).

        whole: also what was possible before step n, for those who know more by now.
        """
        raise NotImplementedError


class Posix(Disk):
    """Nothing has an order but what one name, or one file, goes through."""

    def feed(self, n: int, step: Step) -> None:
        match step.kind:
            case "name":
                for key, node in step.names:
                    self.names.setdefault(key, [Version(-1, None)]).append(Version(n, node))
                if len(step.names) == 2:
                    (new, node), (old, _) = step.names
                    assert node is not None
                    whole = new[1] == old[1] or self.record.inodes[node].kind == "dir"
                    self.ties.append(Tie(n, old, new, whole))
            case "write" | "truncate":
                self.bytes[step.node].done.append((n, step))
            case "mode":
                self.modes["mode", step.node, ""].append(Version(n, step.number))
            case "file":
                self.bytes[step.node].settle(n)
                self._settle(self.modes, ("mode", step.node, ""))
            case "data":
                self.bytes[step.node].settle(n)
            case "dir":
                for key in [k for k in self.names if k[1] == step.node]:
                    self._settle(self.names, key)
                self._settle(self.modes, ("mode", step.node, ""))
            case "all":
                for found in self.bytes.values():
                    found.settle(n)
                for world in (self.names, self.modes):
                    for key in list(world):
                        self._settle(world, key)

    def _settle(self, world: World, key: Key) -> None:
        """Only the last version is left, and of what is tied to it only what goes with it."""
        self._at_least(world, key, world[key][-1].step)
        self.ties = [t for t in self.ties if len(world.get(t.key, "12")) > 1 or len(world.get(t.other, "12")) > 1]

    def _at_least(self, world: World, key: Key, step: int) -> None:
        left = [v for v in world[key] if v.step >= step]
        if len(left) == len(world[key]):
            return
        world[key] = left
        for tie in self.ties:
            if tie.key == key and left[0].step >= tie.step:
                self._at_least(world, tie.other, tie.step)
            if tie.both and tie.other == key and left[0].step >= tie.step:
                self._at_least(world, tie.key, tie.step)

    def worlds(self, n: int, whole: bool) -> Iterator[tuple[World, list[Key]]]:
        step = self.record.steps[n] if n >= 0 else Step("all", "")
        changed = _changes(step)
        if not whole and not changed:
            return
        world = self.names | self.modes
        for node, found in self.bytes.items():
            world["bytes", node, ""] = found.versions(n + 1) if found.done else [found.durable]
        yield world, [] if whole else changed


def _changes(step: Step) -> list[Key]:
    match step.kind:
        case "name":
            return [key for key, _ in step.names]
        case "write" | "truncate":
            return [("bytes", step.node, "")]
        case "mode":
            return [("mode", step.node, "")]
    return []


class Ext4(Disk):
    """Names, modes and sizes cut change in one order; a sync of anything brings all that was before it."""

    def __init__(self, record: Record) -> None:
        super().__init__(record)
        self.journal: list[tuple[int, Step]] = []

    def feed(self, n: int, step: Step) -> None:
        if step.kind in ("name", "mode", "truncate"):
            self.journal.append((n, step))
        if step.kind in ("write", "truncate"):
            self.bytes[step.node].done.append((n, step))
        if step.kind in ("file", "data", "dir", "all"):
            self._commit(self.names, self.modes, self.journal)
            self.journal = []
            for found in self.bytes.values():
                cuts = [i for i, (_, s) in enumerate(found.done) if s.kind == "truncate"]
                if cuts:  # the size is a matter of the journal
                    data = _after(found.durable.value, found.done[: cuts[-1] + 1])
                    found.durable, found.done = Version(n, data), found.done[cuts[-1] + 1 :]
        if step.kind in ("file", "data"):
            self.bytes[step.node].settle(n)
        if step.kind == "all":
            for found in self.bytes.values():
                found.settle(n)

    @staticmethod
    def _commit(names: World, modes: World, journal: Iterable[tuple[int, Step]]) -> None:
        for n, step in journal:
            for key, node in step.names:
                names[key] = [Version(n, node)]
            if step.kind == "mode":
                modes["mode", step.node, ""] = [Version(n, step.number)]

    def worlds(self, n: int, whole: bool) -> Iterator[tuple[World, list[Key]]]:
        step = self.record.steps[n] if n >= 0 else Step("all", "")
        changed = _changes(step)
        if not whole and not changed:
            return
        lengths = range(len(self.journal) + 1)
        if not whole and step.kind != "write":
            lengths = range(len(self.journal), len(self.journal) + 1)
        for length in lengths:
            names, modes = dict(self.names), dict(self.modes)
            self._commit(names, modes, self.journal[:length])
            cuts = {s.node: m for m, s in reversed(self.journal[length:]) if s.kind == "truncate"}
            world = names | modes
            for node, found in self.bytes.items():
                until = cuts.get(node, n + 1)
                world["bytes", node, ""] = found.versions(until) if found.done else [found.durable]
            yield world, changed if not whole and step.kind == "write" else []


_DISKS: dict[str, type[Disk]] = {"ext4": Ext4, "posix": Posix}


# -- states ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class State:
    """One possible state.

    tree   what is on the disk, nested; see put_on_disk
    step   the cut is behind this step of the record
    lost   how many names and contents are not what they had become
    """

    digest: int
    tree: Any
    books: Books
    step: int
    lost: int


@dataclass(slots=True)
class Cuts:
    """What `states` did: how many cuts, and at how many of them there was more than could be tried."""

    cuts: int = 0
    sampled: int = 0


def states(
    record: Record, model: str, seen: set[int], counts: Cuts, *, without: str = "", seed: int = 1
) -> Iterator[State]:
    """Every state not yet in `seen` that a cut behind any step of the record may leave; those are added to it.

    without   a place whose syncs are taken out
    """
    disk = _DISKS[model](record)
    rng = random.Random(f"{seed} {model} {without}")
    books: Books | None = None
    for n in range(-1, len(record.steps)):
        step = record.steps[n] if n >= 0 else None
        if step is not None and not (without and step.site == without):
            disk.feed(n, step)
        if n < record.begun - 1:
            continue
        now = record.books[n + 1]
        whole, books = now != books, now
        counts.cuts += 1
        for world, changed in disk.worlds(n, whole):
            yield from _combined(record, disk, world, changed, n, now, seen, counts, rng)


def _combined(
    record: Record,
    disk: Disk,
    world: World,
    changed: list[Key],
    n: int,
    books: Books,
    seen: set[int],
    counts: Cuts,
    rng: random.Random,
) -> Iterator[State]:
    """The states of one world: every combination of versions that the ties allow."""
    tree = _Tree(record, world)
    free = {key: versions for key, versions in world.items() if len(versions) > 1 and tree.matters(key)}
    modes = [key for key in free if key[0] == "mode"]
    free = {key: versions for key, versions in free.items() if key[0] != "mode"}
    if modes:  # all as they were, or all as they became: nothing depends on one without the other
        free[_MODES] = [Version(-1, 0), Version(n, -1)]
    ties = [tie for tie in disk.ties if tree.matters(tie.key) and tree.matters(tie.other)]
    told = hash(books)
    for fresh in changed or [None]:
        fresh = _MODES if fresh in modes else fresh
        domains = dict(free)
        if fresh is not None:
            if fresh not in domains:
                if fresh[0] != "mode" and tree.matters(fresh) and world[fresh][-1].step == n:
                    domains = {**domains, fresh: world[fresh]}
                else:
                    continue
            domains[fresh] = [v for v in domains[fresh] if v.step == n] or domains[fresh][-1:]
        for choice in _choices(domains, counts, rng):
            if not all(_holds(tie, choice, world) for tie in ties):
                continue
            digest = hash((tree.digest(choice), told))
            if digest not in seen:
                seen.add(digest)
                lost = sum(key in world and version.step != world[key][-1].step for key, version in choice.items())
                yield State(digest, tree.made(choice), books, n, lost)


def _holds(tie: Tie, choice: dict[Key, Version], world: World) -> bool:
    one = choice.get(tie.key, world[tie.key][-1]).step >= tie.step
    other = choice.get(tie.other, world[tie.other][-1]).step >= tie.step
    return one == other if tie.both else other or not one


def _choices(domains: World, counts: Cuts, rng: random.Random) -> Iterator[dict[Key, Version]]:
    """All combinations; when those are too many, the two extremes with up to two differences, and a drawn sample."""
    keys = list(domains)
    if math.prod(len(v) for v in domains.values()) <= ALL:
        for versions in itertools.product(*domains.values()):
            yield dict(zip(keys, versions, strict=True))
        return
    counts.sampled += 1
    extremes = ({k: v[-1] for k, v in domains.items()}, {k: v[0] for k, v in domains.items()})
    for base in extremes:
        yield base
        for key in keys:
            for version in domains[key]:
                yield {**base, key: version}
        pairs = list(itertools.combinations(keys, 2))
        for one, other in pairs if len(pairs) <= ALL // 4 else rng.sample(pairs, ALL // 4):
            yield {**base, one: rng.choice(domains[one]), other: rng.choice(domains[other])}
    for _ in range(SAMPLE):
        lost = rng.random()
        yield {k: v[-1] if rng.random() > lost else rng.choice(v) for k, v in domains.items()}


class _Tree:
    """Puts a choice together. What no choice changes is put together once."""

    def __init__(self, record: Record, world: World) -> None:
        self.record, self.world = record, world
        self.below: dict[Node, list[tuple[str, Key]]] = {}
        self.named: set[Node] = {0}
        for key, versions in world.items():
            if key[0] == "name" and not self._is_litter(key):
                self.below.setdefault(key[1], []).append((key[2], key))
                self.named.update(v.value for v in versions if v.value is not None)
        self.fixed: dict[Node, tuple[int, Any]] = {}
        self._warm: dict[Node, bool] = {}

    def _is_litter(self, key: Key) -> bool:
        if not _DRAWN.fullmatch(key[2]):
            return False
        return any(k[2] == fs.TMP and any(v.value == key[1] for v in self.world[k]) for k in self._names_of_tmp())

    def _names_of_tmp(self) -> list[Key]:
        if not hasattr(self, "_tmp"):
            self._tmp = [k for k in self.world if k[0] == "name" and k[2] == fs.TMP]
        return self._tmp

    def matters(self, key: Key) -> bool:
        return not self._is_litter(key) if key[0] == "name" else key[1] in self.named

    def _is_warm(self, node: Node) -> bool:
        """Whether there is a choice about anything at or below this inode."""
        if node not in self._warm:
            own = any(len(self.world.get((kind, node, ""), "1")) > 1 for kind in ("bytes", "mode"))
            self._warm[node] = own or any(
                len(self.world[key]) > 1 or any(v.value is not None and self._is_warm(v.value) for v in self.world[key])
                for _, key in self.below.get(node, ())
            )
        return self._warm[node]

    def digest(self, choice: dict[Key, Version]) -> int:
        return self._put(0, choice)[0]

    def made(self, choice: dict[Key, Version]) -> Any:
        return self._put(0, choice)[1]

    def _put(self, node: Node, choice: dict[Key, Version]) -> tuple[int, Any]:
        if node in self.fixed:
            return self.fixed[node]
        inode = self.record.inodes[node]
        mode = self._get(("mode", node, ""), choice)
        if inode.kind == "dir":
            entries = []
            for name, key in self.below.get(node, ()):
                child = self._get(key, choice)
                if child is not None:
                    entries.append((name, *self._put(child, choice)))
            entries.sort()
            made = hash((mode, *((name, h) for name, h, _ in entries))), ("dir", mode, entries)
        elif inode.kind == "file":
            data = self._get(("bytes", node, ""), choice)
            made = hash((mode, data)), ("file", mode, data, node)
        else:
            made = hash((inode.kind, inode.data)), (inode.kind, mode, inode.data)
        if not self._is_warm(node):
            self.fixed[node] = made
        return made

    def _get(self, key: Key, choice: dict[Key, Version]) -> Any:
        found = choice.get(key)
        if found is None:
            which = choice[_MODES].value if key[0] == "mode" and _MODES in choice else -1
            found = self.world[key][which]
        return found.value


def put_on_disk(tree: Any, books: Books, root: Path) -> None:
    """Make the files of a state in a directory that is not there yet."""
    _make(tree, str(root), {})
    for name, data in books:
        (root / name).write_bytes(data)


def _make(what: Any, path: str, made: dict[Node, str]) -> None:
    match what:
        case ("dir", mode, entries):
            os.mkdir(path, 0o700)
            for name, _, below in entries:
                _make(below, f"{path}/{name}", made)
            if mode != 0o700:
                os.chmod(path, mode)
        case ("file", mode, data, node):
            if node in made:
                os.link(made[node], path)
                return
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
            os.write(fd, data)
            os.close(fd)
            if mode & 0o077:
                os.chmod(path, mode)
            made[node] = path
        case ("link", _, text):
            os.symlink(text, path)
        case ("fifo", mode, _):
            os.mkfifo(path, mode)


def listing(tree: Any, books: Books) -> dict[str, str]:
    """A state for people: size and beginning of each file by path."""
    found: dict[str, str] = {f"({name})": f"{data.count(10)} lines" for name, data in books}

    def walk(what: Any, path: str) -> None:
        if what[0] == "dir":
            found[f"{path}/"] = oct(what[1])
            for name, _, below in what[2]:
                walk(below, f"{path}/{name}")
        elif what[0] == "file":
            found[path] = f"{len(what[2])} bytes {what[2][-40:]!r}"
        else:
            found[path] = what[0]

    walk(tree, "")
    return found


# -- exploring -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Workflow:
    """A case of the harness as power cuts meet it.

    reboot   what happens before the case's own recovery when the machine was off
    kills    the workflow is also killed at calls of its own and started again, and then the power is cut
    """

    case: Case
    reboot: Callable[[Path], None] = lambda root: None
    kills: bool = False

    @property
    def name(self) -> str:
        return self.case.name


@dataclass(slots=True)
class Report:
    """What an exploration did. `states`: distinct ones by model; `tried`: those of both; `failures` are lines."""

    name: str
    tried: int = 0
    states: Counter[str] = field(default_factory=Counter)
    records: int = 0
    cuts: int = 0
    sampled: int = 0
    sites: set[str] = field(default_factory=set)
    failures: list[str] = field(default_factory=list)

    def line(self) -> str:
        by = ", ".join(f"{model} {count}" for model, count in sorted(self.states.items()))
        part = f"{self.sampled} cuts in part" if self.sampled else "complete"
        return (
            f"{self.name}: {self.records} histories, {self.cuts} cuts, states {by}, {self.tried} recovered ({part}), "
            f"{len(self.failures)} failures"
        )


class Explorer:
    """One workflow, recorded; the states seen so far, so that none is tried twice, not by the mutants either."""

    def __init__(self, workflow: Workflow, seed: int = 1, jobs: int = 2) -> None:
        self.workflow, self.seed, self.jobs = workflow, seed, jobs
        self.room = scratch()
        self.records: list[tuple[int, Record]] = []
        self.seen: dict[str, set[int]] = {model: set() for model in MODELS}
        self.tried: set[int] = set()
        self.prepared = self.room / "prepared"
        self.prepared.mkdir()
        made = forked(lambda: workflow.case.setup(self.prepared))  # type: ignore[func-returns-value]
        assert not made.status, made.said
        self.records.append((0, self._record(0)))

    def __enter__(self) -> Explorer:
        return self

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self.room, ignore_errors=True)

    def _record(self, kill_at: int) -> Record:
        root = self.room / "root"
        shutil.rmtree(root, ignore_errors=True)
        copy_tree(self.prepared, root)
        first = record(self.workflow.case.workflow, root, self.room, kill_at=kill_at)
        if not kill_at:
            return first
        return record(self.workflow.case.recover, root, self.room, history=first)

    def record_kills(self, at_most: int = 0) -> None:
        """Histories in which the process is killed before a call, goes on anew, and only then the power is cut."""
        points = list(range(2, self.records[0][1].calls + 1))
        if at_most and len(points) > at_most:
            points = sorted(random.Random(self.seed).sample(points, at_most))
        self.records += [(n, self._record(n)) for n in points]

    def sites(self) -> set[str]:
        return {site for _, rec in self.records for site in rec.sites() if not site.startswith("test ")}

    def states(self, model: str) -> int:
        """Take note of every state that is possible, without recovering any; how many there are."""
        for _, rec in self.records:
            for _ in states(rec, model, self.seen[model], Cuts(), seed=self.seed):
                pass
        return len(self.seen[model])

    def explore(self, models: Iterable[str] = MODELS, at_most: int = 0) -> Report:
        """Recover every state; `at_most` so many of each model and history, drawn by the seed."""
        report = Report(self.workflow.name, records=len(self.records), sites=self.sites())
        for model in models:
            for kill, rec in self.records:
                counts = Cuts()
                found: Iterable[State] = states(rec, model, self.seen[model], counts, seed=self.seed)
                report.tried += self._try(self._drawn(found, at_most), rec, kill, model, "", report.failures)
                report.cuts += counts.cuts
                report.sampled += counts.sampled
            report.states[model] = len(self.seen[model])
        return report

    def _drawn(self, found: Iterable[State], at_most: int) -> Iterable[State]:
        if not at_most:
            return found
        all_found = list(found)
        return random.Random(self.seed).sample(all_found, at_most) if len(all_found) > at_most else all_found

    def without(self, site: str, models: Iterable[str] = MODELS, at_most: int = 0) -> str:
        """The first violation when this place does not sync; empty when none is found. It must be in a record.

        at_most   so many of the states that become possible, of each history and model: those first that have lost
                  the least, and of these the late ones, because then the outside world knows more
        """
        fired = [(kill, rec) for kill, rec in self.records if site in {s.site for s in rec.steps}]
        assert fired, f"{site} is in no record of {self.workflow.name}"
        failures: list[str] = []
        for kill, rec in fired:
            for model in reversed(tuple(models)):
                found = list(states(rec, model, set(self.seen[model]), Cuts(), without=site, seed=self.seed))
                found.sort(key=lambda state: (state.lost, -state.step))
                self._try(found[: at_most or None], rec, kill, model, site, failures, until_failure=True)
                if failures:
                    return failures[0]
        return ""

    def _try(
        self,
        found: Iterable[State],
        rec: Record,
        kill: int,
        model: str,
        site: str,
        failures: list[str],
        until_failure: bool = False,
    ) -> int:
        """Recover those states that were not tried yet, `jobs` child processes at a time; how many those were."""
        running: dict[int, tuple[int, State]] = {}
        tried = 0

        def reap() -> None:
            pid, status = os.wait()
            number, state = running.pop(pid)
            said = self.room / f"trial{number}.said"
            if status:
                wrong = said.read_text() if said.exists() else f"ended with {os.waitstatus_to_exitcode(status)}"
                failures.append(self._told(rec, kill, model, site, state, wrong))
                said.unlink(missing_ok=True)
                shutil.rmtree(self.room / f"trial{number}", ignore_errors=True)

        for number, state in enumerate(found):
            while len(running) >= self.jobs:
                reap()
            if until_failure and failures:
                break
            if state.digest in self.tried:
                continue
            self.tried.add(state.digest)
            tried += 1
            pid = os.fork()
            if pid == 0:
                self._trial(state, number)
            running[pid] = number, state
        while running:
            reap()
        return tried

    def _trial(self, state: State, number: int) -> None:
        """In a child: make the state, recover, look; never returns."""
        status = BUG
        root = self.room / f"trial{number}"
        case = self.workflow.case
        try:
            signal.alarm(DEADLINE_S)
            put_on_disk(state.tree, state.books, root)
            case.crashed(root)
            self.workflow.reboot(root)
            case.recover(root)
            case.check(root)
            shutil.rmtree(root)
            status = 0
        except BaseException as error:
            status = ENVIRONMENT if isinstance(error, OSError) else BUG
            (self.room / f"trial{number}.said").write_text(f"status {status}: {traceback.format_exc()[-1500:]}")
        finally:
            os._exit(status)

    def _told(self, rec: Record, kill: int, model: str, site: str, state: State, wrong: str) -> str:
        """A failure, with what the state lacks of what had been done."""
        disk = Posix(rec)
        for n, step in enumerate(rec.steps[: state.step + 1]):
            disk.feed(n, step)
        world = disk.names | disk.modes | {("bytes", n, ""): b.versions(state.step + 1) for n, b in disk.bytes.items()}
        done = listing(_Tree(rec, world).made({}), state.books)
        found = listing(state.tree, state.books)
        lost = [f"{p}: {found.get(p, '-')} for {done.get(p, '-')}" for p in sorted({*done, *found})
                if done.get(p) != found.get(p)]  # fmt: skip
        at = rec.steps[state.step].site if state.step >= 0 else "the beginning"
        killed = f"killed at {kill}, " if kill else ""
        return (
            f"{self.workflow.name}: {model}: {f'without {site}, ' if site else ''}{killed}cut behind step {state.step} "
            f"({at}): {wrong}\n  lost: " + "\n        ".join(lost)
        )


def copy_tree(source: Path, target: Path) -> None:
    """shutil.copytree() that makes FIFOs anew."""

    def copy(one: str, other: str) -> None:
        if stat.S_ISFIFO(os.lstat(one).st_mode):
            os.mkfifo(other)
        else:
            shutil.copy2(one, other, follow_symlinks=False)

    def fifos(directory: str, names: list[str]) -> list[str]:
        return [n for n in names if stat.S_ISFIFO(os.lstat(f"{directory}/{n}").st_mode)]

    shutil.copytree(source, target, symlinks=True, copy_function=copy, ignore=fifos)
    for directory, _, names in os.walk(source):
        for name in fifos(directory, names):
            os.mkfifo(target / Path(directory).relative_to(source) / name, 0o600)


__all__ = ["MODELS", "Explorer", "Recorder", "Report", "Workflow", "errno", "json"]
