"""`loom fsck`: what in the home does not fit the protocol, one line each; with --repair what can be mended is."""

from __future__ import annotations

import os
from collections import Counter

import click

from loom.cli import printing
from loom.cli.gc import shown
from loom.core.fsck import exit_status
from loom.spool import fsck
from loom.spool.layout import Home, default_home

_BEFORE_ADVICE = {"mend": "--repair: ", "mended": "mended: ", "note": "no fault; --repair: "}
_COUNTED = {
    "mend": "to be mended with --repair",
    "mended": "mended",
    "person": "left to you",
    "busy": "skipped",
    "waits": "on their way",
    "note": "only noted",
}


@click.command("fsck")
@click.option("--repair", is_flag=True, help="Mend what a crash left and what is derived; nothing else is touched.")
@click.option("--json", "as_json", is_flag=True, help="NDJSON: a line for each finding, then the result.")
def cli(repair: bool, as_json: bool) -> int:
    """Check everything in the home; without --repair nothing is changed.

    Ends with 0 when nothing is wrong or all of it is mended, with 1 when something is left, with 75 when something was
    skipped because a process is at work there.
    """
    home = Home(default_home(os.environ).resolve())  # the name of a home may be a link; nothing in it may
    counts: Counter[str] = Counter()
    for finding in fsck.check(home, repair=repair):
        counts[finding.status] += 1
        if as_json:
            told = {"path": shown(finding.path), "what": finding.what, "status": finding.status, "todo": finding.todo}
            printing.json_line({"event": "finding", **told})
        else:
            todo = f"{_BEFORE_ADVICE.get(finding.status, '')}{finding.todo}"
            printing.line(printing.escaped(f"{shown(finding.path)}: {finding.what}; {todo}"))
    status = exit_status(counts)
    if as_json:
        printing.json_line({"event": "result", "v": 1, "repair": repair, "counts": dict(counts), "exit_status": status})
    elif counts:
        printing.note(", ".join(f"{count} {_COUNTED[kind]}" for kind, count in sorted(counts.items())))
    else:
        printing.note(f"{home.path} is as it should be")
    return status
