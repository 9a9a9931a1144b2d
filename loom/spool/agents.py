"""An agent's directory: its spec, what is wanted of it, the one-value files for people (docs/protocol.md section 1)."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

from loom.spool import fs, locks, mailbox
from loom.spool import home as homes
from loom.spool.layout import AgentDir, Home
from loom.wire import agent as wire
from loom.wire import ids
from loom.wire.agent import WANTS, AgentSpec, Want
from loom.wire.errors import Config, NotFound
from loom.wire.times import rfc3339


def create(home: Home, spec: AgentSpec, prompt: str, want: Want) -> AgentDir:
    """Make an agent, or give an existing one this spec. A new one's `agent.json` comes last: without it there is none.

    Where spec and prompt of an existing one both change, it is not wanted in between: what is killed half-way leaves
    an agent that is down, never one that works with the prompt of the one and the spec of the other. It is wanted
    again only when it is whole, also by who finishes what was killed.
    """
    agent = home.agent(spec.name)
    mailbox.create(agent)
    for directory in (agent.logs, agent.crashes, agent.path / "conversations", agent.path / "memory", agent.tools):
        fs.ensure_dir(directory)
    for directory in (agent.path, agent.inbox, agent.outbox, agent.in_progress):
        homes.check_device(home, directory)
    if _holds_another(agent.spec, wire.encode(spec)) and _holds_another(agent.prompt, prompt.encode()):
        _change_both(agent, spec, prompt)
        write_want(agent, want)
    else:
        if prompt or agent.prompt.exists():
            fs.replace(agent.prompt, prompt.encode())
        if is_new := not agent.spec.exists():
            write_want(agent, want)
        fs.replace(agent.spec, wire.encode(spec))
        if not is_new:
            write_want(agent, want)
    fs.hint(agent.model, spec.model)
    if not agent.status.exists():
        fs.hint(agent.status, "pending" if want == "up" else "idle")
    return agent


def _holds_another(path: Path, data: bytes) -> bool:
    """Whether a file is there and is to become another one."""
    try:
        return fs.read(path, len(data)) != data
    except FileNotFoundError:
        return False
    except (fs.NotRegular, fs.TooLarge):
        return True


def _change_both(agent: AgentDir, spec: AgentSpec, prompt: str) -> None:
    """Both are written before anything is changed: a full disk then leaves the agent as it was, and wanted."""
    with fs.NewFile(agent.prompt) as new_prompt, fs.NewFile(agent.spec) as new_spec:
        new_prompt.write(prompt.encode())
        new_spec.write(wire.encode(spec))
        write_want(agent, "down")
        new_prompt.keep()
        new_spec.keep()


def names(home: Home) -> list[str]:
    """All agents, in name order, then all instances of pipes; what is neither's directory is left out."""
    top, spec = str(home.agents), home.agent("a").spec.name  # strings: ten thousand of them are listed at once
    found = [name for name in _listed(home.agents) if ids.is_agent(name) and os.path.exists(f"{top}/{name}/{spec}")]
    return found + [name for name in instances(home) if home.agent(name).spec.exists()]


def instances(home: Home) -> list[str]:
    """Directories of pipes' instances, in name order."""
    return [name for name in _listed(home.pipes) if ids.is_instance(name)]


def _listed(directory: Path) -> list[str]:
    try:
        return sorted(os.listdir(directory))
    except FileNotFoundError:
        return []


def nearest(home: Home, name: str) -> str:
    """`did you mean …` for an agent that does not exist, or an empty string."""
    import difflib

    close = difflib.get_close_matches(name, names(home), 1)
    return f"did you mean {close[0]!r}?" if close else "list them with: loom agent ps -a"


def find(home: Home, name: str) -> AgentDir:
    """The directory of an agent that exists. Raises Usage for an invalid name, NotFound for an unknown one."""
    if not ids.is_instance(name):
        ids.check_agent(name, reserved_ok=True)
    agent = home.agent(name)
    if not agent.spec.exists():
        raise NotFound(f"there is no agent {name!r} in {home.path}", hint=nearest(home, name))
    return agent


def read_spec(agent: AgentDir) -> AgentSpec:
    """Raises NotFound, and Config when agent.json is no valid spec."""
    try:
        data = fs.read(agent.spec_file, 1 << 20)
    except FileNotFoundError:
        raise NotFound(f"there is no agent {agent.name!r}") from None
    except (fs.NotRegular, fs.TooLarge) as error:
        raise Config(f"{agent.spec} cannot be read: {error}") from None
    spec = wire.decode(data, agent.spec_file)
    if spec.name != agent.name:
        raise Config(f"{agent.spec} is the spec of {spec.name!r}", hint=f"set its name to {agent.name!r}")
    return spec


