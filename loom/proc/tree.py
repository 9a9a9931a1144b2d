"""Whole trees of processes: finding them and ending them, never by a bare number.

A tree is a root, what descends from it, what is in its session, and what carries its mark (an environment entry).
Ending one: everything is stopped first, again and again until nothing new turns up, so that nothing can fork away;
then everything is killed. Each signal goes through a pidfd whose start time was compared after opening it.

What loses its parent comes to the next subreaper above: become_subreaper() makes us that one, so that a
grandchild that outlives its runner is our child and can be found and reaped.
"""

from __future__ import annotations

import ctypes
import os
import select
import signal
import time
from collections.abc import Callable, Collection, Iterable
from pathlib import Path

from loom.proc import pidfd
from loom.wire.record import record

_PR_SET_NAME = 15
_PR_SET_CHILD_SUBREAPER = 36
_ROUNDS = 50
_WAIT_S = 2.0  # for killed processes to be gone; what hangs in the kernel longer is tried again by the caller


@record
class Proc:
    """One line of the process table; `start` tells it from a later process with the same pid."""

    pid: int
    start: int
    ppid: int
    session: int
    state: str


def look_at(pid: int) -> Proc | None:
    fields = pidfd.stat_of(pid)
    if not fields:
        return None
    return Proc(pid, int(fields[19]), int(fields[1]), int(fields[3]), fields[0].decode("ascii"))


def snapshot() -> dict[int, Proc]:
    """All processes, by pid. Not atomic: one that forks meanwhile is why killing works in rounds."""
    found = (look_at(int(name)) for name in os.listdir("/proc") if name.isdigit())
    return {proc.pid: proc for proc in found if proc is not None}


def has_mark(pid: int, mark: bytes) -> bool:
    """Whether `mark` (NAME=value) was in the process's environment when it was exec'ed. False when it is not ours."""
    try:
        fd = os.open(f"/proc/{pid}/environ", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        with os.fdopen(fd, "rb") as file:
            return mark in file.read().split(b"\0")
    except OSError:
        return False


def members(table: dict[int, Proc], pid: int, start: int, mark: bytes = b"") -> list[Proc]:
    """The living processes of a tree, the root first.

    `start` is the root's. A session is only believed while its leader stands in the table, be it as a zombie: after
    that the number may have been given to somebody else, and only the mark counts.
    """
    root = table.get(pid)
    pinned = root is not None and root.start == start
    spared = _ourselves(table)
    found: dict[int, Proc] = {pid: root} if root is not None and pinned and pid not in spared else {}
    children: dict[int, list[Proc]] = {}
    for proc in table.values():
        children.setdefault(proc.ppid, []).append(proc)
        if proc.pid in found or proc.pid in spared or proc.start < start:
            continue
        if (pinned and proc.session == pid) or (mark and has_mark(proc.pid, mark)):
            found[proc.pid] = proc
    queue = list(found)
    while queue:
        for child in children.get(queue.pop(), ()):
            if child.pid not in found and child.pid not in spared:
                found[child.pid] = child
                queue.append(child.pid)
    return [proc for proc in found.values() if proc.state not in "ZX"]


def below(table: dict[int, Proc], pid: int, but: Collection[int] = ()) -> list[Proc]:
    """What descends from a living process, without it; without the children `but` and all below them."""
    children: dict[int, list[Proc]] = {}
    for proc in table.values():
        children.setdefault(proc.ppid, []).append(proc)
    found: list[Proc] = []
    queue = [pid]
    while queue:
        for child in children.get(queue.pop(), ()):
            if child.pid not in but:
                found.append(child)
                queue.append(child.pid)
    return [proc for proc in found if proc.state not in "ZX"]


def _ourselves(table: dict[int, Proc]) -> set[int]:
    """We and what is above us: a supervisor started from inside an agent must not end with that agent's tree."""
    spared = {1}
    pid = os.getpid()
    while pid > 1 and pid not in spared:
        spared.add(pid)
        pid = table[pid].ppid if pid in table else 0
    return spared


def kill_tree(pid: int, start: int, mark: bytes = b"") -> int:
    """End a whole tree with SIGKILL, whatever it does with signals. How many processes were sent one is returned.

    When it returns they have ended, except those that hang in the kernel for longer than two seconds.
    """
    return kill_found(lambda: members(snapshot(), pid, start, mark))


def kill_found(find: Callable[[], list[Proc]]) -> int:
    """Stop what `find` returns until it returns nothing new, then kill all of it."""
    held: dict[tuple[int, int], int] = {}
    try:
        for _ in range(_ROUNDS):
            fresh = [proc for proc in find() if (proc.pid, proc.start) not in held]
            if not fresh:
                break
            for proc in fresh:
                fd = pidfd.open_pidfd(proc.pid, proc.start)
                if fd is not None:
                    held[proc.pid, proc.start] = fd
                    pidfd.send(fd, signal.SIGSTOP)
        for fd in held.values():
            pidfd.send(fd, signal.SIGKILL)
        _wait_for(held.values())
        return len(held)
    finally:
        for fd in held.values():
            os.close(fd)


def _wait_for(fds: Iterable[int]) -> None:
    deadline = time.monotonic() + _WAIT_S
    poller = select.poll()
    left = set(fds)
    for fd in left:
        poller.register(fd, select.POLLIN)
    while left and (rest_s := deadline - time.monotonic()) > 0:
        for fd, _ in poller.poll(rest_s * 1000):
            poller.unregister(fd)
            left.discard(fd)


# -- being the one whom orphans come to -------------------------------------------------------------------------


_libc = ctypes.CDLL(None, use_errno=True)  # opened once, before any fork


def _prctl(option: int, argument: object) -> None:
    if _libc.prctl(option, argument, 0, 0, 0) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def become_subreaper() -> None:
    """From now on what loses its parent below us becomes our child."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def set_name(name: str) -> None:
    """The name that ps and top show (15 bytes of it)."""
    _prctl(_PR_SET_NAME, name.encode("ascii", "replace")[:15])


def children_of_ours() -> list[int]:
    """The pids of our children, zombies included: they cannot be reused before we reap them."""
    me = os.getpid()
    try:
        return [int(pid) for pid in Path(f"/proc/{me}/task/{me}/children").read_bytes().split()]
    except OSError:
        return [proc.pid for proc in snapshot().values() if proc.ppid == me]


def reap_strays(known: Iterable[int]) -> None:
    """Reap ended children that are not `known`: orphans that came to us. The known ones are left to their owner."""
    spared = set(known)
    for pid in children_of_ours():
        if pid not in spared:
            try:
                os.waitpid(pid, os.WNOHANG)
            except ChildProcessError:
                pass
