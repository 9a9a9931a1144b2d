"""What a power cut may leave: a workflow is run once, and every state its disk may have at any moment is recovered.

    power_record    runs the workflow and writes down every call
    power_disk      says what a disk may hold after a cut behind each of them
    power           makes each of these states and has the real code recover

Each distinct state (files and books) is made once, in a directory of its own, and a child process recovers there with
the real code. What it leaves must satisfy the case's oracles.

To see that every sync is needed, one place that syncs is taken out of the record, as if it had not been called
(`without`): the states that become possible must show it.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import stat
import traceback
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from harness import Case
from power_disk import MODELS, Cuts, State, as_done, listing, put_on_disk, states
from power_record import Record, record
from support import BUG, ENVIRONMENT, forked, scratch

DEADLINE_S = 30


@dataclass(frozen=True, slots=True)
class Workflow:
    """A case of the harness as power cuts meet it.

    reboot   what happens before the case's own recovery when the machine was off
    kills    the workflow is also killed at calls of its own and started again, and then the power is cut
    """

    case: Case
    reboot: Callable[[Path], None] = lambda root: None
    kills: bool = False

    @property
    def name(self) -> str:
        return self.case.name


@dataclass(slots=True)
class Report:
    """What an exploration did. `states`: distinct ones by model; `tried`: those of both; `failures` are lines."""

    name: str
    tried: int = 0
    states: Counter[str] = field(default_factory=Counter)
    records: int = 0
    cuts: int = 0
    sampled: int = 0
    sites: set[str] = field(default_factory=set)
    failures: list[str] = field(default_factory=list)

    def line(self) -> str:
        by = ", ".join(f"{model} {count}" for model, count in sorted(self.states.items()))
        part = f"{self.sampled} cuts in part" if self.sampled else "complete"
        return (
            f"{self.name}: {self.records} histories, {self.cuts} cuts, states {by}, {self.tried} recovered ({part}), "
            f"{len(self.failures)} failures"
        )


class Explorer:
    """One workflow, recorded; the states seen so far, so that none is tried twice, not by the mutants either."""

    def __init__(self, workflow: Workflow, seed: int = 1, jobs: int = 2) -> None:
        self.workflow, self.seed, self.jobs = workflow, seed, jobs
        self.room = scratch()
        self.records: list[tuple[int, Record]] = []
        self.seen: dict[str, set[int]] = {model: set() for model in MODELS}
        self.tried: set[int] = set()
        self.prepared = self.room / "prepared"
        self.prepared.mkdir()
        made = forked(lambda: workflow.case.setup(self.prepared))  # type: ignore[func-returns-value]
        assert not made.status, made.said
        self.records.append((0, self._record(0)))

    def __enter__(self) -> Explorer:
        return self

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self.room, ignore_errors=True)

    def _record(self, kill_at: int) -> Record:
        root = self.room / "root"
        shutil.rmtree(root, ignore_errors=True)
        copy_tree(self.prepared, root)
        first = record(self.workflow.case.workflow, root, self.room, kill_at=kill_at)
        if not kill_at:
            return first
        return record(self.workflow.case.recover, root, self.room, history=first)

    def record_kills(self, at_most: int = 0, behind: str = "") -> None:
        """Histories in which the process is killed before a call, goes on anew, and only then the power is cut.

        at_most   so many, drawn by the seed
        behind    only right behind the calls of this place
        """
        first = self.records[0][1]
        points = list(range(2, first.calls + 1))
        if behind:
            points = [step.call + 1 for step in first.steps if step.site == behind]
            assert points, f"{behind} is not in {self.workflow.name}"
        if at_most and len(points) > at_most:
            points = sorted(random.Random(self.seed).sample(points, at_most))
        self.records += [(n, self._record(n)) for n in points]

    def sites(self) -> set[str]:
        return {site for _, rec in self.records for site in rec.sites() if not site.startswith("test ")}

    def states(self, model: str) -> int:
        """Take note of every state that is possible, without recovering any; how many there are."""
        for _, rec in self.records:
            for _ in states(rec, model, self.seen[model], Cuts(), seed=self.seed):
                pass
        return len(self.seen[model])

    def explore(self, models: Iterable[str] = MODELS, at_most: int = 0) -> Report:
        """Recover every state; `at_most` so many of each model and history, drawn by the seed."""
        report = Report(self.workflow.name, records=len(self.records), sites=self.sites())
        for model in models:
            for kill, rec in self.records:
                counts = Cuts()
                found: Iterable[State] = states(rec, model, self.seen[model], counts, seed=self.seed)
                report.tried += self._try(self._drawn(found, at_most), rec, kill, model, "", report.failures)
                report.cuts += counts.cuts
                report.sampled += counts.sampled
            report.states[model] = len(self.seen[model])
        return report

    def _drawn(self, found: Iterable[State], at_most: int) -> Iterable[State]:
        if not at_most:
            return found
        all_found = list(found)
        return random.Random(self.seed).sample(all_found, at_most) if len(all_found) > at_most else all_found

    def without(self, site: str, models: Iterable[str] = MODELS, at_most: int = 0) -> str:
        """The first violation when this place does not sync; empty when none is found. It must be in a record.

        at_most   so many of the states that become possible, of each history and model: those first that have lost
                  the least, and of these the late ones, because then the outside world knows more
        """
        fired = [(kill, rec) for kill, rec in self.records if site in {s.site for s in rec.steps}]
        assert fired, f"{site} is in no record of {self.workflow.name}"
        failures: list[str] = []
        for kill, rec in fired:
            for model in reversed(tuple(models)):
                found = list(states(rec, model, set(self.seen[model]), Cuts(), without=site, seed=self.seed))
                found.sort(key=lambda state: (state.lost, -state.step))
                self._try(found[: at_most or None], rec, kill, model, site, failures, until_failure=True)
                if failures:
                    return failures[0]
        return ""

    def _try(
        self,
        found: Iterable[State],
        rec: Record,
        kill: int,
        model: str,
        site: str,
        failures: list[str],
        until_failure: bool = False,
    ) -> int:
        """Recover those states that were not tried yet, `jobs` child processes at a time; how many those were."""
        running: dict[int, tuple[int, State]] = {}
        tried = 0

        def reap() -> None:
            pid, status = os.wait()
            number, state = running.pop(pid)
            said = self.room / f"trial{number}.said"
            if status:
                wrong = said.read_text() if said.exists() else f"ended with {os.waitstatus_to_exitcode(status)}"
                failures.append(self._told(rec, kill, model, site, state, wrong))
                said.unlink(missing_ok=True)
                shutil.rmtree(self.room / f"trial{number}", ignore_errors=True)

        for number, state in enumerate(found):
            while len(running) >= self.jobs:
                reap()
            if until_failure and failures:
                break
            if state.digest in self.tried:
                continue
            self.tried.add(state.digest)
            tried += 1
            pid = os.fork()
            if pid == 0:
                self._trial(state, number)
            running[pid] = number, state
        while running:
            reap()
        return tried

    def _trial(self, state: State, number: int) -> None:
        """In a child: make the state, recover, look; never returns."""
        status = BUG
        root = self.room / f"trial{number}"
        case = self.workflow.case
        try:
            signal.alarm(DEADLINE_S)
            put_on_disk(state.tree, state.books, root)
            case.crashed(root)
            self.workflow.reboot(root)
            case.recover(root)
            case.check(root)
            shutil.rmtree(root)
            status = 0
        except BaseException as error:
            status = ENVIRONMENT if isinstance(error, OSError) else BUG
            (self.room / f"trial{number}.said").write_text(f"status {status}: {traceback.format_exc()[-1500:]}")
        finally:
            os._exit(status)

    def _told(self, rec: Record, kill: int, model: str, site: str, state: State, wrong: str) -> str:
        """A failure, with what the state lacks of what had been done."""
        done = listing(as_done(rec, state.step), state.books)
        found = listing(state.tree, state.books)
        lost = [f"{p}: {found.get(p, '-')} for {done.get(p, '-')}" for p in sorted({*done, *found})
                if done.get(p) != found.get(p)]  # fmt: skip
        at = rec.steps[state.step].site if state.step >= 0 else "the beginning"
        killed = f"killed at {kill}, " if kill else ""
        return (
            f"{self.workflow.name}: {model}: {f'without {site}, ' if site else ''}{killed}cut behind step {state.step} "
            f"({at}): {wrong}\n  lost: " + "\n        ".join(lost)
        )


def copy_tree(source: Path, target: Path) -> None:
    """shutil.copytree() that makes FIFOs anew."""

    def copy(one: str, other: str) -> None:
        if stat.S_ISFIFO(os.lstat(one).st_mode):
            os.mkfifo(other)
        else:
            shutil.copy2(one, other, follow_symlinks=False)

    def fifos(directory: str, names: list[str]) -> list[str]:
        return [n for n in names if stat.S_ISFIFO(os.lstat(f"{directory}/{n}").st_mode)]

    shutil.copytree(source, target, symlinks=True, copy_function=copy, ignore=fifos)
    for directory, _, names in os.walk(source):
        for name in fifos(directory, names):
            os.mkfifo(target / Path(directory).relative_to(source) / name, 0o600)
