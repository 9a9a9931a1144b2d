"""What a pipe runs for its operators: a shell command on a body, jq on messages. Their misbehaviour is an answer.

Only our own lack of descriptors, memory or processes is raised (errors.Disk): the pipe stops with it and goes on later.
"""

from __future__ import annotations

import signal
from collections.abc import Sequence

from loom.core.pipes import Ran
from loom.daemons.service import Agent
from loom.daemons.surroundings import agent_env
from loom.proc import toolchild

MAX_OUTPUT_BYTES = 1 << 20  # in all
MAX_LINES = 10_000  # each would be a message
_NOT_EXECUTABLE, _NOT_FOUND = 126, 127  # what sh says of a program it could not start
_BY_SIGNAL = 128


def command(agent: Agent, text: str, data: bytes, cwd: str, timeout_s: float) -> Ran:
    """Run `sh -c text` with `data` on stdin; every line of stdout that is not blank is one message."""
    return _run(agent, ("/bin/sh", "-c", text), data, cwd, timeout_s)


def jq(agent: Agent, expression: str, data: bytes, cwd: str, timeout_s: float) -> Ran:
    """Evaluate an expression on JSON; its results one a line."""
    return _run(agent, ("jq", "-c", f" {expression}"), data, cwd, timeout_s)  # the blank: it is no option


def _run(agent: Agent, argv: Sequence[str], data: bytes, cwd: str, timeout_s: float) -> Ran:
    lines: list[bytes] = []

    def on_line(line: bytes) -> str:
        lines.append(line)  # and one more follows: the last is not given here
        return f"it printed more than {MAX_LINES} lines" if len(lines) >= MAX_LINES else ""

    agent.heartbeat.expect(timeout_s, f"command {argv[0]}")
    env = agent_env(agent.home, agent.spec, agent.dir.path, "")
    try:
        ended = toolchild.run(
            argv,
            data,
            env=toolchild.environment(env),
            cwd=cwd,
            timeout_s=timeout_s,
            max_output_bytes=MAX_OUTPUT_BYTES,
            most_in_all_bytes=MAX_OUTPUT_BYTES,
            on_line=on_line,
        )
    except toolchild.NotStarted as error:
        return Ran("missing", detail=f"it could not be started: {error}")
    said = _last_words(ended.stderr)
    if ended.timed_out:
        return Ran("timeout", detail=f"it did not end within {timeout_s:g} s and was killed{said}")
    if ended.fault:
        return Ran("flood", detail=f"it was stopped: {ended.fault}{said}")
    code = ended.exit_code
    if code in (_NOT_EXECUTABLE, _NOT_FOUND):
        return Ran("missing", detail=f"its program is not there or cannot be run (exit {code}){said}")
    # The shell says 128 + n of a program that was killed; what is no signal's number is a status like any other.
    killed_by = -code if code < 0 else code - _BY_SIGNAL
    if killed_by in signal.valid_signals():
        return Ran("crashed", detail=f"it was killed by {_name(killed_by)}{said}")
    if code:
        return Ran("nonzero", detail=f"exit {code}{said}")
    if ended.last_line is not None:
        lines.append(ended.last_line)
    return Ran("ok", tuple(_text(line) for line in lines if line.strip()))


def _text(line: bytes) -> str:
    return line.decode("utf-8", "replace").rstrip("\r").replace("\0", "\ufffd")


def _name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _last_words(stderr: bytes) -> str:
    said = [line for raw in stderr.decode("utf-8", "replace").splitlines() if (line := " ".join(raw.split()))]
    return f"; its last words: {''.join(c if c.isprintable() else ' ' for c in said[-1])[:300]}" if said else ""
