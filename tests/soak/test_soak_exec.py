"""The programs themselves, killed and failed by the kernel: no double, no counter of ours is in between."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import results
from soak_cases import PROGRAMS, Program
from soak_exec import ERRORS, Fault, Found, explore
from soak_strace import Call, need_strace

SEED = 20260922


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.name)
def test_killed_or_failed_at_some_calls_nothing_is_lost_or_done_twice(program: Program):
    need_strace()
    found = explore(program, errors=ERRORS, at_most=3, seed=SEED)
    print(found.line())
    assert not found.failures, "\n".join(found.failures)


@pytest.mark.full
@pytest.mark.timeout(3600)
def test_killed_at_every_call_nothing_is_lost_or_done_twice():
    need_strace()
    found = [explore(program) for program in PROGRAMS]
    note("killed from outside", found)
    assert all(one.runs["KILL"] == one.calls for one in found)


@pytest.mark.full
@pytest.mark.timeout(3600)
def test_failed_at_many_calls_nothing_is_lost_or_done_twice():
    need_strace()
    note("failed from outside", [explore(p, kills=False, errors=ERRORS, at_most=100, seed=SEED) for p in PROGRAMS])


def note(suite: str, found: Sequence[Found]) -> None:
    for one in found:
        print(one.line())
    runs = sum(one.runs.total() for one in found)
    results.note(
        suite,
        SEED,
        programs=" + ".join(f"{one.runs.total()} {one.name}" for one in found),
        runs=runs,
        seconds_a_run=sum(one.seconds for one in found) / runs,
        failures=sum(len(one.failures) for one in found),
    )
    assert not any(one.failures for one in found), "\n".join(line for one in found for line in one.failures[:5])


def test_a_fault_that_does_not_fire_is_a_failure(monkeypatch: pytest.MonkeyPatch):
    need_strace()
    never = Fault(Call("fsync", 10_000, "nowhere"), "signal=KILL")
    monkeypatch.setattr("soak_exec.changes", lambda calls, place: [never.call])
    found = explore(PROGRAMS[0])
    assert len(found.failures) == 1
    assert "did not fire" in found.failures[0]
