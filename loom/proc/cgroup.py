"""Groups of processes that the kernel keeps (cgroup v2), where a part of its tree was delegated to us.

A process is born into its parent's group, and stays there whatever session, environment, parent or signal handlers it
has. Whoever divides what was delegated gives each of its children a group, can end all that is in it at once, however
fast it forks, and reads there what even those have used that are gone:

    DELEGATED/loom.INODE/NAME/     an agent's group; INODE is that of its home, which may share the place with others

None of that needs a controller to be enabled, so the process that divides may stay in DELEGATED itself, and the
service manager can start the next one there. Needs Linux 5.14 (cgroup.kill). What the service manager delegates it
marks with an extended attribute; systemd does so for Delegate=yes (systemd.resource-control(5), CGROUP_DELEGATION).
"""

from __future__ import annotations

import os
import select
import time
from collections.abc import Iterator
from pathlib import Path

from loom.wire.record import record

_MARKS = ("user.delegate", "trusted.delegate")
_PROCS, _KILL = "cgroup.procs", "cgroup.kill"
_WAIT_S = 2.0  # for killed processes to be gone; what hangs in the kernel longer is tried again by the caller


@record
class Groups:
    """The groups of one home's agents, which are made as they are needed."""

    place: Path

    def of(self, name: str) -> Path | None:
        """The group of this agent, None while it has none."""
        path = self.place / name
        return path if path.is_dir() else None

    def make(self, name: str) -> Path | None:
        """An empty group for this agent; what an earlier runner of it left there is ended. None: the kernel refuses."""
        path = self.place / name
        try:
            if path.is_dir():
                kill(path)
            else:
                self.place.mkdir(mode=0o700, exist_ok=True)
                path.mkdir(mode=0o700)
        except OSError:
            return None
        return path

    def remove(self, name: str = "") -> None:
        """Give up the group of this agent, or those of all; one that has processes stays."""
        top = self.place / name
        for path in [*reversed(list(_below(top))), top]:
            try:
                path.rmdir()
            except OSError:
                continue  # somebody lives there, or it is gone


def delegated(home: Path) -> Groups | None:
    """Where agents of `home` can have groups; None when nothing was delegated to this process."""
    try:
        own = _own()
        if own is None or not _is_delegated(own) or not os.access(own / _PROCS, os.W_OK) or not (own / _KILL).exists():
            return None
        return Groups(own / f"loom.{home.stat().st_ino}")
    except OSError:
        return None


def _own() -> Path | None:
    """The directory of our own group; None where there is no cgroup v2, or it lies out of our sight."""
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        if line.startswith("0::/"):
            inside = line[len("0::") :]
            break
    else:
        return None
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields, _, kind = line.partition(" - ")
        if kind.startswith("cgroup2 "):
            root, mount = fields.split()[3:5]
            if inside == root or inside.startswith(root.rstrip("/") + "/"):
                return Path(mount) / inside[len(root) :].lstrip("/")
    return None


def _is_delegated(group: Path) -> bool:
    for mark in _MARKS:
        try:
            if os.getxattr(group, mark) == b"1":
                return True
        except OSError:
            continue  # not marked so, or not for our eyes
    return False


def enter(group: str) -> None:
    """Move this process there. One that cannot stays where it is: groups are the second net, not the first."""
    try:
        _tell(Path(group), _PROCS, b"0")
    except OSError:
        pass


def kill(group: Path) -> int:
    """End all processes in a group and below it; how many there were. Not the one we are in ourselves.

    When it returns they have ended, except those that hang in the kernel for longer than two seconds.
    """
    found = pids(group)
    if not found or os.getpid() in found:
        return 0
    try:
        _tell(group, _KILL, b"1")
    except OSError:
        return 0  # it is gone
    _wait_until_empty(group)
    return len(found)


def pids(group: Path) -> list[int]:
    """Who is in a group and below it, without those that have ended and were not collected."""
    found: list[int] = []
    for path in (group, *_below(group)):
        try:
            found += map(int, (path / _PROCS).read_bytes().split())
        except OSError:
            continue
    return found


def cpu_s(group: Path) -> float | None:
    """Seconds of processor time of all that were ever in a group; None when it is gone."""
    try:
        for line in (group / "cpu.stat").read_bytes().splitlines():
            if line.startswith(b"usage_usec "):
                return int(line.split()[1]) / 1e6
    except OSError:
        pass
    return None


def _below(group: Path) -> Iterator[Path]:
    """The groups below one, each after the one that it lies in."""
    try:
        with os.scandir(group) as entries:
            inner = [Path(entry.path) for entry in entries if entry.is_dir(follow_symlinks=False)]
    except OSError:
        return
    for path in inner:
        yield path
        yield from _below(path)


def _wait_until_empty(group: Path) -> None:
    """cgroup.events is readable once more (POLLPRI) whenever what it says has changed."""
    try:
        fd = os.open(group / "cgroup.events", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return
    try:
        poller = select.poll()
        poller.register(fd, select.POLLPRI)
        deadline = time.monotonic() + _WAIT_S
        while b"populated 1" in os.pread(fd, 4096, 0) and (left_s := deadline - time.monotonic()) > 0:
            poller.poll(left_s * 1000)
    finally:
        os.close(fd)


def _tell(group: Path, name: str, text: bytes) -> None:
    fd = os.open(group / name, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text)
    finally:
        os.close(fd)
