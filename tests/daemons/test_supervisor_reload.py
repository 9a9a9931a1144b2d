"""`loom supervisor reload`: other code in the same process, and nobody notices."""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from support import ROOT, processes_of, wait_until
from world import HERE, READY, TABLE, World, is_alive, pid_of, records, starts, status

from loom.cli import ensure
from loom.core.supervision import Seen
from loom.daemons import handover
from loom.daemons.charge import Cause, Held, Process
from loom.proc import pidfd, tree
from loom.spool import agents, fs, locks, mailbox, running, wake
from loom.wire.agent import AgentLimits, AgentSpec, Restart

SERVED = {**TABLE, "agent": "loom.daemons.runner:serve_agent"}
# A supervisor whose code, in its second life, is slow to come up: it says that it is there, and waits. Its trial
# does so while there is a file `hold`.
SLOW = f"""
import os, sys, time
from pathlib import Path
place = Path(os.environ["LOOM_HOME"]).parent
if os.environ.get("LOOM_HANDOVER", "").startswith("take"):
    (place / "between").touch()
    while not (place / "go on").exists():
        time.sleep(0.005)
if os.environ.get("LOOM_HANDOVER", "").startswith("try"):
    with (place / "trials").open("a") as file:
        print(os.getpid(), file=file)
    while (place / "hold").exists():
        time.sleep(0.005)
from loom.daemons.supervisor import Supervisor
from loom.spool.home import open_home
sys.exit(Supervisor(open_home(Path(os.environ["LOOM_HOME"])), table={TABLE!r}).run())
"""


def loom(world: World, *words: str, path: Path = ROOT) -> subprocess.CompletedProcess[str]:
    env = {"PATH": os.environ["PATH"], "PYTHONPATH": f"{path}:{HERE}", "LOOM_HOME": str(world.home.path)}
    command = [sys.executable, "-P", "-m", "loom", *words]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)


def reloaded(world: World, **how: Any) -> dict[str, Any]:
    done = loom(world, "supervisor", "reload", "--json", **how)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert isinstance(found, dict)
    return found


def started(world: World, *command: str, path: Path = ROOT) -> subprocess.Popen[bytes]:
    """A supervisor by this command line, once it says which code it runs."""
    env = {"PATH": os.environ["PATH"], "PYTHONPATH": f"{path}:{HERE}", "LOOM_HOME": str(world.home.path)}
    child = subprocess.Popen([sys.executable, *command], env=env, stderr=subprocess.DEVNULL)
    world.supervisors.append(child)
    wait_until(lambda: (said := running.read(world.home)) and said.pid == child.pid)
    return child


def slow(world: World) -> tuple[subprocess.Popen[bytes], Path]:
    """A supervisor in the middle of its exec; and what is to be made for it to go on."""
    child = started(world, "-c", SLOW)
    for name in world.home.agents.iterdir():
        if (name / "want").exists() and (name / "want").read_text().strip() == "up":
            pid_of(world.home.agent(name.name))
    child.send_signal(signal.SIGHUP)
    place = world.home.path.parent
    wait_until((place / "between").exists)
    assert locks.holder(world.home.supervisor_lock) == locks.Incarnation(
        child.pid, pidfd.start_of(child.pid) or 0, locks.boot_id()
    )
    return child, place / "go on"


def descriptors(pid: int) -> Counter[str]:
    """What a process has open, by kind: pipes and the like have other numbers after each reload."""
    found: Counter[str] = Counter()
    for number in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(FileNotFoundError):
            found[os.readlink(f"/proc/{pid}/fd/{number}").split(":[")[0]] += 1
    return found


