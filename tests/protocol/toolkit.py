"""What the tests of tools share: run one as a process, load one as a module, look for what is left of one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from types import ModuleType
from typing import Any

TOOLS = Path(__file__).resolve().parents[2] / "tools"
FILE_TOOLS = ("read-file", "write-file", "list-files", "search-files")
ALL_TOOLS = (*FILE_TOOLS, "run-shell")
DEADLINE_S = 30  # fails loudly; nothing here takes a tenth of it


def start(tool: str, verb: str, data: bytes = b"", **env: str) -> subprocess.CompletedProcess[bytes]:
    """Run a tool the way a runner does."""
    command = [sys.executable, "-I", str(TOOLS / tool), verb]
    plain = {"PATH": os.environ["PATH"]}
    return subprocess.run(command, input=data, capture_output=True, env=plain | env, timeout=DEADLINE_S, check=False)


def invoke(tool: str, asked: Any, **env: str) -> dict[str, Any]:
    """The reply to one call: one line, exit 0."""
    done = start(tool, "invoke", json.dumps(asked).encode(), **env)
    assert done.returncode == 0, done.stderr.decode()
    assert done.stdout.count(b"\n") == 1 and done.stdout.endswith(b"\n")
    reply: dict[str, Any] = json.loads(done.stdout.decode())
    assert reply["status"] in ("ok", "error")
    return reply


def result(tool: str, asked: Any, **env: str) -> Any:
    """The result of a call that must go well."""
    reply = invoke(tool, asked, **env)
    assert reply["status"] == "ok", reply
    return reply["result"]


def refusal(tool: str, asked: Any, **env: str) -> str:
    """The error of a call that must be refused."""
    reply = invoke(tool, asked, **env)
    assert reply["status"] == "error", reply
    error: str = reply["error"]
    assert error.isprintable()
    return error


def loaded(tool: str) -> ModuleType:
    """The tool as a module, for tests that call it thousands of times."""
    name = tool.replace("-", "_") + "_tool"
    spec = spec_from_loader(name, SourceFileLoader(name, str(TOOLS / tool)))
    assert spec and spec.loader
    module = module_from_spec(spec)
    writes, sys.dont_write_bytecode = sys.dont_write_bytecode, True  # no litter beside the tools
    try:
        spec.loader.exec_module(module)
    finally:
        sys.dont_write_bytecode = writes
    return module


def alive(mark: str) -> list[int]:
    """Processes with `mark` in their environment, zombies not counted."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and mark.encode() in (entry / "environ").read_bytes():
                found.append(int(entry.name))
        except OSError:
            continue
    return found
