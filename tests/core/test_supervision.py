"""What follows from what is wanted and what is seen: the decisions of a supervisor without one."""

from __future__ import annotations

from dataclasses import replace

import pytest

from loom.core.backoff import HEALTHY_S, delay_s
from loom.core.supervision import (
    REKILL_S,
    Exit,
    GiveUp,
    Kill,
    Limits,
    Seen,
    Start,
    Step,
    Stop,
    Wanted,
    arrived,
    became_ready,
    buried,
    decide,
    due_s,
    exited,
    kind_of,
    look,
    parked,
    plan,
    postponed,
    sent_away,
    started,
    status_of,
)
from loom.wire.agent import Policy, Restart, Want

LIMITS = Limits(grace_s=10, ready_s=60)
UP, DOWN, DEAD, DEMAND = Wanted("up"), Wanted("down"), Wanted("dead"), Wanted("demand")
MAIL = replace(DEMAND, mail=True)
RUNNING = started(UP, Seen(), 100.0, ready=True)
CRASH = Exit(code=1)


@pytest.mark.parametrize(
    "n, draw, base_s, max_s, wait_s",
    [
        (0, 0.0, 1, 300, 1),  # the first wait is the base
        (1, 0.0, 1, 300, 2),
        (5, 0.0, 1, 300, 32),
        (9, 0.0, 1, 300, 300),  # the cap holds however often it fails
        (10**9, 0.0, 1, 300, 300),
        (0, 0.5, 1, 300, 1.25),  # half a second of jitter at most
        (9, 0.5, 1, 300, 300.25),
        (5, 0.9, 0, 300, 0),  # no base: at once, without jitter
        (3, 0.0, 2, 5, 5),
    ],
)
def test_the_wait_doubles_up_to_its_cap(n: int, draw: float, base_s: float, max_s: float, wait_s: float) -> None:
    assert delay_s(n, draw, base_s, max_s) == wait_s


@pytest.mark.parametrize(
    "wanted, seen, now_s, step",
    [
        (UP, Seen(), 0, Start("a")),
        (UP, Seen(start_after_s=5), 4.9, None),
        (UP, Seen(start_after_s=5), 5, Start("a")),
        (UP, Seen(parked="done"), 0, None),
        (UP, Seen(parked="config"), 0, None),
        (replace(UP, broken=True), Seen(), 0, None),
        (DOWN, Seen(), 0, None),
        (DEAD, Seen(), 0, None),
        (DEMAND, Seen(), 0, None),
        (MAIL, Seen(), 0, Start("a")),
        (UP, RUNNING, 1e6, None),
        (DEMAND, RUNNING, 1e6, None),  # it leaves by itself
        (DOWN, RUNNING, 100, Stop("a")),
        (DEAD, RUNNING, 100, Stop("a")),
        (replace(DOWN, broken=True), RUNNING, 100, Stop("a")),
        (replace(UP, broken=True), RUNNING, 1e6, None),  # a broken agent.json stops nobody at work
        (DOWN, sent_away(RUNNING, 200), 209.9, None),
        (DOWN, sent_away(RUNNING, 200), 210, Kill("a", "grace")),
        (UP, sent_away(RUNNING, 200), 210, Kill("a", "grace")),  # wanted again, but it is leaving
        (DOWN, replace(sent_away(RUNNING, 200), kill_s=210), 211, None),
        (DOWN, replace(sent_away(RUNNING, 200), kill_s=210), 210 + REKILL_S, Kill("a", "grace")),
        (UP, started(UP, Seen(), 100), 159.9, None),
        (UP, started(UP, Seen(), 100), 160, Kill("a", "not_ready")),
        (UP, became_ready(started(UP, Seen(), 100)), 1e6, None),
        (replace(UP, asked="2"), RUNNING, 1e6, None),  # asked for what runs already
        (replace(UP, spec="2"), RUNNING, 1e6, None),  # edited, but nobody asked yet
        (replace(UP, asked="2", spec="2"), RUNNING, 100, Stop("a")),
        (replace(UP, asked="2", spec="2", broken=True), RUNNING, 1e6, None),
        (UP, Seen(crashes=(1.0,) * 10), 0, GiveUp("a", 10)),
        (DOWN, Seen(crashes=(1.0,) * 10), 0, None),
    ],
)
def test_what_to_do_now(wanted: Wanted, seen: Seen, now_s: float, step: Step | None) -> None:
    assert decide("a", wanted, seen, now_s, LIMITS) == step
    due = due_s(wanted, seen, LIMITS)
    assert (due is not None and due <= now_s) == (step is not None)


