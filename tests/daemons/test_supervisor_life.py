"""Starting, stopping and restarting: real supervisors, real runners."""

from __future__ import annotations

import os
import shutil
import signal
import time
from pathlib import Path

import pytest
from support import wait_until
from world import AT_ONCE, READY, TABLE, World, is_alive, pid_of, records, starts, status

from loom.cli import ensure
from loom.daemons.programs import RUNNERS
from loom.spool import agents, fs, locks, mailbox, wake
from loom.wire import ids
from loom.wire.agent import Restart

SLEEP = f"echo $$ >>$1/starts\n{READY}exec sleep 1000\n"


def test_what_is_wanted_up_runs_and_what_is_wanted_down_does_not(world: World) -> None:
    up, down = world.agent("up", SLEEP), world.agent("down", SLEEP, want="down")
    world.start()
    status(up, "idle")
    status(down, "stopped")
    assert starts(up) == [agents.read_hint(up.pid)]
    agents.write_want(down, "up")
    wait_until(lambda: starts(down))
    agents.write_want(up, "down")
    status(up, "stopped")
    assert not is_alive(int(starts(up)[0]))
    assert agents.read_hint(up.last_exit).split()[0] == "SIGTERM"
    assert world.stop() == 0
    assert agents.read_want(down) == "up"  # stopping the supervisor changes nothing of what is wanted
    assert records(up) == records(down) == []  # and being sent away is no crash


def test_a_new_agent_is_started_without_anybody_ringing(world: World) -> None:
    world.start()
    wait_until(lambda: starts(world.agent("late", SLEEP)))


def test_a_killed_runner_is_started_again_after_its_backoff(world: World) -> None:
    agent = world.agent("a", SLEEP, restart=Restart(base_s=2.0))  # long enough that its word is seen meanwhile
    world.start()
    first = int(wait_until(lambda: starts(agent))[0])
    killed_at = time.monotonic()
    os.kill(first, signal.SIGKILL)
    status(agent, "restarting")
    wait_until(lambda: len(starts(agent)) == 2)
    assert time.monotonic() - killed_at >= 2.0
    status(agent, "idle")
    (record,) = records(agent)
    assert (record["exit_code"], record["signal"], record["restart_count"]) == (None, "SIGKILL", 1)
    assert record["ts"] < record["next_restart_at"]


def test_without_a_base_it_is_started_again_at_once(world: World) -> None:
    agent = world.agent("a", runner="forked-quiet")
    world.start()
    first = pid_of(agent)
    os.kill(first, signal.SIGKILL)
    assert wait_until(lambda: (pid := pid_of(agent)) != first and pid)


@pytest.mark.parametrize(
    "policy, code, after",
    [
        ("always", 0, "idle"),
        ("on-failure", 0, "stopped"),
        ("never", 0, "stopped"),
        ("always", 75, "idle"),
        ("on-failure", 1, "idle"),
        ("never", 1, "stopped"),
        ("always", 78, "error"),
    ],
)
def test_what_follows_an_exit(world: World, policy: str, code: int, after: str) -> None:
    """The first start exits, a second one, if there is one, stays."""
    script = (
        f"echo $$ >>$1/starts\n{READY}test -e $1/again && exec sleep 1000\n>$1/again; echo oh no >&2; exit {code}\n"
    )
    agent = world.agent("a", script, restart=Restart(policy=policy, base_s=0))  # type: ignore[arg-type]
    world.start()
    wait_until(lambda: agents.read_hint(agent.last_exit).startswith(f"{code} "))
    if after == "idle":
        wait_until(lambda: len(starts(agent)) == 2)
    else:
        status(agent, after)
        assert len(starts(agent)) == 1
    crash = code in (1, 78)
    assert [r["exit_code"] for r in records(agent)] == [code] * crash
    assert all("oh no" in r["stderr"] for r in records(agent))


