"""Following a goal: new journal events as they come, the state folded along, the supervisor kept alive."""

from __future__ import annotations

import time
from collections.abc import Iterator

from loom.cli.ensure import ensure_supervisor
from loom.core.goal import reduce as reducing
from loom.core.goal.state import GoalState
from loom.spool import blobs, journal, locks, wake, watch
from loom.spool.layout import GoalDir, Home
from loom.wire.errors import Config, TryLater
from loom.wire.event import Event

LOOK_S = 1.0
GIVE_UP_S = 30.0


class Follower:
    """The journal of one goal from its beginning. `state` is None until the router has taken the goal up."""

    def __init__(self, home: Home, goal: GoalDir) -> None:
        self.home, self.goal = home, goal
        self.state: GoalState | None = None
        self._served_s = time.monotonic()
        self._tail = journal.Tail(goal.journal, home.blobs)
        try:
            self._watch: watch.Watch | None = watch.Watch()
            self._watch.add(goal.path, watch.MODIFIED | watch.ARRIVALS, "journal")
        except OSError:
            self._watch = None

    def read(self) -> list[Event]:
        """What is new, folded into `state`. Raises Config when the journal is damaged."""
        try:
            events = self._tail.read()
            for event in events:
                self.state = reducing.first(event) if self.state is None else reducing.reduce(self.state, event)
        except (journal.JournalDamaged, blobs.BlobDamaged, OSError, ValueError, KeyError, TypeError) as error:
            raise damaged(self.goal, error) from None
        return events

    @property
    def is_over(self) -> bool:
        """Nothing more is to come: the goal has ended, and so has a landing that was asked for with it."""
        state = self.state
        if state is None or not state.quiet:
            return False
        return not (state.status == "completed" and state.spec.land and state.spec.source and state.landing == "")

    def events(self, deadline_s: float | None = None) -> Iterator[Event]:
        """Events for ever; the caller stops when it has seen enough. Raises TryLater at the (monotonic) deadline."""
        last_look = 0.0
        while True:
            yield from self.read()
            if deadline_s is not None and time.monotonic() > deadline_s:
                raise TryLater(f"the router has not answered for {self.goal.id}", hint="see: loom supervisor status")
            if time.monotonic() - last_look >= LOOK_S:
                self.keep_alive()
                last_look = time.monotonic()
            self._wait()

    def keep_alive(self) -> None:
        """Somebody has to serve the goal: start a supervisor when there is none (any more).

        One that dies before it is ready is no reason to leave. Raises TryLater when there is none for GIVE_UP_S.
        """
        now = time.monotonic()
        if locks.is_held(self.home.supervisor_lock):
            self._served_s = now
            return
        try:
            ensure_supervisor(self.home)
        except TryLater:
            if now - self._served_s > GIVE_UP_S:
                raise

    def _wait(self) -> None:
        if self._watch is None:
            time.sleep(0.1)
            return
        import select

        poller = select.poll()
        poller.register(self._watch.fd, select.POLLIN)
        if poller.poll(int(LOOK_S * 1000)):
            self._watch.read()

    def close(self) -> None:
        if self._watch is not None:
            self._watch.close()


def damaged(goal: GoalDir, error: Exception) -> Config:
    """What is said of a goal whose files cannot be read."""
    text = str(error) if str(error).startswith(str(goal.path)) else f"{goal.journal}: {error or type(error).__name__}"
    return Config(f"the journal of {goal.id} is damaged: {text}", hint="nothing was changed")


def take_up(home: Home) -> None:
    """Make sure that a supervisor runs, and with it a router, and that the router looks."""
    ensure_supervisor(home)
    wake.ring(home.wake_fifo("router"))
