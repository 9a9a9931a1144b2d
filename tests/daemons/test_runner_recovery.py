"""A runner killed or sent away in the middle: the next one goes on from the turn record."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from pathlib import Path

import pytest
from runner_bench import Bench, call, script
from support import wait_until

from loom.proc import pidfd
from loom.spool import agents, mailbox

# A tool that says on a FIFO that it has begun, notes it, and waits for the FIFO before it answers.
WAITS = """
open(os.path.join(os.environ['LOOM_AGENT_DIR'], 'begun'), 'a').write('+')
open({gate!r}, 'w').write(os.readlink('/proc/self'))
open({gate!r}).read()
print(json.dumps({{'status': 'ok', 'result': 'finished'}}))
"""
# A model that notes how many messages it is asked with, and waits for the FIFO on the last question.
COUNTS = """
import json, os, sys
asked = json.load(sys.stdin)['messages']
open(os.path.join(os.environ['LOOM_AGENT_DIR'], 'asked'), 'a').write(f'{{len(asked)}} ')
if asked[-1]['role'] == 'user':
    print(json.dumps({{'reply': {{'text': '', 'calls': [{{'name': 'quick', 'input': {{}}}}]}}}}))
else:
    open({gate!r}, 'w').write(os.readlink('/proc/self'))
    open({gate!r}).read()
    print('answered')
"""
DIES = """
import os, sys
open(os.path.join(os.environ['LOOM_AGENT_DIR'], 'asked'), 'a').write('+')
open({gate!r}, 'w').write(os.readlink('/proc/self'))
open({gate!r}).read()
"""


@pytest.fixture
def gate(tmp_path: Path) -> Path:
    path = tmp_path / "gate"
    os.mkfifo(path)
    return path


def begun(gate: Path) -> int:
    """Waits until the program at the gate has begun; its pid."""
    return int(gate.read_text())


def is_gone(pid: int) -> bool:
    """Ended, whether or not somebody has reaped it."""
    return pidfd.stat_of(pid)[:1] in ([], [b"Z"], [b"X"])


def end(runner: subprocess.Popen[str], number: int, program: int) -> int:
    """Signal the runner and, as a supervisor does, end what it had started; its exit status."""
    runner.send_signal(number)
    runner.communicate(timeout=30)
    with contextlib.suppress(ProcessLookupError):
        os.kill(program, signal.SIGKILL)
    wait_until(lambda: is_gone(program))
    return runner.returncode


def interrupted_tool(tmp_path: Path, gate: Path, *, idempotent: bool) -> tuple[Bench, str]:
    """A runner was killed between a tool's intent and its result."""
    bench = Bench(tmp_path, script(tmp_path, call("waits"), {"text": "done"}), tools=("waits",))
    bench.tool("waits", WAITS.format(gate=str(gate)), idempotent)
    stem = bench.send("go")
    runner = bench.start("--drain")
    assert end(runner, signal.SIGKILL, begun(gate)) == -signal.SIGKILL
    assert [line["t"] for line in bench.turn(stem)][-1] == "intent"
    return bench, stem


def test_an_interrupted_tool_is_reported_and_not_repeated(tmp_path: Path, gate: Path) -> None:
    bench, stem = interrupted_tool(tmp_path, gate, idempotent=False)
    assert bench.drain() == (0, "")
    assert bench.reply(stem).body == "done"
    (result,) = bench.results(stem)
    assert result["status"] == "error" and "interrupted" in result["error"]
    assert (bench.agent.path / "begun").read_text() == "+"


def test_an_idempotent_one_is_run_again(tmp_path: Path, gate: Path) -> None:
    bench, stem = interrupted_tool(tmp_path, gate, idempotent=True)
    runner = bench.start("--drain")
    assert begun(gate)
    gate.write_text("go")
    assert runner.communicate(timeout=30)[1] == ""
    assert bench.reply(stem).body == "done"
    assert bench.results(stem) == [{"status": "ok", "result": "finished"}]
    assert (bench.agent.path / "begun").read_text() == "++"


