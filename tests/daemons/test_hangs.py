"""A corpus of hangs: each is met by real processes, is called by its name, is acted upon, and the queue goes on.

And their neighbours, who are slow and work: nobody touches them. All share one supervisor with short deadlines, so that
they hang at the same time.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from far_side import HOLD, FarSide
from support import ROOT, wait_until
from world import AT_ONCE, READY, TABLE, World, is_alive, made, pid_of, records, starts

from loom.cli import agent_state
from loom.daemons import service
from loom.proc import enclosure, toolcall
from loom.proc.stopping import Stopping
from loom.proc.toolbox import Tool
from loom.spool import agents, fsck, heartbeat, locks, mailbox, threads, wake
from loom.spool.layout import AgentDir
from loom.spool.logs import Log
from loom.wire import hang, ids, settings
from loom.wire.agent import AgentSpec, Restart
from loom.wire.chat import ToolSpec
from loom.wire.message import Message

SERVED = {**TABLE, "agent": "loom.daemons.runner:serve_agent", "hanging": "daemon_runners:serve_hanging"}
SHORT_S = 2.0  # of the settings, which are those of the home
RESPOND_S = 0.6  # of agents that are to be found not to respond
CONFIG = {
    "liveness": {
        **dict.fromkeys(("first_byte", "silence", "keepalive", "program"), SHORT_S),
        "stopped": 0.5,
        "lock": 0.5,
        "artifact_steps": 4,
    }
}

STREAM = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"


def event(text: str = "", finish: str | None = None) -> bytes:
    chunk = {"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": finish}]}
    return b"data: " + json.dumps(chunk).encode() + b"\n\n"


WHOLE = [STREAM, event("well", "stop"), b"data: [DONE]\n\n"]


def comments() -> Iterator[bytes]:
    yield STREAM
    for _ in range(1000):
        yield b": still here\n\n"
        time.sleep(0.2)


def slowly() -> Iterator[bytes]:
    """Five pieces, each well within the silence that is allowed; together far more than that."""
    yield STREAM
    for word in ("slow ", "but ", "it ", "goes "):
        yield event(word)
        time.sleep(0.3 * SHORT_S)
    yield event("on", "stop")
    yield b"data: [DONE]\n\n"


# What a tool does when it is invoked, as shell; its stdin is the input.
TOOLS = {
    "look": 'cat > /dev/null; echo \'{"status":"ok","result":1}\'',
    "fail": 'cat > /dev/null; echo \'{"status":"error","error":"no"}\'',
    "now": 'cat > /dev/null; date \'+{"status":"ok","result":%s%N}\'',
    "endless": "exec sleep 1000",
    "deaf": "trap '' TERM; while :; do sleep 1000; done",
    "slow": 'sleep 2; echo \'{"status":"ok","result":1}\'',
}


def call(name: str, **given: Any) -> dict[str, Any]:
    return {"calls": [{"name": name, "input": given}]}


@dataclass
class Case:
    """One hang: the shape by which it is to be called, and how it comes about.

    server   what a model server says to the first request; the second is answered
    program  what a model program, as shell, does when it is asked for the first time
    script   what the model says, turn for turn
    hanging  what the runner of ours that hangs is told
    foreign  a runner in shell
    ends     the kind of failure that the message is answered with; empty: it is answered in the end
    """

    shape: str
    server: Iterable[bytes] | None = None
    program: str = ""
    script: list[dict[str, Any]] = field(default_factory=list)
    hanging: str = ""
    foreign: str = ""
    ends: str = ""
    options: dict[str, Any] = field(default_factory=dict)
    restart: Restart = AT_ONCE


SAME = call("look", path="notes/A  b.md", limit=3)
ALIKE = call("look", limit=3, path="Notes/a B.md")
OTHER = call("look", path="c")
ANSWER = {"text": "enough"}
# Foreign runners: they claim what comes and note their start.
CLAIM = (
    'echo $$ >> "$1/starts"\n'
    + READY
    + 'next() { for f in "$1"/inbox/.in-progress/*.msg; do [ -e "$f" ] && return 0; done; '
    'for f in "$1"/inbox/*.msg; do [ -e "$f" ] && mv "$f" "$1/inbox/.in-progress/"; done; sleep 0.05; return 1; }\n'
    'until next "$1"; do :; done\n'
)

CORPUS = {
    "server never answers": Case("silent_stream", server=[HOLD]),
    "server sends a head and nothing more": Case("silent_stream", server=[STREAM, HOLD]),
    "server falls silent in the middle": Case("silent_stream", server=[STREAM, event("half"), HOLD]),
    "server only says that it is still there": Case("keepalive_only", server=comments()),
    "program prints nothing": Case("silent_program", program="exec sleep 1000"),
    "program never comes to an end": Case("program_overdue", program="while :; do echo word; sleep 0.1; done"),
    "model repeats a call": Case("repeats", script=[SAME] * 4, ends="repeats"),
    "model repeats a call in other words": Case("repeats", script=[SAME, ALIKE, SAME, ALIKE], ends="repeats"),
    "model repeats what fails": Case("repeats", script=[call("fail", path="x")] * 3 + [ANSWER]),
    "model goes to and fro": Case("alternates", script=[SAME, OTHER] * 4, ends="alternates"),
    "model goes round": Case(
        "alternates", script=[SAME, OTHER, call("look", path="d")] * 3 + [ANSWER], options={"artifact_steps": 0}
    ),
    "model finds nothing new": Case(
        "no_artifact", script=[call("fail", path=f"{n}") for n in range(9)], ends="no_artifact"
    ),
    "model says one line for ever": Case("repetition", script=[{"text": "so it is\n" * 80}], ends="repetition"),
    "tool never ends": Case("tool_overdue", script=[call("endless"), ANSWER], options={"tool_s": 0.5}),
    "tool ignores SIGTERM": Case("tool_deaf", script=[call("deaf"), ANSWER], options={"tool_s": 0.5}),
    "runner spins": Case("not_responding", hanging="spin", ends="poison", options={"respond_s": RESPOND_S}),
    "runner waits for itself": Case(
        "not_responding", hanging="deadlock", ends="poison", options={"respond_s": RESPOND_S}
    ),
    "message kills its runner": Case("poison", hanging="die", ends="poison"),
    "foreign runner claims and never answers": Case(
        "claimed_too_long", foreign=CLAIM + "exec sleep 1000", ends="claimed_too_long", options={"claim_s": 0.6}
    ),
    "foreign runner breaks its promise": Case(
        "not_responding",
        foreign=CLAIM + 'echo "0.2 working" > "$1/heartbeat"\nexec sleep 1000',
        ends="dead",
        options={"respond_s": RESPOND_S},
        restart=Restart(base_s=0, limit=2),
    ),
    "foreign runner claims nothing": Case(
        "unclaimed", foreign='echo $$ >> "$1/starts"\n' + READY + "exec sleep 1000", options={"respond_s": RESPOND_S}
    ),
}
# Who works, however slowly: no shape, one process, an answer.
WORKING = {
    "a stream that goes on": Case("", server=slowly()),
    "a program that thinks first": Case("", program=f"sleep {0.5 * SHORT_S}; echo well"),
    "a long tool that says nothing": Case("", script=[call("slow"), ANSWER], options={"respond_s": RESPOND_S}),
    "a model that waits for something": Case("", script=[call("now")] * 8 + [ANSWER]),
    "a model that reads one page after the other": Case(
        "", script=[call("look", path=f"{n}") for n in range(9)] + [ANSWER]
    ),
    "a runner that takes its time": Case("", hanging="slow", options={"respond_s": 2.5}),
    "a foreign runner that promised nothing": Case(
        "", foreign=CLAIM + 'sleep 2.5; : > "$1/done"; exec sleep 1000', options={"respond_s": RESPOND_S}
    ),
}


@dataclass
class Ward:
    """One home with all of them, told to work at the same moment."""

    world: World
    stems: dict[str, str] = field(default_factory=dict)
    pids: dict[str, int] = field(default_factory=dict)

    def agent(self, kind: str) -> AgentDir:
        return self.world.home.agent(_name(kind))

    def tell(self, kind: str, body: str) -> str:
        agent = self.agent(kind)
        stem = self.world.send(agent, body)
        wake.ring_agent(self.world.home.wake, agent.name)
        return stem


def _name(kind: str) -> str:
    return kind.replace(" ", "-").lower()[:40].rstrip("-")


@pytest.fixture(scope="module")
def ward(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ward]:
    place = tmp_path_factory.mktemp("hangs")
    with contextlib.ExitStack() as stack:
        world = stack.enter_context(made(place))
        config: dict[str, Any] = {**CONFIG, "providers": {}}
        found = Ward(world)
        for kind, case in (CORPUS | WORKING).items():
            if case.server is not None:
                side = stack.enter_context(FarSide(answers=[case.server, WHOLE, WHOLE]))
                config["providers"][_name(kind)] = {"base_url": side.url}
            _make(world, place, kind, case)
        world.home.config.write_text(json.dumps(config))  # JSON is YAML
        world.start(table=SERVED)
        for kind, case in (CORPUS | WORKING).items():
            if not case.foreign:
                found.pids[kind] = pid_of(found.agent(kind))
            found.stems[kind] = found.tell(kind, case.hanging or "hang")
        yield found


def _make(world: World, place: Path, kind: str, case: Case) -> None:
    name = _name(kind)
    agent = world.home.agent(name)
    model, runner = "builtin/echo", "agent"
    if case.server is not None:
        model = f"{name}/m"
    elif case.program:
        program = place / f"{name}.sh"
        once = f"cat > /dev/null; if [ ! -e {program}.met ]; then : > {program}.met; {case.program}; fi"
        program.write_text(f"#!/bin/sh\n{once}\necho well\n")
        program.chmod(0o755)
        model = f"exec/{program}"
    elif case.script:
        script = place / f"{name}.ndjson"
        after = {"match": "and now", "text": "well"}
        script.write_text("".join(json.dumps(one) + "\n" for one in (*case.script, after)))
        model = f"script/{script}"
    elif case.hanging:
        runner = "hanging"
    tools = tuple(TOOLS) if case.script else ()
    if case.foreign:
        world.agent(name, case.foreign, restart=case.restart, options=case.options)
        return
    spec = AgentSpec(name, model, runner, tools, restart=case.restart, options=case.options)
    agent = agents.create(world.home, spec, "", "up")
    for tool, body in TOOLS.items():
        about = json.dumps({"name": tool, "description": tool, "input_schema": {"type": "object"}, "idempotent": True})
        path = agent.tools / tool
        path.write_text(f"#!/bin/sh\nif [ $1 = describe ]; then echo '{about}'; exit; fi\n{body}\n")
        path.chmod(0o700)


def log(agent: AgentDir) -> list[dict[str, Any]]:
    found = []
    for path in sorted(agent.logs.glob("*.ndjson")):
        found += [json.loads(line) for line in path.read_bytes().splitlines()]
    return found


def reply(agent: AgentDir, stem: str) -> Message:
    found = wait_until(lambda: mailbox.find_reply(agent, agent.name, stem, 0), 60)
    assert isinstance(found, Message)
    return found


def named(agent: AgentDir) -> set[str]:
    """The shapes of which the agent's log speaks."""
    found = set()
    for line in log(agent):
        words = (
            line.get("error_type"),
            *(hang.shape_of(str(line.get(k, ""))) for k in ("error", "warning", "why")),
        )
        found |= {word for word in words if word in hang.SHAPES}
    return found


