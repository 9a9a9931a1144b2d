"""Every case of the crash proof, by name."""

from __future__ import annotations

from crash_cases import KERNEL
from crash_cli import CLI
from crash_goal import ALONE, GOALS
from crash_processes import PROCESSES
from crash_supervisor import SUPERVISOR

CASES = {case.name: case for case in (*KERNEL, *PROCESSES, *GOALS, *ALONE, SUPERVISOR, *CLI)}
