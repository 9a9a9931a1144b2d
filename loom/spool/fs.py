"""The only module that changes files (ADR-0011).

`calls` holds the primitive calls of the kernel. Tests put a double in its place that kills the process before,
after or in the middle of the n-th call, or lets it fail; so every crash point is enumerated. A lint test
forbids such calls anywhere else in the package. The functions below the class are the few ways in which the
project writes: publish, replace, hint, move, append. Each says what is true afterwards.

Temporary files lie in the `.tmp/` of the directory they are meant for: after a crash they are litter there,
swept when 36 hours old, and nowhere else.
"""

from __future__ import annotations

import errno
import os
import stat
import sys
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import socket

FILE_MODE = 0o600
DIR_MODE = 0o700
_NEW_DIR_MODE = DIR_MODE | stat.S_ISVTX
TMP = ".tmp"
GROUP = 8  # files that are published at once share one syncfs from this number on
_READ = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY
_SMALL_BYTES = 8192
_PROBE_BYTES = 64 << 10  # about what one message with its turn needs
_AT_FDCWD = -100
_NOREPLACE = 1
_CAN_LOOK = os.access in os.supports_follow_symlinks

Place = str | Path  # what is done with each message gets text: a Path costs more to join than most calls to make


class Calls:
    """The file-changing calls of the kernel, one method each. Subclassed by the crash harness, never by the product."""

    def mkdir(self, path: str, mode: int) -> None:
        os.mkdir(path, mode)

    def create(self, path: str, mode: int) -> int:
        """Open a new file for writing. Raises FileExistsError when anything, a dangling link too, has the name."""
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode)

    def open_append(self, path: str, mode: int) -> int:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, mode)

    def write(self, fd: int, data: bytes | memoryview) -> int:
        return os.write(fd, data)

    def fsync(self, fd: int) -> None:
        os.fsync(fd)

    def fdatasync(self, fd: int) -> None:
        if sys.platform == "linux":
            os.fdatasync(fd)
        else:
            os.fsync(fd)

    def fsync_dir(self, path: str) -> None:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def link(self, source: str, target: str) -> None:
        os.link(source, target, follow_symlinks=False)

    def rename(self, source: str, target: str) -> None:
        os.rename(source, target)

    def rename_noreplace(self, source: str, target: str) -> None:
        """Raises FileExistsError when the target's name is taken, by anything."""
        _rename_noreplace(source, target)

    def unlink(self, path: str) -> None:
        os.unlink(path)

    def rmdir(self, path: str) -> None:
        os.rmdir(path)

    def truncate(self, fd: int, size: int) -> None:
        os.ftruncate(fd, size)

    def chmod(self, fd: int, mode: int) -> None:
        os.fchmod(fd, mode)

    def sync_file_system(self, path: str) -> None:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            _syncfs(fd)
        finally:
            os.close(fd)

    def symlink(self, text: str, path: str) -> None:
        os.symlink(text, path)

    def mkfifo(self, path: str, mode: int) -> None:
        os.mkfifo(path, mode)

    def bind(self, connection: socket.socket, path: str, mode: int) -> None:
        before = os.umask(~mode & 0o777)
        try:
            connection.bind(path)
        finally:
            os.umask(before)

    def touch(self, path: str) -> None:
        os.utime(path, follow_symlinks=False)


def _syncfs(fd: int) -> None:
    """syncfs(2), which reports write errors; sync(2) where there is none."""
    if sys.platform != "linux":
        os.sync()
        return
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    if libc.syncfs(fd) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


calls = Calls()
_renameat2 = None


