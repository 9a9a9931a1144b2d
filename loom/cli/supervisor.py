"""`loom supervisor run | status | reload | stop`."""

from __future__ import annotations

import os
import sys
from collections import Counter
from importlib import import_module

import click

from loom.cli import agent_state, ensure, printing
from loom.cli.groups import LazyGroup
from loom.cli.homes import existing_home, is_reserved, look_into_home, open_home
from loom.cli.params import Seconds
from loom.proc import notify, reexec
from loom.spool import agents, running
from loom.spool.layout import Home
from loom.wire.errors import Config, TryLater

_HERE = "loom.cli.supervisor"
cli = LazyGroup(
    "supervisor",
    {
        "run": (f"{_HERE}:run", "run in the foreground until SIGTERM"),
        "status": (f"{_HERE}:status", "whether a supervisor runs, and how its agents are"),
        "reload": (f"{_HERE}:reload", "have it run the code that is installed now"),
        "stop": (f"{_HERE}:stop", "stop all agents and the supervisor"),
    },
    help="The process that runs agents in the background; started by itself when needed.",
)


@click.command(help="Run in the foreground until SIGTERM: for systemd, or to watch it at work.")
@click.option("--on-demand", is_flag=True, help="Leave after 30 s without anything to do.")
def run(on_demand: bool) -> int:
    home = open_home()
    _shed_environment(home)
    # By name: only the process that becomes the supervisor loads it.
    status: int = import_module("loom.daemons.supervisor").main(home, on_demand=on_demand)
    return status


def _shed_environment(home: Home) -> None:
    """Begin anew without what a supervisor must not hold: keys, which every fork would carry on."""
    clean = ensure.supervisor_environment(home.path, os.environ)
    clean |= {
        name: os.environ[name] for name in ("LOOM_READY_FD", reexec.ENV, *notify.VARIABLES) if os.environ.get(name)
    }
    # LC_CTYPE is put there by the interpreter itself, in some locales at each start.
    if set(os.environ) - set(clean) - {"LC_CTYPE"}:
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                stream.flush()
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], clean)


@click.command(help="Whether a supervisor runs, and how its agents are.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def status(as_json: bool) -> None:
    home = look_into_home()
    who = ensure.supervisor_of(home)
    said = running.read(home)
    hindrance = agent_state.Hindrance(home)
    states = [agent_state.of(home, agent, hindrance) for agent in agents.each(home)]
    counts = Counter(s.status for s in states if not is_reserved(s.name))
    own = Counter(s.status for s in states if is_reserved(s.name) and s.alive)
    if as_json:
        record = {
            "v": 1,
            "running": who is not None,
            "pid": who.pid if who else None,
            "code": said.code if said else None,
            "installed": running.code(),
            "groups": (said.groups or None) if said else None,
            "home": str(home.path),
            "agents": dict(counts),
            "own": dict(own),
        }
        printing.json_line(record)
        return
    words = _counted(counts) or "no agents"
    if own:
        words += f"; loom's own processes: {_counted(own)}"
    printing.line(f"running, pid {who.pid}: {words}" if who else f"not running: {words}")
    if said and said.code != running.code():
        printing.note(f"it runs other code than this command ({said.code}, {running.code()}): loom supervisor reload")


def _counted(counts: Counter[str]) -> str:
    return ", ".join(f"{count} {word}" for word, count in sorted(counts.items()))


@click.command(help="Have the supervisor run the code that is installed now; no agent is stopped.")
@click.option("--timeout", type=Seconds(), default=90.0, show_default=True, help="Seconds to wait for it.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def reload(timeout: float, as_json: bool) -> None:
    before, now = ensure.reload_supervisor(existing_home(), timeout)
    if now.status:
        kind = Config if now.status == Config.exit_status else TryLater
        raise kind(now.error, hint=f"pid {now.pid} goes on with {now.code}")
    if as_json:
        printing.json_line({"v": 1, "pid": now.pid, "before": before.code, "code": now.code})
        return
    same = " (the same)" if now.code == before.code else ""
    printing.line(f"pid {now.pid}: {before.code} → {now.code}{same}")


@click.command(help="Stop all agents and the supervisor; what is wanted stays and goes on with the next start.")
@click.option("--timeout", type=Seconds(), default=30.0, show_default=True, help="Seconds to wait for it.")
def stop(timeout: float) -> None:
    home = look_into_home()
    stopped = ensure.stop_supervisor(home, timeout)
    printing.note("stopped" if stopped else f"no supervisor serves {home.path}")
