"""Everything is killed, all the time, and nothing is lost or done twice."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import results
from soak_ground import on_disk
from soak_oracle import Oracle, Report, calls_are_bounded
from soak_world import ROUTES, TELLER, World
from support import processes_of, scratch, wait_until

from loom.spool import agents, crashes, ndjson
from loom.spool.layout import AgentDir
from loom.wire.agent import Restart

SEED = int(os.environ.get("LOOM_SEED") or random.SystemRandom().randrange(1 << 31))


@contextmanager
def world(place: Path, messages: int, **how: Any) -> Iterator[World]:
    """A world in `place`, which is removed afterwards, and nothing of which may be left running."""
    made = World(place, SEED, messages, **how)
    try:
        yield made
    finally:
        for child in [*made.senders.values(), made.command]:
            if child is not None and child.poll() is None:
                child.kill()
                child.wait()
        try:
            wait_until(lambda: not processes_of(made.home.path), 10)
        except AssertionError:
            left = processes_of(made.home.path)
            for pid in left:
                os.kill(pid, signal.SIGKILL)
            raise AssertionError(f"processes are left: {left}") from None
        finally:
            shutil.rmtree(place, ignore_errors=True)


def promised(made: World) -> dict[str, list[str]]:
    """What clients were told is accepted, by agent: whole lines only."""
    found: dict[str, list[str]] = {}
    for sender in made.senders:
        for line in ndjson.whole_lines(made.book(sender).read_bytes())[0]:
            agent, stem = line.decode().split()
            found.setdefault(agent, []).append(stem)
    for command in range(made.commands_run):
        agent = made.told[command]
        found.setdefault(agent, []).extend(ndjson.whole_lines(made.said(command).read_bytes())[0])  # type: ignore[arg-type]
    return {agent: [s if isinstance(s, str) else s.decode() for s in stems] for agent, stems in found.items()}


def soak(made: World, deadline_s: float) -> Report:
    made.run(deadline_s)
    assert [box.name for box in made.boxes() if agents.read_want(box) == "dead"] == []
    report = Oracle(made.home, made.boxes(), ROUTES).check(promised(made))
    kills = made.counts.kills
    assert report.failed["work_failed"] <= kills["model"] + kills["gone"]
    answered = len(list((made.home.agent(TELLER).inbox / ".processed").glob("*/*.msg")))
    calls_are_bounded(made.calls, answered, sum(kills[kind] for kind in ("agent", "model", "gone")))
    return report


def note(suite: str, made: World, report: Report) -> None:
    """The figures of a run. Rates are of the time under kills and of the coming to rest together."""
    counts = made.counts
    both_s = counts.seconds + counts.drain_s
    results.note(
        suite,
        SEED,
        messages=report.messages,
        accepted=report.promised,
        routed=report.routed,
        messages_a_second=round(report.messages / both_s),
        kills=sum(counts.kills.values()),
        kills_a_second=sum(counts.kills.values()) / counts.seconds,
        killed=_words(counts.kills),
        started_by_hand=_words(counts.starts),
        turns_resumed=report.resumed,
        deaths=report.deaths,
        failed=_words(report.failed),
        failed_without_record=report.unrecorded,
        torn=report.torn,
        litter=report.litter,
        seconds=round(both_s),
    )


def _words(counts: Counter[str]) -> str:
    return " + ".join(f"{count:,} {kind}" for kind, count in sorted(counts.items())) or "none"


def test_under_kills_every_accepted_message_is_answered_once():
    with world(scratch(), 1200, rate=8.0, waiting=20, least_kills=60) as made:
        report = soak(made, 60)
        note("soak in part", made, report)
        assert report.promised >= 1100


@pytest.mark.full
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("ground, messages", [("memory", 100_000), ("disk", 20_000)])
def test_soak(ground: str, messages: int):
    place = scratch() if ground == "memory" else on_disk()
    with world(place, messages) as made:
        report = soak(made, 1500)
        note(f"soak on {ground}", made, report)
        assert report.failed["poison"] <= messages // 1000


@pytest.mark.full
@pytest.mark.timeout(900)
def test_what_makes_progress_between_its_deaths_is_not_made_to_wait_longer_and_longer():
    """The supervisor lives on, so that it remembers; restarts are as they are without any setting."""
    # Enough work for some two hundred kills: who is killed when there is none has made no progress.
    with world(scratch(), 50_000, rate=6.0, restart=Restart(), spared=frozenset({"supervisor"})) as made:
        report = soak(made, 600)
        boxes = [*made.boxes(), made.home.agent("router")]
        counts = {box.name: [_restart_count(box, name) for name in crashes.names(box)] for box in boxes}
        note("soak with a supervisor that is spared", made, report)
        print({name: (len(found), max(found, default=0)) for name, found in counts.items()})
        deaths = sorted(count for found in counts.values() for count in found)
        assert len(deaths) >= 30
        # Killed again before its first message it does wait longer; half of the deaths would not come so.
        assert deaths[len(deaths) // 2] == 1
        assert deaths[-1] < 6, "more than half a minute of waiting for somebody who works"


def _restart_count(box: AgentDir, name: str) -> int:
    return int(json.loads((box.crashes / name).read_bytes())["restart_count"])
