"""One tool's process from start to certain end: what is fed to it, what is read from it, what dies with it.

No threads: one poll(2) over stdin, stdout, stderr and the process itself. The tool leads its own session, inherits
no descriptor but those three and no variable but those given, and is killed when we die. At the end its process
group is killed, and then what had left the group: during a call we are the subreaper, so orphans become our children.
What the bytes mean is not decided here (loom/proc/toolcall.py).

The caller must be single-threaded (it forks) and must not start other children during a call (they would be swept).
"""

from __future__ import annotations

import ctypes
import errno
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from loom.proc import enclosure
from loom.wire import errors
from loom.wire.record import record

PASSED_ON = ("PATH", "LANG", "LC_ALL", "TMPDIR", "HOME")
DEFAULT_PATH = "/usr/local/bin:/usr/bin:/bin"
DRAIN_S = 0.2  # how long output is still read after the tool has ended: what it started may hold the pipe for ever
GRACE_S = 0.5  # between SIGTERM and SIGKILL when its time is over
REAP_S = 5.0
STDERR_BYTES = 8 * 1024
CHUNK_BYTES = 1 << 16
TICK_MS = 20.0  # only where the kernel has no pidfd

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER, PR_GET_CHILD_SUBREAPER = 1, 36, 37
MAX_STARTS = 3  # of a call that may be repeated, while somebody else kills it
OUR_LACK = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN})


@record
class Ended:
    """How a tool's process ended.

    exit_code  negative: the signal it died by
    last_line  the last line of stdout that is not blank, without its newline; None when there was none
    deaf       it did not end when its time was over and SIGTERM told it to
    held       it ended and left a process that kept its output open
    fault      why we ended it before its time, "" when we did not
    stderr     the end of its stderr
    """

    exit_code: int
    timed_out: bool
    last_line: bytes | None
    fault: str
    stderr: bytes
    deaf: bool = False
    held: bool = False

    @property
    def killed_from_outside(self) -> bool:
        """Somebody else ended it (an administrator, the kernel for want of memory): it says nothing of the tool."""
        return self.exit_code in (-signal.SIGKILL, -signal.SIGTERM) and not self.timed_out and not self.fault


class NotStarted(Exception):
    """The tool's process could not be started, through its own fault; the text says why."""


def environment(given: Mapping[str, str]) -> dict[str, str]:
    """All that a tool sees: a few plain variables of ours and what is given."""
    ours = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
    return {"PATH": DEFAULT_PATH} | ours | dict(given)


def run(
    argv: Sequence[str],
    data: bytes,
    *,
    env: Mapping[str, str],
    cwd: str,
    timeout_s: float,
    max_output_bytes: int,
    on_line: Callable[[bytes], str],
    most_in_all_bytes: int | None = None,
    starts: int = 1,
) -> Ended:
    """Start `argv`, feed it `data`, read it to its end; nothing of it is alive when this returns or raises.

    max_output_bytes   of one line; all lines but the last together may have 16 times that
    most_in_all_bytes  of all of stdout, newlines and blank lines too; None: no such limit
    starts   how often it is started at most while it is killed from outside: more than once for what may be repeated
    on_line gets every line of stdout but the last and returns "" or why the tool must be ended for it
    Raises NotStarted, and errors.Disk when descriptors, memory or processes are lacking on our side.
    """
    for _ in range(starts - 1):
        ended = _run_once(argv, data, env, cwd, timeout_s, max_output_bytes, on_line, most_in_all_bytes)
        if not ended.killed_from_outside:
            return ended
    return _run_once(argv, data, env, cwd, timeout_s, max_output_bytes, on_line, most_in_all_bytes)


def _run_once(
    argv: Sequence[str],
    data: bytes,
    env: Mapping[str, str],
    cwd: str,
    timeout_s: float,
    max_output_bytes: int,
    on_line: Callable[[bytes], str],
    most_in_all_bytes: int | None,
) -> Ended:
    before = _children()
    was_subreaper = _become_subreaper()
    try:
        child = _start(argv, env, cwd)
        try:
            talk = _Talk(child, data, max_output_bytes, on_line, most_in_all_bytes)
            talk.until_end(time.monotonic() + timeout_s)
        finally:
            code = _finish(child, before)
        return Ended(code, talk.timed_out, talk.last_line, talk.fault, bytes(talk.stderr), talk.deaf, talk.held)
    finally:
        if not was_subreaper:
            _prctl(PR_SET_CHILD_SUBREAPER, 0)