def test_a_plan_has_one_step_an_agent_in_name_order() -> None:
    wanted = {"c": UP, "a": DOWN, "b": UP}
    assert plan(wanted, {"a": RUNNING, "b": RUNNING}, 100, LIMITS) == [Stop("a"), Start("c")]


@pytest.mark.parametrize(
    "exit_, failed, kind",
    [
        (Exit(0), False, "done"),
        (Exit(75), False, "later"),
        (Exit(78), False, "config"),
        (Exit(65), True, "bad_message"),
        (Exit(65), False, "crash"),  # it blames a message but had none
        (Exit(1), False, "crash"),
        (Exit(143), False, "crash"),
        (Exit(signal=9), False, "crash"),
        (Exit(), False, "crash"),  # nobody can tell
    ],
)
def test_what_an_exit_means(exit_: Exit, failed: bool, kind: str) -> None:
    assert kind_of(exit_, failed) == kind


@pytest.mark.parametrize("want", ["up", "demand"])
@pytest.mark.parametrize(
    "code, policy, status",
    [
        (0, "always", "again"),
        (0, "on-failure", "stopped"),
        (0, "never", "stopped"),
        (1, "always", "again"),
        (1, "on-failure", "again"),
        (1, "never", "stopped"),
        (75, "always", "again"),
        (75, "on-failure", "again"),
        (75, "never", "stopped"),
        (78, "always", "error"),
        (78, "on-failure", "error"),
        (78, "never", "error"),
    ],
)
def test_what_follows_an_exit(want: Want, code: int, policy: Policy, status: str) -> None:
    wanted = Wanted(want, Restart(policy=policy), mail=True)
    after = exited(wanted, RUNNING, Exit(code), 200, 0.5)
    if want == "demand" and code == 0:
        status = "again"  # dormant, whatever the policy: mail starts it
    if want == "demand" and code == 0:
        assert decide("a", wanted, after, 200, LIMITS) == Start("a")  # the mail may have come while it left
    elif status == "again":
        assert decide("a", wanted, after, 200, LIMITS) is None
        assert decide("a", wanted, after, 201.5, LIMITS) == Start("a")
    else:
        assert decide("a", wanted, after, 1e9, LIMITS) is None
        assert status_of(wanted, after) == status


def test_n_grows_with_each_crash_and_falls_after_health_or_a_finished_message() -> None:
    seen, now = RUNNING, 100.0
    for n in range(4):
        now += 1
        after = exited(UP, seen, CRASH, now, 0)
        assert (after.n, after.start_after_s) == (n + 1, now + 2**n)
        seen = started(UP, after, now)
    assert exited(UP, seen, CRASH, now + HEALTHY_S, 0).start_after_s == now + HEALTHY_S + 1
    assert len(exited(UP, seen, CRASH, now + HEALTHY_S, 0).crashes) == 5  # health alone forgets no crash
    finished = exited(UP, seen, CRASH, now + 1, 0, finished=True)
    assert (finished.n, finished.crashes, finished.start_after_s) == (1, (now + 1,), now + 2)


def test_crashes_count_within_the_window_only() -> None:
    wanted = Wanted("up", Restart(limit=3, window_s=100, base_s=0))
    seen = RUNNING
    for now in (0.0, 90.0, 180.0, 270.0):  # never three within a hundred seconds
        seen = started(wanted, exited(wanted, seen, CRASH, now, 0), now)
    after = exited(wanted, seen, CRASH, 275, 0)
    assert decide("a", wanted, after, 275, LIMITS) == GiveUp("a", 3)


def test_giving_up_is_tried_again_and_ends_with_somebody_asking() -> None:
    seen = replace(Seen(), crashes=(1.0,) * 10, asked="1")
    wanted = replace(UP, asked="1")
    later = postponed(seen, 100, 5)
    assert decide("a", wanted, later, 104, LIMITS) is None
    assert decide("a", wanted, later, 105, LIMITS) == GiveUp("a", 10)
    dead = look(replace(DEAD, asked="2"), buried(later))
    assert status_of(replace(DEAD, asked="2"), dead) == "dead"
    assert decide("a", replace(DEAD, asked="2"), dead, 1e9, LIMITS) is None
    again = look(replace(UP, asked="3"), dead)
    assert (again.n, again.crashes) == (0, ())
    assert decide("a", replace(UP, asked="3"), again, 105, LIMITS) == Start("a")


@pytest.mark.parametrize("before", [Seen(parked="done"), Seen(parked="config"), Seen(n=7, start_after_s=1e9)])
def test_asking_means_now(before: Seen) -> None:
    asked = replace(UP, asked="2")
    assert decide("a", asked, look(asked, before), 0, LIMITS) == Start("a")
    assert look(UP, before) == before  # and nothing happens when nobody asked