def test_75_again_and_again_is_no_death(world: World) -> None:
    agent = world.agent("a", "echo $$ >>$1/starts; exit 75\n", restart=Restart(base_s=0, limit=2))
    world.start()
    wait_until(lambda: len(starts(agent)) >= 5)
    assert agents.read_want(agent) == "up"


@pytest.mark.parametrize("how", ["want", "agent.json", "config.yml", "secret"])
def test_78_waits_until_a_person_changes_something(world: World, how: str) -> None:
    agent = world.agent("a", "echo $$ >>$1/starts; exit 78\n")
    world.start()
    status(agent, "error")
    assert len(starts(agent)) == 1
    match how:
        case "want":
            agents.write_want(agent, "up")
        case "agent.json":
            fs.replace(agent.spec, agent.spec.read_bytes().replace(b'"builtin"', b'"builtin/echo"'))
        case "config.yml":
            fs.replace(world.home.config, b"model: builtin\n")
        case "secret":
            fs.ensure_dir(world.home.secrets)
            fs.replace(world.home.secrets / "openai", b"key\n")
    wait_until(lambda: len(starts(agent)) >= 2)  # a directory and a file in it are two changes


def test_too_many_crashes_are_death_with_a_failure_reply(world: World) -> None:
    """Waiting messages stay; who waits for the claimed one gets an answer; asking brings it back with n = 0."""
    script = "echo $$ >>$1/starts; mv $1/inbox/*.msg $1/inbox/.in-progress/ 2>/dev/null; exit 3"
    agent = world.agent("a", script, restart=Restart(base_s=0, limit=3))
    claimed = world.send(agent)
    world.start()
    status(agent, "dead")
    assert agents.read_want(agent) == "dead"
    assert len(starts(agent)) == 3
    (reply,) = [p for p in agent.outbox.iterdir() if p.suffix == ".msg"]
    assert b'"error":true' in reply.read_bytes() and claimed.encode() in reply.read_bytes()
    assert [p.name for p in agent.failed.glob("*.msg")] == [f"{claimed}.msg"]
    waiting = world.send(agent)
    (agent.path / "script").write_text("echo $$ >>$1/starts; exec sleep 1000")
    agents.write_want(agent, "up")
    wait_until(lambda: len(starts(agent)) == 4)
    assert (agent.inbox / f"{waiting}.msg").exists()


def test_finished_messages_keep_an_agent_alive(world: World) -> None:
    script = "echo $$ >>$1/starts; mkdir -p $1/inbox/.processed/x; touch $1/inbox/.processed/x/$$; exit 3"
    agent = world.agent("a", script, restart=Restart(base_s=0, limit=2))
    world.start()
    wait_until(lambda: len(starts(agent)) >= 6)
    assert agents.read_want(agent) == "up"


def test_65_fails_the_message_and_goes_on(world: World) -> None:
    script = (
        "echo $$ >>$1/starts; for m in $1/inbox/*.msg; do test -e $m || exec sleep 1000; "
        "mv $m $1/inbox/.in-progress/; exit 65; done"
    )
    agent = world.agent("a", script, restart=Restart(limit=1))
    sent = sorted(world.send(agent) for _ in range(3))
    world.start()
    wait_until(lambda: len(starts(agent)) == 4)
    assert sorted(p.stem for p in agent.failed.glob("*.msg")) == sent
    assert agents.read_want(agent) == "up"


def test_stopping_takes_the_whole_tree_also_what_ignores_signals(world: World) -> None:
    """Children, grandchildren in sessions of their own, all deaf to SIGTERM."""
    script = (
        f"trap '' TERM\nsleep 1001 & echo $! >>$1/starts\nsetsid sleep 1002 & echo $! >>$1/starts\n"
        f"sh -c 'setsid sleep 1003 & echo $! >>'$1/starts\n{READY}echo $$ >>$1/starts\nwhile :; do sleep 1004; done\n"
    )
    agent = world.agent("a", script)
    world.start(grace_s=0.2)
    status(agent, "idle")
    wait_until(lambda: len(starts(agent)) == 4)
    pids = [int(pid) for pid in starts(agent)]
    assert all(is_alive(pid) for pid in pids)
    agents.write_want(agent, "down")
    status(agent, "stopped")
    assert [pid for pid in pids if is_alive(pid)] == []