@pytest.mark.parametrize("kind", CORPUS)
def test_a_hang_is_named_and_the_queue_goes_on(ward: Ward, kind: str) -> None:
    case, agent = CORPUS[kind], ward.agent(kind)
    if case.shape == "unclaimed":
        wait_until(lambda: case.shape in named(agent))
        assert agents.waiting(agent) == 1 and len(starts(agent)) == 1  # its mail is safe, and so is its process
        return
    answer = reply(agent, ward.stems[kind])
    wait_until(lambda: case.shape in named(agent))  # what fails is answered first and logged then
    assert named(agent) <= {case.shape, case.ends}, "and by no other name"
    assert answer.error == bool(case.ends), answer.body
    if case.ends:
        data = answer.data or {}
        assert data["error_type"] == case.ends
        wait_until(lambda: agent.error_of(ward.stems[kind]).exists())
        if case.shape != case.ends:
            assert case.shape in answer.body, "the dead letter says why"
    if case.ends == "dead":
        return
    again = reply(agent, ward.tell(kind, "and now?"))
    assert again.error == bool(case.foreign), again.body
    assert agents.read_want(agent) == "up"


@pytest.mark.parametrize("kind", WORKING)
def test_whoever_works_slowly_is_left_alone(ward: Ward, kind: str) -> None:
    case, agent = WORKING[kind], ward.agent(kind)
    if case.foreign:
        wait_until((agent.path / "done").exists)
        assert len(starts(agent)) == 1
    else:
        answer = reply(agent, ward.stems[kind])
        assert not answer.error, answer.body
        assert pid_of(agent) == ward.pids[kind]
    assert not named(agent) and not records(agent)


