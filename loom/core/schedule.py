"""Which slots of a job are due, and what becomes of each: pure decisions (docs/schedules.md, ADR-0024).

Enters: a job, what is known of its slots, the present time, whether the occurrence before is under way. Stays out:
clocks, files, processes. Every decision comes back as new Slots; what they lead to is done by loom/cli/firing.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import takewhile

from loom.core import cron
from loom.core.cron import Offset
from loom.wire.errors import Config
from loom.wire.record import record
from loom.wire.schedule import Job, Slots

MOST = 100  # slots that are caught up with, and that wait for one to end; older ones are missed
_REMEMBERED = 256  # handled slots that are kept: more than MOST, so that none of those comes twice
SET_BACK_S = 86_400  # a clock that stands so far before the last slot was wrong then, or is now
AGAIN_S = 5.0  # how soon an occurrence that others wait for is looked at again


@record
class Came:
    """What has come since the last time: slots that wait now, and those that nobody will serve."""

    slots: Slots
    missed: tuple[int, ...] = ()
    set_back: bool = False


@record
class Choice:
    """What becomes of the slots that wait: one is started, some are skipped, what is under way is cancelled."""

    slots: Slots
    start: int | None = None
    skipped: tuple[int, ...] = ()
    cancel: bool = False


def check(job: Job, where: str) -> None:
    """Raises Config, naming `where`, for a cron line that is none."""
    try:
        if job.cron:
            cron.parse(job.cron)
    except ValueError as error:
        raise Config(f"{where}: cron: {error}", hint="see docs/schedules.md") from None


def slots_after(job: Job, offset: Offset, after: int) -> Iterator[int]:
    """The slots of a job behind `after`, without an end. An interval counts from 1970, whoever asks and whenever."""
    if job.cron:
        yield from cron.slots(cron.parse(job.cron), offset, after)
        return
    slot = after - after % job.every_s
    while True:
        slot += job.every_s
        yield slot


def newest(job: Job, offset: Offset, after: int, now: int) -> tuple[int, ...]:
    """The slots in (after, now], ascending; of many only the last MOST.

    Looked for backwards in growing steps: after a year without a machine there may be half a million.
    """
    span = job.every_s * MOST if job.every_s else 60 * MOST
    while True:
        begin = max(after, now - span)
        found = tuple(takewhile(lambda slot: slot <= now, slots_after(job, offset, begin)))
        if begin == after or len(found) >= MOST:
            return found[-MOST:]
        span *= 2


def seen(job: Job, slots: Slots | None, now: int) -> Slots:
    """What is known of a job that is looked at now: one that is new, or has another timing, begins now.

    What came before is not caught up with. What an older loom has written belongs to no timing, and is taken as it is.
    """
    if slots is None:
        return Slots(after=now, timing=job.timing)
    if slots.timing == job.timing:
        return slots
    return replace(slots, after=now if slots.timing else slots.after, timing=job.timing)


def take_in(job: Job, offset: Offset, slots: Slots, now: int) -> Came:
    """Deal with every slot up to `now`, each once: it waits to be started, or is missed."""
    slots = seen(job, slots, now)
    set_back = now < slots.after - SET_BACK_S
    after = now if set_back else slots.after
    due = [slot for slot in newest(job, offset, after, now) if slot not in slots.handled]
    taken = due
    if job.catch_up != "all":
        taken = due[-1:]
    if job.catch_up == "none":
        taken = [slot for slot in taken if now - slot <= job.grace_s]
    held = (*slots.held, *taken)
    missed = (*(slot for slot in due if slot not in taken), *held[:-MOST])
    told = replace(
        slots,
        after=max(after, now if due else after),
        handled=(*slots.handled, *due)[-_REMEMBERED:],
        held=held[-MOST:],
    )
    return Came(told, missed, set_back)


def choose(job: Job, slots: Slots, under_way: bool) -> Choice:
    """Which of the waiting slots is started now, while the occurrence before is under way or is not."""
    if not slots.held:
        return Choice(slots)
    if under_way and job.overlap == "skip":
        return Choice(replace(slots, held=()), skipped=slots.held)
    if job.overlap == "replace":
        *older, last = slots.held
        kept = replace(slots, held=(last,))
        if under_way:
            return Choice(kept, skipped=tuple(older), cancel=True)
        return Choice(replace(slots, held=()), start=last, skipped=tuple(older))
    if under_way and job.overlap == "queue":
        return Choice(slots)
    first, *others = slots.held
    return Choice(replace(slots, held=tuple(others)), start=first)


def due_at(job: Job, offset: Offset, slots: Slots | None, now: float) -> float:
    """When somebody should look at this job again, in Unix seconds; not after `now` when it is due."""
    if slots is None or slots.timing != job.timing or slots.intent is not None or now < slots.after - SET_BACK_S:
        return now
    due = float(next(slots_after(job, offset, slots.after)))
    return min(due, now + AGAIN_S) if slots.held else due
