"""gc killed, torn and failed at every change it makes, and met there by the agents whose mail it looks at.

Its clock says that everything is old, so only the conditions protect what may not go: a reply that its target has not
read, one whose request came back after a power cut, a message whose name came back into an outbox, what has failed.
"""

from __future__ import annotations

import contextlib
import gzip
import zlib
from collections import Counter
from pathlib import Path

import pytest
import results
from crash_cases import AGENT, Worker, agent_with, letter, note, noted, tidy
from harness import ERRORS, FULL, Case, explore
from power import MODELS, Explorer, Workflow

from loom.spool import blobs, fs, locks, mailbox, retention
from loom.spool.layout import AgentDir, Home
from loom.wire import ids
from loom.wire.errors import TryLater
from loom.wire.jsontext import loads_object

SEED = 20261121
FAR_S = 4_000_000_000.0  # everything is old
DONE, UNROUTED, UNREAD, CAME_BACK, FAILED, RESENT = range(1, 7)
BODIES = {
    DONE: "use a tool, huge",
    UNROUTED: "two",
    UNREAD: "three",
    CAME_BACK: "use a tool",
    FAILED: "fails once",
    RESENT: "six",
}
MAIL = {number: letter(number, body) for number, body in BODIES.items()}
REPLY = {number: ids.reply_stem(AGENT, name) for number, (name, _) in MAIL.items()}


def sender(root: Path) -> AgentDir:
    return Home(root).agent(AGENT)


def target(root: Path) -> AgentDir:
    return Home(root).agent("target")


def route(root: Path, *but_not: str) -> None:
    """What the router does with the worker's outbox."""
    held = locks.acquire(root / "router.lock")
    if held is None:
        return
    with held:
        box = sender(root)
        for name in mailbox.outgoing(box):
            if name[:-4] not in but_not:
                with contextlib.suppress(FileNotFoundError):
                    mailbox.deliver(target(root), name[:-4], mailbox.read_message(box.outbox / name))
                    mailbox.mark_sent(box, name[:-4])


def read(root: Path) -> None:
    """What the target does with its mail, after a look: what comes once more behind its back it reads twice."""
    box = target(root)
    held = locks.acquire(box.lock)
    if held is None:
        return
    with held:
        for name in mailbox.in_progress(box):
            if {"stem": name[:-4]} not in noted(root, "received"):  # killed before or after it was noted
                note(root, "received", {"stem": name[:-4]})
            mailbox.acknowledge(box, name[:-4])
        inbox = mailbox.Inbox(box)
        while (claimed := inbox.claim()) is not None:
            if mailbox.look(box, box.name, claimed.stem, 0)[0] == "work":
                note(root, "received", {"stem": claimed.stem})
            mailbox.acknowledge(box, claimed.stem)


def setup(root: Path) -> None:
    agent_with(*MAIL.values())(root)
    mailbox.create(target(root))
    Worker().run(root)
    box = sender(root)
    route(root, REPLY[UNROUTED], REPLY[UNREAD])
    read(root)
    route(root, REPLY[UNROUTED])
    came_back = f"{MAIL[CAME_BACK][0]}.msg"
    fs.move(box.processed(came_back[:-4]), box.in_progress / came_back)
    fs.move(box.sent(REPLY[RESENT]), box.outbox / f"{REPLY[RESENT]}.msg")
    for name in (".tmp/litter", "agents/worker/inbox/.tmp/litter", "agents/worker/logs/2026-01-01.ndjson"):
        fs.ensure_dir((root / name).parent)
        (root / name).write_bytes(b'{"half":true}\n')
    blobs.put(root / "blobs", b"nobody's")
    for path in [*root.rglob("*.msg"), *(root / "agents").rglob("turns/*.ndjson")]:
        text = path.read_bytes().decode()[::-1]  # backwards: or this book, too, would keep the blobs it names
        note(root, "kept", {"file": path.name, "backwards": text})


def gc(root: Path) -> None:
    with contextlib.suppress(TryLater):
        retention.collect(Home(root), now_s=FAR_S)


def everybody(root: Path) -> None:
    """All that go on working while gc is at work."""
    Worker().run(root)
    route(root)
    read(root)


def recover(root: Path) -> None:
    everybody(root)
    gc(root)
    everybody(root)
    gc(root)


def archived(root: Path) -> list[tuple[str, str]]:
    """(file, bytes) of every line of every archive; a torn one is an error."""
    found = []
    for path in (root / "archive").glob("*.gz"):
        for line in gzip.decompress(path.read_bytes()).splitlines():
            record = loads_object(line)
            assert not record.get("more")
            found.append((Path(record["file"]).name, record["text"]))
    return found


