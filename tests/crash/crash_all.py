"""Every case of the crash proof, by name."""

from __future__ import annotations

from crash_cases import KERNEL
from crash_cli import CLI
from crash_fsck import FSCK
from crash_goal import ALONE, GOALS
from crash_pipe import PIPES
from crash_processes import PROCESSES
from crash_retention import GC, met
from crash_schedule import SCHEDULE
from crash_supervisor import SUPERVISOR

CASES = {
    case.name: case
    for case in (*KERNEL, *PROCESSES, *GOALS, *ALONE, SUPERVISOR, *CLI, FSCK, GC, met(GC), SCHEDULE, *PIPES)
}

# Each process of loom, as the cases call it: what `acting` and Case.process say.
PROCESSES_OF_LOOM = (
    *("send", "runner", "router", "planner", "executor", "verifier", "keeper", "supervisor", "filter", "pipe"),
    *("agent start", "agent stop", "agent retry", "agent rm", "run", "goal control", "gc", "fsck", "up", "schedule"),
)

__all__ = ["CASES", "PROCESSES_OF_LOOM"]
