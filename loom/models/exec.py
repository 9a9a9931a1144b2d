"""A program as a model (exec/PROGRAM): any executable that reads a request and prints an answer.

It gets the chat request as one JSON object on stdin (loom.wire.chat.request_to_json) and prints either

    NDJSON       {"text": "a piece"} lines as it speaks, at last perhaps {"reply": {"text", "calls", "stop", "usage"}}
    plain text   everything else: all it prints is the answer, handed on as it comes

and exits 0. Its environment is PATH, HOME, LANG, LC_ALL, TMPDIR and what the caller adds (LOOM_*): no secrets. It
leads its own session, and its whole group is killed when it has answered, fails, is too slow or is not wanted any more.
One poll loop feeds and drains it: no threads, and no deadlock however much either side writes.
"""

from __future__ import annotations

import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from loom.models.base import ModelContext, not_told
from loom.models.classify import clean
from loom.models.exec_output import Output
from loom.wire import errors, exits, jsontext
from loom.wire.chat import ChatRequest, Chunk, TextDelta, request_to_json

DEADLINE_S = 600.0
MAX_OUTPUT_BYTES = 8 << 20
_STDERR_TAIL_BYTES = 8 << 10
_PIECE_BYTES = 1 << 16
_TICK_S = 0.05  # how often to look for the program's end where there is no pidfd
_ENVIRONMENT = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR")


_PR_SET_PDEATHSIG = 1


class ExecModel:
    """One program. Every request starts it anew.

    deadline_s  for the whole answer
    idle_s      without a byte from it; the same by default, because many programs think first and print at the end
    """

    def __init__(
        self,
        name: str,
        program: str,
        env: Mapping[str, str],
        cwd: str = ".",
        *,
        deadline_s: float = DEADLINE_S,
        idle_s: float = DEADLINE_S,
        max_output_bytes: int = MAX_OUTPUT_BYTES,
        blob_path: Callable[[str], str] = lambda digest: "",
        heard: Callable[[], None] = not_told,
        enclose: Callable[[], None] = lambda: None,
    ) -> None:
        self.name = name
        self._enclose = enclose
        self._program, self._env, self._cwd = program, dict(env), cwd
        self._blob_path = blob_path
        self._heard = heard
        self._deadline_s, self._idle_s, self._max_output_bytes = deadline_s, idle_s, max_output_bytes

    def stream(self, request: ChatRequest) -> Iterator[Chunk]:
        """Run the program on the request and yield its answer; see loom.models.base.Model."""
        try:
            data = jsontext.dumps(self._written(request)) + b"\n"
        except (ValueError, TypeError) as error:
            raise errors.BadInput(f"the request for {self.name} cannot be written as JSON: {error}") from None
        output = Output(self.name, request)
        with _Child(self.name, self._program, self._env, self._cwd, self._enclose) as child:
            total = 0
            for piece in child.run(data, self._deadline_s, self._idle_s):
                self._heard()
                total += len(piece)
                if total > self._max_output_bytes:
                    raise errors.WorkFailed(f"{self.name} printed over {self._max_output_bytes} bytes and was stopped")
                for text in output.feed(piece):
                    yield TextDelta(text)
            failed = exit_error(self.name, child.end(), child.last_line())
        if failed is not None:
            raise failed
        for text in output.finish():
            yield TextDelta(text)
        yield output.reply()

    def _written(self, request: ChatRequest) -> dict[str, Any]:
        """The request, and for each image where its file lies."""
        data = request_to_json(request)
        for message in data["messages"]:
            for image in message.get("images", ()):
                if path := self._blob_path(image["blob"]):
                    image["path"] = os.path.abspath(path)
        return data


def open_model(rest: str, context: ModelContext) -> ExecModel:
    """The registry's way in. Raises NotFound or Config when there is no such program."""
    program = find_program(rest, context)
    env = {name: context.env[name] for name in _ENVIRONMENT if name in context.env}
    env.setdefault("PATH", os.defpath)
    return ExecModel(
        f"exec/{rest}",
        program,
        env | dict(context.extra_env),
        context.cwd,
        deadline_s=context.timeouts.program_s,
        idle_s=context.timeouts.program_s,
        heard=context.heard,
        blob_path=context.blob_path,
        enclose=context.enclose,
    )


def check(rest: str, context: ModelContext) -> None:
    """Raise what open_model would raise."""
    find_program(rest, context)


