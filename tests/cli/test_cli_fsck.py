"""`loom fsck` as a user calls it."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from cli_user import Loom

from loom.spool import agents, locks, mailbox
from loom.spool import home as homes
from loom.spool.layout import AgentDir
from loom.wire.agent import AgentSpec


@pytest.fixture
def agent(loom: Loom) -> AgentDir:
    home = homes.open_home(loom.home)
    made = agents.create(home, AgentSpec(name="worker", model="builtin/echo"), "", "down")
    for path in home.path.rglob("*"):
        if "run" not in path.relative_to(home.path).parts:
            path.chmod(0o700 if path.is_dir() else 0o600)
    home.path.chmod(0o700)
    return made


def test_a_home_that_is_as_it_should_be(loom: Loom, agent: AgentDir):
    said = loom("fsck")
    assert (said.status, said.out, said.err) == (0, "", f"loom: {loom.home} is as it should be\n")


def test_what_can_be_mended_is_told_then_mended_then_gone(loom: Loom, agent: AgentDir):
    agent.pid.write_text("1\n")
    agent.pid.chmod(0o600)
    said = loom("fsck")
    what = f"{agent.pid}: names a process that does not serve this agent"
    assert said.status == 1 and said.out == f"{what}; --repair: removed\n" and agent.pid.exists()
    said = loom("fsck", "--repair")
    assert said.status == 0 and said.out == f"{what}; mended: removed\n" and not agent.pid.exists()
    assert loom("fsck", "--repair").status == loom("fsck").status == 0


def test_what_a_person_decides_ends_with_1_and_stays(loom: Loom, agent: AgentDir):
    odd = agent.inbox / "notes\x1b[31m.txt"
    odd.write_text("x")
    odd.chmod(0o600)
    for command in (("fsck",), ("fsck", "--repair")):
        said = loom(*command)
        assert said.status == 1 and "does not end in .msg" in said.out and "1 left to you" in said.err
        assert odd.exists()


def test_a_name_that_is_not_utf8_is_shown_all_the_same(loom: Loom, agent: AgentDir):
    Path(str(agent.inbox / "bad\udcff")).write_text("x")
    (finding, *_, result) = loom("fsck", "--json").objects
    assert finding["path"].endswith("bad\\xff") and result["exit_status"] == 1


def test_a_served_agent_is_skipped_with_75(loom: Loom, agent: AgentDir):
    lock = locks.acquire(agent.lock)
    assert lock is not None
    with lock:
        said = loom("fsck")
        assert said.status == 75 and "is served" in said.out and "1 skipped" in said.err
        found = loom("fsck", "--repair", "--json").objects
    assert found[-1] == {"event": "result", "v": 1, "repair": True, "counts": {"busy": 1}, "exit_status": 75}
    assert found[0]["status"] == "busy" and found[0]["path"] == str(agent.path)


def test_no_home_is_66_and_none_is_made(loom: Loom):
    said = loom("fsck")
    assert said.status == 66 and "there is no loom home" in said.err and not loom.home.exists()
    assert loom("fsck", "--repair").status == 66 and not loom.home.exists()


def test_a_newer_home_is_78(loom: Loom, agent: AgentDir):
    (loom.home / "version").write_text("2\n")
    said = loom("fsck", "--json")
    assert said.status == 78 and said.objects[-1]["error"]["exit_status"] == 78


def test_a_repair_while_gc_is_at_work_is_75(loom: Loom, agent: AgentDir):
    lock = locks.acquire(loom.home / "tidy.lock")
    assert lock is not None
    with lock:
        assert loom("fsck", "--repair").status == 75


@pytest.mark.parametrize("where", ["lock", "turns/1700000000000-01HF7YAT00ABCDEFGHJKMNPQRS.0.ndjson"])
def test_a_fifo_where_a_file_belongs_neither_holds_it_up_nor_ends_it(loom: Loom, where: str):
    loom.make_home()
    agent = AgentDir(loom.home / "agents" / "worker")
    mailbox.create(agent)
    os.mkfifo(agent.path / where, 0o600)
    for words in ((), ("--repair",)):
        said = loom("fsck", *words)
        assert said.status == 1 and "fifo" in said.out, said


def test_the_name_of_a_home_may_be_a_link(loom: Loom, tmp_path: Path):
    loom.make_home()
    link = tmp_path / "link"
    link.symlink_to(loom.home)
    assert loom("--home", str(link), "fsck").status == 0


@pytest.mark.parametrize("where", ["inbox/.processed", "memory", "goals/.tmp", "archive"])
def test_directories_without_end_end_neither_fsck_nor_gc(loom: Loom, agent: AgentDir, where: str):
    top = agent.path / where if (agent.path / where).is_dir() else loom.home / where
    top.mkdir(mode=0o700, exist_ok=True)
    try:
        nest(top, 3000)  # longer than any path the kernel takes
        for words in ((), ("--repair",)):
            said = loom("fsck", *words)
            assert said.status == (0 if where == "goals/.tmp" else 1), said
            assert ("lies too deep" in said.out) == (said.status == 1)
        assert loom("gc").status == 0
    finally:
        subprocess.run(["rm", "-rf", top], check=True)  # what removes the rest of the test cannot go so deep


def nest(top: Path, levels: int) -> None:
    here = os.open(top, os.O_RDONLY)
    for _ in range(levels):
        os.mkdir("d", 0o700, dir_fd=here)
        below = os.open("d", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(here)


def test_a_name_cannot_forge_a_line_nor_colour_it(loom: Loom, agent: AgentDir):
    odd = agent.inbox / "a\x1b[31m\nforged: is fine\u202e.txt"
    odd.write_text("x")
    odd.chmod(0o600)
    said = loom("fsck")
    assert len(said.out.splitlines()) == 1 and r"/a\x1b[31m\nforged: is fine\u202e.txt: " in said.out
    assert loom("fsck", "--json").objects[0]["path"] == str(odd)


def test_settings_of_mode_0644_are_noted_and_end_with_0(loom: Loom, agent: AgentDir):
    path = loom.home / "config.yml"
    path.write_text("model: builtin\n")
    path.chmod(0o644)
    said = loom("fsck")
    assert said.status == 0 and said.out == f"{path}: has mode 0644; no fault; --repair: set to 0600\n"
    assert "1 only noted" in said.err
