"""`loom agent ps`: the agents, one line each."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict

import click

from loom.cli import agent_state, printing
from loom.cli.homes import is_reserved, look_into_home
from loom.spool import agents


@click.command("ps")
@click.option("-a", "--all", "everything", is_flag=True, help="Stopped agents and loom's own processes too.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def cli(everything: bool, as_json: bool) -> None:
    """List the agents that run, are wanted up or are dead; of those that should work and do not, or do not get on, why.

    WORKING is how long an agent has been on its message, since it took it up first.
    """
    home = look_into_home()
    hindrance = agent_state.Hindrance(home)
    states = [agent_state.of(home, agent, hindrance) for agent in agents.each(home)]
    hidden: Counter[str] = Counter()
    if not everything:
        users = [s for s in states if not is_reserved(s.name)]
        states = [s for s in users if _is_shown(s)]
        hidden.update(s.status for s in users if not _is_shown(s))
    if as_json:
        printing.json_line({"v": 1, "agents": [asdict(state) for state in states]})
        return
    head: tuple[str, ...] = ("NAME", "STATUS", "PID", "MODEL", "WAITING", "WORKING")
    rows: list[tuple[str, ...]] = [
        (s.name, s.status, str(s.pid or "-"), s.model, str(s.waiting), agent_state.working_for(s) or "-")
        for s in states
    ]
    if any(s.reason for s in states):
        head = (*head, "REASON")
        rows = [(*row, s.reason or "-") for row, s in zip(rows, states, strict=True)]
    printing.table(head, rows)
    if hidden:
        counted = ", ".join(f"{count} {word}" for word, count in sorted(hidden.items()))
        printing.note(f"{counted} not shown; see: loom agent ps --all")


def _is_shown(state: agent_state.State) -> bool:
    """Whether it is listed without --all."""
    return state.alive or state.want in ("up", "demand", "dead") or state.status == "error"
