"""Limits of an agent: each of them is exceeded by a real program; the message says so, and nobody else suffers."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support import wait_until
from world import TABLE, World, is_alive, pid_of

from loom.core import limits as core
from loom.spool import agents, locks, mailbox, wake
from loom.spool.layout import AgentDir
from loom.wire.agent import AgentLimits, AgentSpec, Restart
from loom.wire.message import Message

SERVED = {**TABLE, "agent": "loom.daemons.runner:serve_agent"}
MIB = 1 << 20
# A model program that answers, but does what a file `do` in its agent's directory says before that.
PROGRAM = f"""#!{sys.executable}
import os, sys, time
sys.stdin.read()
exec(open(os.path.join(os.environ["LOOM_AGENT_DIR"], "do")).read())
print("done", end="")
"""
HOGS: dict[str, tuple[AgentLimits, str, str]] = {
    "memory": (
        AgentLimits(memory=96 * MIB),
        "x = b'x' * (300 << 20); time.sleep(600)",
        "limit: memory 96 MiB exceeded",
    ),
    "memory of many": (
        AgentLimits(memory=96 * MIB),
        "for _ in range(9):\n    if os.fork() == 0:\n        break\nx = b'x' * (16 << 20); time.sleep(600)",
        "limit: memory 96 MiB exceeded",
    ),
    "cpu": (AgentLimits(cpu_s=0.5), "while True: pass", "limit: cpu 0.5 s exceeded"),
    "files": (
        AgentLimits(files=64),
        "try:\n    while True: os.dup(0)\nexcept OSError: time.sleep(600)",
        "limit: files 64 exceeded",
    ),
    "processes": (
        AgentLimits(processes=5),
        "for _ in range(20):\n    if os.fork() == 0: os.setsid(); time.sleep(600)\ntime.sleep(600)",
        "limit: processes 5 exceeded",
    ),
    "disk": (
        AgentLimits(disk=2 * MIB),
        "open(os.environ['LOOM_AGENT_DIR'] + '/much', 'wb').write(b'x' * (4 << 20)); time.sleep(600)",
        "limit: disk 2 MiB exceeded",
    ),
}


def _agent(world: World, name: str, limits: AgentLimits, do: str) -> AgentDir:
    program = world.home.path.parent / "program"
    program.write_text(PROGRAM)
    program.chmod(0o755)
    more: dict[str, Any] = {"limits": limits, "restart": Restart(base_s=0)}
    agent = world.home.agent(name)
    agent.path.mkdir(mode=0o700, exist_ok=True)
    (agent.path / "do").write_text(do)
    return agents.create(world.home, AgentSpec(name=name, model=f"exec/{program}", **more), "", "up")


def _ask(world: World, agent: AgentDir) -> str:
    stem = world.send(agent)
    wake.ring_agent(world.home.wake, agent.name)
    return stem


def _reply(agent: AgentDir, stem: str) -> Message:
    reply = wait_until(lambda: mailbox.find_reply(agent, agent.name, stem, 0), 30)
    assert isinstance(reply, Message)
    return reply


@pytest.mark.parametrize("kind", HOGS)
def test_who_exceeds_a_limit_is_ended_and_the_message_says_why(world: World, kind: str) -> None:
    limits, do, words = HOGS[kind]
    agent, neighbour = _agent(world, "hog", limits, do), _agent(world, "good", limits, "")
    world.start(table=SERVED)
    first, beside = pid_of(agent), pid_of(neighbour)
    stem = _ask(world, agent)
    reply = _reply(agent, stem)
    assert (reply.error, reply.body) == (True, words)
    assert reply.data is not None and reply.data["error_type"] == "limit"
    wait_until(lambda: agent.error_of(stem).exists())
    wait_until(lambda: not is_alive(first))
    # Nothing counts against it: the next message is worked on at once, by the next incarnation.
    (agent.path / "do").write_text("")
    (agent.path / "much").unlink(missing_ok=True)
    assert _reply(agent, _ask(world, agent)).body == "done"
    assert _reply(neighbour, _ask(world, neighbour)).body == "done" and pid_of(neighbour) == beside
    assert agents.read_want(agent) == "up"


@pytest.mark.skipif(os.geteuid() != 0, reason="chattr +i needs root")
def test_a_message_that_could_not_be_failed_makes_nobody_exempt_from_the_limit(world: World) -> None:
    """The disk refuses the failure reply; when it takes it again, the limit holds for this message and the next."""
    limits, do, words = HOGS["memory"]
    agent = _agent(world, "hog", limits, do)
    if subprocess.run(["chattr", "+i", str(agent.outbox)], capture_output=True).returncode:
        pytest.skip("this file system has no immutable files")
    try:
        world.start(table=SERVED)
        first = pid_of(agent)
        stem = _ask(world, agent)
        wait_until(lambda: not is_alive(first))
        wait_until(lambda: (who := locks.holder(agent.lock)) is not None and who.pid != first)
    finally:
        subprocess.run(["chattr", "-i", str(agent.outbox)], check=True)
    assert _reply(agent, stem).error
    assert _reply(agent, _ask(world, agent)).body == words


def test_one_that_keeps_within_its_limits_is_left_alone(world: World) -> None:
    limits = AgentLimits(memory=256 * MIB, cpu_s=20, files=64, processes=8, disk=64 * MIB)
    agent = _agent(world, "a", limits, f"x = b'x' * (20 << 20); sum(range(3_000_000)); time.sleep({4 * core.BUSY_S})")
    world.start(table=SERVED)
    pid = pid_of(agent)
    for _ in range(3):
        assert _reply(agent, _ask(world, agent)).body == "done"
    assert pid_of(agent) == pid


def test_processor_time_is_counted_for_each_message_anew(world: World) -> None:
    spin = "end = time.process_time() + 0.5\nwhile time.process_time() < end: pass"
    agent = _agent(world, "a", AgentLimits(cpu_s=1.2), spin)
    world.start(table=SERVED)
    pid = pid_of(agent)
    for _ in range(4):
        assert _reply(agent, _ask(world, agent)).body == "done"
    assert pid_of(agent) == pid


def test_what_an_adopted_runner_has_used_before_is_not_counted(world: World) -> None:
    spin = "end = time.process_time() + 0.6\nwhile time.process_time() < end: pass"
    agent = _agent(world, "a", AgentLimits(cpu_s=1.0), spin)
    world.start(table=SERVED)
    pid = pid_of(agent)
    for _ in range(2):
        assert _reply(agent, _ask(world, agent)).body == "done"
    world.supervisors[-1].kill()
    world.supervisors[-1].wait(30)
    world.start(table=SERVED)
    assert _reply(agent, _ask(world, agent)).body == "done"
    assert pid_of(agent) == pid


def test_a_full_directory_ends_nobody_who_has_nothing_to_do(world: World, tmp_path: Path) -> None:
    agent = _agent(world, "a", AgentLimits(disk=1 * MIB), "")
    (agent.path / "much").write_bytes(b"x" * 2 * MIB)
    world.start(table=SERVED)
    pid = pid_of(agent)
    neighbour = _agent(world, "b", AgentLimits(), "time.sleep(1.5)")
    assert _reply(neighbour, _ask(world, neighbour)).body == "done"
    assert pid_of(agent) == pid
