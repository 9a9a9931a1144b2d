"""Workspace trees: copied, gone over, read (docs/goals.md section 4, ADR-0013).

A manifest says of every file below a directory its digest, mode and size. Plain copies for now: an attempt's tree is a
copy of the goal's workspace. Links are copied as links and never followed; FIFOs, sockets and devices are left out.
What differs between two trees, and bringing that into one, is in loom.spool.differences.
"""

from __future__ import annotations

import errno
import os
import stat
import sys
from collections.abc import Collection, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

from loom.spool import fs
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


def manifest_to_json(manifest: Mapping[str, Entry]) -> dict[str, Any]:
    return {path: [e.digest, e.mode, e.size] for path, e in manifest.items()}


def manifest_from_json(raw: Mapping[str, Any]) -> Manifest:
    return {path: Entry(*e) for path, e in raw.items()}


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
    if any((root / p).is_symlink() for p in parents(path)):
        return None
    try:
        found = os.lstat(full)
    except (FileNotFoundError, NotADirectoryError):
        return None
    if stat.S_ISLNK(found.st_mode):
        return os.fsencode(os.readlink(full)), LINK
    data = read_file(root, path)
    return None if data is None else (data, stat.S_IMODE(found.st_mode) & 0o777)


def parents(path: str) -> list[str]:
    """The directories that a path of a tree lies in, the outermost first."""
    parts = path.split("/")
    return ["/".join(parts[:n]) for n in range(1, len(parts))]
