"""Starting a runner: by fork from a warm process, or by exec for any other executable.

What a child begins with is the same for both and is spelled out here, nothing is inherited by accident:

    session       its own: it leads it, and a terminal's Ctrl-C does not reach it
    cgroup        the one given, where there are any
    descriptors   0 /dev/null, 1 and 2 its stderr log, 3 $LOOM_READY_FD, 4 $LOOM_ALONE_FD, from 5 on those that it is
                  given to keep; all others are closed
    signals       default handlers, nothing blocked
    environment   exactly the one given      umask 077      directory  the agent's

Only for processes with one thread: the parent's heap is frozen before the first fork (freeze) so that its pages
stay shared, and no lock can be held by a thread that the child does not have.
"""

from __future__ import annotations

import ctypes
import fcntl
import gc
import os
import resource
import signal
import sys
import sysconfig
import traceback
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from pathlib import Path
from typing import AnyStr

from loom.proc import cgroup, pidfd, tree
from loom.wire import exits
from loom.wire.record import record

READY_FD = 3
ALONE_FD = 4
KEPT_FD = 5
_SYS_CLOSE_RANGE = 436
_NO_FD = 0x7FFFFFFF
_RESET = sorted(int(number) for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP})
_ALL = signal.valid_signals()
_BASE = ("PATH", "HOME", "LANG", "LC_ALL", "TZ", "TMPDIR", "LOOM_LOG")
_DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

Entry = Callable[[Path], int]


@record
class Program:
    """What to run in `directory`: `entry` called in a fork, or else `argv` exec'ed. `env` is all it gets.

    group   the cgroup that it begins in; "": that of its parent
    kept    descriptors of ours that a fork has from KEPT_FD on
    first   called in a fork that has its session, group and descriptors, and nothing else yet; signals are blocked. The
            exit status when that was all; None: `entry` is to be called
    """

    name: str
    directory: Path
    env: Mapping[str, str]
    entry: Entry | None = None
    argv: tuple[str, ...] = ()
    rlimits: tuple[tuple[int, tuple[int, int]], ...] = ()  # (RLIMIT_…, (soft, hard)); what it starts inherits them
    group: str = ""
    kept: tuple[int, ...] = ()
    first: Callable[[], int | None] | None = None


@record(frozen=False)
class Spawned:
    """A started child. `ready` is the reading end of its readiness pipe; both descriptors are the caller's."""

    pid: int
    start: int
    pidfd: int
    ready: int


def base_environment(env: Mapping[str, str]) -> dict[str, str]:
    """The part of `env` that every process of ours may have. Keys are not in it."""
    return {"PATH": _DEFAULT_PATH} | {name: env[name] for name in _BASE if env.get(name)}


def runner_environment(
    base: Mapping[str, str], home: Path, agent: str, agent_dir: Path, extra: Mapping[str, str]
) -> dict[str, str]:
    """What a runner finds in its environment: a clean base, what its spec adds, and who and where it is."""
    return {
        **base,
        **extra,
        "LOOM_HOME": str(home),
        "LOOM_AGENT": agent,
        "LOOM_AGENT_DIR": str(agent_dir),
        "LOOM_READY_FD": str(READY_FD),
        "LOOM_ALONE_FD": str(ALONE_FD),
    }


def mark_of(agent_dir: Path) -> bytes:
    """The environment entry by which an agent's processes are told from others."""
    return b"LOOM_AGENT_DIR=" + os.fsencode(agent_dir)


def freeze() -> None:
    """Take everything that lives now out of the collector's sight, so that children do not copy it by counting."""
    global _closes_at_once
    _closes_at_once = bool(sysconfig.get_config_var("HAVE_CLOSE_RANGE"))
    gc.collect()
    gc.freeze()


def spawn(program: Program, stderr: int, alone: int) -> Spawned:
    """Start `program`; `stderr` is open for appending, `alone` is a pipe's reading end. Both stay the caller's.

    Raises OSError when no process can be made. A program that cannot be exec'ed says so on stderr and ends with 78.
    """
    started = spawn_all([(program, stderr)], alone)[0]
    if isinstance(started, OSError):
        raise started
    return started


def spawn_all(wanted: Sequence[tuple[Program, int]], alone: int) -> list[Spawned | OSError]:
    """spawn() for several (program, stderr): what was started, or why it could not be, in their order.

    They are forked one right after the other. A page that we write between two forks is copied, and the old one is
    left to the children before it: a parent that is busy between its forks costs each of them a megabyte.
    """
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:  # closed by whoever started us
            stream.flush()
    # Blocked over the forks: a signal must reach either our handlers or the child's defaults, not a mixture.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _ALL)
    try:
        handled = [number for number in _RESET if signal.getsignal(number) is not signal.SIG_DFL]
        forked = [_fork(program, stderr, alone, handled) for program, stderr in wanted]
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return [_watched(one) for one in forked]


def _fork(program: Program, stderr: int, alone: int, handled: Sequence[int]) -> tuple[int, int] | OSError:
    """(pid, the reading end of its readiness pipe)."""
    try:
        ready_read, ready_write = os.pipe()
    except OSError as error:
        return error
    try:
        pid = os.fork()
        if pid == 0:
            _child(program, stderr, ready_write, alone, handled)
        return pid, ready_read
    except OSError as error:
        os.close(ready_read)
        return error
    finally:
        os.close(ready_write)


