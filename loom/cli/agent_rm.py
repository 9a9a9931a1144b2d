"""`loom agent rm`: an agent's directory goes at once and whole; what it holds is gone."""

from __future__ import annotations

import os
import time

import click

from loom.cli import printing, weaving
from loom.cli.agent_stop import WAIT_S, take_down, wait_gone
from loom.cli.homes import existing_home, is_reserved
from loom.spool import agents, fs, locks, wake
from loom.spool.fs import TMP
from loom.wire import ids
from loom.wire.errors import NotFound, TryLater, Usage


@click.command("rm")
@click.argument("name")
@click.option("--force", is_flag=True, help="Also when it runs or has mail: it is stopped, its mail is lost.")
def cli(name: str, force: bool) -> None:
    """Remove the agent NAME: settings, mail, conversations, logs."""
    home = existing_home()
    ids.check_agent(name, reserved_ok=True)
    agent = home.agent(name)
    if not agent.path.is_dir():
        raise NotFound(f"there is no agent {name!r} in {home.path}", hint=agents.nearest(home, name))
    if is_reserved(name):
        raise Usage(f"{name} belongs to loom itself and stays")
    if not force:
        if agents.is_alive(agent):
            raise TryLater(f"{name} is running", hint=f"first: loom agent stop {name}; or add --force")
        if agents.has_mail(agent):
            raise TryLater(
                f"{name} has mail, which would be lost", hint=f"look with: loom agent show {name}; or add --force"
            )
        if any(name in (route.source, route.to) for route in weaving.routes(home)):
            raise TryLater(f"a route leads to it or from {name}", hint="see: loom routes; or add --force")
    if agent.spec.exists():
        take_down(home, agent)
        wait_gone(agent, time.monotonic() + WAIT_S, WAIT_S)
    lock = locks.acquire(agent.lock)
    if lock is None:
        raise TryLater(f"{name} was started just now", hint=f"first: loom agent stop {name}")
    with lock:
        away = home.agents / TMP / os.urandom(10).hex()
        if fs.move(agent.path, away) != "moved":
            raise TryLater(f"{name} was removed by somebody else")
    fs.remove_tree(away)
    wake.ring(home.wake_fifo("supervisor"))
    printing.note(f"{name} is removed")
