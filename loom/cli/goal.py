"""`loom goal …`: list, show and follow goals, and ask the router to pause, resume, cancel or land one."""

from __future__ import annotations

import os
import time
from typing import Any

import click

from loom.cli import printing, progress
from loom.cli.following import Follower, damaged, take_up
from loom.cli.groups import LazyGroup
from loom.cli.homes import existing_home, look_into_home
from loom.core.goal import reduce as reducing
from loom.core.goal.state import GoalState, SubState
from loom.spool import blobs, fs, goals, journal
from loom.spool.layout import GoalDir, Home
from loom.wire import exits, ids
from loom.wire.errors import Config, NotFound, WorkFailed
from loom.wire.event import Event

ANSWER_S = 30.0
_HERE = "loom.cli.goal"

cli = LazyGroup(
    "goal",
    {
        "ps": (f"{_HERE}:ps", "list goals that are not over, with -a all"),
        "show": (f"{_HERE}:show", "one goal: plan, subtasks, where things lie"),
        "log": (f"{_HERE}:log", "what happened, event by event"),
        "pause": (f"{_HERE}:pause", "start nothing more; what is under way is finished"),
        "resume": (f"{_HERE}:resume", "go on with a paused goal"),
        "cancel": (f"{_HERE}:cancel", "end a goal for good"),
        "land": (f"{_HERE}:land", "bring a finished goal's result into its workspace"),
        "audit": (f"{_HERE}:audit", "check the journal: chain, noted head, payloads"),
    },
    "List, follow, pause, cancel and land goals.",
)


def _state(home: Home, goal: GoalDir) -> GoalState | None:
    events = _events(home, goal)
    try:
        return reducing.fold(events) if events else None
    except (ValueError, KeyError, TypeError) as error:
        raise damaged(goal, error) from None


def _events(home: Home, goal: GoalDir) -> list[Event]:
    try:
        return list(goals.events(home, goal))
    except (journal.JournalDamaged, blobs.BlobDamaged, fs.NotRegular, OSError, ValueError) as error:
        raise damaged(goal, error) from None


def _summary(home: Home, goal: GoalDir) -> dict[str, Any]:
    try:
        state = _state(home, goal)
        text = goals.read_spec(goal).text if state is None else state.spec.text
    except (Config, NotFound) as error:
        return {"goal": goal.id, "status": "damaged", "reason": str(error), "done": 0, "subtasks": 0, "text": ""}
    subs = state.subtasks.values() if state is not None else ()
    return {
        "goal": goal.id,
        "status": state.status if state is not None else "new",
        "reason": state.reason if state is not None else "",
        "done": sum(1 for s in subs if s.status == "applied"),
        "subtasks": len(subs),
        "text": text,
    }


