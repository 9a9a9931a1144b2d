"""Workspace trees: copy, compare, apply, land (docs/goals.md section 4, ADR-0013).

A manifest says of every file below a directory its digest, mode and size. Plain copies for now: an attempt's tree
is a copy of the goal's workspace; what the attempt changed is the difference of two manifests, with the bytes
before and after as blobs. Links are copied as links and never followed; FIFOs, sockets and devices are left out.
"""

from __future__ import annotations

import errno
import os
import stat
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path
from typing import Any

from loom.spool import blobs, fs
from loom.wire.errors import BadInput, NotFound
from loom.wire.record import record

SKIPPED = (".git",)
TMP_PREFIX = ".loom-tmp-"  # what a killed write left behind, of ours and of write-file
MAX_FILES = 50_000
MAX_BYTES = 4 << 30
MARGIN_BYTES = 1 << 20  # what a copy of a workspace leaves free: mail, turns and journals need it
MARGIN_FILES = 64
LINK = "link"
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC


@record
class Entry:
    """One file of a tree. `mode` is its permission bits, or LINK; a link's digest is that of its text."""

    digest: str
    mode: int | str
    size: int


Manifest = dict[str, Entry]


@record
class Change:
    """One path that differs; None means: not there. Digests name blobs."""

    path: str
    before: str | None
    after: str | None
    mode_before: int | str | None
    mode_after: int | str | None


def manifest_to_json(manifest: Mapping[str, Entry]) -> dict[str, Any]:
    return {path: [e.digest, e.mode, e.size] for path, e in manifest.items()}


def manifest_from_json(raw: Mapping[str, Any]) -> Manifest:
    return {path: Entry(*e) for path, e in raw.items()}


def changes_to_json(changes: Sequence[Change]) -> dict[str, Any]:
    return {"changes": [asdict(c) for c in changes]}


def changes_from_json(raw: Mapping[str, Any]) -> list[Change]:
    return [Change(**c) for c in raw["changes"]]


