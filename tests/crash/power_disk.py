"""What may be on a disk after a cut behind each step of a record.

    ext4    names change in one order for the whole file system: some first part of what was done since the last
            sync is there. Bytes that were not synced may be missing, in each file by itself.
    posix   nothing has an order. Each name in each directory is as it was or as it became, until that directory is
            synced; each file's bytes likewise, until that file is synced.

In both, bytes that were not synced are there, or not, or in part, or are zeros in place of them; but none is there
behind one that is not, in one file: a hole in front of good records is damage, which a journal refuses and leaves to a
person. A rename never loses both names: within a directory, and of a directory, it is there or it is not; of a file
between directories the new name may be there beside the old one, but the old one is not gone before the new one is
there. File systems in use keep that, and without it nothing could be moved. A hint or a turn may be lost; a message
that is moved may not.

Files in `.tmp/` whose names were drawn are left out: nobody finds them again after a crash, so states that differ in
them alone are one.
"""

from __future__ import annotations

import itertools
import math
import os
import random
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from power_record import Books, Key, Node, Record, Step, cut

from loom.spool import fs

ALL = 1 << 10  # so many combinations are tried one and all; of more of them a part
SAMPLE = 192  # and so many drawn ones beside those with one or two differences
_DRAWN = re.compile(r"[0-9a-f]{20}")
_MODES: Key = ("modes", -1, "")  # stands for all modes that were not synced


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
                now = cut(now, step.number)
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
        data = cut(data, step.number) if step.kind == "truncate" else data + step.data
    return data


class Disk(ABC):
    """Follows a record and says, step by step, what may be on the disk. Subclasses are the models."""

    def __init__(self, record: Record) -> None:
        self.record = record
        self.names: World = {key: [Version(-1, node)] for key, node in record.before.items()}
        self.bytes = {n: Bytes(i.data) for n, i in enumerate(record.inodes) if i.kind == "file"}
        self.modes: World = {("mode", n, ""): [Version(-1, i.mode)] for n, i in enumerate(record.inodes)}
        self.ties: list[Tie] = []

    @abstractmethod
    def feed(self, n: int, step: Step) -> None:
        """Take in step n of the record."""

    @abstractmethod
    def worlds(self, n: int, whole: bool) -> Iterator[tuple[World, list[Key]]]:
        """(what may be, the keys of which one must have a version of step n; empty for no such condition).

        whole: also what was possible before step n, for those who know more by now.
        """


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
        step = self.record.steps[n] if n >= 0 else Step("all", "", 0)
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
        step = self.record.steps[n] if n >= 0 else Step("all", "", 0)
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
MODELS = tuple(_DISKS)


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


def as_done(record: Record, step: int) -> Any:
    """The tree when nothing is lost of what was done up to this step."""
    disk = Posix(record)
    for n, one in enumerate(record.steps[: step + 1]):
        disk.feed(n, one)
    world = disk.names | disk.modes | {("bytes", n, ""): b.versions(step + 1) for n, b in disk.bytes.items()}
    return _Tree(record, world).made({})


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
