"""A home, its goals and the real processes that work on them; afterwards none of them may be left."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from support import ROOT, processes_of, wait_until

from loom.cli import ensure
from loom.core.goal import reduce as reducing
from loom.core.goal.state import GoalState
from loom.spool import goals, journal, locks
from loom.spool.layout import GoalDir, Home
from loom.wire.event import Event

LONG_S = 90.0


@dataclass(frozen=True, slots=True)
class Ended:
    """How a command ended."""

    status: int
    out: str
    err: str

    def records(self) -> list[dict[str, Any]]:
        """Its NDJSON."""
        return [json.loads(line) for line in self.out.splitlines()]


@dataclass
class World:
    """One LOOM_HOME below `root`. Every command of it is a process of its own with nothing else in its environment."""

    root: Path
    idle_s: float = 0.3
    home_at: Path | None = None
    clients: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.home = Home(self.home_at or self.root / "home")
        self.work = self.folder("work")
        self.env = {
            "PATH": "/usr/local/bin:/usr/bin:/bin",
            "HOME": str(self.folder("user")),
            "LOOM_HOME": str(self.home.path),
            "PYTHONPATH": str(ROOT),
            "LOOM_SUPERVISOR_IDLE_S": str(self.idle_s),
        }

    def folder(self, name: str, **files: str) -> Path:
        """A directory below the root, with these files: `a_md` is a.md."""
        made = self.root / name
        made.mkdir(parents=True, exist_ok=True)
        for file, text in files.items():
            (made / file.replace("_", ".")).write_text(text)
        return made

    def config(self, text: str) -> None:
        self.home.path.mkdir(mode=0o700, exist_ok=True)
        self.home.config.write_text(text)

    # -- commands ------------------------------------------------------------------------------------------------

    def start(self, *args: str | Path, **given: Any) -> subprocess.Popen[bytes]:
        """A `loom` command, under way."""
        options: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        child = subprocess.Popen(
            [sys.executable, "-m", "loom", *map(str, args)], **{**options, "env": self.env, "cwd": self.root, **given}
        )
        self.clients.append(child)
        return child

    def end(self, child: subprocess.Popen[bytes], deadline_s: float = LONG_S, data: bytes | None = None) -> Ended:
        """What became of a command."""
        try:
            out, err = child.communicate(data, timeout=deadline_s)
        except subprocess.TimeoutExpired:
            child.kill()
            _, err = child.communicate()
            raise AssertionError(f"not done after {deadline_s} s:\n{err.decode()}\n{self.tell()}") from None
        return Ended(child.returncode, (out or b"").decode(), (err or b"").decode())

    def loom(self, *args: str | Path, **given: Any) -> Ended:
        """A `loom` command from beginning to end."""
        return self.end(self.start(*args, **given))

    def run(self, *args: str | Path, text: str = "Do it.", model: str = "builtin", **given: Any) -> Ended:
        """`loom run` in the folder `work`."""
        return self.loom("run", text, "-w", self.work, "--model", model, *args, **given)

    def begin(self, *args: str | Path, text: str = "Do it.", model: str = "builtin") -> subprocess.Popen[bytes]:
        """The same, under way."""
        return self.start("run", text, "-w", self.work, "--model", model, *args)

    def script(self, *entries: dict[str, Any], name: str = "script") -> str:
        """The name of a model that says these things (loom.models.script)."""
        path = self.root / f"{name}.ndjson"
        path.write_text("".join(f"{json.dumps(entry)}\n" for entry in entries))
        return f"script/{path}"

    def program(self, source: str, name: str = "model") -> str:
        """The name of a model that is this Python program; `request` is what it was asked, `text` the last words."""
        path = self.root / f"{name}.py"
        head = (
            "import json, os, sys, time\nrequest = json.load(sys.stdin)\ntext = request['messages'][-1].get('text')\n"
        )
        path.write_text(f"#!{sys.executable} -IS\n{head}{source}")
        path.chmod(0o755)
        return f"exec/{path}"

    # -- what there is to see ------------------------------------------------------------------------------------

    def goal(self, number: int = 0) -> GoalDir:
        """The goal that was made so many goals after the first."""
        found = wait_until(lambda: len(names := goals.names(self.home)) > number and names)
        made = sorted(map(self.home.goal, found), key=lambda goal: goal.document.stat().st_mtime_ns)
        return made[number]

    def events(self, goal: GoalDir | None = None) -> list[Event]:
        if not (goal or self.goal()).journal.exists():
            return []
        return list(journal.read((goal or self.goal()).journal, self.home.blobs))

    def types(self, goal: GoalDir | None = None) -> list[str]:
        return [event.type for event in self.events(goal)]

    def of(self, type_: str, goal: GoalDir | None = None) -> list[dict[str, Any]]:
        """The payloads of all events of a type."""
        return [dict(event.data) for event in self.events(goal) if event.type == type_]

    def state(self, goal: GoalDir | None = None) -> GoalState:
        return reducing.fold(self.events(goal))

    def wait_for(self, sign: Callable[[Event], object], goal: GoalDir | None = None, deadline_s: float = 30) -> Event:
        """The first event of which `sign` is true, as soon as it stands in the journal."""
        directory = goal or self.goal()
        tail, found = journal.Tail(directory.journal, self.home.blobs), []

        def look() -> bool:
            found.extend(event for event in tail.read() if sign(event))
            return bool(found)

        try:
            wait_until(look, deadline_s)
        except AssertionError:
            raise AssertionError(self.tell()) from None
        return found[0]

    def requests(self, role: str) -> list[str]:
        """What the agents of a role were asked at the beginning of each turn, oldest first."""
        asked = []
        for path in self.home.agents.glob(f"{role}-*/turns/*.ndjson"):
            for line in path.read_text().splitlines():
                record = json.loads(line)
                if "blob" in record:
                    record |= json.loads((self.home.blobs / record["blob"][:2] / record["blob"]).read_bytes())
                if record["t"] == "request" and record["step"] == 0:
                    asked.append((path.name, record["messages"][-1]["text"]))
        return [text for _, text in sorted(asked)]

    def pid_of(self, agent: str) -> int | None:
        """Who serves an agent's mailbox now; `supervisor` is the supervisor."""
        lock = self.home.supervisor_lock if agent == "supervisor" else self.home.agent(agent).lock
        who = locks.holder(lock)
        return None if who is None else who.pid

    def processes(self) -> dict[int, str]:
        return processes_of(self.home.path)

    def gone(self) -> bool:
        """Waits until everything that ran in this home has left by itself."""
        wait_until(lambda: not self.processes())
        return True

    def tell(self) -> str:
        """Where things stand, for a test that has failed."""
        lines = [f"processes: {self.processes()}"]
        for name in goals.names(self.home):
            shown = self.loom("goal", "log", name)
            lines += [name, *shown.out.splitlines()[-30:], shown.err]
        if self.home.supervisor_log.exists():
            lines += self.home.supervisor_log.read_text().splitlines()[-10:]
        return "\n".join(lines)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    yield made
    for child in made.clients:
        if child.poll() is None:
            child.kill()
        child.wait(30)
        for pipe in (child.stdin, child.stdout, child.stderr):
            if pipe is not None:
                pipe.close()
    if made.home.path.exists():
        ensure.stop_supervisor(made.home)
    with contextlib.suppress(AssertionError):  # one that has left by itself lets its lock go before it has ended
        wait_until(lambda: not made.processes(), 3)
    left = made.processes()
    for pid in left:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    assert left == {}, "processes are left"


