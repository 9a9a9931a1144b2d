"""What the router hears of changes in the home: one inotify over agents/, pipes/, each outbox, goals/, control/.

A directory of agents/ or pipes/ is itself watched for as long as it has no outbox, so that those made later, or made
anew under an old name, are heard like the others. Only a courtesy: without inotify (no instances or watches left) the
router looks everywhere more often.
"""

from __future__ import annotations

import os
from pathlib import Path

from loom.spool import watch
from loom.spool.layout import Home
from loom.wire import ids
from loom.wire.record import field, record


@record(frozen=False)
class News:
    """`outboxes`: agents in whose outbox something has arrived; `goals`: new ones, and those asked for something."""

    everywhere: bool = False
    outboxes: set[str] = field(default_factory=set)
    goals: set[str] = field(default_factory=set)


class RouterSights:
    """`complete` is False when not everything is watched; `why` says what went wrong."""

    def __init__(self, home: Home) -> None:
        self._home = home
        self._watch: watch.Watch | None = None
        self._outboxes: set[str] = set()  # agents whose outbox is watched
        self._without: dict[str, int] = {}  # agents that had no outbox: the number of the watch of their directory
        self.complete = True
        self.why = ""
        try:
            self._watch = watch.Watch()
        except OSError as error:
            self._give_up(error)
        self._add(("agents", ""), home.agents, watch.ARRIVALS)
        self._add(("agents", ""), home.pipes, watch.ARRIVALS)
        self._add(("goals", ""), home.goals, watch.ARRIVALS)

    @property
    def fds(self) -> list[int]:
        return [] if self._watch is None else [self._watch.fd]

    def watch_agents(self) -> None:
        """Watch all that are there; nothing happens for an outbox that is watched already."""
        for directory in (self._home.agents, self._home.pipes):
            try:
                found = os.listdir(directory)
            except FileNotFoundError:
                continue
            for name in found:
                if ids.is_mailbox(name) and name not in self._outboxes:
                    self._watch_agent(name)

    def watch_goal(self, goal: str) -> None:
        self._add(("control", goal), self._home.goal(goal).control, watch.ARRIVALS)

    def _watch_agent(self, name: str) -> None:
        """Watch the outbox, also one that has taken the place of another; until there is one, the agent's directory."""
        agent = self._home.agent(name)
        heard = self._add(("outbox", name), agent.outbox, watch.ARRIVALS)
        if heard is None:
            number = self._add(("agent", name), agent.path, watch.CREATED | watch.MOVED_TO)
            if number is not None:
                self._without[name] = number
            heard = self._add(("outbox", name), agent.outbox, watch.ARRIVALS)  # made between these two?
        if heard is None:
            self._outboxes.discard(name)
            return
        self._outboxes.add(name)
        if self._watch is not None and name in self._without:
            self._watch.remove(self._without.pop(name))

    def _add(self, key: tuple[str, str], directory: Path, mask: int) -> int | None:
        """The number of the watch, the same one for the same directory; None when it is not there or not for us."""
        if self._watch is None:
            return None
        try:
            return self._watch.add(directory, mask, key)
        except (FileNotFoundError, NotADirectoryError, PermissionError):
            return None
        except OSError as error:
            self._give_up(error)
            return None

    def _give_up(self, error: OSError) -> None:
        self.complete = False
        self.why = f"{error.strerror or error}: raise fs.inotify.max_user_instances and fs.inotify.max_user_watches"

    def read(self) -> News:
        """Everything heard since the last time. What is new is watched when this returns."""
        news = News()
        for event in self._watch.read() if self._watch is not None else ():
            if event.mask & watch.OVERFLOW or not isinstance(event.key, tuple):
                news.everywhere = True
                self._outboxes.clear()  # each may be another directory by now
            else:
                self._take(news, event.key, event)
        return news

    def _take(self, news: News, key: tuple[str, str], event: watch.Event) -> None:
        kind, name = key
        if event.mask & watch.IGNORED and kind == "agent" and name in self._without:
            del self._without[name]
        if kind == "goals":
            news.goals.add(event.name)
        elif kind == "control":
            news.goals.add(name)
        elif kind == "outbox" and not event.mask & watch.IGNORED:
            news.outboxes.add(name)
        else:  # an agent, or its outbox, came or went
            name = name or event.name
            if ids.is_mailbox(name):
                self._watch_agent(name)
                news.outboxes.add(name)  # what arrived before the watch was there

    def close(self) -> None:
        """From now on nothing is heard."""
        if self._watch is not None:
            self._watch.close()
        self._watch = None
        self.complete = False
