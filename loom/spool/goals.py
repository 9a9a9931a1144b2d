"""Goals on disk: made, listed, folded, controlled (docs/goals.md, ADR-0012).

Everybody may read a goal's journal and drop a file into `control/`; only the router appends. `resting` is a
derived marker: nothing happens here until somebody asks, so nobody need look into the journal.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from loom.spool import fs, journal
from loom.spool.layout import GoalDir, Home
from loom.wire import goal as wire
from loom.wire import ids
from loom.wire.errors import Config, NotFound
from loom.wire.event import Event
from loom.wire.goal import GoalSpec
from loom.wire.jsontext import Malformed, dumps, loads_object

VERBS = ("pause", "resume", "cancel", "land")
MAX_CONTROL_BYTES = 64 << 10


def create(home: Home, spec: GoalSpec) -> GoalDir:
    """Make a goal, whole or not at all: it is built in goals/.tmp/ and renamed into place."""
    goal = home.goal(spec.id)
    building = home.goals / fs.TMP / spec.id
    fs.remove_tree(building)
    fs.ensure_dir(building / "control" / fs.TMP)
    fs.ensure_dir(building / fs.TMP)
    fs.publish(building / goal.document.name, wire.encode(spec))
    fs.calls.rename_noreplace(str(building), str(goal.path))
    fs.calls.fsync_dir(str(home.goals))
    return goal


def settle(home: Home) -> None:
    """Make the names of all goals durable: whoever made one may have died between its rename and its sync."""
    fs.calls.fsync_dir(str(home.goals))


def names(home: Home) -> list[str]:
    """Ids of all goals, oldest day first."""
    try:
        found = os.listdir(home.goals)
    except FileNotFoundError:
        return []
    return sorted(n for n in found if ids.is_goal(n))


def made_at(goal: GoalDir) -> float:
    """When the goal was made, for listing in that order; 0 when that cannot be said."""
    try:
        return goal.document.stat().st_mtime
    except OSError:
        return 0.0


def live(home: Home) -> list[str]:
    """Ids of goals that are under way: not marked as resting."""
    return [n for n in names(home) if is_live(home, n)]


def is_live(home: Home, name: str) -> bool:
    """Whether there is a goal of this name that is not marked as resting."""
    return ids.is_goal(name) and not is_over(home, name) and home.goal(name).document.exists()


def find(home: Home, name: str) -> GoalDir:
    """The goal of this id, or of the only id that begins or ends with it. Raises Usage, NotFound."""
    known = names(home)
    if name in known:
        return home.goal(name)
    close = [n for n in known if n.startswith(name) or n.endswith(f"-{name}")]
    if len(close) == 1:
        return home.goal(close[0])
    if close:
        raise NotFound(f"{name!r} could be {', '.join(close[:5])}", hint="give more of the id")
    raise NotFound(f"there is no goal {name!r}", hint="list them with: loom goal ps -a")


def rest_marker(goal: GoalDir) -> Path:
    return goal.path / "resting"


def is_paused(home: Home, name: str) -> bool:
    """Whether this goal rests because it was paused."""
    try:
        return fs.read(rest_marker(home.goal(name)), 100).strip() == b"paused"
    except (OSError, fs.NotRegular, fs.TooLarge):
        return False


def is_over(home: Home, name: str) -> bool:
    """Whether this goal rests, ended or paused: nobody waits for work on it."""
    return ids.is_goal(name) and rest_marker(home.goal(name)).exists()


def read_spec(goal: GoalDir) -> GoalSpec:
    """Raises Config when goal.md is damaged, NotFound when it is missing."""
    try:
        data = fs.read(goal.document, 1 << 20)
    except FileNotFoundError:
        raise NotFound(f"there is no goal {goal.id!r}") from None
    except (fs.NotRegular, fs.TooLarge) as error:
        raise Config(f"{goal.document} cannot be read: {error}") from None
    return wire.decode(data, str(goal.document))


def events(home: Home, goal: GoalDir, after: int = 0) -> Iterator[Event]:
    """The goal's journal, checked; nothing when the router has not taken the goal up yet. Raises as journal.read."""
    try:
        yield from journal.read(goal.journal, home.blobs, after)
    except FileNotFoundError:
        return


def load_snapshot(goal: GoalDir, reducer: int, head: tuple[int, str]) -> Mapping[str, Any] | None:
    """What save_snapshot wrote, when it is of this reducer and of this journal; None: fold everything.

    head  (seq, hash) of the journal's last record
    """
    try:
        raw = loads_object(fs.read(goal.state), 256)
        if raw["reducer"] != reducer or raw["seq"] > head[0] or (raw["seq"] == head[0] and raw["head"] != head[1]):
            return None
        return raw["state"] if isinstance(raw["state"], dict) else None
    except (OSError, fs.NotRegular, ValueError, KeyError, TypeError):
        return None


def save_snapshot(goal: GoalDir, reducer: int, state: Mapping[str, Any], head: tuple[int, str]) -> None:
    """Write state.json; not synced, because it can be made again."""
    fs.hint(goal.state, dumps({"seq": head[0], "head": head[1], "reducer": reducer, "state": dict(state)}).decode())


def control(home: Home, goal: GoalDir, stem: str, verb: str, by: str, args: Mapping[str, Any]) -> None:
    """Drop a request into `control/`; the router journals it. Durable when this returns."""
    data = dumps({"v": 1, "verb": verb, "by": by, "args": dict(args)}) + b"\n"
    fs.publish(goal.control / f"{stem}.json", data)
    fs.remove(rest_marker(goal))  # a goal that rests is looked at once more


def controls(goal: GoalDir) -> list[str]:
    """Names of control files, oldest first. A file's name is the cause of its event, so no other names count."""
    try:
        found = os.listdir(goal.control)
    except FileNotFoundError:
        return []
    return sorted(n for n in found if _is_control(n))


def _is_control(name: str) -> bool:
    return name.endswith(".json") and ids.is_stem(name.removesuffix(".json"))


def odd_controls(goal: GoalDir) -> list[str]:
    """Names in `control/` that are no requests and never will be: for the log."""
    try:
        found = os.listdir(goal.control)
    except OSError:
        return []
    return sorted(n for n in found if n != fs.TMP and not _is_control(n))


def read_control(goal: GoalDir, name: str) -> Mapping[str, Any]:
    """One control file. Raises Malformed when it is none we understand."""
    try:
        raw = loads_object(fs.read(goal.control / name, MAX_CONTROL_BYTES))
    except (fs.NotRegular, fs.TooLarge) as error:
        raise Malformed(str(error)) from None
    except PermissionError:
        raise Malformed("may not be read") from None
    if raw.get("verb") not in VERBS:
        raise Malformed(f"verb {ascii(raw.get('verb'))[:40]} is not one of {', '.join(VERBS)}")
    if not isinstance(raw.get("args", {}), dict):
        raise Malformed("field 'args' is not an object")
    return raw
