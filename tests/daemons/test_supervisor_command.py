"""`loom supervisor …` as a person uses it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

from support import ROOT, processes_of, wait_until
from world import READY, World, pid_of, starts, status

from loom.cli import ensure


def _loom(world: World, *args: str, **env: str) -> subprocess.CompletedProcess[str]:
    base = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "LOOM_HOME": str(world.home.path)}
    command = [sys.executable, "-m", "loom", "supervisor", *args]
    return subprocess.run(command, env={**base, **env}, capture_output=True, text=True, timeout=60)


def test_status_reload_and_stop_say_what_there_is(world: World) -> None:
    assert _loom(world, "status").stdout.startswith("not running")
    assert json.loads(_loom(world, "status", "--json").stdout)["running"] is False
    assert _loom(world, "reload").returncode == 66
    assert _loom(world, "stop").returncode == 0
    child = world.start()
    assert _loom(world, "status").stdout.startswith(f"running, pid {child.pid}: ")
    told = json.loads(_loom(world, "status", "--json").stdout)
    assert (told["running"], told["pid"]) == (True, child.pid)
    told = json.loads(_loom(world, "reload", "--json").stdout)
    assert told["pid"] == child.pid and told["code"] == told["before"]
    assert _loom(world, "stop").returncode == 0
    assert child.wait(30) == 0
    assert not world.home.supervisor_pid.exists()


def test_run_sheds_the_environment_it_was_started_with(world: World) -> None:
    """A key would else stand in /proc/PID/environ of the supervisor and of all that it forks."""
    agent = world.agent("a", f"{READY}exec sleep 1000")
    base = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "LOOM_HOME": str(world.home.path)}
    command = [sys.executable, "-m", "loom", "supervisor", "run"]
    child = subprocess.Popen(command, env={**base, "SOME_API_KEY": "secret"}, stderr=subprocess.DEVNULL)
    world.supervisors.append(child)
    who = wait_until(lambda: ensure.supervisor_of(world.home))
    assert who.pid == child.pid
    status(agent, "idle")
    assert len(processes_of(world.home.path)) >= 2
    for pid in processes_of(world.home.path):
        with open(f"/proc/{pid}/environ", "rb") as file:  # noqa: PTH123
            assert b"SOME_API_KEY" not in file.read()
    child.send_signal(signal.SIGINT)  # Ctrl-C
    assert child.wait(30) == 0


def test_what_is_said_with_a_closed_stderr_goes_into_no_file(world: World) -> None:
    """The next file to be opened would have its number: the lock that says who serves the home."""
    agent = world.agent("a", f"{READY}echo $$ >>starts\nexec sleep 1000")
    env = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "LOOM_HOME": str(world.home.path)}
    command = 'exec "$0" -m loom supervisor run 2>&-'
    child = subprocess.Popen(["sh", "-c", command, sys.executable], env=env)
    world.supervisors.append(child)
    os.kill(int(wait_until(lambda: starts(agent))[0]), signal.SIGKILL)
    wait_until(lambda: len(starts(agent)) == 2)  # its crash was told before
    who = ensure.supervisor_of(world.home)
    assert who is not None and world.home.supervisor_lock.read_text().strip() == who.text()
    assert _loom(world, "status").stdout.startswith(f"running, pid {child.pid}: ")
    assert _loom(world, "stop").returncode == 0
    assert child.wait(30) == 0


def test_a_runner_that_was_started_with_closed_streams_has_some(world: World) -> None:
    agent = world.agent("a", runner="agent")
    env = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "LOOM_HOME": str(world.home.path)}
    command = 'exec "$0" "$1" "$2" <&- >&- 2>&-'
    program = str(ROOT / "runners" / "agent")
    child = subprocess.Popen(["sh", "-c", command, sys.executable, program, str(agent.path)], env=env)
    try:
        assert pid_of(agent) == child.pid
        assert {os.readlink(f"/proc/{child.pid}/fd/{fd}") for fd in range(3)} == {os.devnull}
    finally:
        child.terminate()
        assert child.wait(30) == 0


def test_a_second_run_is_refused_with_75(world: World) -> None:
    child = world.start()
    done = _loom(world, "run")
    assert done.returncode == 75
    assert f"pid {child.pid} " in done.stderr and done.stderr.count("\n") == 1
