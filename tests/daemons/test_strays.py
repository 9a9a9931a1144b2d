"""No strays: whatever a tool or a model program starts is gone soon after its owner was killed with -9."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from support import ROOT, wait_until
from world import TABLE, World, called, pid_of

from loom.proc import enclosure
from loom.spool import agents, wake
from loom.spool.layout import AgentDir
from loom.wire.agent import AgentSpec, Restart

SERVED = {**TABLE, "agent": "loom.daemons.runner:serve_agent"}
GONE_S = 5  # the promise of docs/protocol.md, section 7
needs_namespaces = pytest.mark.skipif(not enclosure.available(), reason="no pid namespaces on this machine")

# Each starts a process that is called by the argument STRAY and would live for ever.
SLEEP = "exec -a STRAY sleep 1000"
SHAPES = {
    "a child": f"bash -c '{SLEEP}' &",
    "in a session of its own": f"setsid bash -c '{SLEEP}' &",
    "forked twice": f"(setsid bash -c '(setsid bash -c \"{SLEEP}\" &) ; exit' &)",
    "without its environment": f"env -i setsid /bin/bash -c '{SLEEP}' &",
    "ignoring signals": f"setsid bash -c 'trap \"\" TERM INT HUP QUIT; {SLEEP}' &",
    "holding the pipes": f"setsid bash -c '{SLEEP}' 3<&0 4>&1 5>&2 &",
    "forking on and on": "env -i setsid /bin/bash -c 'exec -a STRAY /bin/bash -c"
    ' "while :; do (sleep 0.01 & ) ; sleep 0.01; done"\' &',
    "outliving its parent": f"(setsid env -i /bin/bash -c 'sleep 0.2; {SLEEP}' >/dev/null 2>&1 </dev/null &)",
}


def _agent(world: World, shape: str, end: str) -> tuple[AgentDir, str]:
    name = f"stray-{os.getpid()}-{abs(hash(shape)) % 10**6}"
    program = world.home.path.parent / "program"
    program.write_text(f"#!/bin/bash\ncat >/dev/null\n{SHAPES[shape]}\n{end}\n".replace("STRAY", name))
    program.chmod(0o755)
    spec = AgentSpec(name="a", model=f"exec/{program}", restart=Restart(base_s=0))
    return agents.create(world.home, spec, "", "up"), name


def _ask(world: World, agent: AgentDir) -> None:
    world.send(agent)
    wake.ring_agent(world.home.wake, agent.name)


@needs_namespaces
@pytest.mark.parametrize("shape", SHAPES)
def test_all_is_gone_when_runner_and_supervisor_are_killed(world: World, shape: str) -> None:
    """Nobody is left who could search: the kernel alone ends it."""
    agent, name = _agent(world, shape, "sleep 1000")
    supervisor = world.start(table=SERVED)
    pid = pid_of(agent)
    _ask(world, agent)
    wait_until(lambda: called(name))
    supervisor.kill()
    os.kill(pid, signal.SIGKILL)  # a runner that holds its lock: the number is its own
    supervisor.wait()
    wait_until(lambda: not called(name), GONE_S)
    agents.write_want(agent, "down")
    world.start(table=SERVED)  # for the router, which lives on


@needs_namespaces
@pytest.mark.parametrize("shape", SHAPES)
def test_all_is_gone_when_the_program_has_answered(world: World, shape: str) -> None:
    agent, name = _agent(world, shape, "while ! pgrep -f '^STRAY' >/dev/null; do sleep 0.05; done\necho done")
    world.start(table=SERVED)
    pid_of(agent)
    _ask(world, agent)
    wait_until(lambda: not agents.has_mail(agent))
    wait_until(lambda: not called(name), GONE_S)


@pytest.mark.parametrize("shape", [shape for shape in SHAPES if "env -i" not in SHAPES[shape]])
def test_without_namespaces_the_supervisor_finds_what_bears_its_mark(world: World, shape: str, tmp_path: Path) -> None:
    """The fallback: the program is started plainly, as where the kernel allows no namespaces."""
    (tmp_path / "plainly.py").write_text(
        "from loom.daemons import runner\nfrom loom.proc import enclosure\n"
        "def serve(agent_dir, drain=False):\n"
        "    enclosure.available = lambda: False\n    return runner.serve_agent(agent_dir, drain)\n"
    )
    agent, name = _agent(world, shape, "sleep 1000")
    sys_path = f"{tmp_path}:{Path(__file__).parent}:{Path(__file__).parents[2]}"
    world.env["PYTHONPATH"] = sys_path
    world.start(table={**TABLE, "agent": "plainly:serve"})
    pid = pid_of(agent)
    _ask(world, agent)
    strays = wait_until(lambda: called(name))
    assert isinstance(strays, list)
    os.kill(pid, signal.SIGKILL)
    agents.write_want(agent, "down")
    wait_until(lambda: not called(name), GONE_S)


@needs_namespaces
def test_it_works_for_a_user_without_privileges(tmp_path: Path) -> None:
    """In a user namespace the program is who it was."""
    code = (
        "import ctypes, os, subprocess\nfrom loom.proc import enclosure\n"
        "os.setgroups([]) if os.getuid() == 0 else None\n"
        "os.setresgid(65534, 65534, 65534) if os.getuid() == 0 else None\n"
        "os.setresuid(65534, 65534, 65534) if os.getuid() == 0 else None\n"
        "ctypes.CDLL(None).prctl(4, 1, 0, 0, 0)\n"  # dumpable again, as after an exec: else its /proc is root's
        "print(enclosure.available(), os.getuid(), flush=True)\n"
        "print(subprocess.run(['sh', '-c', 'id -u; echo $$'], preexec_fn=enclosure.enter, text=True, "
        "stdout=subprocess.PIPE).stdout)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[2])
    available, uid, *inside = done.stdout.split()
    if available != "True":
        pytest.skip("no user namespaces for unprivileged users on this machine")
    assert inside == [uid, "2"], done.stderr


@needs_namespaces
def test_a_trial_that_was_killed_is_made_again(tmp_path: Path) -> None:
    """Else a supervisor whose trial was killed would have all its runners start programs that may outlive them."""
    code = (
        "import os, sys\nfrom loom.proc import enclosure\nreal = enclosure._unshare\n"
        "def killed_once():\n"
        "    try:\n        os.close(os.open(sys.argv[1], os.O_CREAT | os.O_EXCL))\n"
        "    except FileExistsError:\n        return real()\n"
        "    os.kill(os.getpid(), 9)\n"
        "enclosure._unshare = killed_once\nprint(enclosure.available())\n"
    )
    flag = tmp_path / "killed"
    done = subprocess.run([sys.executable, "-c", code, str(flag)], cwd=ROOT, capture_output=True, check=True)
    assert flag.exists() and done.stdout == b"True\n"
