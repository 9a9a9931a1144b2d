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
_SETTINGS = (_HERE.config.name, _HERE.secrets.name, _HERE.routes.name)
_AGENTS, _PIPES, _HOME, _SECRETS = ("agents", ""), ("agents", "pipes"), ("home", ""), ("secrets", "")


@record(frozen=False)
class News:
    """What was heard of.

    agents    names in agents/ that came or went
    changed   agents whose files are to be read again
    stirred   agents that wrote their status
    mail      names that arrived in an agent's inbox
    """

    everywhere: bool = False
    settings: bool = False
    agents: set[str] = field(default_factory=set)
    stirred: set[str] = field(default_factory=set)
    changed: set[str] = field(default_factory=set)
    mail: dict[str, set[str]] = field(default_factory=dict)


class Sights:
    """`complete` is False when something could not be watched; `why` says why."""

    def __init__(self, home: Home) -> None:
        self._home = home
        self._numbers: dict[tuple[str, str], int] = {}
        self._watch: watch.Watch | None = None
        self.complete = True
        self.why = ""
        try:
            self._watch = watch.Watch()
        except OSError as error:
            self._give_up(error)

    @property
    def fd(self) -> int:
        return -1 if self._watch is None else self._watch.fd

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
            if number is not None and self._watch is not None:
                self._watch.remove(number)

    def _add(self, key: tuple[str, str], directory: Path, mask: int) -> None:
        if self._watch is None or key in self._numbers:
            return
        try:
            self._numbers[key] = self._watch.add(directory, mask, key)
        except (FileNotFoundError, NotADirectoryError):
            pass  # not there yet: its creation is seen from the directory above
        except OSError as error:
            self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        self.complete = False
        self.why = f"{error.strerror or error}: raise fs.inotify.max_user_instances and fs.inotify.max_user_watches"

    def read(self) -> News:
        """Everything heard since the last time."""
        news = News()
        for event in self._watch.read() if self._watch is not None else ():
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
            elif name == _AGENT.status.name:
                news.stirred.add(agent)
            elif name == _AGENT.inbox.name:
                news.everywhere = True
        elif kind == "secrets" or name in _SETTINGS:
            news.settings = True
        elif name == _HERE.pipes.name:
            news.everywhere = True

    def close(self) -> None:
        if self._watch is not None:
            self._watch.close()
