"""The exit statuses of every loom program: one table, for people's scripts and between our own processes.

The numbers follow sysexits(3) where it has a word for the case (docs/cli.md, ADR-0006). Supervision reads
three of them: TRY_LATER (75) and CONFIG (78) never count as crashes, BAD_INPUT (65) fails one message.
"""

from __future__ import annotations

DONE = 0  # the work is done
FAILED = 1  # the work was tried and failed: not verified, blocked, a reply with error: true
USAGE = 2  # wrong flag, invalid name, unknown provider prefix
BAD_INPUT = 65  # stdin empty, binary or too large; bad request; schema not met; context overflow
NOT_FOUND = 66  # no such agent, goal, file, workspace
UNAVAILABLE = 69  # connection refused, timeout, malformed or broken stream
BUG = 70  # a bug of ours
DISK = 74  # disk trouble in a command; runners and daemons use TRY_LATER
TRY_LATER = 75  # rate limit, overloaded, lock or thread busy, an open gate and nobody to answer
DENIED = 77  # refused by policy, gate or sandbox
CONFIG = 78  # missing or refused key, billing, no such model, bad configuration, newer home
BUDGET = 79  # a budget is used up
DEADLINE = 124  # --wait or --timeout ran out
INTERRUPTED = 130  # SIGINT
TERMINATED = 143  # SIGTERM

MEANING: dict[int, str] = {
    DONE: "done",
    FAILED: "the work failed",
    USAGE: "usage",
    BAD_INPUT: "bad input",
    NOT_FOUND: "not found",
    UNAVAILABLE: "unavailable",
    BUG: "internal error",
    DISK: "disk trouble",
    TRY_LATER: "try again later",
    DENIED: "denied",
    CONFIG: "configuration",
    BUDGET: "budget reached",
    DEADLINE: "deadline",
    INTERRUPTED: "interrupted",
    TERMINATED: "terminated",
}
