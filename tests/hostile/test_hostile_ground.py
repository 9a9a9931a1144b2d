"""Real trouble under a live home: no space, no inodes, no descriptors, a read-only disk, limits, I/O errors.

Each time the same is asked of the same processes (supervisor, router, a runner): they stop taking work and say why;
nothing is lost or done twice, nobody dies of it or spins; and when the cause is gone they go on by themselves.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import resource
import shutil
import signal
import subprocess
import time
from collections import Counter
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
    LONG_S,
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

from loom.spool import agents, fs, goals, locks, mailbox, trees, wake

HOLD_S = 3.0  # for so long the trouble is watched
SPARE_CPU = 0.2  # of one processor, for everything loom does meanwhile
MESSAGES = 20
FAST = ("no space",)


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


def _take_descriptors(world: HostileWorld) -> None:
    """None of them may open anything more: below the limit all numbers are in use."""
    for pid in world.pids():
        used = {int(n) for n in os.listdir(f"/proc/{pid}/fd")}
        limit = next(n for n in range(len(used) + 1) if n not in used)
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (limit, resource.prlimit(pid, resource.RLIMIT_NOFILE)[1]))


def inject(world: HostileWorld, error: str) -> None:
    """Every sync of the supervisor, of what runs and of what it starts from now on fails with this error."""
    said = world.log.with_suffix(".strace")
    pids = [f"-p{pid}" for pid in world.pids()]
    calls = "fsync,fdatasync,syncfs"
    tracer = subprocess.Popen(
        ["strace", "-f", *pids, f"-etrace={calls}", f"-einject={calls}:error={error}", "-o", said],
        stderr=subprocess.PIPE,
    )
    assert tracer.stderr is not None
    for _ in pids:
        assert b"attached" in tracer.stderr.readline()

    def end() -> None:
        tracer.send_signal(signal.SIGINT)
        tracer.communicate(timeout=30)
        fired = said.read_bytes().count(b"INJECTED")
        said.unlink()
        assert fired, "the fault did not fire"

    world.undo = end


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
    "no descriptors": Trouble(
        _take_descriptors,
        _limit(resource.RLIMIT_NOFILE, -1),
        "Too many open files",
    ),
    "errors of the disk": Trouble(lambda world: inject(world, "EIO"), lambda world: world.undo(), "Input/output error"),
    "quota": Trouble(lambda world: inject(world, "EDQUOT"), lambda world: world.undo(), "Disk quota exceeded"),
    "file-size limit": Trouble(
        _limit(resource.RLIMIT_FSIZE, 100 << 10),
        _limit(resource.RLIMIT_FSIZE, -1),
        "File too large",
        "size=32m",
        body_bytes=200_000,
    ),
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in FAST else pytest.mark.full) for name in TROUBLES]
)
def test_loom_waits_says_why_and_goes_on(name: str):
    if name in ("errors of the disk", "quota") and shutil.which("strace") is None:
        pytest.skip("there is no strace here to inject errors with")
    figures = on_ground(lambda place: live_through(place, TROUBLES[name]), TROUBLES[name].options)
    results.note(f"hostile ground, {name}", "none", **figures)


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
        wake.ring(world.home.wake_fifo("worker"))  # as `loom send` does; who lacks descriptors cannot do it for us
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
        check_answered_once(worker, [*before, *stems])
        assert supervisor.poll() is None
        left = exits_of(world.log)
        assert left and set(left) == {"75"}, left
        assert wait_until(lambda: world.loom("agent", "show", "worker").out.find("reason") < 0)
        no_more_than(descriptors, supervisor.pid)
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
    """ps and show name the reason, also where no file could be written to say it; only not while it is just tried."""

    def shown(*command: str) -> str:
        ended = world.loom(*command)
        assert ended.status == 0 and "crashed" not in ended.out, ended
        return ended.out if words in ended.out else ""

    for command in (("agent", "ps"), ("agent", "ps", "-a"), ("agent", "show", worker.name)):
        wait_until(lambda command=command: shown(*command))
    state = json.loads(wait_until(lambda: shown("agent", "show", worker.name, "--json")))
    assert words in state["reason"] and not state["alive"] and state["want"] == "up"
    return str(state["reason"].split(" (")[0].split(";")[0])


def no_more_than(before: list[str], pid: int) -> None:
    """Waits until a process holds no more descriptors of any kind than it did before; the message says which."""
    try:
        wait_until(lambda: not Counter(_descriptors(pid)) - Counter(before), LONG_S)
    except AssertionError:
        raise AssertionError(f"before {before}, now {_descriptors(pid)}") from None


def _descriptors(pid: int) -> list[str]:
    """The kinds of what a process has open: numbers differ from one runner to the next."""
    found = []
    for number in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(FileNotFoundError):
            found.append(os.readlink(f"/proc/{pid}/fd/{number}").split(":[")[0])
    return sorted(found)


# -- a message that needs more than there is -----------------------------------------------------------------------


def test_a_disk_that_stays_too_full_for_one_answer_fails_no_message():
    """Small files fit, the turn's record does not: started again and again, and still no death of the message."""

    def work(place: Path) -> None:
        world = HostileWorld(place)
        try:
            worker = world.agent("worker", base_s=0.01, max_s=0.01)
            world.supervise()
            pid_of(worker)
            wait_until((world.home.agent("verifier-1").status).exists)
            arrive, stems = staged(place / "staged", worker, 1, 400_000)
            fill(_filler(world))
            os.truncate(_filler(world), _filler(world).stat().st_size - 200_000)
            arrive()
            wait_until(lambda: len(exits_of(world.log)) >= 5)
            assert set(exits_of(world.log)) == {"75"}
            assert agents.read_want(worker) == "up" and list(worker.failed.glob("*.msg")) == []
            _filler(world).unlink()
            answered(worker, stems)
            check_answered_once(worker, stems)
            check_no_traceback(world)
        finally:
            world.close()

    on_ground(work, "size=4m")


