"""`loom run` from cron and many at once; its exit statuses (docs/cli.md)."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from itertools import pairwise

import pytest
from goal_world import PASSES, World, check_once, does, execute, planned, sub, write_documents
from support import ROOT, wait_until

from loom.spool import goals
from loom.spool.home import open_home

DOCUMENTS = "Write a digest of these documents."
ONE = sub("one", deliverables=["one.md"])


def nothing_began(world: World) -> bool:
    return not goals.names(world.home) and world.processes() == {}


# -- exit statuses -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("goal", [[], [""], [" \n"]], ids=["none", "empty", "blank"])
def test_without_a_goal_65(world: World, goal: list[str]):
    done = world.loom("run", *goal, "--model", "builtin")
    assert done.status == 65 and "there is no goal" in done.err and nothing_began(world)


def test_with_stdin_closed_there_is_no_goal_either(world: World):
    done = subprocess.run(
        ["sh", "-c", 'exec "$0" -m loom run --model builtin <&-', sys.executable],
        env=world.env,
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert done.returncode == 65 and "there is no goal" in done.stderr


WRONG = {
    "no model": ([], 78, "--model builtin"),
    "an unknown provider": (["--model", "opnai/gpt"], 2, "did you mean 'openai'"),
    "a missing key": (["--model", "openai/gpt-4o"], 78, "OPENAI_API_KEY"),
    "a missing program": (["--model", "exec/./nowhere"], 66, "no such program"),
    "a missing script": (["--model", "script/nowhere.ndjson"], 66, "no such file"),
    "other gates": (["--model", "builtin", "--gates", "human"], 2, "--gates"),
    "the whole disk": (["--model", "builtin", "-w", "/"], 2, "no workspace"),
    "the home's own": (["--model", "builtin", "-w", "home/goals"], 2, "belongs to loom's home"),
    "no such folder": (["--model", "builtin", "-w", "nowhere"], 66, "does not exist"),
    "a file for a folder": (["--model", "builtin", "-w", "home/version"], 66, "is not a directory"),
    "landing nowhere": (["--model", "builtin", "--land"], 2, "-w DIR"),
    "no such goal file": (["--model", "builtin", "--file", "nowhere"], 66, "nowhere"),
}


@pytest.mark.parametrize("args, status, said", WRONG.values(), ids=WRONG.keys())
def test_what_is_wrong_is_said_before_anything_starts(world: World, args: list[str], status: int, said: str):
    open_home(world.home.path, {"LOOM_ALLOW_FILESYSTEM": "1"})
    done = world.loom("run", *([] if "--file" in args else ["Do it."]), *args)
    assert (done.status, said in done.err, len(done.err.splitlines())) == (status, True, 1), done.err
    assert nothing_began(world)
    told = world.loom("run", *([] if "--file" in args else ["Do it."]), *args, "--json")
    assert told.status == status and told.records()[-1]["error"]["exit_status"] == status


def test_a_mistake_in_a_script_is_reported_with_its_line(world: World):
    path = world.root / "bad.ndjson"
    path.write_text('{"text": "fine"}\n{"txt": "wrong"}\n')
    done = world.run(model=f"script/{path}")
    assert done.status == 78 and "bad.ndjson:2" in done.err and nothing_began(world)


@pytest.mark.slow
def test_a_server_that_is_not_there_fails_the_goal_and_is_named(world: World):
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
        world.config(f"providers:\n  lab:\n    dialect: openai\n    base_url: http://127.0.0.1:{port}/v1\n")
        done = world.run(model="lab/qwen")  # five tries: 1, 2, 4 and 8 seconds apart
    assert done.status == 1 and f"127.0.0.1:{port}" in done.err, done.err
    assert world.state().status == "failed" and world.gone()


def test_the_goal_from_stdin_and_the_result_as_ndjson(world: World):
    model = world.script(planned(sub("one")), *does(execute()), PASSES)
    client = world.start("run", "--model", model, "--json", stdin=subprocess.PIPE)
    done = world.end(client, data=b"Think about it.\n")
    records = done.records()
    assert records[0] == {"event": "goal", "v": 1, "goal": world.goal().id}
    assert [r["event"] for r in records[1:-1]] == world.types()
    result = {"status": "completed", "exit_status": 0, "result": "Done.\n", "landing": "", "reason": ""}
    assert records[-1].items() >= {"event": "result", "goal": world.goal().id, **result}.items()
    assert world.state().spec.text == "Think about it." and "Think about it." in world.requests("planner")[0]


def test_the_results_in_the_plans_order_without_a_synthesis(world: World):
    said = [{"match": execute(name), "text": f"Result {name}."} for name in "ab"]
    done = world.run(model=world.script(planned(sub("b", depends_on=["a"]), sub("a")), *said, PASSES))
    assert (done.status, done.out) == (0, "Result b.\n\nResult a.\n")


# -- cron, and many at once ----------------------------------------------------------------------------------------


def test_from_cron_with_nothing_but_home_and_path(world: World):
    user = world.folder("user")
    cron = World(world.root / "cron", home_at=user / ".loom")
    write_documents(world.work, 3, 20)
    command = [sys.executable, "-m", "loom", "run", DOCUMENTS, "-w", str(world.work), "--model", "builtin", "--land"]
    done = subprocess.run(
        ["env", "-i", f"HOME={user}", "PATH=/usr/bin:/bin", *command],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        start_new_session=True,
        timeout=90,
    )
    try:
        assert done.returncode == 0, done.stderr
        assert (world.work / "DIGEST.md").read_text() == done.stdout
        assert done.stderr.isascii() and "\x1b" not in done.stderr
    finally:
        cron.loom("supervisor", "stop")
    wait_until(lambda: not cron.processes(), 5)  # one that had just left by itself was not there to be stopped


def test_three_clients_at_once_share_the_pools_and_one_supervisor(world: World):
    world.config("pools:\n  executor: 2\n  verifier: 1\n")
    clients = []
    for number in range(3):
        folder = world.root / f"work-{number}"
        write_documents(folder, 4, 20, seed=number)
        clients.append(world.start("run", DOCUMENTS, "-w", folder, "--model", "builtin", "--land"))
    for number, client in enumerate(clients):
        done = world.end(client)
        assert done.status == 0, done.err
        assert (world.root / f"work-{number}" / "DIGEST.md").read_text() == done.out
    names = goals.names(world.home)
    assert len(names) == 3
    times: dict[str, list[tuple[int, int]]] = {}
    routers = set()
    for name in names:
        events = world.events(world.home.goal(name))
        check_once(events)
        routers |= {e.actor["pid"] for e in events if e.actor["agent"] == "router"}
        for event in events:
            if event.type == "order.reported":
                span = (event.data["began_us"], event.data["ended_us"])
                times.setdefault(event.actor["agent"], []).append(span)
    assert len(routers) == 1
    assert {a for a in times if a.startswith(("executor", "verifier"))} == {"executor-1", "executor-2", "verifier-1"}
    for spans in times.values():
        spans.sort()
        assert all(a[1] <= b[0] for a, b in pairwise(spans)), "one order at a time"
    assert world.gone()
    told = [json.loads(line)["event"] for line in world.home.supervisor_log.read_text().splitlines()]
    assert told.count("leaving") == 1, "one supervisor for all, which left by itself"


def test_a_digest_is_made_again_where_nothing_or_little_has_changed(world: World):
    """As cron does: what was landed yesterday lies in the workspace today."""
    write_documents(world.work, 3, 20)
    first = world.run("--land", text=DOCUMENTS)
    again = world.run("--land", text=DOCUMENTS)
    assert (again.status, again.out) == (first.status, first.out) == (0, first.out), again.err
    assert "nothing had changed" in again.err
    (world.work / "chronicle-01.md").write_text("# New\n\nSomething else has been written here.\n")
    other = world.run("--land", text=DOCUMENTS)
    assert other.status == 0, other.err
    assert "Something else has been written here." in (world.work / "DIGEST.md").read_text()
    landed = [set(world.of("goal.landed", world.goal(n))[0]["written"]) for n in range(3)]
    assert landed[1:] == [set(), {"DIGEST.md", "digest/chronicle-01.md"}]


def test_a_goal_outlives_its_client(world: World):
    write_documents(world.work, 4, 40)
    for number, kill in enumerate((signal.SIGKILL, signal.SIGTERM)):
        client = world.begin("--land", text=DOCUMENTS)
        goal = world.goal(number)
        world.wait_for(lambda e: e.type == "plan.accepted", goal)
        client.send_signal(kill)
        assert world.end(client).status == (143 if kill == signal.SIGTERM else -9)
        world.wait_for(lambda e: e.type == "goal.landed", goal)
    assert world.gone()


def test_a_reader_that_has_gone_ends_the_client_quietly(world: World):
    reading, writing = os.pipe()
    client = world.start("run", "Do it.", "--model", world.program("sys.exit(1)"), "--json", stdout=writing)
    os.close(writing)
    os.close(reading)
    done = world.end(client)
    assert done.status == 0 and "Traceback" not in done.err
    wait_until(lambda: "goal.failed" in world.types())