def find_program(rest: str, context: ModelContext) -> str:
    """The absolute path of a program: a path from `cwd`, or a bare name on PATH, as a shell would find it."""
    if "/" in rest:
        candidates = [Path(context.cwd, rest)]
    else:
        path = context.env.get("PATH", os.defpath)
        candidates = [Path(context.cwd, folder, rest) for folder in path.split(os.pathsep)]
    found = next((c for c in candidates if _is_program(c)), None)
    if found is not None:
        return os.path.abspath(found)
    blocked = next((c for c in candidates if _is_file(c)), None)
    if blocked is not None:
        raise errors.Config(f"exec/{rest}: {blocked} is not executable; run: chmod +x {blocked}")
    raise errors.NotFound(f"exec/{rest}: no such program {_looked_in(rest, context)}")


def _is_program(path: Path) -> bool:
    return _is_file(path) and os.access(path, os.X_OK)


def _is_file(path: Path) -> bool:
    """As a shell searches PATH: what we may not look into has nothing for us."""
    try:
        return path.is_file()
    except OSError:
        return False


def _looked_in(rest: str, context: ModelContext) -> str:
    if " " in rest:
        return "; exec/ takes one program and no arguments: put them into a script of your own"
    if "/" in rest:
        return f"at {os.path.abspath(Path(context.cwd, rest))}; check the path"
    if Path(context.cwd, rest).is_file():
        return f"on PATH; for the one in this directory write exec/./{rest}"
    return "on PATH; check the name, or write its path"


def exit_error(name: str, status: int, last_line: str) -> errors.LoomError | None:
    """What a program's exit status means (loom.wire.exits); None for success.

    A status that is not in the table counts as permanent: a local program that fails on a request will most
    likely fail on it again, and one that knows better can say so with 75 or 69.
    """
    if status == exits.DONE:
        return None
    how = f"was killed by signal {-status}" if status < 0 else f"ended with status {status}"
    text = f"{name} {how}: {last_line or 'nothing on stderr'}"
    match status:
        case exits.TRY_LATER:
            return errors.TryLater(text)
        case exits.UNAVAILABLE:
            return errors.Unavailable(text)
        case exits.CONFIG:
            return errors.Config(text)
        case exits.BAD_INPUT:
            return errors.BadInput(text)
        case _:
            return errors.WorkFailed(text, hint="run the program by hand with a request on stdin")