# -- what the roles are asked, as patterns for the entries of a script ---------------------------------------------

PLAN = r"(?s)\A# Goal\n(?!.*\n## (?:Refused|Replan)\n)"
PLAN_AGAIN = r"(?s)\A# Goal\n.*\n## Refused\n"
REPLAN = r"(?s)\A# Goal\n.*\n## Replan\n"


def execute(subtask: str = "[^`]+", findings: bool | None = None) -> str:
    """An order to execute; with or without findings of an earlier attempt, or either."""
    only = {True: r"(?=.*\n## Findings\n)", False: r"(?!.*\n## Findings\n)", None: ""}[findings]
    return rf"(?s)\A# Subtask `{subtask}`(?!.*\n## Claim\n){only}"


def verify(subtask: str = "[^`]+") -> str:
    return rf"(?s)\A# Subtask `{subtask}`.*\n## Claim\n"


def planned(*subtasks: dict[str, Any], match: str = PLAN) -> dict[str, Any]:
    """The planner's answer."""
    return {"match": match, "text": json.dumps({"subtasks": list(subtasks)})}


def sub(name: str, **fields: Any) -> dict[str, Any]:
    return {"id": name, "title": name, "instruction": f"Do {name}.", **fields}


def writes(path: str, content: str) -> dict[str, Any]:
    return {"calls": [{"name": "write-file", "input": {"path": path, "content": content}}]}


