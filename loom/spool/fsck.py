"""fsck: what in a home does not fit the protocol, and what of it can be mended (docs/protocol.md, ADR-0017).

Mended is what a crash may have left and what is derived; whatever holds somebody's words is only told. Nothing that
moves is touched without the lock of whoever moves it: what is at work is skipped, and that is told too.
"""

from __future__ import annotations

import os
import re
import stat
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from hashlib import sha256
from pathlib import Path

from loom.core.retention import Policy
from loom.core.routing import decode as decode_routes
from loom.spool import archive, config, fs, litter, locks, references
from loom.spool import home as homes
from loom.spool.broom import Broom
from loom.spool.findings import Check, Finding, Findings, guarded, in_the_way, person
from loom.spool.fs import DIR_MODE, FILE_MODE, TMP
from loom.spool.fsck_goals import check_goals
from loom.spool.fsck_mail import check_agent
from loom.spool.layout import HOME_ENTRIES, Home
from loom.wire import ids
from loom.wire.errors import Config, LoomError, NotFound, TryLater
from loom.wire.jsontext import Malformed, loads_object

# Where nothing but files and directories lies, and nobody else says so of what does not belong there.
_PLAIN = frozenset(("secrets", "filters", "heads"))
# People write these with an editor, which gives them the mode of their umask. They hold no secrets.
_WRITTEN_BY_HAND = frozenset(("config.yml", "routes.json"))
_PEOPLES = frozenset(("tools", "skills", "memory", "playbooks", "policies", "schedules", "runners"))
_DIGEST = re.compile(r"[0-9a-f]{64}")


def check(home: Home, *, repair: bool = False, now_s: float | None = None) -> Iterator[Finding]:
    """Every finding, as it is found; with `repair` what can be mended has been when its finding comes.

    Raises NotFound when there is no home, Config for a newer one, TryLater when gc or another repair is at work,
    OSError when the disk refuses.
    """
    if not home.version.exists():
        raise NotFound(f"there is no loom home in {home.path}", hint="set LOOM_HOME, or give --home DIR")
    homes.check_version(home)
    run = Check(home, repair, time.time() if now_s is None else now_s)
    if not repair:
        yield from _everything(run)
        return
    try:
        lock = locks.acquire(home.tidy_lock)
    except OSError as error:
        if (told := in_the_way(home.tidy_lock, error)) is None:
            raise
        yield told  # and nothing is mended, because gc may be at work
        yield from _everything(Check(home, False, run.now_s))
        return
    if lock is None:
        raise TryLater("gc or another fsck --repair is at work in this home", hint="let it end", kind="busy")
    with lock:
        yield from _everything(run)


def _everything(run: Check) -> Findings:
    home = run.home
    yield from _boot(run)
    yield from _top(run)
    yield from _modes(run, home.path, ())
    yield from guarded(home.path, _litter(run))
    for name in fs.names(home.agents):
        path = home.agents / name
        if name == TMP:
            continue
        if not ids.is_agent(name) or path.is_symlink() or not path.is_dir():
            yield person(path, "is no agent", "move it away")
        else:
            yield from guarded(path, check_agent(run, home.agent(name)))
    yield from guarded(home.pipes, _pipes(run))
    for name in fs.names(home.filters):
        if name != TMP and not (ids.is_stem(name) and _is_directory(home.filters / name)):
            yield person(home.filters / name, "is no filter", "move it away")
    yield from check_goals(run)
    yield from _blobs(run)
    yield from _archives(run)


def _pipes(run: Check) -> Findings:
    for name in fs.names(run.home.pipes):
        path = run.home.pipes / name
        if name == TMP or (ids.is_agent(name) and path.is_dir() and not path.is_symlink()):
            continue
        if not ids.is_instance(name) or path.is_symlink() or not path.is_dir():
            yield person(path, "is no pipe", "move it away")
        else:
            yield from guarded(path, check_agent(run, run.home.agent(name)))