def test_a_configuration_error_waits_for_other_settings() -> None:
    wanted = replace(UP, settings="1")
    after = exited(wanted, started(wanted, Seen(), 0), Exit(78), 1, 0)
    assert decide("a", wanted, look(wanted, after), 1e9, LIMITS) is None
    mended = replace(UP, settings="2")
    assert decide("a", mended, look(mended, after), 1, LIMITS) == Start("a")
    assert parked(wanted, Seen()).parked == "config"


def test_settings_that_changed_while_it_ran_count_when_it_leaves_with_78() -> None:
    ran_with, now_is = replace(UP, settings="1"), replace(UP, settings="2")
    after = exited(now_is, started(ran_with, Seen(), 0), Exit(78), 1, 0)
    assert decide("a", now_is, look(now_is, after), 1, LIMITS) == Start("a")


@pytest.mark.parametrize("exit_", [Exit(0), Exit(1), Exit(75), Exit(78), Exit(signal=9), Exit()])
def test_who_was_sent_away_did_not_crash(exit_: Exit) -> None:
    after = exited(DOWN, sent_away(RUNNING, 150), exit_, 151, 0)
    assert (after.crashes, after.n, after.parked) == ((), 0, "")
    assert decide("a", UP, after, 151, LIMITS) == Start("a")  # wanted again meanwhile


def test_asked_for_while_it_was_leaving_it_starts_at_once() -> None:
    never = Wanted("up", Restart(policy="never", base_s=300), asked="2")
    after = exited(never, RUNNING, Exit(0), 200, 0)
    assert decide("a", never, after, 200, LIMITS) == Start("a")


@pytest.mark.parametrize("policy", ["always", "on-failure", "never"])
def test_started_for_another_spec_than_there_is_now_it_starts_at_once(policy: Policy) -> None:
    wanted = Wanted("up", restart=Restart(policy=policy, base_s=3600, max_s=3600))
    seen = exited(wanted, Seen(running=True, n=4, crashes=(1.0,)), Exit(76), 100.0, 0.5, anew=True)
    assert decide("a", wanted, seen, 100.0, LIMITS) == Start("a") and seen.n == 0 and not seen.crashes


def test_a_dormant_agent_waits_for_mail_and_then_starts_at_once() -> None:
    after = exited(DEMAND, RUNNING, Exit(0), 200, 0, finished=True)
    assert decide("a", DEMAND, after, 1e9, LIMITS) is None
    assert status_of(DEMAND, after) == "idle"
    assert decide("a", MAIL, after, 200, LIMITS) == Start("a")


def test_mail_that_is_left_lying_is_tried_ever_more_seldom_but_new_mail_at_once() -> None:
    seen, waits = RUNNING, []
    for _ in range(4):
        seen = exited(MAIL, seen, Exit(0), 200, 0)
        waits.append(seen.start_after_s - 200)
        assert seen.crashes == ()
        before, seen = seen, started(MAIL, seen, 200)
    assert waits == [0, 1, 2, 4]
    assert decide("a", MAIL, arrived(before), 200, LIMITS) == Start("a")
    crashed = exited(MAIL, RUNNING, CRASH, 200, 0)
    assert arrived(crashed) == crashed  # after a crash, mail does not shorten the wait


def test_a_message_that_was_failed_for_it_starts_it_at_once() -> None:
    after = exited(UP, replace(RUNNING, n=5, crashes=(1.0,)), Exit(65), 200, 0, failed_message=True)
    assert (after.n, after.crashes, after.start_after_s) == (0, (), 200)


@pytest.mark.parametrize(
    "wanted, seen, status",
    [
        (UP, RUNNING, ""),  # it writes its own
        (UP, Seen(), "pending"),
        (UP, Seen(last="crash", start_after_s=9), "restarting"),
        (UP, Seen(last="later", start_after_s=9), "restarting"),
        (UP, Seen(parked="config"), "error"),
        (UP, Seen(parked="done"), "stopped"),
        (replace(UP, broken=True), Seen(), "error"),
        (DOWN, Seen(parked="config"), "stopped"),
        (DEAD, Seen(), "dead"),
        (DEMAND, Seen(), "idle"),
        (MAIL, Seen(), "pending"),
        (MAIL, Seen(last="crash"), "restarting"),
    ],
)
def test_the_word_for_people(wanted: Wanted, seen: Seen, status: str) -> None:
    assert status_of(wanted, seen) == status
