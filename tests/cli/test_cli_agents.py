"""Detached agents from the command line: start, send, look, stop, retry, remove."""

from __future__ import annotations

import ctypes
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from cli_user import DEADLINE_S, ROOT, Loom, Said
from support import wait_until

from loom.cli import agent_state
from loom.spool import agents, locks
from loom.spool.home import open_home
from loom.wire.agent import AgentLimits, AgentSpec
from loom.wire.times import parse_us, rfc3339

STEM = re.compile(r"[0-9]{13}-[0-9A-HJKMNP-TV-Z]{26}\n")


def start(loom: Loom, *more: str, name: str = "x", model: str = "builtin/echo") -> None:
    said = loom("agent", "start", name, "--model", model, "--detach", *more)
    assert (said.status, said.out) == (0, f"{name}\n"), said


def ask(loom: Loom, text: str, *more: str, name: str = "x") -> str:
    said = loom("send", name, text, "--wait", "--timeout", "20", *more)
    assert said.status == 0, said
    return said.out


def show(loom: Loom, name: str = "x") -> dict[str, object]:
    return loom("agent", "show", name, "--json").objects[0]


# -- start -----------------------------------------------------------------------------------------------------


def test_a_detached_agent_answers(loom: Loom) -> None:
    start(loom)
    assert ask(loom, "hello") == "hello\n"
    # Its answer is there before the message is put away and the agent says that it waits.
    wait_until(lambda: re.search(r"^x +idle +\d+ +builtin/echo +0 +-$", loom("agent", "ps").out, re.MULTILINE))


def test_asking_for_what_runs_hides_no_crash(loom: Loom) -> None:
    start(loom)
    ask(loom, "hello")
    start(loom)
    agent = open_home(loom.home).agent("x")
    running = locks.holder(agent.lock)
    assert running is not None
    os.kill(running.pid, signal.SIGKILL)
    (record,) = wait_until(lambda: list(agent.crashes.glob("*.json")))
    assert json.loads(record.read_text())["signal"] == "SIGKILL"


def test_who_waits_for_a_stopped_agent_is_told_how_to_ask_again(loom: Loom) -> None:
    start(loom)
    ask(loom, "hello")
    assert loom("agent", "stop", "x").status == 0
    said = loom("send", "x", "later", "--wait")
    assert (said.status, said.out) == (75, "")
    again = re.search(r"accepted; ask again with: loom send x TEXT --name (\S+) --wait", said.err)
    assert again is not None, said.err
    start(loom)
    assert ask(loom, "later", "--name", again[1]) == "later\n"


def test_the_same_settings_again_are_fine_and_others_are_named(loom: Loom) -> None:
    start(loom, "--system", "be kind", "--env", "A=1")
    again = loom("agent", "start", "x", "--model", "builtin/echo", "--detach", "--json")
    assert (again.status, again.objects[0]["how"]) == (0, "unchanged")
    for words, difference in (
        (("--model", "builtin/extract"), "model 'builtin/echo', not 'builtin/extract'"),
        (("--system", "be rude"), "another system prompt"),
        (("--env", "A=2"), "env A '1', not '2'"),
        (("--restart", "never"), "restart policy 'always', not 'never'"),
        (("--tools", "read-file"), "tools 'none', not 'read-file'"),
    ):
        said = loom("agent", "start", "x", "--detach", *words)
        assert said.status == 2 and difference in said.err and "--replace" in said.err, said
    replaced = loom("agent", "start", "x", "--detach", "--restart", "never", "--replace", "--json")
    assert replaced.objects[0]["how"] == "changed"
    spec = json.loads((loom.home / "agents/x/agent.json").read_text())
    assert (spec["restart"]["policy"], spec["env"], spec["model"]) == ("never", {"A": "1"}, "builtin/echo")
    assert (loom.home / "agents/x/prompt.md").read_text() == "be kind"


def test_starting_a_stopped_agent_is_asking_for_it(loom: Loom) -> None:
    start(loom)
    assert loom("agent", "stop", "x").status == 0
    assert loom("agent", "start", "x", "--detach").status == 0
    assert ask(loom, "again") == "again\n"


