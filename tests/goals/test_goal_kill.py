"""kill -9 of every process of a goal in mid-run: the same digest to the byte, nothing done twice."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import time

import pytest
from goal_world import World, actors, check_once, write_documents
from support import ROOT, wait_until

from loom.spool import agents, locks, mailbox
from loom.wire import ids

DOCUMENTS = "Write a digest of these documents."
# The built-in planner as a program, whose first process waits until it is killed.
PLANNER = f"""
sys.path.insert(0, {str(ROOT)!r})
from loom.models.builtin import planner
from loom.wire.chat import ChatReply, request_from_json
place = os.environ["LOOM_HOME"] + "/../planner"
os.makedirs(place, exist_ok=True)
if not os.listdir(place):
    os.mkfifo(place + "/first")
    open(place + "/first").read()
*_, reply = planner.open("builtin").stream(request_from_json(request))
print(json.dumps({{"reply": {{"text": reply.text}}}}))
"""


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The digest of the thirty documents when nobody is killed."""
    world = World(tmp_path_factory.mktemp("undisturbed"))
    write_documents(world.work, 30, 120)
    done = world.run("--land", text=DOCUMENTS)
    assert done.status == 0, done.err
    assert world.gone()
    return (world.work / "DIGEST.md").read_bytes()


def kill_at_work(world: World, role: str, but_not: str = "") -> str:
    """kill -9 an agent of a role while it holds a claimed message that it has not answered; the agent's name."""

    def strike() -> str:
        for agent in agents.each(world.home):
            if not agent.name.startswith(f"{role}-") or agent.name == but_not:
                continue
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                for name in mailbox.in_progress(agent):
                    stem, who = ids.stem_of(name), locks.holder(agent.lock)
                    if stem is None or who is None or mailbox.find_reply(agent, agent.name, stem, 0) is not None:
                        continue
                    os.kill(who.pid, signal.SIGKILL)
                    wait_until(lambda who=who: not locks.alive(who))
                    if mailbox.find_reply(agent, agent.name, stem, 0) is None:
                        return agent.name
        return ""

    return str(wait_until(strike, 60))


def kill(world: World, name: str) -> int:
    pid = wait_until(lambda: world.pid_of(name))
    os.kill(pid, signal.SIGKILL)
    return int(pid)


def check_end(world: World, digest: bytes) -> None:
    state = world.state()
    assert (state.status, state.landing) == ("completed", "landed"), world.tell()
    assert (world.work / "DIGEST.md").read_bytes() == digest
    events = world.events()
    check_once(events)
    assert [e.type for e in events].count("goal.completed") == 1 and events[-1].type == "goal.landed"
    assert world.loom("goal", "audit", world.goal().id).status == 0
    assert not list(world.work.rglob(".loom-tmp-*"))
    assert world.gone()


@pytest.mark.timeout(240)
def test_every_process_is_killed_once_and_the_digest_is_the_same(world: World, undisturbed: bytes):
    world.config(f"model: builtin\nmodels:\n  planner: {world.program(PLANNER)}\n")
    write_documents(world.work, 30, 120)
    client = world.start("run", DOCUMENTS, "-w", world.work, "--land")
    wait_until((world.root / "planner" / "first").exists)
    killed = [kill_at_work(world, "planner")]
    world.wait_for(lambda e: e.type == "plan.accepted")
    killed.append(kill_at_work(world, "executor"))
    routers = [kill(world, "router")]
    killed.append(kill_at_work(world, "keeper"))
    killed.append(kill_at_work(world, "executor", but_not=killed[1]))
    killed.append(kill_at_work(world, "verifier"))
    supervisor = kill(world, "supervisor")
    wait_until(lambda: world.pid_of("supervisor") not in (None, supervisor))
    routers.append(kill(world, "router"))
    assert "goal.completed" not in world.types(), "it was to be killed in mid-run"
    done = world.end(client, 150)
    assert done.status == 0, done.err
    assert done.out.encode() == undisturbed
    for agent in killed:
        at_work = {e.actor["pid"] for e in world.events() if e.actor["agent"] == agent}
        assert at_work, agent
    assert len(actors(world.events(), "router")) == 3 and {p for _, p, _ in actors(world.events(), "router")} > {
        *routers
    }
    check_end(world, undisturbed)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_random_kills_of_any_process_and_of_the_client(world: World, undisturbed: bytes):
    seed = int(os.environ.get("LOOM_TEST_SEED") or time.time_ns() % 1_000_000)
    print(f"LOOM_TEST_SEED={seed}")
    draw = random.Random(seed)
    write_documents(world.work, 30, 120)
    client = world.begin("--land", text=DOCUMENTS)
    world.wait_for(lambda e: e.type == "goal.created")
    client.kill()
    client.wait()
    follower = world.start("goal", "log", "-f", world.goal().id, stdout=subprocess.DEVNULL)
    killed = 0
    while killed < 30 and follower.poll() is None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            follower.wait(draw.uniform(0.1, 0.3))  # the pace of the killing; nothing is waited for
        victims = sorted(world.processes().keys() - {follower.pid})
        if victims:
            with contextlib.suppress(ProcessLookupError):
                os.kill(draw.choice(victims), signal.SIGKILL)
                killed += 1
    if killed < 20:
        raise AssertionError(f"it ended after {killed} kills: {world.end(follower)}")
    assert world.end(follower, 240).status == 0
    check_end(world, undisturbed)
