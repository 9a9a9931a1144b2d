"""`scale: to-zero`: a directory without a process until mail comes, and again after an idle time; no mail is lost."""

from __future__ import annotations

import json
import random
import subprocess
import time
from typing import Any

import pytest
from support import wait_until
from world import TABLE, World, is_alive, status

from loom.core.supervision import Limits
from loom.daemons.supervisor import Settings
from loom.spool import agents, locks, mailbox, wake
from loom.spool.layout import AgentDir
from loom.wire.agent import Restart

SERVED = {**TABLE, "agent": "loom.daemons.runner:serve_agent"}


def _sleeper(world: World, name: str = "a", *, idle_s: float | None = 0.2, **more: Any) -> AgentDir:
    return world.agent(name, runner="agent", idle_s=idle_s, scale="to-zero", restart=Restart(), **more)


def _ask(world: World, agent: AgentDir) -> str:
    stem = world.send(agent)
    wake.ring_agent(world.home.wake, agent.name)
    return stem


def _left(agent: AgentDir, before: str = "") -> str:
    """Waits until a process of the agent has left that is not `before`; which: PID.START.

    By what it leaves behind: who looks for it while it lives may come too late.
    """

    def last() -> str:
        fields = agents.read_hint(agent.last_exit).split()
        return fields[1] if len(fields) == 3 and fields[1] != before else ""

    return str(wait_until(last))


def _is_answered(agent: AgentDir, stem: str) -> bool:
    return mailbox.find_reply(agent, agent.name, stem, 0) is not None and agent.processed(stem).exists()


def test_it_has_a_process_while_there_is_something_to_do_and_for_the_idle_time_after(world: World) -> None:
    agent = _sleeper(world)
    world.start(table=SERVED)
    status(agent, "idle")
    assert not locks.is_held(agent.lock)
    epoch = ""
    for _ in range(2):
        stem = _ask(world, agent)
        wait_until(lambda stem=stem: _is_answered(agent, stem))
        epoch = _left(agent, epoch)
        wait_until(lambda epoch=epoch: not is_alive(int(epoch.partition(".")[0])))
        wait_until(lambda: not agent.pid.exists())


def test_the_setting_says_how_long_where_the_agent_does_not(world: World) -> None:
    world.home.config.write_text("scale:\n  idle: 0.1\n")
    agent = _sleeper(world, idle_s=None)
    world.start(table=SERVED)
    stem = _ask(world, agent)
    wait_until(lambda: _is_answered(agent, stem))
    pid = int(_left(agent).partition(".")[0])
    wait_until(lambda: not is_alive(pid))


def test_mail_that_comes_while_it_leaves_is_answered(world: World) -> None:
    """Its senders only move files in, nobody sweeps, and the idle time is about that between two messages."""
    agent = _sleeper(world, idle_s=0.01)
    world.start(table=SERVED, sweep_s=1000.0)
    chance = random.Random(7)
    for _ in range(60):
        stem = world.send(agent)
        wait_until(lambda stem=stem: _is_answered(agent, stem), 20)
        time.sleep(chance.random() * 0.03)
    lines = [json.loads(line) for log in agent.logs.glob("*.ndjson") for line in log.read_bytes().splitlines()]
    incarnations = {line["pid"] for line in lines if line["event"] == "claimed"}
    assert len(incarnations) > 3, "it never left: nothing was tried"


def test_an_agent_that_is_wanted_up_keeps_its_supervisor_though_it_sleeps(world: World) -> None:
    agent = _sleeper(world)
    other = world.agent("b", want="demand")
    settings = Settings(Limits(), idle_s=0.2)
    child = world.start(table=SERVED, on_demand=True, idle_s=settings.idle_s)
    stem = _ask(world, agent)
    wait_until(lambda: _is_answered(agent, stem))
    wait_until(lambda: not locks.is_held(agent.lock))
    with pytest.raises(subprocess.TimeoutExpired):
        child.wait(4 * settings.idle_s)  # by far long enough to leave
    agents.write_want(agent, "down")
    assert child.wait(30) == 0 and agents.read_want(other) == "demand"


def test_down_is_down_whatever_the_scale(world: World) -> None:
    agent = _sleeper(world, want="down")
    late = _sleeper(world, "b")
    world.start(table=SERVED)
    world.send(agent)
    stem = world.send(late)
    wait_until(lambda: _is_answered(late, stem))
    assert agents.has_mail(agent) and not locks.is_held(agent.lock)
