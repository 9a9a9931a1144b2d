"""The wall clock jumps by days, forwards and back, while everything is at work: names, deadlines, journals, waits.

The clock is a real one for every process of the test: a library that the test compiles shifts it. Files keep the
kernel's times, as they do on a machine whose clock is set.
"""

from __future__ import annotations

import json
import shutil
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import results
from hostile_world import (
    LONG_S,
    HostileWorld,
    answer_of,
    answered,
    check_answered_once,
    check_no_traceback,
    exits_of,
    log_records,
    pid_of,
)
from support import scratch, wait_until

from loom.spool import goals, journal, mailbox
from loom.wire import ids

DAY_S = 86_400
JUMPS = (3 * DAY_S, -5 * DAY_S, 0, -400 * DAY_S, 90 * DAY_S)
HOLD_S = 2.0
RUN = "import sys; from loom.daemons.supervisor import main; sys.exit(main())"


class Clock:
    """The shift of the wall clock in seconds, for every process of a world."""

    def __init__(self, world: HostileWorld) -> None:
        compiler = shutil.which("cc")
        if compiler is None or sys.platform != "linux":
            pytest.skip("there is no compiler here to make a clock with")
        library, self._file = world.root / "clock.so", world.root / "clock"
        source = Path(__file__).with_name("clock.c")
        subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", library, source, "-ldl"], check=True)
        self.jump(0)
        world.env |= {"LD_PRELOAD": str(library), "LOOM_TEST_CLOCK": str(self._file)}
        # `loom supervisor run` would begin anew with a clean environment and without the clock.
        world.supervisor_argv = [sys.executable, "-P", "-c", RUN]
        told = subprocess.run(
            [sys.executable, "-c", "import time; print(time.time())"], env=world.env, capture_output=True, check=True
        )
        assert abs(float(told.stdout) - time.time()) < 60
        self.jump(DAY_S)
        told = subprocess.run(
            [sys.executable, "-c", "import time; print(time.time())"], env=world.env, capture_output=True, check=True
        )
        assert abs(float(told.stdout) - time.time() - DAY_S) < 60, "the clock cannot be shifted here"
        self.jump(0)

    def jump(self, to_s: int) -> None:
        """From now on the clock is wrong by so much."""
        self.shift_s = to_s
        if not self._file.exists():
            self._file.write_bytes(bytes(8))
        with self._file.open("r+b", buffering=0) as file:
            file.write(struct.pack("l", to_s))

    def now_ms(self) -> int:
        return int((time.time() + self.shift_s) * 1000)


@pytest.fixture
def world() -> Iterator[HostileWorld]:
    root = scratch()
    made = HostileWorld(root)
    try:
        yield made
    finally:
        made.close()
        shutil.rmtree(root)


def test_agents_answer_on_and_nobody_is_restarted(world: HostileWorld):
    clock = Clock(world)
    worker = world.agent("worker")
    supervisor = world.supervise()
    pid, router = pid_of(worker), pid_of(world.home.agent("router"))
    stems: list[str] = []
    used = world.cpu_s()
    for to_s in JUMPS:
        clock.jump(to_s)
        for _ in range(2):
            sent = world.loom("send", "worker", "hello")
            assert sent.status == 0, sent.err
            stems.append(sent.out.strip())
            assert abs(ids.time_of(stems[-1]) - clock.now_ms()) < 60_000, "the name is of the shifted time"
        answered(worker, stems)
        clock.jump(-to_s)  # once more, with nothing to do
    time.sleep(HOLD_S)
    assert world.cpu_s() - used < 2.0, "somebody spins"
    check_answered_once(worker, stems)
    assert pid_of(worker) == pid and pid_of(world.home.agent("router")) == router and supervisor.poll() is None
    assert exits_of(world.log) == []
    assert len({r["ts"][:10] for r in log_records(worker)}) >= len(JUMPS) - 1, "the logs are of several days"
    check_no_traceback(world)
    results.note(
        "hostile ground, clocks", "none", jumps=2 * len(JUMPS), days=max(map(abs, JUMPS)) // DAY_S, messages=len(stems)
    )


@pytest.mark.full
def test_a_killed_runner_comes_back_at_once_whatever_the_clock_says(world: HostileWorld):
    """Backoff and windows are of the clock that does not jump."""
    clock = Clock(world)
    worker = world.agent("worker")
    world.supervise()
    for to_s in (0, -30 * DAY_S, 30 * DAY_S):
        clock.jump(to_s)
        pid = pid_of(worker)
        subprocess.run(["kill", "-9", str(pid)], check=True)
        wait_until(lambda pid=pid: pid_of(worker) != pid, LONG_S)
        stem = world.send(worker)
        answered(worker, [stem])
    assert "dead" not in world.loom("agent", "show", "worker").out


def test_deadlines_are_of_the_wall_clock_and_nothing_else_is(world: HostileWorld):
    clock = Clock(world)
    worker = world.agent("worker")
    world.supervise()
    pid_of(worker)
    in_an_hour = clock.now_ms() + 3_600_000
    clock.jump(-2 * DAY_S)
    early = world.send(worker, "early", deadline_ms=in_an_hour)
    answered(worker, [early])
    clock.jump(2 * DAY_S)
    late = world.send(worker, "late", deadline_ms=in_an_hour)
    wait_until(lambda: (worker.failed / f"{late}.msg").exists())
    record = mailbox.read_error(worker, late)
    assert record is not None and record["error_type"] == "deadline"
    failure = answer_of(worker, late)
    assert failure is not None and failure.error
    none = world.send(worker, "none")
    answered(worker, [none])


@pytest.mark.parametrize(
    "to_s", [pytest.param(-3 * DAY_S, id="back"), pytest.param(3 * DAY_S, id="forwards", marks=pytest.mark.full)]
)
def test_a_goal_finishes_and_its_journal_is_in_order(world: HostileWorld, to_s: int):
    """Each event is later than the one before, whatever the clock does between them."""
    clock = Clock(world)
    notes = world.root / "notes"
    notes.mkdir()
    for number in range(3):
        text = "".join(f"The mill of page {n} was sold to the abbey in spring {number}.\n" for n in range(60))
        (notes / f"chronicle-{number}.md").write_text(f"# Chronicle {number}\n\n{text}")
    world.supervise()
    run = world.begin("run", "Write a digest of these documents.", "-w", notes, "--model", "builtin", "--land")
    name = wait_until(lambda: goals.names(world.home), LONG_S)[0]
    goal = world.home.goal(name)
    wait_until(lambda: goal.journal.exists() and b"subtask.started" in goal.journal.read_bytes(), LONG_S)
    clock.jump(to_s)
    out, err = run.communicate(timeout=90)
    assert run.returncode == 0, (out, err.decode())
    times = [json.loads(line)["ts"] for line in goal.journal.read_bytes().splitlines()]
    assert times == sorted(set(times))
    assert len(list(journal.read(goal.journal, world.home.blobs))) == len(times)
    assert world.loom("goal", "audit", name).status == 0
    check_no_traceback(world)
