"""Jobs and what is known of their slots: `schedules/<job>.yml` and `schedules/<job>/slots.json` (docs/schedules.md)."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from typing import Any

from loom.wire import ids
from loom.wire.errors import Config, LoomError
from loom.wire.jsontext import Malformed, dumps, loads_object
from loom.wire.record import field, record
from loom.wire.yamltext import SHOWN_CHARS, shown

VERSION = 1
OVERLAPS = ("skip", "queue", "replace", "allow")
CATCH_UPS = ("last", "none", "all")
_UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
_DURATION = re.compile(r"([0-9]{1,9})([smhd])")


@record
class Job:
    """One job: when, what, and what happens when slots come late or too close. Durations are whole seconds.

    cron, every_s   one of them; `zone` is the time zone of cron
    to              the agent that gets messages: `body`, or what the `driver`, a command line, reports
    goal            the goal that is started instead, with its workspace and model
    grace_s         with catch_up `none`: how late a slot may still be taken
    timeout_s       how long a driver may take
    """

    name: str
    cron: str = ""
    every_s: int = 0
    zone: str = "UTC"
    to: str = ""
    body: str = ""
    thread: str = ""
    driver: tuple[str, ...] = ()
    timeout_s: int = 60
    goal: str = ""
    workspace: str = ""
    model: str = ""
    land: bool = False
    overlap: str = "skip"
    catch_up: str = "last"
    grace_s: int = 300

    @property
    def timing(self) -> str:
        """When it is due, as one text: another text, other slots."""
        return f"{self.cron} {self.zone}" if self.cron else f"every {duration_text(self.every_s)}"


_TEXTS = ("cron", "zone", "to", "body", "thread", "goal", "workspace", "model", "overlap", "catch_up")
_DURATIONS = {"every": "every_s", "timeout": "timeout_s", "grace": "grace_s"}
KEYS = (*_TEXTS, *_DURATIONS, "driver", "land")


def duration_s(text: object) -> int:
    """`30s`, `5m`, `2h`, `1d` as seconds. Raises ValueError."""
    match = _DURATION.fullmatch(text) if isinstance(text, str) else None
    if match is None:
        raise ValueError(f"{shown(text)} is no duration; write 30s, 5m, 2h or 1d")
    if not int(match[1]):
        raise ValueError(f"{shown(text)} is too short; the least is 1s")
    return int(match[1]) * _UNITS_S[match[2]]


def duration_text(seconds: int) -> str:
    """The inverse of duration_s, in the largest unit that is exact."""
    unit = next(unit for unit, size in reversed(_UNITS_S.items()) if seconds % size == 0)
    return f"{seconds // _UNITS_S[unit]}{unit}"


def job_of(name: str, values: Mapping[str, Any], where: Mapping[str, str]) -> Job:
    """The job that these keys describe. Raises Config that names the place of the key (`where`; '' for the file)."""

    def wrong(key: str, text: str, hint: str = "") -> Config:
        return Config(f"{where.get(key, where[''])}: {text}", hint=hint)

    fields: dict[str, Any] = {"name": name}
    for key, value in values.items():
        if key not in KEYS:
            close = difflib.get_close_matches(str(key)[:50], KEYS, 1, 0.5)
            hint = f"did you mean {close[0]!r}?" if close else f"there are: {', '.join(KEYS)}"
            raise wrong(key, f"a job has no {str(key)[:50]!r}", hint)
        try:
            fields[_DURATIONS.get(key, key)] = _value(key, value)
        except ValueError as error:
            raise wrong(key, f"{key}: {error}") from None
    job = Job(**fields)
    for key, text in _faults(job):
        raise wrong(key, text, "see docs/schedules.md")
    return job


def _value(key: str, value: object) -> object:
    if key in _DURATIONS:
        return duration_s(value)
    if key == "land":
        if not isinstance(value, bool):
            raise ValueError(f"{shown(value)} is neither true nor false")
        return value
    if key == "driver":
        words = [value] if isinstance(value, str) else value
        if not isinstance(words, list) or not words or not all(isinstance(w, str) and w for w in words):
            raise ValueError("it is a program, or a list of a program and its arguments")
        if any("\0" in word for word in words):
            raise ValueError("it holds a NUL")
        return tuple(words)
    if not isinstance(value, str):
        raise ValueError(f"{shown(value)} is no text; put it into quotes")
    if key == "workspace" and "\0" in value:
        raise ValueError("it holds a NUL")
    choices = {"overlap": OVERLAPS, "catch_up": CATCH_UPS}.get(key)
    if choices and value not in choices:
        raise ValueError(f"{shown(value)} is not one of {', '.join(choices)}")
    return value


def _faults(job: Job) -> list[tuple[str, str]]:
    """(key, what is wrong) of keys that do not go together."""
    found = []
    if bool(job.cron) == bool(job.every_s):
        found.append(("cron", "a job has either `cron` or `every`"))
    if bool(job.to) == bool(job.goal):
        found.append(("to", "a job has either `to`, for messages, or `goal`"))
    if job.to and not ids.is_agent(job.to):
        found.append(("to", f"{job.to[:SHOWN_CHARS]!a} is no agent's name"))
    if job.thread and not ids.is_thread(job.thread):
        found.append(("thread", f"{job.thread[:SHOWN_CHARS]!a} is no thread's name"))
    if job.to and bool(job.body) == bool(job.driver):
        found.append(("body", "a job with `to` has either `body` or `driver`"))
    if job.goal:
        found += [(key, f"`{key}` goes with `to`") for key in ("body", "thread", "driver") if getattr(job, key)]
    else:
        found += [(key, f"`{key}` goes with `goal`") for key in ("workspace", "model", "land") if getattr(job, key)]
    if job.overlap == "replace" and not job.goal:
        found.append(("overlap", "`replace` goes with `goal`: a message that was accepted is not taken back"))
    if job.driver and job.overlap != "skip":
        found.append(("overlap", "a driver runs once at a time; `overlap` goes with `body` and `goal`"))
    if job.land and not job.workspace:
        found.append(("land", "`land` needs a `workspace` to land in"))
    return found


# -- what is known of its slots ----------------------------------------------------------------------------------


@record
class Post:
    """One message on its way: under this name, with this text, to this agent."""

    name: str
    to: str
    body: str
    thread: str = ""


@record
class Intent:
    """What a slot leads to, written down before it happens: messages, or a goal."""

    slot: int
    posts: tuple[Post, ...] = ()
    goal: str = ""


@record
class Slots:
    """What is known of a job's slots, all of which are Unix seconds.

    after    every slot up to here has been dealt with
    handled  the newest of these, in the order in which they came: against a clock that is set back
    held     slots that wait for an earlier one to end
    intent   what is to happen, unless it has
    last     what happened last: {slot, agent, message} or {slot, goal}
    state    what a driver said last; {} before it said anything
    trouble  why the last slot came to nothing: {slot, error}; empty when it did not
    timing   the job's when these were its slots; "" from a loom that did not say so
    """

    after: int
    handled: tuple[int, ...] = ()
    held: tuple[int, ...] = ()
    intent: Intent | None = None
    last: Mapping[str, Any] = field(default_factory=dict)
    state: Any = field(default_factory=dict)
    trouble: Mapping[str, Any] = field(default_factory=dict)
    timing: str = ""


def encode(slots: Slots) -> bytes:
    """The bytes of slots.json. Raises ValueError for a state that JSON cannot say."""
    intent = slots.intent
    told: dict[str, Any] = {"v": VERSION, "after": slots.after, "handled": slots.handled, "held": slots.held}
    if intent is not None:
        posts = [{"name": p.name, "to": p.to, "body": p.body, "thread": p.thread} for p in intent.posts]
        told["intent"] = {"slot": intent.slot, "posts": posts, "goal": intent.goal}
    told |= {"last": dict(slots.last), "state": slots.state, "trouble": dict(slots.trouble)}
    if slots.timing:
        told["timing"] = slots.timing
    return dumps(told) + b"\n"


def decode(data: bytes, where: str) -> Slots:
    """The inverse of encode. Raises Config naming `where`."""
    try:
        raw = loads_object(data)
        if raw["v"] != VERSION:
            raise ValueError(f"version {raw['v']!r}, this loom reads {VERSION}")
        told = raw.get("intent")
        intent = (
            None if told is None else Intent(int(told["slot"]), tuple(Post(**p) for p in told["posts"]), told["goal"])
        )
        return Slots(
            after=int(raw["after"]),
            handled=tuple(map(int, raw["handled"])),
            held=tuple(map(int, raw["held"])),
            intent=intent,
            last=dict(raw["last"]),
            state=raw["state"],
            trouble=dict(raw["trouble"]),
            timing=str(raw.get("timing", "")),
        )
    except (Malformed, KeyError, TypeError, ValueError, LoomError) as error:
        hint = "without the file the job begins anew, with its next slot"
        raise Config(f"{where} cannot be read: {error}", hint=hint) from None
