"""The machine room: config, secret, doctor, and homes that cannot be worked in."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest
from cli_user import ROOT, Loom
from support import in_namespace

from loom.cli.config import page
from loom.spool import agents, crashes, heartbeat, locks, mailbox
from loom.spool.home import open_home
from loom.spool.layout import AgentDir
from loom.wire import ids, message
from loom.wire.agent import AgentSpec, Want
from loom.wire.settings import TABLE

ECHO = ("agent", "start", "x", "--model", "builtin/echo", "--prompt", "hi")


# -- config ----------------------------------------------------------------------------------------------------


def test_the_settings_page_is_the_one_the_program_prints(loom: Loom) -> None:
    text = (ROOT / "docs" / "settings.md").read_text()
    assert text == page() == loom("config", "--docs").out
    for setting in TABLE:
        assert f"`{setting.key}`" in text and setting.what in text


def test_config_shows_where_each_value_comes_from(loom: Loom) -> None:
    loom.home.mkdir()
    (loom.home / "config.yml").write_text("pools:\n  executor: 7\nproviders:\n  lab:\n    base_url: http://lab/v1\n")
    rows = {r["key"]: r for r in loom("config", "--json", LOOM_MODEL="builtin").objects[0]["settings"]}
    assert (rows["pools.executor"]["value"], rows["pools.executor"]["origin"]) == (7, f"{loom.home}/config.yml:2")
    assert rows["model"] == {"key": "model", "value": "builtin", "origin": "LOOM_MODEL"}
    assert rows["gates"]["origin"] == "default"
    assert rows["providers.lab.base_url"]["value"] == "http://lab/v1"
    assert "pools.executor" in loom("config").out


@pytest.mark.parametrize(
    "text, hint",
    [
        ("modle: x\n", "config.yml:1: there is no setting 'modle'; did you mean 'model'?"),
        ("model: [a]\n", "config.yml:1: model is ['a'], expected a str"),
        ("a: b: c\n", "not valid YAML"),
        ("gates: ask\n", "this version knows: free"),
    ],
)
def test_a_wrong_config_is_78_with_its_line(loom: Loom, text: str, hint: str) -> None:
    loom.home.mkdir()
    (loom.home / "config.yml").write_text(text)
    for words in (("config",), ECHO):
        said = loom(*words)
        assert said.status == 78 and hint in said.err


# -- secret ----------------------------------------------------------------------------------------------------


def test_a_secret_is_stored_listed_removed_and_never_printed(loom: Loom) -> None:
    stored = loom("secret", "set", "openai", stdin="sk-very-secret\n")
    assert (stored.status, stored.out) == (0, "") and "sk-very" not in stored.err
    path = loom.home / "secrets" / "openai"
    assert path.read_text() == "sk-very-secret\n" and path.stat().st_mode & 0o777 == 0o600
    assert loom("secret", "ls").out == "openai\n"
    assert loom("secret", "ls", "--json").objects[0]["secrets"] == ["openai"]
    assert loom("secret", "rm", "openai").status == 0
    assert loom("secret", "rm", "openai").status == 66


def test_a_secret_is_not_taken_from_an_argument_and_not_repeated(loom: Loom) -> None:
    said = loom("secret", "set", "openai", "sk-very-secret")
    assert said.status == 2 and "sk-very" not in said.err


@pytest.mark.parametrize("value", [b"", b"\n", b"two\nlines", b"\xff\xfe"])
def test_a_secret_is_one_line_of_text(loom: Loom, value: bytes) -> None:
    assert loom("secret", "set", "k", stdin=value).status == 65
    assert loom("secret", "ls").out == ""


def test_a_secret_s_name_is_checked(loom: Loom) -> None:
    assert loom("secret", "set", "../x", stdin="v").status == 2


# -- doctor ----------------------------------------------------------------------------------------------------


def test_doctor_finds_this_machine_fit_and_shows_no_key(loom: Loom) -> None:
    said = loom("doctor", OPENAI_API_KEY="sk-very-secret")
    assert said.status == 0 and "problem" not in said.out
    assert "sk-very" not in said.out + said.err
    report = loom("doctor", "--json", OPENAI_API_KEY="sk-very-secret").objects[0]
    checks = {check["what"]: check for check in report["checks"]}
    assert report["ok"] is True
    assert checks["openai"]["status"] == "ok"
    assert checks["openrouter"]["status"] == "note" and "loom secret set openrouter" in checks["openrouter"]["hint"]
    assert checks["self-test"]["status"] == "ok"
    assert "not part of this version" in checks["sandbox"]["found"]


def test_doctor_names_each_problem_and_ends_with_1(loom: Loom) -> None:
    loom.home.mkdir()
    (loom.home / "config.yml").write_text("modle: x\n")
    said = loom("doctor")
    assert said.status == 1
    (line,) = (line for line in said.out.splitlines() if line.startswith("problem"))
    assert "config.yml:1" in line


def problems(loom: Loom) -> dict[str, str]:
    """What is a problem, and what was found there."""
    report = loom("doctor", "--json").objects[0]
    return {check["what"]: check["found"] for check in report["checks"] if check["status"] == "problem"}


def test_doctor_sees_keys_that_others_may_read(loom: Loom) -> None:
    loom("secret", "set", "openai", stdin="sk-very-secret")
    assert problems(loom) == {}
    (loom.home / "secrets" / "openai").chmod(0o644)
    assert problems(loom) == {"permissions": f"{loom.home}/secrets/openai has mode 0644"}
    (loom.home / "secrets" / "openai").chmod(0o600)
    loom.place.chmod(0o777)
    assert problems(loom) == {"permissions": f"others may replace what is in {loom.place}"}


def test_doctor_sees_a_clock_that_stands_before_its_own_files(loom: Loom) -> None:
    loom.make_home()
    ahead = time.time() + 86_400
    os.utime(loom.home / "version", (ahead, ahead))
    assert "but the home was changed at" in problems(loom)["clock"]


def test_doctor_sees_jobs_that_cannot_be_served(loom: Loom) -> None:
    loom.make_home()
    (loom.home / "schedules").mkdir()
    (loom.home / "schedules" / "j.yml").write_text("every: 1h\nto: w\n")
    assert "either `body` or `driver`" in problems(loom)["schedule"]
    (loom.home / "schedules" / "j.yml").write_text("every: 1h\nto: w\nbody: x\n")
    assert problems(loom) == {}
    assert "1 job, and no supervisor runs" in loom("doctor").out


def test_doctor_sees_routes_that_lead_nowhere(loom: Loom) -> None:
    for name in ("a", "b"):
        agent(loom, name)
    lines = [{"from": "a", "to": "b"}]
    (loom.home / "routes.json").write_text(json.dumps({"v": 1, "routes": lines}))
    assert problems(loom) == {}
    lines.append({"from": "a", "to": "gone"})
    (loom.home / "routes.json").write_text(json.dumps({"v": 1, "routes": lines}))
    assert problems(loom) == {"routes": "gone is to hear a, and there is no agent 'gone'"}
    assert "loom unroute a --to gone" in loom("doctor").out
    assert [r["trouble"] for r in loom("routes", "--json").objects[0]["routes"]] == [
        "b is not wanted up: its mail waits",
        "there is no agent 'gone'",
    ]
    (loom.home / "routes.json").write_text("{")
    assert "cannot be read" in problems(loom)["routes"]


def agent(loom: Loom, name: str, want: Want = "down", mail: int = 0) -> AgentDir:
    """An agent without a process, with so many messages that wait."""
    made = agents.create(open_home(loom.home), AgentSpec(name, "builtin/echo"), "", want)
    for number in range(mail):
        stem = ids.message_stem(1_790_000_000_000 + number, b"0123456789")
        mailbox.deliver(made, stem, message.encode(message.Message(ids.ulid_of(stem), "user", 1, "x")))
    return made


def told_of_agents(loom: Loom) -> dict[str, str]:
    """What doctor says of agents: found to status."""
    return {c["found"]: c["status"] for c in loom("doctor", "--json").objects[0]["checks"] if c["what"] == "agents"}


def test_doctor_says_which_agents_are_dead_fail_or_have_mail_that_nobody_serves(loom: Loom) -> None:
    assert told_of_agents(loom) == {}
    agent(loom, "well", "up")
    assert told_of_agents(loom) == {"1; none hangs or is dead, and no mail failed or is not served": "ok"}
    assert "does not run, and 1 agent is wanted up" in loom("doctor").out
    agent(loom, "stopped", "down", mail=2)
    assert told_of_agents(loom) == {"stopped is stopped, and 2 messages wait": "note"}
    assert loom("doctor").status == 0
    agent(loom, "wanted", "up", mail=1)
    crashes.write(agent(loom, "gone", "dead"), 1_790_000_000_000, {"last_error": "boom"})
    agent(loom, "odd", "down").spec.write_text("{")
    told = told_of_agents(loom)
    assert told.pop(next(found for found in told if found.startswith("odd fails: "))) == "problem"
    assert told == {
        "gone is dead: boom": "problem",
        "wanted: no supervisor runs, and 1 message waits": "problem",
        "stopped is stopped, and 2 messages wait": "note",
    }
    assert list(told)[-1].startswith("stopped") and loom("doctor").status == 1


def test_doctor_says_who_is_wanted_up_and_is_not_started(loom: Loom) -> None:
    made = agent(loom, "late", "up")
    lock = locks.acquire(open_home(loom.home).supervisor_lock)  # by one that does nothing
    assert lock is not None
    places = (made.want, made.status, lock.path)
    with lock:
        lock.sign(locks.own_incarnation())
        well = {"1; none hangs or is dead, and no mail failed or is not served": "ok"}
        for young in (*places, None):  # asked for, shown as pending, or the supervisor started only now
            for place in places:
                age_s = 80 if place == young else 100
                os.utime(place, (time.time() - age_s,) * 2)
            late = {"late is wanted up, and nothing has started it for 90 s": "problem"}
            assert told_of_agents(loom) == (well if young else late)
        agents.write_want(made, "down")
        os.utime(made.want, (time.time() - 100,) * 2)
        assert told_of_agents(loom) == well


def test_failed_mail_is_named_with_why_and_how_to_try_again(loom: Loom) -> None:
    stem = "1700000000000-01HF7YAT000000000000000000"
    sad = agent(loom, "sad", "down")
    mailbox.deliver(sad, stem, message.encode(message.Message(stem.partition("-")[2], "me", 1, "x")))
    inbox = mailbox.Inbox(sad)
    assert inbox.claim() is not None
    mailbox.fail(sad, stem, 0, error_type="work_failed", last_error="it rained", hint="", ts="")
    assert told_of_agents(loom) == {"1 message of sad failed: it rained": "note"}
    said = loom("agent", "show", "sad").out
    assert f"{stem}: it rained" in said and "to try again: loom agent retry sad" in said


def test_an_agent_that_cannot_be_looked_at_hides_no_other(loom: Loom) -> None:
    agent(loom, "well", "down")
    odd = agent(loom, "odd", "down")
    odd.lock.unlink(missing_ok=True)
    odd.lock.symlink_to("lock")
    said = loom("agent", "ps", "-a")
    assert said.status == 0 and "well" in said.out and "odd cannot be looked at" in said.out
    assert any(found.startswith("odd fails: ") for found in told_of_agents(loom))
    assert loom("supervisor", "status").status == 0


@pytest.mark.parametrize("reason, status", [
    ("stopped: stopped by a signal for 60 s with work to do; told to go on", "note"),
    ("thread_held: the thread is held", "problem"),
])  # fmt: skip
def test_doctor_says_which_agents_hang(loom: Loom, reason: str, status: str) -> None:
    hung = agent(loom, "slow", "up", mail=1)
    heartbeat.say(hung, reason)
    lock = locks.acquire(hung.lock)
    assert lock is not None
    with lock:
        lock.sign(locks.own_incarnation())
        assert told_of_agents(loom) == {f"slow hangs: {reason}": status}


def test_doctor_says_ten_lines_of_agents_and_how_many_more(loom: Loom) -> None:
    for number in range(12):
        agent(loom, f"a-{number}", "dead" if number == 11 else "down", mail=1)
    told = told_of_agents(loom)
    assert len(told) == 11 and next(iter(told)) == "a-11 is dead, and 1 message waits"
    assert list(told.items())[-1] == ("2 more with which something is wrong", "note")


def test_doctor_looks_on_when_the_home_is_bad(loom: Loom) -> None:
    loom.home.write_text("no directory")
    said = loom("doctor")
    assert said.status == 1 and "problem  home" in said.out and "tools" in said.out


# -- homes that cannot be worked in ------------------------------------------------------------------------------


def test_a_home_that_is_a_file_is_74(loom: Loom) -> None:
    loom.home.write_text("no directory")
    said = loom(*ECHO)
    assert (said.status, said.out) == (74, "") and str(loom.home) in said.err and said.err.count("\n") == 1


def test_a_newer_home_is_refused_untouched(loom: Loom) -> None:
    loom.home.mkdir()
    (loom.home / "version").write_text("2\n")
    said = loom(*ECHO)
    assert said.status == 78 and "upgrade loom" in said.err
    assert os.listdir(loom.home) == ["version"]


MAIN = "import sys; from loom.cli.main import main; status = main(sys.argv[2:])\n"


def test_a_read_only_home_is_74(loom: Loom) -> None:
    loom(*ECHO)
    in_namespace(
        MAIN + "assert status == 74, status",
        str(loom.home),
        *("--home", str(loom.home), *ECHO),
        mounts=f"mount --bind {loom.home} {loom.home} && mount -o remount,ro,bind {loom.home}",
    )


def test_a_full_home_is_74_and_keeps_nothing_half_made(loom: Loom) -> None:
    loom.home.mkdir()
    in_namespace(
        """
