"""Weaves from the command line: up, down, routes and pipes, with real agents behind them."""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cli_user import ROOT, Loom, Said
from support import wait_until

from loom.spool import agents, locks
from loom.spool.home import open_home
from loom.spool.layout import AgentDir
from loom.wire.message import decode

WEAVE = """\
version: 1
name: try
agents:
  - {name: a, model: builtin/echo}
  - {name: b, model: builtin/echo, from: [{agent: a}]}
"""


def write(loom: Loom, text: str = WEAVE, name: str = "loom.yml") -> Path:
    path = loom.place / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    return path


def up(loom: Loom, *more: str) -> dict[str, str]:
    said = loom("up", "-d", "--json", *more)
    assert said.status == 0, said
    return {one["name"]: one["how"] for one in said.objects[0]["agents"]}


def agent(loom: Loom, name: str) -> AgentDir:
    return open_home(loom.home, {"LOOM_ALLOW_FILESYSTEM": "1"}).agent(name)


def answers(loom: Loom, name: str) -> list[str]:
    """The bodies that an agent has answered with and the router has dealt with."""
    return [decode(path.read_bytes(), path.stem).body for path in sorted(agent(loom, name).sent_days.glob("*/*.msg"))]


def pid(loom: Loom, name: str) -> int:
    who = wait_until(lambda: locks.holder(agent(loom, name).lock))
    return int(who.pid)


def routes(loom: Loom) -> list[dict[str, Any]]:
    found = loom("routes", "--json").objects[0]["routes"]
    assert isinstance(found, list)
    return found


# -- up and down ---------------------------------------------------------------------------------------------------


def test_up_again_changes_only_what_the_file_has_changed(loom: Loom) -> None:
    write(loom)
    assert up(loom) == {"a": "created", "b": "created"}
    before = pid(loom, "a")
    assert up(loom) == {"a": "unchanged", "b": "unchanged"}
    write(loom, WEAVE.replace("name: b,", "name: b, system: Be short.,") + "  - {name: c, model: builtin/echo}\n")
    assert up(loom) == {"a": "unchanged", "b": "changed", "c": "created"}
    assert (agent(loom, "b").prompt.read_text(), pid(loom, "a")) == ("Be short.", before)


def test_what_is_answered_goes_where_the_file_says_and_is_counted(loom: Loom) -> None:
    write(loom)
    up(loom)
    assert loom("send", "a", "hello", "--wait", "--timeout", "30").out == "hello\n"
    wait_until(lambda: answers(loom, "b") == ["hello"])
    wait_until(lambda: [r["messages"] for r in routes(loom)] == [1])
    assert routes(loom)[0] | {"last": ""} == {
        "from": "a", "pipe": "", "to": "b", "weave": "try", "messages": 1, "last": "", "trouble": ""
    }  # fmt: skip


def test_a_failure_goes_downstream_too(loom: Loom) -> None:
    broken = loom.program("broken.py", "import sys; sys.exit(65)")
    write(loom, WEAVE.replace("{name: a, model: builtin/echo}", f"{{name: a, model: exec/{broken}}}"))
    up(loom)
    loom("send", "a", "hello")
    wait_until(lambda: len(answers(loom, "b")) == 1)
    (claimed,) = wait_until(lambda: list(agent(loom, "b").processed_days.glob("*/*.msg")))
    assert decode(claimed.read_bytes(), claimed.stem).error


def test_down_with_messages_in_flight_keeps_them_and_up_goes_on(loom: Loom) -> None:
    slow = loom.program("slow.py", "import pathlib, time\nwhile not pathlib.Path('go').exists(): time.sleep(0.01)\n"
                        "print('done', end='')")  # fmt: skip
    text = WEAVE.replace("{name: a, model: builtin/echo}", f"{{name: a, model: exec/{slow}}}")
    write(loom, text)
    up(loom)
    for body in ("one", "two"):
        loom("send", "a", body)
    wait_until(lambda: list(agent(loom, "a").in_progress.glob("*.msg")))
    said = loom("down")
    assert (said.status, sorted(said.out.split())) == (0, ["a", "b"]), said
    assert "2 messages wait" in said.err
    assert not locks.is_held(agent(loom, "a").lock)
    (agent(loom, "a").path / "go").touch()
    assert up(loom) == {"a": "started", "b": "started"}
    wait_until(lambda: answers(loom, "b") == ["done", "done"])


