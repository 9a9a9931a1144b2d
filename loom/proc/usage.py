"""What a process and everything below it uses, from /proc; nothing here is an error, processes end while one looks."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from loom.proc import cgroup, pidfd
from loom.wire.record import record, replace

_PAGE = os.sysconf("SC_PAGE_SIZE")
_TICKS = os.sysconf("SC_CLK_TCK")


@record
class Sum:
    """memory: bytes of anonymous memory. cpu_s: with that of children that have ended and, but for a group's, were
    waited for."""

    memory: int = 0
    cpu_s: float = 0.0
    processes: int = 0
    most_files: int = 0


def of(pid: int, group: Path | None, *, count_files: bool) -> Sum:
    """The sum over a process and what descends from it, or all of its group. Listing each one's open files costs."""
    members = members_of(pid, group)
    found = _of_each(members or tree_of(pid), count_files)
    total_s = cgroup.cpu_s(group) if group is not None and members else None
    return found if total_s is None else replace(found, cpu_s=total_s)


def exact_memory_of(pid: int, group: Path | None) -> int:
    """The same memory with what they share counted once, as far as they may be looked at; costs much more."""
    return sum(map(_proportional, members_of(pid, group) or tree_of(pid)))


def members_of(pid: int, group: Path | None) -> Sequence[int]:
    """Who is in the cgroup, whoever their parents are; nobody when this process is not."""
    found = [] if group is None else cgroup.pids(group)
    return found if pid in found else []


def tree_of(pid: int) -> Sequence[int]:
    """A process and what descends from it."""
    found = [pid]
    for one in found:
        found += children_of(one)
    return found


def _of_each(pids: Sequence[int], count_files: bool) -> Sum:
    memory, ticks, processes, most_files = 0, 0, 0, 0
    for one in pids:
        stat = pidfd.stat_of(one)
        if not stat or stat[0] in (b"Z", b"X"):
            continue
        processes += 1
        ticks += sum(int(field) for field in stat[11:15])  # utime, stime and those of its children
        memory += _anonymous(one)
        if count_files:
            most_files = max(most_files, _open_files(one))
    return Sum(memory, ticks / _TICKS, processes, most_files)


def _proportional(pid: int) -> int:
    try:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_bytes().splitlines():
            if line.startswith(b"Pss_Anon:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return _anonymous(pid)


def children_of(pid: int) -> list[int]:
    """The children of all its threads; none when it has ended."""
    found: list[int] = []
    try:
        for task in os.listdir(f"/proc/{pid}/task"):
            found += map(int, Path(f"/proc/{pid}/task/{task}/children").read_bytes().split())
    except OSError:
        pass
    return found


def _anonymous(pid: int) -> int:
    try:
        fields = Path(f"/proc/{pid}/statm").read_bytes().split()
        return (int(fields[1]) - int(fields[2])) * _PAGE
    except (OSError, IndexError):
        return 0


def _open_files(pid: int) -> int:
    try:
        return len(os.listdir(f"/proc/{pid}/fd"))
    except OSError:
        return 0


def disk_of(directory: str) -> int:
    """Bytes that the files below a directory take; links are not followed."""
    total, queue = 0, [directory]
    while queue:
        try:
            with os.scandir(queue.pop()) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        queue.append(entry.path)
                    else:
                        total += entry.stat(follow_symlinks=False).st_blocks * 512
        except OSError:
            continue
    return total