class _Child:
    """The running program: a context whose end is the end of its whole process group."""

    def __init__(self, name: str, program: str, env: Mapping[str, str], cwd: str, enclose: Callable[[], None]) -> None:
        self._enclose = enclose
        self._name, self._program, self._env, self._cwd = name, program, env, cwd
        self._stderr = bytearray()
        self._pidfd = -1
        self._exited = False
        self._spoke = False

    def __enter__(self) -> _Child:
        try:
            self._process = subprocess.Popen(
                [self._program],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=self._env,
                cwd=self._cwd,
                bufsize=0,
                start_new_session=True,
                preexec_fn=_dies_with(os.getpid(), self._enclose),
            )
        except FileNotFoundError as error:
            raise errors.NotFound(
                f"{self._name}: cannot start {error.filename}: it, or the interpreter its first line names, is missing"
            ) from None
        except (OSError, ValueError) as error:
            errors.raise_lack(error, f"{self._name}: cannot start {self._program}")
            reason = getattr(error, "strerror", None) or str(error)
            raise errors.Config(
                f"{self._name}: cannot start {self._program}: {reason}; a script needs a first line like #!/bin/sh"
            ) from None
        self._selector = selectors.DefaultSelector()
        # Linux tells the end of a process like that of a pipe; a background child may keep the pipes open.
        pidfd_open = getattr(os, "pidfd_open", None)
        if pidfd_open is not None:
            try:
                self._pidfd = pidfd_open(self._process.pid)
            except OSError:
                pass  # an older kernel, a strict seccomp filter: ticks will do
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        # Before the wait: as long as the leader is not reaped, its number cannot belong to anybody else.
        try:
            os.killpg(self._process.pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            pass  # gone already; macOS says PermissionError for a group of zombies
        self._process.wait()
        self._selector.close()
        if self._pidfd >= 0:
            os.close(self._pidfd)
        for pipe in (self._process.stdin, self._process.stdout, self._process.stderr):
            if pipe is not None:
                pipe.close()

    def end(self) -> int:
        """The exit status, after run() has come to its end."""
        return self._process.wait()

    def last_line(self) -> str:
        """The last line of stderr that says anything."""
        lines = [line for line in self._stderr.decode("utf-8", "replace").splitlines() if line.strip()]
        return clean(lines[-1]) if lines else ""

    def run(self, data: bytes, deadline_s: float, idle_s: float) -> Iterator[bytes]:
        """Write `data`, yield stdout as it comes, end when the program has. Raises Unavailable when it is too slow."""
        process, selector = self._process, self._selector
        assert process.stdin and process.stdout and process.stderr
        stdin, stdout, stderr = process.stdin.fileno(), process.stdout.fileno(), process.stderr.fileno()
        for fd in (stdin, stdout, stderr):
            os.set_blocking(fd, False)
        selector.register(stdin, selectors.EVENT_WRITE)
        for fd in (stdout, stderr, self._pidfd):
            if fd >= 0:
                selector.register(fd, selectors.EVENT_READ)
        rest = memoryview(data)
        started = heard = time.monotonic()
        while not self._exited:
            self._refuse_hang(time.monotonic(), started, deadline_s, heard, idle_s)
            left_s = min(started + deadline_s, heard + idle_s) - time.monotonic()
            ready = selector.select(max(0.0, left_s if self._pidfd >= 0 else min(left_s, _TICK_S)))
            for key, _ in ready:
                if key.fd == stdin:
                    rest = self._write(rest)
                elif key.fd == stderr:
                    self._read_stderr()
                elif key.fd == stdout:
                    piece = self._read(stdout)
                    if piece:
                        self._spoke = True
                        yield piece
                heard = heard if key.fd == stdin else time.monotonic()
            self._look_for_end(ready)
        while piece := self._read(stdout):
            yield piece
        self._read_stderr()

    def _refuse_hang(self, now: float, started: float, deadline_s: float, heard: float, idle_s: float) -> None:
        """Raises Unavailable with the name of the hang, and the setting that gives it longer."""
        if now - started >= deadline_s:
            kind = "program_overdue" if self._spoke else "silent_program"
            what = f"did not finish within {deadline_s:g} s (setting liveness.program)"
        elif now - heard >= idle_s:
            kind, what = "silent_program", f"printed nothing for {idle_s:g} s (setting liveness.program)"
        else:
            return
        raise errors.Unavailable(f"{self._name} {what} and was stopped; is it stuck?", kind=kind)

    def _look_for_end(self, ready: list[tuple[selectors.SelectorKey, int]]) -> None:
        if self._pidfd >= 0:
            self._exited = any(key.fd == self._pidfd for key, _ in ready)
        else:
            self._exited = self._process.poll() is not None

    def _write(self, rest: memoryview) -> memoryview:
        """Hand on what fits; closes stdin after the last byte, or when the program wants no more."""
        assert self._process.stdin
        stdin = self._process.stdin.fileno()
        try:
            rest = rest[os.write(stdin, rest[:_PIECE_BYTES]) :]
        except BlockingIOError:
            return rest
        except BrokenPipeError:
            rest = rest[:0]
        if not rest:
            self._selector.unregister(stdin)
            self._process.stdin.close()
        return rest

    def _read(self, fd: int) -> bytes:
        """What is there now; b"" when there is nothing, or never will be again."""
        try:
            piece = os.read(fd, _PIECE_BYTES)
        except BlockingIOError:
            return b""
        if not piece and fd in self._selector.get_map():
            self._selector.unregister(fd)
        return piece

    def _read_stderr(self) -> None:
        assert self._process.stderr
        self._stderr += self._read(self._process.stderr.fileno())
        del self._stderr[:-_STDERR_TAIL_BYTES]


def _dies_with(parent: int, enclose: Callable[[], None]) -> Callable[[], None] | None:
    """What makes a child die when we are killed and cannot end it ourselves; Linux only.

    Runs between fork and exec, which is safe because we have one thread. Everything is looked up before.
    """
    if sys.platform != "linux":
        return None
    import ctypes

    prctl = ctypes.CDLL(None).prctl

    def in_the_child() -> None:
        prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
        if os.getppid() != parent:  # we died before it asked to die with us
            os._exit(1)
        enclose()

    return in_the_child