@click.command("ps")
@click.option("-a", "--all", "everything", is_flag=True, help="Also goals that are over.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def ps(everything: bool, as_json: bool) -> int:
    """List goals."""
    home = look_into_home()
    names = [n for n in goals.names(home) if everything or goals.is_live(home, n) or goals.is_paused(home, n)]
    names.sort(key=lambda name: goals.made_at(home.goal(name)))
    rows = [_summary(home, home.goal(name)) for name in names]
    if as_json:
        printing.json_line({"v": 1, "goals": rows})
        return exits.DONE
    printing.table(
        ("GOAL", "STATUS", "DONE", "TEXT"),
        [(r["goal"], r["status"], f"{r['done']}/{r['subtasks']}", r["text"][:60]) for r in rows],
    )
    return exits.DONE


@click.command("show")
@click.argument("goal")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def show(goal: str, as_json: bool) -> int:
    """Show one goal. GOAL may be the beginning or the end of its id."""
    home = look_into_home()
    directory = goals.find(home, goal)
    told = _summary(home, directory)
    state = _state(home, directory) if told["status"] not in ("damaged", "new") else None
    subs = state.subtasks.values() if state is not None else ()
    rows = [
        {
            "id": s.spec.id,
            "status": s.status,
            "attempt": s.attempt + 1,
            "confidence": s.confidence,
            "depends_on": list(s.spec.depends_on),
            "deliverables": list(s.spec.deliverables),
            "reason": s.reason,
        }
        for s in subs
    ]
    if as_json:
        more = {"usage": dict(state.usage), "landing": state.landing} if state is not None else {}
        printing.json_line({"v": 1, **told, **more, "plan": rows, "path": str(directory.path)})
        return exits.DONE
    printing.line(
        printing.escaped(f"{told['goal']}: {told['status']}{': ' + told['reason'] if told['reason'] else ''}")
    )
    printing.line(printing.escaped(f"  {told['text']}"))
    if state is not None:
        spec = state.spec
        printing.line(printing.escaped(f"  workspace  {spec.source or '(none)'}{_LANDED.get(state.landing, '')}"))
        printing.line(f"  models     {', '.join(f'{r} {m}' for r, m in spec.models.items())}")
        printing.line(f"  tokens     {', '.join(f'{n} {k}' for k, n in state.usage.items()) or 'none'}")
    printing.line(f"  files      {directory.path}")
    printing.table(
        ("SUBTASK", "STATUS", "ATTEMPT", "CONFIDENCE", "WHY"),
        [
            (s.spec.id, s.status, str(s.attempt + 1), "" if s.confidence is None else str(s.confidence), _why(s))
            for s in subs
        ],
    )
    return exits.DONE


_LANDED = {"landed": ", landed", "conflict": ", landing refused: nothing was written"}


def _why(sub: SubState) -> str:
    """The reason, where there is something to explain."""
    return sub.reason[:120] if sub.status not in ("applied", "waiting") else ""


@click.command("log")
@click.argument("goal")
@click.option("-f", "--follow", "following", is_flag=True, help="Go on as things happen, until the goal is over.")
@click.option("--json", "as_json", is_flag=True, help="The events themselves, one a line.")
def log(goal: str, following: bool, as_json: bool) -> int:
    """Show what happened to a goal."""
    home = look_into_home()
    directory = goals.find(home, goal)
    if following:
        follower = Follower(home, directory)
        try:
            for event in follower.events():
                _show_event(event, as_json)
                assert follower.state is not None
                if event.seq == follower.state.seq and follower.is_over:
                    return exits.DONE
        finally:
            follower.close()
    for event in _events(home, directory):
        _show_event(event, as_json)
    return exits.DONE


def _show_event(event: Event, as_json: bool) -> None:
    if as_json:
        fields = {"seq": event.seq, "ts": event.ts, "type": event.type, "cause": event.cause}
        printing.json_line({**fields, "actor": dict(event.actor), "data": dict(event.data)})
        return
    actor = f"{event.actor.get('agent')}[{event.actor.get('pid')}]"
    told = f"{event.seq:>5} {event.ts[11:23]} {actor:<22} {event.type:<18} {_detail(event)}"
    printing.line(printing.escaped(told.rstrip()))


def _detail(event: Event) -> str:
    data = event.data
    words = [str(data[k]) for k in ("kind", "subtask", "agent", "reason") if data.get(k)]
    if event.type == "order.reported":
        error = data.get("error") or {}
        words = [str(data["order"]), "ok" if data["ok"] else f"failed: {error.get('message', '')}"]
    if event.type in ("check.recorded", "verdict.recorded"):
        words.append("passed" if data["passed"] else "not passed")
    if event.type == "plan.accepted":
        words.append(f"{len(data['subtasks'])} subtasks")
    if event.type == "goal.landed":
        changed = f"refused: {', '.join(data['conflicts'][:5])}"
        words.append(f"{len(data['written'])} files" if data["ok"] else changed)
    if reasons := data.get("reasons"):
        words.append(str(reasons[0]))
    return " ".join(" ".join(words).split())[:160]


def _ask(goal: str, verb: str, until: tuple[str, ...]) -> tuple[GoalState, Event]:
    """Drop a request and wait for what the router makes of it. Raises WorkFailed when it was refused."""
    home = existing_home()
    directory = goals.find(home, goal)
    stem = ids.message_stem(time.time_ns() // 1_000_000, os.urandom(10))
    goals.control(home, directory, stem, verb, str(os.getuid()), {})
    take_up(home)
    follower = Follower(home, directory)
    seen = False
    try:
        for event in follower.events(time.monotonic() + ANSWER_S):
            if event.cause == stem:
                if event.type == "invariant.refused":
                    raise WorkFailed(f"{directory.id}: {event.data['reasons'][0]}")
                seen = True
            if seen and event.type in until:
                assert follower.state is not None
                return follower.state, event
    finally:
        follower.close()
    raise AssertionError("a follower does not end by itself")


@click.command("pause")
@click.argument("goal")
def pause(goal: str) -> int:
    """Start nothing more; orders under way are finished and kept."""
    state, _ = _ask(goal, "pause", ("goal.paused",))
    printing.note(f"paused; go on with: loom goal resume {state.spec.id}")
    return exits.DONE


@click.command("resume")
@click.argument("goal")
def resume(goal: str) -> int:
    """Go on with a paused goal."""
    state, _ = _ask(goal, "resume", ("goal.resumed",))
    printing.note(f"resumed; follow it with: loom goal log -f {state.spec.id}")
    return exits.DONE


@click.command("cancel")
@click.argument("goal")
def cancel(goal: str) -> int:
    """End a goal for good. What it did so far stays in its own workspace."""
    state, _ = _ask(goal, "cancel", ("goal.cancelled",))
    printing.note(f"cancelled {state.spec.id}")
    return exits.DONE


@click.command("land")
@click.argument("goal")
def land(goal: str) -> int:
    """Bring the result into the workspace the goal was started on; refused when files changed there meanwhile."""
    state, _ = _ask(goal, "land", ("goal.landed",))
    if state.landing != "landed":
        again = f"loom goal land {state.spec.id}"
        changed = f"nothing was written; move your changes aside, then: {again}"
        failed = f"it may have been done in part and can be repeated: {again}"
        raise WorkFailed(progress.landed(state), hint=failed if state.landed.get("reason") else changed)
    printing.note(progress.landed(state))
    return exits.DONE


@click.command("audit")
@click.argument("goal")
def audit(goal: str) -> int:
    """Check that a goal's journal is whole: every record's hash, the chain, the noted head, payloads in blobs."""
    home = look_into_home()
    directory = goals.find(home, goal)
    faults = journal.audit(directory.journal, home.blobs, home.head(directory.id))
    if faults:
        raise WorkFailed(f"{directory.id}: {faults[0]}")
    printing.line(f"{directory.id}: {len(_events(home, directory))} records, chain and head intact")
    return exits.DONE