def test_it_says_what_it_did_and_agents_do_not_notice(world: World) -> None:
    quiet, program = world.agent("a", runner="forked-quiet"), world.agent("b", f"{READY}exec sleep 1000")
    child = world.start()
    status(program, "idle")
    before = [pid_of(quiet), pid_of(world.home.agent("router"))]
    program_pid = agents.read_hint(program.pid)
    done = loom(world, "supervisor", "reload")
    assert (done.returncode, done.stdout) == (0, f"pid {child.pid}: {running.code()} → {running.code()} (the same)\n")
    held = descriptors(child.pid)  # and what it has open for a moment: it answers before it has looked at its agents
    assert reloaded(world)["pid"] == child.pid
    assert child.poll() is None
    wait_until(lambda: not descriptors(child.pid) - held)
    assert [pid_of(quiet), pid_of(world.home.agent("router"))] == before
    assert agents.read_hint(program.pid) == program_pid and is_alive(int(program_pid))
    wait_until(lambda: not descriptors(child.pid) - held)
    # What only the first code could know is known to this one: whose children they are, and how they end.
    os.kill(before[0], signal.SIGUSR1)
    wait_until(lambda: records(quiet))
    assert records(quiet)[0]["exit_code"] == 33
    assert world.stop() == 0
    assert not world.home.supervisor_record.exists()


def test_without_its_record_it_is_reloaded_all_the_same(world: World) -> None:
    child = world.start()
    reloaded(world)
    for _ in range(2):
        world.home.supervisor_record.unlink()
        done = loom(world, "supervisor", "reload", "--timeout", "30")
        told = f"pid {child.pid}: {running.code()} → {running.code()} (the same)\n"
        assert (done.returncode, done.stdout) == (0, told), done.stderr


def test_without_a_supervisor_there_is_nothing_to_reload(world: World) -> None:
    done = loom(world, "supervisor", "reload")
    assert done.returncode == 66 and done.stderr.count("\n") == 1


def test_a_turn_in_flight_goes_on(world: World, tmp_path: Path) -> None:
    program = tmp_path / "model"
    program.write_text(f"#!/bin/sh\nwhile ! [ -e {tmp_path}/answer ]; do sleep 0.01; done\nprintf done\n")
    program.chmod(0o755)
    agent = agents.create(world.home, AgentSpec("a", f"exec/{program}"), "", "up")
    world.start(table=SERVED)
    pid = pid_of(agent)
    stem = world.send(agent)
    wake.ring_agent(world.home.wake, "a")
    status(agent, "running")  # which it says before it takes the message
    wait_until(lambda: mailbox.in_progress(agent))
    reloaded(world)
    assert mailbox.in_progress(agent)
    (tmp_path / "answer").touch()
    reply = wait_until(lambda: mailbox.find_reply(agent, "a", stem, 0))
    assert reply.body == "done" and pid_of(agent) == pid and records(agent) == []
    wait_until(lambda: not mailbox.in_progress(agent))
    assert len(list((agent.path / "turns").iterdir())) == 1


@pytest.mark.parametrize("number, code, name", [(signal.SIGUSR1, 33, None), (signal.SIGKILL, None, "SIGKILL")])
def test_who_ends_in_between_is_seen_with_its_exit(world: World, number: int, code: int | None, name: str) -> None:
    agent = world.agent("a", runner="forked-quiet")
    _, go_on = slow(world)
    pid = pid_of(agent)
    os.kill(pid, number)
    wait_until(lambda: not is_alive(pid))
    assert tree.look_at(pid) is not None, "somebody has taken its exit"
    go_on.touch()
    wait_until(lambda: records(agent))
    assert (records(agent)[0]["exit_code"], records(agent)[0]["signal"]) == (code, name)
    assert pid_of(agent) != pid


def test_an_adopted_one_that_ends_in_between_too(world: World) -> None:
    agent = world.agent("a", runner="forked-quiet")
    world.start()
    pid = pid_of(agent)
    world.supervisors[-1].kill()
    world.supervisors[-1].wait(30)
    _, go_on = slow(world)
    assert pid_of(agent) == pid
    os.kill(pid, signal.SIGUSR1)
    wait_until(lambda: not is_alive(pid))
    go_on.touch()
    wait_until(lambda: records(agent))
    assert records(agent)[0]["exit_code"] == 33


