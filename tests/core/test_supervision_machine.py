"""Whatever happens in whatever order, these hold for every agent. The machine does at once what is decided."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from loom.core import supervision as core
from loom.core.supervision import Exit, GiveUp, Kill, Limits, Seen, Start, Stop, Wanted
from loom.wire.agent import POLICIES, Restart

LIMITS = Limits(grace_s=10, ready_s=60)
CODES = st.sampled_from([0, 1, 65, 70, 75, 78])


class Supervised(RuleBasedStateMachine):
    """One agent, its files and its process, as the supervisor's loop would drive them."""

    @initialize(
        policy=st.sampled_from(POLICIES),
        limit=st.integers(1, 4),
        base_s=st.sampled_from([0.0, 1.0]),
        want=st.sampled_from(["up", "down", "demand"]),
    )
    def begin(self, policy, limit, base_s, want):
        self.now = 1000.0
        self.wanted = Wanted(want, Restart(policy=policy, limit=limit, base_s=base_s, window_s=100), asked="0")
        self.seen = Seen(asked="0")
        self.news = 0
        self.alive = False
        self.term_s = None
        self.crashes = 0  # since the last finished message or asking: an upper bound of what may count
        self.started_for = None
        self.act()

    def act(self):
        """What the loop does after every event: look, decide, carry out, until nothing is due."""
        self.seen = core.look(self.wanted, self.seen)
        for _ in range(4):
            due = core.due_s(self.wanted, self.seen, LIMITS)
            step = core.decide("a", self.wanted, self.seen, self.now, LIMITS)
            assert (step is not None) == (due is not None and due <= self.now)
            if step is None:
                return
            self.carry_out(step)
        raise AssertionError("it never comes to rest")

    def carry_out(self, step):
        match step:
            case Start():
                assert not self.alive, "two processes for one mailbox"
                assert self.wanted.want == "up" or (self.wanted.want == "demand" and self.wanted.mail)
                assert not self.wanted.broken
                self.alive, self.term_s = True, None
                self.seen = core.started(self.wanted, self.seen, self.now)
                self.started_for = self.wanted
            case Stop():
                assert self.alive and self.term_s is None, "one SIGTERM is enough"
                changed = self.wanted.asked != self.started_for.asked and self.wanted.spec != self.started_for.spec
                assert self.wanted.want in ("down", "dead") or changed
                self.term_s = self.now
                self.seen = core.sent_away(self.seen, self.now)
            case Kill(reason=reason):
                assert self.alive
                if reason == "grace":
                    assert self.term_s is None or self.now >= self.term_s + LIMITS.grace_s
                else:
                    assert not self.seen.ready and self.now >= self.seen.started_s + LIMITS.ready_s
                self.seen = core.killed(self.seen, self.now)
            case GiveUp(crashes=crashes):
                assert not self.alive
                assert crashes >= self.wanted.restart.limit
                assert self.crashes >= self.wanted.restart.limit, "dead without having crashed so often"
                self.write(want="dead")
                self.seen = core.look(self.wanted, core.buried(self.seen))

    def write(self, **fields):
        self.news += 1
        self.wanted = replace(self.wanted, asked=str(self.news), **fields)

    # -- what can happen -------------------------------------------------------------------------------------

    @rule(want=st.sampled_from(["up", "down", "demand"]))
    def asked(self, want):
        self.write(want=want)
        if want in ("up", "demand") and not self.alive:
            self.crashes = 0
        self.act()
        if want == "up" and not self.wanted.broken:
            assert self.alive, "asking means now"

    @rule(broken=st.booleans(), too=st.booleans())
    def edited(self, broken, too):
        self.news += 1
        self.wanted = replace(self.wanted, spec=str(self.news), settings=str(self.news), broken=broken)
        if too:
            self.write()
            if not self.alive:
                self.crashes = 0
        self.act()

    @rule(mail=st.booleans())
    def mail(self, mail):
        self.wanted = replace(self.wanted, mail=mail)
        if mail:
            self.seen = core.arrived(self.seen)
        self.act()

    @rule(wait_s=st.sampled_from([0.1, 1.0, 10.0, 60.0, 600.0, 4000.0]))
    def time_passes(self, wait_s):
        self.now += wait_s
        self.act()

    @precondition(lambda self: self.alive)
    @rule()
    def ready(self):
        self.seen = core.became_ready(self.seen)
        self.act()

    @precondition(lambda self: self.alive)
    @rule(
        exit_=st.one_of(CODES.map(Exit), st.just(Exit(signal=9)), st.just(Exit())),
        finished=st.booleans(),
        failed_message=st.booleans(),
        draw=st.floats(0, 1, exclude_max=True),
    )
    def process_ends(self, exit_, finished, failed_message, draw):
        sent_away = self.term_s is not None
        asked = self.wanted.asked != self.started_for.asked and self.wanted.want in ("up", "demand")
        if finished or asked or sent_away:
            self.crashes = 0
        if core.kind_of(exit_, failed_message) == "crash" and not sent_away:
            self.crashes += 1
        elif core.kind_of(exit_, failed_message) == "bad_message":
            self.crashes = 0
        before = self.seen
        self.alive, self.term_s = False, None
        self.seen = core.exited(
            self.wanted, before, exit_, self.now, draw, finished=finished, failed_message=failed_message
        )
        assert self.seen.start_after_s - self.now <= self.wanted.restart.max_s + 0.5
        if exit_.code == 78 and not sent_away and not asked and self.wanted.settings == before.settings:
            assert core.due_s(self.wanted, self.seen, LIMITS) is None, "78 waits for a person"
        self.act()

    # -- what always holds -----------------------------------------------------------------------------------

    @invariant()
    def at_rest(self):
        if not hasattr(self, "seen"):
            return
        assert self.seen.running == self.alive
        assert core.decide("a", self.wanted, self.seen, self.now, LIMITS) is None, "nothing is left undone"

    @invariant()
    def wanted_down_ends(self):
        """Nobody is running unasked without having been told to go."""
        if hasattr(self, "seen") and self.alive and self.wanted.want in ("down", "dead"):
            assert self.term_s is not None or self.seen.kill_s is not None

    @invariant()
    def the_word_fits(self):
        if hasattr(self, "seen"):
            assert (core.status_of(self.wanted, self.seen) == "") == self.alive


TestSupervised = Supervised.TestCase
TestSupervised.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
