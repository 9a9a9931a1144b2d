"""What the supervisor hears of changes in the home: one inotify instance over agents/, pipes/, each agent, each inbox.

Only a courtesy: without inotify (no instances or watches left) the supervisor looks everywhere more often.
"""

from __future__ import annotations

from pathlib import Path

from loom.spool import watch
from loom.spool.layout import AgentDir, Home
from loom.wire.record import field, record

_HERE = Home(Path())
_AGENT = _HERE.agent("a")
_DECIDING = (_AGENT.want.name, _AGENT.spec.name, _AGENT.prompt.name)
_STIRRING = (_AGENT.status.name, _AGENT.heartbeat.name)
_SETTINGS = (_HERE.config.name, _HERE.secrets.name, _HERE.routes.name, _HERE.overrides.name)
_AGENTS, _PIPES, _HOME, _SECRETS = ("agents", ""), ("agents", "pipes"), ("home", ""), ("secrets", "")


@record(frozen=False)
class News:
    """What was heard of.

    agents    names in agents/ that came or went
    changed   agents whose files are to be read again
    stirred   agents that wrote their status, or what they are about to do
    mail      names that arrived in an agent's inbox
    """

    everywhere: bool = False
    settings: bool = False
    agents: set[str] = field(default_factory=set)
    stirred: set[str] = field(default_factory=set)
    changed: set[str] = field(default_factory=set)
    mail: dict[str, set[str]] = field(default_factory=dict)


class Sights:
    """`watch`: what is listened to, and whether that is all."""

    def __init__(self, home: Home) -> None:
        self._home = home
        self._numbers: dict[tuple[str, str], int] = {}
        self.watch = watch.BestEffort()

    def watch_home(self) -> None:
        """Also again later: secrets/ and pipes/ need not exist from the start."""
        for key, directory in ((_AGENTS, self._home.agents), (_PIPES, self._home.pipes)):
            self._add(key, directory, watch.ARRIVALS | watch.DELETED | watch.MOVED_FROM)
        self._add(_HOME, self._home.path, watch.REPLACED | watch.CREATED)
        self._add(_SECRETS, self._home.secrets, watch.REPLACED | watch.DELETED)

    def watch_agent(self, agent: AgentDir) -> None:
        """Watch what is there of an agent's directory; nothing happens for what is watched already."""
        self._add(("agent", agent.name), agent.path, watch.REPLACED | watch.CREATED | watch.DELETED)
        self._add(("inbox", agent.name), agent.inbox, watch.ARRIVALS)

    def forget_agent(self, name: str) -> None:
        for key in (("agent", name), ("inbox", name)):
            number = self._numbers.pop(key, None)
            if number is not None:
                self.watch.remove(number)

    def _add(self, key: tuple[str, str], directory: Path, mask: int) -> None:
        """What is not there yet is heard of from the directory above."""
        if key not in self._numbers and (number := self.watch.add(directory, mask, key)) is not None:
            self._numbers[key] = number

    def read(self) -> News:
        """Everything heard since the last time."""
        news = News()
        for event in self.watch.read():
            if event.mask & watch.OVERFLOW or not isinstance(event.key, tuple):
                news.everywhere = True
                continue
            if event.mask & watch.IGNORED:
                self._numbers.pop(event.key, None)
                news.everywhere = True
                continue
            self._take(news, event.key, event.name)
        return news

    def _take(self, news: News, key: tuple[str, str], name: str) -> None:
        kind, agent = key
        if kind == "agents":
            news.agents.add(name)
        elif kind == "inbox":
            if name.endswith(".msg") and not name.startswith("."):
                news.mail.setdefault(agent, set()).add(name)
        elif kind == "agent":
            if name in _DECIDING:
                news.changed.add(agent)
            elif name in _STIRRING:
                news.stirred.add(agent)
            elif name == _AGENT.inbox.name:
                news.everywhere = True
        elif kind == "secrets" or name in _SETTINGS:
            news.settings = True
        elif name == _HERE.pipes.name:
            news.everywhere = True