def test_what_is_asked_and_sent_in_between_is_heard(world: World) -> None:
    works = f'echo $$ >>"$1/starts"; rm -f "$1"/inbox/*.msg; {READY}exit 0\n'
    dormant = world.agent("dormant", works, want="demand", restart=Restart(base_s=1000, max_s=1000))
    crashed = world.agent("crashed", "echo $$ >>$1/starts; exit 3\n", restart=Restart(base_s=1000, max_s=1000))
    for count in (1, 2):  # the second time it would wait before a third
        world.send(dormant)
        wake.ring_agent(world.home.wake, "dormant") if count > 1 else started(world, "-c", SLOW)
        wait_until(lambda count=count: len(starts(dormant)) == count)
        wait_until(lambda: not agents.has_mail(dormant))
        # Its end must have been seen: mail for one that still runs is that one's.
        wait_until(lambda: f" {starts(dormant)[-1]}." in agents.read_hint(dormant.last_exit))
    wait_until(lambda: records(crashed))
    world.supervisors[-1].send_signal(signal.SIGHUP)
    place = world.home.path.parent
    wait_until((place / "between").exists)
    world.send(dormant)
    agents.write_want(crashed, "up")
    born = world.agent("born", runner="forked-quiet")
    (place / "go on").touch()
    wait_until(lambda: len(starts(dormant)) == 3)
    wait_until(lambda: len(starts(crashed)) == 2)
    assert pid_of(born)


def test_a_crash_before_counts_after(world: World) -> None:
    agent = world.agent("a", "echo $$ >>$1/starts; exit 3\n", restart=Restart(base_s=1000, max_s=1000))
    world.start()
    wait_until(lambda: records(agent))
    reloaded(world)
    reloaded(world)
    assert len(starts(agent)) == 1, "its wait was forgotten"
    status(agent, "restarting")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_told_to_leave_in_between_it_leaves(world: World, number: int) -> None:
    agent = world.agent("a", runner="forked-quiet")
    child, go_on = slow(world)
    pid = pid_of(agent)
    child.send_signal(number)
    go_on.touch()
    assert child.wait(30) == 0
    assert not is_alive(pid)


def test_killed_in_between_the_next_one_adopts(world: World) -> None:
    agent = world.agent("a", runner="forked-quiet")
    child, _ = slow(world)
    pid = pid_of(agent)
    child.kill()
    child.wait(30)
    assert is_alive(pid)
    ensure.ensure_supervisor(world.home)
    assert pid_of(agent) == pid
    who = wait_until(lambda: ensure.supervisor_of(world.home))
    assert who.pid != child.pid
    agents.write_want(agent, "down")
    status(agent, "stopped")


