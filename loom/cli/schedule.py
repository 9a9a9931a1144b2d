"""`loom schedule add | ls | show | rm | run-due`: jobs that recur (docs/schedules.md)."""

from __future__ import annotations

import os
import re
import time
import traceback
from itertools import islice
from pathlib import Path
from typing import Any

import click

from loom.cli import agent_state, model_names, printing
from loom.cli.firing import Outcome, serve
from loom.cli.firing import check as check_job
from loom.cli.following import take_up
from loom.cli.groups import LazyGroup
from loom.cli.homes import existing_home, look_into_home, open_home
from loom.cli.send import rouse
from loom.core import schedule as core
from loom.spool import fs, schedules, wake, zones
from loom.spool.home import disk_error
from loom.spool.layout import Home, ScheduleDir
from loom.wire import exits
from loom.wire.errors import LoomError, NotFound, TryLater, Usage
from loom.wire.record import record
from loom.wire.schedule import CATCH_UPS, OVERLAPS, Job, Slots, duration_text

cli = LazyGroup(
    "schedule",
    {
        "add": ("loom.cli.schedule:add", "a job that sends a message, asks a driver, or starts a goal"),
        "ls": ("loom.cli.schedule:ls", "all jobs, when each is due next, and what went wrong"),
        "show": ("loom.cli.schedule:show", "one job: its definition, its next slots, what is known of it"),
        "rm": ("loom.cli.schedule:rm", "remove jobs, with what is known of their slots"),
        "run-due": ("loom.cli.schedule:run_due", "start what is due now: for cron and timers"),
    },
    help="Jobs that recur, by cron lines or intervals. Each slot is served once, whoever looks.",
)
_UPCOMING = 5
_OPTIONS = "options"


# -- add -------------------------------------------------------------------------------------------------------------


@click.command("add")
@click.argument("name")
@click.option("--cron", metavar="LINE", help="Five fields: minute, hour, day of month, month, day of week.")
@click.option("--every", metavar="D", help="An interval: 30s, 5m, 2h, 1d.")
@click.option("--zone", metavar="Z", help="The time zone of --cron, as in Europe/Berlin; the machine's by default.")
@click.option("--to", metavar="AGENT", help="Send messages to this agent.")
@click.option("--body", metavar="TEXT", help="With --to: the text of the message.")
@click.option(
    "--driver", metavar="PROGRAM", help="With --to: a program that says what has happened since the last time."
)
@click.option("--thread", metavar="T", help="With --to: the conversation the messages belong to.")
@click.option("--timeout", metavar="D", help="How long the driver may take; 60s by default.")
@click.option("--goal", metavar="TEXT", help="Start this goal instead.")
@click.option("-w", "--workspace", metavar="DIR", help="With --goal: the directory it is about.")
@click.option("--model", metavar="M", help="With --goal: the model of every role.")
@click.option("--land", is_flag=True, help="With --goal: bring the result into DIR when it is done.")
@click.option("--overlap", type=click.Choice(OVERLAPS), help="When the one before is under way; skip by default.")
@click.option("--catch-up", type=click.Choice(CATCH_UPS), help="Of slots whose time has passed; last by default.")
@click.option("--grace", metavar="D", help="With --catch-up none: how late a slot may be; 5m by default.")
@click.option("--replace", is_flag=True, help="Give a job that exists this definition.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def add(name: str, replace: bool, as_json: bool, **given: Any) -> None:
    """Write the job NAME to schedules/NAME.yml. It is served by the supervisor, which is started if need be.

    Its first slot is the next one that comes. `loom schedule run-due` serves it too, from cron or a timer.
    """
    schedules.check_name(name)
    values = {key: value for key, value in given.items() if value}
    if values.get("cron"):
        values.setdefault("zone", zones.own_zone())
    for key in ("workspace", "driver"):
        if key in values and (key == "workspace" or "/" in values[key]):
            values[key] = str(Path(os.path.expanduser(values[key])).absolute())
    if "model" in values:
        values["model"] = model_names.whole_paths(values["model"])
    home = open_home()
    place = home.schedule(name)
    data = schedules.text_of(values)
    job = _checked(home, data, name)
    if replace:
        fs.replace(place.definition, data)
    elif not fs.publish(place.definition, data) and fs.read(place.definition) != data:
        raise Usage(f"there is a schedule {name!r} already, with other settings", hint="change it with: --replace")
    _first_look(place, job)
    _tell_supervisor(home)
    upcoming = _upcoming(job, _known(place))
    if as_json:
        printing.json_line({"v": 1, "schedule": name, "file": str(place.definition), "next": upcoming})
    else:
        printing.line(f"{name}: next at {_shown(upcoming[0], job)}")


def _checked(home: Home, data: bytes, name: str) -> Job:
    """The job in these bytes, when it could run. Raises Usage for what the options say wrong."""
    try:
        job = schedules.parse(data, name, Path(_OPTIONS))
        core.check(job, _OPTIONS)
        zones.offset_of(job.zone)
    except LoomError as error:  # a line of the options says nothing to a person
        raise Usage(re.sub(rf"^{_OPTIONS}(:\d+)?: ", "", str(error)), hint=error.hint) from None
    check_job(home, job)
    if job.to and not agent_state.is_served(agent := home.agent(job.to)):
        printing.note(agent_state.why_unserved(agent))
    return job


def _first_look(place: ScheduleDir, job: Job) -> None:
    """From now on its slots count, whoever comes first to serve them."""
    lock = schedules.lock(place)
    if lock is not None:  # else somebody is serving it
        with lock:
            known = schedules.read_slots(place)
            seen = core.seen(job, known, int(time.time()))
            if seen != known:
                schedules.write_slots(place, seen)


def _tell_supervisor(home: Home) -> None:
    from loom.cli.ensure import ensure_supervisor

    try:
        ensure_supervisor(home)
    except LoomError as error:
        printing.note(f"the job waits for `loom schedule run-due`, because {error.line()}")


# -- ls, show, rm ----------------------------------------------------------------------------------------------------


@record
class _Known:
    """A job as far as it can be read: `trouble` is what is wrong with it, or with its last slot."""

    name: str
    job: Job | None
    slots: Slots | None
    trouble: str


def _look(place: ScheduleDir) -> _Known:
    job, slots = None, None
    try:
        job = schedules.read(place)
        slots = schedules.read_slots(place)
        core.check(job, str(place.definition))
        zones.offset_of(job.zone)
    except (LoomError, OSError) as error:
        return _Known(place.name, None, slots, _line(error))
    return _Known(place.name, job, slots, str(slots.trouble.get("error", "")) if slots else "")


def _known(place: ScheduleDir) -> Slots | None:
    return _look(place).slots


def _upcoming(job: Job, slots: Slots | None) -> list[int]:
    after = max(int(time.time()), slots.after if slots else 0)
    return list(islice(core.slots_after(job, zones.offset_of(job.zone), after), _UPCOMING))


def _shown(slot: int, job: Job | None) -> str:
    """A slot on the wall of the job's zone."""
    zone = job.zone if job and job.cron else "UTC"
    wall = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(slot + zones.offset_of(zone)(slot)))
    return f"{wall} {zone}"