def test_an_agent_that_is_in_the_file_no_more_is_stopped_and_keeps_its_mail(loom: Loom) -> None:
    write(loom)
    up(loom)
    loom("agent", "stop", "b")
    loom("send", "b", "wait for me")
    loom("agent", "start", "b", "--detach")
    wait_until(lambda: answers(loom, "b") == ["wait for me"])
    loom("agent", "stop", "b")
    loom("send", "b", "and me")
    write(loom, "version: 1\nname: try\nagents: [{name: a, model: builtin/echo}]\n")
    assert up(loom) == {"a": "unchanged"}
    write(loom)
    assert up(loom)["b"] == "started"
    wait_until(lambda: answers(loom, "b")[-1:] == ["and me"])
    sleepy = loom.program("sleepy.py", "import time; time.sleep(1000)")
    write(loom, WEAVE.replace("{name: b, model: builtin/echo", f"{{name: b, model: exec/{sleepy}"))
    before = pid(loom, "b")
    assert up(loom)["b"] == "changed"
    wait_until(lambda: pid(loom, "b") != before)  # or the one from before would answer
    loom("send", "b", "left behind")
    wait_until(lambda: list(agent(loom, "b").in_progress.glob("*.msg")))
    write(loom, "version: 1\nname: try\nagents: [{name: a, model: builtin/echo}]\n")
    said = loom("up", "-d")
    assert "b is in the file no more: it is stopped, and 1 of its messages wait" in said.err
    assert routes(loom) == []


def test_without_d_it_stays_and_takes_everything_down_with_it(loom: Loom) -> None:
    write(loom)
    child = loom.start("up")
    try:
        pid(loom, "b")
        loom("send", "a", "hello", "--wait", "--timeout", "30")
        assert child.stdout is not None
        line = next(line for line in child.stdout if b"answered" in line)
        assert line.startswith(b"a  ")
        child.send_signal(signal.SIGINT)
        child.communicate(timeout=60)
    finally:
        child.kill()
        child.wait()
    assert child.returncode == 130
    assert not locks.is_held(agent(loom, "a").lock)
    assert not locks.is_held(agent(loom, "b").lock)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGHUP, 143)])
def test_ended_while_it_brings_up_it_takes_down_what_is_up(loom: Loom, number: signal.Signals, status: int) -> None:
    """What it waits for before anything of the weave runs is the start of a supervisor, which is held up here."""
    write(loom)
    loom.make_home()
    with held_up(loom):
        child = loom.start("up")
        try:
            wait_until(lambda: [agents.read_want(agent(loom, name)) for name in "ab"] == ["up", "up"])
            child.send_signal(number)
            child.communicate(timeout=60)
        finally:
            child.kill()
            child.wait()
    assert child.returncode == status
    assert [agents.read_want(agent(loom, name)) for name in "ab"] == ["down", "down"]


@contextlib.contextmanager
def held_up(loom: Loom) -> Iterator[None]:
    """No supervisor is started meanwhile: whoever would start one waits for start.lock."""
    lock = locks.acquire(open_home(loom.home, {"LOOM_ALLOW_FILESYSTEM": "1"}).start_lock)
    assert lock is not None
    with lock:
        yield


def test_what_becomes_of_one_agents_logs_does_not_take_the_weave_down(loom: Loom) -> None:
    """One is removed, of another a packed log is damaged: what the third and that other log is printed on."""
    write(loom, WEAVE + "  - {name: c, model: builtin/echo}\n")
    up(loom)
    packed = agent(loom, "a").logs / "2020-01-01.ndjson.gz"
    packed.write_bytes(b"\x1f\x8bjunk")
    (agent(loom, "a").logs / "2020-01-02.ndjson.gz").write_bytes(gzip.compress(b"{}\n")[:-9])
    child = loom.start("up")
    assert child.stdout is not None and child.stderr is not None
    try:
        assert b"2020-01-01.ndjson.gz cannot be read" in child.stderr.readline()
        assert b"2020-01-02.ndjson.gz cannot be read" in child.stderr.readline()
        assert loom("agent", "rm", "c", "--force").status == 0
        assert b"the logs of c cannot be read" in child.stderr.readline()
        loom("send", "a", "hello", "--wait", "--timeout", "30")
        assert any(line.startswith(b"b  ") and b"answered" in line for line in child.stdout)
        assert locks.is_held(agent(loom, "a").lock)
        child.send_signal(signal.SIGINT)
        _, said = child.communicate(timeout=60)
    finally:
        child.kill()
        child.wait()
    assert (child.returncode, said) == (130, b""), "each is said once"
    assert not locks.is_held(agent(loom, "a").lock)


