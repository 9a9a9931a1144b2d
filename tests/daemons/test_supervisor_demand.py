"""Agents on demand, supervisors on demand."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest
from support import ROOT, processes_of, wait_until
from world import READY, World, is_alive, pid_of, records, starts, status

from loom.cli import ensure
from loom.spool import agents, fs, locks
from loom.wire import ids
from loom.wire.agent import Restart
from loom.wire.errors import Config

# Works on everything that lies in its inbox, then leaves: dormant.
WORKS = (
    f"echo $$ >>$1/starts\n{READY}mkdir -p $1/inbox/.processed/today\n"
    "for m in $1/inbox/*.msg; do test -e $m && mv $m $1/inbox/.processed/today/; done; exit 0\n"
)
ENSURE = """
import os, sys
from pathlib import Path
from loom.cli.ensure import ensure_supervisor
from loom.spool.home import open_home
ensure_supervisor(open_home(Path(os.environ["LOOM_HOME"])))
"""


def _client(world: World, **env: str) -> subprocess.Popen[bytes]:
    """A process as the command line is one, which makes sure that there is a supervisor."""
    base = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "LOOM_HOME": str(world.home.path)}
    return subprocess.Popen([sys.executable, "-c", ENSURE], env={**base, **env})


def test_mail_starts_a_dormant_agent_and_no_mail_leaves_it_alone(world: World) -> None:
    agent = world.agent("a", WORKS, want="demand")
    world.start()
    status(agent, "idle")
    assert starts(agent) == []
    for count in (1, 2, 3):
        world.send(agent)
        wait_until(lambda: not agents.has_mail(agent))
        status(agent, "idle")
        wait_until(lambda: not agent.pid.exists())
        assert len(starts(agent)) == count
    assert records(agent) == []


def test_a_message_moved_in_starts_it_too(world: World) -> None:
    agent = world.agent("a", WORKS, want="demand")
    elsewhere = world.agent("b", want="down")
    world.start()
    stem = world.send(elsewhere)
    (elsewhere.inbox / f"{stem}.msg").rename(agent.inbox / f"{stem}.msg")
    wait_until(lambda: starts(agent))


def test_mail_that_was_there_before_the_supervisor_starts_it(world: World) -> None:
    waiting, claimed = world.agent("a", WORKS, want="demand"), world.agent("b", WORKS, want="demand")
    world.send(waiting)
    fs.move(claimed.inbox / f"{(stem := world.send(claimed))}.msg", claimed.in_progress / f"{stem}.msg")
    world.start()
    wait_until(lambda: starts(waiting) and starts(claimed))


def test_mail_that_it_will_not_take_does_not_make_it_spin(world: World) -> None:
    script = f"echo $$ >>$1/starts\n{READY}exit 0\n"
    agent = world.agent("a", script, want="demand", restart=Restart(base_s=60))
    world.send(agent)
    world.start()
    # Mail may come while a runner leaves, so the first start after an exit is at once; from then on it waits.
    # Its end must have been seen: mail for one that still runs is that one's.
    wait_until(lambda: len(starts(agent)) == 2 and f" {starts(agent)[1]}." in agents.read_hint(agent.last_exit))
    assert len(starts(agent)) == 2
    world.send(agent)  # but a new message is worth another try
    wait_until(lambda: len(starts(agent)) == 3)


def test_a_message_moved_in_rings_a_runner_that_waits(world: World) -> None:
    agent = world.agent("a", runner="forked-listener")
    world.start(table={"router": "daemon_runners:serve_quiet", "forked-listener": "daemon_runners:serve_listener"})
    pid_of(agent)
    other = world.agent("b", want="down")
    stem = world.send(other)
    (other.inbox / f"{stem}.msg").rename(agent.inbox / f"{stem}.msg")
    wait_until(lambda: starts(agent) == ["rung"])


@pytest.mark.slow
def test_a_hundred_at_once_start_one_supervisor(world: World) -> None:
    agent = world.agent("a", f"echo $$ >>$1/starts\n{READY}exec sleep 1000")
    world.home.supervisor_log.parent.mkdir(exist_ok=True)
    clients = [_client(world, SOME_API_KEY="secret", LOOM_SUPERVISOR_IDLE_S="60") for _ in range(100)]
    assert [client.wait(60) for client in clients] == [0] * 100
    who = ensure.supervisor_of(world.home)
    assert who is not None
    wait_until(lambda: starts(agent))  # it is forked when the supervisor is ready, and may have done nothing yet
    assert len(starts(agent)) == 1
    assert len([p for p, line in processes_of(world.home.path).items() if "supervisor run" in line and _parent(p) == 1])
    status(agent, "idle")
    for pid in processes_of(world.home.path):
        assert b"SOME_API_KEY" not in open(f"/proc/{pid}/environ", "rb").read()  # noqa: PTH123, SIM115
    assert ensure.stop_supervisor(world.home)
    assert not ensure.stop_supervisor(world.home)


def _parent(pid: int) -> int:
    from loom.proc.tree import look_at

    proc = look_at(pid)
    return proc.ppid if proc else 0


def test_it_leaves_when_nobody_needs_it_and_comes_back_when_somebody_does(world: World) -> None:
    agent = world.agent("a", WORKS, want="demand")
    assert _client(world, LOOM_SUPERVISOR_IDLE_S="0.1").wait(30) == 0
    wait_until(lambda: not locks.is_held(world.home.supervisor_lock))
    wait_until(lambda: processes_of(world.home.path) == {})
    assert not locks.is_held(world.home.start_lock)
    world.send(agent)
    assert _client(world, LOOM_SUPERVISOR_IDLE_S="0.1").wait(30) == 0
    wait_until(lambda: starts(agent))
    wait_until(lambda: not locks.is_held(world.home.supervisor_lock))


@pytest.mark.parametrize("need", ["agent", "mail", "goal"])
def test_it_stays_while_it_is_needed(world: World, need: str) -> None:
    goal = world.home.goals / "20260101-something-abcd"
    agent = world.agent("a", f"{READY}exec sleep 1000", want="up" if need == "agent" else "demand")
    if need == "mail":
        world.send(agent)
    if need == "goal":
        goal.mkdir()
        (goal / "goal.md").touch()
    child = world.start(on_demand=True, idle_s=0.05, sweep_s=3600)
    child.send_signal(signal.SIGHUP)
    with pytest.raises(subprocess.TimeoutExpired):
        child.wait(0.5)  # ten times as long as it would stay without
    match need:
        case "agent":
            agents.write_want(agent, "down")
        case "mail":
            for path in agent.inbox.glob("*.msg"):
                path.unlink()
        case _:
            (goal / "resting").touch()
    assert child.wait(30) == 0


def test_not_on_demand_it_stays(world: World) -> None:
    child = world.start(on_demand=False, idle_s=0.01)
    with pytest.raises(subprocess.TimeoutExpired):
        child.wait(0.3)
    assert child.poll() is None


def test_a_supervisor_that_refuses_says_why(world: World) -> None:
    fs.replace(world.home.version, b"99\n")
    with pytest.raises(Config, match="version 99"):
        ensure.ensure_supervisor(world.home)
    fs.replace(world.home.version, b"1\n")


def test_the_doorbell_makes_it_look(world: World) -> None:
    """For a home whose events are lost: the sender found no reader and rang the supervisor."""
    agent = world.agent("a", f"echo $$ >>$1/starts\n{READY}exec sleep 1000", want="down")
    world.start(sweep_s=3600)
    status(agent, "stopped")
    agents.write_want(agent, "up")
    ensure.ensure_supervisor(world.home)
    wait_until(lambda: starts(agent))
    assert is_alive(int(starts(agent)[0]))
    assert ids.is_agent("a")
