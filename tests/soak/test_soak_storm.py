"""Every kind of process is killed at random: nothing is left without an owner, nobody else is hit, nothing is lost."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import results
from soak_storm import ROUTES, Storm, StormOracle, kinds
from support import scratch, wait_until
from test_soak_kills import promised

from loom.proc import enclosure, tree
from loom.spool import agents

SEED = int(os.environ.get("LOOM_SEED") or random.SystemRandom().randrange(1 << 31))
needs_namespaces = pytest.mark.skipif(not enclosure.available(), reason="no pid namespaces on this machine")


def storm(suite: str, kills: int, rate: float, deadline_s: float) -> Storm:
    place = scratch()
    made = Storm(place, SEED, kills, rate)
    try:
        made.run(deadline_s)
        assert [box.name for box in made.boxes() if agents.read_want(box) == "dead"] == []
        report = StormOracle(made.home, made.boxes(), ROUTES).check(promised(made))
        stood = made.signalled()
        reloads = made.reloads()
    except BaseException:
        print(f"seed {SEED}")
        made.clean_up()
        raise
    finally:
        shutil.rmtree(place, ignore_errors=True)
    results.note(
        suite,
        SEED,
        kills=made.counts.kills.total(),
        killed=kinds(made.counts.kills),
        kills_a_second=kills / made.counts.seconds,
        reloads=reloads,
        messages=report.messages,
        accepted=report.promised,
        failed=kinds(report.failed) or "none",
        turns_resumed=report.resumed,
        deaths=report.deaths,
        longest_without_owner_s=round(made.longest_s, 1),
        **stood,
        signals_to_bystanders=0,
        seconds=round(made.counts.seconds + made.counts.drain_s),
    )
    return made


@needs_namespaces
def test_whoever_is_killed_nothing_is_left_and_nobody_else_is_hit():
    made = storm("storm in part", 40, 4.0, 90)
    assert len(made.counts.kills) >= 5


@needs_namespaces
@pytest.mark.full
@pytest.mark.timeout(1500)
def test_storm():
    made = storm("storm", 1000, 4.0, 1400)
    assert min(made.counts.kills[kind] for kind in ("supervisor", "forked runner", "exec'ed runner", "pipe")) >= 20
    assert min(made.counts.kills[kind] for kind in ("program", "stray", "init")) >= 20


# -- what it looks with ------------------------------------------------------------------------------------------


def test_who_has_no_owner_is_found(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("soak_storm.GONE_S", 0.3)
    place = scratch()
    made = Storm(place, SEED, 0, 1.0)
    try:
        env = {"PATH": os.environ["PATH"], "LOOM_HOME": str(made.home.path)}
        left = subprocess.run(
            ["setsid", "--fork", "sh", "-c", "echo $$; exec sleep 60 >&-"], env=env, stdout=subprocess.PIPE
        )
        pid = int(left.stdout)
        with pytest.raises(AssertionError, match=f"nobody's for .*: {pid} "):
            wait_until(lambda: made._look_for_nobodys())
    finally:
        made.clean_up()
        shutil.rmtree(place, ignore_errors=True)
    assert tree.look_at(pid) is None or tree.look_at(pid).state == "Z"  # type: ignore[union-attr]


def test_a_bystander_that_is_hit_says_so(tmp_path: Path):
    log = tmp_path / "log"
    host = Path(__file__).parent / "soak_bystanders.py"
    child = subprocess.Popen(
        [sys.executable, str(host), str(log)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    children = Path(f"/proc/{child.pid}/task/{child.pid}/children")
    pids = wait_until(lambda: len(found := children.read_text().split()) == 8 and [int(pid) for pid in found])
    wait_until(lambda: all(os.getsid(pid) == pid for pid in pids))
    os.kill(pids[0], signal.SIGTERM)
    wait_until(lambda: log.read_text() == f"{pids[0]} got 15 from {os.getpid()}\n")
    os.kill(pids[1], signal.SIGKILL)
    os.kill(pids[2], signal.SIGSTOP)
    wait_until(lambda: [p.state for pid in pids[1:3] if (p := tree.look_at(pid)) is not None] == ["Z", "T"])
    said, _ = child.communicate(timeout=30)
    assert f'"{pids[1]}: status 0x9"' in said and f'"{pids[2]}: status 0x137f"' in said
