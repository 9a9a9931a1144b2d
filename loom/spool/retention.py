"""gc: what is old and finished is archived or removed, while everything runs (docs/protocol.md section 10, ADR-0016).

It may be killed at any call, run as often as one likes, and needs nobody to stand still. What makes that safe:

- What may go is decided by loom.core.retention from what lies in the mailboxes; age alone removes no message.
- Moves in mailboxes are not synced. Before anything goes, one sync of the file system makes durable what was seen:
  else a power cut could bring a message back into an outbox whose copy at the target is gone.
- A day's archive is replaced whole, and only what can be read back from it is taken away.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator
from itertools import chain, islice
from pathlib import Path

from loom.core import retention as core
from loom.core.retention import Policy, Replies
from loom.spool import fs, goals, litter, locks, mailbox, references, schedules
from loom.spool.archive import Addition
from loom.spool.broom import Broom, Crowd, Report, Tell, tell_nobody
from loom.spool.layout import ERROR_SUFFIX, AgentDir, Home
from loom.wire import ids, message
from loom.wire.errors import TryLater
from loom.wire.message import MAX_ATTEMPTS, Message, Unreadable
from loom.wire.times import day_of, parse_us

_DAY = re.compile(r"\d{4}-\d\d-\d\d")
_DAY_MS = 86_400_000
_FEW = 1_000
_STEM_LENGTH = 40
_ERROR = f".msg{ERROR_SUFFIX}"


def collect(
    home: Home,
    *,
    now_s: float | None = None,
    policy: Policy = Policy(),  # noqa: B008, a frozen record
    dry_run: bool = False,
    tell: Tell = tell_nobody,
) -> Report:
    """Archive and remove what may go; a dry run changes nothing and only tells.

    now_s  the time that ages are measured from; None: now
    tell   gets everything that goes, and everything that is old and stays, as it is found
    Raises TryLater when another gc is at work, OSError when the disk refuses: everything is whole then, and the next
    run goes on.
    """
    broom = Broom(home, time.time() if now_s is None else now_s, policy, dry_run, tell)
    if dry_run:
        _sweep(broom)
        return broom.report
    lock = locks.acquire(home.tidy_lock)
    if lock is None:
        raise TryLater("another gc or fsck --repair is at work in this home", hint="let it end", kind="busy")
    with lock:
        _sweep(broom)
    return broom.report


def _sweep(broom: Broom) -> None:
    """First what gives space, then what needs some for a while: a full disk is a reason to call gc."""
    litter.sweep(broom)
    references.sweep_blobs(broom)
    litter.pack_logs(broom)
    Mail(broom).sweep()


def mailboxes(home: Home) -> Iterator[AgentDir]:
    """Every directory that could be an agent's or that of a pipe's instance, in use or not; no links."""
    for place, is_name in ((home.agents, ids.is_agent), (home.pipes, ids.is_instance)):
        for name in fs.names(place):
            if is_name(name) and not (place / name).is_symlink() and (place / name).is_dir():
                yield home.agent(name)


def names_of(stem: str, reply: Message) -> list[str]:
    """The names under which a reply is delivered: its own, or those of its parts."""
    return [stem] if reply.parts is None else [name for name, _ in message.split_parts(stem, reply)]


class Mail:
    """Processed and sent messages, their turn records and error records, day by day."""

    def __init__(self, broom: Broom) -> None:
        self.broom, self.home = broom, broom.home
        self._outgoing = Crowd()  # names that the router may still deliver
        self._waiting = Crowd()  # names that some agent has not finished
        self._going = Crowd()  # in a dry run: messages that would be gone by now
        self._times: dict[str, set[str]] = {}

    def sweep(self) -> None:
        """Only what has something old in it is listed, so that a run costs what has grown old and not what is kept.

        A day's directories go last of all that belongs to it: a run that was cut off is gone on with.
        """
        days = set(filter(self._may_be_old, self._days_of_messages()))
        days.update(filter(self._may_be_old, self._days_of_belongings(None if days else _FEW)))
        if not days:
            return
        self._look_round()
        for day in sorted(days):
            self._put_away(day, self._messages(day))
            self._put_away(day, self._belongings(day))
            if not self.broom.dry_run:
                self._remove_empty(day)

    def _look_round(self) -> None:
        """Outboxes first: mail moves from there into inboxes, and what moves while we look is seen at least once."""
        for stem in schedules.posted(self.home):
            self._outgoing.add(stem)
        for box in mailboxes(self.home):
            for stem in _stems(box.outbox):
                self._outgoing.add(stem)
                reply = _read(box.outbox / f"{stem}.msg", stem)
                for name in names_of(stem, reply) if reply is not None else ():
                    self._outgoing.add(name)
        for box in mailboxes(self.home):
            for directory in (box.inbox, box.in_progress):
                for stem in _stems(directory):
                    self._waiting.add(stem)

    def _may_be_old(self, day: str) -> bool:
        try:
            begin_ms = _begin_ms(day)
        except ValueError:
            return False  # a directory of somebody's that only looks like a day
        return core.may_be_old(self.broom.now_s - begin_ms / 1000, self.broom.policy.messages)

    def _days_of_messages(self) -> Iterator[str]:
        for box in mailboxes(self.home):
            for shards in (box.processed_days, box.sent_days):
                yield from (name for name in fs.names(shards) if _DAY.fullmatch(name))

    def _days_of_belongings(self, most: int | None) -> set[str]:
        """Those of at most so many files of each agent; where there are more, their messages will be old one day."""
        times: set[int] = set()
        for box in mailboxes(self.home):
            for name in islice(chain(fs.names(box.turns), fs.names(box.failed)), most):
                if ids.is_stem(name[:_STEM_LENGTH]):
                    times.add(ids.time_of(name) // _DAY_MS)
        return {day_of(number * _DAY_MS) for number in times}

    # -- what may go ---------------------------------------------------------------------------------------------

    def _messages(self, day: str) -> Iterator[tuple[AgentDir, str, Path]]:
        for box in mailboxes(self.home):
            for what, shards in (("processed", box.processed_days), ("sent", box.sent_days)):
                for stem in _stems(shards / day):
                    path = shards / day / f"{stem}.msg"
                    if not self.broom.is_old(path, self.broom.policy.messages):
                        continue
                    found = _read(path, stem)
                    if found is None:
                        self.broom.stays(path, what, "it cannot be read")
                        continue
                    keeps = self._keeps_processed if what == "processed" else self._keeps_sent
                    if why := keeps(box, stem, found):
                        self.broom.stays(path, what, why)
                        continue
                    if self.broom.dry_run and what == "processed":
                        self._going.add(f"{box.name}/{stem}")
                    yield box, what, path

    def _keeps_processed(self, box: AgentDir, stem: str, request: Message) -> str:
        return core.keeps_processed(
            in_outbox=stem in self._outgoing or self._in_outbox_of_sender(stem, request),
            replies=self._replies(box, stem),
            goal_live=bool(request.kind and request.goal) and goals.is_live(self.home, request.goal),
        )

    def _in_outbox_of_sender(self, stem: str, found: Message) -> bool:
        """Looked for once more, now that the message is seen as processed: it may have been sent after our round.

        A part is delivered from the reply it is a part of.
        """
        if not ids.is_mailbox(found.from_):
            return False
        outbox = self.home.agent(found.from_).outbox
        if os.path.lexists(outbox / f"{stem}.msg"):
            return True
        request = found.origin.rpartition("/")[2]
        if not ids.is_stem(request) or ids.reply_stem(found.from_, request) == stem:
            return False
        return any(
            os.path.lexists(outbox / f"{ids.reply_stem(found.from_, request, attempt)}.msg")
            for attempt in range(MAX_ATTEMPTS)
        )

    def _replies(self, box: AgentDir, stem: str) -> Replies:
        unread = False
        for attempt in range(min(mailbox.attempts(box, stem), MAX_ATTEMPTS) + 1):
            name = ids.reply_stem(box.name, stem, attempt)
            if os.path.lexists(box.outbox / f"{name}.msg"):
                return Replies(in_outbox=True)
            reply = _read(box.sent(name), name)
            unread = unread or (reply is not None and self._is_unread(name, reply))
        return Replies(unread=unread)

    def _keeps_sent(self, box: AgentDir, stem: str, reply: Message) -> str:
        return core.keeps_sent(
            request_unfinished=self._is_request_unfinished(box, stem, reply), unread=self._is_unread(stem, reply)
        )

    def _is_unread(self, stem: str, reply: Message) -> bool:
        return any(name in self._waiting for name in names_of(stem, reply))

    def _is_request_unfinished(self, box: AgentDir, stem: str, reply: Message) -> bool:
        request = reply.origin.rpartition("/")[2]
        if ids.is_stem(request) and any(
            ids.reply_stem(box.name, request, attempt) == stem for attempt in range(MAX_ATTEMPTS)
        ):
            return is_unfinished(box, request)
        # Its origin does not say what it answers. The digits of the name are those of the request, if there is one.
        if box.name not in self._times:
            places = (box.inbox, box.in_progress, box.failed)
            self._times = {box.name: {other[:13] for place in places for other in _stems(place)}}
        return stem[:13] in self._times[box.name]

    def _belongings(self, day: str) -> Iterator[tuple[AgentDir, str, Path]]:
        """Turn records, also what was cut off them, and error records, once their message has gone."""
        first_ms = _begin_ms(day)
        first, end = f"{first_ms:013d}", f"{first_ms + _DAY_MS:013d}"
        for box in mailboxes(self.home):
            for what, directory in (("turn", box.turns), ("error", box.failed)):
                for name in fs.names(directory):
                    stem = name[:_STEM_LENGTH]
                    if not first <= name < end or not ids.is_stem(stem) or not _belongs(what, name):
                        continue
                    path = directory / name
                    if not self.broom.is_old(path, self.broom.policy.messages):
                        continue
                    if why := core.keeps_belonging(retained=self._is_retained(box, stem)):
                        self.broom.stays(path, what, why)
                    else:
                        yield box, what, path

    def _is_retained(self, box: AgentDir, stem: str) -> bool:
        if self.broom.dry_run and f"{box.name}/{stem}" in self._going:
            return False
        return mailbox.find(box, stem) is not None

    # -- putting it away -----------------------------------------------------------------------------------------

    def _put_away(self, day: str, found: Iterator[tuple[AgentDir, str, Path]]) -> None:
        """Into the archive of its day, and when it stands there durably, away."""
        if self.broom.dry_run:
            for _, what, path in found:
                self.broom.goes(path, what)
            return
        first = next(found, None)
        if first is None:
            return  # and the archive is left as it is
        with Addition(self.home.archive_of(day)) as addition:
            for box, what, path in chain([first], found):
                self._add(addition, box, what, path)
            fs.sync_tree(self.home.path)  # what was decided rests on moves that nobody has synced
            addition.keep()
        for agent, what, below in addition.added():
            self._remove(self.home.agent(agent), what, below)

    def _add(self, addition: Addition, box: AgentDir, what: str, path: Path) -> None:
        try:
            addition.add(box.name, what, str(path.relative_to(box.path)), path)
        except FileNotFoundError:
            pass  # a person was quicker
        except fs.NotRegular:
            self.broom.stays(path, what, "it is no regular file")

    def _remove(self, box: AgentDir, what: str, below: str) -> None:
        path = box.path / below
        if not self.broom.is_old(path, self.broom.policy.messages):
            return  # it was touched meanwhile
        if what in ("turn", "error") and self._is_retained(box, path.name[:_STEM_LENGTH]):
            return  # the same message was sent again meanwhile
        self.broom.remove(path, what)

    def _remove_empty(self, day: str) -> None:
        for box in mailboxes(self.home):
            for shards in (box.processed_days, box.sent_days):
                if next(fs.names(shards / day, 1), None) is None and (shards / day).is_dir():
                    fs.remove_empty(shards / day)


def _begin_ms(day: str) -> int:
    return parse_us(f"{day}T00:00:00.000000Z") // 1000


def is_unfinished(box: AgentDir, stem: str) -> bool:
    """Whether this message waits, is in progress, or has failed and may be tried again.

    In the order in which it moves, and twice, because `retry` moves it back.
    """
    name = f"{stem}.msg"
    places = (box.inbox / name, box.in_progress / name, box.failed / name)
    return any(os.path.lexists(place) for place in (*places, *places))


def _belongs(what: str, name: str) -> bool:
    return what == "turn" or name.endswith(_ERROR)


def _stems(directory: Path) -> Iterator[str]:
    for name in fs.names(directory):
        if stem := ids.stem_of(name):
            yield stem


def _read(path: Path, stem: str) -> Message | None:
    """The message, or None when there is none that can be read."""
    try:
        return message.decode(mailbox.read_message(path), stem)
    except (FileNotFoundError, Unreadable):
        return None