@pytest.mark.full
def test_a_person_can_speed_it_up():
    """The backoff has grown long; asking for the agent starts it at once."""

    def work(place: Path) -> None:
        world = HostileWorld(place)
        try:
            worker = world.agent("worker", base_s=3600.0, max_s=3600.0)
            world.supervise()
            pid = pid_of(worker)
            arrive, stems = staged(place / "staged", worker, 3, 400_000)
            fill(_filler(world))
            os.truncate(_filler(world), _filler(world).stat().st_size - 200_000)
            arrive()
            wait_until(lambda: exits_of(world.log) == ["75"])
            _filler(world).unlink()
            started = world.loom("agent", "start", "worker", "--detach")
            assert started.status == 0, started.err
            assert pid_of(worker) != pid
            answered(worker, stems)
            check_answered_once(worker, stems)
        finally:
            world.close()

    on_ground(work, "size=12m")


# -- commands ------------------------------------------------------------------------------------------------------

# What a person may try on a full disk, and what it ends with. Reading is possible; writing says why not.
COMMANDS: dict[tuple[str, ...], int] = {
    ("send", "worker", "hello"): 74,
    ("agent", "start", "fresh", "--model", "builtin/echo", "--detach"): 74,
    ("agent", "start", "fresh", "--model", "builtin/echo", "--prompt", "hello"): 74,
    ("agent", "stop", "worker"): 74,
    ("agent", "restart", "worker"): 74,
    ("run", "Do it.", "--model", "builtin"): 74,
    ("secret", "set", "openai"): 74,
    ("agent", "ps"): 0,
    ("agent", "show", "worker"): 0,
    ("agent", "logs", "worker"): 0,
    ("goal", "ps", "-a"): 0,
    ("config",): 0,
    ("supervisor", "status"): 0,
    ("doctor",): 1,
}


