"""Three jobs of one home, served and killed there: a message, a heartbeat with its driver, a goal.

The outside world is the driver: it counts, from the state that it is given, and never says the same again. An event
that was lost, or told twice, leaves a gap in its numbers, or one of them twice; one that was kept without its state,
or the other way round, does not fit the state.
"""

from __future__ import annotations

import sys
from pathlib import Path

from crash_cases import AGENT, tidy
from harness import Case

from loom.cli import firing
from loom.spool import agents, fs, goals, mailbox, schedules
from loom.spool.layout import Home
from loom.wire import ids, message
from loom.wire.agent import AgentSpec
from loom.wire.schedule import Slots
from loom.wire.times import day_of

HOUR = 3600
T0 = 1_800_000_000 // HOUR * HOUR
JOBS = {
    "beat": f"every: 1h\nto: {AGENT}\ndriver: ./count\n",
    "goal": "every: 1h\ngoal: do something\nmodel: builtin\noverlap: allow\n",
    "mail": f"every: 1h\nto: {AGENT}\nbody: hello\noverlap: allow\ncatch_up: all\n",
}
COUNT = """
import json, os, sys
book = os.path.join(os.environ["LOOM_HOME"], "asked")
with open(book, "a") as file:
    file.write("x")
asked, seen = os.path.getsize(book), json.load(sys.stdin).get("seen", 0)
events = [{"body": f"{seen + n} when asked for the {asked}. time"} for n in (0, 1)]
print(json.dumps({"events": events, "state": {"seen": seen + 2, "asked": asked}}))
"""
FIRST, LAST = 2, 4  # hours after T0: how late it is when the workflow and the recovery look


def setup(root: Path) -> None:
    home = Home(root)
    agents.create(home, AgentSpec(name=AGENT, model="builtin/echo"), "", "down")
    fs.ensure_dir(home.goals)
    fs.ensure_dir(home.schedules)
    (home.schedules / "count").write_text(f"#!{sys.executable}\n{COUNT}")
    (home.schedules / "count").chmod(0o755)
    for name, text in JOBS.items():
        place = home.schedule(name)
        place.definition.write_text(text)
        fs.ensure_dir(place.path)
        schedules.write_slots(place, Slots(T0))


def served_at(hours: int):
    def serve(root: Path) -> None:
        for name in JOBS:
            firing.serve(Home(root), name, [], lambda: T0 + hours * HOUR + 5.0)

    return serve


def recover(root: Path) -> None:
    served_at(FIRST)(root)
    served_at(LAST)(root)


def whole(root: Path) -> None:
    """True at every moment: no message is torn, and none is there twice or under a name that no slot has."""
    tidy(root)
    box = Home(root).agent(AGENT)
    for path in box.inbox.glob("*.msg"):
        message.decode(mailbox.read_message(path), path.stem)


def each_slot_once(root: Path) -> None:
    whole(root)
    home = Home(root)
    there = {path.stem: path for path in home.agent(AGENT).inbox.glob("*.msg")}
    hourly = [T0 + n * HOUR for n in range(1, LAST + 1)]
    mail = {ids.slot_stem("mail", slot) for slot in hourly}
    # Of the slots that nobody saw in their time only the newest is served: these two.
    beats = {ids.slot_stem("beat", T0 + n * HOUR, part) for n in (FIRST, LAST) for part in (1, 2)}
    assert there.keys() == mail | beats, (
        f"lost {sorted((mail | beats) - there.keys())}, more {sorted(there.keys() - mail - beats)}"
    )
    told = [message.decode(mailbox.read_message(there[stem]), stem).body for stem in sorted(beats)]
    assert [text.split()[0] for text in told] == ["0", "1", "2", "3"], told
    made = {ids.slot_goal("goal", s, day_of(s * 1000).replace("-", "")) for s in (T0 + FIRST * HOUR, T0 + LAST * HOUR)}
    assert set(goals.names(home)) == made
    for goal in made:
        assert goals.read_spec(home.goal(goal)).text == "do something"
    for name in JOBS:
        slots = schedules.read_slots(home.schedule(name))
        assert slots is not None and slots.intent is None and not slots.held and not slots.trouble, slots
        if name == "beat":
            assert told[-1] == f"3 when asked for the {slots.state['asked']}. time"
            assert told[-2] == f"2 when asked for the {slots.state['asked']}. time"


SCHEDULE = Case("schedule", setup, served_at(FIRST), recover, each_slot_once, whole, served_at(FIRST), "schedule")
