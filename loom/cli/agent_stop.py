"""`loom agent stop` and `restart`: `want` says what is to be, the supervisor does it, the lock tells when it is so."""

from __future__ import annotations

import os
import signal
import time

import click

from loom.cli import printing
from loom.cli.ensure import ensure_supervisor, restart_runner
from loom.cli.homes import existing_home, settings_of
from loom.cli.params import Seconds
from loom.proc import pidfd
from loom.spool import agents, fs, locks, wake
from loom.spool.layout import AgentDir, Home
from loom.wire.errors import TryLater

WAIT_S = 15.0
_TIMEOUT = click.option(
    "--timeout",
    type=Seconds(),
    default=WAIT_S,
    show_default=True,
    metavar="S",
    help="Seconds to wait for it.",
)


@click.command("stop")
@click.argument("names", nargs=-1, required=True, metavar="NAME…")
@_TIMEOUT
def stop(names: tuple[str, ...], timeout: float) -> None:
    """Stop agents with all their processes. They are not started again, not even for mail, until asked."""
    home = existing_home()
    found = [agents.find(home, name) for name in dict.fromkeys(names)]
    running = [agent for agent in found if agents.is_alive(agent)]
    for agent in found:
        take_down(home, agent)
    deadline = time.monotonic() + timeout
    for agent in found:
        wait_gone(agent, deadline, timeout)
        printing.note(f"{agent.name} is stopped" if agent in running else f"{agent.name} was not running")


@click.command("restart")
@click.argument("name")
@_TIMEOUT
def restart(name: str, timeout: float) -> None:
    """Stop the agent NAME and start it again; a claimed message is gone on with."""
    home = existing_home()
    agent = agents.find(home, name)
    settings_of(agent)  # with one that cannot be read it would only end
    restart_runner(agent, timeout)
    ensure_supervisor(home)
    wake.ring_agent(home.wake, agent.name)
    printing.note(f"{name} is started again")


def take_down(home: Home, agent: AgentDir) -> None:
    """Say that it is not wanted, and have somebody act on it."""
    agents.write_want(agent, "down")
    if locks.is_held(home.supervisor_lock):
        wake.ring(home.wake_fifo("supervisor"))
    elif agents.is_alive(agent):
        _end_orphan(agent)
    else:
        fs.hint(agent.status, "stopped")


def _end_orphan(agent: AgentDir) -> None:
    """A runner without a supervisor: SIGTERM to exactly the process that holds its lock."""
    who = locks.holder(agent.lock)
    handle = pidfd.open_pidfd(who.pid, who.start) if who is not None else None
    if handle is None:
        return
    try:
        pidfd.send(handle, signal.SIGTERM)
    finally:
        os.close(handle)


def wait_gone(agent: AgentDir, deadline: float, timeout: float) -> None:
    """Until nobody holds its lock. Raises TryLater at the deadline (monotonic seconds)."""
    pause = 0.005
    while agents.is_alive(agent):
        if time.monotonic() > deadline:
            raise TryLater(
                f"{agent.name} is still running after {timeout:g} s; it stays wanted down",
                hint=f"look with: loom agent show {agent.name}",
            )
        time.sleep(pause)
        pause = min(pause * 1.5, 0.1)