def test_starting_a_dead_agent_is_asking_for_it(loom: Loom) -> None:
    start(loom)
    loom("agent", "stop", "x")
    (loom.home / "agents/x/want").write_text("dead\n")
    assert loom("agent", "ps", "-a", "--json").objects[0]["agents"][-1]["name"]
    assert show(loom)["status"] == "dead"
    assert "was dead and is started again" in loom("agent", "start", "x", "--detach").err
    assert ask(loom, "alive") == "alive\n"


def test_a_key_of_this_environment_alone_is_refused_with_the_command_that_stores_it(loom: Loom) -> None:
    words = ("agent", "start", "x", "--model", "openai/m", "--detach")
    here = loom(*words, OPENAI_API_KEY="sk-1")
    assert here.status == 78 and "only in this environment" in here.err and "loom secret set openai" in here.err
    nowhere = loom(*words)
    assert nowhere.status == 78 and "loom secret set openai" in nowhere.err
    assert not (loom.home / "agents/x").exists()
    loom("secret", "set", "openai", stdin="sk-1")
    assert loom(*words).status == 0


def test_relative_programs_and_scripts_are_those_of_the_caller(loom: Loom) -> None:
    loom.script({"text": "from a script"}, name="said.ndjson")
    start(loom, model="script/said.ndjson")
    assert ask(loom, "?") == "from a script\n"


def test_what_cannot_run_is_refused_before_the_agent_is_made(loom: Loom) -> None:
    for words, status in (
        (("--model", "builtin/echo", "--tools", "no-such"), 66),
        (("--model", "script/none"), 66),
        (("--model", "builtin/echo", "--stdin"), 2),
        (("--model", "builtin/echo", "--thread", "t"), 2),
    ):
        assert loom("agent", "start", "x", "--detach", *words).status == status
    assert not (loom.home / "agents/x/agent.json").exists()


def test_an_inbox_that_is_a_link_is_refused(loom: Loom) -> None:
    start(loom)
    loom("agent", "stop", "x")
    inbox = loom.home / "agents/x/inbox"
    inbox.rename(loom.place / "elsewhere")
    inbox.symlink_to(loom.place / "elsewhere")
    said = loom("agent", "start", "x", "--detach", "--restart", "never", "--replace")
    assert said.status == 78 and "inbox" in said.err


# -- send ------------------------------------------------------------------------------------------------------


def test_send_prints_the_message_s_name_once_it_is_accepted(loom: Loom) -> None:
    start(loom)
    said = loom("send", "x", "hello")
    assert STEM.fullmatch(said.out) and said.err == ""
    (loom.place / "f.txt").write_text("from a file")
    assert loom("send", "x", "--file", "f.txt", "--wait").out == "from a file\n"
    assert loom("agent", "send", "x", "--stdin", "--wait", stdin="from stdin").out == "from stdin\n"


@pytest.mark.parametrize(
    "words, stdin, status",
    [
        (("nobody", "hi"), "", 66),
        (("Bad Name", "hi"), "", 2),
        (("x", "hi", "--stdin"), "hi", 2),
        (("x",), "", 65),
        (("x", ""), "", 65),
        (("x", "--file", "none"), "", 66),
        (("x", "hi", "--timeout", "1"), "", 2),
        (("x", "hi", "--name", "mine"), "", 2),
        (("x", "hi", "--thread", "A B"), "", 2),
        (("x", "--stdin-lines", "--wait"), "a", 2),
    ],
)
def test_what_cannot_be_sent_is_refused(loom: Loom, words: tuple[str, ...], stdin: str, status: int) -> None:
    loom.home.mkdir()
    make_stopped(loom)
    said = loom("send", *words, stdin=stdin)
    assert said.status == status and said.err.count("\n") == 1
    assert not list((loom.home / "agents/x/inbox").glob("*.msg"))


def make_stopped(loom: Loom, name: str = "x", model: str = "builtin/echo") -> Path:
    """An agent that nobody wants up, made without a supervisor."""
    return agents.create(open_home(loom.home), AgentSpec(name, model), "", "down").path


def test_an_unknown_agent_has_a_nearest_name(loom: Loom) -> None:
    make_stopped(loom, "writer")
    said = loom("send", "writr", "hi")
    assert (said.status, said.out) == (66, "")
    assert "did you mean 'writer'?" in said.err


