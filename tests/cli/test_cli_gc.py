"""`loom gc` as a user or cron calls it."""

from __future__ import annotations

import gzip
import os
import subprocess
from pathlib import Path

import pytest
from cli_user import COMMAND, Loom

from loom.spool import locks, mailbox
from loom.spool.layout import AgentDir, Home
from loom.wire import ids, message
from loom.wire.message import Message
from loom.wire.times import day_of

STEM = ids.message_stem(1_790_000_000_000, b"0123456789")


def home(loom: Loom) -> Home:
    return Home(loom.home)


@pytest.fixture
def finished(loom: Loom) -> AgentDir:
    """An agent with one message that is finished, and settings by which that is old enough."""
    agent = home(loom).agent("worker")
    mailbox.create(agent)
    path = agent.processed(STEM)
    path.parent.mkdir()
    path.write_bytes(message.encode(Message(ids.ulid_of(STEM), "user", 1, "hello")))
    home(loom).config.write_text("retention:\n  messages: 0\n")
    return agent


def test_it_archives_and_says_so_in_one_line(loom: Loom, finished: AgentDir):
    said = loom("gc")
    assert said.status == 0 and said.out == "" and said.err == "loom: gone: 1 processed\n"
    assert not finished.processed(STEM).exists()
    assert b'"hello' in gzip.decompress(home(loom).archive_of(day_of(ids.time_of(STEM))).read_bytes()).replace(
        b"\\", b""
    )
    again = loom("-q", "gc")
    assert (again.status, again.out, again.err) == (0, "", "")


@pytest.mark.parametrize("damage", ["junk", "cut", "fifo"])
def test_an_archive_that_cannot_be_read_is_told_and_set_aside(loom: Loom, finished: AgentDir, damage: str):
    """What is put behind damage no reader would get to."""
    path = home(loom).archive / f"{day_of(ids.time_of(STEM))}.ndjson.gz"
    path.parent.mkdir(mode=0o700)
    if damage == "fifo":
        os.mkfifo(path, 0o600)
    else:
        path.write_bytes(b"junk" if damage == "junk" else gzip.compress(b"x\n" * 10_000)[:-9])
        path.chmod(0o600)
    assert loom("agent", "ps").status == 0  # makes what a home has
    found = loom("fsck")
    assert found.status == 1 and path.name in found.out, found
    assert loom("gc").status == 0
    assert STEM in gzip.decompress(path.read_bytes()).decode()
    assert len(list(path.parent.glob(f"{path.name}.damaged.*"))) == 1


def test_a_slip_in_the_homes_name_makes_no_home(loom: Loom):
    said = loom("--home", str(loom.place / "hoem"), "gc")
    assert said.status == 66 and "there is no loom home in" in said.err
    assert not (loom.place / "hoem").exists()


def test_a_dry_run_says_what_would_go_and_why_something_stays(loom: Loom, finished: AgentDir):
    (finished.outbox / f"{STEM}.msg").write_bytes(b"{}")
    said = loom("gc", "--dry-run")
    path = finished.processed(STEM)
    assert said.status == 0 and said.out == f"stays     {path}: its name stands in an outbox\n"
    (finished.outbox / f"{STEM}.msg").unlink()
    said = loom("gc", "--dry-run")
    assert said.out == f"would go  {path} (processed)\n" and said.err == "loom: would go: 1 processed\n"
    assert path.exists() and not home(loom).archive.exists()


def test_json_is_one_line_for_each_and_a_result(loom: Loom, finished: AgentDir):
    size = finished.processed(STEM).stat().st_size
    told, result = loom("gc", "--dry-run", "--json").objects
    assert told == {"event": "goes", "what": "processed", "path": str(finished.processed(STEM)), "why": ""}
    expected = {"event": "result", "v": 1, "gone": {"processed": 1}, "stays": {}, "bytes": size}
    assert result == {**expected, "dry_run": True, "archive": str(home(loom).archive)}
    (result,) = loom("gc", "--json").objects
    assert result == {**expected, "dry_run": False, "archive": str(home(loom).archive)}


def test_by_default_nothing_younger_than_a_week_goes(loom: Loom, finished: AgentDir):
    home(loom).config.unlink()
    assert loom("gc").err == "loom: gone: nothing\n" and finished.processed(STEM).exists()


def test_a_second_gc_ends_with_75(loom: Loom, finished: AgentDir):
    loom("gc", "--dry-run")
    lock = locks.acquire(home(loom).tidy_lock)
    assert lock is not None
    with lock:
        said = loom("gc")
        assert said.status == 75 and "another gc or fsck --repair is at work" in said.err
        assert loom("gc", "--dry-run").status == 0
    assert finished.processed(STEM).exists()


@pytest.mark.parametrize(
    "text, named",
    [
        ("  messages: -1", "a float of at least 0"),
        ("  blobs: 0.5", "at least 1"),
        ("  mesages: 7", "'retention.messages'"),
    ],
)
def test_wrong_settings_end_with_78_and_name_the_line(loom: Loom, finished: AgentDir, text: str, named: str):
    home(loom).config.write_text(f"retention:\n{text}\n")
    said = loom("gc")
    assert said.status == 78 and "config.yml:2" in said.err and named in said.err
    assert finished.processed(STEM).exists()


def test_a_full_disk_ends_with_74_and_everything_is_whole(loom: Loom, finished: AgentDir):
    """No file may grow: the archive cannot be written."""
    done = subprocess.run(
        ["sh", "-c", 'ulimit -f 0; exec "$@"', "sh", *COMMAND, "gc"],
        env=loom.env,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 74, done
    assert finished.processed(STEM).exists() and not list(home(loom).archive.glob("*.gz"))
    assert loom("gc").status == 0 and not finished.processed(STEM).exists()


def test_agent_logs_reads_what_gc_has_packed(loom: Loom, finished: AgentDir):
    logs: Path = finished.logs
    logs.mkdir(exist_ok=True)
    finished.spec.write_text("{}")
    log = logs / "2026-01-01.ndjson"
    log.write_text('{"ts":"2026-01-01T00:00:00.000000Z","level":"info","event":"here"}\n')
    home(loom).config.write_text("retention:\n  logs_packed: 0\n")
    assert loom("gc").status == 0
    assert os.listdir(logs) == ["2026-01-01.ndjson.gz"] or sorted(os.listdir(logs)) == [".tmp", "2026-01-01.ndjson.gz"]
    assert "here" in loom("agent", "logs", "worker").out
