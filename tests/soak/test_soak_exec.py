"""The programs themselves, killed and failed by the kernel: no double, no counter of ours is in between."""

from __future__ import annotations

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
@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.name)
def test_killed_at_every_call_nothing_is_lost_or_done_twice(program: Program):
    need_strace()
    found = explore(program)
    note(found)
    assert not found.failures, "\n".join([found.line(), *found.failures[:10]])
    assert found.runs["KILL"] == found.calls


@pytest.mark.full
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.name)
def test_failed_at_many_calls_nothing_is_lost_or_done_twice(program: Program):
    need_strace()
    found = explore(program, kills=False, errors=ERRORS, at_most=100, seed=SEED)
    note(found)
    assert not found.failures, "\n".join([found.line(), *found.failures[:10]])


def note(found: Found) -> None:
    kinds = "killed" if found.runs["KILL"] else "failed"
    results.note(
        f"{kinds} from outside, {found.name}",
        SEED,
        calls=found.calls,
        runs=found.runs.total(),
        seconds_a_run=found.seconds / found.runs.total(),
        failures=len(found.failures),
    )


def test_a_fault_that_does_not_fire_is_a_failure(monkeypatch: pytest.MonkeyPatch):
    need_strace()
    never = Fault(Call("fsync", 10_000, "nowhere"), "signal=KILL")
    monkeypatch.setattr("soak_exec.changes", lambda calls, place: [never.call])
    found = explore(PROGRAMS[0])
    assert len(found.failures) == 1
    assert "did not fire" in found.failures[0]