# -- hangs that need a world of their own ------------------------------------------------------------------------------


def ps(world: World, *words: str) -> str:
    """What `loom agent ps` prints."""
    env = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "LOOM_HOME": str(world.home.path)}
    command = [sys.executable, "-m", "loom", "agent", "ps", *words]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=30, check=True).stdout


def shown(world: World, agent: AgentDir) -> tuple[str, str]:
    """(shape, level) of an agent as ps shows it."""
    state = agent_state.of(world.home, agent)
    assert hang.shape_of(state.reason) == state.shape
    return state.shape, state.level


def configured(world: World, **seconds: float) -> None:
    world.home.config.write_text(json.dumps({"liveness": seconds}))


def hanging(world: World, name: str, **options: Any) -> AgentDir:
    return agents.create(world.home, AgentSpec(name, "builtin/echo", "hanging", options=options), "", "up")


def test_a_runner_that_is_stopped_is_told_to_go_on(world: World) -> None:
    configured(world, stopped=0.3)
    agent = hanging(world, "a")
    world.start(table=SERVED)
    pid = pid_of(agent)
    stem = world.send(agent, "slow")
    wake.ring_agent(world.home.wake, "a")
    wait_until(lambda: agents.has_claimed(agent))
    os.kill(pid, signal.SIGSTOP)
    wait_until(lambda: shown(world, agent) == ("stopped", "responsive"))
    assert "stopped: stopped by a signal for 0.3 s" in ps(world)
    assert reply(agent, stem).body == "done" and pid_of(agent) == pid
    wait_until(lambda: shown(world, agent) == ("", ""))


