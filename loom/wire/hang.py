"""The ways to hang, by name: the words in which processes, logs, replies and `ps` speak of them (docs/liveness.md)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from loom.wire.record import record

Level = Literal["alive", "responsive", "progressing"]
Owner = Literal["supervisor", "runner", "turn", "tool call", "router"]
Action = Literal["nudge", "interrupt", "restart", "dead letter", "gate"]


@record
class Shape:
    """One way to hang. `action` is what its owner does; what follows when that does not help: docs/liveness.md."""

    level: Level
    owner: Owner
    action: Action


SHAPES: Mapping[str, Shape] = {
    "not_ready": Shape("alive", "supervisor", "restart"),
    "lock_held": Shape("alive", "supervisor", "gate"),
    "poison": Shape("alive", "runner", "dead letter"),
    "stopped": Shape("responsive", "supervisor", "nudge"),
    "not_responding": Shape("responsive", "supervisor", "restart"),
    "unclaimed": Shape("responsive", "supervisor", "nudge"),
    "silent_stream": Shape("progressing", "runner", "nudge"),
    "keepalive_only": Shape("progressing", "runner", "nudge"),
    "half_open": Shape("progressing", "runner", "nudge"),
    "silent_program": Shape("progressing", "runner", "nudge"),
    "program_overdue": Shape("progressing", "runner", "nudge"),
    "thread_held": Shape("progressing", "runner", "gate"),
    "repeats": Shape("progressing", "turn", "nudge"),
    "alternates": Shape("progressing", "turn", "nudge"),
    "no_artifact": Shape("progressing", "turn", "nudge"),
    "repetition": Shape("progressing", "turn", "dead letter"),
    "step_limit": Shape("progressing", "turn", "dead letter"),
    "tool_overdue": Shape("progressing", "tool call", "interrupt"),
    "tool_deaf": Shape("progressing", "tool call", "interrupt"),
    "pipe_held": Shape("progressing", "tool call", "interrupt"),
    "claimed_too_long": Shape("progressing", "supervisor", "dead letter"),
    "deadline": Shape("progressing", "runner", "dead letter"),
}


def line(shape: str, text: str) -> str:
    """The reason in one line: the shape's name stands first."""
    return f"{shape}: {' '.join(text.split())}"


def shape_of(reason: str) -> str:
    """The shape that such a line names; empty when it names none."""
    name = reason.partition(":")[0]
    return name if name in SHAPES else ""
