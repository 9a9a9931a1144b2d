"""gc killed, torn and failed at every change it makes, and met there by the agents whose mail it looks at."""

from __future__ import annotations

import zlib
from pathlib import Path

import pytest
from crash_retention import GC, gc, met, nothing_lost, setup
from harness import ERRORS, explore

from loom.spool import retention

SEED = 20261121


def test_killed_or_met_at_any_call_nothing_is_lost_or_done_twice():
    report = explore(GC, seed=SEED)
    print(report.line())
    assert not report.failures, "\n".join([report.line(), *report.failures[:5]])
    assert report.counts["before"] == report.counts["after"] == report.counts["rival"] == report.calls > 40


def test_when_a_call_fails_everything_is_whole():
    report = explore(GC, kills=False, errors=ERRORS, at_most=60, seed=SEED)
    print(report.line())
    assert not report.failures, "\n".join([report.line(), *report.failures[:5]])
    assert report.counts["once"] and report.counts["forever"]


def test_the_agents_are_killed_or_met_by_gc_at_any_of_their_calls():
    report = explore(met(GC), seed=SEED)
    print(report.line())
    assert not report.failures, "\n".join([report.line(), *report.failures[:5]])
    assert report.counts["rival"] == report.calls > 0


BLIND = {
    "processed": (retention.core, "keeps_processed", lambda **facts: ""),
    "sent": (retention.core, "keeps_sent", lambda **facts: ""),
    "belongings": (retention.Mail, "_is_retained", lambda self, box, stem: False),
}


@pytest.mark.parametrize("condition", BLIND)
def test_without_one_of_its_conditions_something_is_done_twice_or_lost(condition: str, monkeypatch: pytest.MonkeyPatch):
    """The oracles see what the conditions are for."""
    monkeypatch.setattr(*BLIND[condition])
    assert explore(GC, at_most=4, seed=SEED, until_failure=True).failures


def test_an_archive_that_is_torn_would_be_seen(tmp_path: Path):
    setup(tmp_path)
    gc(tmp_path)
    path = next((tmp_path / "archive").glob("*.gz"))
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises((EOFError, zlib.error)):
        nothing_lost(tmp_path)