def copy(source: Path, target: Path, without: Path | None = None) -> Manifest:
    """Copy a tree to a directory that must not exist yet; its manifest, in path order.

    The source may be somebody's who works on: what goes away meanwhile is left out. So is the directory `without`
    and, should the target lie in the source, the target.
    Raises NotFound when there is no source, BadInput when it is larger than MAX_FILES or MAX_BYTES, OSError: ENOSPC
    before anything is written where the copy would fill the disk. What a failed copy had written is removed.
    """
    if not source.is_dir():
        raise NotFound(f"the workspace {source} is not a directory")
    fs.ensure_dir(target.parent)
    fs.calls.mkdir(str(target), fs.DIR_MODE)
    manifest: Manifest = {}
    total = [0]
    skipped = {_inode(os.stat(p)) for p in (target, without) if p is not None and p.is_dir()}
    fd = os.open(source, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        _check_space(target, *_measure(fd, skipped))
        _copy_below(fd, target, "", manifest, total, skipped)
    except (OSError, BadInput):
        fs.remove_tree(target)  # or it would keep the disk full until the next try
        raise
    finally:
        os.close(fd)
    return dict(sorted(manifest.items()))


def _measure(directory: int, skipped: Collection[_Inode]) -> tuple[int, int]:
    """(entries, bytes) that a copy of this would have; what goes away meanwhile is not counted."""
    entries = size = 0
    for entry in _entries(directory):
        try:
            found = entry.stat(follow_symlinks=False)
            entries += 1
            if stat.S_ISREG(found.st_mode):
                size += found.st_size
            elif stat.S_ISDIR(found.st_mode) and _inode(found) not in skipped:
                below = os.open(entry.name, _DIRECTORY, dir_fd=directory)
                try:
                    more = _measure(below, skipped)
                finally:
                    os.close(below)
                entries, size = entries + more[0], size + more[1]
        except (FileNotFoundError, PermissionError):
            continue
        if entries > MAX_FILES or size > MAX_BYTES:
            break  # too large; copying it says so
    return entries, size


def _check_space(target: Path, entries: int, size: int) -> None:
    """Raises ENOSPC when so much does not fit and leave a margin for everybody else."""
    free = os.statvfs(target)
    free_bytes = free.f_bavail * free.f_frsize
    needed = size + entries * free.f_frsize // 2 + MARGIN_BYTES  # a file's last block is half empty on average
    if needed > free_bytes:
        raise _no_space(target, f"{_mib(needed)} of space are needed, {_mib(free_bytes)} are free")
    if free.f_files and entries + MARGIN_FILES > free.f_favail:  # some file systems do not count inodes
        raise _no_space(target, f"{entries + MARGIN_FILES} inodes are needed, {free.f_favail} are free")


def _no_space(target: Path, why: str) -> OSError:
    return OSError(errno.ENOSPC, f"no space left for a copy of the workspace: {why}", str(target))


def _mib(size: int) -> str:
    return f"{size / (1 << 20):.1f} MiB"


_Inode = tuple[int, int]


def _inode(found: os.stat_result) -> _Inode:
    return found.st_dev, found.st_ino


def _copy_below(
    source: int, target: Path, prefix: str, manifest: Manifest, total: list[int], skipped: Collection[_Inode]
) -> None:
    for entry in _entries(source):
        path = f"{prefix}{entry.name}"
        try:
            if entry.is_dir(follow_symlinks=False):
                below = os.open(entry.name, _DIRECTORY, dir_fd=source)
                try:
                    if _inode(os.fstat(below)) not in skipped:
                        fs.calls.mkdir(str(target / path), fs.DIR_MODE)
                        _copy_below(below, target, f"{path}/", manifest, total, skipped)
                finally:
                    os.close(below)
            elif entry.is_symlink():
                text = os.readlink(entry.name, dir_fd=source)
                _count(manifest, total, len(text))
                fs.calls.symlink(text, str(target / path))
                manifest[path] = _link_entry(text)
            elif entry.is_file(follow_symlinks=False):
                fd = os.open(entry.name, _READ, dir_fd=source)
                try:
                    manifest[path] = _copy_one(fd, target / path, manifest, total)
                finally:
                    os.close(fd)
        except FileNotFoundError:
            if _is_there(entry.name, source):
                raise
        except PermissionError:
            raise BadInput(f"{path} may not be read", kind="not_permitted") from None


def _copy_one(fd: int, target: Path, manifest: Manifest, total: list[int]) -> Entry:
    found = os.fstat(fd)
    _count(manifest, total, found.st_size)
    mode = (stat.S_IMODE(found.st_mode) & 0o777) | 0o600
    return Entry(fs.copy_file(fd, target, mode, found.st_size), mode, found.st_size)


def _is_there(name: str, directory: int) -> bool:
    try:
        os.lstat(name, dir_fd=directory)
    except FileNotFoundError:
        return False
    return True


def _entries(directory: int) -> list[os.DirEntry[str]]:
    """What belongs to a workspace, in name order; names that are not UTF-8 cannot be said in JSON and are left out."""
    with os.scandir(directory) as entries:
        found = [e for e in entries if e.name not in SKIPPED and not e.name.startswith(TMP_PREFIX) and is_utf8(e.name)]
    return sorted(found, key=lambda e: e.name)


def is_utf8(name: str) -> bool:
    """Whether a file name can be written in JSON and UTF-8."""
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _link_entry(text: str) -> Entry:
    data = os.fsencode(text)
    return Entry(sha256(data).hexdigest(), LINK, len(data))


def _count(manifest: Manifest, total: list[int], size: int) -> None:
    total[0] += size
    if len(manifest) >= MAX_FILES or total[0] > MAX_BYTES:
        raise BadInput(
            f"the workspace is too large: more than {MAX_FILES} files or {MAX_BYTES >> 30} GiB",
            hint="point -w at a smaller directory",
        )


def scan(root: Path) -> Manifest:
    """The manifest of a tree as it is now, in path order."""
    manifest: Manifest = {}
    fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        _scan_below(fd, "", manifest)
    finally:
        os.close(fd)
    return dict(sorted(manifest.items()))


def _scan_below(directory: int, prefix: str, manifest: Manifest) -> None:
    for entry in _entries(directory):
        path = f"{prefix}{entry.name}"
        if entry.is_dir(follow_symlinks=False):
            below = os.open(entry.name, _DIRECTORY, dir_fd=directory)
            try:
                _scan_below(below, f"{path}/", manifest)
            finally:
                os.close(below)
        elif entry.is_symlink():
            manifest[path] = _link_entry(os.readlink(entry.name, dir_fd=directory))
        elif entry.is_file(follow_symlinks=False):
            fd = os.open(entry.name, _READ, dir_fd=directory)
            try:
                manifest[path] = _entry(fd)
            finally:
                os.close(fd)


def _entry(fd: int) -> Entry:
    digest = sha256()
    size = 0
    while chunk := os.read(fd, 1 << 20):
        digest.update(chunk)
        size += len(chunk)
    return Entry(digest.hexdigest(), stat.S_IMODE(os.fstat(fd).st_mode) & 0o777, size)


def compare(before: Mapping[str, Entry], after: Mapping[str, Entry]) -> list[Change]:
    """What turns one tree into the other, in path order."""
    changes = []
    for path in sorted(before.keys() | after.keys()):
        old, new = before.get(path), after.get(path)
        if old is None or new is None or (old.digest, old.mode) != (new.digest, new.mode):
            changes.append(
                Change(
                    path,
                    old.digest if old else None,
                    new.digest if new else None,
                    old.mode if old else None,
                    new.mode if new else None,
                )
            )
    return changes


def read_file(root: Path, path: str, limit: int | None = None) -> bytes | None:
    """The bytes of a regular file of a tree, at most `limit`, no link followed on the way; None when there is none."""
    if not _is_inside(path):
        return None
    try:
        fd = _open_below(root, path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO):  # a link or a socket has the name
            return None
        raise
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            return None
        chunks = []
        left = sys.maxsize if limit is None else limit
        while left and (chunk := os.read(fd, min(1 << 20, left))):
            chunks.append(chunk)
            left -= len(chunk)
        return b"".join(chunks)
    finally:
        os.close(fd)


def _is_inside(path: str) -> bool:
    """Whether a path names something below the root. It may be odd otherwise: trees hold what names people give."""
    return "\0" not in path and all(part not in ("", ".", "..") for part in path.split("/"))


def _open_below(root: Path, path: str) -> int:
    """Open a file below a directory component by component, so that no link on the way is followed."""
    *parents, name = path.split("/")
    directory = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for parent in parents:
            below = os.open(parent, _DIRECTORY, dir_fd=directory)
            os.close(directory)
            directory = below
        return os.open(name, _READ, dir_fd=directory)
    finally:
        os.close(directory)


def content(root: Path, path: str) -> tuple[bytes, int | str] | None:
    """(bytes, mode) of what lies under a path of a tree, a link's text for a link; None when nothing does."""
    full = root / path
    if any((root / p).is_symlink() for p in _parents(path)):
        return None
    try:
        found = os.lstat(full)
    except (FileNotFoundError, NotADirectoryError):
        return None
    if stat.S_ISLNK(found.st_mode):
        return os.fsencode(os.readlink(full)), LINK
    data = read_file(root, path)
    return None if data is None else (data, stat.S_IMODE(found.st_mode) & 0o777)


def _parents(path: str) -> list[str]:
    parts = path.split("/")
    return ["/".join(parts[:n]) for n in range(1, len(parts))]


def store(blob_dir: Path, before: Path, after: Path, changes: Sequence[Change]) -> None:
    """Keep the bytes before and after each change as blobs.

    Raises BadInput when the tree `after` is no longer what the changes say: somebody is still writing in it.
    """
    for change in changes:
        found = content(before, change.path) if change.before is not None else None
        if found is not None:
            blobs.put(blob_dir, found[0])
        if change.after is not None:
            found = content(after, change.path)
            if found is None or blobs.put(blob_dir, found[0]) != change.after:
                raise BadInput(f"{change.path} changed while it was inspected", kind="tree_changed")


@record
class Applied:
    """What applying came to: either everything was written or nothing was, because of the conflicts."""

    written: tuple[str, ...]
    conflicts: tuple[str, ...]


def apply(root: Path, changes: Sequence[Change], blob_dir: Path, tag: str, umask: int | None = None) -> Applied:
    """Bring changes into a tree; idempotent: a path that is as it shall be is left alone.

    A path that is neither as before nor as after is a conflict, and then nothing is written at all. `tag` names the
    temporary files, so that applying again after a crash removes them. With a `umask`, the tree is a person's: an
    existing file keeps its mode, a new one gets what that umask leaves.
    """
    deleted = {c.path for c in changes if c.after is None}
    todo: list[Change] = []
    conflicts: list[str] = []
    for change in changes:
        now = _state(root, change.path)
        if _is_same(now, change.after, change.mode_after, umask is None):
            continue
        if not _is_same(now, change.before, change.mode_before, False) or _is_blocked(root, change, deleted):
            conflicts.append(change.path)
        else:
            todo.append(change)
    if conflicts:
        return Applied((), tuple(conflicts))
    # Deletions first: what was a file may become a directory, and the reverse. Those that a killed process had done
    # already are looked at again for the directories they left empty.
    paths = {c.path for c in todo}
    for change in changes:
        if change.after is None:
            if change.path in paths:
                fs.remove(root / change.path)
            _prune(root, change.path)
    for change in todo:
        if change.after is not None:
            _write(root, change, change.after, blob_dir, tag, umask)
    if changes:  # also those that a killed process had made: it may have died before its sync
        fs.sync_tree(root)
    return Applied(tuple(c.path for c in todo), ())


def _state(root: Path, path: str) -> tuple[str, int | str] | None:
    """(digest, mode) of what lies under a path; None when nothing does."""
    found = content(root, path)
    return None if found is None else (sha256(found[0]).hexdigest(), found[1])


def _is_same(now: tuple[str, int | str] | None, digest: str | None, mode: int | str | None, exactly: bool) -> bool:
    """Whether this is the file or link meant; `exactly`: with the same permissions."""
    if now is None or digest is None:
        return now is None and digest is None
    return now[0] == digest and (now[1] == mode if exactly else (now[1] == LINK) == (mode == LINK))


def _is_blocked(root: Path, change: Change, deleted: Collection[str]) -> bool:
    """Whether something stands in the place, or where a parent directory is needed, that the changes do not take away.

    A directory in the place may be there when it holds nothing but directories and what is deleted.
    """
    for parent in _parents(change.path):
        full = root / parent
        if os.path.lexists(full) and (full.is_symlink() or not full.is_dir()):
            return parent not in deleted or content(root, parent) is None
    full = root / change.path
    if change.after is None or full.is_symlink() or not full.is_dir():
        return os.path.lexists(full) and content(root, change.path) is None
    return not all(path in deleted for path in _everything_below(full, change.path))


def _everything_below(directory: Path, prefix: str) -> Iterator[str]:
    """The path of everything below a directory that is neither a directory nor what a killed write left behind."""
    with os.scandir(directory) as entries:
        for entry in entries:
            path = f"{prefix}/{entry.name}"
            if entry.is_dir(follow_symlinks=False):
                yield from _everything_below(Path(entry.path), path)
            elif not entry.name.startswith(TMP_PREFIX):
                yield path


def _remove_empty(directory: Path) -> None:
    """Remove a directory of directories. OSError when there is anything else in it after all."""
    with os.scandir(directory) as entries:
        found = list(entries)
    for entry in found:
        if entry.is_dir(follow_symlinks=False):
            _remove_empty(Path(entry.path))
        elif entry.name.startswith(TMP_PREFIX):
            fs.remove(Path(entry.path))
    fs.calls.rmdir(str(directory))


def _write(root: Path, change: Change, digest: str, blob_dir: Path, tag: str, umask: int | None) -> None:
    target = root / change.path
    for parent in _parents(change.path):
        if not (root / parent).is_dir():
            fs.make_dir(root / parent, fs.DIR_MODE if umask is None else 0o777 & ~umask)
    if target.is_dir() and not target.is_symlink():
        _remove_empty(target)
    data = blobs.get(blob_dir, digest)
    temporary = target.with_name(f"{TMP_PREFIX}{tag}-{sha256(change.path.encode()).hexdigest()[:12]}")
    if change.mode_after == LINK:
        fs.remove(temporary)
        fs.calls.symlink(os.fsdecode(data), str(temporary))
        fs.calls.rename(str(temporary), str(target))
        return
    assert isinstance(change.mode_after, int)
    mode = change.mode_after
    if umask is not None:
        wide = 0o777 if mode & 0o100 else 0o666
        found = content(root, change.path)
        mode = found[1] if found is not None and isinstance(found[1], int) else wide & ~umask
    fs.exchange_file(target, data, mode, temporary)


def _prune(root: Path, path: str) -> None:
    """Remove directories that a deletion left empty."""
    parents = _parents(path)
    if any((root / p).is_symlink() for p in parents):
        return
    for parent in reversed(parents):
        try:
            fs.calls.rmdir(str(root / parent))
        except FileNotFoundError:
            continue
        except OSError:
            return
