"""Serving the slots of one job: what is due is started, each slot once (docs/schedules.md, ADR-0024).

Whoever holds the job's lock serves it. What a slot leads to is an intent in slots.json before it happens, under names
that follow from job and slot; so it may be done again by whoever comes after a crash, and happens once:

    slots.json        message or goal     a crash here leaves
    held              -                   a slot that is chosen again; a driver is run again, with the state it had
    intent            -                   an intent, carried out by the next who comes
    intent            +                   the same: its names are taken already
    -                 +                   nothing to repair
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal

from loom.cli import model_names
from loom.cli.run import source_of, spec_of
from loom.core import schedule as core
from loom.proc import toolchild
from loom.spool import agents, bodies, goals, logs, mailbox, schedules, zones
from loom.spool.layout import Home, ScheduleDir
from loom.wire import ids
from loom.wire.errors import BadInput, Config, Disk, LoomError, NotFound, TryLater, WorkFailed
from loom.wire.goal import GoalSpec
from loom.wire.jsontext import Malformed, dumps, loads_object
from loom.wire.message import Message
from loom.wire.record import record
from loom.wire.schedule import Intent, Job, Post, Slots
from loom.wire.times import day_of, rfc3339
from loom.wire.yamltext import SHOWN_CHARS

SENDER = "schedule"
MAX_EVENTS = 100
MAX_REPORT_BYTES = 1 << 20
What = Literal["sent", "quiet", "started", "skipped", "missed", "failed", "waits"]


@record
class Outcome:
    """What became of a slot: the names of its messages or of its goal, or why there are none."""

    job: str
    slot: int
    what: What
    names: tuple[str, ...] = ()
    why: str = ""


def serve(home: Home, name: str, told: list[Outcome], now: Callable[[], float] = time.time) -> bool:
    """Start what is due of this job. False: another process is at it, and will do all that is due by now.

    told  gets what became of each slot as it is done: it holds what was done before something is raised, too
    Raises LoomError for a job that cannot be read, and TryLater, Disk or OSError when the machine refuses: then all is
    whole, and whoever comes next goes on.
    """
    place = schedules.find(home, name)
    lock = schedules.lock(place)
    if lock is None:
        return False
    with lock:
        service = _Service(home, place, schedules.read(place), told)
        try:
            service.run(now)
        finally:
            service.log.close()
        return True


def check(home: Home, job: Job) -> None:
    """Raise what would keep each slot of this job from leading to anything, as far as that can be known before."""
    if job.goal:
        _goal_spec(home, job, int(time.time()))
        return
    agents.find(home, job.to)
    if job.driver:
        _driver_command(home, job)


def _goal_spec(home: Home, job: Job, slot: int) -> GoalSpec:
    """The goal of a slot. Raises LoomError for a workspace or models that nobody could use.

    Whoever serves the slot does it from a directory of its own, so paths must be whole.
    """
    if job.workspace and not os.path.isabs(os.path.expanduser(job.workspace)):  # `~nobody/x` stays as it is
        raise Config(f"the workspace {job.workspace!r} is no whole path", hint="write it from / or ~/")
    if job.model and model_names.depends_on_directory(job.model):
        raise Config(f"the model {job.model!r} is given by a path that is not whole", hint="write it from /")
    return spec_of(
        home,
        ids.slot_goal(job.name, slot, day_of(slot * 1000).replace("-", "")),
        job.goal,
        slot * 1000,
        source=source_of(job.workspace or None, home.path.resolve()),
        model=job.model or None,
        land=job.land,
        by=f"{SENDER} {job.name}",
    )


def _driver_command(home: Home, job: Job) -> list[str]:
    """The driver with its arguments. Raises NotFound for what is no program."""
    program, *words = job.driver
    found = os.path.join(home.schedules, program) if "/" in program else shutil.which(program)
    if found is None or not os.access(found, os.X_OK) or os.path.isdir(found):
        raise NotFound(f"the driver {program!r} is no program that can be run", hint="correct `driver`, or: chmod +x")
    return [found, *words]


class _Service:
    """One job while its lock is held."""

    def __init__(self, home: Home, place: ScheduleDir, job: Job, outcomes: list[Outcome]) -> None:
        self.home, self.place, self.job = home, place, job
        core.check(job, str(place.definition))
        self.offset = zones.offset_of(job.zone)
        self.outcomes = outcomes
        self.log = logs.Log(place.logs, job=job.name)

    def run(self, now: Callable[[], float]) -> None:
        known = schedules.read_slots(self.place)
        if known is None:
            self._keep(core.seen(self.job, None, int(now())))
            return
        slots = self._carry_out(known)
        came = core.take_in(self.job, self.offset, slots, int(now()))
        if came.set_back:
            self.log.warning("clock_set_back", after=rfc3339(slots.after * 1_000_000))
        self._tell("missed", came.missed, "its time has passed")
        if came.slots != slots:
            slots = self._keep(came.slots)
        while slots.held:
            slots, goes_on = self._serve_next(slots)
            if not goes_on:
                return

    def _serve_next(self, slots: Slots) -> tuple[Slots, bool]:
        """One of the slots that wait; False: they wait for what is under way."""
        choice = core.choose(self.job, slots, self._is_under_way(slots))
        self._tell("skipped", choice.skipped, "the one before is under way")
        if choice.cancel:
            self._cancel(slots, choice.slots.held[-1])
        if choice.start is None:
            if choice.slots != slots:
                self._keep(choice.slots)
            self._tell("waits", choice.slots.held, "the one before is under way")
            return choice.slots, False
        try:
            intended = self._intend(choice.slots, choice.start)
        except (Disk, TryLater):
            raise
        except LoomError as error:
            return self._failed(choice.slots, choice.start, error), True
        return self._carry_out(self._keep(intended)), True

    # -- what a slot leads to ----------------------------------------------------------------------------------------

    def _intend(self, slots: Slots, slot: int) -> Slots:
        """The slots with the intent of this one. Raises LoomError when it leads to nothing."""
        job = self.job
        if job.goal:
            spec = _goal_spec(self.home, job, slot)
            return replace(slots, intent=Intent(slot, goal=spec.id), trouble={})
        agents.find(self.home, job.to)
        if not job.driver:
            post = Post(ids.slot_stem(job.name, slot), job.to, job.body, job.thread)
            return replace(slots, intent=Intent(slot, (post,)), trouble={})
        events, state = self._ask_driver(slots.state, slot)
        posts = tuple(
            Post(ids.slot_stem(job.name, slot, part), job.to, event["body"], event.get("thread", job.thread))
            for part, event in enumerate(events, 1)
        )
        if not posts:  # nothing to carry out: the state is kept with the slot
            self.outcomes.append(Outcome(job.name, slot, "quiet"))
        return replace(slots, intent=Intent(slot, posts) if posts else None, state=state, trouble={})

    def _carry_out(self, slots: Slots) -> Slots:
        """Do what is intended, unless it is done; the slots without the intent, durable."""
        intent = slots.intent
        if intent is None:
            return slots
        try:
            for post in intent.posts:
                self._deliver(post, intent.slot)
            if intent.goal:
                self._start_goal(intent.goal, intent.slot)
        except (Disk, TryLater):
            raise
        except (LoomError, mailbox.Conflict) as error:
            trouble = error if isinstance(error, LoomError) else BadInput(str(error))
            return self._failed(replace(slots, intent=None), intent.slot, trouble)
        names = (intent.goal,) if intent.goal else tuple(post.name for post in intent.posts)
        last: dict[str, Any] = {"slot": intent.slot}
        last |= {"goal": intent.goal} if intent.goal else {"agent": self.job.to, "messages": list(names)}
        kept = self._keep(replace(slots, intent=None, last=last))
        what: What = "started" if intent.goal else "sent"
        self.outcomes.append(Outcome(self.job.name, intent.slot, what, names))
        self.log.info(what, slot=rfc3339(intent.slot * 1_000_000), names=list(names))
        return kept

    def _deliver(self, post: Post, slot: int) -> None:
        agent = agents.find(self.home, post.to)
        message = Message(ids.ulid_of(post.name), SENDER, slot * 1000, post.body, thread=post.thread)
        mailbox.deliver(agent, post.name, bodies.encode(self.home.blobs, message))

    def _start_goal(self, name: str, slot: int) -> None:
        if self.home.goal(name).document.exists():
            goals.settle(
                self.home
            )  # made by whoever died before its intent was taken away, and perhaps before its sync
        else:
            goals.create(self.home, _goal_spec(self.home, self.job, slot))

    # -- overlap -----------------------------------------------------------------------------------------------------

    def _is_under_way(self, slots: Slots) -> bool:
        """Whether the last occurrence has not ended: a goal that is not over, a message that is not finished."""
        if name := slots.last.get("goal"):
            return goals.is_live(self.home, name) or (
                goals.is_paused(self.home, name) and self.home.goal(name).document.exists()
            )
        if self.job.driver or not ids.is_agent(str(slots.last.get("agent", ""))):
            return False
        box = self.home.agent(slots.last["agent"])
        found = (mailbox.find(box, stem) for stem in slots.last.get("messages", ()))
        return any(path is not None and path.parent in (box.inbox, box.in_progress) for path in found)

    def _cancel(self, slots: Slots, slot: int) -> None:
        goal = self.home.goal(slots.last["goal"])
        goals.control(self.home, goal, ids.slot_stem(self.job.name, slot), "cancel", SENDER, {})

    # -- drivers -----------------------------------------------------------------------------------------------------

    def _ask_driver(self, state: Any, slot: int) -> tuple[list[dict[str, str]], Any]:
        """(events, state) as the driver reports them. Raises WorkFailed or Config for what is no report."""
        job = self.job
        printed = bytearray()

        def on_line(line: bytes) -> str:
            printed.extend(line + b"\n")
            return ""

        try:
            ended = toolchild.run(
                _driver_command(self.home, job),
                dumps(state) + b"\n",
                env=toolchild.environment(
                    {"LOOM_HOME": str(self.home.path), "LOOM_JOB": job.name, "LOOM_SLOT": str(slot)}
                ),
                cwd=str(self.home.schedules),
                timeout_s=job.timeout_s,
                max_output_bytes=MAX_REPORT_BYTES,
                most_in_all_bytes=MAX_REPORT_BYTES,
                on_line=on_line,
            )
        except toolchild.NotStarted as error:
            raise Config(f"the driver of {job.name} could not be started: {error}") from None
        said = [line for line in ended.stderr.decode("utf-8", "replace").splitlines() if line.strip()]
        words = f": {said[-1].strip()[:300]}" if said else ""
        if ended.timed_out:
            raise WorkFailed(f"the driver did not end within {job.timeout_s} s and was killed{words}", kind="timeout")
        if ended.fault:
            raise WorkFailed(f"the driver was stopped: {ended.fault}{words}")
        if ended.exit_code:
            how = f"was killed by signal {-ended.exit_code}" if ended.exit_code < 0 else f"exited {ended.exit_code}"
            raise WorkFailed(f"the driver {how}{words}")
        return report_of(bytes(printed) + (ended.last_line or b""))

    # -- keeping and telling -----------------------------------------------------------------------------------------

    def _keep(self, slots: Slots) -> Slots:
        schedules.write_slots(self.place, slots)
        return slots

    def _failed(self, slots: Slots, slot: int, error: LoomError) -> Slots:
        """This slot came to nothing; the next one tries anew."""
        kept = self._keep(replace(slots, trouble={"slot": slot, "error": error.line()}))
        self.outcomes.append(Outcome(self.job.name, slot, "failed", why=error.line()))
        self.log.error("failed", slot=rfc3339(slot * 1_000_000), error=error.line(), error_type=error.kind)
        return kept

    def _tell(self, what: What, slots: tuple[int, ...], why: str) -> None:
        for slot in slots:
            self.outcomes.append(Outcome(self.job.name, slot, what, why=why))
            if what != "waits":
                self.log.info(what, slot=rfc3339(slot * 1_000_000), why=why)


def report_of(data: bytes) -> tuple[list[dict[str, str]], Any]:
    """(events, state) of a driver's output. Raises WorkFailed that says what is wrong with it."""
    try:
        report = loads_object(data.strip())
    except Malformed as error:
        begin = data.strip()[: 4 * SHOWN_CHARS].decode("utf-8", "replace")  # no character has more than 4 bytes
        what = f"{error}: {begin[:SHOWN_CHARS]!r}" if begin else "nothing"
        raise WorkFailed(f"the driver printed no report: {what}", kind="bad_report") from None
    if unknown := sorted(set(report) - {"events", "state"}):
        raise WorkFailed(f"the driver's report has a field {unknown[0][:40]!r}", kind="bad_report")
    if "state" not in report or not isinstance(report.get("events"), list):
        raise WorkFailed("the driver's report lacks `state`, or a list of `events`", kind="bad_report")
    events = report["events"]
    if len(events) > MAX_EVENTS:
        raise WorkFailed(f"the driver reported {len(events)} events, {MAX_EVENTS} are allowed", kind="flood")
    for number, event in enumerate(events, 1):
        whole = isinstance(event, dict) and set(event) <= {"body", "thread"} and isinstance(event.get("body"), str)
        thread = event.get("thread", "main") if whole else None
        if not whole or not event["body"] or not isinstance(thread, str) or not ids.is_thread(thread):
            raise WorkFailed(f"event {number} of the driver is no {{body, thread?}}", kind="bad_report")
    return events, report["state"]
