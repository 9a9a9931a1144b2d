"""Pausing, resuming, cancelling and landing, by command and by file; and files that are damaged or dropped by hand."""

from __future__ import annotations

import json
import os
import signal
import time

import pytest
from goal_world import PASSES, World, check_once, does, execute, planned, sub, writes
from support import wait_until

from loom.cli import ensure
from loom.spool import goals
from loom.spool.home import open_home
from loom.spool.layout import GoalDir
from loom.wire import ids

ONE = sub("one", deliverables=["one.md"])
TWO = sub("two", deliverables=["two.md"], depends_on=["one"])


class Gate:
    """A model whose executors wait until they are let through: `opened` by the test."""

    def __init__(self, world: World) -> None:
        self.path = world.root / "gate"
        os.mkfifo(self.path)
        plan = json.dumps({"subtasks": [ONE, TWO]})
        call = '{"reply": {"calls": [{"name": "write-file", "input": {"path": PATH, "content": "Done.\\n"}}]}}'
        self.model = world.program(f"""
if text.startswith("# Goal"):
    print({plan!r})
elif "## Claim" in text:
    print('{{"passed": true, "confidence": 1.0, "findings": []}}')
elif request["messages"][-1]["role"] == "tool":
    print("done")
else:
    open({str(self.path)!r} + "." + os.environ["LOOM_AGENT"], "w").close()
    open({str(self.path)!r}).read()
    path = json.dumps("one.md" if "`one`" in text.splitlines()[0] else "two.md")
    print({call!r}.replace("PATH", path))
""")

    def waiting(self) -> bool:
        """Whether an executor has come so far."""
        return any(self.path.parent.glob("gate.executor-*"))

    def open(self) -> None:
        """Let one executor through; waits until one stands there."""
        with self.path.open("w"):
            pass


def at_work(world: World, subtask: str = "one") -> None:
    """Waits until an executor works on this subtask."""
    world.wait_for(
        lambda e: e.type == "order.dispatched" and e.data["kind"] == "execute" and e.data["subtask"] == subtask
    )


def drop(goal: GoalDir, data: str | bytes | dict[str, object], name: str = "") -> str:
    """Put a file into control/ as a shell would: written elsewhere, then moved. Its name without `.json`."""
    stem = name or new_name()
    raw = json.dumps(data).encode() if isinstance(data, dict) else data.encode() if isinstance(data, str) else data
    place = goal.path.parent.parent / stem
    place.write_bytes(raw)
    place.rename(goal.control / f"{stem}.json")
    return stem