def test_what_a_crashed_runner_leaves_running_is_ended(world: World) -> None:
    script = (
        "test -e $1/starts && exec sleep 1000\nsetsid sleep 1001 & a=$!\nsleep 1002 & b=$!\n"
        "echo $a $b >>$1/starts; exit 3"
    )
    agent = world.agent("a", script)
    world.start()
    wait_until(lambda: records(agent))
    wait_until(lambda: not any(is_alive(int(pid)) for pid in starts(agent)))


def test_a_runner_that_never_gets_ready_is_a_crash(world: World) -> None:
    agent = world.agent("a", "echo $$ >>$1/starts; exec sleep 1000")
    world.start(ready_s=0.2)
    wait_until(lambda: len(starts(agent)) >= 2)
    assert records(agent)[0]["error_type"] == "not_ready"
    assert records(agent)[0]["signal"] == "SIGKILL"
    assert agents.read_hint(agent.status) in ("pending", "restarting")


def test_a_runner_that_does_not_exist_is_an_error_of_configuration(world: World, tmp_path: Path) -> None:
    lost = world.agent("lost", runner=str(tmp_path / "nowhere"))
    unknown = world.agent("unknown", runner="no-such-runner")
    plain = tmp_path / "not-executable"
    plain.write_text("echo")
    refused = world.agent("refused", runner=str(plain))
    world.start()
    for agent in (lost, unknown, refused):
        status(agent, "error")
    assert "no-such-runner" in "".join(p.read_text() for p in unknown.logs.glob("*.ndjson"))
    assert "cannot execute" in refused.stderr.read_text()


def test_broken_and_odd_directories_do_not_stop_the_others(world: World) -> None:
    broken = world.agent("broken", SLEEP)
    broken.spec.write_text("{")
    (world.home.agents / "empty").mkdir()
    (world.home.agents / "Not A Name").mkdir()
    (world.home.agents / "a-file").write_text("")
    world.start()
    wait_until(lambda: starts(world.agent("good", SLEEP)))
    status(broken, "error")
    assert "broken" in "".join(p.read_text() for p in broken.logs.glob("*.ndjson"))
    assert not (world.home.agents / "empty" / "status").exists()
    world.agent("empty", SLEEP)
    wait_until(lambda: starts(world.home.agent("empty")))
    world.agent("broken", SLEEP)
    wait_until(lambda: starts(broken))


def test_a_removed_agent_is_stopped_and_forgotten(world: World) -> None:
    agent = world.agent("a", SLEEP)
    world.start()
    pid = int(wait_until(lambda: starts(agent))[0])
    agent.path.rename(world.home.path / "elsewhere")
    wait_until(lambda: not is_alive(pid))


def test_asking_for_what_runs_leaves_it_alone_unless_it_changed(world: World) -> None:
    agent = world.agent("a", SLEEP)
    world.start()
    status(agent, "idle")
    (first,) = starts(agent)
    world.agent("a", SLEEP)  # the same once more, as a program that makes sure of its agents does
    other = world.agent("b", SLEEP)
    wait_until(lambda: starts(other))
    assert starts(agent) == [first] and is_alive(int(first))
    world.agent("a", SLEEP, env={"GREETING": "hello"})
    wait_until(lambda: len(starts(agent)) == 2)
    assert not is_alive(int(first))