def test_replicas_share_the_work_and_dormant_agents_wake(loom: Loom) -> None:
    write(loom, "version: 1\nname: try\nagents:\n  - {name: a, model: builtin/echo}\n"
                "  - {name: w, model: builtin/echo, replicas: 3, scale: to-zero, from: [{agent: a}]}\n")  # fmt: skip
    up(loom)
    names = ("w-1", "w-2", "w-3")
    assert [agents.read_spec(agent(loom, name)).scale for name in names] == ["to-zero"] * 3
    for number in range(8):
        loom("send", "a", f"body {number}")
    done = wait_until(lambda: len(found := [b for n in names for b in answers(loom, n)]) == 8 and found)
    assert sorted(done) == [f"body {number}" for number in range(8)]


# -- refusals ------------------------------------------------------------------------------------------------------


def refused(loom: Loom, *args: str, status: int = 78) -> str:
    said = loom(*args)
    assert said.status == status, said
    assert said.err.count("\n") == 1, said.err
    return said.err


def test_a_wrong_file_is_refused_with_its_line_and_nothing_is_changed(loom: Loom) -> None:
    write(loom, WEAVE.replace("model: builtin/echo, from", "modle: builtin/echo, from"))
    assert "loom.yml:5: agent 'b' has no 'model'" in refused(loom, "up", "-d") or "did you mean 'model'?" in refused(
        loom, "up", "-d"
    )
    assert not (loom.home / "agents" / "a").exists()


@pytest.mark.parametrize("wrong", ["system: !!timestamp x", 'system: "half \\ud800"'])
def test_a_value_that_nothing_could_keep_is_refused_with_its_line(loom: Loom, wrong: str) -> None:
    write(loom, f"version: 1\nagents:\n  - name: a\n    model: builtin/echo\n    {wrong}\n")
    assert refused(loom, "up", "-d").startswith("loom: loom.yml:5: ")
    assert not loom.home.exists()


@pytest.mark.parametrize("change, words", [
    (("model: builtin/echo, from", "model: nowhere/x, from"), "loom.yml:5: agent 'b'"),
    (("name: a,", "name: a, tools: [read-flie],"), "loom.yml:4: agent 'a'"),
    (("name: a,", "name: a, workspace: ./nowhere,"), "loom.yml:4: agent 'a': the workspace './nowhere'"),
])  # fmt: skip
def test_an_agent_that_could_not_work_is_named_before_anything_is_changed(
    loom: Loom, change: tuple[str, str], words: str
) -> None:
    write(loom, WEAVE.replace(*change))
    said = loom("up", "-d")
    assert (said.status, said.err.count("\n")) == (78, 1), said
    assert words in said.err
    assert not (loom.home / "agents" / "a" / "agent.json").exists()


def test_two_weaves_of_one_name_and_agents_of_others_are_kept_apart(loom: Loom) -> None:
    write(loom)
    up(loom)
    other = write(loom, WEAVE, "other/loom.yml")
    assert f"loom.yml:2: try cannot be brought up: another weave 'try' is up, from {loom.place}/loom.yml; " in refused(
        loom, "up", "-d", "-f", str(other)
    )
    write(loom, WEAVE.replace("name: try", "name: third"), "other/loom.yml")
    theirs = refused(loom, "up", "-d", "-f", str(other))
    assert "other/loom.yml:4: third cannot be brought up: agent 'a' exists and belongs to the weave 'try'" in theirs
    assert theirs.endswith("; rename it here, or remove it: loom agent rm a\n")
    assert loom("down").status == 0
    write(loom, WEAVE, "other/loom.yml")
    assert up(loom, "-f", str(other)) == {"a": "started", "b": "started"}


def test_without_a_file_it_says_where_it_looked(loom: Loom) -> None:
    assert "there is no loom.yml here; give one with -f FILE" in refused(loom, "up", "-d", status=66)
    assert "there is no file 'x.yml'" in refused(loom, "up", "-d", "-f", "x.yml", status=66)
    loom.make_home()
    assert "no agent of the weave 'gone'" in refused(loom, "down", "--name", "gone", status=66)


