"""The mailbox: deliver, claim, look, answer, acknowledge, fail, retry, route (docs/protocol.md section 4, ADR-0003).

    state      inbox/  .in-progress/  outbox/(reply)  .processed/   after a crash here
    written       -          -              -              -        litter in .tmp, nothing promised
    waiting       +          -              -              -        nothing to repair
    claimed       -          +              -              -        resumed from its turn by the next incarnation
    answered      -          +              +              -        finish conversation and move, no second answer
    done          -          -              +              +        nothing to repair

Every function is one arrow of this table and may be repeated after a crash at any point inside it. Whoever
claims, answers, fails or acknowledges holds the agent's `lock`; delivering needs none.
"""

from __future__ import annotations

import errno
import os
import time
from collections import deque
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from loom.spool import fs
from loom.spool.layout import ERROR_SUFFIX, Box
from loom.wire import ids, message
from loom.wire.jsontext import Malformed, dumps, loads_object
from loom.wire.message import Message, Unreadable
from loom.wire.record import record

MAX_NAME_BYTES = 255

# An entry that cannot be moved: immutable or somebody else's, or a mount point. No fault of disk or descriptors.
_UNMOVABLE = (errno.EPERM, errno.EACCES, errno.EBUSY)


class Unmovable(OSError):
    """An entry that cannot be moved away: it stays where it is, and the others are served without it."""


class Conflict(Exception):
    """The name is taken by other bytes: the sender reused an idempotency key for another message."""


@record
class Claimed:
    """A message in `.in-progress/`: readable, and ours until it is acknowledged or failed."""

    stem: str
    message: Message
    raw: bytes


def create(box: Box) -> None:
    """Make the directories of a mailbox; nothing happens to those that are there."""
    for directory in box.directories():
        fs.ensure_dir(directory)


# -- deliver --------------------------------------------------------------------------------------------------


def deliver(box: Box, stem: str, data: bytes) -> bool:
    """Put a message into the inbox, durably. False when this very message is there already, in whatever state.

    Raises Conflict when the name is known with other bytes, OSError when the disk refuses (nothing accepted).
    """
    if _standing(box, stem) is None and fs.publish(box.inbox_file(f"{stem}.msg"), data):
        _check_only(box, stem, data)
        return True
    _check_known(box, stem, data)
    return False


def deliver_all(box: Box, messages: Sequence[tuple[str, bytes]]) -> list[bool]:
    """deliver() for many: one sync for their contents and one of the directory.

    Raises as deliver_many.
    """
    return deliver_many([(box, stem, data) for stem, data in messages])


def deliver_many(mail: Sequence[tuple[Box, str, bytes]]) -> list[bool]:
    """deliver() for many messages to many mailboxes, whose syncs are shared.

    Raises Conflict before any is written, unless another sender takes one of the names at this very moment; and
    OSError: some may lie in an inbox then, none is accepted, and delivering all of them again is safe.
    """
    fresh: dict[str, tuple[Box, str, bytes]] = {}
    places = [box.inbox_file(f"{stem}.msg") for box, stem, _ in mail]
    for place, (box, stem, data) in zip(places, mail, strict=True):
        if place in fresh and fresh[place][2] != data:
            raise Conflict(f"two messages named {stem} with different content in one delivery")
        if _standing(box, stem) is None:
            fresh[place] = (box, stem, data)
        else:
            _check_known(box, stem, data)
    made = fs.publish_all((place, data) for place, (_, _, data) in fresh.items())
    new = {place for place, is_new in zip(fresh, made, strict=True) if is_new}
    for place in new:
        _check_only(*fresh[place])
    for place in fresh.keys() - new:
        _check_known(*fresh[place])
    results = []
    for place in places:
        results.append(place in new)
        new.discard(place)
    return results


def find(box: Box, stem: str) -> Path | None:
    """Where in the inbox's life this message stands, or None."""
    place = _standing(box, stem)
    return None if place is None else Path(place)


def _standing(box: Box, stem: str) -> str | None:
    """find() as text. Messages move in the order of these places, so that none can slip between two looks.

    Only `retry` moves one back. One that was ever tried again has its error.json, and is looked for twice.
    """
    name = f"{stem}.msg"
    for _ in range(2):
        for place in (
            box.inbox_file(name),
            box.claimed_file(name),
            box.processed_file(stem),
            box.unreadable_file(name),
            box.failed_file(name),
        ):
            if fs.is_there(place):
                return place
        if not fs.is_there(box.failed_file(name) + ERROR_SUFFIX):
            break
    return None