def test_a_name_makes_sending_twice_sending_once(loom: Loom) -> None:
    make_stopped(loom)
    stem = "1700000000000-01HF7YAT000000000000000000"
    words = ("send", "x", "hello", "--name", stem, "--json")
    assert [loom(*words).objects[0]["new"] for _ in range(2)] == [True, False]
    assert len(list((loom.home / "agents/x/inbox").glob("*.msg"))) == 1
    other = loom("send", "x", "other words", "--name", stem)
    assert other.status == 65 and "other content" in other.err


def test_a_stopped_agent_keeps_its_mail_and_with_wait_nobody_waits(loom: Loom) -> None:
    agent = make_stopped(loom)
    said = loom("send", "x", "hello")
    assert said.status == 0 and "is stopped" in said.err and STEM.fullmatch(said.out)
    waited = loom("send", "x", "hello", "--wait")
    assert (waited.status, waited.out) == (75, "") and "is stopped" in waited.err
    (agent / "want").write_text("dead\n")
    assert "is dead" in loom("send", "x", "hello").err
    assert len(list((agent / "inbox").glob("*.msg"))) == 3
    assert not (loom.home / "run/supervisor.lock").exists(), "nobody was started for it"


@pytest.mark.parametrize("how", ["its policy", "its configuration"])
def test_nobody_waits_for_an_agent_that_is_not_started_again_by_itself(loom: Loom, how: str) -> None:
    agent = loom.home / "agents" / "x"
    if how == "its policy":
        assert loom("agent", "start", "x", "--model", "builtin/echo", "--restart", "on-failure", "--detach").status == 0
        os.kill(wait_until(lambda: show(loom)["pid"]), signal.SIGTERM)
        word = "stopped"
    else:
        start(loom)
        pid = wait_until(lambda: show(loom)["pid"])
        settings = (agent / "agent.json").read_text()
        (agent / "agent.json").write_text(settings.replace("builtin/echo", "nowhere/m"))
        os.kill(pid, signal.SIGKILL)
        word = "error"
    wait_until(lambda: (agent / "status").read_text() == f"{word}\n")
    waited = loom("send", "x", "hello", "--wait", "--timeout", "60")
    assert (waited.status, waited.out) == (75, "") and "its mail waits" in waited.err and "--name" in waited.err
    said = loom("send", "x", "hello")
    assert said.status == 0 and "its mail waits" in said.err
    (row,) = [one for one in loom("agent", "ps", "--json").objects[0]["agents"] if one["name"] == "x"]
    assert row["status"] == word and row["waiting"] == 2 and row["reason"]
    assert "2 messages wait" in loom("doctor").out
    if how == "its policy":
        assert loom("agent", "restart", "x").status == 0
        assert ask(loom, "and now") == "and now\n"


def test_mail_for_a_wanted_agent_starts_a_supervisor(loom: Loom) -> None:
    agent = make_stopped(loom)
    (agent / "want").write_text("demand\n")
    assert ask(loom, "hello") == "hello\n"


def test_a_failure_is_a_reply_with_status_1(loom: Loom) -> None:
    start(loom, model=loom.script({"error": "context_overflow", "message": "far too long"}))
    said = loom("send", "x", "hello", "--wait", "--json")
    assert said.status == 1 and "far too long" in said.err
    (told,) = said.objects
    assert told["error"]["type"] == "context_overflow"
    assert told["agent"] == "x"
    wait_until((loom.home / f"agents/x/inbox/.failed/{told['message']}.msg").exists)  # the answer comes first
    assert show(loom)["mail"]["failed"] == 1  # type: ignore[index]


def test_waiting_ends_at_its_time(loom: Loom) -> None:
    fifo = loom.place / "gate"
    os.mkfifo(fifo)
    start(loom, model=f"exec/{loom.program('waits.py', f'print(open({str(fifo)!r}).read())')}")
    said = loom("send", "x", "hello", "--wait", "--timeout", "0.2")
    assert said.status == 124 and "--name" in said.err
    fifo.write_text("late")
    stem = re.search(r"--name (\S+)", said.err)
    assert stem is not None
    assert ask(loom, "hello", "--name", stem[1]) == "late\n"


