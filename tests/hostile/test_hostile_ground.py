"""Real trouble under a live home: no space, no inodes, no descriptors, a read-only disk, limits, I/O errors.

Each time the same is asked of the same processes (supervisor, router, a runner): they stop taking work and say why;
nothing is lost or done twice, nobody dies of it or spins; and when the cause is gone they go on by themselves.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import results
from ground import (
    close_for_writing,
    fill,
    fill_inodes,
    on_ground,
    open_for_writing,
)
from hostile_world import (
    AgentDir,
    HostileWorld,
    answered,
    check_answered_once,
    check_no_traceback,
    exits_of,
    pid_of,
    staged,
)
from support import wait_until

from loom.spool import locks, mailbox

HOLD_S = 6.0  # for so long the trouble is watched
SPARE_CPU = 0.2  # of one processor, for everything loom does meanwhile
MESSAGES = 20


@dataclass(frozen=True)
class Trouble:
    """What is done to the ground, how it is undone, what it is called in words, and how large a message must be."""

    spoil: Callable[[HostileWorld], None]
    mend: Callable[[HostileWorld], None]
    words: str
    options: str = "size=4m"
    body_bytes: int = 3000


def _filler(world: HostileWorld) -> Path:
    return world.root / "filler"


def _limit(which: int, soft: int) -> Callable[[HostileWorld], None]:
    """A limit for the supervisor, and with it for the runners it starts, and for those that run."""

    def apply(world: HostileWorld) -> None:
        for pid in world.pids():
            hard = resource.prlimit(pid, which)[1]
            resource.prlimit(pid, which, (hard if soft < 0 else soft, hard))

    return apply


TROUBLES = {
    "no space": Trouble(
        lambda world: fill(_filler(world)), lambda world: _filler(world).unlink(), "No space left on device"
    ),
    "no inodes": Trouble(
        lambda world: fill_inodes(world.root / "names"),
        lambda world: shutil.rmtree(world.root / "names"),
        "no inodes left",
        "size=8m,nr_inodes=700",
    ),
    "read-only": Trouble(
        lambda world: close_for_writing(world.path),
        lambda world: open_for_writing(world.path),
        "Read-only file system",
    ),
    "file-size limit": Trouble(
        _limit(resource.RLIMIT_FSIZE, 100 << 10),
        _limit(resource.RLIMIT_FSIZE, -1),
        "File too large",
        "size=32m",
        body_bytes=200_000,
    ),
}


@pytest.mark.parametrize("name", TROUBLES)
def test_loom_waits_says_why_and_goes_on(name: str):
    figures = on_ground(lambda place: live_through(place, TROUBLES[name]), TROUBLES[name].options)
    results.note(f"hostile ground: {name}", "none", **figures)


def live_through(place: Path, trouble: Trouble) -> dict[str, Any]:
    """Twenty messages arrive on spoiled ground; what became of them, and how."""
    world = HostileWorld(place)
    try:
        worker = world.agent("worker")
        supervisor = world.supervise()
        before = [world.send(worker, f"before {n}") for n in range(3)]
        pid_of(worker)
        answered(worker, before)
        wait_until(lambda: mailbox.outgoing(worker) == [])
        arrive, stems = staged(place / "staged", worker, MESSAGES, trouble.body_bytes)
        descriptors = _descriptors(supervisor.pid)

        trouble.spoil(world)
        arrive()
        wait_until(lambda: not locks.is_held(worker.lock))
        said = check_told(world, worker, trouble.words)
        used = world.cpu_s()
        log_bytes = world.log.stat().st_size
        time.sleep(HOLD_S)
        used = world.cpu_s() - used
        assert supervisor.poll() is None
        assert used < SPARE_CPU * HOLD_S, f"{used:.2f} s of processor time in {HOLD_S} s"
        assert world.log.stat().st_size - log_bytes < 4096
        assert sum(len(os.listdir(d)) for d in (worker.failed, worker.unreadable)) <= 2, "nothing is failed for it"

        trouble.mend(world)
        mended = time.monotonic()
        answered(worker, [*before, *stems])
        recovered_s = time.monotonic() - mended
        wait_until(lambda: mailbox.outgoing(worker) == [])
        check_answered_once(worker, [*before, *stems])
        assert supervisor.poll() is None
        left = exits_of(world.log)
        assert left and set(left) == {"75"}, left
        assert wait_until(lambda: world.loom("agent", "show", "worker").out.find("reason") < 0)
        wait_until(lambda: _descriptors(supervisor.pid) == descriptors)
        check_no_traceback(world)
        return {
            "messages": len(stems),
            "exits_with_75": len(left),
            "processor_s": used,
            "watched_s": HOLD_S,
            "recovered_s": recovered_s,
            "said": said,
        }
    finally:
        world.close()


def check_told(world: HostileWorld, worker: AgentDir, words: str) -> str:
    """ps and show name the reason, also where no file could be written to say it."""
    wait_until(lambda: words in world.loom("agent", "show", worker.name).out)
    for command in (("agent", "ps"), ("agent", "ps", "-a"), ("agent", "show", worker.name)):
        shown = world.loom(*command)
        assert shown.status == 0 and words in shown.out, shown
        assert "crashed" not in shown.out
    state = json.loads(world.loom("agent", "show", worker.name, "--json").out)
    assert words in state["reason"] and not state["alive"] and state["want"] == "up"
    return str(state["reason"].split(" (")[0].split(";")[0])


def _descriptors(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))
