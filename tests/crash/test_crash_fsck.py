"""fsck after every crash of a worker, and fsck killed itself: what is left is mended, told, and never made worse."""

from __future__ import annotations

import os
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import pytest
import results
from crash_cases import AGENT, Worker, failing, working
from harness import ERRORS, FULL, Case, explore

from loom.spool import agents, fsck
from loom.spool import home as homes
from loom.spool.findings import Finding
from loom.spool.layout import Home
from loom.wire.agent import AgentSpec

SEED = 20261122
NOW_S = 4_000_000_000.0  # what lies in .tmp/ is litter by now


def in_a_home(case: Case) -> Case:
    """The same workflow of an agent in a home that is one."""

    def setup(root: Path) -> None:
        os.umask(0o077)
        home = homes.open_home(root)
        agents.create(home, AgentSpec(name=AGENT, model="builtin/echo"), "", "down")
        home.blobs.rmdir()  # the case makes it
        case.setup(root)

    return replace(case, setup=setup)


def picture(root: Path) -> dict[str, tuple[int, bytes]]:
    return {
        str(p): (p.lstat().st_mode, sha256(p.read_bytes()).digest() if p.is_file() else b"") for p in root.rglob("*")
    }


def check(root: Path, repair: bool = False) -> list[Finding]:
    return list(fsck.check(Home(root), repair=repair, now_s=NOW_S))


def mend(root: Path) -> None:
    """Told without a change, mended, and then neither is there anything to mend nor does mending change anything."""
    before = picture(root)
    check(root)
    assert picture(root) == before, "fsck without --repair changed something"
    check(root, repair=True)
    once = picture(root)
    left = [f for f in check(root) if f.status in ("mend", "mended")]
    assert not left, f"still to be mended: {left}"
    check(root, repair=True)
    assert picture(root) == once, "mending twice is not mending once"
    odd = [f for f in check(root) if f.status == "person" and f.path.parent != root]  # where the world keeps its books
    assert not odd, f"a crash left what a person must decide: {odd}"


def mended_first(case: Case) -> Case:
    """fsck comes before the worker goes on."""

    def recover(root: Path) -> None:
        check(root, repair=True)
        case.recover(root)

    def crashed(root: Path) -> None:
        case.crashed(root)
        mend(root)

    return replace(in_a_home(case), name=f"fsck after {case.name}", recover=recover, crashed=crashed, rival=None)


CASES = [mended_first(working(Worker())), mended_first(failing(Worker()))]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_after_a_crash_at_any_call_it_is_mended_and_the_worker_goes_on(case: Case):
    report = explore(case, seed=SEED, double=8 if FULL else 0, at_most=0 if FULL else 60)
    print(report.line())
    assert not report.failures, "\n".join([report.line(), *report.failures[:5]])
    assert report.counts["before"] and report.counts["after"] and report.counts["torn"]


def repaired(case: Case) -> Case:
    """fsck --repair itself is killed, in a home in which the worker was killed just before it would have been done."""

    def setup(root: Path) -> None:
        in_a_home(case).setup(root)
        case.workflow(root)
        box = Home(root).agent(AGENT)
        done = sorted(box.processed_days.rglob("*.msg"))
        done[0].rename(box.in_progress / done[0].name)  # the move was lost
        os.link(done[1], box.inbox / done[1].name)  # and this one is half done
        with next(box.turns.glob("*.ndjson")).open("ab") as file:
            file.write(b'{"t":"rep')
        with box.conversation("main").open("ab") as file:
            file.write(b"\0" * 64)
        (box.in_progress.parent / ".failed").rmdir() if not any(box.failed.iterdir()) else None
        box.pid.write_text("1\n")
        (root / "agents" / AGENT / "inbox" / ".tmp" / "litter").write_text("x")
        box.want.chmod(0o666)

    def repair(root: Path) -> None:
        check(root, repair=True)

    def recover(root: Path) -> None:
        repair(root)
        mend(root)
        case.recover(root)

    return replace(case, name=f"fsck of {case.name}", setup=setup, workflow=repair, recover=recover, rival=case.rival)


REPAIRED = [repaired(working(Worker()))]


@pytest.mark.parametrize("case", REPAIRED, ids=lambda case: case.name)
def test_a_repair_that_is_killed_or_met_anywhere_is_finished_by_the_next(case: Case):
    report = explore(case, seed=SEED)
    print(report.line())
    assert not report.failures, "\n".join([report.line(), *report.failures[:5]])
    assert report.counts["before"] == report.counts["after"] == report.counts["rival"] == report.calls > 10


@pytest.mark.full
@pytest.mark.timeout(3600)
def test_every_call_every_error_and_many_second_kills():
    trials = 0
    for case in (*CASES, *REPAIRED):
        report = explore(case, errors=ERRORS, double=8, seed=SEED)
        print(report.line())
        trials += sum(report.counts.values())
        assert not report.failures, "\n".join([report.line(), *report.failures[:5]])
    results.note("crash fsck", SEED, trials=trials, failures=0)