@pytest.mark.parametrize("runner", ["forked-quiet", "forked-deaf"])
def test_a_restart_is_asking_and_then_ending_the_process(world: World, runner: str) -> None:
    """Policy and backoff do not matter then, and it is no crash."""
    agent = world.agent("a", runner=runner, restart=Restart(policy="never", base_s=300))
    world.start(table={**TABLE, "forked-deaf": "daemon_runners:serve_deaf"}, grace_s=0.1)
    first = pid_of(agent)
    assert ensure.restart_runner(agent, grace_s=0.2)
    assert not is_alive(first)
    assert wait_until(lambda: (pid := pid_of(agent)) != first and pid)
    assert records(agent) == []


def test_a_restart_brings_back_a_dead_agent(world: World) -> None:
    agent = world.agent("a", SLEEP, want="down")
    agents.write_want(agent, "dead")
    world.start()
    status(agent, "dead")
    assert not ensure.restart_runner(agent)
    wait_until(lambda: starts(agent))


def test_a_real_runner_answers_and_a_killed_one_goes_on(world: World) -> None:
    """With the table as it is shipped: the plain agent and the router, forked."""
    agent = world.agent("a", runner="agent", restart=AT_ONCE)
    fs.replace(agent.spec, agent.spec.read_bytes().replace(b'"builtin"', b'"builtin/echo"'))
    world.start(table=RUNNERS)
    stem = world.send(agent, "hello")
    wake.ring_agent(world.home.wake, "a")
    wait_until(lambda: agent.processed(stem).exists())
    first = pid_of(agent)
    os.kill(first, signal.SIGKILL)
    wait_until(lambda: pid_of(agent) != first)
    stem = world.send(agent, "again")
    wait_until(lambda: agent.processed(stem).exists())
    reply = mailbox.find_reply(agent, "a", stem, 0)
    assert reply is not None and "again" in reply.body


def test_a_router_that_moves_mail_between_its_deaths_is_started_again_without_a_growing_wait(world: World) -> None:
    agent = world.agent("w", runner="agent")
    world.start(table=RUNNERS)
    router = world.home.agent("router")
    for deaths in (1, 2):
        stem = world.send(agent)
        wake.ring_agent(world.home.wake, agent.name)
        wait_until(lambda: agent.sent(ids.reply_stem("w", stem, 0)).exists())  # noqa: B023
        os.kill(pid_of(router), signal.SIGKILL)
        wait_until(lambda: len(records(router)) == deaths)  # noqa: B023
    assert [record["restart_count"] for record in records(router)] == [1, 1]


def test_a_second_supervisor_leaves_with_75_and_names_the_first(world: World) -> None:
    first = world.start()
    second = world.start(wait=False)
    assert second.wait(30) == 75
    assert second.stderr is not None
    said = second.stderr.read().decode()
    assert f"pid {first.pid} " in said and said.count("\n") == 1


def test_a_forked_runner_is_born_with_what_it_should_have_and_nothing_else(world: World) -> None:
    world.env["SOME_API_KEY"] = "secret"
    agent = world.agent("a", runner="forked-report", env={"EXTRA": "yes"})
    world.start()
    status(agent, "pending")
    pid_of(agent)
    report = (agent.path / "report").read_text()
    lines = dict(line.split("=", 1) for line in report.splitlines() if "=" in line and not line.startswith("fd "))
    assert set(lines) - {"HOME", "LANG", "LC_ALL", "TZ", "TMPDIR", "LC_CTYPE"} == {
        "PATH",
        "EXTRA",
        "LOOM_HOME",
        "LOOM_AGENT",
        "LOOM_AGENT_DIR",
        "LOOM_READY_FD",
        "LOOM_ALONE_FD",
    }
    descriptors = [line.split() for line in report.splitlines() if line.startswith("fd ")]
    assert [d[1] for d in descriptors] == ["0", "1", "2", "3", "4"]
    assert [d[2] for d in descriptors[:3]] == ["/dev/null", str(agent.stderr), str(agent.stderr)]
    assert f"signals True\nblocked 0\ncwd {agent.path}\nleader True\numask 77\n" in report
    world.stop()
    assert "on stdout\n" in agent.stderr.read_text() and "on stderr\n" in agent.stderr.read_text()


