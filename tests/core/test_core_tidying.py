"""What may go and what a finding means, as tables."""

from __future__ import annotations

from itertools import combinations

import pytest

from loom.core.fsck import LIFE, SENDING, exit_status, surplus
from loom.core.retention import DAY_S, Policy, Replies, is_old, keeps_belonging, keeps_processed, keeps_sent
from loom.wire import exits

NOTHING = {"in_outbox": False, "replies": Replies(), "goal_live": False}


@pytest.mark.parametrize(
    "fact",
    [{"in_outbox": True}, {"replies": Replies(in_outbox=True)}, {"replies": Replies(unread=True)}, {"goal_live": True}],
)
def test_each_fact_alone_keeps_a_processed_message(fact: dict[str, bool]):
    assert keeps_processed(**{**NOTHING, **fact})
    assert not keeps_processed(**NOTHING)


def test_each_fact_alone_keeps_a_sent_reply():
    assert keeps_sent(request_unfinished=True, unread=False) and keeps_sent(request_unfinished=False, unread=True)
    assert not keeps_sent(request_unfinished=False, unread=False)
    assert keeps_belonging(retained=True) and not keeps_belonging(retained=False)


@pytest.mark.parametrize(
    "age_s, days, old",
    [(7 * DAY_S, 7, True), (7 * DAY_S - 1, 7, False), (0, 0, True), (-1, 0, False), (-1e9, -1e9, False)],
)
def test_a_clock_that_was_set_back_makes_nothing_old(age_s: float, days: float, old: bool):
    assert is_old(age_s, days) is old


def test_the_ages_are_those_of_the_protocol():
    assert Policy() == Policy(messages=7, blobs=7, logs_packed=1, logs=30, crashes=90)


@pytest.mark.parametrize("life", [LIFE, SENDING])
def test_of_several_copies_the_latest_is_kept_whatever_the_order(life: tuple[str, ...]):
    for count in range(2, len(life) + 1):
        for places in combinations(life, count):
            assert surplus(list(reversed(places)), life) == list(places[:-1])


@pytest.mark.parametrize(
    "statuses, status",
    [
        ([], exits.DONE),
        (["mended", "waits"], exits.DONE),
        (["mended", "busy", "waits"], exits.TRY_LATER),
        (["mend"], exits.FAILED),
        (["busy", "person"], exits.FAILED),
    ],
)
def test_the_worst_finding_decides_the_status(statuses: list[str], status: int):
    assert exit_status(statuses) == status
