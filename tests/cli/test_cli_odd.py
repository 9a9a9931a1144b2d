"""Odd places, odd limits, odd values and odd endings: one line that says what to do, and nothing lost or left."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from cli_user import COMMAND, Loom
from support import wait_until

from loom.cli import filtering, printing

ECHO = ("agent", "start", "x", "--model", "builtin/echo")
START = (*ECHO, "--detach")


# -- the home --------------------------------------------------------------------------------------------------


def test_a_directory_with_other_things_in_it_is_not_made_a_home(loom: Loom) -> None:
    """Its run/ would be emptied: `loom --home .` in a project must not cost anybody a file."""
    project = loom.place / "project"
    (project / "run").mkdir(parents=True)
    (project / "run" / "results.csv").write_text("precious")
    (project / "main.c").write_text("int main;")
    said = loom("--home", str(project), "agent", "ps")
    assert said.status == 78 and "no loom home" in said.err and "main.c" in said.err
    assert sorted(os.listdir(project)) == ["main.c", "run"]
    assert (project / "run" / "results.csv").read_text() == "precious"


READERS = (
    *("agent ps", "agent show x", "agent logs x", "goal ps", "goal show x", "goal log x", "goal audit x"),
    *(
        "supervisor status",
        "routes",
        "pipes",
        "schedule ls",
        "schedule show x",
        "secret ls",
        "config",
    ),
)


def test_who_only_reads_makes_no_home_at_a_mistyped_path(loom: Loom) -> None:
    place = loom.place / "no" / "where"
    for words in READERS:
        said = loom("--home", str(place), *words.split())
        assert said.status == 66 and f"there is no loom home in {place}" in said.err, (words, said)
    assert not place.parent.exists()


CHANGERS = (
    *("send x hi", "agent send x hi", "agent stop x", "agent restart x", "agent retry x", "agent rm x --force"),
    *("goal pause x", "goal resume x", "goal cancel x", "goal land x", "route a --to b", "unroute a --to b"),
    *("schedule rm x", "schedule run-due", "secret rm x", "supervisor reload", "gc", "fsck --repair", "down --name x"),
)


def test_who_changes_what_is_there_makes_no_home_at_a_mistyped_path(loom: Loom) -> None:
    place = loom.place / "no" / "where"
    for words in (*(words.split() for words in CHANGERS), ["pipe", "create", "p", "[{operator: tap, label: x}]"]):
        said = loom("--home", str(place), *words)
        assert said.status == 66 and f"there is no loom home in {place}; " in said.err, (words, said)
        assert "set LOOM_HOME, or give --home DIR" in said.err
    assert loom("--home", str(place), "supervisor", "stop").status == 66
    assert not place.parent.exists()
    del loom.env["LOOM_HOME"]
    for words in ("send x hi", "agent stop x", "supervisor stop"):
        assert loom(*words.split()).status == (0 if words == "supervisor stop" else 66)
    assert not (loom.place / ".loom").exists()


@pytest.mark.parametrize("words", ["agent ps", "goal ps", "routes", "schedule ls", "supervisor status"])
def test_who_only_reads_finds_nothing_in_a_default_home_that_is_not_there_yet(loom: Loom, words: str) -> None:
    del loom.env["LOOM_HOME"]
    said = loom(*words.split())
    assert said.status == 0 and said.err == "" and len(said.out.splitlines()) == 1, said
    assert not (loom.place / ".loom").exists()


def test_a_directory_that_was_removed_under_us_is_named_as_the_cause(loom: Loom) -> None:
    said = loom.shell("mkdir gone && cd gone && rmdir ../gone && loom agent start x --model builtin/echo --prompt hi")
    assert said.status == 74 and "current directory does not exist" in said.err and "cd to" in said.err


# -- values ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seconds", ["nan", "inf", "1e300", "-1"])
@pytest.mark.parametrize(
    "words",
    [
        (*ECHO, "--prompt", "a", "--timeout"),
        (*START, "--restart-base"),
        (*START, "--restart-window"),
        ("send", "x", "hello", "--wait", "--timeout"),
        ("agent", "stop", "x", "--timeout"),
        ("supervisor", "stop", "--timeout"),
    ],
    ids=lambda words: " ".join(words[-1:]),
)
def test_seconds_that_are_no_time_are_usage(loom: Loom, words: tuple[str, ...], seconds: str) -> None:
    said = loom(*words, seconds)
    assert (said.status, said.out) == (2, ""), said
    assert not (loom.home / "agents" / "x" / "agent.json").exists()


def test_a_limit_beyond_all_memory_is_only_a_limit(loom: Loom) -> None:
    assert loom(*ECHO, "--max-input", "99999999999999999999", stdin="hello").out == "hello\n"


def test_a_stdin_that_cannot_be_read_is_bad_input(loom: Loom) -> None:
    said = loom.shell(f"loom {' '.join(ECHO)} --stdin 0>written")
    assert said.status == 65 and "stdin cannot be read" in said.err


# -- mail ------------------------------------------------------------------------------------------------------


def test_a_message_is_accepted_also_when_no_supervisor_can_be_started(loom: Loom) -> None:
    """It is in the inbox: a failure would have a script send it twice."""
    assert loom(*START).status == 0
    assert loom("supervisor", "stop").status == 0
    said = loom("send", "x", "hello", LOOM_SUPERVISOR_IDLE_S="no number")
    stem = said.out.strip()
    assert said.status == 0 and "accepted" in said.err and "no number" in said.err
    assert (loom.home / "agents" / "x" / "inbox" / f"{stem}.msg").exists()
    assert loom("send", "x", "--stdin-lines", stdin="a\nb\n", LOOM_SUPERVISOR_IDLE_S="no number").status == 0
    assert loom("send", "x", "hello", "--name", stem, "--wait", "--timeout", "20").out == "hello\n"


def test_one_broken_mailbox_does_not_hide_the_other_agents(loom: Loom) -> None:
    for name in ("a", "b"):
        loom("agent", "start", name, "--model", "builtin/echo", "--detach")
    loom("supervisor", "stop")
    inbox = loom.home / "agents" / "a" / "inbox"
    inbox.rename(inbox.with_name("elsewhere"))
    inbox.write_text("")
    said = loom("agent", "ps", "-a")
    assert said.status == 0 and " 0 " in said.out and "\nb " in said.out
    assert loom("agent", "show", "a").status == 0


# -- filters ---------------------------------------------------------------------------------------------------


def test_a_closed_terminal_ends_a_filter_with_all_that_its_model_started(loom: Loom) -> None:
    started = loom.place / "started"
    words = ["sleep", f"1000.{time.time_ns()}"]  # its pid, as the program sees it, is of a namespace of its own
    source = f"""
