"""fsck of goals: documents, journals with their heads, and what is derived from them (docs/goals.md)."""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from loom.core.goal import reduce as reducing
from loom.core.goal import state as states
from loom.core.goal.state import GoalState
from loom.spool import blobs, fs, goals, journal, locks
from loom.spool.findings import Check, Finding, Findings, guarded, person
from loom.spool.fs import TMP
from loom.spool.layout import GoalDir
from loom.wire import ids
from loom.wire.errors import LoomError
from loom.wire.event import Event
from loom.wire.jsontext import Malformed, loads_object

# Members of an event's data that name a blob without which the goal could not be gone over again.
_BLOBS = frozenset(("message", "base", "files", "changes", "diff"))
_DIGEST_LENGTH = 64
# What a goal has only when its journal was begun.
_WITH_JOURNAL = ("state.json", "plan.json", "resting", "workspace", "subtasks")


def check_goals(check: Check) -> Findings:
    """Everything below `goals/` and `heads/`."""
    for name in fs.names(check.home.goals):
        path = check.home.goals / name
        if name == TMP:
            continue
        if not ids.is_goal(name) or path.is_symlink() or not path.is_dir():
            yield person(path, "is no goal", "move it away")
        else:
            yield from guarded(path, _goal(check, check.home.goal(name)))
    for name in fs.names(check.home.heads):
        if name != TMP and not (ids.is_goal(name) and (check.home.goals / name).is_dir()):
            yield person(check.home.heads / name, "is the head of no goal", "remove it when the goal was removed")


def _goal(check: Check, goal: GoalDir) -> Findings:
    try:
        goals.read_spec(goal)
    except LoomError as error:
        yield person(goal.document, str(error), "bring it back from a copy")
    for name in fs.names(goal.control):
        if name != TMP and not (name.endswith(".json") and ids.is_stem(name.removesuffix(".json"))):
            yield person(goal.control / name, "is no request to this goal", "remove it")
    if os.path.lexists(goal.control) and not goal.control.is_dir():
        yield person(goal.control, "is no directory", "move it away")
    if not goal.journal.exists():
        if os.path.lexists(check.home.head(goal.id)):
            yield person(goal.journal, "is missing, and its head was noted", "bring it back from a copy")
        elif left := next((name for name in _WITH_JOURNAL if os.path.lexists(goal.path / name)), ""):
            yield person(goal.journal, f"is missing, and {left} says that there was one", "bring it back from a copy")
        return
    lock = goal.path / "journal.lock"
    if locks.is_held(lock):
        yield Finding(goal.journal, "is being written: only read", "busy", "stop the supervisor for a full check")
    elif torn := _torn(check, goal):
        yield torn
        if not check.repair:
            return  # what it comes to is seen when that is mended
    faults = _audit(check, goal)
    for fault in faults:
        yield _damaged(check, goal, fault)
    if faults:
        return
    yield from _followed(check, goal, derived=not locks.is_held(lock))


def _audit(check: Check, goal: GoalDir) -> list[str]:
    """The faults that are still there at a second look: a journal that is written meanwhile may be behind its head."""
    faults: list[str] = []
    for _ in range(2):
        faults = journal.audit(goal.journal, check.home.blobs, check.home.head(goal.id))
        if not faults:
            break
    return faults


def _damaged(check: Check, goal: GoalDir, fault: str) -> Finding:
    """What is wrong with a journal, and what a person may do: whether it was a power cut only they know."""
    try:
        line = journal.hole(goal.journal, check.home.head(goal.id))
    except (FileNotFoundError, fs.NotRegular):
        line = None
    if line is None:
        return person(goal.journal, fault, "bring the journal back from a copy")
    return person(
        goal.journal,
        f"{fault}; line {line} holds zeros, as a power cut may leave them, and good records stand behind it",
        f"bring the journal back from a copy; or, if the power failed while it was written, keep its first {line - 1} "
        "lines only: what follows had not taken effect",
    )


def _torn(check: Check, goal: GoalDir) -> Finding | None:
    try:
        torn = journal.torn_bytes(goal.journal, check.home.head(goal.id))
    except (journal.JournalDamaged, fs.NotRegular):
        return None  # the audit says so, and where
    if not torn:
        return None
    return check.mend(goal.journal, f"its last {torn} bytes are torn", "cut off and kept beside it",
                         partial(_mend_journal, check, goal))  # fmt: skip


def _mend_journal(check: Check, goal: GoalDir) -> None:
    """As the router does when it opens it: cut off, keep, note it in the journal."""
    try:
        book = journal.Journal(goal.journal, check.home.blobs, check.home.head(goal.id))
    except journal.JournalBusy:
        return  # its writer has mended it
    try:
        if book.torn_bytes and book.seq:
            me = locks.own_incarnation()
            actor = {"agent": "fsck", "pid": me.pid, "start": me.start}
            book.append("journal.mended", actor, f"seq:{book.seq}", {"torn_bytes": book.torn_bytes})
    finally:
        book.close()


def _followed(check: Check, goal: GoalDir, derived: bool) -> Findings:
    """The journal from its beginning: blobs that it names, and what is derived from it."""
    snapshot = _snapshot(goal)
    seq = snapshot.get("seq") if snapshot is not None else None
    then: dict[str, Any] | None = None
    state: GoalState | None = None
    try:
        for event in goals.events(check.home, goal):
            yield from _missing(check, goal, event)
            state = reducing.first(event) if state is None else reducing.reduce(state, event)
            if event.seq == seq:
                then = {"seq": seq, "head": event.hash, "state": states.to_json(state)}
    except (ValueError, KeyError, TypeError) as error:
        yield person(goal.journal, f"cannot be folded: {error!r}", "was it written by another version?")
        return
    if state is None or not derived:
        return
    if goal.state.exists() and (snapshot is None or _differs(snapshot, then)):
        yield check.mend(goal.state, "is not what the journal says", "removed: it is made again",
                         partial(fs.remove, goal.state))  # fmt: skip
    marker = goals.rest_marker(goal)
    if os.path.lexists(marker) and not state.resting:
        yield check.mend(marker, f"says that nothing happens here, and the goal is {state.status}", "removed",
                         partial(fs.remove, marker))  # fmt: skip


def _snapshot(goal: GoalDir) -> dict[str, Any] | None:
    try:
        return loads_object(fs.read(goal.state), 256)
    except (OSError, fs.NotRegular, Malformed):
        return None


def _differs(snapshot: dict[str, Any], then: dict[str, Any] | None) -> bool:
    """Whether a snapshot is not the fold of the journal up to its record. One of another reducer is not looked into."""
    if then is None:
        return True
    same_reducer = snapshot.get("reducer") == states.REDUCER_VERSION
    return snapshot.get("head") != then["head"] or (same_reducer and snapshot.get("state") != then["state"])


def _missing(check: Check, goal: GoalDir, event: Event) -> Findings:
    report = event.data.get("data") if event.type == "order.reported" else event.data
    for name in sorted(_BLOBS):
        digest = report.get(name) if isinstance(report, Mapping) else None
        if isinstance(digest, str) and len(digest) == _DIGEST_LENGTH and not blobs.is_there(check.home.blobs, digest):
            yield person(goal.journal, f"record {event.seq} names a blob that is missing: {digest}",
                         f"bring {_short(check.home.blobs, digest)} back from a copy")  # fmt: skip


def _short(directory: Path, digest: str) -> str:
    try:
        return str(blobs.path_of(directory, digest))
    except ValueError:
        return digest[:_DIGEST_LENGTH]
