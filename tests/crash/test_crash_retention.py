"""gc killed, torn and failed at every change it makes, and met there by the agents whose mail it looks at."""

from __future__ import annotations

import zlib
from collections import Counter
from pathlib import Path

import pytest
from crash_cases import AGENT, Worker, agent_with, letter, note, noted
from crash_retention import GC, archived, gc, met, nothing_lost, route, setup, target
from harness import ERRORS, FULL, Case, explore
from power import Explorer, Workflow
from power_disk import MODELS

from loom.spool import mailbox, retention
from loom.wire import ids

SEED = 20261121


def test_killed_or_met_at_any_call_nothing_is_lost_or_done_twice():
    report = explore(GC, seed=SEED)
    print(report.line())
    assert not report.failures, "\n".join([report.line(), *report.failures[:5]])
    assert report.counts["before"] == report.counts["after"] == report.counts["rival"] == report.calls > 30


def test_when_a_call_fails_everything_is_whole():
    report = explore(GC, kills=False, errors=ERRORS, at_most=30, seed=SEED)
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


# -- power cuts --------------------------------------------------------------------------------------------------

POWER_MAIL = (letter(1, "use a tool, huge"), letter(2, "use a tool"))
READER = Worker("target")  # it uses a tool too: what it reads twice has an effect twice


def _power_setup(root: Path) -> None:
    agent_with(*POWER_MAIL)(root)
    mailbox.create(target(root))
    for name, data in POWER_MAIL:
        note(root, "kept", {"file": f"{name}.msg", "backwards": data.decode()[::-1]})


def _everybody(root: Path) -> None:
    Worker().run(root)
    route(root)
    READER.run(root)
    for name in mailbox.outgoing(target(root)):
        mailbox.mark_sent(target(root), name[:-4])


def _work_and_gc(root: Path) -> None:
    """Everything is answered, routed and read without a sync of its moves, and then gc comes."""
    _everybody(root)
    gc(root)


def _after_the_cut(root: Path) -> None:
    for _ in range(3):
        _work_and_gc(root)


def _nothing_twice(root: Path) -> None:
    nothing_lost(root)
    effects = Counter(effect["id"] for effect in noted(root, "effects"))
    read = [ids.reply_stem(AGENT, name) for name, _ in POWER_MAIL]
    calls = {f"call-{name[-4:]}" for name in [*(name for name, _ in POWER_MAIL), *read]}
    assert effects.keys() <= calls and set(effects.values()) <= {1}, (
        effects
    )  # none, when the cut came behind the intent
    assert not list((root / "agents").rglob("*.msg")), "something was not finished"
    assert {f"{name}.msg" for name in read} <= {name for name, _ in archived(root)}


power_cut = Workflow(Case("gc", _power_setup, _work_and_gc, _after_the_cut, _nothing_twice, nothing_lost))


@pytest.mark.timeout(1800 if FULL else 120)
def test_a_power_cut_at_any_moment_brings_nothing_back_that_gc_has_seen_end():
    with Explorer(power_cut, SEED) as explorer:
        report = explorer.explore(at_most=0 if FULL else 20)
        print(report.line())
        assert not report.failures, "\n".join([report.line(), *report.failures[:3]])
        assert report.tried and set(report.states) == set(MODELS)


@pytest.mark.full
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("site", ["retention:_put_away sync_tree/sync_file_system", "archive:keep keep/fsync"])
def test_a_sync_that_gc_leaves_out_is_found(site: str):
    with Explorer(power_cut, SEED) as explorer:
        explorer.explore(at_most=1)
        assert site in explorer.sites(), sorted(explorer.sites())
        assert explorer.without(site, at_most=2000 if FULL else 200)


def test_an_archive_that_is_torn_would_be_seen(tmp_path: Path):
    setup(tmp_path)
    gc(tmp_path)
    path = next((tmp_path / "archive").glob("*.gz"))
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises((EOFError, zlib.error)):
        nothing_lost(tmp_path)