def test_a_lock_that_somebody_else_holds_is_told_with_his_number(world: World) -> None:
    configured(world, lock=0.2)
    agent = hanging(world, "a")
    stem = world.send(agent)
    other = subprocess.Popen(["flock", "--no-fork", str(agent.lock), "sleep", "1000"])
    try:
        wait_until(lambda: locks.is_held(agent.lock))
        world.start(table=SERVED)
        wait_until(lambda: shown(world, agent) == ("lock_held", "alive"))
        (found,) = (one for one in json.loads(ps(world, "--json"))["agents"] if one["name"] == "a")
        assert found["reason"].startswith(f"lock_held: process {other.pid}, which is no runner of it")
        assert is_alive(other.pid) and agents.waiting(agent) == 1
    finally:
        other.kill()
        other.wait()
    assert reply(agent, stem).body == "done"
    wait_until(lambda: shown(world, agent) == ("", ""))


def test_a_runner_that_is_never_ready_is_started_again(world: World) -> None:
    agent = world.agent("a", f'if [ -e "$1/starts" ]; then {READY}fi\necho $$ >> "$1/starts"\nexec sleep 1000')
    world.start(ready_s=1.0)
    wait_until(lambda: len(starts(agent)) == 2)
    assert [one["error_type"] for one in records(agent)] == ["not_ready"]
    wait_until(lambda: agents.read_hint(agent.status) == "idle")


