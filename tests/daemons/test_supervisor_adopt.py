"""A supervisor that dies leaves working runners; the next one adopts them."""

from __future__ import annotations

import os
import signal

import pytest
from support import wait_until
from world import TABLE, World, is_alive, pid_of, records, starts, status

from loom.proc import pidfd
from loom.spool import agents, fs, locks


def _killed(world: World) -> None:
    world.supervisors[-1].kill()
    world.supervisors[-1].wait(30)


def test_a_runner_outlives_its_supervisor_and_is_adopted_with_its_pid(world: World) -> None:
    agent = world.agent("a", runner="forked-quiet")
    world.start()
    first = pid_of(agent)
    _killed(world)
    assert is_alive(first)
    assert locks.holder(agent.lock) == locks.Incarnation(first, pidfd.start_of(first) or 0, locks.boot_id())
    world.start()
    assert is_alive(first)
    assert pid_of(agent) == first
    agents.write_want(agent, "down")
    status(agent, "stopped")
    assert not is_alive(first)
    assert agents.read_hint(agent.last_exit).split()[:2] == [
        "0",
        f"{first}.{agents.read_hint(agent.last_exit).split()[1].partition('.')[2]}",
    ]


@pytest.mark.parametrize("number, exit_code, name", [(signal.SIGUSR1, 33, None), (signal.SIGKILL, None, "SIGKILL")])
def test_the_exit_of_an_adopted_runner_is_recognised(
    world: World, number: int, exit_code: int | None, name: str | None
) -> None:
    agent = world.agent("a", runner="forked-quiet")
    world.start()
    first = pid_of(agent)
    _killed(world)
    world.start()
    os.kill(first, number)
    wait_until(lambda: records(agent))
    (record,) = records(agent)
    assert (record["exit_code"], record["signal"]) == (exit_code, name)
    wait_until(lambda: pid_of(agent) != first)


def test_a_runner_hears_that_its_supervisor_is_gone(world: World) -> None:
    script = "printf '\\n' >&3; read -r nothing <&4; echo alone >>$1/starts\n"
    agent = world.agent("a", script)
    world.start()
    status(agent, "idle")
    assert starts(agent) == []
    _killed(world)
    assert wait_until(lambda: starts(agent)) == ["alone"]
    world.start()  # takes the router over, and ends it in the end


def test_what_was_wanted_down_meanwhile_is_stopped_by_the_next_one(world: World) -> None:
    agent = world.agent("a", runner="forked-quiet")
    world.start()
    first = pid_of(agent)
    _killed(world)
    agents.write_want(agent, "down")
    world.start()
    wait_until(lambda: not is_alive(first))
    status(agent, "stopped")


def test_a_runner_started_by_hand_is_adopted_and_not_doubled(world: World) -> None:
    """As runners/agent DIR on a shell would be: the lock says who serves this mailbox."""
    agent = world.agent("a", runner="forked-quiet")
    world.start()
    first = pid_of(agent)
    _killed(world)
    fs.remove(agent.pid)  # pid files are for people
    world.start()
    assert pid_of(agent) == first


def test_somebody_who_only_holds_the_lock_is_waited_for(world: World) -> None:
    """fsck and retry hold it unsigned, for a moment: no runner to adopt, nothing to stop."""
    agent = world.agent("a", runner="forked-quiet")
    lock = locks.acquire(agent.lock)
    assert lock is not None
    world.start()
    status(agent, "pending")
    lock.release()
    assert pid_of(agent)
    assert records(agent) == []


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_trees_of_adopted_runners_end_with_them(world: World, how: int) -> None:
    """Its children are no children of the new supervisor: found by session and by their environment."""
    table = {**TABLE, "forked-parent": "daemon_runners:serve_parent"}
    agent = world.agent("a", runner="forked-parent")
    world.start(table=table)
    first = pid_of(agent)
    below = [int(pid) for pid in wait_until(lambda: len(starts(agent)) == 2 and starts(agent))]
    _killed(world)
    assert all(is_alive(pid) for pid in below)
    world.start(table=table)
    agents.write_want(agent, "down")
    if how == signal.SIGKILL:
        os.kill(first, signal.SIGKILL)
    status(agent, "stopped")
    wait_until(lambda: not any(is_alive(pid) for pid in below))
