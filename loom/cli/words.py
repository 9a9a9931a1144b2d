"""Words that are no commands: which one was meant, and which are kept for later."""

from __future__ import annotations

from collections.abc import Iterable

from loom.wire.errors import Usage

# What other programs call it, and what one would say first: the words after `loom`, and what is meant.
ELSEWHERE = {
    "ps": "loom agent ps",
    "ls": "loom agent ps",
    "list": "loom agent ps",
    "start": "loom agent start",
    "stop": "loom agent stop",
    "kill": "loom agent stop",
    "restart": "loom agent restart",
    "logs": "loom agent logs",
    "status": "loom supervisor status",
    "version": "loom --version",
    "agent list": "loom agent ps",
    "agent ls": "loom agent ps",
    "agent kill": "loom agent stop",
    "agent status": "loom agent show",
    "agent remove": "loom agent rm",
    "goal list": "loom goal ps",
    "goal ls": "loom goal ps",
    "goal status": "loom goal show",
    "goal start": "loom run",
    "supervisor restart": "loom supervisor stop",
}
# Words that are taken: what they will mean stands in docs/cli.md.
PLANNED = frozenset(
    (
        *("why", "top", "trace", "search", "playbook"),
        *("skill", "tool", "policy", "serve", "mcp-serve", "tui", "bot", "demo"),
    )
)
PLANNED_OF_GOALS = ("steer", "gates", "approve", "reject", "diff", "undo", "rm", "export", "replay", "rerun")
PLANNED_IN = {
    "run": frozenset(("--playbook", "--budget", "--dry-run", "--unsafe-no-sandbox")),
    "goal": frozenset(PLANNED_OF_GOALS),
}


def unknown(word: str, known: Iterable[str], group: str = "") -> Usage:
    """The error for a command that does not exist: of `loom`, or of one of its groups."""
    path = f"loom {group}" if group else "loom"
    if word in (PLANNED_IN.get(group, ()) if group else PLANNED):
        return planned(f"{group} {word}".strip(), path)
    meant = ELSEWHERE.get(f"{group} {word}".strip())
    hint = f"did you mean {meant!r}?" if meant else nearest(word, known) or f"see: {path} --help"
    what = f"{path} has no command {word!r}" if group else f"there is no command {word!r}"
    return Usage(what, hint=hint)


def planned(what: str, path: str) -> Usage:
    """The error for what has a name and is not there yet."""
    return Usage(f"{what!r} is planned and not part of this version", hint=f"see: {path} --help")


def nearest(word: str, known: Iterable[str]) -> str:
    """`did you mean …?`, or an empty string when nothing is near."""
    import difflib

    close = difflib.get_close_matches(word, list(known), 1)
    return f"did you mean {close[0]!r}?" if close else ""
