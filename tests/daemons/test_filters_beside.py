"""Filters with the name of an agent that runs: what becomes of the agent does nothing to them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from support import ROOT, wait_until
from world import AT_ONCE, World, pid_of

from loom.daemons import programs
from loom.spool import agents, locks, wake
from loom.wire.agent import AgentSpec

# A model program that says that it has begun, and answers when it may.
PROGRAM = f"""#!{sys.executable}
import json, pathlib, sys, time
text = json.load(sys.stdin)["messages"][-1]["text"]
here = pathlib.Path(__file__).parent
(here / (text + ".begun")).touch()
while not (here / (text + ".go")).exists():
    time.sleep(0.01)
print("did " + text, end="")
"""


@pytest.mark.parametrize("end", ["its runner is killed", "a supervisor that adopted it stops it"])
def test_the_end_of_an_agent_ends_no_program_of_a_filter_of_its_name(world: World, tmp_path: Path, end: str) -> None:
    program = tmp_path / "program"
    program.write_text(PROGRAM)
    program.chmod(0o755)
    agent = agents.create(world.home, AgentSpec(name="w", model=f"exec/{program}", restart=AT_ONCE), "", "up")
    supervisor = world.start(table=programs.RUNNERS)
    pid = pid_of(agent)
    world.send(agent, "mail")
    wake.ring_agent(world.home.wake, "w")
    wait_until((tmp_path / "mail.begun").exists)
    env = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "LOOM_HOME": str(world.home.path), "LOOM_WARM": "0"}
    command = [sys.executable, "-m", "loom", "agent", "start", "w", "--prompt", "filter"]
    with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL) as filter_:
        wait_until((tmp_path / "filter.begun").exists)
        if end == "its runner is killed":
            os.kill(pid, signal.SIGKILL)
            wait_until(lambda: (who := locks.holder(agent.lock)) is not None and who.pid != pid)
        else:
            supervisor.kill()
            supervisor.wait(30)
            world.start(table=programs.RUNNERS)
            agents.write_want(agent, "down")
            wait_until(lambda: not locks.is_held(agent.lock))
        (tmp_path / "filter.go").touch()
        assert filter_.stdout is not None
        assert (filter_.stdout.read(), filter_.wait(30)) == (b"did filter\n", 0)
    (tmp_path / "mail.go").touch()