def _when(job: Job) -> str:
    return job.cron or f"every {duration_text(job.every_s)}"


def _what(job: Job) -> str:
    if job.goal:
        return f"goal: {job.goal}"
    return f"{Path(job.driver[0]).name} → {job.to}" if job.driver else f"message → {job.to}"


def _told(known: _Known) -> dict[str, Any]:
    job, slots = known.job, known.slots
    told: dict[str, Any] = {"name": known.name, "when": _when(job) if job else "", "what": _what(job) if job else ""}
    told["next"] = _upcoming(job, slots) if job else []
    told["last"] = dict(slots.last) if slots else {}
    told["held"] = list(slots.held) if slots else []
    return told | {"trouble": known.trouble}


@click.command("ls")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def ls(as_json: bool) -> None:
    """List all jobs: when they are due, what they do, when they did it last, and what went wrong."""
    home = look_into_home()
    found = [_listed(home.schedule(name)) for name in schedules.names(home)]
    if as_json:
        printing.json_line({"v": 1, "schedules": [told for told, _ in found]})
        return
    printing.table(("NAME", "WHEN", "NEXT", "LAST", "WHAT", "TROUBLE"), [row for _, row in found])


def _listed(place: ScheduleDir) -> tuple[dict[str, Any], tuple[str, ...]]:
    """A job as --json tells it and as a row. One that cannot be told has a row that says why: the others are listed."""
    known = _look(place)
    try:
        return _told(known), _row(known)
    except Exception as error:  # what its files say is odd in a way that nobody has thought of
        broken = _Known(place.name, None, None, f"it cannot be shown: {type(error).__name__}: {error}")
        return _told(broken), _row(broken)


def _row(known: _Known) -> tuple[str, ...]:
    told = _told(known)
    last = _shown(told["last"]["slot"], known.job) if told["last"] else "-"
    next_ = _shown(told["next"][0], known.job) if told["next"] else "-"
    return known.name, told["when"], next_, last, told["what"], known.trouble or "-"


@click.command("show")
@click.argument("name")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def show(name: str, as_json: bool) -> None:
    """Print one job: its definition, its next slots, and what is known of those before."""
    home = look_into_home()
    place = schedules.find(home, name)
    known = _look(place)
    told = _told(known)
    slots = known.slots
    if as_json:
        more = {"file": str(place.definition), "state": slots.state if slots else {}, "logs": str(place.logs)}
        printing.json_line({"v": 1, **told, **more})
        return
    printing.write(fs.read(place.definition).decode("utf-8", "replace"))
    for slot in told["next"]:
        printing.line(f"next: {_shown(slot, known.job)}")
    if told["last"]:
        names = told["last"].get("goal") or ", ".join(told["last"].get("messages", ()))
        printing.line(f"last: {_shown(told['last']['slot'], known.job)} {names}")
    for slot in told["held"]:
        printing.line(f"waits: {_shown(slot, known.job)}")
    if known.trouble:
        printing.line(f"trouble: {known.trouble}")
    printing.note(f"defined in {place.definition}, its log is in {place.logs}")


