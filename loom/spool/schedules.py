"""Jobs and their slots as files: `schedules/<job>.yml`, written by people, and `schedules/<job>/`, written by loom.

What is due is decided in loom.core.schedule; here it is only read, kept and locked (docs/schedules.md).
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from loom.spool import fs, locks
from loom.spool.layout import Home, ScheduleDir
from loom.wire import ids, yamltext
from loom.wire import schedule as wire
from loom.wire.errors import Config, NotFound, Usage
from loom.wire.schedule import Job, Slots

MAX_BYTES = 1 << 20
MAX_SLOTS_BYTES = 16 << 20
_SUFFIX = ".yml"


def names(home: Home) -> list[str]:
    """All jobs, in name order: what ends in .yml and could be a job's name."""
    try:
        found = os.listdir(home.schedules)
    except (FileNotFoundError, NotADirectoryError):
        return []
    stems = (name.removesuffix(_SUFFIX) for name in found if name.endswith(_SUFFIX))
    return sorted(stem for stem in stems if ids.is_agent(stem))


def find(home: Home, name: str) -> ScheduleDir:
    """The job of this name. Raises Usage for what is no name, NotFound for an unknown one."""
    check_name(name)
    known = names(home)
    if name not in known:
        close = difflib.get_close_matches(name, known, 1)
        hint = f"did you mean {close[0]!r}?" if close else "list them with: loom schedule ls"
        raise NotFound(f"there is no schedule {name!r} in {home.path}", hint=hint)
    return home.schedule(name)


def check_name(name: str) -> str:
    """`name` when it is one for a job. Raises Usage."""
    if not ids.is_agent(name):
        raise Usage(
            f"schedule name {name!a} is not valid: a lower-case letter, then letters, digits and '-', at most 64",
            hint="for example: nightly-digest",
        )
    return name


def read(job: ScheduleDir) -> Job:
    """The job as it is defined now. Raises NotFound, and Config with file and line."""
    try:
        data = fs.read(job.definition, MAX_BYTES)
    except FileNotFoundError:
        raise NotFound(f"there is no schedule {job.name!r}") from None
    except (fs.NotRegular, fs.TooLarge) as error:
        raise Config(f"{job.definition} cannot be read: {error}") from None
    return parse(data, job.name, job.definition)


def parse(data: bytes, name: str, path: Path) -> Job:
    """The job that these bytes describe. Raises Config with file and line."""
    try:
        top = yamltext.read(data.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise Config(f"{path} is not UTF-8 at byte {error.start}") from None
    except yamltext.Unreadable as error:
        raise Config(f"{path}:{error.line}: {error}") from None
    if not isinstance(top.value, dict):
        raise Config(f"{path}:1: expected `key: value` lines", hint="see docs/schedules.md")
    where = {"": str(path)} | {key: f"{path}:{node.line}" for key, node in top.value.items()}
    return wire.job_of(name, {key: yamltext.flat(node) for key, node in top.value.items()}, where)


def text_of(values: Mapping[str, Any]) -> bytes:
    """A definition with these keys: YAML, one line each."""
    from loom.wire.jsontext import dumps

    return b"".join(f"{key}: ".encode() + dumps(value) + b"\n" for key, value in values.items())


def read_slots(job: ScheduleDir) -> Slots | None:
    """What is known of its slots; None: nothing yet. Raises Config when the file is damaged."""
    try:
        return wire.decode(fs.read(job.slots, MAX_SLOTS_BYTES), str(job.slots))
    except FileNotFoundError:
        return None
    except (fs.NotRegular, fs.TooLarge) as error:
        raise Config(f"{job.slots} cannot be read: {error}") from None


def write_slots(job: ScheduleDir, slots: Slots) -> None:
    """Durable and whole: after a power cut it is this or what was there before."""
    fs.replace(job.slots, wire.encode(slots))


def lock(job: ScheduleDir, *, wait: bool = False) -> locks.Lock | None:
    """Whoever holds it serves the job's slots; None when another process does."""
    fs.ensure_dir(job.path)
    return locks.acquire(job.lock, wait=wait)


def posted(home: Home) -> Iterator[str]:
    """Names of messages that a slot has led to and that may still be delivered: for gc."""
    for name in fs.names(home.schedules):
        if ids.is_agent(name):
            try:
                slots = read_slots(home.schedule(name))
            except Config:
                continue
            if slots is not None and slots.intent is not None:
                yield from (post.name for post in slots.intent.posts)