def does(match: str, *answers: dict[str, Any]) -> list[dict[str, Any]]:
    """One turn: these answers one after the other, then `done`."""
    return [{"match": match, **a} for a in (*answers, {"text": json.dumps({"status": "done", "summary": "Done."})})]


def verdict(passed: bool, *findings: dict[str, Any], match: str = "", **fields: Any) -> dict[str, Any]:
    said = {"passed": passed, "confidence": 0.9, "findings": list(findings), **fields}
    return {"match": match or verify(), "text": json.dumps(said)}


PASSES = verdict(True)


# -- documents -----------------------------------------------------------------------------------------------------

_WORDS = """
the weaver|a clerk|our carter|the old miller|every sailor|the night watch|a young baker|the surveyor
mends|counts|carries|examines|forgets|describes|repairs|measures|sells|hides|paints|orders
the western wall|two barrels of salt|a narrow boat|the town clock|forty ells of linen|the winter grain
before the market opens|after the long rain|in the month of frost|whenever the bell is rung
because the river has risen|although nobody asked for it|so that the bridge may hold|as the law demands
"""
_WHO, _DOES, _WHAT, _WHEN, _WHY = (line.split("|") for line in _WORDS.split("\n")[1:-1])


def document(number: int, sentences: int, seed: int = 7) -> str:
    """Prose that is the same for the same arguments, and other prose for others."""
    draw = random.Random(f"{seed}/{number}")
    pick = draw.choice
    lines = [f"# Chronicle {number} of the {pick(['harbour', 'mill', 'market', 'abbey', 'forge'])}\n"]
    said = []
    for n in range(sentences):
        words = f"{pick(_WHO)} {pick(_DOES)} {pick(_WHAT)} {pick(_WHEN)}, {pick(_WHY)}"
        said.append(f"{words[0].upper()}{words[1:]}, and the tally of page {number * 1000 + n} says so.")
        if n % 6 == 5:
            lines.append(" ".join(said) + "\n")
            said = []
    return "\n".join([*lines, " ".join(said)]) + "\n"


def write_documents(folder: Path, count: int, sentences: int, seed: int = 7) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        (folder / f"chronicle-{number:02}.md").write_text(document(number, sentences, seed))


# -- what must be true of every journal ----------------------------------------------------------------------------


def check_once(events: Sequence[Event]) -> None:
    """Every order was reported at most once, nothing was applied twice, no file caused two events."""
    dispatched = [e.data["name"] for e in events if e.type == "order.dispatched"]
    reported = [e.data["order"] for e in events if e.type == "order.reported"]
    applied = [e.data["subtask"] for e in events if e.type == "subtask.applied"]
    causes = [e.cause for e in events if not e.cause.startswith("seq:")]
    for names in (dispatched, reported, applied, causes):
        assert sorted(set(names)) == sorted(names)
    assert set(reported) <= set(dispatched)


def actors(events: Iterable[Event], role: str) -> set[tuple[str, int, int]]:
    """The processes of a role that signed events: (agent, pid, start)."""
    found = {(e.actor["agent"], e.actor["pid"], e.actor["start"]) for e in events}
    return {who for who in found if who[0] == role or who[0].startswith(f"{role}-")}
