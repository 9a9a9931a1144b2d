"""The real runner and router, in this process, with the far sides played: what the model is held against."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

from loom.daemons.router import Router
from loom.daemons.runner import ChatWorker
from loom.daemons.service import Agent, MailboxLoop
from loom.daemons.turnloop import Tools
from loom.proc.stopping import Stopping
from loom.spool import agents, fs, locks
from loom.spool.home import open_home
from loom.spool.layout import Home
from loom.spool.logs import Log
from loom.wire import ids
from loom.wire import message as wire
from loom.wire.agent import AgentSpec
from loom.wire.chat import ChatReply, ChatRequest, Chunk, ToolCall, ToolSpec, Usage
from loom.wire.errors import BadInput
from loom.wire.message import Message

ENV = {"LOOM_ALLOW_FILESYSTEM": "1"}
NOW_MS = 1_790_000_000_000


class Silent(Log):
    """Logs decide nothing."""

    def write(self, level: str, event: str, *records: Mapping[str, Any]) -> None:
        pass


class Outside:
    """What the world outside remembers: no crash reaches it. Counted by (agent, request, attempt)."""

    def __init__(self) -> None:
        self.bought: dict[tuple[str, str, int], int] = {}
        self.used: dict[tuple[str, str, int], int] = {}

    def count(self, book: dict[tuple[str, str, int], int], key: tuple[str, str, int]) -> int:
        book[key] = book.get(key, 0) + 1
        return book[key]


class Model:
    """No two answers are alike. `fails once` and `use a tool` in a message do what they say."""

    name = "test/model"

    def __init__(self, agent: Agent, outside: Outside) -> None:
        self.agent, self.outside = agent, outside

    def stream(self, request: ChatRequest) -> Iterator[Chunk]:
        key = at_work(self.agent)
        count = self.outside.count(self.outside.bought, key)
        body = next(m.text for m in reversed(request.messages) if m.role == "user")
        told = any(m.role == "tool" for m in request.messages)
        if "fails once" in body and key[2] == 0:
            raise BadInput("this cannot be answered")
        calls = (ToolCall("call", "note", {}),) if "use a tool" in body and not told else ()
        yield ChatReply(f"answer {count}", calls, "tool_calls" if calls else "end", Usage(1, 1))


def at_work(agent: Agent) -> tuple[str, str, int]:
    """(agent, request, attempt) of what is in progress; looked up without a function of loom."""
    with os.scandir(agent.dir.in_progress) as entries:
        (stem,) = (entry.name.removesuffix(".msg") for entry in entries if entry.name.endswith(".msg"))
    record = agent.dir.failed / f"{stem}.msg.error.json"
    attempt = json.loads(record.read_bytes())["attempts"] if record.exists() else 0
    return agent.dir.name, stem, attempt


class Process:
    """One life of a runner or of the router; nothing of it outlives close(), as nothing outlives a kill."""

    def __init__(self, home: Home, name: str) -> None:
        directory = home.agent(name)
        self.agent = Agent(home, directory, agents.read_spec(directory), Silent(directory.logs), Stopping())
        self.me = locks.Incarnation(1, 1, "boot-of-this-test")

    def close(self) -> None:
        os.close(self.agent.stopping.fd)
        os.close(self.agent.stopping._bell)


class Runner(Process):
    """A runner from its start to its end: the lock, what its predecessor left, then what waits."""

    def __init__(self, home: Home, name: str, outside: Outside) -> None:
        super().__init__(home, name)
        self.outside = outside

    def run(self, messages: int = 1 << 30) -> None:
        """Work on what was in progress and on at most so many of what waits."""
        box = self.agent.dir
        lock = locks.acquire(box.lock)
        assert lock is not None, "somebody else lives"
        with lock:
            worker = ChatWorker(self.agent)
            worker.model = Model(self.agent, self.outside)
            worker.tools = Tools({"note": ToolSpec("note", "notes", {"type": "object"})}, self._note)
            loop = MailboxLoop(self.agent, worker, self.me)
            try:
                loop.recover()
                while messages and (claimed := loop.inbox.claim()) is not None:
                    loop.handle(claimed)
                    messages -= 1
            finally:
                loop.close()

    def _note(self, call: ToolCall) -> Mapping[str, Any]:
        self.outside.count(self.outside.used, at_work(self.agent))
        return {"status": "ok", "result": "noted"}


def route_all(home: Home) -> None:
    """One life of the router: everything is looked at once."""
    process = Process(home, "router")
    router = Router(process.agent, process.me)
    try:
        router.sights.watch.close()  # it looks everywhere each time
        router.sweep()
    finally:
        router.close()
        process.close()


def make_home(path: Path, *names: str) -> Home:
    """A home with these agents and a router; routes lead from each to the next, the last one's answers go nowhere."""
    home = open_home(path, ENV)
    fs.replace(home.config, b"pools: {planner: 1, executor: 1, verifier: 1, keeper: 1}\n")
    agents.create(home, AgentSpec("router", "builtin", runner="router"), "", "up")
    for name in names:
        agents.create(home, AgentSpec(name, "builtin/echo"), "", "up")
    routes = ",".join(f'{{"from":"{a}","to":"{b}"}}' for a, b in pairwise(names))
    fs.replace(home.routes, f'{{"v":1,"routes":[{routes}]}}'.encode())
    return home


def letter(stem: str, body: str, sender: str = "user") -> bytes:
    return wire.encode(Message(ids.ulid_of(stem), sender, NOW_MS, body))


def stem(number: int, at_ms: int = NOW_MS) -> str:
    """Names whose order in time the caller chooses: clocks jump."""
    return ids.message_stem(at_ms, number.to_bytes(10, "big"))