def _start(argv: Sequence[str], env: Mapping[str, str], cwd: str) -> subprocess.Popen[bytes]:
    parent = os.getpid()
    enclosure.available()  # found out here, where forking harms nobody

    def in_the_child() -> None:  # between fork and exec; safe because we have one thread
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD, signal.SIGALRM, signal.SIGUSR1):
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, [])
        _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # we died before it asked to die with us
            os._exit(1)
        enclosure.enter()

    # The pipes are made here and not by Popen, which forgets to close the first when there is none left for the next.
    ends: list[int] = []
    child = None
    try:
        for _ in range(3):
            ends.extend(os.pipe())
        stdin, to_child, from_child, stdout, errors_of_child, stderr = ends
        child = subprocess.Popen(
            argv,
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            env=dict(env),
            cwd=cwd,
            start_new_session=True,
            preexec_fn=in_the_child,
        )
    except OSError as error:
        if error.errno in OUR_LACK:
            raise lacking(argv[-2], error) from error
        raise NotStarted(f"{error.strerror}: {error.filename}") from error
    except (subprocess.SubprocessError, ValueError) as error:  # ValueError: a NUL in a path or a variable
        raise NotStarted(str(error)) from error
    finally:
        for end in ends if child is None else (stdin, stdout, stderr):
            os.close(end)
    child.stdin = os.fdopen(to_child, "wb", 0)
    child.stdout = os.fdopen(from_child, "rb", 0)
    child.stderr = os.fdopen(errors_of_child, "rb", 0)
    return child


def lacking(program: str, error: OSError) -> errors.Disk:
    return errors.Disk(
        f"could not start {program}: {error.strerror}",
        hint="close other programs or raise the limits (ulimit -n, ulimit -u), then try again",
    )


class _Talk:
    """The conversation with one running tool."""

    def __init__(
        self,
        child: subprocess.Popen[bytes],
        data: bytes,
        max_output_bytes: int,
        on_line: Callable[[bytes], str],
        most_in_all_bytes: int | None,
    ) -> None:
        assert child.stdin and child.stdout and child.stderr
        self.child = child
        self.unsent = memoryview(data)
        self.max_output_bytes = max_output_bytes
        self.on_line = on_line
        self.partial = bytearray()
        self.most_in_all_bytes = most_in_all_bytes
        self.progress_bytes = self.in_all_bytes = 0
        self.last_line: bytes | None = None
        self.stderr = bytearray()
        self.timed_out = self.deaf = self.held = False
        self.fault = ""
        self.poll = select.poll()
        self.stdin, self.stdout, self.errout = child.stdin.fileno(), child.stdout.fileno(), child.stderr.fileno()
        self.open = {self.stdout, self.errout}
        for fd in self.open:
            self.poll.register(fd, select.POLLIN)
        os.set_blocking(self.stdin, False)
        self.poll.register(self.stdin, select.POLLOUT)

    def until_end(self, deadline: float) -> None:
        """Feed and read until the tool has ended, its time is over or it did something it must not."""
        pidfd = _pidfd(self.child.pid)
        try:
            if pidfd is not None:
                self.poll.register(pidfd, select.POLLIN)
            self._loop(deadline, pidfd)
        finally:
            if pidfd is not None:
                os.close(pidfd)
        if not self.fault and self.partial.strip():
            self._line(bytes(self.partial))

    def _loop(self, deadline: float, pidfd: int | None) -> None:
        exited = False
        while (self.open or not exited) and not self.fault:
            left_ms = 1000 * (deadline - time.monotonic())
            if left_ms <= 0:
                if exited or self.timed_out:
                    self.deaf, self.held = not exited, exited and bool(self.open) and not self.timed_out
                    return
                self.timed_out = True
                deadline = time.monotonic() + GRACE_S
                _signal_group(self.child.pid, signal.SIGTERM)
                continue
            for fd, _ in self.poll.poll(left_ms if exited or pidfd is not None else min(left_ms, TICK_MS)):
                self._serve(fd)
            if not exited and _has_ended(self.child.pid):
                exited = True
                deadline = time.monotonic() + DRAIN_S
                if pidfd is not None:
                    self.poll.unregister(pidfd)

    def _serve(self, fd: int) -> None:
        if fd == self.stdin:
            self._feed()
        elif fd in self.open:
            chunk = os.read(fd, CHUNK_BYTES)
            if not chunk:
                self.poll.unregister(fd)
                self.open.discard(fd)
            elif fd == self.stdout:
                self._take(chunk)
            else:
                self.stderr = (self.stderr + chunk)[-STDERR_BYTES:]

    def _feed(self) -> None:
        try:
            self.unsent = self.unsent[os.write(self.stdin, self.unsent[:CHUNK_BYTES]) :]
        except BlockingIOError:
            return
        except BrokenPipeError:  # it does not want to read on; that is its business
            self.unsent = self.unsent[:0]
        if not self.unsent:
            self.poll.unregister(self.stdin)
            assert self.child.stdin
            self.child.stdin.close()

    def _take(self, chunk: bytes) -> None:
        self.in_all_bytes += len(chunk)
        if self.most_in_all_bytes is not None and self.in_all_bytes > self.most_in_all_bytes:
            self.fault = f"it printed more than {self.most_in_all_bytes} bytes"
            return
        self.partial += chunk
        *lines, rest = self.partial.split(b"\n") if b"\n" in chunk else [self.partial]
        self.partial = bytearray(rest)
        for line in lines:
            if not self.fault and line.strip():
                self._line(bytes(line))
        if not self.fault and len(self.partial) > self.max_output_bytes:
            self._too_much()

    def _line(self, line: bytes) -> None:
        before, self.last_line = self.last_line, line
        self.progress_bytes += len(before or b"")
        if len(line) > self.max_output_bytes or self.progress_bytes > 16 * self.max_output_bytes:
            self._too_much()
        elif before is not None:
            self.fault = self.on_line(before)

    def _too_much(self) -> None:
        self.fault = f"it printed more than {self.max_output_bytes} bytes in one line, or 16 times that in all"


