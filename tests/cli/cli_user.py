"""A user at the command line: runs `loom` as a process in a home of its own and sees what it prints."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loom.spool.home import open_home

ROOT = Path(__file__).parents[2]
COMMAND = (sys.executable, "-m", "loom")
DEADLINE_S = 60.0


@dataclass(frozen=True, slots=True)
class Said:
    """How a command ended and what it printed."""

    status: int
    out: str
    err: str

    @property
    def objects(self) -> list[dict[str, Any]]:
        """stdout as NDJSON."""
        return [json.loads(line) for line in self.out.splitlines()]


class Loom:
    """Runs `loom …` in a home that no other test has. `env` replaces the whole environment but for what it needs."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.home = place / "home"
        self.env = {
            "PATH": os.environ["PATH"],
            "HOME": str(place),
            "LOOM_HOME": str(self.home),
            "PYTHONPATH": str(ROOT),
            "LC_ALL": "C.UTF-8",
        }

    def __call__(self, *args: str, stdin: str | bytes = b"", **env: str) -> Said:
        data = stdin.encode() if isinstance(stdin, str) else stdin
        done = subprocess.run(
            [*COMMAND, *args],
            input=data,
            capture_output=True,
            env={**self.env, **env},
            cwd=self.place,
            timeout=DEADLINE_S,
            check=False,
        )
        return Said(done.returncode, done.stdout.decode(), done.stderr.decode())

    def start(self, *args: str, **options: Any) -> subprocess.Popen[bytes]:
        """The command as a running process with pipes."""
        pipe = subprocess.PIPE
        settings = {"stdin": subprocess.DEVNULL, "stdout": pipe, "stderr": pipe, "env": self.env, "cwd": self.place}
        return subprocess.Popen([*COMMAND, *args], **{**settings, **options})

    def make_home(self) -> None:
        """A home with nothing in it, where there is none: who only looks makes none."""
        open_home(self.home, {"LOOM_ALLOW_FILESYSTEM": "1"})

    def shell(self, script: str) -> Said:
        """A shell script in which `loom` is this command."""
        bin_dir = self.place / "bin"
        bin_dir.mkdir(exist_ok=True)
        program = bin_dir / "loom"
        program.write_text(f'#!/bin/sh\nexec {sys.executable} -m loom "$@"\n')
        program.chmod(0o755)
        env = {**self.env, "PATH": f"{bin_dir}:{self.env['PATH']}"}
        done = subprocess.run(
            ["sh", "-c", script], capture_output=True, env=env, cwd=self.place, timeout=DEADLINE_S, check=False
        )
        return Said(done.returncode, done.stdout.decode(), done.stderr.decode())

    def program(self, name: str, source: str) -> str:
        """A Python program in the test's directory; its path."""
        path = self.place / name
        path.write_text(f"#!{sys.executable}\n{source}")
        path.chmod(0o755)
        return str(path)

    def script(self, *answers: dict[str, Any], name: str = "answers.ndjson") -> str:
        """A script/ model with these answers; its name as --model takes it."""
        path = self.place / name
        path.write_text("".join(json.dumps(answer) + "\n" for answer in answers))
        return f"script/{path}"

    def left(self) -> list[str]:
        """Directories of filters that are there."""
        filters = self.home / "filters"
        return sorted(os.listdir(filters)) if filters.exists() else []

    def log(self, name: str) -> list[dict[str, Any]]:
        """The records of an agent's log."""
        files = sorted((self.home / "agents" / name / "logs").glob("*.ndjson"))
        return [json.loads(line) for file in files for line in file.read_text().splitlines()]