@pytest.mark.parametrize("number, status", [(signal.SIGKILL, -9), (signal.SIGTERM, 0), (signal.SIGINT, 0)])
def test_what_is_recorded_is_neither_asked_nor_run_again(tmp_path: Path, gate: Path, number: int, status: int) -> None:
    program = Bench(tmp_path / "other").program("counts.py", COUNTS.format(gate=str(gate)))
    bench = Bench(tmp_path, f"exec/{program}", tools=("quick",))
    bench.tool("quick", "open('ran', 'a').write('+'); print(json.dumps({'status': 'ok', 'result': 1}))")
    stem = bench.send("go")
    runner = bench.start("--drain")
    assert end(runner, number, begun(gate)) == status
    last = bench.turn(stem)[-1]["t"]
    assert last == ("request" if number == signal.SIGKILL else "released")
    again = bench.start("--drain")
    assert begun(gate)
    gate.write_text("go")
    assert again.communicate(timeout=30)[1] == ""
    assert bench.reply(stem).body == "answered\n"
    assert (bench.agent.path / "asked").read_text() == "1 3 3 ", "the first question was asked once"
    assert (bench.agent.path / "ran").read_text() == "+"


def test_a_message_that_kills_its_runner_three_times_is_poison(tmp_path: Path, gate: Path) -> None:
    """The request is recorded before each death, so only the first death made progress."""
    program = Bench(tmp_path / "other").program("dies.py", DIES.format(gate=str(gate)))
    bench = Bench(tmp_path, f"exec/{program}")
    poison = bench.send("kill me")
    for _ in range(4):
        runner = bench.start("--drain")
        end(runner, signal.SIGKILL, begun(gate))
    assert bench.drain() == (0, "")
    assert bench.error(poison)["error_type"] == "poison"
    assert bench.reply(poison).error
    assert (bench.agent.path / "asked").read_text() == "++++"


def test_stops_are_no_deaths(tmp_path: Path, gate: Path) -> None:
    program = Bench(tmp_path / "other").program("waits.py", DIES.format(gate=str(gate)) + "print('answered')\n")
    bench = Bench(tmp_path, f"exec/{program}")
    stem = bench.send("hello")
    for _ in range(5):
        runner = bench.start("--drain")
        assert end(runner, signal.SIGTERM, begun(gate)) == 0
    runner = bench.start("--drain")
    assert begun(gate)
    gate.write_text("go")
    runner.communicate(timeout=30)
    assert bench.reply(stem).body == "answered\n"


def test_killed_after_the_answer_it_only_finishes(tmp_path: Path) -> None:
    """The state `answered` of the mailbox: a reply in the outbox, the request still claimed."""
    bench = Bench(tmp_path)
    stem = bench.send("hello")
    assert bench.drain() == (0, "")
    bench.agent.processed(stem).rename(bench.agent.in_progress / f"{stem}.msg")
    bench.agent.conversation("main").unlink()
    before = len(bench.turn(stem))
    assert bench.drain() == (0, "")
    assert bench.agent.processed(stem).exists()
    assert len(bench.turn(stem)) == before, "no work was done on it"
    assert bench.agent.conversation("main").read_text().count("\n") == 2


def test_a_damaged_turn_record_fails_its_message_and_retry_begins_anew(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    stem, after = bench.send("hello"), bench.send("next")
    bench.agent.turn(stem, 0).write_text('garbage\n{"t":"released"}\n')
    assert bench.drain() == (0, "")
    assert bench.error(stem)["error_type"] == "damaged"
    assert bench.reply(after).body == "next"
    assert mailbox.retry(bench.agent, "x", stem, agents.now_text())
    assert bench.drain() == (0, "")
    assert bench.reply(stem, attempt=1).body == "hello"


def test_no_process_of_a_killed_runner_s_tool_is_left(tmp_path: Path, gate: Path) -> None:
    bench = Bench(tmp_path, script(tmp_path, call("waits"), {"text": "done"}), tools=("waits",))
    bench.tool("waits", f"open({str(gate)!r}, 'w').write(os.readlink('/proc/self')); open({str(gate)!r}).read()")
    bench.send("go")
    runner = bench.start("--drain")
    pid = begun(gate)
    runner.kill()
    runner.communicate(timeout=30)
    wait_until(lambda: is_gone(pid))
