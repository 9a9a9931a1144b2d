"""An agent's directory with a real runner on it: `runners/agent DIR --drain`, models by script/ and exec/."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from support import ROOT

from loom.spool import agents, bodies, mailbox
from loom.spool.home import open_home
from loom.wire import ids
from loom.wire.agent import AgentSpec
from loom.wire.message import Message

DEADLINE_S = 30


class Bench:
    """One home with one agent, `x`."""

    def __init__(self, place: Path, model: str = "builtin/echo", prompt: str = "", **spec: Any) -> None:
        self.place = place
        self.home = open_home(place / "home")
        self.agent = agents.create(self.home, AgentSpec("x", model, **spec), prompt, "up")

    def send(self, body: str, **fields: Any) -> str:
        """Deliver a message; its name."""
        now_ms = time.time_ns() // 1_000_000
        stem = ids.message_stem(now_ms, os.urandom(10))
        message = Message(ids.ulid_of(stem), "user", now_ms, body, **fields)
        mailbox.deliver(self.agent, stem, bodies.encode(self.home.blobs, message))
        return stem

    def start(self, *words: str, pass_fds: Sequence[int] = (), **env: str) -> subprocess.Popen[str]:
        """The runner as a child."""
        return subprocess.Popen(
            [sys.executable, str(ROOT / "runners" / "agent"), str(self.agent.path), *words],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            pass_fds=pass_fds,
            env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), **env},
        )

    def drain(self, **env: str) -> tuple[int, str]:
        """Run it until nothing is left: (exit status, stderr)."""
        runner = self.start("--drain", **env)
        out, err = runner.communicate(timeout=DEADLINE_S)
        assert out == ""
        return runner.returncode, err

    def reply(self, stem: str, attempt: int = 0) -> Message:
        """The reply to a message, which must be there."""
        found = mailbox.find_reply(self.agent, "x", stem, attempt)
        assert found is not None, f"no reply to {stem}"
        return found

    def error(self, stem: str) -> Mapping[str, Any]:
        """NAME.error.json of a failed message, which must be there."""
        found = mailbox.read_error(self.agent, stem)
        assert found is not None, f"{stem} has not failed"
        return found

    def turn(self, stem: str, attempt: int = 0) -> list[dict[str, Any]]:
        """The lines of a turn record."""
        return [json.loads(line) for line in self.agent.turn(stem, attempt).read_text().splitlines()]

    def results(self, stem: str) -> list[dict[str, Any]]:
        """What the tools of a turn gave back, in order."""
        return [line["result"] for line in self.turn(stem) if line["t"] == "result"]

    def log(self) -> list[dict[str, Any]]:
        """The records of the agent's log."""
        files = sorted(self.agent.logs.glob("*.ndjson"))
        return [json.loads(line) for file in files for line in file.read_text().splitlines()]

    def left(self) -> list[str]:
        """What waits or is claimed."""
        return [*mailbox.in_progress(self.agent), *sorted(p.name for p in self.agent.inbox.glob("*.msg"))]

    def program(self, name: str, source: str) -> Path:
        """A Python program; its path."""
        path = self.place / name
        path.write_text(f"#!{sys.executable}\n{source}")
        path.chmod(0o755)
        return path

    def tool(self, name: str, body: str, idempotent: bool = False) -> None:
        """A tool of the agent's own. `body` sees `given` and prints its result."""
        spec = {"name": name, "description": name, "input_schema": {"type": "object"}, "idempotent": idempotent}
        source = f"""
import json, os, sys
if sys.argv[1] == 'describe':
    print(json.dumps({spec!r}))
    sys.exit()
given = json.load(sys.stdin)
{body}
"""
        os.symlink(self.program(f"tool-{name}", source), self.agent.tools / name)


def script(place: Path, *answers: dict[str, Any], name: str = "answers.ndjson") -> str:
    """A script/ model."""
    path = place / name
    path.write_text("".join(json.dumps(answer) + "\n" for answer in answers))
    return f"script/{path}"


def call(name: str, **given: Any) -> dict[str, Any]:
    """An answer that calls one tool."""
    return {"calls": [{"name": name, "input": given}]}
