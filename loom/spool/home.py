"""Opening `$LOOM_HOME`: make it, check its version, file system and boot (docs/protocol.md section 1, ADR-0001).

Every command and process passes here first. What is derived from a boot (`run/`: FIFOs, sockets, slots) is
emptied once when the boot id is another one, under start.lock.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import sys
from pathlib import Path

from loom.spool import fs, locks
from loom.spool.layout import HOME_ENTRIES, PROTOCOL_VERSION, Home
from loom.wire.errors import Config, Disk
from loom.wire.record import record

# f_type of statfs(2) for file systems whose locks, links or syncs do not hold what the protocol needs.
_REFUSED = {0x6969: "NFS", 0x65735546: "FUSE", 0x01021997: "9p (drvfs)", 0xFF534D42: "CIFS", 0xFE534D42: "SMB2"}
_TMPFS = 0x01021994
_OVERLAY = 0x794C7630
_FEW_INODES = 8  # what was tried may have given some back
ALLOW_ENV = "LOOM_ALLOW_FILESYSTEM"


@record
class Ground:
    """What lies under a home: the file system's name and whether it survives a power cut."""

    name: str
    durable: bool
    refused: bool


def open_home(path: Path, env: dict[str, str] | os._Environ[str] = os.environ) -> Home:
    """The home at `path`, made when it is not there.

    Raises Config for a newer tree, somebody's directory that is none, a refused file system or an inbox on another
    device; Disk when it cannot be made or written.
    """
    home = Home(path)
    _check_name(path)
    try:
        if not home.version.exists():
            _check_empty(home)
            _create(home)
        check_version(home)
        _check_boot(home, env)
    except OSError as error:
        raise disk_error(error, f"cannot open the home {path}", path) from error
    return home


def look_into(path: Path) -> Home:
    """As open_home, for who changes nothing: what is no home yet stays so, and is looked at as an empty one.

    A home that may not be written is looked at as it lies there. Its `run/` may be of another boot then; nobody holds
    a lock there, and nothing else in it is looked at.
    """
    if _is_nothing_yet(path):
        _check_name(path)
        return Home(path)
    try:
        return open_home(path)
    except Disk as error:
        cause = error.__cause__
        if not isinstance(cause, OSError) or cause.errno not in (errno.EROFS, errno.EACCES, errno.EPERM):
            raise
        home = Home(path)
        if not os.path.lexists(home.version):
            raise
        check_version(home)
        return home


def _is_nothing_yet(path: Path) -> bool:
    """Whether a home could be made here of nothing: no directory, or an empty one."""
    try:
        return not os.listdir(path)
    except FileNotFoundError:
        return True
    except OSError:
        return False  # who opens it says what is wrong


def trouble(home: Home) -> str:
    """Why nothing can be written in this home now, in one line; empty when it can. Tried, not guessed."""
    try:
        fs.probe(home.run)
    except PermissionError:
        return ""  # somebody else's home, at which we only look
    except OSError as error:
        return disk_error(error, "nothing can be written", home.path).line()
    return ""


def disk_error(error: OSError, tried: str, ground: Path | None = None) -> Disk:
    """An OSError as one line with what to do next. `ground` lies on the disk that refused, where that is known."""
    if error.errno == errno.ENOSPC and ground is not None and _has_no_inodes(ground):
        return Disk(f"{tried}: no inodes left on device", hint="remove files that nobody needs; nothing was lost")
    hints = {
        errno.ENOSPC: "free some space; nothing was lost",
        errno.EDQUOT: "the quota is used up: free some space; nothing was lost",
        errno.EROFS: "the file system is read-only: set LOOM_HOME to a writable directory",
        errno.EACCES: "check its owner and mode, or set LOOM_HOME to a directory of yours",
        errno.EPERM: "check its owner and mode, or set LOOM_HOME to a directory of yours",
        errno.EMFILE: "too many open files: raise `ulimit -n`",
        errno.ENFILE: "the system has too many open files",
        errno.EIO: "the disk reports an error: check the kernel log",
        errno.EEXIST: "something there is no directory: set LOOM_HOME to another place",
        errno.ENOTDIR: "something on the way is no directory: set LOOM_HOME to another place",
        errno.EXDEV: "all of a home must lie on one device",
        errno.EFBIG: "the file-size limit is reached: raise `ulimit -f`",
        errno.ENAMETOOLONG: "set LOOM_HOME to a directory with a shorter name",
        errno.ENOENT: "something on the way is missing: make it first, or set LOOM_HOME to another place",
    }
    if error.errno == errno.ENOENT and error.filename is None and _is_nowhere():
        return Disk(f"{tried}: the current directory does not exist any more", hint="cd to another one")
    filename = error.filename2 or error.filename
    name = os.fsdecode(filename) if isinstance(filename, str | bytes) else ""
    if fs.TMP in Path(name).parts:  # a temporary file says nothing to a person
        name = name.partition(f"/{fs.TMP}/")[0]
    place = f" ({name})" if name and name not in tried else ""
    return Disk(f"{tried}: {error.strerror or error}{place}", hint=hints.get(error.errno or 0, ""))


def _has_no_inodes(path: Path) -> bool:
    """Whether it is names and not bytes that are used up; some file systems (btrfs) do not count them."""
    try:
        found = os.statvfs(path)
    except OSError:
        return False
    return found.f_files > 0 and found.f_favail < _FEW_INODES


def _is_nowhere() -> bool:
    """Whether our current directory was removed."""
    try:
        os.getcwd()
    except FileNotFoundError:
        return True
    return False


def _check_name(path: Path) -> None:
    """The home's path stands in messages and records, which are UTF-8."""
    try:
        str(path).encode("utf-8")
    except UnicodeEncodeError:
        raise Config(
            f"the name of the home is not UTF-8: {str(path)!a}", hint="set LOOM_HOME to another place"
        ) from None


