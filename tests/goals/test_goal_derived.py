"""What is called derived may be deleted at any time: a goal goes on without it, and a finished one stays as it was."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
from pathlib import Path

import pytest
from goal_world import World, check_once, write_documents
from support import wait_until

from loom.core.retention import Policy
from loom.spool import fsck, goals, retention
from loom.spool.layout import Home

DOCUMENTS = "Write a digest of these documents."
HINTS = ("status", "pid", "model", "started_at", "stopped_at", "last_exit")


def delete_derived(home: Home) -> list[str]:
    """Everything that docs/protocol.md calls derived, for people only, or of one boot; what was there, by name."""
    gone = []
    for directory in (home.run, home.path / "index", home.ledger):
        if directory.exists():
            shutil.rmtree(directory)
            gone.append(directory.name)
    for name in goals.names(home):
        goal = home.goal(name)
        for path in (goal.state, goal.plan, goals.rest_marker(goal)):
            if path.exists():
                path.unlink()
                gone.append(path.name)
    for agent in home.agents.iterdir():
        for path in (agent / name for name in HINTS):
            if path.exists():
                path.unlink()
                gone.append(path.name)
    return gone


def kill_all(world: World) -> None:
    """kill -9 of everything that runs in this home, until nothing is left: the supervisor may have just forked."""

    def strike() -> bool:
        left = world.processes()
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for client in world.clients:
            client.poll()
        return not left

    wait_until(strike)


def faults(home: Home) -> list[str]:
    return [f"{f.path}: {f.what}" for f in fsck.check(home) if f.status != "waits"]


def check_end(world: World, digest: bytes) -> None:
    assert world.state().status == "completed", world.tell()
    assert world.loom("goal", "land", world.goal().id).status == 0
    assert (world.work / "DIGEST.md").read_bytes() == digest
    check_once(world.events())
    assert world.loom("goal", "audit", world.goal().id).status == 0


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    world = World(tmp_path_factory.mktemp("undisturbed"))
    write_documents(world.work, 3, 30)
    assert world.run("--land", text=DOCUMENTS).status == 0
    assert world.gone()
    return (world.work / "DIGEST.md").read_bytes()


@pytest.mark.timeout(240)
@pytest.mark.parametrize("mended", [False, True], ids=["as it is", "after fsck --repair"])
def test_in_the_middle_of_a_goal_all_that_is_derived_is_deleted(world: World, undisturbed: bytes, mended: bool):
    """Everybody is killed, the derived files go, and the goal comes to the same result to the byte."""
    write_documents(world.work, 3, 30)
    world.begin(text=DOCUMENTS)
    world.wait_for(lambda e: e.type == "order.dispatched" and e.data["kind"] == "execute")
    kill_all(world)
    gone = delete_derived(world.home)
    assert {"run", "plan.json", "status"} <= set(gone)
    assert "goal.completed" not in world.types(), "it was to be met in mid-run"
    if mended:
        assert world.loom("fsck", "--repair").status == 0
        assert world.loom("fsck").status == 0
    done = world.loom("goal", "log", "-f", world.goal().id)
    if done.status:  # nobody had started a supervisor since
        raise AssertionError(done.err)
    check_end(world, undisturbed)
    assert world.gone()
    if not mended:  # who was killed may have left a directory that nobody needed again: made, and not synced
        assert world.loom("fsck", "--repair").status == 0
    assert faults(world.home) == []


@pytest.mark.timeout(240)
def test_at_the_end_of_a_goal_all_that_is_derived_is_deleted(world: World, undisturbed: bytes, tmp_path: Path):
    write_documents(world.work, 3, 30)
    assert world.run(text=DOCUMENTS).status == 0
    assert world.gone()
    before = world.goal().journal.read_bytes()
    shown = world.loom("goal", "show", world.goal().id, "--json").out
    assert {"run", "state.json", "plan.json", "resting", "status"} <= set(delete_derived(world.home))
    assert world.loom("goal", "show", world.goal().id, "--json").out == shown
    check_end(world, undisturbed)
    assert world.goal().journal.read_bytes().startswith(before)
    assert world.types()[-2:] == ["order.reported", "goal.landed"]
    assert world.gone()
    assert faults(world.home) == []


@pytest.mark.timeout(240)
def test_gc_of_a_goal_that_has_ended_leaves_what_audit_and_landing_need(world: World, undisturbed: bytes):
    """Its mail is archived, blobs that only mail referred to go; the journal still has all it names."""
    write_documents(world.work, 3, 30)
    assert world.run(text=DOCUMENTS).status == 0
    assert world.gone()
    for _ in range(2):
        report = retention.collect(world.home, now_s=4_000_000_000.0)
    assert not list(world.home.agents.glob("*/inbox/.processed/*/*.msg"))
    assert not list(world.home.agents.glob("*/turns/*.ndjson")) and not report.stays
    assert faults(world.home) == []
    check_end(world, undisturbed)
    assert world.gone()


@pytest.mark.timeout(240)
def test_gc_all_the_while_a_goal_is_under_way(world: World, undisturbed: bytes):
    """Nothing need be old: only the conditions keep what the goal still needs."""
    write_documents(world.work, 3, 30)
    client = world.begin(text=DOCUMENTS)
    world.wait_for(lambda e: e.type == "plan.accepted")
    runs = 0
    while client.poll() is None:
        retention.collect(world.home, policy=Policy(messages=0, blobs=0, logs_packed=0))
        runs += 1
    assert runs > 3
    assert world.end(client).status == 0
    check_end(world, undisturbed)
    assert world.gone()
