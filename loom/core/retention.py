"""What may go, and why something stays (docs/protocol.md section 10, ADR-0016). Pure: facts in, a reason out.

A reason is a few words for a person; the empty one means that nothing keeps the thing but its age. The reasons matter
more than the ages: they make sure that nothing goes while the other side could still send it again, or look for it.
"""

from __future__ import annotations

from loom.wire.record import record

DAY_S = 86_400.0
LITTER_S = 36 * 3600.0  # what lies in `.tmp/`; a rule of the protocol and no setting


@record
class Policy:
    """How old things get, in days (the settings `retention.*`). Keys of dedupe are counted by their pipe."""

    messages: float = 7.0
    steps: float = 7.0
    blobs: float = 7.0
    logs_packed: float = 1.0
    logs: float = 30.0
    crashes: float = 90.0


@record
class Replies:
    """How far the replies of one agent to one message have come, and whether their targets are done with them."""

    in_outbox: bool = False
    unread: bool = False


def keeps_processed(*, in_outbox: bool, replies: Replies, goal_live: bool) -> str:
    """Why a processed message stays.

    in_outbox  its name stands in an outbox, as it is or as a part: it could be delivered once more
    goal_live  it is an order of a goal that is under way: the router may publish it once more
    """
    if in_outbox:
        return "its name stands in an outbox"
    if replies.in_outbox:
        return "its reply waits for the router"
    if replies.unread:
        return "its reply is not yet acknowledged"
    if goal_live:
        return "its goal is under way"
    return ""


def keeps_sent(*, request_unfinished: bool, unread: bool) -> str:
    """Why a sent reply stays.

    request_unfinished  the look for the message it answers would miss it, and it would be answered twice
    """
    if request_unfinished:
        return "the message it answers is not finished"
    if unread:
        return "it is not yet acknowledged"
    return ""


def keeps_belonging(*, retained: bool) -> str:
    """Why a turn record or an error record stays: its message does."""
    return "its message is still here" if retained else ""


def may_be_old(age_s: float, days: float) -> bool:
    """Whether messages named in a day that began so long ago may be old: none was finished before its day.

    But for one whose sender's clock went ahead. That one waits until its day is old, unless that day is yet to come.
    """
    return is_old(age_s, days) or age_s < -DAY_S


def is_old(age_s: float, days: float) -> bool:
    """Whether an age reaches a number of days. An age below zero, by a clock that was set back, reaches none."""
    return age_s >= days * DAY_S and age_s >= 0