def _check_known(box: Box, stem: str, data: bytes) -> None:
    """Raises Conflict unless the message of this name has these bytes; it is durable when this returns."""
    while (known := _standing(box, stem)) is not None:
        try:
            same = fs.read(known, message.MAX_BYTES) == data
            if same:
                fs.settle(known)
        except FileNotFoundError:
            continue  # it moved on while we looked
        except (fs.NotRegular, fs.TooLarge):
            same = False
        if not same:
            raise _conflict(known)
        _check_only(box, stem, data)
        return
    # It was here and is gone: somebody finished it and put it away, so it was accepted.


def _conflict(place: str) -> Conflict:
    return Conflict(f"a message named {Path(place).stem} with other content is already in {Path(place).parent}")


def _check_only(box: Box, stem: str, data: bytes) -> None:
    """Raises Conflict when other bytes of this name are on their way too.

    Another sender's message may have been published and claimed after we had looked, and its name was free again. It
    is looked for in the order in which messages move, the inbox last: one that is tried again comes back there.
    """
    name = f"{stem}.msg"
    for place in (
        box.claimed_file(name),
        box.processed_file(stem),
        box.unreadable_file(name),
        box.failed_file(name),
        box.inbox_file(name),
    ):
        if not fs.is_there(place):
            continue
        try:
            same = fs.read(place, message.MAX_BYTES) == data
        except FileNotFoundError:
            continue
        except (fs.NotRegular, fs.TooLarge):
            same = False
        if not same:
            raise _conflict(place)


# -- claim ----------------------------------------------------------------------------------------------------


class Inbox:
    """What one process sees of its inbox: one listing serves many claims, not one listing each."""

    def __init__(self, box: Box) -> None:
        self.box = box
        self._backlog: deque[str] = deque()
        self._skip: set[str] = set()
        self._ours = {directory.name for directory in box.directories()}
        self.unmovable: list[tuple[str, str]] = []  # (name, why) of what was skipped, for the log
        self.odd: set[str] = set()  # entries whose names are not those of messages, for the log; told once
        self.odd_told: set[str] = set()
        self.set_aside: list[tuple[str, str]] = []  # (name, reason) of what was found unreadable

    def waiting(self) -> bool:
        """Whether there is anything to claim, by the last listing or a new one."""
        if not self._backlog:
            self._list()
        return bool(self._backlog)

    def claim(self) -> Claimed | None:
        """Take the oldest readable message, or None when there is none. What is unreadable is set aside on the way.

        Raises OSError when the environment is at fault; the entry then stays where it is.
        """
        while self.waiting():
            name = self._backlog.popleft()
            source = self.box.inbox_file(name)
            try:
                outcome = _move(source, self.box.claimed_file(name))
                if outcome == "conflict":
                    _set_aside(self.box, source, "conflict", "another message of this name is in progress")
            except Unmovable as error:
                self._skip.add(name)  # the queue goes on without it
                self.unmovable.append((name, error.strerror or str(error)))
                continue
            if outcome == "conflict":
                self.set_aside.append((name, "conflict"))
            elif outcome != "gone":
                claimed = take(self.box, name)
                if isinstance(claimed, Claimed):
                    return claimed
                self.set_aside.append((name, claimed))
        return None

    def _list(self) -> None:
        names, odd = _listed(self.box.inbox, self._ours)
        self._backlog.extend(name for name in names if name not in self._skip)
        self.odd.update(name for name in odd if name not in self.odd_told)


def _listed(directory: Path, ours: Collection[str]) -> tuple[list[str], list[str]]:
    """(names that are to be taken for messages, oldest first; other names but `ours`)."""
    names, odd = [], []
    for name in os.listdir(directory):
        if name.endswith(ids.MESSAGE_SUFFIX) and not name.startswith("."):
            names.append(name)
        elif name not in ours:
            odd.append(name)
    return sorted(names), odd


def in_progress(box: Box) -> list[str]:
    """File names in `.in-progress/`, oldest first: what the incarnation before us left."""
    return sorted(n for n in os.listdir(box.in_progress) if n.endswith(".msg"))


def take(box: Box, name: str) -> Claimed | str:
    """Read a message that lies in `.in-progress/`; set aside when it is at fault, the reason is returned then.

    `unmovable` is the reason of one that can neither be read nor set aside: it stays there.
    """
    path = box.claimed_file(name)
    stem = ids.stem_of(name)
    try:
        if stem is None:
            raise Unreadable("bad_name", f"{name!a} is not <13 digits>-<ulid>.msg")
        raw = read_message(path)
        return Claimed(stem, message.decode(raw, stem), raw)
    except Unreadable as error:
        try:
            _set_aside(box, path, error.reason, str(error))
        except Unmovable:
            return "unmovable"
        return error.reason


