"""`loom doctor`: what this machine offers and lacks, and what to do about it."""

from __future__ import annotations

from dataclasses import asdict

import click

from loom.cli import printing
from loom.wire import exits


@click.command("doctor")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def cli(as_json: bool) -> int:
    """Check interpreter, home, file system, supervisor, sandbox, limits, keys and servers.

    Ends with 0 when nothing stands in the way, else with 1 and a line for each problem. No key is printed.
    """
    from loom.cli.checks import all_checks

    found = all_checks()
    problems = [check for check in found if check.status == "problem"]
    status = exits.FAILED if problems else exits.DONE
    if as_json:
        printing.json_line({"v": 1, "ok": not problems, "checks": [asdict(c) for c in found], "exit_status": status})
        return status
    for check in found:
        todo = f"; {check.hint}" if check.hint else ""
        printing.line(f"{check.status:<8} {check.what:<18} {check.found}{todo}")
    return status