def _watched(forked: tuple[int, int] | OSError) -> Spawned | OSError:
    if isinstance(forked, OSError):
        return forked
    pid, ready = forked
    try:
        os.set_blocking(ready, False)
        handle = handle_of(pid)
    except OSError as error:
        os.close(ready)
        return error
    return Spawned(pid, pidfd.start_of(pid) or 0, handle, ready)


def handle_of(pid: int) -> int:
    """A pidfd for our new child, which is ended when that cannot be had: nobody could watch it."""
    try:
        handle = pidfd.open_pidfd(pid)
        assert handle is not None, "a child that was not reaped keeps its number"
        return handle
    except OSError:
        os.kill(pid, signal.SIGKILL)  # ours and not reaped: the number is still its own
        os.waitpid(pid, 0)
        raise


def _child(program: Program, stderr: int, ready: int, alone: int, handled: Sequence[int]) -> None:
    """Everything from here on happens in the child, which never returns."""
    status = exits.TRY_LATER  # as long as only our own lack of descriptors and the like can keep it from starting
    try:
        _begin(program, stderr, ready, alone)
        ended = None if program.first is None else program.first()
        if ended is None:
            _settle(program, handled)
            status = exits.BUG
            ended = _exec(program) if program.entry is None else program.entry(program.directory)
        status = ended
    except SystemExit as leaving:
        status = _status_of(leaving)
    except KeyboardInterrupt:
        status = exits.INTERRUPTED
    except BaseException:
        traceback.print_exc()
    finally:
        try:
            sys.stdout.flush()
            sys.stderr.flush()
        finally:
            os._exit(status if isinstance(status, int) else exits.BUG)


def _status_of(leaving: SystemExit) -> int:
    if leaving.code is None:
        return exits.DONE
    if isinstance(leaving.code, int):
        return leaving.code & 0xFF
    print(leaving.code, file=sys.stderr)
    return exits.FAILED


def _begin(program: Program, stderr: int, ready: int, alone: int) -> None:
    os.setsid()
    if program.group:
        cgroup.enter(program.group)
    _place_descriptors(stderr, (ready, alone, *program.kept), inheritable=program.entry is None)


def _settle(program: Program, handled: Sequence[int]) -> None:
    _reset_signals(handled, forked=program.entry is not None)
    for which, values in program.rlimits:
        resource.setrlimit(which, values)
    os.umask(0o077)
    os.chdir(program.directory)
    replace_environment(os.environ, program.env)
    tree.set_name(program.name)
    gc.freeze()  # what our parent came to hold since its own freeze: searching it would copy it
    gc.enable()


def replace_environment(ours: MutableMapping[AnyStr, AnyStr], env: Mapping[AnyStr, AnyStr]) -> None:
    """Only what differs: most of it is as our parent has it, and what is not touched stays shared.

    ours   os.environ, or os.environb
    """
    for name in [name for name in ours if name not in env]:
        del ours[name]
    for name, value in env.items():
        if ours.get(name) != value:
            ours[name] = value


def _place_descriptors(stderr: int, others: tuple[int, ...], *, inheritable: bool) -> None:
    null = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
    wanted = (null, stderr, stderr, *others)
    # Above all places first, so that none is overwritten before it is copied; no higher: the limit may be low.
    sources = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, len(wanted)) for fd in wanted]
    for place, source in enumerate(sources):
        os.dup2(source, place, inheritable=inheritable or place <= 2)
    close_from(len(wanted))


def _reset_signals(handled: Sequence[int], *, forked: bool) -> None:
    """`handled`: those whose handler, as our parent has it, is not the default one."""
    signal.set_wakeup_fd(-1)
    for number in handled:
        # An interpreter ignores these two and gets errors instead; a forked runner is an interpreter.
        ignored = forked and number in (signal.SIGPIPE, signal.SIGXFSZ)
        try:
            signal.signal(number, signal.SIG_IGN if ignored else signal.SIG_DFL)
        except (OSError, ValueError):
            continue  # the C library keeps some real-time signals for itself
    signal.pthread_sigmask(signal.SIG_SETMASK, [])


def _exec(program: Program) -> int:
    try:
        os.execve(program.argv[0], program.argv, dict(program.env))
    except OSError as error:
        text = f"cannot execute {program.argv[0]}: {error.strerror}\n"
        os.write(2, text.encode("utf-8", "backslashreplace"))
        return exits.CONFIG


def _close_range_call() -> Callable[[int], int] | None:
    if sys.platform != "linux":
        return None
    syscall = ctypes.CDLL(None, use_errno=True).syscall
    last = ctypes.c_uint(0xFFFFFFFF)
    return lambda first: int(syscall(_SYS_CLOSE_RANGE, ctypes.c_uint(first), last, ctypes.c_uint(0)))


_close_range = _close_range_call()  # looked up before the fork: the child only calls it
_closes_at_once = False  # whether this is known to be an interpreter whose closerange() is one system call


def close_from(first: int) -> None:
    """Close every descriptor from `first` on."""
    if _closes_at_once:
        os.closerange(first, _NO_FD)  # twenty pages less of a child's own than through ctypes
        return
    if _close_range is not None and _close_range(first) == 0:
        return
    # Before Linux 5.9. The limit may be a million, the directory lists only what is open.
    for name in os.listdir("/proc/self/fd"):
        if int(name) >= first:
            try:
                os.close(int(name))
            except OSError:
                continue