def read_message(path: fs.Place) -> bytes:
    """The bytes of a message file. Raises Unreadable for what is the entry's own fault, OSError what is not."""
    try:
        return fs.read(path, message.MAX_BYTES)
    except fs.NotRegular as error:
        raise Unreadable(error.kind, str(error)) from None
    except fs.TooLarge as error:
        raise Unreadable("too_large", str(error)) from None
    except PermissionError as error:
        raise Unreadable("not_permitted", error.strerror or "permission denied") from None


def _set_aside(box: Box, path: str, reason: str, detail: str) -> None:
    """Move an entry to `.unreadable/` and write the reason beside it. Its content is not touched. Raises Unmovable."""
    _put_aside(box.unreadable, Path(path), reason, detail)


def _put_aside(directory: Path, path: Path, reason: str, detail: str) -> None:
    target = _aside(directory, path.name)
    error = _write_reason(target, path.name, reason, detail)
    try:
        fs.calls.rename_noreplace(str(path), str(target))
    except FileNotFoundError:
        fs.remove(error)  # somebody took it away
    except OSError as refusal:
        fs.remove(error)
        raise _refused(path, refusal) from None


def _aside(directory: Path, name: str) -> Path:
    """Where an entry of this name goes: its own name, unless that is taken or too long."""
    target, data = directory / name, os.fsencode(name)
    if len(data) + len(ERROR_SUFFIX) > MAX_NAME_BYTES or os.path.lexists(target):
        unique = ids.encode_ulid(time.time_ns() // 1_000_000, os.urandom(10))
        target = directory / f"{os.fsdecode(data[:120])}.{unique}"
    return target


def _write_reason(target: Path, name: str, reason: str, detail: str) -> Path:
    """Before the entry is there: after a crash in between it is written once more, else it would be lost."""
    error = target.with_name(target.name + ERROR_SUFFIX)
    fs.replace(error, dumps({"reason": reason, "detail": detail, "name": ascii(name)[1:-1]}) + b"\n")
    return error


def _move(source: str, target: str) -> fs.Moved:
    """fs.move(), raising Unmovable for what is the entry's own fault."""
    try:
        return fs.move(source, target)
    except OSError as error:
        raise _refused(source, error) from None


def _refused(path: fs.Place, error: OSError) -> OSError:
    return Unmovable(error.errno, error.strerror, str(path)) if error.errno in _UNMOVABLE else error


# -- look, answer, acknowledge, fail ---------------------------------------------------------------------------


Look = Literal["work", "acknowledge", "fail"]


def look(box: Box, agent: str, stem: str, attempt: int) -> tuple[Look, Message | None]:
    """What is still to do for a claimed message: look before work, always.

    The reply is looked for in outbox/, then .sent/, then the request in .processed/: in the order in which files
    move, so that none can slip between two looks. A reply is synced before it counts.
    """
    reply = ids.reply_stem(agent, stem, attempt)
    for path in (box.outbox_file(f"{reply}.msg"), box.sent_file(reply)):
        try:
            found = message.decode(read_message(path), reply)
        except FileNotFoundError:
            continue
        except Unreadable:
            # Whatever lies under the reply's name is the reply: a second one must never be published.
            return "acknowledge", None
        try:
            fs.settle(path)
        except FileNotFoundError:
            pass  # the router moved it on while we looked
        return ("fail" if found.error else "acknowledge"), found
    if fs.is_there(box.processed_file(stem)):
        return "acknowledge", None
    return "work", None


def answer(box: Box, stem: str, reply: Message) -> bool:
    """Publish the reply under its derived name. False: it was answered already, whatever the bytes."""
    return fs.publish(box.outbox_file(f"{stem}.msg"), message.encode(reply))


def acknowledge(box: Box, stem: str) -> None:
    """Move a claimed message to `.processed/`. Needs no sync: losing the move is repaired by the look."""
    source = box.claimed_file(f"{stem}.msg")
    if fs.move(source, box.processed_file(stem)) == "conflict":
        _set_aside(box, source, "conflict", "another message of this name was processed before")


def attempts(box: Box, stem: str) -> int:
    """How often this message has failed: `attempts` of its error.json, 0 without one."""
    record = read_error(box, stem)
    count = record.get("attempts") if record else 0
    return count if isinstance(count, int) and not isinstance(count, bool) and count >= 0 else 0


def read_error(box: Box, stem: str) -> Mapping[str, Any] | None:
    """NAME.error.json as it lies there, or None."""
    try:
        return loads_object(fs.read(box.error_of(stem), message.MAX_BYTES))
    except (FileNotFoundError, Malformed, fs.NotRegular, fs.TooLarge):
        return None


def fail(box: Box, stem: str, attempt: int, *, error_type: str, last_error: str, hint: str, ts: str) -> None:
    """Move a claimed message to `.failed/` and write its error.json; its failure reply is published already.

    `attempts` is set to attempt + 1, never incremented, so that repeating this after a crash counts once.
    """
    source = box.claimed_file(f"{stem}.msg")
    if fs.move(source, box.failed_file(f"{stem}.msg")) == "conflict":
        _set_aside(box, source, "conflict", "another message of this name failed before")
        return
    write_error(box, stem, attempt, error_type=error_type, last_error=last_error, hint=hint, ts=ts)


def write_error(box: Box, stem: str, attempt: int, *, error_type: str, last_error: str, hint: str, ts: str) -> None:
    """NAME.error.json beside a failed message (docs/protocol.md section 4)."""
    record = {"ts": ts, "attempts": attempt + 1, "error_type": error_type, "last_error": last_error, "hint": hint}
    fs.replace(box.error_of(stem), dumps(record) + b"\n")


def retry(box: Box, agent: str, stem: str, ts: str) -> bool:
    """Move a failed message back to the inbox for another attempt. False when it is not among the failed.

    A crash between `fail`'s two steps leaves no error.json; it is written first, or the message would fail again
    at the look, being answered already under its attempt.
    """
    failed = box.failed_file(f"{stem}.msg")
    if not fs.is_there(failed):
        return False
    attempt = attempts(box, stem)
    if look(box, agent, stem, attempt)[0] == "fail":
        write_error(
            box, stem, attempt, error_type="unknown", last_error="the record of the failure was lost", hint="", ts=ts
        )
    return fs.move(failed, box.inbox_file(f"{stem}.msg")) in ("moved", "same")


def failed(box: Box) -> list[str]:
    """Names (without .msg) of failed messages, oldest first."""
    stems = (ids.stem_of(name) for name in os.listdir(box.failed))
    return sorted(stem for stem in stems if stem is not None)


# -- outbox ----------------------------------------------------------------------------------------------------


def outgoing(box: Box, odd: set[str] | None = None) -> list[str]:
    """File names in the outbox, oldest first. `odd` gets the names that are not those of messages, for the log.

    Raises NotADirectoryError for a link too: what lies elsewhere is not this agent's to send.
    """
    if box.outbox.is_symlink():
        raise NotADirectoryError(errno.ENOTDIR, "it is a link", str(box.outbox))
    ours = {*(directory.name for directory in box.directories()), box.refused.name}
    names, others = _listed(box.outbox, ours)
    if odd is not None:
        odd.update(others)
    return names


def mark_sent(box: Box, stem: str) -> None:
    """Move a routed reply to `.sent/`. Raises Unmovable."""
    source = box.outbox_file(f"{stem}.msg")
    if _move(source, box.sent_file(stem)) == "conflict":
        refuse(box, f"{stem}.msg", "conflict", "another message of this name was sent before")


def refuse(box: Box, name: str, reason: str, detail: str) -> None:
    """Move an outbox entry that may not be routed to `.refused/`, with its reason. Raises Unmovable."""
    fs.ensure_dir(box.refused)
    _put_aside(box.refused, box.outbox / name, reason, detail)


def refuse_in_part(box: Box, stem: str, data: bytes, reason: str, detail: str) -> None:
    """Leave a copy of a message in `.refused/`, with why not all its targets got it; those that are there have it.

    Moved back to the outbox, it goes to the others too. Repeated after a crash, this leaves no second copy.
    """
    fs.ensure_dir(box.refused)
    name = f"{stem}.msg"
    try:
        if fs.read(box.refused / name, message.MAX_BYTES) == data:
            fs.settle(box.refused / name)
            return
    except (FileNotFoundError, PermissionError, fs.NotRegular, fs.TooLarge):
        pass
    target = _aside(box.refused, name)
    _write_reason(target, name, reason, detail)
    fs.publish(target, data)


def find_reply(box: Box, agent: str, stem: str, attempt: int) -> Message | None:
    """The reply to a message for someone who waits for it, or None so far."""
    reply = ids.reply_stem(agent, stem, attempt)
    waiting = box.outbox_file(f"{reply}.msg")
    for path in (waiting, box.sent_file(reply), waiting):
        try:
            return message.decode(read_message(path), reply)
        except (FileNotFoundError, Unreadable):
            continue
    return None