def test_twenty_times_under_mail(world: World) -> None:
    quick = Restart(base_s=0)
    names = ("up", "zero", "one")
    agents.create(world.home, AgentSpec("up", "builtin/echo", restart=quick), "", "up")
    agents.create(world.home, AgentSpec("one", "builtin/echo", restart=quick), "", "up")
    agents.create(world.home, AgentSpec("zero", "builtin/echo", scale="to-zero", idle_s=0.05, restart=quick), "", "up")
    fs.replace(world.home.routes, json.dumps({"v": 1, "routes": [{"from": "up", "to": "one"}]}).encode())
    child = started(world, "-P", "-m", "loom", "supervisor", "run")
    boxes = [world.home.agent(name) for name in names]
    before = [pid_of(boxes[0]), pid_of(boxes[2])]
    sent: dict[str, set[str]] = {name: set() for name in names}
    for _ in range(20):
        answered = running.read(world.home)
        assert answered is not None
        child.send_signal(signal.SIGHUP)
        while (said := running.read(world.home)) is None or said.answered == answered.answered:
            for box in boxes[:2]:
                sent[box.name].add(world.send(box))
                wake.ring_agent(world.home.wake, box.name)
            select.select([], [], [], 0.02)
    assert running.read(world.home).answered == 20  # type: ignore[union-attr]
    for box in boxes[:2]:
        wait_until(lambda box=box: not agents.has_mail(box) and not mailbox.outgoing(box), 60)
        processed = {path.stem for path in box.inbox.glob(".processed/*/*.msg")}
        replies = [path.name for path in box.outbox.glob(".sent/*/*.msg")]
        assert processed == sent[box.name] and len(replies) == len(processed)
    wait_until(lambda: not agents.has_mail(boxes[2]) and not mailbox.outgoing(boxes[2]), 60)
    assert len(list(boxes[2].inbox.glob(".processed/*/*.msg"))) == len(sent["up"])
    assert [pid_of(boxes[0]), pid_of(boxes[2])] == before
    assert [records(box) for box in boxes] == [[], [], []]
    assert world.stop() == 0


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A directory with a copy of loom, to be changed."""
    place = tmp_path / "package"
    shutil.copytree(ROOT / "loom", place / "loom")  # with what was compiled, for it keeps its times
    for name in ("runners", "tools"):
        (place / name).symlink_to(ROOT / name)
    return place


def edit(package: Path, module: str, old: str, new: str) -> None:
    path = package / "loom" / module
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_the_code_is_really_another(world: World, package: Path) -> None:
    agent = world.agent("a", runner="forked-quiet")
    child = started(world, "-P", "-m", "loom", "supervisor", "run", path=package)
    old = running.read(world.home)
    assert old is not None and old.code.startswith("0.1.0 ")
    edit(package, "wire/release.py", '"0.1.0"', '"10.0.0-next"')
    edit(package, "daemons/supervisor.py", '"loom-supervisor"', '"loom-next"')
    assert (
        f"other code than this command ({old.code}, 10.0.0-next "
        in loom(world, "supervisor", "status", path=package).stderr
    )
    told = reloaded(world, path=package)
    assert (told["pid"], told["before"]) == (child.pid, old.code) and told["code"].startswith("10.0.0-next ")
    assert Path(f"/proc/{child.pid}/comm").read_text() == "loom-next\n"
    assert "other code" not in loom(world, "supervisor", "status", path=package).stderr
    agents.write_want(agent, "down")


BROKEN = {
    "a syntax error": ("daemons/ward.py", "class Ward:", "class Ward", "SyntaxError"),
    "in what only forks import": ("models/anthropic.py", "def ", "dfe ", "SyntaxError"),
    "an import that fails": ("daemons/router.py", "from loom.spool import ", "from loom.spool import nix, ", "nix"),
    "another handover": ("daemons/handover.py", "VERSION = 1", "VERSION = 22", "handover version 1"),
    "no such module": ("__main__.py", "loom.cli", "loom.cloth", "loom.cloth"),
}  # fmt: skip


@pytest.mark.parametrize("how", BROKEN)
def test_code_that_cannot_start_replaces_nothing(world: World, package: Path, how: str) -> None:
    agents.create(world.home, AgentSpec("a", "builtin/echo"), "", "up")
    agent = world.home.agent("a")
    child = started(world, "-P", "-m", "loom", "supervisor", "run", path=package)
    pid = pid_of(agent)
    module, old, new, word = BROKEN[how]
    edit(package, module, old, new)
    done = loom(world, "supervisor", "reload")
    assert done.returncode == 78 and done.stderr.count("\n") == 1
    assert done.stderr.startswith("loom: the installed code cannot take over: ") and word in done.stderr
    assert child.poll() is None and pid_of(agent) == pid
    stem = world.send(agent)
    wait_until(lambda: mailbox.find_reply(agent, "a", stem, 0))
    edit(package, module, new, old)
    assert reloaded(world)["pid"] == child.pid
    assert pid_of(agent) == pid


def test_one_that_is_leaving_does_not_begin_anew(world: World) -> None:
    agent = world.agent("a", "trap '' TERM; echo $$ >>$1/starts\n" + READY + "while :; do sleep 0.05; done\n")
    child = world.start(grace_s=600.0)
    status(agent, "idle")
    child.send_signal(signal.SIGTERM)
    wait_until(lambda: running.read(world.home))
    done = loom(world, "supervisor", "reload")
    assert done.returncode == 75 and "leaving" in done.stderr
    child.send_signal(signal.SIGTERM)  # asked twice: at once
    assert child.wait(30) == 0


def tried(world: World) -> tuple[subprocess.Popen[bytes], int]:
    """A supervisor whose trial does not end; the trial's pid."""
    place = world.home.path.parent
    (place / "hold").touch()
    (place / "go on").touch()
    child = started(world, "-c", SLOW)
    child.send_signal(signal.SIGHUP)
    wait_until((place / "trials").exists)
    return child, int(wait_until(lambda: (place / "trials").read_text()))


