"""Replacing the code of a running supervisor: tried in a process of its own first, then become in place (ADR-0030).

    asked (SIGHUP) ─ trial: the same command, told to read the state and to end ─┬─ ends with 0: exec, same pid
                                                                                └─ anything else: all goes on as it is

Agents are served all the while. A request that comes during a trial has it made once more when that ends, so what is
become is what lay on the disk when it was last asked for.
"""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from importlib.machinery import SourceFileLoader
from pathlib import Path
from typing import Protocol

from loom.daemons import handover, programs
from loom.daemons.handover import Handover
from loom.proc import pidfd, reexec, spawn, tree
from loom.proc.notify import Manager
from loom.spool import locks, running
from loom.spool.layout import Home
from loom.wire import exits
from loom.wire.errors import Config
from loom.wire.record import record

TRIAL_S = 60.0
_PACKAGE = Path(__file__).resolve().parent.parent
_TOLD = 500  # characters of what a trial said


class Loop(Protocol):
    """What reloading needs of the loop it lives in."""

    @property
    def leaving(self) -> bool: ...
    @property
    def groups(self) -> str: ...
    def listen(self, fd: int, handler: Callable[[], None]) -> None: ...
    def unlisten(self, fd: int) -> None: ...
    def say(self, level: str, event: str, **fields: object) -> None: ...
    def heed_signals(self) -> None: ...
    def hand_over(self, blocked: set[int]) -> Handover: ...


@record
class _Trial:
    child: spawn.Spawned
    output: int


class Reloading:
    """`due_s` is when a trial has taken too long, on the steady clock. `answered`, `before`: see loom.spool.running."""

    def __init__(
        self, home: Home, env: Mapping[str, str], manager: Manager, loop: Loop, taken: Handover | None
    ) -> None:
        self.due_s = math.inf
        self.answered = 0 if taken is None else taken.answered + 1
        self._before = "" if taken is None else taken.code
        self._home, self._env, self._manager, self._loop = home, env, manager, loop
        self._command = (sys.executable, *sys.orig_argv[1:])
        self._trial: _Trial | None = None
        self._again = False

    def pids(self) -> list[int]:
        """Children of ours that are no agents."""
        return [] if self._trial is None else [self._trial.child.pid]

    def show(self, status: int = exits.DONE, error: str = "") -> None:
        """Say which code runs, and what came of the last request."""
        me = locks.own_incarnation()
        said = running.Running(
            *(me.pid, me.start, running.code(), self._before, self.answered, status, error), groups=self._loop.groups
        )
        try:
            running.write(self._home, said)
        except OSError as trouble:
            self._loop.say("warning", "no_record", error=str(trouble))

    def ask(self) -> None:
        """Run the installed code from now on, if that can be."""
        if self._trial is not None:
            self._again = True
        elif self._loop.leaving:
            self._refuse(exits.TRY_LATER, "the supervisor is leaving")
        else:
            self._again = False
            self._manager.tell("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")
            try:
                self._begin()
            except OSError as error:
                self._refuse(exits.TRY_LATER, f"the installed code cannot be tried: {error}")

    def _begin(self) -> None:
        output = reexec.memory(b"")
        state = -1
        try:
            state = reexec.memory(handover.encode(self._loop.hand_over(set())))
            env = {**self._env, reexec.ENV: f"try {spawn.ALONE_FD}", "LOOM_READY_FD": str(spawn.READY_FD)}
            program = spawn.Program("loom-trial", self._here(), env, argv=self._command)
            child = spawn.spawn(program, output, state)
        except OSError:
            os.close(output)
            raise
        finally:
            if state >= 0:
                os.close(state)
        self._trial = _Trial(child, output)
        self.due_s = time.monotonic() + TRIAL_S
        self._loop.listen(child.pidfd, self._ended)

    def _here(self) -> Path:
        try:
            return Path.cwd()
        except FileNotFoundError:  # removed since we were started there
            return self._home.path

    def end_trial(self) -> None:
        """It has taken too long: what it is then found to be is killed."""
        self.due_s = math.inf
        if self._trial is not None:
            tree.kill_tree(self._trial.child.pid, self._trial.child.start)

    def _ended(self) -> None:
        trial, self._trial, self.due_s = self._trial, None, math.inf
        assert trial is not None
        self._loop.unlisten(trial.child.pidfd)
        status = pidfd.reap(trial.child.pidfd)
        could = status == exits.DONE and _said_ready(trial.child.ready)
        said = _last_line(reexec.contents(trial.output))
        for fd in (trial.child.pidfd, trial.child.ready, trial.output):
            os.close(fd)
        if self._again or self._loop.leaving:
            self.ask()
        elif could:
            self._become()
        else:
            # Killed, or refused by the machine: that says nothing about the code.
            later = status is None or status < 0 or status == exits.TRY_LATER
            why = said or f"its trial ended with {status}"
            self._refuse(exits.TRY_LATER if later else exits.CONFIG, f"the installed code cannot take over: {why}")

    def _become(self) -> None:
        blocked = reexec.hold_signals()
        try:
            self._loop.heed_signals()  # those that came so far; what comes from now on waits for the new code
            # Asked for once more just now: that is tried first (`_trial`), or was refused.
            if self._trial is None and not self._again and not self._loop.leaving:
                state = self._loop.hand_over(blocked)
                self._loop.say("info", "reloading", code=state.code, agents=len(state.agents))
                env = {**self._env, **self._manager.env()}
                reexec.become(self._command, env, handover.encode(state), state.fds())
        except OSError as error:
            self._refuse(exits.TRY_LATER, f"the installed code cannot be executed: {error}")
            return
        finally:
            reexec.let_signals(blocked)
        if self._trial is None:
            self.ask()

    def _refuse(self, status: int, error: str) -> None:
        self.answered += 1
        self._before = running.code()
        self.show(status, error)
        self._loop.say("error", "not_reloaded", error=error)
        self._manager.tell("READY=1")


def _said_ready(fd: int) -> bool:
    try:
        return b"\n" in os.read(fd, 64)
    except BlockingIOError:
        return False


def _last_line(data: bytes) -> str:
    lines = [line for line in data.decode("utf-8", "replace").splitlines() if line.strip()]
    return lines[-1].strip().removeprefix("loom: ")[:_TOLD] if lines else ""


def try_out(state: bytes, table: Mapping[str, str]) -> None:
    """Whether this code, the installed one, could go on from `state`. Raises Config when it could not.

    Every module is looked at, also those that only forks will import: a package that is just being written is refused.
    """
    try:
        handover.decode(state)
        for name, path in _modules():
            SourceFileLoader(name, str(path)).get_code(name)
    except (ValueError, OSError, SyntaxError) as error:
        raise Config(f"{type(error).__name__}: {error}") from None
    lost = [line for line in programs.preload(table) if line.startswith("loom.")]
    if lost:
        raise Config(lost[0])


def _modules() -> Iterator[tuple[str, Path]]:
    for path in sorted(_PACKAGE.rglob("*.py")):
        parts = path.relative_to(_PACKAGE.parent).with_suffix("").parts
        yield ".".join(parts), path
