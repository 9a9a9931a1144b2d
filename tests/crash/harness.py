"""Kills, tears and fails every primitive file change of a workflow, one at a time, and looks what is left.

Every change of a file in the package is a method of `fs.calls`. Here a double takes its place which counts, and
when the n-th call at one place is made it does one of these:

    before, after    the process is gone before or after the call (`os._exit`, no handler, no `finally`)
    torn             write only: half of the bytes are written, then the process is gone
    short            write only: half of the bytes are written and the rest is not, without an error: legal
    ENOSPC …         the call fails, only this one (`once`) or this one and all after it (`forever`)
    torn+ENOSPC      write only: half of the bytes are written, then it fails
    rival            another process does something of its own, to its end, before the call is made

A *place* is a process of loom and a call site, `file:function:line` of the nearest caller outside fs.py and the call
it led to. A *distinct point* is a place, a phase (before, after, torn, short, once, for ever) and an error. Which
process is at work a workflow says with `acting`.

A workflow is a `Case`. What it does with its root directory is free, as long as the same root leads to the same
calls: names, clocks and epochs are given, not drawn. Where real processes make their order uncertain
(`Case.repeats` is false), the calls at each place are counted, and what both of two runs make is disturbed. To put
another workflow under the knife, write a Case and hand it to `explore`; the runner of a daemon fits as well as a
function of a few lines.

A fault that did not fire is a failure; so is a trial that takes longer than its deadline, a traceback that is no
OSError, a process that is left, and an oracle that objects. Every failure ends with the command that runs this one
trial again:

    .venv/bin/python tests/crash/replay.py 'CASE' 'POINT as JSON'
"""

from __future__ import annotations

import contextlib
import errno
import gc
import json
import os
import random
import shutil
import signal
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

from support import BUG, ENVIRONMENT, Ended, forked, scratch

from loom.proc import tree
from loom.spool import fs

KILLED = 137
ERRORS = ("ENOSPC", "EIO", "EMFILE", "EROFS", "EDQUOT", "EFBIG")
KILLS = ("before", "after", "torn")
JOBS = int(os.environ.get("LOOM_CRASH_JOBS", "0")) or min(os.cpu_count() or 1, 8)
FULL = os.environ.get("LOOM_CRASH") == "full"
_METHODS = [name for name in vars(fs.Calls) if not name.startswith("_")]


def nothing(root: Path) -> None:
    """For a Case that needs no such step."""


# -- what the world outside remembers --------------------------------------------------------------------------


