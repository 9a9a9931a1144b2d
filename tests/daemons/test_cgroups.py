"""Agents in cgroups of their own, where a service manager has delegated some: nothing gets out of one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from support import ROOT, wait_until
from world import READY, World, called, is_alive, pid_of, records, starts, status

from loom.proc import cgroup
from loom.spool import agents, locks, running
from loom.spool.layout import AgentDir
from loom.wire.agent import AgentLimits

GONE_S = 5  # the promise of docs/protocol.md, section 7
# It clears its environment, makes sessions, loses its parent, ignores what asks it to end: nothing tells whose it is.
HIDE = "(env -i setsid /bin/bash -c '(setsid /bin/bash -c \"trap : TERM INT HUP; exec -a STRAY {what}\" &)' &)\n"


@pytest.fixture
def place() -> Iterator[Path]:
    """A cgroup that is marked as systemd marks what it delegates."""
    own = cgroup._own()
    path = None if own is None else own / f"loom-test-{os.getpid()}"
    try:
        if path is None:
            raise OSError("no cgroup v2")
        path.mkdir()
        os.setxattr(path, "user.delegate", b"1")
    except OSError as error:
        pytest.skip(f"no cgroup v2 here that this user may divide: {error}")
    yield path
    cgroup.kill(path)
    cgroup.Groups(path).remove()
    assert not path.exists()


@contextmanager
def inside(place: Path) -> Iterator[None]:
    """Whoever is started here begins in that group."""
    before = cgroup._own()
    assert before is not None
    cgroup.enter(str(place))
    try:
        yield
    finally:
        cgroup.enter(str(before))


def group_of(pid: int) -> Path:
    text = Path(f"/proc/{pid}/cgroup").read_text()
    return Path(next(line[len("0::") :] for line in text.splitlines() if line.startswith("0::")))


def hiding(world: World, what: str = "sleep 1000", **more: object) -> tuple[AgentDir, str]:
    """(an agent whose runner hides a process, by what name that goes)."""
    name = f"stray-{os.getpid()}-{abs(hash(str(world.home.path))) % 10**6}"
    script = f"echo $$ >>$1/starts\n{READY}{HIDE.format(what=what).replace('STRAY', name)}exec sleep 1000\n"
    return world.agent("a", script, **more), name  # type: ignore[arg-type]


def test_a_runner_begins_in_the_group_of_its_agent(world: World, place: Path) -> None:
    agent = world.agent("a", f"echo $$ >>$1/starts\n{READY}sleep 1000 & echo $! >$1/child; wait\n")
    forked = world.agent("b", runner="forked-quiet")
    with inside(place):
        supervisor = world.start()
    said = wait_until(lambda: running.read(world.home))
    mine = Path(said.groups)
    assert mine.parent == place
    assert group_of(supervisor.pid).name == place.name, "the supervisor stays where it is"
    child = int(wait_until(lambda: (agent.path / "child").exists() and (agent.path / "child").read_text()))
    assert {int(starts(agent)[0]), child} == set(cgroup.pids(mine / "a"))
    assert [pid_of(forked)] == cgroup.pids(mine / "b")  # in this order: it may still be coming up
    env = {"LOOM_HOME": str(world.home.path), "PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)}
    asked = {"env": env, "stdout": subprocess.PIPE, "text": True}
    loom = [sys.executable, "-m", "loom"]
    shown = subprocess.run([*loom, "supervisor", "status", "--json"], check=True, **asked).stdout  # type: ignore[call-overload]
    assert json.loads(shown)["groups"] == said.groups
    told = subprocess.run([*loom, "doctor"], check=False, **asked).stdout  # type: ignore[call-overload]
    assert f"agents have cgroups of their own in {mine}" in told


def test_what_hides_well_ends_with_its_runner(world: World, place: Path) -> None:
    agent, name = hiding(world)
    with inside(place):
        world.start()
    (stray,) = wait_until(lambda: called(name))
    os.kill(int(starts(agent)[0]), signal.SIGKILL)
    wait_until(lambda: not is_alive(stray), GONE_S)
    wait_until(lambda: len(starts(agent)) == 2 and called(name))
    agents.write_want(agent, "down")
    status(agent, "stopped")
    wait_until(lambda: not called(name), GONE_S)


def test_without_a_group_it_is_found_by_nothing(world: World) -> None:
    """Which is why the test before this one shows something. The supervisor takes it along when it leaves."""
    agent, name = hiding(world)
    world.start()
    (stray,) = wait_until(lambda: called(name))
    os.kill(int(starts(agent)[0]), signal.SIGKILL)
    wait_until(lambda: len(starts(agent)) == 2 and len(called(name)) == 2)
    assert is_alive(stray)
    world.stop()
    wait_until(lambda: not called(name), GONE_S)


def served(world: World, place: Path) -> tuple[subprocess.Popen[bytes], subprocess.Popen[bytes], AgentDir]:
    """(a supervisor, a process in the group of its agent that is no child of that agent's runner, the agent)."""
    agent = world.agent("a", runner="forked-quiet")
    with inside(place):
        supervisor = world.start()
    pid_of(agent)
    with inside(Path(running.read(world.home).groups) / "a"):  # type: ignore[union-attr]
        return supervisor, subprocess.Popen(["sleep", "1000"], start_new_session=True, env={}), agent


def test_a_supervisor_ends_what_it_finds_in_the_groups_of_those_that_died_unseen(world: World, place: Path) -> None:
    first, stray, agent = served(world, place)
    first.kill()
    first.wait()
    os.kill(pid_of(agent), signal.SIGKILL)
    wait_until(lambda: not locks.is_held(agent.lock))
    agents.write_want(agent, "down")
    assert stray.poll() is None
    with inside(place):
        world.start()
    assert stray.wait(GONE_S) == -signal.SIGKILL
    assert not locks.is_held(agent.lock)


def test_an_adopted_runner_keeps_its_group(world: World, place: Path) -> None:
    first, stray, agent = served(world, place)
    first.kill()
    first.wait()
    runner = pid_of(agent)
    with inside(place):
        world.start()
    assert pid_of(agent) == runner and stray.poll() is None
    agents.write_want(agent, "down")
    status(agent, "stopped")
    assert stray.wait(GONE_S) == -signal.SIGKILL
    assert not is_alive(runner)


def test_processor_time_of_those_who_left_counts(world: World, place: Path) -> None:
    busy = "bash -c 'while :; do :; done'"
    script = f"{READY}(env -i setsid /bin/{busy} &)\nexec sleep 1000\n"
    agent = world.agent("a", script, limits=AgentLimits(cpu_s=0.3))
    with inside(place):
        world.start()
        (record, *_) = wait_until(lambda: records(agent), 20)
    assert "limit: cpu 0.3 s exceeded" in json.dumps(record)


def test_groups_are_given_up(world: World, place: Path) -> None:
    agent = world.agent("a", f"{READY}exec sleep 1000\n")
    world.agent("b", f"{READY}exec sleep 1000\n")
    with inside(place):
        world.start()
    mine = Path(wait_until(lambda: running.read(world.home)).groups)
    wait_until(lambda: cgroup.pids(mine / "a") and cgroup.pids(mine / "b"))
    agents.write_want(agent, "down")
    status(agent, "stopped")
    os.rename(agent.path, world.home.path / "gone")
    wait_until(lambda: not (mine / "a").exists())
    assert world.stop() == 0
    assert list(place.glob("loom.*")) == []


def test_what_nobody_delegated_is_not_divided(world: World, place: Path) -> None:
    os.removexattr(place, "user.delegate")
    agent = world.agent("a", f"{READY}exec sleep 1000\n")
    with inside(place):
        world.start()
    status(agent, "idle")
    assert wait_until(lambda: running.read(world.home)).groups == ""
    assert [path for path in place.iterdir() if path.is_dir()] == []


def test_a_group_is_ended_with_those_below_it_but_not_by_one_of_its_own(place: Path) -> None:
    groups = cgroup.Groups(place / "loom.1")
    group = groups.make("a")
    assert group is not None and groups.of("a") == group and groups.of("b") is None
    (group / "deep").mkdir()
    with inside(group / "deep"):
        children = [subprocess.Popen(["sleep", "1000"]) for _ in range(5)]
    code = "import sys; from pathlib import Path; from loom.proc import cgroup; print(cgroup.kill(Path(sys.argv[1])))"
    with inside(group):
        own = subprocess.run([sys.executable, "-c", code, str(group)], stdout=subprocess.PIPE, check=False)
    assert (own.returncode, own.stdout) == (0, b"0\n"), "a supervisor that lives in an agent's group spares itself"
    assert sorted(cgroup.pids(group)) == sorted(child.pid for child in children)
    groups.remove("a")
    assert group.is_dir(), "one that has processes stays"
    assert cgroup.kill(group) == 5
    assert [child.wait() for child in children] == [-signal.SIGKILL] * 5
    assert (cgroup.cpu_s(group) or 0) > 0
    groups.remove()
    assert not (place / "loom.1").exists() and cgroup.cpu_s(group) is None
    cgroup.enter(str(group))  # gone: we stay where we are


def test_a_group_is_handed_out_empty(place: Path) -> None:
    groups = cgroup.Groups(place / "loom.1")
    group = groups.make("a")
    with inside(group):  # type: ignore[arg-type]
        child = subprocess.Popen(["sleep", "1000"])
    assert groups.make("a") == group
    assert child.wait() == -signal.SIGKILL