def _boot(run: Check) -> Findings:
    """`run/` belongs to one boot; the next command that opens the home empties it."""
    if not homes.is_of_this_boot(run.home):
        what = "is missing or of another boot"
        wrong = [d for d in _needed(run.home) if os.path.lexists(d) and not _is_directory(d)]
        if wrong:
            yield person(run.home.run, what, f"it is made anew when {wrong[0]} is out of the way")
        else:
            yield run.mend(run.home.run, what, "made anew", partial(homes.open_home, run.home.path))
    elif not locks.is_held(run.home.supervisor_lock):
        for path in (run.home.supervisor_pid, run.home.supervisor_record):
            if path.exists():
                yield run.mend(path, "names a supervisor that is gone", "removed", partial(fs.remove, path))


def _top(run: Check) -> Findings:
    home = run.home
    for name in fs.names(home.path):
        if name not in HOME_ENTRIES and not name.startswith("."):
            yield person(home.path / name, "is nothing of loom's", "move it away")
    needed = _needed(home)
    for directory in (*needed, home.secrets, home.archive, home.supervisor_log.parent):
        if not _is_directory(directory):
            if os.path.lexists(directory):
                yield person(directory, "is no directory", "move it away; a home holds no links")
            elif directory in needed:
                yield run.mend(directory, "is missing", "made", partial(fs.ensure_dir, directory))
    for lock in (home.tidy_lock, home.start_lock):
        if os.path.lexists(lock) and (lock.is_symlink() or not lock.is_file()):
            yield person(lock, "is no regular file, and cannot be locked", "move it away")
    for path, read, todo in (
        (home.config, partial(config.load, home, {}, ()), "correct it"),
        (home.overrides, partial(config.read_overrides, home), "remove it, then bring the weaves up again: loom up"),
    ):
        try:
            read()
        except LoomError as error:
            yield person(path, str(error), error.hint or todo)
    try:
        decode_routes(loads_object(fs.read(home.routes, 16 << 20)), str(home.routes))
    except FileNotFoundError:
        pass
    except (Malformed, fs.NotRegular, fs.TooLarge, Config) as error:
        yield person(home.routes, f"cannot be read: {error}", "the router waits until it is mended")


def _needed(home: Home) -> list[Path]:
    """The directories that every home has, but those of `run/`."""
    return [d for d in home.directories() if home.run not in (d, d.parent)]