def new_name() -> str:
    return ids.message_stem(time.time_ns() // 1_000_000, os.urandom(10))


def finished(world: World, *more: str) -> GoalDir:
    """A goal that is completed and not landed."""
    model = world.script(planned(ONE), *does(execute("one"), writes("one.md", "One.\n")), PASSES)
    done = world.run(*more, model=model)
    assert done.status == 0, done.err
    return world.goal()


# -- commands ------------------------------------------------------------------------------------------------------


def test_ctrl_c_pauses_and_resume_goes_on(world: World):
    gate = Gate(world)
    client = world.begin("--land", model=gate.model)
    at_work(world)
    client.send_signal(signal.SIGINT)
    done = world.end(client)
    goal = world.goal()
    assert done.status == 130 and f"go on with: loom goal resume {goal.id}" in done.err
    world.wait_for(lambda e: e.type == "goal.paused")
    gate.open()
    world.wait_for(lambda e: e.type == "order.reported" and e.actor["agent"].startswith("executor"))
    assert world.loom("goal", "ps").out.splitlines()[1].split()[1] == "paused"
    assert world.state().subtasks["two"].status == "waiting"
    assert world.loom("goal", "resume", goal.id).status == 0
    follower = world.start("goal", "log", "-f", goal.id)
    at_work(world, "two")
    gate.open()
    assert world.end(follower).status == 0
    assert "goal.landed" in world.types() and (world.work / "two.md").read_text() == "Done.\n"
    assert len(world.of("order.dispatched")) == len(world.of("order.reported"))
    check_once(world.events())
    assert world.gone()


def test_a_paused_goal_is_found_again_by_the_next_supervisor(world: World):
    gate = Gate(world)
    started = world.loom("run", "Do it.", "-w", world.work, "--model", gate.model, "--detach")
    goal = world.goal()
    assert (started.status, started.out) == (0, f"{goal.id}\n") and goal.id in started.err
    at_work(world)
    assert world.loom("goal", "pause", goal.id).status == 0
    assert world.loom("supervisor", "stop").status == 0
    assert world.processes() == {}
    assert world.loom("goal", "resume", goal.id).status == 0
    gate.open()
    at_work(world, "two")
    gate.open()
    world.wait_for(lambda e: e.type == "goal.completed")
    check_once(world.events())


def test_a_paused_goal_holds_no_process_and_is_still_listed(world: World):
    gate = Gate(world)
    world.loom("run", "Do it.", "-w", world.work, "--model", gate.model, "--detach")
    goal = world.goal()
    at_work(world)
    assert world.loom("goal", "pause", goal.id).status == 0
    gate.open()
    assert world.gone()
    assert "paused" in world.loom("goal", "ps").out
    assert world.loom("goal", "resume", goal.id).status == 0
    at_work(world, "two")
    gate.open()
    world.wait_for(lambda e: e.type == "goal.completed")
    check_once(world.events())


def test_pause_and_resume_are_refused_where_they_make_no_sense(world: World):
    gate = Gate(world)
    world.begin(model=gate.model)
    at_work(world)
    goal = world.goal().id
    refused = world.loom("goal", "resume", goal)
    assert refused.status == 1 and "only a paused goal can be resumed, this one is running" in refused.err
    assert world.loom("goal", "pause", goal).status == 0
    again = world.loom("goal", "pause", goal)
    assert again.status == 1 and "this one is paused" in again.err
    assert [r["asked"] for r in world.of("invariant.refused")] == [True, True]
    assert world.loom("goal", "cancel", goal).status == 0


def test_cancel_ends_executors_at_work_and_the_client_with_1(world: World):
    gate = Gate(world)
    client = world.begin(model=gate.model)
    at_work(world)
    wait_until(gate.waiting)
    goal = world.goal()
    began = time.monotonic()
    assert world.loom("goal", "cancel", goal.id).status == 0
    done = world.end(client)
    assert done.status == 1 and "goal cancelled" in done.err
    assert world.gone(), "nobody waits for the model's answer any longer"
    assert time.monotonic() - began < 15
    assert world.state().status == "cancelled" and world.types()[-1] == "goal.cancelled"
    again = world.loom("goal", "cancel", goal.id)
    assert again.status == 1 and "the goal is cancelled" in again.err
    assert world.loom("goal", "land", goal.id).status == 1


def test_landing_later_and_twice(world: World):
    goal = finished(world)
    assert world.gone() and not (world.work / "one.md").exists()
    landed = world.loom("goal", "land", goal.id)
    assert landed.status == 0 and "landed in" in landed.err and "one.md" in landed.err
    assert (world.work / "one.md").read_text() == "One.\n"
    again = world.loom("goal", "land", goal.id)
    assert again.status == 1 and "the goal has been landed" in again.err
    assert world.gone()


def test_a_goal_that_failed_is_not_landed(world: World):
    assert world.run("--land", model=world.program("sys.exit(1)")).status == 1
    refused = world.loom("goal", "land", world.goal().id)
    assert refused.status == 1 and "only a completed goal can be landed, this one is failed" in refused.err


def test_a_goal_without_a_workspace_has_nothing_to_land_in(world: World):
    model = world.script(planned(sub("one")), *does(execute("one")), PASSES)
    done = world.loom("run", "Think.", "--model", model)
    assert (done.status, done.out) == (0, "Done.\n"), done.err
    assert "no workspace, it begins empty; planning" in done.err and "copied" not in done.err
    refused = world.loom("goal", "land", world.goal().id)
    assert refused.status == 1 and "no workspace" in refused.err


def test_a_name_of_a_workspace_cannot_forge_a_line(world: World):
    odd = world.root / "a\n  landed \x1b[31m"
    odd.mkdir()
    model = world.script(planned(sub("one")), *does(execute("one")), PASSES)
    assert world.loom("run", "Think.", "-w", odd, "--model", model).status == 0
    shown = world.loom("goal", "show", world.goal().id).out
    assert r"/a\n  landed \x1b[31m" in shown and "\x1b" not in shown


def test_what_the_goal_commands_say(world: World):
    goal = finished(world)
    assert world.loom("goal", "ps").out.split() == ["GOAL", "STATUS", "DONE", "TEXT"]
    listed = world.loom("goal", "ps", "-a")
    assert listed.out.splitlines()[1].split() == [goal.id, "completed", "1/1", "Do", "it."]
    (row,) = json.loads(world.loom("goal", "ps", "-a", "--json").out)["goals"]
    assert (row["goal"], row["status"], row["done"], row["subtasks"]) == (goal.id, "completed", 1, 1)

    tail = goal.id.rpartition("-")[2]
    for name in (goal.id, goal.id[:12], tail):
        told = json.loads(world.loom("goal", "show", name, "--json").out)
        assert told["goal"] == goal.id and told["path"] == str(goal.path)
        assert [(s["id"], s["status"]) for s in told["plan"]] == [("one", "applied")]
    shown = world.loom("goal", "show", goal.id).out
    assert "completed" in shown and str(world.work) in shown and "one  " in shown

    events = world.events()
    log = world.loom("goal", "log", goal.id)
    assert len(log.out.splitlines()) == len(events)
    records = world.loom("goal", "log", goal.id, "--json").records()
    assert [r["type"] for r in records] == [e.type for e in events]
    assert records == world.loom("goal", "log", "-f", goal.id, "--json").records()
    audit = world.loom("goal", "audit", goal.id)
    assert audit.status == 0 and f"{len(events)} records, chain and head intact" in audit.out


@pytest.mark.parametrize("verb", ["show", "log", "audit", "pause", "resume", "cancel", "land"])
def test_a_goal_nobody_knows(world: World, verb: str):
    open_home(world.home.path, {"LOOM_ALLOW_FILESYSTEM": "1"})
    done = world.loom("goal", verb, "20200101-nothing-here-0000")
    assert done.status == 66 and "there is no goal" in done.err and "loom goal ps -a" in done.err


def test_an_ambiguous_name_is_no_goal(world: World):
    finished(world)
    finished(world)
    day = world.goal().id[:8]
    done = world.loom("goal", "show", day)
    assert done.status == 66 and "could be" in done.err and all(n in done.err for n in goals.names(world.home))


# -- files dropped by hand -----------------------------------------------------------------------------------------


def test_a_file_moved_into_control_is_heard_at_once(world: World):
    gate = Gate(world)
    world.begin(model=gate.model)
    at_work(world)
    goal = world.goal()
    for verb, event in (("pause", "goal.paused"), ("resume", "goal.resumed")):
        drop(goal, {"verb": verb, "by": "a shell"})
        found = world.wait_for(lambda e, event=event: e.type == event, deadline_s=5)
        assert found.data["by"] == "a shell"
        wait_until(lambda: not os.listdir(goal.control) or os.listdir(goal.control) == [".tmp"])
    drop(goal, {"verb": "cancel"})
    world.wait_for(lambda e: e.type == "goal.cancelled", deadline_s=5)


@pytest.mark.parametrize("router", ["the same", "one that came later"])
def test_landing_is_asked_for_with_mv(world: World, router: str):
    goal = finished(world)
    if router != "the same":
        wait_until(lambda: ensure.supervisor_of(world.home) is None)
    other = world.folder("other")
    waiting = world.start("run", "Wait.", "-w", other, "--model", Gate(world).model)
    world.wait_for(lambda e: e.type == "plan.accepted", world.goal(1))
    drop(goal, {"verb": "land", "by": "a shell"})
    world.wait_for(lambda e: e.type == "goal.landed", goal, deadline_s=5)
    assert (world.work / "one.md").read_text() == "One.\n"
    assert waiting.poll() is None
    assert world.loom("goal", "cancel", world.goal(1).id).status == 0


def test_rubbish_in_control_is_refused_and_stops_nobody(world: World):
    gate = Gate(world)
    client = world.begin(model=gate.model)
    at_work(world)
    goal = world.goal()
    refused = {
        "garbage": "{not json",
        "binary": b"\xff\xfe\0",
        "unknown verb": {"verb": "undo"},
        "a list": "[]",
        "args": {"verb": "pause", "args": "now"},
        "no verb": {"verb": ["pause"]},
        "too large": b'{"verb": "pause", "by": "' + b"x" * (2 << 20) + b'"}',
    }
    files = {drop(goal, data) for data in refused.values()}
    pipe, link, directory, full = (new_name() for _ in range(4))
    os.mkfifo(goal.control / f"{pipe}.json")
    (goal.control / f"{link}.json").symlink_to("/dev/zero")
    (goal.control / f"{directory}.json").mkdir()
    (goal.control / f"{full}.json").mkdir()
    (goal.control / f"{full}.json" / "inside").write_text("kept")
    ignored = ["notes.txt", "x.json", os.fsdecode(b"\xff.json"), f".{new_name()}.json", f"{new_name()}.json.tmp"]
    for name in ignored:
        (goal.control / name).write_text('{"verb": "cancel"}')
    causes = {*files, pipe, link, directory, full}

    wait_until(lambda: {e.cause for e in world.events() if e.type == "invariant.refused"} == causes)
    gate.open()
    at_work(world, "two")
    gate.open()
    assert world.end(client).status == 0
    refusals = [e for e in world.events() if e.type == "invariant.refused"]
    assert len(refusals) == len(causes) and all(e.data["asked"] for e in refusals)
    left = set(os.listdir(goal.control)) - {".tmp"}
    assert left == {*ignored, f"{directory}.json", f"{full}.json"}
    assert (goal.control / f"{full}.json" / "inside").read_text() == "kept"
    assert len({e.actor["pid"] for e in world.events() if e.actor["agent"] == "router"}) == 1, "the router lived on"


# -- damage --------------------------------------------------------------------------------------------------------


def test_a_damaged_goal_stops_no_other_and_is_shown_as_damaged(world: World):
    ended = finished(world)
    assert world.gone()
    text = ended.journal.read_bytes()
    copy_of(ended, 1).journal.write_bytes(text.replace(b'"ok":true', b'"ok":tru?'))
    directory = copy_of(ended, 2)
    directory.journal.unlink()
    directory.journal.mkdir()
    new = copy_of(ended, 3)
    new.journal.unlink()
    new.document.write_text("---\nnothing\n")
    cut_off = copy_of(ended, 4)
    cut_off.journal.write_bytes(text.partition(b"\n")[2])
    whole = copy_of(ended, 5)
    whole.document.write_text("what was asked stands in the journal too")
    model = world.script(planned(ONE), *does(execute("one"), writes("one.md", "One.\n")), PASSES)
    done = world.run("--land", model=model)
    assert done.status == 0, done.err
    shown = {r["goal"]: r["status"] for r in json.loads(world.loom("goal", "ps", "-a", "--json").out)["goals"]}
    damaged = [name for name, status in shown.items() if status == "damaged"]
    assert sorted(name[-1] for name in damaged) == ["1", "2", "3", "4"] and shown[whole.id] == "completed"
    latest = next(name for name in shown if name not in (ended.id, *damaged, whole.id))
    assert len({e.actor["pid"] for e in world.events(world.home.goal(latest)) if e.actor["agent"] == "router"}) == 1
    for name in damaged:
        told = world.loom("goal", "show", name)
        assert told.status == 0 and "damaged" in told.out and "bug" not in told.err
        if name != new.id:
            for command in (("log",), ("log", "-f"), ("audit",)):
                said = world.loom("goal", *command, name)
                assert said.status in (1, 78) and name in said.err and "bug" not in said.err, (command, said)


def copy_of(goal: GoalDir, number: int) -> GoalDir:
    import shutil

    place = goal.path.with_name(f"20200101-broken-000{number}")
    shutil.copytree(goal.path, place)
    (place / "resting").unlink()
    return GoalDir(place)


def test_what_is_derived_may_be_deleted(world: World):
    gate = Gate(world)
    client = world.begin("--land", model=gate.model)
    at_work(world)
    goal = world.goal()
    forget(world, goal)
    assert world.loom("supervisor", "stop").status == 0
    forget(world, goal)
    gate.open()
    at_work(world, "two")
    forget(world, goal)
    gate.open()
    assert world.end(client).status == 0
    assert world.gone()
    before = goal.journal.read_bytes()
    state = world.state()
    forget(world, goal)
    assert world.loom("goal", "show", goal.id).status == 0
    assert world.loom("run", "Nothing.", "--model", world.program("sys.exit(1)", "no")).status == 1
    assert goal.journal.read_bytes() == before and world.state(goal) == state
    assert (goal.path / "resting").exists(), "found out again"
    check_once(world.events(goal))


def forget(world: World, goal: GoalDir) -> None:
    """Delete everything that is derived."""
    for path in (goal.state, goal.plan, goals.rest_marker(goal), *goal.path.glob("subtasks/*/*/*.md")):
        path.unlink(missing_ok=True)
    for agent in world.home.agents.iterdir():
        for name in ("status", "pid", "started_at", "model", "last_exit"):
            (agent / name).unlink(missing_ok=True)


def test_a_goal_whose_payload_is_lost_is_not_gone_on_with(world: World):
    """A journal that can be read only in part is no shorter journal: nothing is done on its account."""
    large = sub("one", deliverables=["one.md"], instruction="Do it. " + "x" * (70 << 10))
    model = world.script(planned(large), *does(execute("one"), writes("one.md", "One.\n")), PASSES)
    assert world.run(model=model).status == 0
    assert world.gone()
    goal = world.goal()
    digests = [
        e["data"]["$blob"] for e in map(json.loads, goal.journal.read_text().splitlines()) if "$blob" in e["data"]
    ]
    (world.home.blobs / digests[0][:2] / digests[0]).unlink()
    goal.state.unlink()
    (goal.path / "resting").unlink()
    before = goal.journal.read_bytes()
    assert world.run(model=world.program("sys.exit(1)")).status == 1
    assert goal.journal.read_bytes() == before
    audit = world.loom("goal", "audit", goal.id)
    assert audit.status == 1 and "missing" in audit.err
    for command in (("log",), ("log", "-f")):
        said = world.loom("goal", *command, goal.id)
        assert said.status == 78 and "missing" in said.err, said
    assert "damaged" in world.loom("goal", "show", goal.id).out