def read_want(agent: AgentDir) -> Want:
    """What is wanted of this agent; `down` when the file is missing or holds no such word.

    Raises OSError for what is the environment's fault: no descriptors does not mean that an agent is unwanted.
    """
    try:
        text = fs.read(agent.want_file, 4096).decode("utf-8", "replace").strip()
    except (FileNotFoundError, fs.NotRegular, fs.TooLarge):
        return "down"
    return next((want for want in WANTS if want == text), "down")


def write_want(agent: AgentDir, want: Want) -> None:
    """Durable: the only file that supervision and send obey."""
    fs.replace(agent.want, f"{want}\n".encode())


def read_hint(path: fs.Place) -> str:
    """A one-value file, empty when it is not there. For people and for showing, never to decide."""
    try:
        return fs.read(path, 4096).decode("utf-8", "replace").strip()
    except (OSError, fs.NotRegular, fs.TooLarge):
        return ""


def note_exit(agent: AgentDir, status: int, who: locks.Incarnation) -> None:
    """For a supervisor that adopted this runner and cannot ask the kernel how it ended."""
    try:
        fs.hint(agent.last_exit, f"{status} {who.epoch} {now_text()}")
    except OSError:
        pass


def is_alive(agent: AgentDir) -> bool:
    """Whether a runner holds this agent's lock."""
    return locks.is_held(agent.lock_file)


def waiting(agent: AgentDir) -> int:
    """How many messages wait in the inbox."""
    try:
        return sum(1 for n in os.listdir(agent.inbox_file("")) if n.endswith(".msg") and not n.startswith("."))
    except (FileNotFoundError, NotADirectoryError):  # of one agent; the list of all shall not end with it
        return 0


def has_mail(agent: AgentDir) -> bool:
    """Whether there is anything to do: waiting or claimed and not finished."""
    return _has_message(agent.inbox_file("")) or _has_message(agent.claimed_file(""))


def has_claimed(agent: AgentDir) -> bool:
    """Whether a message was claimed and not finished."""
    return _has_message(agent.claimed_file(""))


def _has_message(directory: str) -> bool:
    try:
        return any(n.endswith(".msg") and not n.startswith(".") for n in os.listdir(directory))
    except (FileNotFoundError, NotADirectoryError):
        return False


def in_work(agent: AgentDir) -> tuple[str, int] | None:
    """(the message a living runner works on, Unix microseconds of its claim); None: it has claimed none.

    The claim is the last time its file moved, so it stands over restarts. Where several were claimed, it is the first
    of which there is a turn: a runner takes up one after the other.
    """
    try:
        stems = [name.removesuffix(".msg") for name in mailbox.in_progress(agent)]
    except (FileNotFoundError, NotADirectoryError):
        return None
    begun = [stem for stem in stems if ids.is_stem(stem) and agent.turn(stem, mailbox.attempts(agent, stem)).exists()]
    for stem in (*begun, *stems):
        try:
            return stem, os.lstat(agent.claimed_file(f"{stem}.msg")).st_ctime_ns // 1000
        except FileNotFoundError:
            continue  # it was finished while we looked
    return None


def finished_mark(agent: AgentDir) -> frozenset[tuple[str, int]]:
    """Two marks differ when a message was acknowledged or failed between them: directory times, no listing of messages.

    `gc` and `retry` change these times too; then an agent counts as a little healthier than it is.
    """
    shards = agent.processed(f"{0:013d}-{'0' * 26}").parent.parent
    try:
        directories = [agent.failed, *(shards / name for name in os.listdir(shards))]
    except FileNotFoundError:
        directories = [agent.failed]
    marks = set()
    for directory in directories:
        try:
            marks.add((directory.name, directory.stat().st_mtime_ns))
        except FileNotFoundError:
            continue
    return frozenset(marks)


def routed_mark(home: Home) -> frozenset[tuple[str, int]]:
    """The same for the router, whose finished messages are replies of others: two marks differ when one was sent on."""
    marks = set()
    for agent in each(home):
        shards = agent.sent(f"{0:013d}-{'0' * 26}").parent.parent
        try:
            with os.scandir(shards) as days:
                marks |= {(f"{agent.name}/{day.name}", day.stat(follow_symlinks=False).st_mtime_ns) for day in days}
        except (FileNotFoundError, NotADirectoryError, PermissionError):
            continue  # what one agent made of its outbox keeps nobody's mail
    return frozenset(marks)


def each(home: Home) -> Iterator[AgentDir]:
    top = home.agents
    for name in names(home):  # checked there
        yield AgentDir(top / name) if ids.is_agent(name) else home.agent(name)


def now_text() -> str:
    """The present time as it stands in hints and logs."""
    return rfc3339(time.time_ns() // 1000)
