"""What the router hears of changes in the home: one inotify over it, agents/, pipes/, each outbox, goals/, control/.

A directory of agents/ or pipes/ is itself watched for as long as it has no outbox, so that those made later, or made
anew under an old name, are heard like the others. Only a courtesy: without inotify (no instances or watches left) the
router looks everywhere more often.
"""

from __future__ import annotations

import os
from collections.abc import Iterable

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
    """`watch`: what is listened to, and whether that is all. What an agent has closed to us is left out."""

    def __init__(self, home: Home) -> None:
        self._home = home
        self._outboxes: set[str] = set()  # agents whose outbox is watched
        self._goals: set[str] = set()  # goals whose control/ is watched
        self._without: dict[str, int] = {}  # agents that had no outbox: the number of the watch of their directory
        self.watch = watch.BestEffort((FileNotFoundError, NotADirectoryError, PermissionError))
        self.watch.add(home.path, watch.CREATED | watch.MOVED_TO, ("home", ""))
        self.watch.add(home.goals, watch.ARRIVALS, ("goals", ""))

    def watch_agents(self) -> None:
        """Watch all that are there; nothing happens for an outbox that is watched already."""
        for directory in (self._home.agents, self._home.pipes):
            self.watch.add(directory, watch.ARRIVALS, ("agents", ""))
            try:
                found = os.listdir(directory)
            except FileNotFoundError:
                continue
            for name in found:
                if ids.is_mailbox(name) and name not in self._outboxes:
                    self._watch_agent(name)

    def watch_goals(self, goals: Iterable[str]) -> None:
        """Watch what these are asked for, ended ones too: they may be landed. Nothing happens for those watched."""
        for goal in goals:
            if goal not in self._goals:
                control = self._home.goal(goal).control
                if self.watch.add(control, watch.ARRIVALS, ("control", goal)) is not None:
                    self._goals.add(goal)

    def _watch_agent(self, name: str) -> None:
        """Watch the outbox, also one that has taken the place of another; until there is one, the agent's directory."""
        agent = self._home.agent(name)
        heard = self.watch.add(agent.outbox, watch.ARRIVALS, ("outbox", name))
        if heard is None:
            number = self.watch.add(agent.path, watch.CREATED | watch.MOVED_TO, ("agent", name))
            if number is not None:
                self._without[name] = number
            heard = self.watch.add(agent.outbox, watch.ARRIVALS, ("outbox", name))  # made between these two?
        if heard is None:
            self._outboxes.discard(name)
            return
        self._outboxes.add(name)
        if name in self._without:
            self.watch.remove(self._without.pop(name))

    def read(self) -> News:
        """Everything heard since the last time. What is new is watched when this returns."""
        news = News()
        for event in self.watch.read():
            if event.mask & watch.OVERFLOW or not isinstance(event.key, tuple):
                news.everywhere = True
                self._outboxes.clear()  # each may be another directory by now
                self._goals.clear()
            else:
                self._take(news, event.key, event)
        return news

    def _take(self, news: News, key: tuple[str, str], event: watch.Event) -> None:
        kind, name = key
        if event.mask & watch.IGNORED and kind == "agent" and name in self._without:
            del self._without[name]
        if kind == "home":  # most of what comes and goes there is none of ours
            if event.name in (self._home.agents.name, self._home.pipes.name):
                news.everywhere = True  # with the first pipe of a home comes pipes/
        elif kind == "goals":
            news.goals.add(event.name)
        elif kind == "control":
            news.goals.add(name)
            if event.mask & watch.IGNORED:
                self._goals.discard(name)
        elif kind == "outbox" and not event.mask & watch.IGNORED:
            news.outboxes.add(name)
        else:  # an agent, or its outbox, came or went
            name = name or event.name
            if ids.is_mailbox(name):
                self._watch_agent(name)
                news.outboxes.add(name)  # what arrived before the watch was there