def _rename_noreplace(source: str, target: str) -> None:
    global _renameat2
    if sys.platform == "linux" and _renameat2 is None:
        import ctypes  # here, because a filter never moves a message and should not pay for it

        libc = ctypes.CDLL(None, use_errno=True)
        function = getattr(libc, "renameat2", None)
        if function is not None:
            function.argtypes = [ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint]
            get_errno = ctypes.get_errno

            def call(a: bytes, b: bytes) -> int:
                return 0 if function(_AT_FDCWD, a, _AT_FDCWD, b, _NOREPLACE) == 0 else get_errno()

            _renameat2 = call
    if _renameat2 is not None:
        code = _renameat2(os.fsencode(source), os.fsencode(target))
        if code == 0:
            return
        if code not in (errno.EINVAL, errno.ENOSYS):
            raise OSError(code, os.strerror(code), source, None, target)
    # Without renameat2: both names exist for a moment, which every reader of a mailbox takes for the later one.
    os.link(source, target, follow_symlinks=False)
    os.unlink(source)


def ensure_dir(path: Path) -> None:
    """Make `path` and what is missing above it, 0700, each entry synced. Nothing happens when it is there.

    A new directory is sticky until its entry is synced. Its maker may have died before that: whoever finds it so
    syncs the entry, or what is published in it would go with it. All others pay nothing.
    It may be gone again when this returns: an empty directory of a day is removed by gc. Who needs it tries again.
    """
    if path.is_dir():
        if is_unsynced(path):
            _sync_entry(path)
        return
    if path.parent != path:
        ensure_dir(path.parent)
    try:
        calls.mkdir(str(path), _NEW_DIR_MODE)
    except FileExistsError:
        if os.path.lexists(path) and not path.is_dir():
            raise
    _sync_entry(path)


def is_unsynced(directory: Place) -> bool:
    """Whether this is a directory that ensure_dir made and did not sync: of ours, and never somebody's /tmp."""
    try:
        found = os.stat(directory)
    except FileNotFoundError:
        return False
    return stat.S_IMODE(found.st_mode) == _NEW_DIR_MODE and found.st_uid == os.getuid()


def _sync_entry(directory: Path) -> None:
    calls.fsync_dir(str(directory.parent))
    try:
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        calls.chmod(fd, DIR_MODE)
    finally:
        os.close(fd)


def is_there(place: Place) -> bool:
    """os.path.lexists() without an exception made and caught for what is not there, which is most of the time."""
    return os.access(place, os.F_OK, follow_symlinks=False) if _CAN_LOOK else os.path.lexists(place)


def _directory_of(place: str) -> str:
    return place.rpartition("/")[0]


def write_all(fd: int, data: bytes) -> None:
    """Write every byte: short writes are normal."""
    view = memoryview(data)
    while view:
        view = view[calls.write(fd, view) :]


def _temporary(directory: Place, data: bytes, *, sync: bool, mode: int = FILE_MODE) -> str:
    """A new file with `data` in the directory's `.tmp/`; unlinked again when writing fails."""
    path, fd = _new_temporary(directory, mode)
    try:
        write_all(fd, data)
        if sync:
            calls.fsync(fd)
    except OSError:
        # A failed fsync means the content is unknown: this file is given up and the caller writes a new one.
        _forget(path)
        raise
    finally:
        os.close(fd)
    return path


def _new_temporary(directory: Place, mode: int = FILE_MODE) -> tuple[str, int]:
    path = f"{directory}/{TMP}/{os.urandom(10).hex()}"
    try:
        return path, calls.create(path, mode)
    except FileNotFoundError:
        ensure_dir(Path(directory, TMP))
        return path, calls.create(path, mode)


def _forget(path: str) -> None:
    try:
        calls.unlink(path)
    except OSError:
        pass  # litter in .tmp/, swept later; the error that brought us here is the one to report


def publish(target: Place, data: bytes) -> bool:
    """Make `target` with `data`, durably, never replacing anything.

    True: it is ours and survives a power cut. False: the name was taken already; that file and its directory
    have been synced too, so that the name counts as published, unless it has moved on meanwhile; where to, and whose
    bytes it holds, is for the caller to see.
    """
    target = str(target)
    directory = _directory_of(target)
    temporary = _temporary(directory, data, sync=True)
    try:
        try:
            calls.link(temporary, target)
        except FileExistsError:
            _settle_if_there(target)
            return False
        calls.fsync_dir(directory)
        return True
    finally:
        _forget(temporary)


