"""What differs between two trees: found, kept, and brought into a tree (docs/goals.md section 4, ADR-0013).

What an attempt changed is the difference of two manifests, with the bytes before and after as blobs. Applying it is
all or nothing where somebody else has changed the same paths, and may be done again after a crash.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path
from typing import Any

from loom.spool import blobs, fs
from loom.spool.trees import LINK, TMP_PREFIX, Entry, content, parents
from loom.wire.errors import BadInput
from loom.wire.record import record


@record
class Change:
    """One path that differs; None means: not there. Digests name blobs."""

    path: str
    before: str | None
    after: str | None
    mode_before: int | str | None
    mode_after: int | str | None


def changes_to_json(changes: Sequence[Change]) -> dict[str, Any]:
    return {"changes": [asdict(c) for c in changes]}


def changes_from_json(raw: Mapping[str, Any]) -> list[Change]:
    return [Change(**c) for c in raw["changes"]]


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
    for parent in parents(change.path):
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
    for parent in parents(change.path):
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
    above = parents(path)
    if any((root / p).is_symlink() for p in above):
        return
    for parent in reversed(above):
        try:
            fs.calls.rmdir(str(root / parent))
        except FileNotFoundError:
            continue
        except OSError:
            return
