"""`loom schedule`: real processes, by several hands at once; the machine's sleep is a record that is set back."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cli_user import COMMAND, Loom, Said
from support import processes_of, wait_until

from loom.spool import agents
from loom.spool.home import open_home

HOUR = 3600


@pytest.fixture
def box(loom: Loom) -> Loom:
    """A home without a supervisor, with an agent that is stopped: its mail stays in its inbox."""
    assert loom("agent", "start", "w", "--model", "builtin/echo", "--detach").status == 0
    assert loom("agent", "stop", "w").status == 0
    assert loom("supervisor", "stop").status == 0
    return loom


def define(loom: Loom, name: str, **keys: Any) -> None:
    """A job, as a person writes it with an editor."""
    place = loom.home / "schedules"
    place.mkdir(exist_ok=True)
    (place / f"{name}.yml").write_text("".join(f"{key}: {json.dumps(value)}\n" for key, value in keys.items()))


def slept(loom: Loom, name: str, seconds: int) -> None:
    """Nobody has looked at this job for so long."""
    path = loom.home / "schedules" / name / "slots.json"
    known = json.loads(path.read_text())
    path.write_text(json.dumps(known | {"after": int(time.time()) - seconds}))


def hourly() -> dict[str, str]:
    """The times of a job with a slot every hour, half an hour away from now: none comes while a test looks."""
    return {"cron": f"{(int(time.time()) // 60 + 30) % 60} * * * *", "zone": "UTC"}


def due(loom: Loom, name: str, seconds: int, **keys: Any) -> None:
    define(loom, name, **keys)
    assert loom("schedule", "run-due", name).status == 0
    slept(loom, name, seconds)


def again(loom: Loom, name: str) -> Said:
    """What the next slot of a job with a short interval leads to."""

    def served() -> Said | None:
        said = loom("schedule", "run-due", name)
        return said if said.out or said.err else None

    return wait_until(served)


def mail(loom: Loom) -> list[dict[str, Any]]:
    found = sorted((loom.home / "agents" / "w" / "inbox").glob("*.msg"))
    return [json.loads(path.read_bytes()) for path in found]


def test_add_writes_a_file_that_ls_and_show_explain_and_rm_removes(box: Loom):
    said = box("schedule", "add", "morning", "--cron", "0 7 * * mon-fri", "--zone", "Asia/Kathmandu", "--to", "w",
               "--body", "good morning")  # fmt: skip
    assert re.fullmatch(r"morning: next at \d{4}-\d\d-\d\d 07:00:00 Asia/Kathmandu\n", said.out)
    text = (box.home / "schedules" / "morning.yml").read_text()
    assert text == 'cron: "0 7 * * mon-fri"\nzone: "Asia/Kathmandu"\nto: "w"\nbody: "good morning"\n'
    [told] = box("schedule", "ls", "--json").objects[0]["schedules"]
    assert told["name"] == "morning" and len(told["next"]) == 5 and told["trouble"] == ""
    assert "0 7 * * mon-fri" in box("schedule", "ls").out
    assert box("schedule", "show", "morning").out.startswith(text)
    assert box("schedule", "add", "morning", "--every", "1h", "--to", "w", "--body", "x").status == 2
    assert box("schedule", "add", "morning", "--every", "1h", "--to", "w", "--body", "x", "--replace").status == 0
    assert box("schedule", "show", "mornin").err == "loom: there is no schedule 'mornin' in " + (
        f"{box.home}; did you mean 'morning'?\n"
    )
    assert box("schedule", "rm", "morning").status == 0
    assert [p.name for p in (box.home / "schedules").iterdir() if p.name != ".tmp"] == []


@pytest.mark.parametrize("how", ["with --replace", "with an editor"])
def test_a_job_that_gets_another_timing_begins_with_its_next_slot(box: Loom, how: str):
    job = {"to": "w", "body": "x", "overlap": "allow", "catch_up": "all"}
    due(box, "j", 60, every="30d", **job)
    begin = int(time.time())
    if how == "with an editor":
        define(box, "j", every="1s", **job)
        again(box, "j")
    else:
        options = [f"--{key.replace('_', '-')}={value}" for key, value in job.items()]
        assert box("schedule", "add", "j", "--every", "1s", *options, "--replace").status == 0
    served = [m["ts"] // 1000 for m in wait_until(lambda: mail(box))]
    assert min(served) > begin, "a second before it was a job of each second"


@pytest.mark.parametrize(("options", "status", "said"), [
    (["--cron", "61 * * * *", "--to", "w", "--body", "x"], 2, "minute: '61' is not within 0-59"),
    (["--every", "10", "--to", "w", "--body", "x"], 2, "every: '10' is no duration; write 30s, 5m, 2h or 1d"),
    (["--every", "0s", "--to", "w", "--body", "x"], 2, "every: '0s' is too short; the least is 1s"),
    (["--every", "1h"], 2, "either `to`, for messages, or `goal`"),
    (["--cron", "* * * * *", "--zone", "Mars", "--to", "w", "--body", "x"], 2, "time zone 'Mars' is not known"),
    (["--every", "1h", "--to", "nobody", "--body", "x"], 66, "there is no agent 'nobody'"),
    (["--every", "1h", "--to", "w", "--driver", "./nothere"], 66, "nothere' is no program that can be run"),
    (["--every", "1h", "--goal", "hi", "--model", "builtin", "-w", "/nonexist"], 66, "/nonexist does not exist"),
    (["--every", "1h", "--goal", "hi", "--model", "builtin", "-w", "~nobody-x"], 66, "/~nobody-x does not exist"),
    (["--every", "1h", "--goal", "hi", "--model", "openai/gpt-4o"], 78, "OPENAI_API_KEY"),
])  # fmt: skip
def test_wrong_options_leave_nothing_behind(box: Loom, options: list[str], status: int, said: str):
    answer = box("schedule", "add", "j", *options)
    assert answer.status == status and said in answer.err, answer
    assert not (box.home / "schedules" / "j.yml").exists()


def test_a_program_as_a_model_is_the_one_that_was_meant_when_the_job_was_added(box: Loom):
    box.program("x.py", "")
    said = box("schedule", "add", "j", "--every", "1h", "--goal", "hi", "--model", "exec/./x.py|exec/true|builtin")
    assert said.status == 0, said
    written = (box.home / "schedules" / "j.yml").read_text()
    assert f"exec/{box.place}/x.py|exec/true|builtin" in written


@pytest.mark.parametrize(
    "wrong",
    [
        {"model": "builtin|exec/./x.py"},
        {"model": "script/x"},
        {"workspace": "notes"},
        {"workspace": "~no-such-user/notes"},
    ],
)
def test_a_path_that_is_not_whole_is_refused_where_a_job_was_written_by_hand(box: Loom, wrong: dict[str, str]):
    box.program("x.py", "")
    due(box, "j", HOUR + 60, every="1h", goal="hi", **{"model": "builtin", **wrong})
    said = box("schedule", "run-due", "j")
    assert said.status == 1 and "whole" in said.err and "write it from /" in said.err, said


def test_a_job_for_an_agent_that_is_stopped_is_added_with_a_warning(box: Loom):
    said = box("schedule", "add", "j", "--every", "1h", "--to", "w", "--body", "x")
    assert said.status == 0 and "w is stopped, so its mail waits" in said.err, said


def test_why_a_slot_came_to_nothing_is_said_with_q_too(box: Loom):
    due(box, "j", HOUR + 60, every="1h", to="w", driver="no-such-driver")
    said = box("-q", "schedule", "run-due", "j")
    assert said.status == 1 and "the driver 'no-such-driver' is no program that can be run" in said.err, said


def test_ten_who_serve_a_job_at_once_serve_each_slot_once(box: Loom):
    due(box, "j", 5 * HOUR + 60, every="1h", to="w", body="hello", overlap="allow", catch_up="all")
    running = [box.start("schedule", "run-due", "--json") for _ in range(10)]
    said = [json.loads(line) for process in running for line in process.communicate()[0].splitlines()]
    assert [process.returncode for process in running] == [0] * 10
    sent = [line for line in said if line["event"] == "sent"]
    assert len(sent) == len({line["slot"] for line in sent}) == len(mail(box)) in (5, 6)
    assert {(m["from"], m["body"]) for m in mail(box)} == {("schedule", "hello")}
    assert [m["ts"] // 1000 for m in mail(box)] == sorted(line["slot"] for line in sent)


def test_the_supervisor_and_cron_serve_each_slot_once(loom: Loom):
    loom("agent", "start", "w", "--model", "builtin/echo", "--detach")
    assert loom("schedule", "add", "tick", "--every", "1s", "--to", "w", "--body", "tick", "--overlap", "allow").out
    processed = loom.home / "agents" / "w" / "inbox" / ".processed"
    log = loom.home / "schedules" / "tick" / "logs"

    def served() -> list[dict[str, Any]]:
        assert loom("schedule", "run-due").status == 0
        lines = [json.loads(line) for path in log.glob("*") for line in path.read_text().splitlines()]
        return [line for line in lines if line["event"] == "sent"]

    wait_until(lambda: len(served()) >= 5)
    assert loom("schedule", "rm", "tick").status in (0, 75)
    names = [name for line in served() or [] for name in line["names"]] if log.exists() else []
    assert len(names) == len(set(names))
    box = open_home(loom.home).agent("w")
    wait_until(lambda: not agents.has_mail(box))  # neither waiting nor claimed
    by_time = [path.name[:13] for path in processed.rglob("*.msg")]
    assert len(by_time) == len(set(by_time)) >= 5, "a second has two messages"


def test_a_supervisor_that_nobody_else_needs_stays_for_a_job_and_serves_it(loom: Loom):
    loom.env["LOOM_SUPERVISOR_IDLE_S"] = "0.1"
    loom("agent", "start", "w", "--model", "builtin/echo", "--detach")
    loom("agent", "stop", "w")
    loom("schedule", "add", "tick", "--every", "1s", "--to", "w", "--body", "tick", "--overlap", "allow")
    pid = loom("supervisor", "status", "--json").objects[0]["pid"]
    wait_until(lambda: len(mail(loom)) >= 2)
    assert loom("supervisor", "status", "--json").objects[0]["pid"] == pid
    wait_until(lambda: loom("schedule", "rm", "tick").status == 0)
    wait_until(lambda: not processes_of(loom.home))


def test_overlap_skip_queue_and_allow_with_messages(box: Loom):
    for overlap, count in (("skip", 1), ("queue", 1), ("allow", 3)):
        before = len(mail(box))
        due(box, f"j-{overlap}", 3 * HOUR, **hourly(), to="w", body=overlap, overlap=overlap, catch_up="all")
        said = box("schedule", "run-due", f"j-{overlap}", "--json").objects
        assert said[0]["event"] == "sent"
        assert len(mail(box)) - before == count
    told = {t["name"]: t for t in box("schedule", "ls", "--json").objects[0]["schedules"]}
    assert told["j-queue"]["held"] and not told["j-skip"]["held"]
    for path in (box.home / "agents" / "w" / "inbox").glob("*.msg"):
        path.unlink()
    box("schedule", "run-due")
    assert [m["body"] for m in mail(box)] == ["queue"], "the one before has ended: the next comes"


def log_of(loom: Loom, name: str, event: str) -> list[dict[str, Any]]:
    files = sorted((loom.home / "schedules" / name / "logs").glob("*.ndjson"))
    lines = [json.loads(line) for path in files for line in path.read_text().splitlines()]
    return [line for line in lines if line["event"] == event]


def test_a_goal_is_started_once_for_its_slot(loom: Loom):
    notes = loom.place / "notes"
    notes.mkdir()
    (notes / "a.md").write_text("Rivers flow to the sea. The sea is large.\n")
    goal = {"goal": "Write a digest of these documents.", "workspace": str(notes), "model": "builtin", "land": True}
    loom.make_home()
    due(loom, "digest", HOUR, **hourly(), **goal)
    [started, result] = loom("schedule", "run-due", "--json").objects
    assert started["event"] == "started" and result["exit_status"] == 0
    assert re.fullmatch(r"\d{8}-digest-[0-9a-z]{8}", started["names"][0])
    wait_until(lambda: loom("goal", "ps", "--json").objects[0]["goals"] == [])
    [done] = loom("goal", "ps", "-a", "--json").objects[0]["goals"]
    assert (done["goal"], done["status"]) == (started["names"][0], "completed")
    assert (notes / "DIGEST.md").exists()
    assert loom("schedule", "run-due", "--json").objects[0]["event"] == "result", "nothing is due"


def test_replace_ends_the_goal_before_and_then_starts_the_next(loom: Loom):
    thinks = loom.program("thinks.py", "import time\ntime.sleep(600)\n")
    added = loom("schedule", "add", "slow", "--every", "1s", "--goal", "think", "--model", f"exec/{thinks}",
                 "--overlap", "replace")  # fmt: skip
    assert added.status == 0, added
    wait_until(lambda: len(log_of(loom, "slow", "started")) >= 3)
    wait_until(lambda: loom("schedule", "rm", "slow").status == 0)
    found = loom("goal", "ps", "-a", "--json").objects[0]["goals"]
    assert [goal["status"] for goal in found].count("cancelled") >= len(found) - 1 >= 2
    for goal in found:
        if goal["status"] != "cancelled":
            loom("goal", "cancel", goal["goal"])


def test_what_is_wrong_with_one_job_hinders_no_other(box: Loom):
    due(box, "good", HOUR, every="1h", to="w", body="x")
    define(box, "odd", every="1h", too="w", body="x")
    define(box, "gone", every="1h", to="nobody", body="x")
    box("schedule", "run-due", "gone")
    slept(box, "gone", HOUR)
    said = box("schedule", "run-due")
    assert said.status == 1 and len(mail(box)) == 1
    assert f"{box.home}/schedules/odd.yml:2: a job has no 'too'; did you mean 'to'?" in said.err
    told = {t["name"]: t["trouble"] for t in box("schedule", "ls", "--json").objects[0]["schedules"]}
    assert "there is no agent 'nobody'" in told["gone"] and "'too'" in told["odd"] and not told["good"]


def test_a_bug_that_one_job_meets_hinders_no_other_and_what_was_served_is_told(box: Loom):
    due(box, "a-good", HOUR, every="1h", to="w", body="x")
    due(box, "m-odd", HOUR, every="1h", to="w", body="x")
    due(box, "z-good", HOUR, every="1h", to="w", body="x")
    path = box.home / "schedules" / "m-odd" / "slots.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"last": {"goal": 7}}))
    listed = {t["name"]: t["trouble"] for t in box("schedule", "ls", "--json").objects[0]["schedules"]}
    assert not listed["a-good"] and not listed["z-good"] and "it cannot be shown: " in box("schedule", "ls").out
    assert "it cannot be shown: " in listed["m-odd"]
    said = box("schedule", "run-due")
    assert said.status == 70 and [line.split()[0] for line in said.out.splitlines()] == ["a-good", "z-good"]
    assert len([line for line in said.err.splitlines() if "m-odd could not be served: TypeError" in line]) == 1
    for name in ("a-good", "z-good"):
        slept(box, name, HOUR)
    assert box("schedule", "run-due", "--json").objects[-1]["errors"][0]["type"] == "bug"


TAKES_THE_INBOX_AWAY = """
import json, os, sys
asked = json.load(sys.stdin).get("asked", 0) + 1
if asked == 2:
    inbox = os.environ["LOOM_HOME"] + "/agents/w/inbox"
    os.rename(inbox, inbox + ".away")
    open(inbox, "w").close()