def publish_all(items: Iterable[tuple[Place, bytes]]) -> list[bool]:
    """publish() for several files at once, with as few syncs as they need. All are durable when it returns.

    From GROUP files on, one sync of the file system stands for those of their contents; each directory is synced once.
    """
    wanted = [(str(target), data) for target, data in items]
    together = len(wanted) >= GROUP
    results: list[bool] = []
    temporaries: list[str] = []
    try:
        for target, data in wanted:
            temporaries.append(_temporary(_directory_of(target), data, sync=not together))
        if together:
            calls.sync_file_system(_directory_of(wanted[0][0]))
        for (target, _), temporary in zip(wanted, temporaries, strict=True):
            try:
                calls.link(temporary, target)
                results.append(True)
            except FileExistsError:
                _settle_if_there(target)
                results.append(False)
        for directory in dict.fromkeys(_directory_of(target) for target, _ in wanted):
            calls.fsync_dir(directory)
    finally:
        for temporary in temporaries:
            _forget(temporary)
    return results


def settle(path: Place) -> None:
    """Sync a file found in place of publishing, and its directory: only then does its presence count."""
    fd = os.open(path, _READ)
    try:
        calls.fsync(fd)
    finally:
        os.close(fd)
    calls.fsync_dir(_directory_of(str(path)))


def _settle_if_there(path: Place) -> None:
    try:
        settle(path)
    except FileNotFoundError:
        pass  # claimed or routed since we met it: whoever moves it looks after it


def replace(path: Place, data: bytes, *, mode: int = FILE_MODE) -> None:
    """Put `data` under `path`, durably and whole: a reader sees the old file or the new one."""
    path = str(path)
    directory = _directory_of(path)
    temporary = _temporary(directory, data, sync=True, mode=mode)
    try:
        calls.rename(temporary, path)
    except OSError:
        _forget(temporary)
        raise
    calls.fsync_dir(directory)


def hint(path: Place, text: str) -> None:
    """Put one value under `path`, for people or for who watches now: whole, but not synced. Never for later."""
    path = str(path)
    temporary = _temporary(_directory_of(path), f"{text}\n".encode(), sync=False)
    try:
        calls.rename(temporary, path)
    except OSError:
        _forget(temporary)
        raise


def touch(path: Place) -> None:
    """Give a file the present time; where there is none, an empty one is made. Not synced."""
    try:
        calls.touch(str(path))
    except FileNotFoundError:
        os.close(calls.create(str(path), FILE_MODE))


def bind(connection: socket.socket, path: Path) -> None:
    """Give a socket a name, in place of whatever has it. By way of its directory: an address has 108 bytes at most."""
    remove(path)
    directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        calls.bind(connection, f"/proc/self/fd/{directory}/{path.name}", FILE_MODE)
    finally:
        os.close(directory)


