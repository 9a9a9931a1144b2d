"""Real trouble under a home: a small file system in a namespace of its own, filled and closed while loom works.

said = on_ground(work, "size=4m")        runs work(place) in a forked child that has mounted a tmpfs at `place`
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import signal
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support import forked, processes_of

_NEWNS, _NEWUSER = 0x00020000, 0x10000000
_RDONLY, _REMOUNT, _BIND, _REC, _PRIVATE = 1, 32, 4096, 16384, 1 << 18
_DETACH = 2
_CAPBSET_DROP = 24
_CAPABILITY_VERSION_3 = 0x20080522
_libc = ctypes.CDLL(None, use_errno=True)


class NotHere(Exception):
    """This kernel, or this user, cannot make such a ground; the test is skipped with the reason."""


def on_ground(work: Callable[[Path], dict[str, Any] | None], options: str, deadline_s: float = 100.0) -> dict[str, Any]:
    """What `work` gave back. Fails with its traceback; skips where the ground cannot be made."""
    place = Path(tempfile.mkdtemp(prefix="loom-ground-"))

    def inside() -> dict[str, Any]:
        try:
            enter_namespace()
            mount("tmpfs", place, options)
        except NotHere as reason:
            return {"not here": str(reason)}
        return work(place) or {}

    try:
        ended = forked(inside, deadline_s)
        if "not here" in ended.said:
            pytest.skip(ended.said["not here"])
        assert ended.status == 0, ended.said.get("trace")
        return ended.said
    finally:
        for pid in processes_of(place / "home"):  # when the child was killed at its deadline
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        place.rmdir()
        place.with_name(f"{place.name}.log").unlink(missing_ok=True)


def enter_namespace() -> None:
    """A user and mount namespace of our own, in which we are root. Raises NotHere."""
    uid, gid = os.geteuid(), os.getegid()
    _call(_libc.unshare(_NEWUSER | _NEWNS), "no user namespace")
    with contextlib.suppress(OSError):
        Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"0 {uid} 1")
    Path("/proc/self/gid_map").write_text(f"0 {gid} 1")
    _call(_libc.mount(b"none", b"/", None, _REC | _PRIVATE, None), "no private mounts")


def mount(kind: str, place: Path, options: str) -> None:
    _call(_libc.mount(b"none", os.fsencode(place), kind.encode(), 0, options.encode()), f"no {kind} with {options}")


def close_for_writing(place: Path) -> None:
    """What is opened by name from now on lies on a read-only file system."""
    path = os.fsencode(place)
    _call(_libc.mount(path, path, None, _BIND | _REC, None), "no bind mount")
    _call(_libc.mount(None, path, None, _REMOUNT | _BIND | _RDONLY, None), "no read-only mount")


def open_for_writing(place: Path) -> None:
    _call(_libc.umount2(os.fsencode(place), _DETACH), "cannot be unmounted")


def _call(result: int, what: str) -> None:
    if result:
        raise NotHere(f"{what} here: {os.strerror(ctypes.get_errno())}")


def drop_capabilities() -> None:
    """Root without any rights of root, and so are all programs it starts."""
    for number in range(64):
        _libc.prctl(_CAPBSET_DROP, number, 0, 0, 0)  # EINVAL for those this kernel does not have
    header, none = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0), (ctypes.c_uint32 * 6)()
    assert _libc.capset(header, none) == 0, os.strerror(ctypes.get_errno())


def fill(path: Path) -> None:
    """Take every byte that is left on the file system of `path`, again when some have come free meanwhile."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    size = 1 << 16
    try:
        while size:
            try:
                os.write(fd, b"x" * size)
            except OSError as error:
                if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                    raise
                size //= 2
    finally:
        os.close(fd)


def fill_inodes(directory: Path) -> None:
    """Take every name that is left."""
    directory.mkdir(exist_ok=True)
    with contextlib.suppress(OSError):
        for number in range(1_000_000):
            (directory / str(number)).touch(exist_ok=False)