def test_lines_are_messages_answered_in_their_order(loom: Loom) -> None:
    start(loom, model="builtin/echo")
    said = loom("send", "x", "--stdin-lines", stdin="one\n\ntwo\nthree\n")
    stems = said.out.splitlines()
    assert len(stems) == 3 and stems == sorted(stems)
    wait_until(lambda: show(loom)["mail"]["processed_today"] == 3)  # type: ignore[index]
    thread = (loom.home / "agents/x/conversations/main.ndjson").read_text().splitlines()
    assert [json.loads(line)["text"] for line in thread][::2] == ["one", "two", "three"]


def test_a_large_body_travels_as_a_blob_both_ways(loom: Loom) -> None:
    start(loom)
    text = "lorem ipsum dolor\n" * 100_000
    assert loom("send", "x", "--stdin", "--wait", "--thread", "big", stdin=text).out == text


# -- look, stop, restart, retry, remove ------------------------------------------------------------------------


def test_ps_tells_the_truth_when_the_status_file_does_not(loom: Loom) -> None:
    agent = make_stopped(loom)
    (agent / "want").write_text("up\n")
    (agent / "status").write_text("running\n")
    (agent / "pid").write_text("1\n")
    (listed,) = loom("agent", "ps", "--json").objects[0]["agents"]
    assert (listed["status"], listed["pid"], listed["alive"]) == ("crashed", None, False)
    lock = locks.acquire(agent / "lock")
    assert lock is not None
    with lock:
        lock.sign(locks.own_incarnation())
        (listed,) = loom("agent", "ps", "--json").objects[0]["agents"]
        assert (listed["status"], listed["pid"]) == ("running", os.getpid())


def test_ps_says_how_long_an_agent_has_been_on_its_message_and_not_how_long_it_runs(loom: Loom) -> None:
    slow = loom.program("slow.py", "import pathlib, time\nwhile not pathlib.Path('go').exists(): time.sleep(0.01)\n"
                        "print('done', end='')")  # fmt: skip
    start(loom, model=f"exec/{slow}")
    agent = open_home(loom.home).agent("x")
    (listed,) = loom("agent", "ps", "--json").objects[0]["agents"]
    assert (listed["message"], listed["message_since"]) == ("", "")
    sent = loom("send", "x", "hello", "--json").objects[0]["message"]
    claimed = wait_until(lambda: list(agent.in_progress.glob("*.msg")))[0]
    wait_until(lambda: agents.read_hint(agent.status) == "running")
    (listed,) = loom("agent", "ps", "--json").objects[0]["agents"]
    assert listed["message"] == sent
    assert parse_us(listed["message_since"]) == claimed.stat().st_ctime_ns // 1000 > parse_us(listed["started_at"])
    assert re.search(r"^x +running +\d+ +exec/\S+ +0 +\d+s$", loom("agent", "ps").out, re.MULTILINE)
    assert re.search(rf"^working on +{sent}, since 2", loom("agent", "show", "x").out, re.MULTILINE)
    os.kill(listed["pid"], signal.SIGKILL)  # the next process takes the same message up again
    wait_until(lambda: (who := locks.holder(agent.lock)) and who.pid != listed["pid"])
    wait_until(
        lambda: loom("agent", "ps", "--json").objects[0]["agents"][0]["message_since"] == listed["message_since"]
    )
    (agent.path / "go").touch()
    wait_until(lambda: not list(agent.in_progress.glob("*.msg")))