def _is_directory(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()


def _archives(run: Check) -> Findings:
    for name in fs.names(run.home.archive):
        if name.endswith(".gz"):
            try:
                archive.check(run.home.archive / name)
            except archive.Damaged as error:
                todo = "what is behind the damage is lost to readers; gc sets the file aside before it adds to that day"
                yield person(run.home.archive / name, f"cannot be read to its end: {error}", todo)
            except fs.NotRegular as error:
                yield person(run.home.archive / name, f"is {error}", "move it away; gc sets it aside")
            except FileNotFoundError:
                pass


# -- modes and litter --------------------------------------------------------------------------------------------


def _modes(run: Check, directory: Path, parts: tuple[str, ...]) -> Findings:
    """0700 and 0600. In what people put here (tools, skills, memories) only what others may do counts."""
    if run.is_too_deep(directory):
        yield person(directory, "lies too deep to be looked into", "move it away")
        return
    yield from _mode(run, directory, DIR_MODE)
    peoples = any(part in _PEOPLES for part in parts)
    try:
        entries = os.scandir(directory)
    except (FileNotFoundError, PermissionError):
        return  # gone; or told, and not ours to change
    with entries:
        for entry in entries:
            path, below = Path(entry.path), (*parts, entry.name)
            if entry.is_dir(follow_symlinks=False):
                if not peoples and _is_file(below):
                    yield person(path, "is no regular file", "move it away")
                if not _is_left_out(below):
                    yield from _modes(run, path, below)
            elif entry.name == TMP:
                yield person(path, "is no directory", "move it away")
            elif entry.is_file(follow_symlinks=False):
                yield from _mode(run, path, None if peoples else FILE_MODE)
            elif not peoples and below[0] in _PLAIN:
                yield person(path, "is no regular file", "move it away")


def _is_file(parts: tuple[str, ...]) -> bool:
    """Whether this is the name of a file that nobody else here looks into: a head, a secret, a filter's, a lock."""
    match parts:
        case ("heads" | "secrets", name):
            return name != TMP
        case ("filters", stem, name):
            return name in ("lock", f"{stem}.msg")
        case (_, _, *_, name):
            return name.endswith(".lock")
    return False


def _is_left_out(parts: tuple[str, ...]) -> bool:
    """What is in the making, belongs to one boot, or is a workspace."""
    match parts:
        case ("run",) | ("lost+found",) | ("goals", _, "workspace") | ("goals", _, "subtasks", _, _, "tree"):
            return True
    return parts[-1] == TMP


def _mode(run: Check, path: Path, wanted: int | None) -> Findings:
    try:
        mode = stat.S_IMODE(os.lstat(path).st_mode)
    except FileNotFoundError:
        return
    right = mode & DIR_MODE if wanted is None else wanted
    if path.is_dir() and fs.is_unsynced(path):
        yield run.mend(path, "was made and its entry not synced", "synced", partial(fs.ensure_dir, path))
    elif mode != right:
        told = run.mend(path, f"has mode {mode:04o}", f"set to {right:04o}", partial(fs.set_mode, path, right))
        by_hand = path.parent == run.home.path and path.name in _WRITTEN_BY_HAND
        is_harmless = told.status == "mend" and by_hand and mode & right == right
        yield replace(told, status="note") if is_harmless else told


def _litter(run: Check) -> Findings:
    broom = Broom(run.home, run.now_s, Policy(), dry_run=False)
    for directory in (*litter.places(run.home), *references.shards(run.home)):
        for name in fs.names(directory / TMP):
            path = directory / TMP / name
            blob = directory.parent == run.home.blobs and _DIGEST.fullmatch(name)
            if not blob and litter.is_litter(broom, path):
                yield run.mend(path, "was left half made", "removed", partial(fs.remove_tree, path))
    for directory in litter.directories(run.home.filters):
        if not (directory / f"{directory.name}.msg").exists() and litter.is_litter(broom, directory):
            yield run.mend(directory, "is a filter without its message", "removed", partial(_remove_filter, directory))


def _remove_filter(path: Path) -> None:
    lock = locks.acquire(path / "lock")
    if lock is not None:
        with lock:
            fs.remove_tree(path)


# -- blobs -------------------------------------------------------------------------------------------------------


def _blobs(run: Check) -> Findings:
    """Every blob is read once: its bytes must be those of its name."""
    for name in fs.names(run.home.blobs):
        shard = run.home.blobs / name
        if name == TMP:
            continue
        if not re.fullmatch(r"[0-9a-f]{2}", name) or not shard.is_dir() or shard.is_symlink():
            yield person(shard, "is no directory of blobs", "move it away")
            continue
        for digest in fs.names(shard):
            if digest != TMP and (not _DIGEST.fullmatch(digest) or digest[:2] != name):
                yield person(shard / digest, "is no blob", "move it away")
        for place in (shard, shard / TMP):
            for digest in references.digests(place):
                yield from _blob(place / digest)


def _blob(path: Path) -> Findings:
    sum_ = sha256()
    try:
        for piece in fs.pieces(path):
            sum_.update(piece)
    except FileNotFoundError:
        return
    except fs.NotRegular as error:
        yield person(path, f"is no blob: {error}", "move it away")
        return
    if sum_.hexdigest() != path.name:
        yield person(path, "does not hold the bytes it is named after", "move it away; bring it back from a copy")