class NewFile:
    """A file too large for replace(): written piece by piece in `.tmp/`, it takes its name whole, or never.

    A context manager: left without keep() nothing has happened.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._temporary, self._fd = _new_temporary(path.parent)

    def write(self, data: bytes) -> int:
        """Write every byte; how many they are."""
        write_all(self._fd, data)
        return len(data)

    def keep(self) -> None:
        """Put it under its name, durably, replacing what was there."""
        calls.fsync(self._fd)
        calls.rename(self._temporary, str(self.path))
        os.close(self._fd)
        self._fd = -1
        calls.fsync_dir(str(self.path.parent))

    def __enter__(self) -> NewFile:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
            _forget(self._temporary)


def probe(directory: Path) -> None:
    """Raise OSError when nothing could be written here now: a directory with a file is made and removed again."""
    place = directory / TMP / os.urandom(10).hex()
    ensure_dir(directory / TMP)
    calls.mkdir(str(place), DIR_MODE)
    try:
        fd = calls.create(str(place / "probe"), FILE_MODE)
        try:
            write_all(fd, bytes(_PROBE_BYTES))
        finally:
            os.close(fd)
            _forget(str(place / "probe"))
    finally:
        calls.rmdir(str(place))


Moved = Literal["moved", "same", "conflict", "gone"]


def move(source: Place, target: Place) -> Moved:
    """Move a file without replacing anything; needs no sync, because losing it is repaired by the look.

    same      the name was taken by the same bytes: those are synced and the source is gone
    conflict  the name was taken by other bytes: nothing was changed
    gone      there was no source
    """
    source, target = str(source), str(target)
    directory = _directory_of(target)
    while True:
        if is_unsynced(directory):  # whoever made it may have died: the file would go with it, from both places
            ensure_dir(Path(directory))
        try:
            calls.rename_noreplace(source, target)
            return "moved"
        except FileNotFoundError:
            if not is_there(source):
                return "gone"
            ensure_dir(Path(directory))
            continue
        except FileExistsError:
            pass
        try:
            if not same_bytes(source, target):
                return "conflict"
            settle(target)
        except FileNotFoundError:
            continue  # one of them went away while we compared
        remove(source)
        return "same"


def same_bytes(one: Place, other: Place) -> bool:
    """Whether both are regular files with the same content; one that may not be read has other content.

    Raises OSError for what is the environment's fault: no descriptors or an I/O error is no difference.
    """
    try:
        first = _open_regular(one)
        try:
            second = _open_regular(other)
            try:
                if os.fstat(first).st_size != os.fstat(second).st_size:
                    return False
                while chunk := os.read(first, 1 << 20):
                    if chunk != os.read(second, 1 << 20):
                        return False
                return not os.read(second, 1)
            finally:
                os.close(second)
        finally:
            os.close(first)
    except (NotRegular, PermissionError):
        return False


class NotRegular(Exception):
    """What lies under the name is no regular file; `kind` says what it is."""

    def __init__(self, kind: str) -> None:
        super().__init__(f"not a regular file but a {kind}")
        self.kind = kind


class TooLarge(Exception):
    """The file has more bytes than the reader allows."""


_KINDS = (
    (stat.S_ISDIR, "directory"),
    (stat.S_ISFIFO, "fifo"),
    (stat.S_ISSOCK, "socket"),
    (stat.S_ISCHR, "device"),
    (stat.S_ISBLK, "device"),
)


def read(path: Place, limit: int | None = None) -> bytes:
    """The content of a regular file, opened so that no link is followed and no FIFO or device can block.

    Raises NotRegular, TooLarge (more than `limit` bytes, checked while reading) and OSError.
    """
    fd = _open_regular(path)
    try:
        data = os.read(fd, _SMALL_BYTES)
        if len(data) == _SMALL_BYTES:  # less is all there is: most of what is read here has a few bytes
            data = b"".join([data, *_until(limit, _pieces(fd, 1 << 20), len(data))])
    finally:
        os.close(fd)
    if limit is not None and len(data) > limit:
        raise TooLarge(f"more than {limit} bytes")
    return data


def token(path: Place) -> str:
    """Another one whenever the file was replaced or written to. Raises FileNotFoundError."""
    found = os.lstat(path)
    return f"{found.st_ino}.{found.st_mtime_ns}.{found.st_size}"


def pieces(path: Path, size: int = 1 << 20) -> Iterator[bytes]:
    """The content of a regular file in pieces of `size` bytes, opened as read() does. Raises as read() does."""
    fd = _open_regular(path)
    try:
        yield from _pieces(fd, size)
    finally:
        os.close(fd)


def _pieces(fd: int, size: int) -> Iterator[bytes]:
    while chunk := os.read(fd, size):
        yield chunk


def _until(limit: int | None, chunks: Iterator[bytes], done: int) -> Iterator[bytes]:
    """The chunks that follow `done` bytes, no more than one past the limit: a file may have no end."""
    for chunk in chunks:
        yield chunk
        done += len(chunk)
        if limit is not None and done > limit:
            return


def _open_regular(path: Place) -> int:
    try:
        fd = os.open(path, _READ)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise NotRegular("link") from None
        if error.errno in (errno.ENXIO, errno.ENODEV, errno.EOPNOTSUPP):
            raise NotRegular("socket") from None
        raise
    mode = os.fstat(fd).st_mode
    if stat.S_ISREG(mode):
        return fd
    for test, kind in _KINDS:
        if test(mode):
            os.close(fd)
            raise NotRegular(kind)
    return fd


def remove(path: Place) -> bool:
    """Unlink a file; False when it was not there. Not synced: coming back after a power cut must be harmless."""
    try:
        calls.unlink(str(path))
    except FileNotFoundError:
        return False
    return True


def remove_empty(path: Path) -> bool:
    """Remove a directory when nothing is in it; whether it went. Somebody may be about to put something there."""
    try:
        calls.rmdir(str(path))
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOENT, errno.EBUSY):
            return False
        raise
    return True


def names(directory: Path, at_once: int = 4096) -> Iterator[str]:
    """The names in a directory, however many: sorted within each `at_once` of them. None when there is no directory."""
    try:
        entries = os.scandir(directory)
    except (FileNotFoundError, NotADirectoryError):
        return
    with entries:
        while some := sorted(entry.name for entry in islice(entries, at_once)):
            yield from some


def remove_tree(path: Path) -> None:
    """Remove a directory and all below it, never following a link. Nothing happens when it is not there."""
    directories = [path]
    for directory in directories:  # which grows: a tree may be deeper than Python calls go
        if directory.is_symlink():  # scandir would follow it and empty what it points to
            remove(directory)
            continue
        try:
            with os.scandir(directory) as found:
                entries = list(found)
        except FileNotFoundError:
            continue
        except NotADirectoryError:
            remove(directory)
            continue
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                directories.append(Path(entry.path))
            else:
                remove(Path(entry.path))
    for directory in reversed(directories):
        try:
            calls.rmdir(str(directory))
        except FileNotFoundError:
            pass


def open_append(path: Path) -> int:
    """A descriptor for appending to a file that need not exist yet; the caller closes it."""
    try:
        return calls.open_append(str(path), FILE_MODE)
    except FileNotFoundError:
        ensure_dir(path.parent)
        return calls.open_append(str(path), FILE_MODE)


def append(fd: int, line: bytes) -> None:
    """One record with one write(). A short write is completed: a torn end is what a reader expects and cuts off."""
    write_all(fd, line)


def copy_file(source: int, target: Path, mode: int, size: int) -> str:
    """Copy the first `size` bytes of an open regular file to a new `target`; the SHA-256 of what was copied.

    Not more than that: a file may grow while it is read, and some files of /proc have no end. A whole tree is synced
    at once by sync_tree.
    """
    from hashlib import sha256  # here: it loads a library of a few megabytes, which few commands need

    digest = sha256()
    fd = calls.create(str(target), FILE_MODE)
    try:
        while size > 0 and (chunk := os.read(source, min(size, 1 << 20))):
            digest.update(chunk)
            write_all(fd, chunk)
            size -= len(chunk)
        calls.chmod(fd, mode)
    finally:
        os.close(fd)
    return digest.hexdigest()


def make_dir(path: Path, mode: int) -> None:
    """Make one directory with exactly this mode, whatever the umask."""
    calls.mkdir(str(path), DIR_MODE)
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        calls.chmod(fd, mode)
    finally:
        os.close(fd)


def set_mode(path: Path, mode: int) -> None:
    """Give a file or directory this mode; never what a link points to."""
    fd = os.open(path, _READ)
    try:
        calls.chmod(fd, mode)
    finally:
        os.close(fd)


def sync_tree(path: Path) -> None:
    """Everything written to this file system so far survives a power cut: one call for a whole tree."""
    calls.sync_file_system(str(path))


def exchange_file(path: Path, data: bytes, mode: int, temporary: Path) -> None:
    """Put `data` under `path` by way of a temporary file of the caller's choice, replacing what a crash left of it."""
    remove(temporary)
    fd = calls.create(str(temporary), FILE_MODE)
    try:
        write_all(fd, data)
        calls.chmod(fd, mode)
        calls.fsync(fd)
    finally:
        os.close(fd)
    calls.rename(str(temporary), str(path))
