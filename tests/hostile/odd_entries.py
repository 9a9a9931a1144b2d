"""Odd directory entries, as many as wanted, the same for the same seed: what careless and hostile senders leave.

Whatever takes mail from a directory can be tried with them: an inbox, an outbox, the `control/` of a goal. Each entry
says what is to become of it. Entries are made in a directory beside and moved in, so that nobody reads half of one.

    leave = Leaver(inbox, seed=7, good=encode, canary=file_outside)
    odd = leave.some(1000)
    …
    leave.close()                 what was made immutable can be removed again
"""

from __future__ import annotations

import array
import contextlib
import fcntl
import json
import os
import random
import socket
import stat
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from loom.wire import ids

START_MS = 1_790_000_000_000
_GET_FLAGS, _SET_FLAGS, _IMMUTABLE = 0x80086601, 0x40086602, 0x10
MALFORMED = ("malformed",)


@dataclass(frozen=True, slots=True)
class Odd:
    """One entry.

    name      what it was called when it was left
    kind      what is odd about it, for the message of a test that fails
    reasons   the words of which one must be given for it; none: it is no message and stays where it is
    stays     it cannot be moved
    """

    name: str
    kind: str
    reasons: tuple[str, ...]
    stays: bool = False


@dataclass
class Leaver:
    """Leaves entries in `directory`.

    good     the bytes of a message that could be taken, by its name
    canary   a file outside: links lead to it, nobody may follow them
    suffix   what the names of messages end in
    wrong    fields with a value that makes `good` unreadable, and the reason for it
    """

    directory: Path
    seed: int
    good: Callable[[str], bytes]
    canary: Path
    suffix: str = ".msg"
    wrong: list[tuple[str, Any, str]] = field(default_factory=lambda: list(WRONG_FIELDS))
    start_ms: int = START_MS

    def __post_init__(self) -> None:
        self.draw = random.Random(self.seed)
        self.staging = Path(tempfile.mkdtemp(prefix="staging-", dir=self.directory / ".tmp"))
        self._is_root = self._may_move_what_is_closed()
        self._count = 0
        self._open: list[int] = []
        self._immutable: list[int] = []
        self._kinds = [kind for kind in vars(Leaver) if kind.startswith("_odd_")]
        self._names = [name + self.suffix.encode() for name in ODD_NAMES] + [
            name.replace(b".msg", self.suffix.encode()) for name in NO_MESSAGE
        ]

    def stem(self) -> str:
        """The next message's name: in the order of making."""
        self._count += 1
        return ids.message_stem(self.start_ms + self._count, self._count.to_bytes(10, "big"))

    def some(self, count: int, between: Callable[[], object] = lambda: None) -> list[Odd]:
        """`count` entries, each kind and each odd name at least once when there is room; `between` after each."""
        kinds: list[Any] = [*self._kinds, *range(len(self._names))]
        while len(kinds) < count:
            kinds.append(self.draw.choice(self._kinds))
        self.draw.shuffle(kinds)
        made: list[Odd] = []
        for kind in kinds[:count]:
            odd = self._named(self._names[kind]) if isinstance(kind, int) else getattr(self, kind)()
            if odd is not None:
                made.append(odd)
            between()
        while len(made) < count:  # what this system or this user cannot make
            made.append(self._odd_torn())
            between()
        return made

    def close(self) -> None:
        for fd in self._immutable:
            with contextlib.suppress(OSError):
                _set_immutable(fd, False)
        for fd in (*self._open, *self._immutable):
            os.close(fd)

    def put(self, name: str, make: Callable[[Path], object]) -> None:
        """Make something beside and move it in: it appears whole."""
        beside = self.staging / "entry"
        make(beside)
        os.rename(beside, os.fsencode(self.directory) + b"/" + os.fsencode(name))

    def _leave(self, kind: str, reasons: tuple[str, ...], make: Callable[[Path], object]) -> Odd:
        name = f"{self.stem()}{self.suffix}"
        self.put(name, make)
        return Odd(name, kind, reasons)

    def _bytes(self, kind: str, reasons: tuple[str, ...], data: Callable[[bytes], bytes]) -> Odd:
        stem = self.stem()
        name = f"{stem}{self.suffix}"
        self.put(name, lambda path: path.write_bytes(data(self.good(stem))))
        return Odd(name, kind, reasons)

    # -- bytes that are no message ------------------------------------------------------------------------------

    def _odd_torn(self) -> Odd:
        """Cut anywhere: in a key, a string, an escape, a number, after a comma; not only before the last newline."""
        return self._bytes("torn", MALFORMED, lambda good: good[: self.draw.randrange(len(good.rstrip()))])

    def _odd_empty(self) -> Odd:
        return self._bytes("empty", MALFORMED, lambda good: b"")

    def _odd_blank(self) -> Odd:
        return self._bytes("blank", MALFORMED, lambda good: self.draw.choice((b"\n", b" " * 4096, b"\r\n\t", b"\0")))

    def _odd_nuls(self) -> Odd:
        """What a power cut leaves: the length of the message, and nothing in it; or a part of it."""
        at = self.draw.random()
        return self._bytes("NULs", MALFORMED, lambda good: good[: int(at * len(good))].ljust(len(good) + 4096, b"\0"))

    def _odd_binary(self) -> Odd:
        return self._bytes("binary", MALFORMED, lambda good: b"\x89" + self.draw.randbytes(5000))

    def _odd_not_utf8(self) -> Odd:
        bad = self.draw.choice((b"\xff", b"\xc3", b"\xed\xa0\x80", b"\xf5\x80\x80\x80", b"\xc0\xaf"))
        return self._bytes("not UTF-8", MALFORMED, lambda good: good.replace(b'"v":1', b'"v":1,"x":"' + bad + b'"', 1))

    def _odd_other_encoding(self) -> Odd:
        encoding = self.draw.choice(("utf-16", "utf-32", "utf-8-sig"))
        return self._bytes(f"in {encoding}", MALFORMED, lambda good: good.decode().encode(encoding))

    def _odd_surrogate(self) -> Odd:
        return self._bytes("lone surrogate", MALFORMED, lambda good: good.replace(b'"v":1', b'"v":1,"x":"\\ud800"', 1))

    def _odd_deep(self) -> Odd:
        deep = self.draw.choice(
            (b"[" * 100_000, b"[" * 100_000 + b"]" * 100_000, b'{"a":' * 70 + b"1" + b"}" * 70, b"{" * 1000)
        )
        return self._bytes("deep", MALFORMED, lambda good: deep)

    def _odd_deep_inside(self) -> Odd:
        deep = b'{"a":' * 64 + b"1" + b"}" * 64
        return self._bytes("deep inside", MALFORMED, lambda good: good.replace(b'"v":1', b'"v":1,"x":' + deep, 1))

    def _odd_constant(self) -> Odd:
        word = self.draw.choice(
            (b"NaN", b"Infinity", b"-Infinity", b"1e999", b"9" * 5000, b"nan", b"0x1", b"+1", b"01")
        )
        return self._bytes("constant", MALFORMED, lambda good: good.replace(b'"v":1', b'"v":1,"x":' + word, 1))

    def _odd_no_object(self) -> Odd:
        text = self.draw.choice((b"[]", b"1", b'"text"', b"null", b"true", b"[{}]"))
        return self._bytes("no object", MALFORMED, lambda good: text)

    def _odd_two(self) -> Odd:
        return self._bytes("two objects", MALFORMED, lambda good: good + good)

    def _odd_python(self) -> Odd:
        return self._bytes("single quotes", MALFORMED, lambda good: good.replace(b'"', b"'"))

    def _odd_field(self) -> Odd:
        """A value of another type in each field; None takes the field away."""
        name, value, reason = self.draw.choice(self.wrong)

        def data(good: bytes) -> bytes:
            raw = {**json.loads(good), name: value}
            return json.dumps({k: v for k, v in raw.items() if v is not None}).encode()

        return self._bytes(f"{name}={value!r:.30}", (reason,), data)

    def _odd_huge(self) -> Odd:
        """Filled, so that it costs what it says; seldom, because it does."""
        if self.draw.random() < 0.8:
            return self._odd_sparse()
        return self._bytes("huge", ("too_large",), lambda good: good.replace(b'"v":1', b'"v":1' + b" " * (2 << 20), 1))

    def _odd_sparse(self) -> Odd:
        size = self.draw.choice((2 << 20, 10 << 30))
        return self._leave(f"sparse {size >> 20} MiB", ("too_large",), lambda path: _sparse(path, size))

    # -- what is no file of its own ---------------------------------------------------------------------------------

    def _odd_link(self) -> Odd:
        target = self.draw.choice(
            (str(self.canary), "/etc/passwd", "nowhere", "/dev/zero", "/proc/self/mem", str(self.directory), ".", "/")
        )
        return self._leave(f"link to {target}", ("link",), lambda path: path.symlink_to(target))

    def _odd_link_loop(self) -> Odd:
        name = f"{self.stem()}{self.suffix}"
        self.put(name, lambda path: path.symlink_to(name))
        return Odd(name, "link to itself", ("link",))

    def _odd_link_to_message(self) -> Odd:
        """To a message that could be read under its own name, in the directory of what is being written."""
        stem = self.stem()
        (self.staging / stem).write_bytes(self.good(stem))
        name = f"{stem}{self.suffix}"
        self.put(name, lambda path: path.symlink_to(f".tmp/{self.staging.name}/{stem}"))
        return Odd(name, "link to a message", ("link",))

    def _odd_hard_link(self) -> Odd:
        """One file under the name of another message, or one that lies outside."""
        if self.draw.random() < 0.5:
            return self._leave("hard link outside", MALFORMED, lambda path: os.link(self.canary, path))
        other = self.staging / self.stem()
        other.write_bytes(self.good(other.name))
        reasons = ("wrong_id",) if any(name == "id" for name, _, _ in self.wrong) else MALFORMED
        if reasons == MALFORMED:
            other.write_bytes(b"{")
        return self._leave("hard link to another message", reasons, lambda path: os.link(other, path))

    def _odd_fifo(self) -> Odd:
        return self._leave("FIFO", ("fifo",), os.mkfifo)

    def _odd_fifo_with_writer(self) -> Odd:
        def make(path: Path) -> None:
            os.mkfifo(path)
            self._open.append(os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC))
            os.write(self._open[-1], b'{"v":1}\n')

        return self._leave("FIFO with a writer", ("fifo",), make)

    def _odd_socket(self) -> Odd:
        return self._leave("socket", ("socket",), _bind)

    def _odd_directory(self) -> Odd:
        def make(path: Path) -> None:
            path.mkdir()
            for n in range(self.draw.choice((0, 0, 1, 50))):
                (path / f"{n}{self.suffix}").write_bytes(b"{}")
            if self.draw.random() < 0.3:
                (path / ".in-progress" / "deep").mkdir(parents=True)

        return self._leave("directory", ("directory",), make)

    def _odd_closed_directory(self) -> Odd:
        """Mode 000, made in place: whoever is not root cannot move it, neither in nor away."""
        name = f"{self.stem()}{self.suffix}"
        (self.directory / name).mkdir(mode=0)
        return Odd(name, "closed directory", ("directory",), stays=not self._is_root)

    def _may_move_what_is_closed(self) -> bool:
        (self.staging / "closed").mkdir(mode=0)
        try:
            os.rename(self.staging / "closed", self.staging.parent / "closed")
        except PermissionError:
            (self.staging / "closed").rmdir()
            return False
        (self.staging.parent / "closed").rmdir()
        return True

    def _odd_closed_file(self) -> Odd:
        def make(path: Path) -> None:
            path.write_bytes(b"{")
            path.chmod(0)

        return self._leave("closed file", ("not_permitted", "malformed"), make)

    def _odd_device(self) -> Odd | None:
        mode, number = self.draw.choice(
            ((stat.S_IFCHR, (1, 5)), (stat.S_IFCHR, (1, 3)), (stat.S_IFCHR, (5, 0)), (stat.S_IFBLK, (7, 0)))
        )
        try:
            os.mknod(self.staging / "device", mode | 0o600, os.makedev(*number))
        except OSError:
            return None  # only where this user may make one
        name = f"{self.stem()}{self.suffix}"
        os.rename(self.staging / "device", self.directory / name)
        return Odd(name, "device", ("device", "not_permitted", "socket"))

    def _odd_immutable(self) -> Odd | None:
        """An entry that nobody can move, root included, where the file system knows such a thing. Made in place."""
        if len(self._immutable) >= 3:
            return None
        name = f"{self.stem()}{self.suffix}"
        beside = self.staging / "immutable"
        beside.mkdir()
        fd = os.open(beside, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            _set_immutable(fd, True)
            _set_immutable(fd, False)
        except OSError:
            os.close(fd)
            beside.rmdir()
            return None
        os.rename(beside, self.directory / name)
        self._immutable.append(fd)
        with contextlib.suppress(OSError):
            _set_immutable(fd, True)
        # Somebody may have been faster and have put it aside already.
        return Odd(name, "immutable", ("directory", "unmovable"), stays=os.path.lexists(self.directory / name))

    # -- odd names ------------------------------------------------------------------------------------------------

    def _named(self, raw: bytes) -> Odd:
        name = os.fsdecode(raw)
        self.put(name, lambda path: path.write_bytes(b"{}"))
        is_message = name.endswith(self.suffix) and not name.startswith(".")
        return Odd(name, "name", ("bad_name",) if is_message else ())


def _sparse(path: Path, size: int) -> None:
    path.touch()
    os.truncate(path, size)


def _bind(path: Path) -> None:
    """The name of a socket has 107 bytes: bound through its directory."""
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(f"/proc/self/fd/{directory}/{path.name}")
    finally:
        os.close(directory)


def _set_immutable(fd: int, on: bool) -> None:
    flags = array.array("l", [0])
    fcntl.ioctl(fd, _GET_FLAGS, flags, True)
    flags[0] = flags[0] | _IMMUTABLE if on else flags[0] & ~_IMMUTABLE
    fcntl.ioctl(fd, _SET_FLAGS, flags, True)


_STEM = ids.message_stem(START_MS, bytes(10))

# Under such names, and the suffix behind them, nothing is a message.
ODD_NAMES: list[bytes] = [
    b"x", b" ", b"\n", b"a\nb", b"\x1b[31mred", b"\x1b]0;title\x07", b"\x07", b"\x7f", b"-rf", b"~", b"$(id)", b"`id`",
    b"\xff\xfe", b"\xff" * 250, b"x" * 250, "é".encode() * 125, "\u202egnp".encode(), "\u009b31m".encode(),
    "\U000e0041".encode(), "😀".encode() * 62, b"%00", b"\\", b"'\"", b"*", b"?", b";", b"a b", b"\t", b"\r", b"..x",
    _STEM.lower().encode(), _STEM[1:].encode(), _STEM.encode() + b".x", _STEM.encode() + b" ", b"0" + _STEM.encode(),
    _STEM.replace("-", "_").encode(), _STEM.encode() + b".msg", b"-".join((b"1790000000000", b"8" + b"Z" * 25)),
    b"179000000000x-" + b"0" * 26, "１７９００００００００００-".encode() + b"0" * 26,
]  # fmt: skip
# These are none either, and nobody takes them.
NO_MESSAGE: list[bytes] = [
    b"note.txt", b"x.msg.swp", b"x.msg~", b".hidden.msg", b".msg", b"..msg", b"\x1b[31m", b"x.MSG", b"x.Msg", b"\xff",
    b"x.msg ", b"x.msg\n", b"msg", b".x\x1b[31m", "x.ｍｓｇ".encode(), b"#x.msg#", b"\x07", b"a\nb",
]  # fmt: skip

# (field, value, reason) of a message; None takes the field away.
WRONG_FIELDS: list[tuple[str, Any, str]] = [
    *(("v", value, "no_version") for value in (None, "1", True, 1.0, [], {}, -1.5)),
    *(("v", value, "newer_version") for value in (2, 10**30)),
    *(("id", value, "bad_field") for value in (None, 1, [], {}, True)),
    *(("id", value, "wrong_id") for value in ("", "x" * 5000, "\x1b[2J", "7ZZZZZZZZZZZZZZZZZZZZZZZZZ", "../../x")),
    *((name, value, "bad_field") for name in ("from", "body") for value in (None, 0, [], {}, False)),
    *(("ts", value, "bad_field") for value in (None, "1", 1.5, [], {}, True)),
    *(("deadline", value, "bad_field") for value in ("1", 1.5, [], {}, False)),
    *(("error", value, "bad_field") for value in ("", 0, [], {})),
    *(("data", value, "bad_field") for value in ("", 0, [], True)),
    *(("parts", value, "bad_field") for value in ("", 0, {}, [1], [None])),
    *(
        (name, value, "bad_field")
        for name in ("origin", "reply_to", "to", "kind", "goal", "trace")
        for value in (0, [])
    ),
    *(("thread", value, "bad_field") for value in (0, "../../etc", "\x1b[2J", "a/b", "A", "x" * 65, "\n")),
]