def _check_empty(home: Home) -> None:
    """Refuse to make a home of a directory in which somebody keeps other things: a home's `run/` is emptied."""
    try:
        names = sorted(os.listdir(home.path))
    except FileNotFoundError:
        return
    strange = [name for name in names if name not in HOME_ENTRIES and not name.startswith(".")]
    if not strange and "run" in names and not home.boot_id.exists() and any(home.run.iterdir()):
        strange = ["run"]
    if strange:
        raise Config(
            f"{home.path} is no loom home and not empty: it holds {strange[0]!a}",
            hint="set LOOM_HOME to a new directory",
        )


def _create(home: Home) -> None:
    fs.ensure_dir(home.path)
    fs.replace(home.version, f"{PROTOCOL_VERSION}\n".encode())


def check_version(home: Home) -> None:
    """Raises Config for a home of a newer version, or none."""
    try:
        text = fs.read(home.version, 100).decode("ascii", "replace").strip()
    except (fs.NotRegular, fs.TooLarge) as error:
        raise Config(f"{home.version} cannot be read: {error}", hint="is this a loom home?") from None
    if not text.isdigit():
        raise Config(f"{home.version} holds {text!a}, not a protocol version", hint="is this a loom home?")
    if int(text) > PROTOCOL_VERSION:
        raise Config(
            f"{home.path} is a home of protocol version {text}, this loom knows version {PROTOCOL_VERSION}",
            hint="upgrade loom, or set LOOM_HOME to another directory",
        )


def _check_boot(home: Home, env: dict[str, str] | os._Environ[str]) -> None:
    boot = locks.boot_id()
    if is_of_this_boot(home):
        return
    lock = locks.acquire(home.start_lock, wait=True)
    assert lock is not None
    with lock:
        if is_of_this_boot(home):
            return
        check_ground(home, env)
        fs.remove_tree(home.run)
        for directory in home.directories():
            fs.ensure_dir(directory)
        check_devices(home)
        self_test(home)
        fs.replace(home.boot_id, f"{boot}\n".encode())


def is_of_this_boot(home: Home) -> bool:
    """Whether `run/` was made since the machine started."""
    try:
        return fs.read(home.boot_id, 100).decode("ascii", "replace").strip() == locks.boot_id()
    except (FileNotFoundError, NotADirectoryError, fs.NotRegular, fs.TooLarge):
        return False


def ground(path: Path) -> Ground:
    """The file system under `path`, by statfs; assumed good where the call does not exist."""
    if sys.platform != "linux":
        return Ground("unknown", True, False)
    kind = _statfs_type(path)
    if kind in _REFUSED:
        return Ground(_REFUSED[kind], False, True)
    if kind == _TMPFS:
        return Ground("tmpfs", False, False)
    return Ground("overlay" if kind == _OVERLAY else "local", True, False)


def _statfs_type(path: Path) -> int:
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    buffer = ctypes.create_string_buffer(256)
    if libc.statfs(os.fsencode(path), buffer) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), str(path))
    return int.from_bytes(buffer.raw[: ctypes.sizeof(ctypes.c_long)], sys.byteorder) & 0xFFFFFFFF


def check_ground(home: Home, env: dict[str, str] | os._Environ[str]) -> Ground:
    """Refuse file systems that lose the answer to a link or do not share locks, unless the user insists."""
    found = ground(home.path)
    if found.refused and env.get(ALLOW_ENV) != "1":
        raise Config(
            f"{home.path} lies on {found.name}, where locks and links cannot be relied on",
            hint=f"set LOOM_HOME to a local disk, or {ALLOW_ENV}=1 to try it all the same",
        )
    return found


def check_devices(home: Home) -> None:
    """One home, one device: a message is moved by renaming it. Checked for the home's own directories."""
    for directory in home.directories():
        check_device(home, directory)


def check_device(home: Home, directory: Path) -> None:
    """Raises Config when `directory` is on another device than its home, or no directory of its own."""
    mine, other = os.stat(home.path), os.lstat(directory)
    if not stat.S_ISDIR(other.st_mode):
        raise Config(f"{directory} is not a directory", hint="a home holds no links: move the data into the home")
    if mine.st_dev != other.st_dev:
        raise Config(
            f"{directory} is on another device than its home {home.path}",
            hint="messages are moved by renaming: keep the whole home on one device",
        )


def self_test(home: Home) -> None:
    """Try what the protocol stands on: link refuses a taken name, no-replace rename does, flock excludes, fsync works.

    Raises Config naming what does not work here.
    """
    place = home.run / "self-test"
    fs.remove_tree(place)
    fs.ensure_dir(place)
    try:
        one, two = place / "one", place / "two"
        if not fs.publish(one, b"1") or fs.publish(one, b"2"):
            raise Config(f"{home.path}: a link replaced a file that was there", hint="set LOOM_HOME to a local disk")
        fs.publish(two, b"2")
        if fs.move(two, one) != "conflict" or fs.read(one) != b"1":
            raise Config(f"{home.path}: a rename replaced a file", hint="set LOOM_HOME to a local disk")
        held = locks.acquire(place / "lock")
        if held is None or not locks.is_held(place / "lock"):
            raise Config(f"{home.path}: flock does not exclude", hint="set LOOM_HOME to a local disk")
        held.release()
    finally:
        fs.remove_tree(place)


def set_cloexec(fd: int, on: bool) -> None:
    """Whether a descriptor is closed by exec."""
    flags = fcntl.fcntl(fd, fcntl.F_GETFD)
    fcntl.fcntl(fd, fcntl.F_SETFD, flags | fcntl.FD_CLOEXEC if on else flags & ~fcntl.FD_CLOEXEC)