print(json.dumps({"events": [{"body": str(asked)}], "state": {"asked": asked}}))
"""


def test_what_was_served_of_a_job_before_the_machine_refused_is_told(box: Loom):
    driver = box.program("takes.py", TAKES_THE_INBOX_AWAY)
    due(box, "j", 2 * HOUR, **hourly(), to="w", driver=driver, catch_up="all")
    said = box("schedule", "run-due")
    inbox = box.home / "agents" / "w" / "inbox"
    inbox.unlink()
    (inbox.parent / "inbox.away").rename(inbox)
    assert said.status == 74 and said.out.count("j sent ") == len(mail(box)) == 1, said
    assert "j could not be served: " in said.err, said
    said = box("schedule", "run-due")
    assert said.status == 0 and [m["body"] for m in mail(box)] == ["1", "2"], said


def test_a_job_that_cannot_be_opened_is_a_row_and_no_end(box: Loom):
    due(box, "good", HOUR, every="1h", to="w", body="x")
    place = box.home / "schedules"
    (place / "aloop.yml").symlink_to("aloop.yml")
    define(box, "locked", every="1h", to="w", body="x")
    (place / "locked").write_text("no directory")
    told = {t["name"]: t["trouble"] for t in box("schedule", "ls", "--json").objects[0]["schedules"]}
    assert "aloop.yml cannot be read" in told["aloop"] and "no directory" in told["locked"] and not told["good"]
    assert "locked: it cannot be read: " in box("doctor").out
    said = box("schedule", "run-due")
    assert said.status == 78 and said.out.startswith("good sent ") and len(mail(box)) == 1, said
    assert len(said.err.splitlines()) == 2 + ("w is stopped" in said.err), said


def without_privileges() -> list[str]:
    """Before a command: root may not open every file either."""
    if os.geteuid() != 0:
        return []
    if shutil.which("setpriv") is None:
        pytest.skip("root opens any file, and there is no setpriv here")
    return ["setpriv", "--bounding-set=-dac_override,-dac_read_search"]


def test_a_supervisor_says_once_what_is_wrong_with_a_job_serves_the_others_and_looks_again(box: Loom):
    place = box.home / "schedules"
    define(box, "tick", every="1s", to="w", body="tick", overlap="allow")
    define(box, "closed", every="1s", to="w", body="opened", overlap="allow")
    (place / "aloop.yml").symlink_to("aloop.yml")
    (place / "closed.yml").chmod(0)
    command, log = [*without_privileges(), *COMMAND, "supervisor", "run"], box.place / "said"
    with log.open("wb") as stderr:
        running = subprocess.Popen(command, env=box.env, stdin=subprocess.DEVNULL, stderr=stderr)

    def said(name: str) -> list[str]:
        return [line for line in log.read_text().splitlines() if f'"job":"{name}"' in line]

    def bodies() -> set[str]:
        return {m["body"] for m in mail(box)}

    try:
        wait_until(lambda: bodies() == {"tick"} and said("closed") and said("aloop"))
        (place / "closed.yml").chmod(0o600)
        define(box, "gone", every="1h", to="w", body="x")
        assert box("schedule", "rm", "gone").status == 0  # rings
        wait_until(lambda: bodies() == {"tick", "opened"})
        assert len(said("closed")) == len(said("aloop")) == 1
    finally:
        running.terminate()
        running.wait()


@contextlib.contextmanager
def supervised(loom: Loom) -> Iterator[tuple[int, Path]]:
    """A supervisor in the foreground: its pid, and what it says."""
    log = loom.place / "said"
    with log.open("wb") as stderr:
        command = [*COMMAND, "supervisor", "run"]
        running = subprocess.Popen(command, env=loom.env, stdin=subprocess.DEVNULL, stderr=stderr)
    try:
        yield running.pid, log
    finally:
        running.terminate()
        running.wait()


def test_a_log_that_cannot_be_opened_keeps_jobs_waiting_and_costs_nothing_until_it_can(box: Loom):
    log = box.home / "logs" / "supervisor.log"
    due(box, "tick", 10, every="1s", to="w", body="tick", overlap="allow")
    log.unlink()
    log.mkdir()
    with supervised(box) as (pid, said):
        wait_until(lambda: "Is a directory" in said.read_text())
        log.rmdir()
        wait_until(lambda: mail(box))
        held = [os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")]
        assert held.count(os.devnull) <= 1, "stdin"
        assert said.read_text().count("Is a directory") == 1


WAITS = """
import json, os, sys, time
open("asked", "w").close()
while not os.path.exists("goes-on"):
    time.sleep(0.02)