@click.command("rm")
@click.argument("names", nargs=-1, required=True, metavar="NAME…")
def rm(names: tuple[str, ...]) -> None:
    """Remove jobs and what is known of their slots. Messages and goals they led to stay."""
    home = existing_home()
    for place in [_removable(home, name) for name in names]:
        lock = schedules.lock(place)
        if lock is None:
            raise TryLater(f"{place.name} is being served just now", hint="try again")
        with lock:
            # Its slots first: a new job of this name must not go on with them. Its lock last: nobody serves it anew.
            if fs.remove(place.slots):
                fs.calls.fsync_dir(str(place.path))
            if fs.remove(place.definition):
                fs.calls.fsync_dir(str(home.schedules))
            fs.remove_tree(place.path)
    wake.ring(home.wake_fifo("supervisor"))


def _removable(home: Home, name: str) -> ScheduleDir:
    """The job of this name, or what one that was killed while it removed it has left. Raises as schedules.find."""
    place = home.schedule(schedules.check_name(name))
    return place if place.path.is_dir() else schedules.find(home, name)


# -- run-due ---------------------------------------------------------------------------------------------------------


@click.command("run-due")
@click.argument("names", nargs=-1, metavar="[JOB…]")
@click.option("--json", "as_json", is_flag=True, help="NDJSON: a line for each slot, then the result.")
def run_due(names: tuple[str, ...], as_json: bool) -> int:
    """Start what is due of the JOBs, or of all. May be called by anybody at any time: each slot is served once.

    Ends with 1 when a slot came to nothing, else with what the first job that could not be served ends with: 78 for a
    definition, 75 or 74 when it has to be tried again later. No job hinders another.
    """
    home = existing_home()
    told: list[Outcome] = []
    faults: list[_Fault] = []
    for name in names or schedules.names(home):
        try:
            if not serve(home, name, told):
                printing.detail(f"{name} is being served by another process")
        except NotFound as error:
            if names:
                faults.append(_fault_of(name, error, home))  # else it was removed since we looked
        except Exception as error:  # the others are served all the same
            faults.append(_fault_of(name, error, home))
    _rouse(home, told)
    for outcome in told:
        _say(outcome, as_json)
    for fault in faults:
        printing.error(f"{fault.message}; {fault.hint}" if fault.hint else fault.message)
    status = _status(told, faults)
    if as_json:
        errors = [{"type": fault.kind, "message": fault.message, "hint": fault.hint} for fault in faults]
        printing.json_line({"event": "result", "v": 1, "slots": len(told), "errors": errors, "exit_status": status})
    return status


@record
class _Fault:
    """Why a job could not be served to its end, and the exit status of that."""

    kind: str
    message: str
    hint: str
    exit_status: int


def _fault_of(name: str, error: Exception, home: Home) -> _Fault:
    if isinstance(error, OSError):
        error = disk_error(error, f"{name} could not be served", home.path)
    if isinstance(error, LoomError):
        return _Fault(error.kind, str(error), error.hint, error.exit_status)
    printing.detail("".join(traceback.format_exception(error)))
    text = f"{name} could not be served: {type(error).__name__}: {error}"
    hint = f"this is a bug of loom; nothing that was accepted is lost; see: loom -v schedule run-due {name}"
    return _Fault("bug", text, hint, exits.BUG)


def _rouse(home: Home, told: list[Outcome]) -> None:
    """See that what was started is worked on. What hinders that is told, but no failure: it waits."""
    sent = {outcome.job for outcome in told if outcome.what == "sent"}
    for name in sorted(sent):
        try:
            slots = schedules.read_slots(home.schedule(name))
            if slots is not None and slots.last.get("agent"):
                rouse(home, home.agent(slots.last["agent"]))
        except (LoomError, OSError) as error:
            printing.note(f"the message of {name} waits, because {_line(error)}")
    if any(outcome.what == "started" for outcome in told):
        try:
            take_up(home)
        except (LoomError, OSError) as error:
            printing.note(f"the goal waits, because {_line(error)}")


def _line(error: LoomError | OSError) -> str:
    return error.line() if isinstance(error, LoomError) else disk_error(error, "it cannot be looked at").line()


def _say(outcome: Outcome, as_json: bool) -> None:
    if as_json:
        told = {"event": outcome.what, "job": outcome.job, "slot": outcome.slot, "names": list(outcome.names)}
        printing.json_line({**told, "why": outcome.why})
    elif outcome.names:
        printing.write("".join(f"{outcome.job} {outcome.what} {name}\n" for name in outcome.names))
    else:
        slot = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(outcome.slot))
        say = printing.error if outcome.what == "failed" else printing.note
        say(f"{outcome.job} {outcome.what} {slot}{': ' if outcome.why else ''}{outcome.why}")


def _status(told: list[Outcome], faults: list[_Fault]) -> int:
    if any(outcome.what == "failed" for outcome in told):
        return exits.FAILED
    return faults[0].exit_status if faults else exits.DONE