def test_a_pipe_whose_program_is_missing_is_refused(loom: Loom) -> None:
    write(loom, WEAVE + "pipes: {p: [{operator: command, cmd: no-such-program -x}]}\n")
    assert "loom.yml:6: pipe 'p': there is no program 'no-such-program'" in refused(loom, "up", "-d")
    write(loom, WEAVE + "pipes: {p: [{operator: dedupe, key: .body}]}\n")
    empty = loom.place / "empty"
    empty.mkdir()
    said = loom("up", "-d", PATH=str(empty))
    assert said.status == 78
    assert "dedupe.key needs jq, which is not installed" in said.err


@pytest.mark.skipif(shutil.which("jq") is None, reason="needs jq")
@pytest.mark.parametrize("operator, words", [
    ("{operator: dedupe, key: .body |}", "dedupe.key is no jq expression: syntax error"),
    ("{operator: buffer, until: 'lenght > 2'}", "buffer.until is no jq expression: lenght/0 is not defined"),
    ("{operator: accumulate, expr: '.[0'}", "accumulate.expr is no jq expression: syntax error"),
])  # fmt: skip
def test_an_expression_that_jq_cannot_compile_is_refused_with_its_line(loom: Loom, operator: str, words: str) -> None:
    write(loom, WEAVE + "pipes:\n  p:\n    - {operator: tap, label: x}\n    - " + operator + "\n")
    assert f"loom.yml:9: pipe 'p': {words}" in refused(loom, "up", "-d")
    assert not (loom.home / "agents" / "a").exists()
    (loom.place / "p.yml").write_text("- {operator: tap, label: x}\n- " + operator + "\n")
    assert f"p.yml:2: pipe 'p': {words}" in refused(loom, "pipe", "create", "p", "--file", "p.yml")
    assert f"operators:1: pipe 'p': {words}" in refused(loom, "pipe", "create", "p", f"[{operator}]")


@pytest.mark.skipif(shutil.which("jq") is None, reason="needs jq")
def test_an_expression_is_compiled_and_not_run(loom: Loom) -> None:
    endless = "def f: 1; [limit(10; f)] | until(false; .) # for ever"
    write(loom, WEAVE + f"pipes: {{p: [{{operator: dedupe, key: '{endless}'}}]}}\n")
    assert up(loom) == {"a": "created", "b": "created"}


# -- settings ------------------------------------------------------------------------------------------------------

SAID = WEAVE + "settings:\n  liveness: {tool: 5}\ngc: {retention: {logs: 90d}}\n"


def settings(loom: Loom) -> dict[str, tuple[Any, str]]:
    """Those that are no default: value and origin."""
    rows = loom("config", "--json").objects[0]["settings"]
    return {row["key"]: (row["value"], row["origin"]) for row in rows if row["origin"] != "default"}


def test_settings_of_a_weave_hold_while_it_is_up_and_go_before_config_yml(loom: Loom) -> None:
    loom.make_home()
    config = loom.home / "config.yml"
    config.write_text("retention: {logs: 7, messages: 9}\n")
    file = write(loom, SAID)
    up(loom)
    assert settings(loom) == {
        "liveness.tool": (5, f"{file}:7"),
        "retention.logs": (90.0, f"{file}:8"),
        "retention.messages": (9, f"{config}:1"),
    }
    write(loom, WEAVE + "gc: {retention: {logs: 80d}}\n")
    assert up(loom) == {"a": "changed", "b": "changed"}  # they had read another liveness.tool
    assert settings(loom)["retention.logs"] == (80.0, f"{file}:6")
    write(loom, WEAVE + "\ngc: {retention: {logs: 70d}}\n")
    assert up(loom) == {"a": "unchanged", "b": "unchanged"}
    assert settings(loom)["retention.logs"] == (70.0, f"{file}:7")
    said = loom("down")
    assert "its settings hold no more: retention.logs; " in said.err
    assert settings(loom)["retention.logs"] == (7, f"{config}:1")
    assert refused(loom, "down", "--name", "gone", status=66)