def test_an_executed_runner_is_born_with_the_same(world: World) -> None:
    world.env["SOME_API_KEY"] = "secret"
    agent = world.agent("a", f"env >$1/report; ls /proc/self/fd >$1/fds; {READY}exec sleep 1000")
    world.start()
    status(agent, "idle")
    report = (agent.path / "report").read_text()
    assert "SOME_API_KEY" not in report
    assert (agent.path / "fds").read_text().split() == ["0", "1", "2", "3", "4", "5"]  # 5 is the listing itself


def test_a_bug_in_a_forked_runner_keeps_its_traceback(world: World) -> None:
    agent = world.agent("a", runner="forked-bug", restart=Restart(policy="never"))
    world.start()
    status(agent, "stopped")
    (record,) = records(agent)
    assert record["exit_code"] == 70
    assert "ValueError: this runner is broken" in record["stderr"]


def test_orphans_of_a_living_runner_are_reaped(world: World) -> None:
    """What ends after its parent becomes a child of the supervisor, which must not collect zombies."""
    script = f"(sh -c 'echo $$ >'$1'/orphan; sleep 0.05' &)\n{READY}exec sleep 1000"
    agent = world.agent("a", script)
    world.start()
    orphan = int(wait_until(lambda: (p := agent.path / "orphan").exists() and p.read_text()))
    wait_until(lambda: not Path(f"/proc/{orphan}").exists())


def test_words_written_in_place_are_obeyed_too(world: World) -> None:
    agent = world.agent("a", SLEEP)
    world.start()
    status(agent, "idle")
    for word, seen in (("down", "stopped"), ("up", "idle"), ("nonsense", "stopped")):
        agent.want.write_text(f"{word}\n")
        status(agent, seen)
    assert agent.want.read_text() == "nonsense\n"


def test_without_inotify_it_looks_by_itself(world: World) -> None:
    world.start(blind=True)
    agent = world.agent("a", SLEEP)
    wait_until(lambda: starts(agent))


def test_trouble_with_one_agent_s_files_does_not_stop_the_others(world: World) -> None:
    agent = world.agent("a", SLEEP)
    logs = agent.logs.rename(agent.path / "away")
    agent.logs.touch()  # neither its log nor its stderr can be opened
    world.start()
    wait_until(lambda: starts(world.agent("good", SLEEP)))
    assert starts(agent) == []
    agent.logs.unlink()
    logs.rename(agent.logs)
    agents.write_want(agent, "up")  # without asking it is tried again after some seconds
    wait_until(lambda: starts(agent))


def test_crash_records_are_bounded(world: World) -> None:
    agent = world.agent("a", "exit 3", restart=Restart(base_s=0, limit=1000))
    for number in range(120):
        (agent.crashes / f"0000000000{number:03d}-{'0' * 26}.json").write_text("{}")
    world.start()
    wait_until(lambda: len([r for r in records(agent) if r]) >= 2)
    agents.write_want(agent, "down")
    status(agent, "stopped")
    assert len(records(agent)) == 100


__all__ = ["AT_ONCE", "TABLE"]


def test_a_runner_in_shell_is_served_like_any_other(world: World) -> None:
    """runners/sh-agent: ready, answers what `answer` in its directory prints, leaves when asked."""
    if missing := [need for need in ("jq", "flock") if shutil.which(need) is None]:
        pytest.skip(f"sh-agent needs {', '.join(missing)} (Debian: apt-get install jq)")
    agent = world.agent("shell", runner="sh-agent")
    program = agent.path / "answer"
    program.write_text("#!/bin/sh\ntr a-z A-Z\n")
    program.chmod(0o755)
    world.start()
    stem = world.send(agent, "hello")
    reply = wait_until(lambda: mailbox.find_reply(agent, "shell", stem, 0))
    assert reply.body == "HELLO"
    assert world.stop() == 0
    assert not locks.is_held(agent.lock)
