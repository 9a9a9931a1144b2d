"""Crash records and where their details come from."""

from __future__ import annotations

from pathlib import Path

from loom.spool import crashes
from loom.spool.layout import AgentDir
from loom.spool.logs import Log


def _agent(tmp_path: Path) -> AgentDir:
    agent = AgentDir(tmp_path / "a")
    agent.logs.mkdir(parents=True)
    return agent


def test_the_newest_hundred_are_kept(tmp_path: Path) -> None:
    agent = _agent(tmp_path)
    assert crashes.newest(agent) is None
    for number in range(crashes.KEEP + 5):
        crashes.write(agent, 1_700_000_000_000 + number, {"n": number})
    assert len(crashes.names(agent)) == crashes.KEEP
    assert crashes.newest(agent) == {"n": crashes.KEEP + 4}


def test_a_damaged_record_is_passed_over(tmp_path: Path) -> None:
    agent = _agent(tmp_path)
    path = crashes.write(agent, 1_700_000_000_000, {"n": 1})
    path.with_name("9" + path.name[1:]).write_text("{")
    assert crashes.newest(agent) == {"n": 1}


def test_the_tail_of_stderr_is_that_of_this_incarnation(tmp_path: Path) -> None:
    agent = _agent(tmp_path)
    assert crashes.stderr_tail(agent, 0) == ""
    agent.stderr.write_text("before\n")
    begin = crashes.stderr_size(agent)
    with agent.stderr.open("a") as file:
        file.write("after\n")
    assert crashes.stderr_tail(agent, begin) == "after\n"
    agent.stderr.write_bytes(b"\xff\n")  # rotated meanwhile
    assert crashes.stderr_tail(agent, begin) == "\ufffd\n"
    agent.stderr.write_text("x" * 10_000 + "end")
    assert crashes.stderr_tail(agent, 0) == ("x" * 10_000 + "end")[-4096:]


def test_the_last_error_is_what_the_runner_logged_since_it_was_started(tmp_path: Path) -> None:
    agent = _agent(tmp_path)
    log = Log(agent.logs)
    log.error("stopped", error_type="config", error="no key")
    log.info("something else")
    (day,) = agent.logs.glob("*.ndjson")
    now_ms = int(day.stat().st_mtime * 1000)
    assert crashes.last_error(agent, "2000", now_ms) == ("config", "no key")
    assert crashes.last_error(agent, "2999", now_ms) == ("", "")
    with day.open("ab") as file:
        file.write(b"{torn")
    assert crashes.last_error(agent, "2000", now_ms) == ("config", "no key")