def test_a_conversation_that_somebody_else_has_is_named(world: World) -> None:
    agent = hanging(world, "a")
    read, write = os.pipe()
    child = os.fork()  # before there is a lock that it would inherit
    if child == 0:
        os.read(read, 1)
        service.HELD_S = 0.0
        runner = service.Agent(world.home, agent, agents.read_spec(agent), Log(agent.logs), Stopping())
        runner.heartbeat = heartbeat.Heartbeat(agent)
        service.wait_for_thread(runner, "main")
        os._exit(0)
    thread = threads.hold(agent, "main")
    assert thread is not None
    os.write(write, b"\n")
    wait_until(lambda: heartbeat.reason(agent).startswith("thread_held: another process has the conversation main"))
    thread.close()
    for end in (read, write):
        os.close(end)
    assert os.waitpid(child, 0)[1] == 0 and not heartbeat.reason(agent)


def test_a_process_that_a_tool_leaves_with_its_output_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(enclosure, "enter", lambda: None)  # as where the kernel has no namespaces for us
    path = tmp_path / "leaves"
    pidfile = tmp_path / "pid"
    path.write_text(f'#!/bin/sh\nsleep 1000 &\necho $! > {pidfile}\necho \'{{"status":"ok","result":1}}\'\n')
    path.chmod(0o755)
    tool = Tool(path, ToolSpec("leaves", "leaves a child", {}))
    found = toolcall.call_tool(tool, {}, env={}, cwd=str(tmp_path), timeout_s=60)
    assert (found.status, found.result) == ("ok", 1)
    assert found.warning == "pipe_held: leaves left a process that held its output"
    assert not is_alive(int(pidfile.read_text()))


HALF_OPEN = """
import fcntl, socket, struct, sys
from far_side import HOLD, FarSide
from loom.models.base import ModelContext, Timeouts
from loom.models.registry import open_model
from loom.wire.chat import ChatMessage, ChatRequest, TextDelta
from loom.wire.errors import Unavailable
from loom.wire.provider import Provider

def link(up):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        flags = struct.unpack("16sh", fcntl.ioctl(sock, 0x8913, struct.pack("16sh", b"lo", 0)))[1]
        flags = flags | 1 if up else flags & ~1
        fcntl.ioctl(sock, 0x8914, struct.pack("16sh", b"lo", flags))

link(True)
said = b'data: {"choices":[{"index":0,"delta":{"content":"half"},"finish_reason":null}]}\\n\\n'
head = b"HTTP/1.1 200 OK\\r\\nContent-Type: text/event-stream\\r\\n\\r\\n"
with FarSide(answers=[[head, said, HOLD]]) as side:
    provider = Provider("lab", dialect="openai", base_url=side.url)
    context = ModelContext({}, {"lab": provider}, timeouts=Timeouts(first_byte_s=4, idle_s=60))
    answer = open_model("lab/m", context).stream(ChatRequest("lab/m", (ChatMessage("user", "hang"),)))
    assert next(answer) == TextDelta("half")
    link(False)  # the network is gone, and nobody says so
    try:
        next(answer)
    except Unavailable as error:
        assert error.kind == "half_open", (error.kind, error)
    else:
        raise AssertionError("it goes on")
    link(True)
"""


