"""Becoming like another process of the same user, as if it had forked us.

What a process may set for itself is taken over; what it may not must be the same already, or Unlike is raised. The
other one waits for us meanwhile, so that its number stays its own.

    taken over   directory, streams, environment, limits, umask, priority, processors, signals ignored and blocked
    the same     users, groups, capabilities, seccomp, namespaces, root, cgroup, security label, scheduling, OOM score

Not there at all: its terminal. We are in a session of our own, and no signal of a terminal reaches us.
"""

from __future__ import annotations

import io
import os
import resource
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from loom.proc import spawn
from loom.wire.record import record

_SAME = (
    *("Uid", "Gid", "Groups", "CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"),
    *("NoNewPrivs", "Seccomp", "Seccomp_filters"),
)
_SAME_FILES = ("cgroup", "oom_score_adj", "attr/current")
_LIMITS = sorted({getattr(resource, name) for name in dir(resource) if name.startswith("RLIMIT_")})
_SIGNALS = sorted(int(number) for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP})


class Unlike(Exception):
    """We cannot be what the other process is."""


@record
class Look:
    """What must be the same, and what else /proc says of a process: signals as sets of numbers."""

    same: tuple[object, ...]
    umask: int
    ignored: frozenset[int]
    blocked: frozenset[int]


def look(pid: int | str) -> Look:
    """Raises Unlike when that process cannot be looked at."""
    place = f"/proc/{pid}"
    try:
        status = dict(line.split(":\t", 1) for line in _read(f"{place}/status").decode().splitlines())
        spaces = [os.readlink(f"{place}/ns/{name}") for name in sorted(os.listdir(f"{place}/ns"))]
        root = os.stat(f"{place}/root")
        same = (
            *(status.get(name) for name in _SAME),
            *(_read(f"{place}/{name}") for name in _SAME_FILES),
            *spaces,
            (root.st_dev, root.st_ino),
            os.sched_getscheduler(0 if pid == "self" else int(pid)),
        )
        umask, ignored, blocked = (int(status["Umask"], 8), _numbers(status["SigIgn"]), _numbers(status["SigBlk"]))
    except (OSError, KeyError, ValueError) as error:
        raise Unlike(f"{place}: {error}") from None
    return Look(same, umask, ignored, blocked)


def _read(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError:
        if path.endswith("attr/current"):  # where there is no security module
            return b""
        raise


def _numbers(mask: str) -> frozenset[int]:
    bits = int(mask, 16)
    return frozenset(number for number in range(1, 65) if bits >> (number - 1) & 1)


def take_over(pid: int, directory: int, env: Mapping[bytes, bytes]) -> Look:
    """All but streams and signals. Raises Unlike; we are neither one nor the other then."""
    other = look(pid)
    if other.same != look("self").same:
        raise Unlike("it lives in other surroundings")
    try:
        os.fchdir(directory)
        os.umask(other.umask)
        if (priority := os.getpriority(os.PRIO_PROCESS, pid)) != os.getpriority(os.PRIO_PROCESS, 0):
            os.setpriority(os.PRIO_PROCESS, 0, priority)
        if (processors := os.sched_getaffinity(pid)) != os.sched_getaffinity(0):
            os.sched_setaffinity(0, processors)
        for which in _LIMITS:
            if (limits := resource.prlimit(pid, which)) != resource.getrlimit(which):
                resource.setrlimit(which, limits)
    except (OSError, ValueError) as error:
        raise Unlike(str(error)) from None
    spawn.replace_environment(os.environb, env)
    time.tzset()
    return other


def take_streams(fds: Sequence[int], streams: Sequence[str]) -> None:
    """`fds` are stdin, stdout, stderr from now on; `streams`: encoding and errors of the first, then of the second."""
    for place, fd in enumerate(fds):
        os.dup2(fd, place)
    sys.stdin = _text(io.BufferedReader(_raw(0, "r")), streams[0], streams[1])
    sys.stdout = _text(io.BufferedWriter(_raw(1, "w")), streams[2], streams[3])
    sys.stderr = _text(io.BufferedWriter(_raw(2, "w")), streams[2], "backslashreplace")
    sys.__stdin__, sys.__stdout__, sys.__stderr__ = sys.stdin, sys.stdout, sys.stderr  # type: ignore[misc]


def _raw(fd: int, mode: str) -> io.FileIO:
    return io.FileIO(fd, mode, closefd=False)


def _text(binary: io.BufferedReader | io.BufferedWriter, encoding: str, errors: str) -> io.TextIOWrapper:
    return io.TextIOWrapper(binary, encoding=encoding, errors=errors, line_buffering=True)


def take_signals(other: Look) -> None:
    """Each as an interpreter has it that was started in its place. Comes last: what has waited comes now."""
    for number in _SIGNALS:
        ignored = number in other.ignored
        wanted = signal.SIG_IGN if ignored else signal.SIG_DFL
        if number == signal.SIGINT and not ignored:
            signal.signal(number, signal.default_int_handler)
        elif signal.getsignal(number) is not wanted:
            try:
                signal.signal(number, wanted)
            except (OSError, ValueError):
                continue  # the C library keeps some real-time signals for itself
    signal.pthread_sigmask(signal.SIG_SETMASK, other.blocked)