def nothing_lost(root: Path) -> None:
    """True at every moment: what was there lies in a mailbox, or can be read in the archive."""
    tidy(root)
    there = {(p.name, p.read_bytes().decode()) for p in (root / "agents").rglob("*") if p.is_file()}
    there |= set(archived(root))
    for kept in noted(root, "kept"):
        name, text = kept["file"], kept["backwards"][::-1]
        assert (name, text) in there or any(n == name and t.startswith(text) for n, t in there), f"lost: {name}"


def once_and_no_more(root: Path) -> None:
    nothing_lost(root)
    asked = Counter((a["stem"], a["attempt"], a["step"]) for a in noted(root, "asked"))
    assert set(asked.values()) == {1}, f"asked twice: {asked}"
    assert all(count == 1 for count in Counter(e["id"] for e in noted(root, "effects")).values())
    received = Counter(r["stem"] for r in noted(root, "received"))
    assert received == dict.fromkeys(REPLY.values(), 1), f"received: {received}"
    left = {p.name for p in (root / "agents").rglob("*.msg")}
    assert left == {f"{MAIL[FAILED][0]}.msg", f"{REPLY[FAILED]}.msg"}, left
    assert mailbox.attempts(sender(root), MAIL[FAILED][0]) == 1
    assert [p.name[:40] for p in sender(root).turns.glob("*.ndjson")] == [MAIL[FAILED][0]]
    assert not [p for p in (root / "blobs").glob("*/*") if p.is_file()], "a blob that nobody refers to is left"
    lines = Counter(name for name, _ in archived(root))
    assert lines.keys() >= {f"{name}.msg" for n, (name, _) in MAIL.items() if n != FAILED}


case = Case("gc", setup, gc, recover, once_and_no_more, nothing_lost, rival=everybody)


def test_killed_or_met_at_any_call_nothing_is_lost_or_done_twice():
    report = explore(case, seed=SEED)
    print(report.line())
    assert not report.failures, "\n".join([report.line(), *report.failures[:5]])
    assert report.counts["before"] == report.counts["after"] == report.counts["rival"] == report.calls > 30


def test_when_a_call_fails_everything_is_whole():
    report = explore(case, kills=False, errors=ERRORS, at_most=0 if FULL else 30, seed=SEED)
    print(report.line())
    assert not report.failures, "\n".join([report.line(), *report.failures[:5]])
    assert report.counts["once"] and report.counts["forever"]


def met(work: Case, name: str) -> Case:
    """The agents' own work, and gc comes at each of their changes."""
    return Case(name, work.setup, everybody, recover, once_and_no_more, nothing_lost, rival=gc)


def test_the_agents_are_killed_or_met_by_gc_at_any_of_their_calls():
    report = explore(met(case, "agents met by gc"), seed=SEED)
    print(report.line())
    assert not report.failures, "\n".join([report.line(), *report.failures[:5]])
    assert report.counts["rival"] == report.calls > 0


@pytest.mark.full
@pytest.mark.timeout(3600)
def test_every_error_at_every_call_and_many_second_kills():
    trials = 0
    for work in (case, met(case, "agents met by gc")):
        report = explore(work, errors=ERRORS, double=16, seed=SEED)
        print(report.line())
        trials += sum(report.counts.values())
        assert not report.failures, "\n".join([report.line(), *report.failures[:5]])
    results.note("crash gc", SEED, trials=trials, failures=0)


BLIND = {
    "processed": (retention.core, "keeps_processed", lambda **facts: ""),
    "sent": (retention.core, "keeps_sent", lambda **facts: ""),
    "belongings": (retention.Mail, "_is_retained", lambda self, box, stem: False),
}


@pytest.mark.parametrize("condition", BLIND)
def test_without_one_of_its_conditions_something_is_done_twice_or_lost(condition: str, monkeypatch: pytest.MonkeyPatch):
    """The oracles see what the conditions are for."""
    monkeypatch.setattr(*BLIND[condition])
    assert explore(case, at_most=4, seed=SEED, until_failure=True).failures


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


def test_a_power_cut_at_any_moment_brings_nothing_back_that_gc_has_seen_end():
    with Explorer(power_cut, SEED) as explorer:
        report = explorer.explore(at_most=3000 if FULL else 20)
        print(report.line())
        assert not report.failures, "\n".join([report.line(), *report.failures[:3]])
        assert report.tried and set(report.states) == set(MODELS)


@pytest.mark.full
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