def test_gc_keeps_as_long_as_the_weave_says(loom: Loom) -> None:
    write(loom, WEAVE + "gc: {retention: {messages: 0s}}\n")
    up(loom)
    loom("send", "a", "hello", "--wait", "--timeout", "30")
    wait_until(lambda: answers(loom, "b") == ["hello"])
    wait_until(lambda: list(agent(loom, "b").processed_days.glob("*/*.msg")))
    assert "processed" in loom("gc", "--dry-run").out
    loom("down")
    assert "processed" not in loom("gc", "--dry-run").out


def test_settings_that_are_wrong_or_anothers_are_refused_before_anything_is_changed(loom: Loom) -> None:
    write(loom, WEAVE + "settings: {modle: x}\n")
    assert "loom.yml:6: there is no setting 'modle'; did you mean 'model'?" in refused(loom, "up", "-d")
    write(loom, WEAVE + "gc: {retention: {logs: 1h}}\n")
    assert "loom.yml:6: gc.retention.logs is 1h, expected at least 1d" in refused(loom, "up", "-d")
    assert not (loom.home / "agents").exists() or not os.listdir(loom.home / "agents")
    first = write(loom, SAID)
    up(loom)
    other = "version: 1\nname: second\nagents: [{name: c, model: builtin/echo}]\nsettings: {liveness: {tool: 6}}\n"
    write(loom, other, "other/loom.yml")
    told = refused(loom, "up", "-d", "-f", "other/loom.yml")
    assert f"other/loom.yml:4: liveness.tool is 6 here, and the weave 'try' says 5; see {first}:7; " in told
    assert not (loom.home / "agents" / "c").exists()
    assert loom("down").status == 0
    assert up(loom, "-f", "other/loom.yml") == {"c": "created"}
    assert settings(loom)["liveness.tool"][0] == 6


def test_a_server_that_only_the_weave_names_can_be_used_by_its_agents(loom: Loom) -> None:
    agents_of = WEAVE.replace("model: builtin/echo, from", "model: lab/x, from")
    write(loom, agents_of)
    assert "loom.yml:5: agent 'b': " in refused(loom, "up", "-d")
    write(loom, agents_of + "settings: {providers: {lab: {base_url: 'http://127.0.0.1:9/v1'}}}\n")
    assert up(loom) == {"a": "created", "b": "created"}


def test_a_settings_json_that_cannot_be_read_is_told_by_everybody(loom: Loom) -> None:
    loom.make_home()
    (loom.home / "settings.json").write_text('{"v":1,"settings":[{"key":"model"}]}')
    for args in (("up", "-d"), ("config",), ("gc",)):
        write(loom)
        assert "settings.json: {'key': 'model'} is no setting of a weave" in refused(loom, *args)
    told = loom("fsck")
    assert told.status == 1 and "settings.json" in told.out, told


# -- routes and pipes ----------------------------------------------------------------------------------------------


def detached(loom: Loom, *names: str) -> None:
    for name in names:
        said = loom("agent", "start", name, "--model", "builtin/echo", "--detach")
        assert said.status == 0, said


def test_a_route_is_made_used_and_ended(loom: Loom) -> None:
    detached(loom, "a", "b")
    assert loom("route", "a", "--to", "b").status == 0
    assert "b hears a already" in loom("route", "a", "--to", "b").err
    loom("send", "a", "hello")
    wait_until(lambda: answers(loom, "b") == ["hello"])
    assert loom("unroute", "a", "--to", "b").status == 0
    assert routes(loom) == []
    loom("send", "a", "alone", "--wait", "--timeout", "30")
    assert answers(loom, "b") == ["hello"]


def test_routes_to_nowhere_and_in_circles_are_refused(loom: Loom) -> None:
    detached(loom, "a", "bee")
    assert "there is no agent 'be'" in refused(loom, "route", "a", "--to", "be", status=66)
    assert "did you mean 'bee'?" in refused(loom, "route", "a", "--to", "be", status=66)
    assert "there is no pipe 'p'" in refused(loom, "route", "a", "--to", "bee", "--pipe", "p", status=66)
    loom("route", "a", "--to", "bee")
    assert "circular route detected: a → bee → a" in refused(loom, "route", "bee", "--to", "a", status=2)
    assert "no such route from bee to a" in refused(loom, "unroute", "bee", "--to", "a", status=66)


