"""A program killed or failed by the kernel at each call that changes a file of ours, one run for each.

A fault that did not fire, or fired elsewhere than at one of our files, is a failure. So is a traceback, a recovery
that does not end well, a run that takes longer than its deadline, and what the oracle objects to.
"""

from __future__ import annotations

import compileall
import contextlib
import os
import random
import re
import shutil
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from soak_cases import Program, environment
from soak_strace import DEADLINE_S, Call, Ended, changes, run
from support import ROOT, processes_of, scratch, wait_until

from loom.spool.layout import Home

ERRORS = ("ENOSPC", "EIO")
# Of a program whose calls come in another order each time, the n-th may be another one, or not come at all. A kill is
# a kill wherever it comes; an error only tells something at a call that is never made on pipes.
_TRIES = 5
_NOT_OF_FILES_ALONE = ("write", "openat")
_FINE = (0, 74, 75)  # what a program that met an error may end with: it went on without, or named the disk


@dataclass(frozen=True, slots=True)
class Fault:
    """`how` is `signal=KILL` or `error=…`; `forever`: every call of this kind from the n-th on."""

    call: Call
    how: str
    forever: bool = False

    @property
    def inject(self) -> str:
        return f"{self.call.syscall}:{self.how}:when={self.call.n}{'+' if self.forever else ''}"


@dataclass(slots=True)
class Found:
    """calls: of the undisturbed program, at files of ours. runs: by kind of fault. seconds: of all runs together."""

    name: str
    calls: int = 0
    runs: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def line(self) -> str:
        runs = ", ".join(f"{kind} {count}" for kind, count in sorted(self.runs.items()))
        each = self.seconds / max(1, self.runs.total())
        return f"{self.name}: {self.calls} calls, runs: {runs}; {each:.2f} s a run; {len(self.failures)} failures"


def explore(
    program: Program,
    *,
    kills: bool = True,
    errors: Sequence[str] = (),
    at_most: int = 0,
    seed: int = 0,
    jobs: int = 2,
) -> Found:
    """Every call killed, and failed with each of `errors` once and from then on; with `at_most` a sample of that."""
    compileall.compile_dir(str(ROOT / "loom"), quiet=2)  # or a program opens more files the first time
    place = scratch()
    try:
        template = place / "template"
        program.setup(Home(template / "home"))
        shutil.rmtree(template / "home" / "run" / "wake")  # FIFOs cannot be copied, and are made again
        calls = _calls_of(program, template, place / "first")
        faults = [Fault(call, "signal=KILL") for call in calls if kills]
        if program.concurrent:
            failing, spans = [c for c in calls if c.syscall not in _NOT_OF_FILES_ALONE], (False,)
        else:
            failing, spans = calls, (False, True)
        faults += [Fault(c, f"error={e}", forever) for c in failing for e in errors for forever in spans]
        if at_most and len(faults) > at_most:
            faults = random.Random(seed).sample(faults, at_most)
        found = Found(program.name, len(calls))
        with ThreadPoolExecutor(jobs) as pool:
            numbered = enumerate(faults)
            for fault, seconds, failure in pool.map(
                lambda n: _one(program, n[1], template, place / str(n[0])), numbered
            ):
                found.seconds += seconds
                found.runs[fault.how.partition("=")[2] + (" from then on" if fault.forever else "")] += 1
                if failure:
                    found.failures.append(f"{program.name}, {fault.inject} ({fault.call.text[:160]}): {failure}")
        return found
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _calls_of(program: Program, template: Path, place: Path) -> list[Call]:
    """What the undisturbed program changes; it must end well, and its result must pass the check."""
    try:
        ended = _disturbed(program, template, place, "")
        assert ended.status == 0, f"{program.name} ended with {ended.status}: {ended.err}"
        found = changes(ended.calls, place)
        assert found, f"{program.name} changes nothing"
        _recovered(program, Home(place / "home"), ended)
        return found
    finally:
        _clear(place)


def _one(program: Program, fault: Fault, template: Path, place: Path) -> tuple[Fault, float, str]:
    began = time.monotonic()
    failure = ""
    try:
        for _ in range(_TRIES if program.concurrent else 1):
            _clear(place)
            ended = _disturbed(program, template, place, fault.inject)
            if ended.fired:
                break
        assert ended.fired, f"the fault did not fire (status {ended.status})"
        assert program.concurrent or str(place) in ended.fired, f"it fired elsewhere: {ended.fired[:200]}"
        assert not re.search("^Traceback", ended.err, re.MULTILINE), ended.err[-3000:]
        if fault.how == "signal=KILL":
            assert ended.status == -9, f"status {ended.status}"
        else:
            mute = fault.forever and fault.call.syscall == "write"  # stderr too: the interpreter ends with 120 then
            assert ended.status in _FINE or (mute and ended.status == 120), (
                f"status {ended.status}: {ended.err[-2000:]}"
            )
        _recovered(program, Home(place / "home"), ended)
    except (AssertionError, subprocess.TimeoutExpired) as error:
        failure = f"{type(error).__name__}: {error}"
    finally:
        _clear(place)
    return fault, time.monotonic() - began, failure


def _disturbed(program: Program, template: Path, place: Path, inject: str) -> Ended:
    shutil.copytree(template, place)
    home = Home(place / "home")
    env, log = environment(home), place / "strace"
    ended = run(
        program.command(home), env, log, inject=inject, follow=not program.concurrent, given=program.given, cwd=place
    )
    program.crashed(home, ended.out)
    return ended


def _recovered(program: Program, home: Home, ended: Ended) -> None:
    said = ended.out
    for command in program.recover(home):
        done = subprocess.run(
            command, env=environment(home), capture_output=True, text=True, timeout=DEADLINE_S, cwd=home.path.parent
        )
        said += done.stdout
        assert done.returncode == 0, f"recovery: {command[-3:]} ended with {done.returncode}: {done.stderr[-2000:]}"
    program.check(home, said)
    _nobody_left(home)


def _clear(place: Path) -> None:
    """What a trial left: the children of a killed supervisor work on."""
    for pid in processes_of(place / "home"):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    shutil.rmtree(place, ignore_errors=True)


def _nobody_left(home: Home) -> None:
    try:
        wait_until(lambda: not processes_of(home.path), 10)
    except AssertionError:
        left = processes_of(home.path)
        raise AssertionError(f"processes are left: {left}") from None