def _finish(child: subprocess.Popen[bytes], before: frozenset[int]) -> int:
    """Kill what is left of the tool, collect it and close our ends; the exit code, negative for a signal."""
    _signal_group(child.pid, signal.SIGKILL)
    try:
        code = child.wait(REAP_S)
    except subprocess.TimeoutExpired:  # stuck inside the kernel; it will go when the kernel lets it
        code = -signal.SIGKILL
    _sweep(before, time.monotonic() + REAP_S)
    for pipe in (child.stdin, child.stdout, child.stderr):
        if pipe:
            pipe.close()
    return code


def _signal_group(pid: int, number: int) -> None:
    """The leader has not been waited for, so the number is still its own."""
    try:
        os.killpg(pid, number)
    except (ProcessLookupError, PermissionError):
        pass


def _sweep(before: frozenset[int], until: float) -> None:
    """Kill the orphans that became our children during the call, and those that appear when they die."""
    while time.monotonic() < until:
        orphans = _children() - before
        if not orphans:
            return
        for pid in orphans:
            try:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
            except (ProcessLookupError, ChildProcessError):
                pass
            except PermissionError:  # another user's, through setuid: not ours to end
                before |= {pid}


def _children() -> frozenset[int]:
    """Our children now, as the kernel lists them; none where it does not."""
    try:
        return frozenset(map(int, Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()))
    except OSError:
        return frozenset()


def _has_ended(pid: int) -> bool:
    """Without collecting it: a number that is not collected is not given to another process."""
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def _pidfd(pid: int) -> int | None:
    try:
        return os.pidfd_open(pid)
    except OSError as error:
        if error.errno in (errno.ENOSYS, errno.EPERM):  # an old kernel, or a container that forbids it
            return None
        raise lacking("a tool", error) from error


_libc = ctypes.CDLL(None, use_errno=True)


def _prctl(option: int, value: int) -> int:
    if sys.platform != "linux":
        return -1
    return int(_libc.prctl(ctypes.c_int(option), ctypes.c_ulong(value), 0, 0, 0))


def _become_subreaper() -> bool:
    """Take in orphans from now on. True when we did before."""
    held = ctypes.c_int(0)
    if sys.platform == "linux":
        _libc.prctl(ctypes.c_int(PR_GET_CHILD_SUBREAPER), ctypes.byref(held), 0, 0, 0)
    _prctl(PR_SET_CHILD_SUBREAPER, 1)
    return bool(held.value)