def test_an_agent_that_others_are_routed_to_is_not_removed_by_mistake(loom: Loom) -> None:
    detached(loom, "a", "b")
    loom("route", "a", "--to", "b")
    loom("agent", "stop", "b")
    assert "a route leads to it" in refused(loom, "agent", "rm", "b", status=75)
    assert loom("agent", "rm", "b", "--force").status == 0
    assert routes(loom)[0]["trouble"] == "there is no agent 'b'"
    loom("send", "a", "hello", "--wait", "--timeout", "30")
    (path,) = wait_until(lambda: list(agent(loom, "a").refused.glob("*.error.json")))
    assert json.loads(path.read_text())["reason"] == "no_target"


def test_a_pipe_made_by_hand(loom: Loom) -> None:
    detached(loom, "a", "b")
    chain = "[{operator: command, cmd: 'tr a-z A-Z'}]"
    assert loom("pipe", "create", "p", chain).status == 0
    assert "exists with these operators" in loom("pipe", "create", "p", chain).err
    assert "has other operators; to give it these, add --replace" in refused(
        loom, "pipe", "create", "p", "[{operator: tap, label: x}]", status=2
    )
    assert "operators:1: the chain: there is no operator 'tpa'; did you mean 'tap'?" in refused(
        loom, "pipe", "create", "q", "[{operator: tpa}]"
    )
    assert loom("route", "a", "--to", "b", "--pipe", "p").status == 0
    loom("send", "a", "hello")
    wait_until(lambda: answers(loom, "b") == ["HELLO"])
    wait_until(lambda: '"event":"answered"' in loom("agent", "logs", "p~a→b", "--json").out)  # said after it is done
    assert loom("agent", "show", "p~a→b", "--json").objects[0]["model"] == "pipe"
    (row,) = loom("pipes", "--json").objects[0]["instances"]
    assert (row["pipe"], row["from"], row["to"], row["held"], row["routed"]) == ("p", "a", "b", 0, True)
    assert loom("unroute", "a", "--to", "b", "--pipe", "p").status == 0
    wait_until(lambda: not locks.is_held(agent(loom, "p~a→b").lock))
    assert loom("fsck").out == "" or "is served" in loom("fsck").out


def test_a_pipe_is_removed_with_its_instances_when_no_route_leads_through_it(loom: Loom) -> None:
    detached(loom, "a", "b")
    loom("pipe", "create", "p", "[{operator: window, size: 2, timeout: 1h}]")
    loom("route", "a", "--to", "b", "--pipe", "p")
    loom("send", "a", "hello")
    wait_until(lambda: loom("pipes", "--json").objects[0]["instances"][0]["held"] == 1)
    said = refused(loom, "pipe", "rm", "p", status=75)
    assert "the route a → b leads through p" in said and "loom unroute a --to b --pipe p" in said
    loom("unroute", "a", "--to", "b", "--pipe", "p")
    assert "p~a→b has 1 message, which would be lost" in refused(loom, "pipe", "rm", "p", status=75)
    assert loom("pipe", "rm", "p", "--force").err == "loom: p is removed\n"
    assert loom("pipes", "--json").objects[0] == {"v": 1, "pipes": [], "instances": []}
    assert not agent(loom, "p~a→b").path.exists()
    assert "there is no pipe 'p'" in refused(loom, "pipe", "rm", "p", status=66)
    assert loom("pipe", "create", "p", "[{operator: tap, label: x}]").status == 0


def test_replicas_that_are_gone_after_down_are_told_with_their_mail(loom: Loom) -> None:
    text = "version: 1\nname: try\nagents: [{name: a, model: builtin/echo, replicas: 2}]\n"
    write(loom, text)
    up(loom)
    assert loom("down").status == 0
    loom("send", "a-2", "hello")
    write(loom, text.replace("replicas: 2", "replicas: 1"))
    said = loom("up", "-d")
    assert "a-2 is in the file no more: it is stopped, and 1 of its messages wait in its inbox" in said.err, said


@pytest.mark.parametrize("command", ["exit 0", "trap '' TERM; cat", "umask 77; cat", "cd / && cat"])
def test_what_the_shell_does_itself_is_no_missing_program(loom: Loom, command: str) -> None:
    loom("agent", "start", "a", "--model", "builtin/echo", "--detach")
    assert loom("pipe", "create", "p", f"[{{operator: command, cmd: {json.dumps(command)}}}]").status == 0


