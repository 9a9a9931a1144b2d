"""`loom conformance PROGRAM`: whether a runner or a tool keeps the protocol, a line for each rule (ADR-0025)."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import click

from loom.cli import printing
from loom.spool import fs
from loom.wire import exits
from loom.wire.errors import NotFound
from loom.wire.record import record


class Broken(Exception):
    """A rule that the program does not keep: what was found instead."""


@record
class Rule:
    """One rule: in words, and what tries it. `try_it` gets a directory of its own, and raises Broken."""

    text: str
    try_it: Callable[[str, Path], None]


@click.command("conformance")
@click.argument("program")
@click.option("--as", "kind", type=click.Choice(["runner", "tool"]), required=True, help="What PROGRAM is.")
@click.option("--json", "as_json", is_flag=True, help="NDJSON: a line for each rule, then the result.")
def cli(program: str, kind: str, as_json: bool) -> int:
    """Run PROGRAM through the protocol, in homes of its own, and say which rules it keeps.

    A runner is started as `PROGRAM AGENT_DIR [--drain]` for agents whose model is builtin/echo: claims, recovery, names
    and origin of replies, failures, signals, statuses, odd entries. A tool as `PROGRAM describe` and `PROGRAM invoke`.
    Ends with 0 when all rules are kept, else with 1.
    """
    path = str(Path(program).absolute()) if "/" in program else shutil.which(program) or program
    if not os.access(path, os.X_OK) or os.path.isdir(path):
        raise NotFound(f"{program} is no program that can be run", hint="give its path, and chmod +x")
    rules: tuple[Rule, ...] = import_module(f"loom.cli.conformance_{kind}").RULES
    broken = 0
    for rule in rules:
        found = ""
        place = Path(os.environ.get("TMPDIR", "/tmp"), f"loom-conformance-{os.urandom(8).hex()}").absolute()
        fs.make_dir(place, fs.DIR_MODE)
        try:
            rule.try_it(path, place)
        except Broken as error:
            found = str(error)
        finally:
            fs.remove_tree(place)
        broken += bool(found)
        if as_json:
            printing.json_line({"event": "rule", "rule": rule.text, "kept": not found, "found": found})
        else:
            printing.line(f"{'broken' if found else 'kept':<7} {rule.text}{': ' if found else ''}{found}")
    status = exits.FAILED if broken else exits.DONE
    if as_json:
        told = {"kind": kind, "rules": len(rules), "broken": broken, "exit_status": status}
        printing.json_line({"event": "result", "v": 1, **told})
    else:
        printing.note(f"{len(rules) - broken} of {len(rules)} rules are kept")
    return status