def test_a_peer_that_vanished_is_found_before_it_is_missed() -> None:
    argv = ["unshare", "-Urn", sys.executable, "-c", HALF_OPEN]
    if subprocess.run([*argv[:2], "true"], capture_output=True).returncode:
        pytest.skip("no network namespaces here")
    env = {"PATH": os.environ["PATH"], "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
    done = subprocess.run(argv, env=env, capture_output=True, text=True, timeout=50)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="chattr +i needs root")
def test_nobody_is_restarted_for_what_cannot_be_taken_up(world: World) -> None:
    agent, busy = hanging(world, "a", respond_s=0.3), hanging(world, "busy")
    stuck = agent.in_progress / f"{ids.message_stem(1_700_000_000_000, bytes(10))}.msg"
    stuck.write_bytes(b"{}")
    if subprocess.run(["chattr", "+i", str(stuck)], capture_output=True).returncode:
        pytest.skip("this file system has no immutable files")
    try:
        world.start(table=SERVED)
        pid = pid_of(agent)
        assert reply(busy, world.send(busy, "slow")).body == "done"  # far longer than the first may be silent
        assert pid_of(agent) == pid and not records(agent)
        findings = [f for f in fsck.check(world.home, repair=True) if f.path == stuck]
        assert [f.status for f in findings] == ["person"]
    finally:
        subprocess.run(["chattr", "-i", str(stuck)], check=True)


def test_no_deadline_is_longer_than_a_poll() -> None:
    for setting in settings.TABLE:
        if setting.key.startswith("liveness.") and setting.type == "float":
            assert setting.most * 1000 < 2**31, setting.key


# -- and who is not to be touched --------------------------------------------------------------------------------------


def test_neither_a_machine_that_slept_nor_a_clock_that_was_set_ends_anybody(world: World, tmp_path: Path) -> None:
    """Supervisor and runner stand still for far longer than the runner may be silent; then the files' times jump."""
    agent = hanging(world, "a", respond_s=2.0)
    supervisor = world.start(table=SERVED)
    pid = pid_of(agent)
    stem = world.send(agent, "slow")
    wake.ring_agent(world.home.wake, "a")
    wait_until(agent.heartbeat.exists)
    for number in (signal.SIGSTOP, signal.SIGCONT):
        for process in (supervisor.pid, pid):
            os.kill(process, number)
        if number == signal.SIGSTOP:
            time.sleep(3)
    (turn,) = agent.turns.iterdir()
    for year_s in (4_000_000_000, 1_000_000_000):
        for path in (turn, agent.heartbeat):
            os.utime(path, (year_s, year_s))
    assert reply(agent, stem).body == "done"
    assert pid_of(agent) == pid and not records(agent) and not named(agent)


def test_who_has_nothing_to_do_writes_nothing_and_is_not_looked_at(world: World) -> None:
    idle, busy = hanging(world, "idle", respond_s=0.1), hanging(world, "busy")
    world.start(table=SERVED)
    pid = pid_of(idle)
    # What its start writes: the supervisor's `started_at`, and the runner's word that it waits, in either order.
    wait_until(lambda: idle.started_at.exists() and agents.read_hint(idle.status) == "idle")
    wait_until(lambda: not any((idle.path / ".tmp").iterdir()))
    before = {path: os.stat(path).st_mtime_ns for path in idle.path.rglob("*") if path.name != "status"}
    stem = world.send(busy, "slow")  # time passes while another one works
    wake.ring_agent(world.home.wake, "busy")
    assert reply(busy, stem).body == "done"
    after = {path: os.stat(path).st_mtime_ns for path in idle.path.rglob("*") if path.name != "status"}
    assert after == before and pid_of(idle) == pid
    assert not idle.heartbeat.exists() and not idle.why.exists()


def test_no_shape_is_missing_in_the_corpus() -> None:
    """Two are met below without an agent; a step limit and a deadline have their tests elsewhere."""
    met = {case.shape for case in CORPUS.values()} | {"stopped", "lock_held", "not_ready", "thread_held"}
    assert set(hang.SHAPES) - met == {"pipe_held", "half_open", "step_limit", "deadline"}