def test_what_a_pipe_holds_survives_down_and_is_shown(loom: Loom) -> None:
    text = "version: 1\nname: try\npipes: {pair: [{operator: window, size: 2, timeout: 1h}]}\nagents:\n"
    text += "  - {name: a, model: builtin/echo}\n  - {name: b, model: builtin/echo, from: [{agent: a, pipe: pair}]}\n"
    write(loom, text)
    up(loom)
    loom("send", "a", "one")
    wait_until(lambda: loom("pipes", "--json").objects[0]["instances"][0]["held"] == 1)
    assert loom("down").status == 0
    write(loom, text.replace(", pipe: pair", ""))
    said = loom("up", "-d")
    assert "pair~a→b is in the file no more: it is stopped and keeps 1 message for when" in said.err, said
    assert "pair~a→b has 1 message, which would be lost" in refused(loom, "pipe", "rm", "pair", status=75)
    write(loom, text)
    up(loom)
    loom("send", "a", "two")
    (body,) = wait_until(lambda: answers(loom, "b"))
    assert sorted(one["body"] for one in json.loads(body)) == ["one", "two"]


def test_routes_that_cannot_be_read_stop_the_mail_until_they_are_mended(loom: Loom) -> None:
    detached(loom, "a", "b")
    loom("route", "a", "--to", "b")
    good = (loom.home / "routes.json").read_text()
    (loom.home / "routes.json").write_text("{")
    loom("send", "a", "hello")
    wait_until(lambda: any(line["event"] == "routes_unreadable" for line in loom.log("router")))
    assert "routes.json cannot be read" in refused(loom, "routes")
    (loom.home / "routes.json").write_text(good)
    wait_until(lambda: answers(loom, "b") == ["hello"])


def test_killed_again_and_again_a_pipe_loses_nothing_and_repeats_nothing(loom: Loom) -> None:
    text = "version: 1\nname: try\nagents:\n  - {name: a, model: builtin/echo}\n"
    text += "  - {name: b, model: builtin/echo, from: [{agent: a, pipe: p}]}\npipes:\n"
    text += "  p: [{operator: command, cmd: cat}, {operator: window, size: 2, timeout: 1h},"
    text += " {operator: command, cmd: \"jq -c 'map(.body)'\"}]\n"
    write(loom, text)
    up(loom)
    bodies = [f"body {number:02}" for number in range(12)]
    for number, body in enumerate(bodies):
        loom("send", "a", body)
        if number % 3 == 0:
            who = locks.holder(agent(loom, "p~a→b").lock)
            if who is not None:
                os.kill(who.pid, signal.SIGKILL)
    done = wait_until(lambda: len(found := answers(loom, "b")) == 6 and found)
    assert sorted(word for body in done for word in json.loads(body)) == bodies
    crashes = list(agent(loom, "p~a→b").crashes.glob("*.json"))
    assert crashes, "it was never killed"


# -- the example ---------------------------------------------------------------------------------------------------


def test_the_example_of_issue_triage_does_what_it_says(loom: Loom) -> None:
    place = ROOT / "examples" / "issue-triage"
    assert up(loom, "-f", str(place / "loom.yml"))["labeller-3"] == "created"
    said: Said = loom("send", "reader", "--file", str(place / "issues.json"))
    assert said.status == 0, said
    (digest,) = wait_until(lambda: answers(loom, "digest"))
    assert digest == "#1 bug; #2 wish; #3 question; #4 bug; #5 wish; #6 question"
    counted = {(r["from"], r["to"]): r["messages"] for r in routes(loom)}
    assert counted["reader", "labeller-1"] == 1  # all replicas share the instance of their pipe
    assert sum(counted[f"labeller-{n}", "digest"] for n in (1, 2, 3)) == 6
    assert loom("down", "-f", str(place / "loom.yml")).status == 0


def test_the_schema_is_printed(loom: Loom) -> None:
    assert loom("up", "--schema").out == (ROOT / "docs" / "weave.schema.json").read_text()


def test_another_command_at_the_same_time_is_told_to_wait(loom: Loom) -> None:
    write(loom)
    up(loom)
    lock = subprocess.Popen(
        ["flock", str(loom.home / "weave.lock"), "sh", "-c", "echo held; read x"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        assert lock.stdout is not None
        assert lock.stdout.readline() == b"held\n"
        assert "another command changes the weaves" in refused(loom, "up", "-d", status=75)
    finally:
        lock.communicate(b"\n", timeout=30)
    assert os.path.lexists(loom.home / "weave.lock")
