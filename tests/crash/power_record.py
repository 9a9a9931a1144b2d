"""What a workflow does to its disk, call by call.

A subclass of `fs.Calls` makes the real calls and writes down what each one changed: which name in which directory
(an inode, not a path), which bytes of which file, what was synced. Between the calls it looks at the books of the
outside world (`crash_cases.note`): they say what somebody had been told by then, and no power cut takes that back.
"""

from __future__ import annotations

import os
import pickle
import socket
import stat
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from harness import KILLED
from support import forked

from loom.spool import fs

BOOKS = {"received", "kept", "asked", "effects"}  # that a setup may have begun; any new file in the root is one
_LOOM = str(Path(fs.__file__).parents[1])

Node = int  # an inode: a number of the record's own, never used twice
Key = tuple[str, int, str]  # ("name", directory, name), ("bytes", inode, ""), ("mode", inode, "")
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
    call   the how-manieth call of its life it was
    """

    kind: str
    site: str
    call: int
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
        self.record.steps.append(Step(kind, _site(), self.record.calls, **fields))

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
        self.record.bytes[node] = cut(self.record.bytes[node], size)
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

    def bind(self, connection: socket.socket, path: str, mode: int) -> None:
        self._begin()
        super().bind(connection, path, mode)
        path = f"{os.readlink(os.path.dirname(path))}/{os.path.basename(path)}"  # named by way of its directory
        self._put((path, self._new(os.lstat(path), b"")))

    def touch(self, path: str) -> None:
        self._begin()
        super().touch(path)  # times decide nothing

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


def cut(data: bytes, size: int) -> bytes:
    """What ftruncate() makes of a file's bytes."""
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