print(json.dumps({"events": [], "state": 1}))
"""


def test_a_slow_driver_keeps_no_other_job_waiting(box: Loom):
    place = box.home / "schedules"
    due(box, "a-slow", 10, every="1s", to="w", driver=box.program("waits.py", WAITS), timeout="1h")
    due(box, "b-fast", 10, every="1s", to="w", body="tick", overlap="allow")
    with supervised(box):
        wait_until((place / "asked").exists)
        count = len(mail(box))
        wait_until(lambda: len(mail(box)) >= count + 2)
        (place / "goes-on").touch()


def test_a_job_that_is_removed_while_others_are_served_is_no_fault(box: Loom):
    driver = box.program("waits.py", WAITS)
    due(box, "a-slow", 10, every="1s", to="w", driver=driver, timeout="1h")
    due(box, "b-gone", 10, every="1s", to="w", body="x")
    running = box.start("schedule", "run-due")
    wait_until((box.home / "schedules" / "asked").exists)
    assert box("schedule", "rm", "b-gone").status == 0
    (box.home / "schedules" / "goes-on").touch()
    _, said = running.communicate()
    assert (running.returncode, b"b-gone" in said) == (0, False), said
    assert box("schedule", "run-due", "b-gone").status == 66, "who names it is told"


def test_run_due_makes_no_home(loom: Loom):
    assert loom("schedule", "run-due").status == 66
    assert not loom.home.exists()


# -- heartbeats ------------------------------------------------------------------------------------------------------

COUNTS = """
import json, sys
state = json.load(sys.stdin)
seen = state.get("seen", 0)
events = [{"body": f"event {n}"} for n in range(seen, seen + 2)]
print(json.dumps({"events": events, "state": {"seen": seen + 2}}, indent=1))
"""


def test_events_become_messages_and_the_state_comes_back(box: Loom):
    define(box, "beat", every="1s", to="w", driver=box.program("counts.py", COUNTS))
    box("schedule", "run-due")
    assert again(box, "beat").status == again(box, "beat").status == 0
    assert [m["body"] for m in mail(box)] == ["event 0", "event 1", "event 2", "event 3"]
    assert box("schedule", "show", "beat", "--json").objects[0]["state"] == {"seen": 4}


BAD = {
    "hang": ("import os, time\nif not os.fork(): time.sleep(600)\ntime.sleep(600)", "did not end within 1 s"),
    "flood": ("while True: print('x' * 1000)", "was stopped: it printed more than 1048576 bytes"),
    "blanks": ("while True: print('\\n' * 1000)", "was stopped: it printed more than 1048576 bytes"),
    "long": ('print(\'{"events":[],"state":"\' + "x" * (1 << 20) + \'"}\')', "printed more than 1048576 bytes"),
    "spread": (
        "for n in range(1100): print(' ' * 1000)\nprint('{\"events\":[],\"state\":1}')",
        "more than 1048576 bytes",
    ),
    "many": ("print('{\"events\":[' + ','.join(['{\"body\":\"x\"}'] * 101) + '],\"state\":1}')", "101 events"),
    "rubbish": ("print('all is\\x1b well' + '.' * 99)", f"(char 0): 'all is\\x1b well{'.' * 68}'"),
    "stateless": ("print('{\"events\":[]}')", "lacks `state`"),
    "shapeless": ('print(\'{"events":[{"text":"x"}],"state":1}\')', "event 1 of the driver"),
    "nothing": ("", "printed no report: nothing"),
    "fails": ("import sys\nsys.exit('no network')", "exited 1: no network"),
    "dies": ("import os\nos.kill(os.getpid(), 9)", "was killed by signal 9"),
    "late": ('print(\'{"events":[],"state":1}\')\nraise SystemExit(3)', "exited 3"),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_driver_that_misbehaves_is_a_trouble_with_a_name_and_changes_nothing(box: Loom, kind: str):
    source, said = BAD[kind]
    define(box, "beat", every="1s", to="w", driver=box.program("bad.py", source), timeout="1s")
    box("schedule", "run-due")
    answer = again(box, "beat")
    assert answer.status == 1 and said in answer.err, answer
    shown = box("schedule", "show", "beat", "--json").objects[0]
    assert said in shown["trouble"] and shown["state"] == {} and mail(box) == []
    assert not [line for line in processes_of(box.home).values() if "bad.py" in line]
    box.program("bad.py", 'print(\'{"events":[{"body":"well again"}],"state":1}\')')
    assert again(box, "beat").status == 0
    assert [m["body"] for m in mail(box)] == ["well again"]
    assert box("schedule", "show", "beat", "--json").objects[0]["trouble"] == ""