import os, sys
from pathlib import Path
from loom.cli.main import main
home = sys.argv[2]
assert main(["--home", home, "agent", "start", "x", "--model", "builtin/echo", "--prompt", "hi"]) == 0
try:
    with open(home + "/ballast", "wb", 0) as ballast:
        while True:
            ballast.write(b"x" * 4096)
except OSError:
    pass
words = ["--home", home, "agent", "start", "x", "--model", "builtin/echo", "--prompt", "much " * 100000]
assert main(words) == 74
os.unlink(home + "/ballast")
assert main(words) == 0
""",
        "-",
        str(loom.home),
        mounts=f"mount -t tmpfs -o size=2m tmpfs {loom.home}",
    )


def test_an_inbox_on_another_device_is_78(loom: Loom) -> None:
    inbox = loom.home / "agents" / "x" / "inbox"
    loom("agent", "start", "x", "--model", "builtin/echo", "--detach")
    loom("agent", "stop", "x")
    words = ("agent", "start", "x", "--detach", "--restart", "never", "--replace")
    in_namespace(
        MAIN + "assert status == 78, status",
        "-",
        *("--home", str(loom.home), *words),
        mounts=f"mount -t tmpfs tmpfs {inbox}",
    )


def test_files_and_directories_are_the_user_s_alone(loom: Loom) -> None:
    loom(*ECHO)
    for path in [loom.home, *loom.home.rglob("*")]:
        assert path.stat().st_mode & 0o077 == 0, path


def test_a_message_of_a_newer_version_is_set_aside_with_the_reason(loom: Loom) -> None:
    loom("agent", "start", "x", "--model", "builtin/echo", "--detach")
    inbox = loom.home / "agents" / "x" / "inbox"
    stem = "1700000000000-01HF7YAT000000000000000000"
    staged = Path(loom.place, "staged")
    staged.write_text(f'{{"v":2,"id":"{stem[14:]}","from":"user","ts":1,"body":"hi"}}\n')
    staged.rename(inbox / f"{stem}.msg")
    assert loom("send", "x", "after it", "--wait").out == "after it\n"
    assert "upgrade loom" in (inbox / ".unreadable" / f"{stem}.msg.error.json").read_text()