@pytest.mark.parametrize("ago_s, words", [
    (0, "0s"), (59, "59s"), (60, "1m"), (200, "3m 20s"), (7200, "2h"), (7205, "2h"), (7300, "2h 1m"),
    (360_000, "4d 4h"), (-50, "0s"),
])  # fmt: skip
def test_how_long_is_said_in_two_units(ago_s: int, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    since_us = 1_790_000_000_000_000
    state = agent_state.State("x", "running", "up", True, 1, "m", 0, "", "stem", rfc3339(since_us))
    monkeypatch.setattr(time, "time_ns", lambda: since_us * 1000 + ago_s * 10**9)
    assert agent_state.working_for(state) == words


def test_show_lets_nothing_hide_in_a_pipe_either(loom: Loom) -> None:
    (make_stopped(loom) / "prompt.md").write_text("Be \x1b[31mshort\u202e.\n")
    assert r"Be \x1b[31mshort\u202e." in loom("agent", "show", "x").out


def test_ps_says_that_some_are_not_shown(loom: Loom) -> None:
    agent = make_stopped(loom)
    said = loom("agent", "ps")
    assert (len(said.out.splitlines()), said.err) == (1, "loom: 1 stopped not shown; see: loom agent ps --all\n")
    (agent / "want").write_text("dead\n")
    said = loom("agent", "ps")
    assert "x" in said.out and "when its fault is mended: loom agent restart x" in said.out and said.err == ""
    (agent / "want").write_text("down\n")
    for words in (("--all",), ("--json",), ("-a", "--json")):
        assert loom("agent", "ps", *words).err == ""
    assert loom("-q", "agent", "ps").err == ""


def test_supervisor_status_counts_by_locks_and_own_processes_apart(loom: Loom) -> None:
    agent = make_stopped(loom)
    (agent / "want").write_text("up\n")
    (agent / "status").write_text("running\n")  # it was killed, and nobody could write that down
    home = open_home(loom.home)
    router = agents.create(home, AgentSpec(name="router", model="builtin", runner="router"), "", "demand")
    router.status.write_text("idle\n")
    told = loom("supervisor", "status", "--json").objects[0]
    assert (told["agents"], told["own"]) == ({"crashed": 1}, {})
    assert loom("supervisor", "status").out == "not running: 1 crashed\n"
    lock = locks.acquire(router.lock)
    assert lock is not None
    with lock:
        told = loom("supervisor", "status", "--json").objects[0]
        assert (told["agents"], told["own"]) == ({"crashed": 1}, {"idle": 1})
        assert loom("supervisor", "status").out == "not running: 1 crashed; loom's own processes: 1 idle\n"


def test_ps_survives_an_agent_that_cannot_be_read(loom: Loom) -> None:
    (make_stopped(loom) / "agent.json").write_text("{")
    (listed,) = loom("agent", "ps", "-a", "--json").objects[0]["agents"]
    assert listed["status"] == "error"
    assert loom("agent", "show", "x").status == 0


def test_show_tells_settings_mail_and_the_last_crash(loom: Loom) -> None:
    agent = make_stopped(loom)
    loom("send", "x", "hello")
    (agent / "crashes" / "1700000000000-01HF7YAT000000000000000000.json").write_text(
        json.dumps({"ts": "2026-01-01T00:00:00Z", "signal": "SIGKILL", "last_error": "boom", "stderr": "a\nb\n"})
    )
    said = loom("agent", "show", "x")
    for words in ("builtin/echo", "1 waiting", "SIGKILL boom", str(agent)):
        assert words in said.out
    about = show(loom)
    assert about["want"] == "down" and about["last_crash"]["signal"] == "SIGKILL"  # type: ignore[index]


def test_stop_waits_until_it_is_gone(loom: Loom) -> None:
    start(loom)
    start(loom, name="y")
    ask(loom, "hi")
    ask(loom, "hi", name="y")
    said = loom("agent", "stop", "x", "y")
    assert (said.status, said.out) == (0, "")
    assert [show(loom, n)["alive"] for n in "xy"] == [False, False]
    assert "was not running" in loom("agent", "stop", "x").err
    assert loom("agent", "stop", "x", "nobody").status == 66


def test_a_runner_without_a_supervisor_is_stopped_too(loom: Loom) -> None:
    agent = make_stopped(loom)
    runner = subprocess.Popen([sys.executable, str(ROOT / "runners/agent"), str(agent)], env=loom.env)
    wait_until(lambda: locks.holder(agent / "lock"))
    wait_until(lambda: (agent / "status").read_text() == "idle\n")
    assert loom("send", "x", "hello", "--wait").out == "hello\n"
    assert loom("agent", "stop", "x").status == 0
    assert runner.wait(20) == 0


def test_restart_makes_another_process_of_it(loom: Loom) -> None:
    start(loom)
    ask(loom, "hi")
    before = show(loom)["pid"]
    assert loom("agent", "restart", "x").status == 0
    assert ask(loom, "hello") == "hello\n"
    assert show(loom)["pid"] not in (None, before)


def test_retry_gives_a_failed_message_another_attempt(loom: Loom) -> None:
    start(loom, model=loom.script({"error": "context_overflow"}))
    assert loom("send", "x", "hello", "--wait").status == 1
    assert loom("agent", "retry", "x", "1700000000000-01HF7YAT000000000000000000").status == 66
    loom.script({"text": "now it works"})
    loom("agent", "restart", "x")
    stem = loom("agent", "retry", "x").out.strip()
    assert ask(loom, "hello", "--name", stem) == "now it works\n"
    assert "nothing of x failed" in loom("agent", "retry", "x").err


def test_logs_are_lines_for_people_and_ndjson_for_programs(loom: Loom) -> None:
    start(loom)
    ask(loom, "hello")
    line = re.compile(r"^\d{4}-\d\d-\d\d [\d:.]{12} info    answered .*message=", re.MULTILINE)
    wait_until(lambda: line.search(loom("agent", "logs", "x").out))  # logged after the answer is there
    events = [r["event"] for r in loom("agent", "logs", "x", "--json").objects]
    assert "claimed" in events and "answered" in events
    assert loom("agent", "logs", "x", "-n", "1", "--json").objects[0]["event"] == events[-1]
    assert loom("agent", "logs", "x", "--since", "2999-01-01").out == ""
    assert len(loom("agent", "logs", "x", "--since", "10m", "--json").objects) == len(events)
    assert loom("agent", "logs", "x", "--since", "yesterday").status == 2
    assert loom("agent", "logs", "nobody").status == 66


def test_logs_are_followed_over_midnight(loom: Loom) -> None:
    logs = make_stopped(loom) / "logs"
    first, second = logs / "2026-01-01.ndjson", logs / "2026-01-02.ndjson"
    first.write_text('{"ts":"2026-01-01T23:59:59.000000Z","event":"one"}\n')
    process = loom.start("agent", "logs", "x", "-f", "--json")
    assert process.stdout is not None

    def next_event() -> str:
        assert process.stdout is not None
        return str(json.loads(process.stdout.readline())["event"])

    assert next_event() == "one"
    with first.open("a") as file:
        file.write('{"event":"two"}\n{"event":"thr')
    assert next_event() == "two"
    with first.open("a") as file:
        file.write('ee"}\n')
    assert next_event() == "three"
    second.write_text('{"event":"four"}\n')
    assert next_event() == "four"
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 143


def test_rm_refuses_what_would_be_missed(loom: Loom) -> None:
    start(loom)
    ask(loom, "hi")
    running = loom("agent", "rm", "x")
    assert running.status == 75 and "loom agent stop x" in running.err
    loom("agent", "stop", "x")
    loom("send", "x", "wait for me")
    assert loom("agent", "rm", "x").status == 75
    assert loom("agent", "rm", "x", "--force").status == 0
    assert not (loom.home / "agents/x").exists()
    assert loom("agent", "rm", "x").status == 66
    assert loom("agent", "rm", "router").status in (2, 66)


def test_rm_force_stops_it_first(loom: Loom) -> None:
    start(loom)
    ask(loom, "hi")
    assert loom("agent", "rm", "x", "--force").status == 0
    assert loom("agent", "show", "x").status == 66
    assert not list((loom.home / "agents/.tmp").iterdir())


def test_a_home_that_cannot_be_written_can_be_looked_at(loom: Loom) -> None:
    agent = make_stopped(loom)
    loom("agent", "start", "x", "--prompt", "hello")  # for the log
    (loom.home / "run" / "boot_id").write_text("another boot\n")
    (loom.home / "start.lock").unlink()
    directories = [loom.home, *(path for path in loom.home.rglob("*") if path.is_dir())]
    for path in directories:
        path.chmod(0o500)
    try:
        assert "x" in as_written(loom, "agent", "ps", "-a").out
        for words in ("agent show x", "agent logs x", "goal ps -a", "supervisor status", "config"):
            said = as_written(loom, *words.split())
            assert said.status == 0 and said.out, said
        said = as_written(loom, "fsck")
        assert said.status == 1 and f"{loom.home / 'run'}: is missing or of another boot" in said.out
        assert as_written(loom, "send", "x", "hello").status == 74
    finally:
        for path in directories:
            path.chmod(0o700)
    assert not (loom.home / "start.lock").exists() and agent.exists()


def as_written(loom: Loom, *words: str) -> Said:
    """The command by somebody for whom modes hold, root included."""
    child = loom.start(*words, preexec_fn=_obey_modes)
    out, err = child.communicate(timeout=DEADLINE_S)
    return Said(child.returncode, out.decode(), err.decode())


def _obey_modes() -> None:
    prctl = ctypes.CDLL(None).prctl
    for capability in (1, 2):  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH; refused to those who have none
        prctl(24, capability, 0, 0, 0)  # PR_CAPBSET_DROP


def test_an_agent_that_may_go_to_zero_is_dormant_and_answers(loom: Loom) -> None:
    start(loom, "--scale", "to-zero")
    said = loom("agent", "ps")
    assert re.search(r"^x +dormant +- +builtin/echo", said.out, re.MULTILINE), said
    assert ask(loom, "hello") == "hello\n"
    refused = loom("agent", "start", "x", "--detach", "--scale", "one")
    assert refused.status == 2 and "scale 'to-zero', not ''" in refused.err
    assert loom("agent", "start", "y", "--model", "builtin/echo", "--scale", "to-zero", "--prompt", "a").status == 2


def test_a_program_of_ones_own_serves_an_agent(loom: Loom) -> None:
    shipped = loom("agent", "start", "shell", "--runner", "sh-agent", "--detach")
    assert (shipped.status, shipped.out) == (0, "shell\n"), shipped
    own = loom.place / "own-runner"
    own.write_text(f'#!/bin/sh\nexec {ROOT}/runners/sh-agent "$@"\n')
    own.chmod(0o755)
    assert loom("agent", "start", "mine", "--runner", str(own), "--detach").status == 0
    assert show(loom, "mine")["model"] == "own-runner"
    assert ask(loom, "hello", name="mine") == ask(loom, "hello", name="shell")
    assert "exists with these settings" in loom("agent", "start", "mine", "--runner", str(own), "--detach").err
    said = loom("agent", "start", "mine", "--prompt", "hello")
    assert said.status == 2 and f"mine is served by {own}; send to it with: loom send mine TEXT --wait" in said.err


def test_a_runner_that_is_not_there_or_cannot_run_is_refused(loom: Loom) -> None:
    said = loom("agent", "start", "x", "--runner", "own-runner", "--detach")
    assert said.status == 66 and "give the path, e.g. ./own-runner" in said.err
    (loom.place / "plain").write_text("#!/bin/sh\n")
    assert "chmod +x ./plain" in loom("agent", "start", "x", "--runner", "./plain", "--detach").err
    assert loom("agent", "start", "x", "--runner", "sh-agent", "--prompt", "hi").status == 2
    assert not (loom.home / "agents" / "x").exists()


def test_limits_are_set_changed_and_taken_away(loom: Loom) -> None:
    start(loom, "--limit", "memory=256MiB", "--limit", "cpu_s=60")
    agent = open_home(loom.home).agent("x")
    assert agents.read_spec(agent).limits == AgentLimits(memory=256 << 20, cpu_s=60)
    start(loom, "--replace", "--limit", "cpu_s=", "--limit", "files=64")
    assert agents.read_spec(agent).limits == AgentLimits(memory=256 << 20, files=64)
    for wrong, words in (
        ("memory", "NAME=VALUE"),
        ("memory=lots", "not a size"),
        ("colour=1", "no limit 'colour'"),
        ("mem=100MiB", "no limit 'mem', only memory"),
        ("cpu_s=60s", "cpu_s is a number of seconds, for example 60"),
        ("files=many", "files is a number"),
        ("files=64.5", "limit files is 64.5"),
    ):
        said = loom("agent", "start", "y", "--model", "builtin/echo", "--detach", "--limit", wrong)
        assert said.status == 2 and words in said.err


def test_settings_that_cannot_be_read_are_named_by_restart_and_replaced_by_replace(loom: Loom) -> None:
    start = ("agent", "start", "sink", "--detach")
    assert loom(*start, "--model", "builtin/echo").status == 0
    settings = loom.home / "agents" / "sink" / "agent.json"
    settings.write_bytes(settings.read_bytes()[:40])
    said = loom("agent", "restart", "sink")
    assert said.status == 78 and f"{settings} cannot be read" in said.err and "started" not in said.err
    assert "loom agent start sink --detach --replace" in said.err
    assert loom(*start, "--model", "builtin/echo").status == 78
    said = loom(*start, "--replace", "--model", "builtin/echo", "--json")
    assert said.status == 0 and said.objects[0]["how"] == "changed", said
    assert loom("send", "sink", "hello", "--wait").out == "hello\n"
