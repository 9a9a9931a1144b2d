"""Whether an agent uses more than it may (docs/protocol.md section 7): pure, from figures that others have measured."""

from __future__ import annotations

from loom.wire.agent import AgentLimits
from loom.wire.record import record

KIB = 1024
BUSY_S, MOST_S = 0.1, 30.0  # between two looks at one that works; at one that has long been idle


@record
class Usage:
    """What the processes of an agent use together; `files` are those of the one that has most of them open.

    memory   bytes of anonymous memory that are in use
    cpu_s    seconds of processor time, since its message was claimed
    disk     bytes below its directory; None when that was not looked at
    """

    memory: int = 0
    cpu_s: float = 0.0
    files: int = 0
    processes: int = 0
    disk: int | None = None


def exceeded(limits: AgentLimits, usage: Usage) -> str:
    """The limit that is exceeded, in the words of the failure reply; empty when none is."""
    if limits.memory is not None and usage.memory > limits.memory:
        return f"limit: memory {size_text(limits.memory)} exceeded"
    if limits.cpu_s is not None and usage.cpu_s > limits.cpu_s:
        return f"limit: cpu {limits.cpu_s:g} s exceeded"
    if limits.files is not None and usage.files >= limits.files:  # the kernel lets nobody have more
        return f"limit: files {limits.files} exceeded"
    if limits.processes is not None and usage.processes > limits.processes:
        return f"limit: processes {limits.processes} exceeded"
    if limits.disk is not None and usage.disk is not None and usage.disk > limits.disk:
        return f"limit: disk {size_text(limits.disk)} exceeded"
    return ""


def pause_s(before_s: float, *, busy: bool) -> float:
    """How long until the next look: at once again while it works, ever longer while it does not."""
    return BUSY_S if busy else min(max(before_s, BUSY_S) * 2, MOST_S)


def size_text(size: int) -> str:
    """A number of bytes as people write it: 256 MiB."""
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if size < KIB or size % KIB or unit == "GiB":
            return f"{size} {unit}"
        size //= KIB
    raise AssertionError("the last unit takes everything")
