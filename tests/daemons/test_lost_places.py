"""What a process rings, waits on or holds a lock in is removed under it; and a limit of few descriptors."""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from runner_bench import Bench
from support import ROOT, forked, wait_until
from world import READY, World, is_alive, pid_of, starts

from loom.proc import spawn
from loom.spool import agents, mailbox, wake
from loom.wire import exits

SLEEP = f"echo $$ >>$1/starts\n{READY}exec sleep 1000\n"
SERVE = """
import sys
from pathlib import Path
from loom.daemons import service
from loom.daemons.runner import serve_agent
service.LOOK_ANYWAY_S = 0.2
sys.exit(serve_agent(Path(sys.argv[1])))
"""


def test_a_supervised_runner_hears_again_when_its_fifo_was_removed(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    fifo = bench.home.wake_fifo("x")
    read, write = os.pipe()  # as long as we hold the writing end, it has a supervisor
    env = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "LOOM_ALONE_FD": str(read)}
    runner = subprocess.Popen([sys.executable, "-c", SERVE, str(bench.agent.path)], env=env, pass_fds=(read,))
    try:
        wait_until(lambda: agents.read_hint(bench.agent.status) == "idle")
        removed = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
        _remove(bench.home.wake)
        assert not wake.is_heard(fifo, removed)  # whatever is there from now on was made anew
        os.close(removed)
        stem = bench.send("hello")
        wait_until(lambda: mailbox.find_reply(bench.agent, "x", stem, 0))
        wait_until(lambda: wake.ring(fifo))
    finally:
        runner.terminate()
        assert runner.wait(30) == 0
        os.close(read)
        os.close(write)


def test_a_supervisor_whose_lock_was_removed_leaves_and_takes_its_runners_along(world: World) -> None:
    """Another one may serve the home meanwhile: two would fight over every agent."""
    agent = world.agent("a", SLEEP)
    child = world.start(sweep_s=0.3)
    pid = int(str(wait_until(lambda: starts(agent))[0]))
    _remove(world.home.run)
    assert child.wait(20) == 0
    assert not is_alive(pid)
    assert agents.read_want(agent) == "up"


def test_a_supervisor_of_a_removed_home_leaves(world: World) -> None:
    agent = world.agent("a", runner="forked-quiet")
    child = world.start(sweep_s=0.3)
    pid = pid_of(agent)
    world.home.path.rename(world.home.path.with_name("elsewhere"))
    assert child.wait(20) == 0
    assert not is_alive(pid)


def test_a_supervisor_s_own_doorbell_is_made_again(world: World) -> None:
    world.start(sweep_s=0.3)
    bell = world.home.wake_fifo("supervisor")
    bell.unlink()
    wait_until(lambda: wake.ring(bell))


def test_a_doorbell_that_cannot_be_made_costs_nobody_a_descriptor(world: World) -> None:
    supervisor = world.start(sweep_s=0.2)
    bell = world.home.wake_fifo("supervisor")
    wait_until(lambda: _is_directory_now(bell))
    wait_until(lambda: not _holds(supervisor.pid, bell))
    agent = world.agent("a", SLEEP)
    pid = int(wait_until(lambda: starts(agent))[0])  # its pidfd may have the number that the doorbell had
    bell.rmdir()
    wait_until(lambda: wake.ring(bell))
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: len(starts(agent)) == 2)


def _remove(directory: Path) -> None:
    """At one stroke: whoever mends what is lost there makes nothing in a directory that is just being emptied."""
    aside = directory.with_name("removed")
    directory.rename(aside)
    shutil.rmtree(aside)


def _is_directory_now(bell: Path) -> bool:
    """In the place of the doorbell; False when the supervisor was faster and made another one."""
    bell.unlink()
    try:
        bell.mkdir()
    except FileExistsError:
        return False
    return True


def _holds(pid: int, path: Path) -> bool:
    """Whether a process has this open, removed or not."""
    found = set()
    for fd in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(FileNotFoundError):
            found.add(os.readlink(f"/proc/{pid}/fd/{fd}").removesuffix(" (deleted)"))
    return str(path) in found


def test_of_those_forked_together_the_ones_that_cannot_be_watched_are_ended(tmp_path: Path) -> None:
    def work() -> None:
        stderr = os.open(tmp_path / "stderr", os.O_WRONLY | os.O_CREAT)
        alone, _ = os.pipe()
        program = spawn.Program("a", tmp_path, {"PATH": "/"}, entry=lambda _: 0)
        most = max(map(int, os.listdir("/proc/self/fd"))) + 20
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
        taken = []
        with contextlib.suppress(OSError):
            while True:
                taken.append(os.dup(stderr))
        for fd in taken[-12:]:
            os.close(fd)
        found = spawn.spawn_all([(program, stderr)] * 20, alone)
        started = [one for one in found if isinstance(one, spawn.Spawned)]
        assert 0 < len(started) < len(found) == 20
        codes = [os.waitstatus_to_exitcode(os.waitpid(child.pid, 0)[1]) for child in started]
        assert set(codes) <= {exits.DONE, exits.TRY_LATER}, "a lack of descriptors is no crash"
        with pytest.raises(ChildProcessError):
            os.waitpid(-1, os.WNOHANG)  # nobody is left

    ended = forked(lambda: work())
    assert ended.status == 0, ended.said


def test_a_runner_starts_with_few_descriptors(tmp_path: Path) -> None:
    def work() -> None:
        most = max(map(int, os.listdir("/proc/self/fd"))) + 50
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
        stderr = os.open(tmp_path / "stderr", os.O_WRONLY | os.O_CREAT)
        alone, _ = os.pipe()
        program = spawn.Program("a", tmp_path, {"PATH": "/"}, entry=lambda _: 0 if os.fstat(3) and os.fstat(4) else 1)
        child = spawn.spawn(program, stderr, alone)
        assert os.waitpid(child.pid, 0)[1] == 0, (tmp_path / "stderr").read_text()

    ended = forked(lambda: work())
    assert ended.status == 0, ended.said
