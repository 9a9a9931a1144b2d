"""Logs: whole lines from many processes at once, and no reason to stop the work they tell about."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest

from loom.spool import agents, fs, ndjson, wake
from loom.spool.home import open_home
from loom.spool.logs import Log
from loom.wire.agent import AgentSpec

PROCESSES, LINES = 64, 50


def lines(directory: Path) -> list[dict[str, object]]:
    (path,) = directory.glob("*.ndjson")
    data = path.read_bytes()
    assert data.endswith(b"\n")
    return [json.loads(line) for line in data.split(b"\n")[:-1] if line]


def test_64_processes_at_once_tear_no_line(tmp_path: Path):
    Log(tmp_path).info("first")
    gate, opener = os.pipe()
    children = []
    for number in range(PROCESSES):
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                os.close(opener)
                os.read(gate, 1)  # all start when the gate is closed
                log = Log(tmp_path, who=number)
                for i in range(LINES):
                    log.info("line", i=i, text="ü" * (number * 7 % 300))
                status = 0
            finally:
                os._exit(status)
        children.append(pid)
    os.close(gate)
    os.close(opener)
    for pid in children:
        assert os.waitpid(pid, 0)[1] == 0
    found = [(r["who"], r["i"]) for r in lines(tmp_path) if r["event"] == "line"]
    assert len(found) == PROCESSES * LINES
    for number in range(PROCESSES):
        assert [i for who, i in found if who == number] == list(range(LINES)), "each in its own order"


def test_a_line_is_not_glued_to_one_whose_writer_was_killed_in_the_middle(tmp_path: Path):
    first = Log(tmp_path)
    first.info("one")
    first.close()
    (path,) = tmp_path.glob("*.ndjson")
    path.write_bytes(path.read_bytes() + b'{"ts":"2026-11-21T01:24:17.235')
    second = Log(tmp_path)
    second.info("two")
    second.info("three")
    second.close()
    assert [r["event"] for r in ndjson.read_objects(path)] == ["one", "two", "three"]
    assert path.read_bytes().count(b"\n") == 4, "the torn line stands alone"


def test_what_is_no_json_is_told_all_the_same(tmp_path: Path):
    log = Log(tmp_path)
    log.info("odd", name=os.fsdecode(b"\xff\x1b[31m"), path=Path("/x"), number=float("nan"), n=1)
    (record,) = lines(tmp_path)
    assert record["event"] == "odd" and record["path"] == "/x" and record["n"] in (1, "1")
    assert "udcff" in str(record["name"])


@pytest.mark.parametrize("size", [3000, 70_000])
def test_a_long_line_is_cut_and_stays_json(tmp_path: Path, size: int):
    log = Log(tmp_path)
    log.info("long", text="x" * size, more=["y" * 40_000], other="short")
    log.info("longer", text="x" * size, more=["y" * 70_000])
    first, second = lines(tmp_path)
    assert first["other"] == "short"
    assert second["event"] == "longer"
    (path,) = tmp_path.glob("*.ndjson")
    assert max(map(len, path.read_bytes().split(b"\n"))) < ndjson.MAX_LINE_BYTES


def test_levels_below_the_least_are_left_out(tmp_path: Path):
    log = Log(tmp_path, "warning", agent="a")
    log.info("no")
    log.debug("no")
    log.warning("yes")
    log.error("yes")
    assert [r["agent"] for r in lines(tmp_path)] == ["a", "a"]


def test_a_disk_that_refuses_stops_nothing_and_spoils_no_later_line(tmp_path: Path, monkeypatch):
    log = Log(tmp_path)
    log.info("before")

    class Full(fs.Calls):
        def write(self, fd: int, data: bytes | memoryview) -> int:
            if len(data) < 30:
                raise OSError(errno.ENOSPC, "no space")
            return os.write(fd, data[: len(data) // 2])

    with monkeypatch.context() as patch:
        patch.setattr(fs, "calls", Full())
        log.info("during")
    log.info("after")
    log.info("last")
    (path,) = tmp_path.glob("*.ndjson")
    assert [r["event"] for r in ndjson.read_objects(path)] == ["before", "after", "last"]


# -- an agent's small files, and waking ------------------------------------------------------------------------


def test_no_descriptors_does_not_mean_that_an_agent_is_unwanted(tmp_path: Path, monkeypatch):
    home = open_home(tmp_path / "home", {})
    agent = agents.create(home, AgentSpec("a", "builtin/echo"), "", "up")
    assert agents.read_want(agent) == "up"

    def full(*args: object, **more: object) -> int:
        raise OSError(errno.EMFILE, "too many open files")

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", full)
        with pytest.raises(OSError):
            agents.read_want(agent)
    agent.want.write_text("sideways")
    assert agents.read_want(agent) == "down"
    agent.want.unlink()
    assert agents.read_want(agent) == "down"


def test_what_nobody_will_claim_is_no_mail(tmp_path: Path):
    home = open_home(tmp_path / "home", {})
    agent = agents.create(home, AgentSpec("a", "builtin/echo"), "", "up")
    for name in ("note.txt", ".hidden.msg", "x.swp"):
        (agent.inbox / name).write_text("x")
    assert not agents.has_mail(agent) and agents.waiting(agent) == 0
    (agent.in_progress / "x.msg").write_text("x")
    assert agents.has_mail(agent)


def test_ringing_wakes_a_listener_and_nothing_else(tmp_path: Path):
    fifo = tmp_path / "wake" / "a"
    assert not wake.ring(fifo)
    fd = wake.listen(fifo)
    assert wake.ring(fifo)
    assert os.read(fd, 10) == b"\n"
    for _ in range(70_000):  # more than a pipe holds
        assert wake.ring(fifo), "a full pipe is enough to wake"
    wake.drain(fd)
    with pytest.raises(BlockingIOError):
        os.read(fd, 1)
    os.close(fd)
    assert not wake.ring(fifo), "nobody listens any more"


@pytest.mark.parametrize(
    "make", [lambda p: p.write_text("mine"), lambda p: p.symlink_to("/dev/null"), lambda p: p.mkdir()]
)
def test_ringing_writes_into_nothing_that_is_no_fifo(tmp_path: Path, make):
    path = tmp_path / "a"
    make(path)
    assert not wake.ring(path)
    if path.is_file() and not path.is_symlink():
        assert path.read_text() == "mine"


def test_a_line_is_not_glued_to_the_half_line_of_a_killed_process(tmp_path: Path):
    first = Log(tmp_path)
    first.info("whole")
    first.close()
    (path,) = tmp_path.glob("*.ndjson")
    with path.open("ab") as file:
        file.write(b'{"ts":"half')
    Log(tmp_path).info("later")
    found = path.read_bytes().split(b"\n")
    assert [json.loads(found[i])["event"] for i in (0, 2)] == ["whole", "later"]
    assert found[1] == b'{"ts":"half'
