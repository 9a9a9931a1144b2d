"""Every workflow of the kernel, killed, torn and failed at every file change it makes.

Here each call once, with a sample of errors and second kills; all of them in test_crash_full.py.
"""

from __future__ import annotations

import pytest
from crash_cases import KERNEL
from harness import ERRORS, Case, Point, explore, forked, points_of

from loom.spool import fs

SEED = 20260728


@pytest.mark.parametrize("case", KERNEL, ids=lambda case: case.name)
def test_killed_at_any_call_nothing_is_lost_or_done_twice(case: Case):
    report = explore(case, seed=SEED)
    print(report.line())
    assert not report.failures, "\n".join([report.line(), *report.failures[:5]])
    assert report.counts["before"] == report.counts["after"] == report.calls > 0


@pytest.mark.parametrize("case", KERNEL, ids=lambda case: case.name)
def test_when_a_call_fails_the_workflow_stops_or_goes_on_and_nothing_is_lost(case: Case):
    report = explore(case, kills=False, errors=ERRORS, at_most=30, seed=SEED)
    print(report.line())
    assert not report.failures, "\n".join([report.line(), *report.failures[:5]])
    assert report.counts["once"] and report.counts["forever"]


@pytest.mark.parametrize("case", KERNEL, ids=lambda case: case.name)
def test_killed_again_while_it_recovers_nothing_is_lost_or_done_twice(case: Case):
    report = explore(case, double=1, at_most=18, seed=SEED)
    print(report.line())
    assert not report.failures, "\n".join([report.line(), *report.failures[:5]])
    assert report.counts["double"]


# -- the harness itself ----------------------------------------------------------------------------------------


def test_a_fault_that_does_not_fire_is_a_failure(monkeypatch: pytest.MonkeyPatch):
    late = Point(10_000, "before", "nowhere")
    monkeypatch.setattr("harness.points_of", lambda log, **kinds: [late])
    report = explore(KERNEL[0], jobs=1)
    assert len(report.failures) == 1
    assert "call 10000 at nowhere: before" in report.failures[0]
    assert "replay.py" in report.failures[0]


def test_a_trial_that_hangs_is_a_failure():
    def hang():
        import signal

        signal.pause()

    ended = forked(hang, deadline_s=0.2)
    assert ended.status == -1


def test_a_traceback_is_a_failure_even_when_the_recovery_mends_everything():
    def clumsy(root):
        try:
            fs.replace(root / "file", b"new")
        except OSError:
            raise KeyError("a bug") from None

    def check(root):
        return None

    case = Case("clumsy", lambda root: None, clumsy, lambda root: None, check)
    report = explore(case, kills=False, errors=("EIO",), jobs=1)
    assert report.failures
    assert all("KeyError" in line for line in report.failures)


def test_every_method_of_the_calls_is_under_the_knife():
    from harness import Knife

    plain = {name for name in vars(fs.Calls) if not name.startswith("_")}
    assert plain == {name for name in vars(Knife) if name in plain}


def test_a_write_can_also_be_torn_or_short():
    phases = {p.phase for p in points_of([("runner", "write", "here")], kills=True, errors=("EIO",), rival=False)}
    assert phases == {"before", "after", "torn", "short", "EIO", "torn+EIO"}
