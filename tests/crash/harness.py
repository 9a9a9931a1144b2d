"""Kills, tears and fails every primitive file change of a workflow, one at a time, and looks what is left.

Every change of a file in the package is a method of `fs.calls`. Here a double takes its place which counts, and
at call n does one of these:

    before, after    the process is gone before or after the call (`os._exit`, no handler, no `finally`)
    torn             write only: half of the bytes are written, then the process is gone
    short            write only: half of the bytes are written and the rest is not, without an error: legal
    ENOSPC …         the call fails, only this one (`once`) or this one and all after it (`forever`)
    torn+ENOSPC      write only: half of the bytes are written, then it fails
    rival            another process does something of its own, to its end, before the call is made

A workflow is a `Case`. What it does with its root directory is free, as long as the same root leads to the same
calls: names, clocks and epochs are given, not drawn. To put another one under the knife, write a Case and
hand it to `explore`; the runner of a daemon fits as well as a function of a few lines.

A fault that did not fire is a failure; so is a trial that takes longer than its deadline, a traceback that is no
OSError, and an oracle that objects. Every failure names its point: replay it with `Point` and `one_trial`.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import random
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from support import BUG, ENVIRONMENT, Ended, forked, scratch

from loom.spool import fs

KILLED = 137
ERRORS = ("ENOSPC", "EIO", "EMFILE", "EROFS", "EDQUOT")
FULL = os.environ.get("LOOM_CRASH") == "full"
_METHODS = [name for name in vars(fs.Calls) if not name.startswith("_")]


def nothing(root: Path) -> None:
    """For a Case that needs no such step."""


@dataclass(frozen=True, slots=True)
class Case:
    """One workflow and what must be true around it. Every function gets the root directory of its trial.

    setup     makes the prepared directory, once; each trial works on a copy
    workflow  what is disturbed; may raise OSError, as a program that then ends with status 75
    crashed   oracle on what the disturbed workflow left, before anything repairs it
    recover   what the next incarnation does, undisturbed or killed once more; must end well
    check     oracle on what the recovery left
    rival     another process's work, for interleavings; None: the case has none
    """

    name: str
    setup: Callable[[Path], None]
    workflow: Callable[[Path], None]
    recover: Callable[[Path], None]
    check: Callable[[Path], None]
    crashed: Callable[[Path], None] = nothing
    rival: Callable[[Path], None] | None = None


@dataclass(frozen=True, slots=True)
class Point:
    """Where and how one trial is disturbed. `second`: the recovery is killed at this call of its own, 0 for not."""

    n: int
    phase: str
    site: str
    forever: bool = False
    second: int = 0

    def text(self) -> str:
        how = f"{self.phase}{' from then on' if self.forever else ''}"
        return f"call {self.n} ({self.site}) {how}" + (f", recovery killed at {self.second}" if self.second else "")


@dataclass(slots=True)
class Report:
    """What an exploration did. `failures` are lines; `counts` trials by kind of disturbance."""

    name: str
    calls: int = 0
    sites: set[str] = field(default_factory=set)
    counts: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)

    def line(self) -> str:
        kinds = ", ".join(f"{kind} {count}" for kind, count in sorted(self.counts.items()))
        return (
            f"{self.name}: {self.calls} calls at {len(self.sites)} places, {sum(self.counts.values())} trials "
            f"({kinds}), {len(self.failures)} failures"
        )


class Knife(fs.Calls):
    """The double. Without a point it only counts and notes who called what."""

    def __init__(self, point: Point | None = None, rival: Callable[[], None] | None = None) -> None:
        self.count = 0
        self.log: list[tuple[str, str]] = []
        self.fired = False
        self._point = point
        self._rival = rival

    def _call(self, method: str, args: tuple[Any, ...]) -> Any:
        self.count += 1
        if self._point is None:
            self.log.append((method, _site(method)))
        real = getattr(super(), method)
        point = self._point
        if point is None or not (self.count == point.n or (point.forever and self.count > point.n)):
            return real(*args)
        self.fired = True
        match point.phase:
            case "before":
                os._exit(KILLED)
            case "after":
                try:
                    real(*args)
                finally:
                    os._exit(KILLED)
            case "torn":
                real(args[0], _half(args[1]))
                os._exit(KILLED)
            case "short":
                return real(args[0], _half(args[1]))
            case "rival":
                assert self._rival is not None
                self._rival()
                return real(*args)
        if point.phase.startswith("torn+"):
            real(args[0], _half(args[1]))
        code = getattr(errno, point.phase.removeprefix("torn+"))
        raise OSError(code, f"{os.strerror(code)} (injected)")


def _method(name: str) -> Callable[..., Any]:
    def call(self: Knife, *args: Any) -> Any:
        return self._call(name, args)

    return call


for _name in _METHODS:
    setattr(Knife, _name, _method(_name))


def _half(data: bytes | memoryview) -> memoryview:
    return memoryview(data)[: max(1, len(data) // 2)] if len(data) else memoryview(data)


def _site(method: str) -> str:
    """`file:function:line` of the nearest caller outside fs.py and this module, and the call it led to."""
    frame: FrameType | None = sys._getframe(1)
    inner = ""
    while frame is not None and frame.f_code.co_filename in (__file__, fs.__file__):
        if frame.f_code.co_filename == fs.__file__:
            inner = frame.f_code.co_name
        frame = frame.f_back
    if frame is None:
        return method
    code = frame.f_code
    return f"{Path(code.co_filename).name}:{code.co_name}:{frame.f_lineno} {inner}/{method}"


def disturbed(work: Callable[[Path], None], root: Path, point: Point | None, rival: Callable[[Path], None] | None
              ) -> Ended:  # fmt: skip
    """`work(root)` in a child under the knife. said: fired, calls and, without a point, their log."""

    def meet() -> None:
        assert rival is not None
        with undisturbed():
            ended = forked(lambda: rival(root))  # type: ignore[func-returns-value]
        if ended.status not in (0, ENVIRONMENT):
            raise AssertionError(f"the rival ended with {ended.status}: {ended.said.get('trace')}")

    def run() -> dict[str, Any]:
        knife = Knife(point, meet)
        fs.calls = knife
        said: dict[str, Any] = {}
        try:
            work(root)
        except OSError as error:
            said["error"] = str(error)
        said |= {"fired": knife.fired, "calls": knife.count, "log": knife.log}
        return said

    return forked(run)


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """The real calls for a while, for what is no part of the workflow."""
    before, fs.calls = fs.calls, fs.Calls()
    try:
        yield
    finally:
        fs.calls = before


def points_of(log: list[tuple[str, str]], *, kills: bool, errors: tuple[str, ...], rival: bool) -> list[Point]:
    """Every way of disturbing a workflow that makes these calls."""
    found: list[Point] = []
    for n, (method, site) in enumerate(log, 1):
        phases = ["before", "after"] if kills else []
        if method == "write":
            phases += ["torn", "short"] if kills else []
            found += [Point(n, f"torn+{error}", site) for error in errors]
        found += [Point(n, phase, site) for phase in phases]
        found += [Point(n, error, site, forever) for error in errors for forever in (False, True)]
        if rival:
            found.append(Point(n, "rival", site))
    return found


def one_trial(case: Case, prepared: Path, point: Point, room: Path) -> tuple[str, int]:
    """(what is wrong after this disturbance, empty for nothing; how many calls the recovery made)."""
    root = room / "root"
    shutil.rmtree(root, ignore_errors=True)
    shutil.copytree(prepared, root, symlinks=True)
    ended = disturbed(case.workflow, root, point, case.rival)
    killed = point.phase in ("before", "after", "torn")
    if ended.status != (KILLED if killed else 0) or not (killed or ended.said.get("fired")):
        return f"the workflow ended with {ended.status}, fired {ended.said.get('fired')}: {_trace(ended)}", 0
    if point.phase in ("short", "rival") and "error" in ended.said:
        return f"the workflow failed where it should not: {ended.said['error']}", 0
    if point.second:
        second = disturbed(case.recover, root, Point(point.second, "before", "recovery"), None)
        if second.status != KILLED:
            return f"the recovery was not killed at its call {point.second}: {_trace(second)}", 0

    def finish() -> dict[str, Any]:
        case.crashed(root)
        knife = Knife()
        fs.calls = knife
        case.recover(root)
        fs.calls = fs.Calls()
        case.check(root)
        return {"calls": knife.count}

    last = forked(finish)
    return (f"status {last.status}: {_trace(last)}" if last.status else ""), int(last.said.get("calls", 0))


def _trace(ended: Ended) -> str:
    return str(ended.said.get("trace") or ended.said.get("error") or "")[-1500:]


def explore(
    case: Case,
    *,
    kills: bool = True,
    errors: tuple[str, ...] = (),
    double: int = 0,
    at_most: int = 0,
    seed: int = 1,
    jobs: int = 0,
    until_failure: bool = False,
) -> Report:
    """Disturb `case` at every call in every way asked for.

    double    second kills per killed point, at calls of the recovery drawn by `seed`; -1: at every call
    at_most   a sample of so many points, drawn by `seed`; 0: all of them
    until_failure   stop at the first: for programs that are known to be wrong
    """
    report = Report(case.name)
    room = scratch()
    try:
        prepared = room / "prepared"
        prepared.mkdir()
        made = forked(lambda: case.setup(prepared))  # type: ignore[func-returns-value]
        if made.status:
            report.failures.append(f"{case.name}: setup: {_trace(made)}")
            return report
        points = _plan(case, report, prepared, room, kills, errors)
        if at_most and len(points) > at_most:
            points = random.Random(seed).sample(points, at_most)
        jobs = jobs or min(os.cpu_count() or 1, 8)
        _run_shards(case, report, prepared, room, points, double, seed, jobs, until_failure)
    finally:
        shutil.rmtree(room, ignore_errors=True)
    return report


def _plan(case: Case, report: Report, prepared: Path, room: Path, kills: bool, errors: tuple[str, ...]) -> list[Point]:
    """Run the case undisturbed, twice: it must be right by itself, and its calls must repeat."""
    logs = []
    for _ in range(2):
        root = room / "root"
        shutil.rmtree(root, ignore_errors=True)
        shutil.copytree(prepared, root, symlinks=True)
        ended = disturbed(case.workflow, root, None, None)
        if ended.status or "error" in ended.said:
            report.failures.append(f"{case.name}: undisturbed: {_trace(ended)}")
            return []
        logs.append([(method, site) for method, site in ended.said["log"]])

        def finish(root: Path = root) -> None:
            case.crashed(root)
            case.recover(root)
            case.check(root)

        last = forked(finish)  # type: ignore[arg-type]
        if last.status:
            report.failures.append(f"{case.name}: undisturbed, check: {_trace(last)}")
            return []
    if logs[0] != logs[1]:
        report.failures.append(f"{case.name}: two undisturbed runs made different calls: nothing could be replayed")
        return []
    report.calls = len(logs[0])
    report.sites = {site for _, site in logs[0]}
    return points_of(logs[0], kills=kills, errors=errors, rival=case.rival is not None)


def _run_shards(
    case: Case,
    report: Report,
    prepared: Path,
    room: Path,
    points: list[Point],
    double: int,
    seed: int,
    jobs: int,
    until_failure: bool,
) -> None:
    """Trials in `jobs` processes, each with its own copy of the directory; their results come back as files."""
    pids = []
    for shard in range(jobs):
        pid = os.fork()
        if pid == 0:
            status = BUG
            try:
                own = room / f"shard{shard}"
                own.mkdir()
                counts, failures = _shard(case, prepared, own, points[shard::jobs], double, seed, until_failure)
                (room / f"shard{shard}.json").write_text(json.dumps([counts, failures]))
                status = 0
            finally:
                os._exit(status)
        pids.append(pid)
    for shard, pid in enumerate(pids):
        _, status = os.waitpid(pid, 0)
        if status:
            report.failures.append(f"{case.name}: shard {shard} ended with {status}")
            continue
        counts, failures = json.loads((room / f"shard{shard}.json").read_text())
        report.counts.update(counts)
        report.failures += failures


def _shard(
    case: Case, prepared: Path, room: Path, points: list[Point], double: int, seed: int, until_failure: bool
) -> tuple[dict[str, int], list[str]]:
    counts: Counter[str] = Counter()
    failures: list[str] = []

    def trial(point: Point) -> int:
        wrong, calls = one_trial(case, prepared, point, room)
        counts["double" if point.second else "forever" if point.forever else _kind(point)] += 1
        if wrong:
            failures.append(f"{case.name}: {point.text()}: {wrong}")
        return calls

    for point in points:
        if failures and until_failure:
            break
        calls = trial(point)
        if not double or point.phase not in ("before", "after", "torn") or not calls:
            continue
        seconds = range(1, calls + 1)
        if 0 < double < calls:
            seconds = random.Random(f"{seed} {point.n} {point.phase}").sample(seconds, double)  # type: ignore[assignment]
        for second in seconds:
            trial(Point(**{**asdict(point), "second": second}))
    return dict(counts), failures


def _kind(point: Point) -> str:
    return point.phase if point.phase.islower() else "once"