def test_a_trial_that_is_killed_says_nothing_about_the_code(world: World) -> None:
    child, trial = tried(world)
    os.kill(trial, signal.SIGKILL)
    said = wait_until(lambda: (now := running.read(world.home)) and now.answered and now)
    assert (said.pid, said.status) == (child.pid, 75)
    assert child.poll() is None
    (world.home.path.parent / "hold").unlink()
    assert reloaded(world)["pid"] == child.pid


def test_during_a_trial_agents_are_served(world: World) -> None:
    tried(world)
    agent = world.agent("a", runner="forked-quiet")
    os.kill(pid_of(agent), signal.SIGUSR1)
    wait_until(lambda: records(agent))
    assert records(agent)[0]["exit_code"] == 33


def test_asked_during_a_trial_it_tries_what_lies_there_then(world: World) -> None:
    child, _ = tried(world)
    for _ in range(3):
        child.send_signal(signal.SIGHUP)
    place = world.home.path.parent
    (place / "hold").unlink()
    wait_until(lambda: (now := running.read(world.home)) and now.answered)
    assert len((place / "trials").read_text().split()) == 2
    assert child.poll() is None


def test_asked_when_a_trial_has_just_ended_it_tries_again_before_it_becomes_anything(world: World) -> None:
    """Both are there when the supervisor looks, the trial's end first."""
    child, trial = tried(world)
    place = world.home.path.parent
    child.send_signal(signal.SIGSTOP)
    wait_until(lambda: (found := tree.look_at(child.pid)) and found.state == "T")
    (place / "hold").unlink()
    wait_until(lambda: not is_alive(trial))
    (place / "hold").touch()
    child.send_signal(signal.SIGHUP)
    child.send_signal(signal.SIGCONT)
    wait_until(lambda: len((place / "trials").read_text().split()) == 2)
    agent = world.agent("a", runner="forked-quiet")
    pid_of(agent)  # it has gone on meanwhile
    assert not (place / "between").exists() and not running.read(world.home).answered  # type: ignore[union-attr]
    (place / "hold").unlink()
    wait_until(lambda: (now := running.read(world.home)) and now.answered)
    assert (place / "between").exists() and len((place / "trials").read_text().split()) == 2
    assert child.poll() is None


def test_asked_as_soon_as_it_has_the_home_it_reloads_when_it_can(world: World) -> None:
    early = f"""
import os, signal, sys
from pathlib import Path
from loom.daemons.supervisor import Supervisor
from loom.proc import tree
from loom.spool.home import open_home
become = tree.become_subreaper
def asked():
    if "LOOM_HANDOVER" not in os.environ:
        os.kill(os.getpid(), signal.SIGHUP)
    become()
tree.become_subreaper = asked
sys.exit(Supervisor(open_home(Path(os.environ["LOOM_HOME"])), table={TABLE!r}).run())
"""
    child = started(world, "-c", early)
    wait_until(lambda: child.poll() is not None or ((now := running.read(world.home)) and now.answered))
    assert child.poll() is None


def test_told_to_leave_during_a_trial_it_leaves_with_it(world: World) -> None:
    child, trial = tried(world)
    child.send_signal(signal.SIGTERM)
    assert child.wait(30) == 0
    assert not is_alive(trial)


def test_what_a_message_has_used_stays_counted(world: World, tmp_path: Path) -> None:
    """Half of its processor time before, half after: together too much."""
    spin = "import os, time, pathlib\n"
    spin += "def spin(s):\n    end = time.process_time() + s\n    while time.process_time() < end: pass\n"
    spin += f"spin(1.0)\nwhile not pathlib.Path({str(tmp_path / 'more')!r}).exists(): time.sleep(0.02)\n"
    program = tmp_path / "model"
    program.write_text(f"#!{sys.executable}\n{spin}spin(60)\n")
    program.chmod(0o755)
    spec = AgentSpec("a", f"exec/{program}", limits=AgentLimits(cpu_s=2.0), restart=Restart(base_s=0))
    agent = agents.create(world.home, spec, "", "up")
    world.start(table=SERVED)
    pid_of(agent)
    stem = world.send(agent)
    status(agent, "running")
    reloaded(world)
    (tmp_path / "more").touch()
    reply = wait_until(lambda: mailbox.find_reply(agent, "a", stem, 0))
    assert reply.body == "limit: cpu 2 s exceeded"


