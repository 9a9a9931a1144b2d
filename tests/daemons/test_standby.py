"""Runners that stand by: asleep with their agent's lock and bell until there is something to do (ADR-0034)."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from support import wait_until
from world import AT_ONCE, World, is_alive, pid_of, records, status

from loom.daemons import programs
from loom.spool import agents, fs, locks, wake
from loom.spool.layout import AgentDir
from loom.wire.agent import AgentSpec, Restart, encode
from loom.wire.jsontext import loads_object

ALL = dict(programs.RUNNERS)


def made(world: World, name: str, model: str = "builtin/echo", restart: Restart = AT_ONCE, **more: object) -> AgentDir:
    return agents.create(world.home, AgentSpec(name=name, model=model, restart=restart, **more), "", "up")  # type: ignore[arg-type]


def stands_by(agent: AgentDir) -> bool:
    """Whether its runner is still nothing but a fork that sleeps: it has the bell where it was given it."""
    fds = Path(f"/proc/{pid_of(agent)}/fd")
    try:
        return {int(fd.name) for fd in fds.iterdir()} == {0, 1, 2, 4, 5, 6} and str(agent.name) in os.readlink(
            fds / "6"
        )
    except FileNotFoundError:
        return False


def sleeper(world: World, name: str = "b", **more: object) -> AgentDir:
    """An agent that stands by, beside one that is configured like it and is a whole runner."""
    first = made(world, "a", **more)
    world.start(table=ALL)
    status(first, "idle")  # it has come up: another one would not wait for that longer than a second
    agent = made(world, name, **more)
    wait_until(lambda: stands_by(agent))
    return agent


def ask(world: World, agent: AgentDir, body: str = "hello") -> str:
    stem = world.send(agent, body)
    wake.ring_agent(world.home.run / "wake", agent.name)
    return stem


def answered(agent: AgentDir, stem: str) -> None:
    wait_until(lambda: agent.processed(stem).exists())


def test_the_first_of_a_configuration_comes_up_whole_and_the_others_stand_by(world: World) -> None:
    boxes = [made(world, name) for name in ("a", "b", "c", "d")]
    other = made(world, "other", model="builtin/extract")
    world.start(table=ALL)
    assert wait_until(lambda: [stands_by(box) for box in boxes] == [False, True, True, True])
    assert not stands_by(other)
    # The first says that it is ready, whereupon the others are forked, before it writes its own word.
    wait_until(lambda: [agents.read_hint(box.status) for box in boxes] == ["idle"] * 4)
    assert Path(f"/proc/{pid_of(boxes[1])}/comm").read_text() == "b\n"


def test_mail_makes_it_a_whole_runner_in_the_same_process(world: World) -> None:
    agent = sleeper(world)
    pid = pid_of(agent)
    answered(agent, ask(world, agent))
    assert pid_of(agent) == pid and not stands_by(agent)
    assert status(agent, "idle")
    answered(agent, ask(world, agent))
    assert pid_of(agent) == pid


def test_mail_that_nobody_rings_for_is_heard_of_by_its_supervisor(world: World) -> None:
    agent = sleeper(world)
    answered(agent, world.send(agent))


def test_an_agent_with_mail_does_not_stand_by(world: World) -> None:
    made(world, "a")
    agent = made(world, "b")
    stem = world.send(agent)
    world.start(table=ALL)
    answered(agent, stem)
    assert not stands_by(agent)


@pytest.mark.parametrize("more", [{"idle_s": 60.0}, {"scale": "to-zero"}])
def test_one_that_is_to_leave_when_it_has_no_work_does_not_stand_by(world: World, more: dict[str, object]) -> None:
    made(world, "a", **more)
    agent = made(world, "b", **more)
    world.start(table=ALL)
    answered(agent, ask(world, agent))
    assert not stands_by(agent)


def test_killed_it_is_started_again_and_stands_by_again(world: World) -> None:
    agent = sleeper(world)
    first = pid_of(agent)
    os.kill(first, signal.SIGKILL)
    wait_until(lambda: (who := locks.holder(agent.lock)) is not None and who.pid != first and stands_by(agent))
    answered(agent, ask(world, agent))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_asked_to_leave_it_leaves_with_0_as_a_whole_runner_does(world: World, number: signal.Signals) -> None:
    agent = sleeper(world, restart=Restart(policy="on-failure", base_s=0))
    pid = pid_of(agent)
    os.kill(pid, number)
    status(agent, "stopped")
    assert agents.read_hint(agent.last_exit).split()[0] == "0" and not is_alive(pid)


def test_stopped_and_wanted_again_it_is_another_process(world: World) -> None:
    agent = sleeper(world)
    pid = pid_of(agent)
    agents.write_want(agent, "down")
    status(agent, "stopped")
    assert not is_alive(pid) and not locks.is_held(agent.lock)
    agents.write_want(agent, "up")
    wait_until(lambda: locks.holder(agent.lock) is not None)
    answered(agent, ask(world, agent))


def test_the_end_of_its_supervisor_makes_it_whole_and_the_next_one_adopts_it(world: World) -> None:
    agent = sleeper(world)
    pid = pid_of(agent)
    world.supervisors[-1].kill()
    world.supervisors[-1].wait(30)
    wait_until(lambda: not stands_by(agent))
    answered(agent, world.send(agent))
    world.start(table=ALL)
    answered(agent, ask(world, agent))
    assert pid_of(agent) == pid


def test_left_alone_with_a_lock_that_nobody_signed_it_signs_it(world: World) -> None:
    """Its supervisor was killed between the fork and the signature."""
    agent = sleeper(world)
    pid = pid_of(agent)
    agent.lock.write_bytes(b"")
    world.supervisors[-1].kill()
    world.supervisors[-1].wait(30)
    assert pid_of(agent) == pid
    world.start(table=ALL)
    answered(agent, ask(world, agent))
    assert pid_of(agent) == pid


def test_a_spec_that_was_changed_while_it_slept_is_the_one_it_works_by(world: World) -> None:
    """In another process: environment and limits of this one are those of the former."""
    agent = sleeper(world)
    pid = pid_of(agent)
    fs.replace(agent.spec, encode(AgentSpec(name="b", model="builtin/extract", restart=AT_ONCE)))
    answered(agent, ask(world, agent))
    assert pid_of(agent) != pid
    (log,) = agent.logs.glob("*.ndjson")
    replies = [line for line in map(loads_object, log.read_bytes().splitlines()) if line["event"] == "model_reply"]
    assert [reply["model"] for reply in replies] == ["builtin/extract"]


@pytest.mark.parametrize("restart", [Restart(policy="never"), Restart(base_s=3600, max_s=3600)])
def test_a_changed_spec_is_taken_up_at_once_whatever_the_restart_policy(world: World, restart: Restart) -> None:
    agent = sleeper(world, restart=restart)
    pid = pid_of(agent)
    fs.replace(agent.spec, encode(AgentSpec(name="b", model="builtin/echo", restart=restart, env={"NEW": "1"})))
    answered(agent, ask(world, agent))
    assert pid_of(agent) != pid and not records(agent)


def test_a_configuration_that_nobody_comes_up_with_is_refused_by_each_on_its_own(world: World) -> None:
    boxes = [made(world, name, model="nowhere/m") for name in ("a", "b", "c")]
    world.start(table=ALL)
    for box in boxes:
        status(box, "error")


def test_what_broke_while_it_slept_is_an_error_and_its_mail_waits_for_the_mend(world: World) -> None:
    keys = world.home.path / "key"
    keys.write_text("secret\n")
    world.home.config.write_text(
        f"providers:\n  far:\n    base_url: http://127.0.0.1:9/v1\n    key_file: {keys}\n", encoding="utf-8"
    )
    agent = sleeper(world, model="far/m|builtin/echo")
    keys.unlink()
    stem = ask(world, agent)
    status(agent, "error")
    assert (agent.inbox / f"{stem}.msg").exists()
    keys.write_text("secret\n")
    agents.write_want(agent, "up")
    wait_until(lambda: agent.processed(stem).exists() or agent.failed.joinpath(f"{stem}.msg").exists())