def note(root: Path, book: str, record: dict[str, Any]) -> None:
    """Add a line to a book of the outside world: no fault reaches it, it is no file of ours."""
    fd = os.open(root / book, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        os.write(fd, json.dumps(record).encode() + b"\n")
    finally:
        os.close(fd)


def noted(root: Path, book: str) -> list[dict[str, Any]]:
    try:
        return [json.loads(line) for line in (root / book).read_text().splitlines()]
    except FileNotFoundError:
        return []


def crashes(root: Path) -> int:
    """How often a process of this trial was killed, or failed, so far."""
    return len(noted(root, "crashes"))


# -- cases and points ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Case:
    """One workflow and what must be true around it. Every function gets the root directory of its trial.

    setup     makes the prepared directory, once; each trial works on a copy
    workflow  what is disturbed; may raise OSError, as a program that then ends with status 75
    crashed   oracle on what the disturbed workflow left, before anything repairs it
    recover   what the next incarnation does, undisturbed or killed once more; must end well
    check     oracle on what the recovery left
    rival     another process's work, for interleavings; None: the case has none
    process   who makes the calls, as long as the workflow does not say otherwise (`acting`)
    orders    in how many orders its processes may come back: recover_in(root, k) for k in range(orders)
    repeats   False: two runs may make their calls in another order
    """

    name: str
    setup: Callable[[Path], None]
    workflow: Callable[[Path], None]
    recover: Callable[[Path], None]
    check: Callable[[Path], None]
    crashed: Callable[[Path], None] = nothing
    rival: Callable[[Path], None] | None = None
    process: str = "spool"
    orders: int = 1
    recover_in: Callable[[Path, int], None] | None = None
    repeats: bool = True

    def recovery(self, order: int) -> Callable[[Path], None]:
        """What recovers when the processes come back in this order."""
        in_order = self.recover_in
        if in_order is None:
            return self.recover
        return lambda root: in_order(root, order)


@dataclass(frozen=True, slots=True)
class Point:
    """Where and how one trial is disturbed: at the n-th call at this place.

    second  the recovery is killed before this call of its own, counted over all places; 0 for not
    order   of the recovery's processes
    """

    n: int
    phase: str
    site: str
    process: str = "spool"
    forever: bool = False
    second: int = 0
    order: int = 0

    def text(self) -> str:
        how = f"{self.phase}{' from then on' if self.forever else ''}"
        second = f", recovery killed at {self.second}" if self.second else ""
        return f"{self.process}, call {self.n} at {self.site}: {how}, order {self.order}{second}"

    def distinct(self) -> tuple[str, str, str]:
        """(process, call site, phase and error): what makes it another point than others."""
        return self.process, self.site, f"{self.phase}{' for ever' if self.forever else ''}"


@dataclass(slots=True)
class Report:
    """What an exploration did. `failures` are lines; `counts` trials by kind of disturbance.

    points  the distinct points that were tried, each as (process, call site, phase and error)
    orders  in which orders recoveries were made
    """

    name: str
    calls: int = 0
    sites: set[str] = field(default_factory=set)
    counts: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    points: set[tuple[str, str, str]] = field(default_factory=set)
    orders: set[int] = field(default_factory=set)
    trials_of: Counter[tuple[str, str]] = field(default_factory=Counter)  # by process and kind

    def line(self) -> str:
        kinds = ", ".join(f"{kind} {count}" for kind, count in sorted(self.counts.items()))
        return (
            f"{self.name}: {self.calls} calls at {len(self.sites)} places, {len(self.points)} distinct points, "
            f"{sum(self.counts.values())} trials ({kinds}), {len(self.failures)} failures"
        )


# -- the knife -------------------------------------------------------------------------------------------------


_acting = ""


@contextlib.contextmanager
def acting(process: str) -> Iterator[None]:
    """Inside, this process of loom makes the calls."""
    global _acting
    before, _acting = _acting, process
    try:
        yield
    finally:
        _acting = before


class Knife(fs.Calls):
    """The double. Without a point it only counts and notes who called what; `at` kills before that call of all."""

    def __init__(self, point: Point | None = None, rival: Callable[[], None] | None = None, at: int = 0) -> None:
        self.count = 0
        self.log: list[tuple[str, str, str]] = []  # (process, method, site)
        self.fired = False
        self.rival = rival
        self.for_ever = point is not None and point.forever
        self._point = point
        self._at = at
        self._met = 0

    def _call(self, method: str, args: tuple[Any, ...]) -> Any:
        self.count += 1
        real = getattr(super(), method)
        point = self._point
        if point is None:
            if self._at:
                if self.count == self._at:
                    os._exit(KILLED)
            else:
                self.log.append((_acting, method, _site(method)))
            return real(*args)
        if not self._is_hit(point, method):
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
                assert self.rival is not None
                self.rival()
                return real(*args)
        if point.phase.startswith("torn+") and method == "write":
            real(args[0], _half(args[1]))
        code = getattr(errno, point.phase.removeprefix("torn+"))
        raise OSError(code, f"{os.strerror(code)} (injected)")

    def _is_hit(self, point: Point, method: str) -> bool:
        if self.fired:
            return point.forever
        if _acting != point.process or _site(method) != point.site:
            return False
        self._met += 1
        return self._met == point.n


def _method(name: str) -> Callable[..., Any]:
    def call(self: Any, *args: Any) -> Any:
        return self._call(name, args)

    return call


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
    return f"{_place(frame.f_code)}:{frame.f_lineno} {inner}/{method}"


@cache
def _place(code: CodeType) -> str:
    return f"{Path(code.co_filename).name}:{code.co_name}"


def disturbed(
    work: Callable[[Path], None],
    root: Path,
    point: Point | None,
    rival: Callable[[Path], None] | None,
    *,
    process: str = "spool",
    at: int = 0,
) -> Ended:
    """`work(root)` in a child under the knife. said: fired, calls and, without a point, their log."""

    def meet() -> None:
        assert rival is not None
        with undisturbed():
            ended = forked(lambda: rival(root))  # type: ignore[func-returns-value]
        if ended.status not in (0, ENVIRONMENT):
            raise AssertionError(f"the rival ended with {ended.status}: {ended.said.get('trace')}")

    def run() -> dict[str, Any]:
        knife = Knife(point, meet, at)
        fs.calls = knife
        said: dict[str, Any] = {}
        try:
            with acting(process):
                work(root)
        except OSError as error:
            said["error"] = str(error)
        return said | {"fired": knife.fired, "calls": knife.count, "log": knife.log}

    return forked(run)


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """The real calls for a while, for what is no part of the workflow."""
    before, fs.calls = fs.calls, fs.Calls()
    try:
        yield
    finally:
        fs.calls = before


def points_of(
    log: Iterable[tuple[str, str, str]], *, kills: bool, errors: tuple[str, ...], rival: bool, first: bool = False
) -> list[Point]:
    """Every way of disturbing a workflow that makes these calls; with `first` only at the first call at each place."""
    found: list[Point] = []
    met: Counter[tuple[str, str]] = Counter()
    for process, method, site in log:
        met[process, site] += 1
        n = met[process, site]
        if first and n > 1:
            continue
        phases = ["before", "after"] if kills else []
        if method == "write":
            phases += ["torn", "short"] if kills else []
            found += [Point(n, f"torn+{error}", site, process) for error in errors]
        found += [Point(n, phase, site, process) for phase in phases]
        found += [Point(n, error, site, process, forever) for error in errors for forever in (False, True)]
        if rival:
            found.append(Point(n, "rival", site, process))
    return found


# -- one trial -------------------------------------------------------------------------------------------------


def one_trial(case: Case, prepared: Path, point: Point, room: Path) -> tuple[str, int]:
    """(what is wrong after this disturbance, empty for nothing; how many calls the recovery made)."""
    root = _copied(prepared, room)
    try:
        wrong, calls = _disturbed_once(case, root, point), 0
        if not wrong:
            wrong, calls = _recovered(case, root, point)
    finally:
        left = _end_children()
    return (wrong or (f"processes are left: {left}" if left else "")), calls


class Camera(fs.Calls):
    """Copies the directory before the calls of these numbers: what a process that was killed there leaves behind."""

    def __init__(self, root: Path, copies: Path, numbers: Iterable[int]) -> None:
        self.count = 0
        self._root, self._copies, self._numbers = root, copies, frozenset(numbers)

    def _call(self, method: str, args: tuple[Any, ...]) -> Any:
        self.count += 1
        if self.count in self._numbers:
            shutil.copytree(self._root, self._copies / str(self.count), symlinks=True, ignore=_no_fifos)
        return getattr(super(), method)(*args)


for _name in _METHODS:
    setattr(Knife, _name, _method(_name))
    setattr(Camera, _name, _method(_name))


def _second_kills(
    case: Case, prepared: Path, point: Point, room: Path, seconds: list[int]
) -> Iterator[tuple[int, str]]:
    """(call of the recovery, what is wrong after it was killed there) for each of `seconds`.

    The recovery runs once, and before each of these calls its directory is copied: a kill leaves the files as they
    are and lets go of every lock, and so does a copy. What recovers from all the copies is one process. Where that
    does not end well, every one of these kills is made as a trial of its own.
    """
    root, copies = _copied(prepared, room), room / "copies"
    shutil.rmtree(copies, ignore_errors=True)
    copies.mkdir()
    wrong = _disturbed_once(case, root, point)
    recover = case.recovery(point.order)

    def photograph() -> None:
        fs.calls = Camera(root, copies, seconds)
        with acting(case.process):
            recover(root)

    def finish_all() -> dict[str, Any]:
        found = {}
        for second in seconds:
            shutil.rmtree(root)
            (copies / str(second)).rename(root)
            note(root, "crashes", {"phase": "second"})
            try:
                _finish(case, root, recover)
            except Exception as error:
                found[str(second)] = repr(error)
        return found

    whole = not wrong and not forked(photograph).status  # type: ignore[func-returns-value]
    ended = forked(finish_all, 300.0) if whole and all((copies / str(n)).exists() for n in seconds) else None
    found = ended.said if ended is not None and not ended.status else dict.fromkeys(map(str, seconds), "?")
    for second in seconds:
        if str(second) in found:
            yield second, one_trial(case, prepared, replace(point, second=second), room)[0]
        else:
            yield second, ""


def _copied(prepared: Path, room: Path) -> Path:
    root = room / "root"
    shutil.rmtree(root, ignore_errors=True)
    shutil.copytree(prepared, root, symlinks=True)
    return root


def _no_fifos(directory: str, names: list[str]) -> list[str]:
    """A FIFO cannot be copied, and belongs to whoever listens: it is made again."""
    return [name for name in names if (Path(directory) / name).is_fifo()]


def _disturbed_once(case: Case, root: Path, point: Point) -> str:
    """Run the workflow into its disturbance; what is wrong with how it ended."""
    ended = disturbed(case.workflow, root, point, case.rival, process=case.process)
    killed = point.phase in KILLS
    if ended.status != (KILLED if killed else 0) or not (killed or ended.said.get("fired")):
        return f"the workflow ended with {ended.status}, fired {ended.said.get('fired')}: {_trace(ended)}"
    if point.phase in ("short", "rival") and "error" in ended.said:
        return f"the workflow failed where it should not: {ended.said['error']}"
    if point.phase not in ("short", "rival"):
        note(root, "crashes", {"phase": point.phase})
    return ""


def _recovered(case: Case, root: Path, point: Point) -> tuple[str, int]:
    """Recover, killed once more when the point says so; (what is wrong then, how many calls the recovery made)."""
    recover = case.recovery(point.order)
    if point.second:
        second = disturbed(recover, root, None, None, process=case.process, at=point.second)
        # Where calls do not repeat, the recovery may have got along with fewer.
        if second.status != KILLED and (case.repeats or second.status):
            return f"the recovery was not killed at its call {point.second}: {_trace(second)}", 0
        note(root, "crashes", {"phase": "second"})

    last = forked(lambda: _finish(case, root, recover))
    return (f"status {last.status}: {_trace(last)}" if last.status else ""), int(last.said.get("calls", 0))


def _finish(case: Case, root: Path, recover: Callable[[Path], None]) -> dict[str, Any]:
    """What was left is looked at, repaired and looked at again; said: how many calls the recovery made."""
    fs.calls = fs.Calls()
    case.crashed(root)
    fs.calls = knife = Knife(at=sys.maxsize)
    with acting(case.process):
        recover(root)
    fs.calls = fs.Calls()
    case.check(root)
    return {"calls": knife.count}


def _end_children() -> str:
    """Reap what came to us as a subreaper; what still lives is named and ended."""
    names = []
    tree.reap_strays(())
    for pid in tree.children_of_ours():
        with contextlib.suppress(OSError):
            names.append(f"{pid} {Path(f'/proc/{pid}/comm').read_text().strip()}")
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
    return ", ".join(names)


def _trace(ended: Ended) -> str:
    return str(ended.said.get("trace") or ended.said.get("error") or "")[-2000:]


def crash_room() -> Path:
    """A directory for trials, on the fastest file system there is."""
    fast = scratch()
    room = fast.with_name(fast.name.replace("loom-test-", "loom-crash-"))
    fast.rename(room)
    return room


def replay_command(case: Case, point: Point) -> str:
    return f".venv/bin/python tests/crash/replay.py '{case.name}' '{json.dumps(asdict(point))}'"


# -- all of them -----------------------------------------------------------------------------------------------


def explore(
    case: Case,
    *,
    kills: bool = True,
    errors: tuple[str, ...] = (),
    double: int = 0,
    at_most: int = 0,
    first: bool = False,
    only: Callable[[Point], bool] = lambda point: True,
    orders: int = 1,
    seed: int = 1,
    jobs: int = 0,
    until_failure: bool = False,
) -> Report:
    """Disturb `case` at every call in every way asked for.

    double    second kills per killed point, at calls of the recovery drawn by `seed`; -1: at every call
    at_most   a sample of so many points, drawn by `seed`; 0: all of them
    first     only the first call at each place: every distinct point once
    only      the points that count
    orders    in how many orders the recovery from each kill is made, when the case has several; over all points
              every order is taken
    until_failure   stop at the first: for programs that are known to be wrong
    """
    report = Report(case.name)
    room = crash_room()
    try:
        prepared = room / "prepared"
        prepared.mkdir()
        made = forked(lambda: case.setup(prepared))  # type: ignore[func-returns-value]
        if made.status:
            report.failures.append(f"{case.name}: setup: {_trace(made)}")
            return report
        points = [p for p in _plan(case, report, prepared, room, kills, errors, first) if only(p)]
        if at_most and len(points) > at_most:
            points = random.Random(seed).sample(points, at_most)
        points = _in_orders(case, points, orders, seed)
        _run_shards(case, report, room, points, double, seed, jobs or JOBS, until_failure)
    finally:
        shutil.rmtree(room, ignore_errors=True)
    return report


def _in_orders(case: Case, points: list[Point], orders: int, seed: int) -> list[Point]:
    """Each point in so many orders of recovery, drawn by `seed`; no order comes a second time before all came once."""
    if case.orders == 1:
        return points
    drawn = list(range(case.orders))
    random.Random(seed).shuffle(drawn)
    found = []
    for point in points:
        for _ in range(orders if point.phase in KILLS else 1):
            found.append(replace(point, order=drawn[len(found) % case.orders]))
    return found


def _plan(
    case: Case, report: Report, prepared: Path, room: Path, kills: bool, errors: tuple[str, ...], first: bool
) -> list[Point]:
    """Run the case undisturbed, twice: it must be right by itself, and its calls must repeat."""
    logs: list[list[tuple[str, str, str]]] = []
    for _ in range(2):
        root = room / "root"
        shutil.rmtree(root, ignore_errors=True)
        shutil.copytree(prepared, root, symlinks=True)
        ended = disturbed(case.workflow, root, None, None, process=case.process)
        if ended.status or "error" in ended.said:
            report.failures.append(f"{case.name}: undisturbed: {_trace(ended)}")
            return []
        logs.append([(process, method, site) for process, method, site in ended.said["log"]])

        def finish(root: Path = root) -> None:
            case.crashed(root)
            case.recover(root)
            case.check(root)

        last = forked(finish)  # type: ignore[arg-type]
        if last.status:
            report.failures.append(f"{case.name}: undisturbed, check: {_trace(last)}")
            return []
    if case.repeats and logs[0] != logs[1]:
        report.failures.append(f"{case.name}: two undisturbed runs made different calls: nothing could be replayed")
        return []
    log = list((Counter(logs[0]) & Counter(logs[1])).elements()) if not case.repeats else logs[0]
    report.calls = len(log)
    report.sites = {site for _, _, site in log}
    return points_of(log, kills=kills, errors=errors, rival=case.rival is not None, first=first)


def _run_shards(
    case: Case, report: Report, room: Path, points: list[Point], double: int, seed: int, jobs: int, until_failure: bool
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
                result = _shard(case, room / "prepared", own, points[shard::jobs], double, seed, until_failure)
                (room / f"shard{shard}.json").write_text(json.dumps(result))
                status = 0
            except BaseException as error:
                print(f"{case.name}: shard {shard}: {error!r}", file=sys.stderr, flush=True)
            finally:
                os._exit(status)
        pids.append(pid)
    for shard, pid in enumerate(pids):
        _, status = os.waitpid(pid, 0)
        if status:
            report.failures.append(f"{case.name}: shard {shard} ended with {status}")
            continue
        tried, failures = json.loads((room / f"shard{shard}.json").read_text())
        for point in (Point(**fields) for fields in tried):
            kind = "double" if point.second else "forever" if point.forever else _kind(point)
            report.counts[kind] += 1
            report.points.add(point.distinct())
            report.orders.add(point.order)
            what = "double" if point.second else "killed" if point.phase in KILLS else "error" if kind in (
                "once", "forever") else kind  # fmt: skip
            report.trials_of[point.process, what] += 1
        report.failures += failures


def _shard(
    case: Case, prepared: Path, room: Path, points: list[Point], double: int, seed: int, until_failure: bool
) -> tuple[list[dict[str, Any]], list[str]]:
    """(the points that were tried, what went wrong)."""
    tried: list[dict[str, Any]] = []
    failures: list[str] = []
    tree.become_subreaper()  # what a killed process leaves behind comes to us and is seen
    gc.collect()
    gc.freeze()  # or each of the many forks would copy the heap by counting references

    def noted_down(point: Point, wrong: str) -> None:
        tried.append(asdict(point))
        if wrong:
            failures.append(f"{case.name}: {point.text()}: {wrong}\n    {replay_command(case, point)}")

    for point in points:
        if failures and until_failure:
            break
        wrong, calls = one_trial(case, prepared, point, room)
        noted_down(point, wrong)
        if not double or point.phase not in KILLS or not calls:
            continue
        seconds = list(range(1, calls + 1))
        if 0 < double < calls:
            seconds = random.Random(f"{seed} {point.n} {point.phase} {point.site}").sample(seconds, double)
        if case.repeats and len(seconds) > 1:
            for second, wrong in _second_kills(case, prepared, point, room, seconds):
                noted_down(replace(point, second=second), wrong)
            continue
        for second in seconds:  # each on its own: processes that live on cannot be copied
            again = replace(point, second=second)
            noted_down(again, one_trial(case, prepared, again, room)[0])
    return tried, failures


def _kind(point: Point) -> str:
    return point.phase if point.phase.islower() else "once"