def test_each_command_on_a_full_disk_is_one_line_and_its_status():
    def work(place: Path) -> dict[str, Any]:
        world = HostileWorld(place)
        try:
            world.agent("worker")
            world.supervise()
            pid_of(world.home.agent("worker"))
            fill(_filler(world))
            for command, status in COMMANDS.items():
                ended = world.loom(*command, input=b"sk-123456789\n")
                assert ended.status == status, (command, ended)
                assert "Traceback" not in ended.err + ended.out
                if status == 74:
                    (line,) = ended.err.splitlines()
                    assert line.startswith("loom: ") and "No space left on device" in line, line
                    assert "free some space" in line
            assert world.loom("supervisor", "stop").status == 0
            fill(_filler(world))
            # Nobody can start one now: its lock could not be signed. It says so, and does not stay half started.
            ended = world.loom("supervisor", "run")
            assert ended.status == 75, ended
            (line,) = ended.err.splitlines()
            assert "No space left on device" in line and "free some space" in line
            demanded = world.loom("send", "worker", "hello")
            assert demanded.status == 74
            _filler(world).unlink()
            world.supervise()
            stem = world.send(world.home.agent("worker"))
            answered(world.home.agent("worker"), [stem])
            return {"commands": len(COMMANDS)}
        finally:
            world.close()

    results.note("hostile ground, commands", "none", **on_ground(work, "size=4m"))


# -- goals ---------------------------------------------------------------------------------------------------------


def test_a_goal_finishes_although_the_disk_fills_up_on_the_way():
    """The disk is full when the keeper has copied the workspace; freed again, the goal goes on to its end."""

    def work(place: Path) -> dict[str, Any]:
        world = HostileWorld(place)
        try:
            notes = place / "notes"
            notes.mkdir()
            for number in range(3):
                text = "".join(f"The mill of page {n} was sold to the abbey in spring {number}.\n" for n in range(60))
                (notes / f"chronicle-{number}.md").write_text(f"# Chronicle {number}\n\n{text}")
            run = world.begin("run", "Write a digest of these documents.", "-w", notes, "--model", "builtin", "--land")
            name = wait_until(lambda: goals.names(world.home), LONG_S)[0]
            goal = world.home.goal(name)
            wait_until(goal.workspace.exists, LONG_S)
            fill(_filler(world))
            full = time.monotonic()
            wait_until(lambda: "No space left" in world.loom("agent", "ps", "-a").out)
            time.sleep(HOLD_S)
            fill(_filler(world))
            assert run.poll() is None, run.communicate()
            _filler(world).unlink()
            full_s = time.monotonic() - full
            mended = time.monotonic()
            out, err = run.communicate(timeout=90)
            assert run.returncode == 0, err.decode()
            assert b"Traceback" not in err and (notes / "DIGEST.md").stat().st_size > 0, (out, err)
            finished_s = time.monotonic() - mended
            audit = world.loom("goal", "audit", name)
            assert audit.status == 0, audit
            types = [e.type for e in goals.events(world.home, goal)]
            check_no_traceback(world)
            return {"full_s": full_s, "finished_s": finished_s, "events": len(types)}
        finally:
            world.loom("supervisor", "stop")
            world.close()

    results.note("hostile ground, a goal", "none", **on_ground(work, "size=8m"))


def test_a_workspace_that_does_not_fit_waits_and_leaves_the_disk_as_it_is(tmp_path: Path):
    def work(place: Path) -> None:
        source = tmp_path / "source"
        (source / "deep").mkdir(parents=True)
        (source / "deep" / "large").write_bytes(bytes(7 << 19))
        before = os.statvfs(place).f_bavail
        with pytest.raises(OSError, match=r"4\.5 MiB of space are needed, 4\.0 MiB are free") as refused:
            trees.copy(source, place / "workspace")
        assert refused.value.errno == errno.ENOSPC
        assert not (place / "workspace").exists() and os.statvfs(place).f_bavail == before
        os.truncate(source / "deep" / "large", 2 << 20)
        assert list(trees.copy(source, place / "workspace")) == ["deep/large"]
        fs.remove_tree(place / "workspace")
        many = tmp_path / "many"
        many.mkdir()
        for number in range(100):
            (many / str(number)).touch()
        with pytest.raises(OSError, match="164 inodes are needed"):
            trees.copy(many, place / "workspace")

    on_ground(work, "size=4m,nr_inodes=120")