# -- what is handed over ---------------------------------------------------------------------------------------


def test_what_a_foreign_runner_has_promised_stays_promised(world: World) -> None:
    claims = "until mv $1/inbox/*.msg $1/inbox/.in-progress/; do sleep 0.05; done 2>/dev/null\n"
    hangs = f"{READY}{claims}echo '1 working' >$1/heartbeat\nexec sleep 1000\n"
    agent = world.agent("a", hangs, options={"respond_s": 2.0}, restart=Restart(policy="never"))
    world.start()
    world.send(agent)
    wait_until(lambda: agent.heartbeat.exists() and agent.heartbeat.read_text())
    reloaded(world)
    wait_until(lambda: [r["error_type"] for r in records(agent)] == ["not_responding"])


def _handover(who: locks.Incarnation, lock: int) -> handover.Handover:
    seen = Seen(running=True, ready=True, started_s=12.5, ran_asked="a", n=3, crashes=(1.0, 2.5), last="crash")
    process = Process(7, 8, lock, True, -1, "now", 5, frozenset({("x", 1), ("y", 2)}))
    held = {
        "a": Held("up", seen, Cause("limit", "limit: memory", "ask for less"), (1, 2.0, 3.0), process),
        "b": Held("demand", Seen()),
    }
    values = (who, lock, (lock, lock), (1024, -1), (1, 2), 4, "0.1.0 abc", held)
    return handover.Handover(*values, filters=(9, 10), connections=((10, lock),))


def test_it_arrives_as_it_was_sent() -> None:
    sent = _handover(locks.own_incarnation(), 1)
    assert handover.decode(handover.encode(sent)) == sent


@pytest.mark.parametrize("data", [b"", b"{}", b"[]", b'{"v":9}', b'{"v":1,"who":"x","agents":{}}'])
def test_what_is_no_handover_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError):
        handover.decode(data)


def test_a_field_that_this_code_does_not_know_is_refused() -> None:
    data = json.loads(handover.encode(_handover(locks.own_incarnation(), 1)))
    data["agents"]["a"]["seen"]["mood"] = "good"
    with pytest.raises(ValueError, match="mood"):
        handover.decode(json.dumps(data).encode())


def test_only_the_process_itself_takes_it(tmp_path: Path) -> None:
    lock = locks.acquire(tmp_path / "lock")
    assert lock is not None
    lock.sign(locks.own_incarnation())
    handover.keep(_handover(locks.own_incarnation(), lock.fd))
    with pytest.raises(ValueError, match="which we are not"):
        handover.keep(_handover(locks.Incarnation(1, 2, "boot"), lock.fd))
    with pytest.raises(ValueError, match="not handed over"):
        handover.keep(_handover(locks.own_incarnation(), 9999))
    taken = locks.take_over(os.dup(lock.fd), tmp_path / "lock")
    assert locks.holder(tmp_path / "lock") == locks.own_incarnation()
    lock.sign(locks.Incarnation(1, 2, "boot"))
    with pytest.raises(ValueError, match="not signed"):
        locks.take_over(lock.fd, tmp_path / "lock")
    os.close(taken.fd)


@pytest.mark.parametrize("value", ["take 99", "take", "try x"])
def test_a_variable_that_was_left_over_names_nothing(world: World, value: str) -> None:
    env = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(ROOT),
        "LOOM_HOME": str(world.home.path),
        "LOOM_HANDOVER": value,
    }
    command = [sys.executable, "-m", "loom", "supervisor", "run"]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 78 and done.stderr.count("\n") == 1
    assert processes_of(world.home.path) == {}