import pathlib, subprocess
child = subprocess.Popen({words!r})
pathlib.Path({str(started)!r}).touch()
child.wait()
"""
    program = loom.program("slow.py", source)
    process = loom.start("agent", "start", "x", "--model", f"exec/{program}", "--prompt", "a")
    wait_until(started.exists)
    wait_until(lambda: _runs(words))
    process.send_signal(signal.SIGHUP)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 129 and b"resume with" in err
    wait_until(lambda: not _runs(words))


def _runs(words: list[str]) -> bool:
    """Whether a process with this command line lives."""
    wanted = "\0".join([*words, ""]).encode()
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if path.read_bytes() == wanted:
                return True
        except OSError:
            continue
    return False


def test_under_nohup_a_filter_goes_on(loom: Loom, tmp_path: Path) -> None:
    began, gate = tmp_path / "began", tmp_path / "gate"
    os.mkfifo(began)
    os.mkfifo(gate)
    program = loom.program("slow.py", f"open({str(began)!r}, 'w').close(); open({str(gate)!r}).read(); print('done')")
    start = f"trap '' HUP; loom agent start x --model exec/{program} --prompt a &"
    script = f"{start} cat {began}; kill -HUP $!; echo > {gate}; wait $!"
    assert loom.shell(script).out == "done\n"


def test_lines_of_filters_side_by_side_do_not_mix(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each line is one write, whatever pieces the model spoke it in, and so is the newline that was missing."""
    written: list[str] = []
    monkeypatch.setattr(printing, "write", written.append)
    monkeypatch.setattr(printing, "on_terminal", lambda: False)
    teller = filtering.Teller(json=False, tools=False)
    for piece in ("on", "e\ntw", "o\nthree\nfo", "ur"):
        teller.event({"event": "text", "text": piece})

    class Outcome:
        text = "one\ntwo\nthree\nfour"

    outcome: Any = Outcome()
    teller.finish(outcome)
    assert written == ["one\n", "two\nthree\n", "four\n"]


def test_a_line_without_end_is_not_held_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[str] = []
    monkeypatch.setattr(printing, "write", written.append)
    monkeypatch.setattr(printing, "on_terminal", lambda: False)
    teller = filtering.Teller(json=False, tools=False)
    for _ in range(10):
        teller.event({"event": "text", "text": "x" * 10_000})
    assert len("".join(written)) > 50_000
    teller.break_off()
    assert "".join(written) == "x" * 100_000


def test_a_full_disk_leaves_no_directory_of_a_filter_that_never_began(loom: Loom) -> None:
    loom(*ECHO, stdin="warm")
    said = loom.shell(f"ulimit -f 1; head -c 4000 /dev/zero | tr '\\0' x | loom {' '.join(ECHO)} --stdin")
    assert said.status == 74, said
    assert loom.left() == []


def test_a_directory_whose_name_is_no_text_is_refused(loom: Loom) -> None:
    """It would stand in a record, which is UTF-8."""
    odd = os.fsencode(loom.place) + b"/caf\xe9"
    os.mkdir(odd)
    command = [*COMMAND, *ECHO, "--prompt", "hi"]
    for given, cwd in ((["-w", odd], loom.place), ([], odd)):
        done = subprocess.run([*command, *given], capture_output=True, env=loom.env, cwd=cwd, check=False)
        assert (done.returncode, done.stdout) == (65, b""), done
        assert b"is not text: it is no UTF-8" in done.stderr and done.stderr.count(b"\n") == 1
