"""`loom pipe rm`: a pipe goes with its instances, when no route leads through it."""

from __future__ import annotations

import os
import time

import click

from loom.cli import pipes, printing, weaving
from loom.cli.agent_stop import WAIT_S, take_down, wait_gone
from loom.cli.homes import existing_home
from loom.spool import agents, fs, locks, wake
from loom.spool.fs import TMP
from loom.spool.layout import Home
from loom.wire import ids
from loom.wire.errors import NotFound, TryLater


@click.command("rm")
@click.argument("name")
@click.option("--force", is_flag=True, help="Also when it holds messages or has failed ones: they are lost.")
def cli(name: str, force: bool) -> None:
    """Remove the pipe NAME and its instances. A route that leads through it is ended first: loom unroute."""
    home = existing_home()
    ids.check_agent(name)
    with weaving.held(home):
        instances = [one for one in agents.instances(home) if one.partition("~")[0] == name]
        if not home.pipe(name).exists() and not instances:
            raise NotFound(f"there is no pipe {name!r} in {home.path}", hint="see: loom pipes")
        for route in weaving.routes(home):
            if route.pipe == name:
                hint = f"first: loom unroute {route.source} --to {route.to} --pipe {name}"
                if route.weave:
                    hint = f"take it out of the loom.yml of the weave {route.weave!r}, and `loom up` again"
                raise TryLater(f"the route {route.source} → {route.to} leads through {name}", hint=hint)
        for one in instances:
            if not force and (count := _kept(home, one)):
                lost = f"{count} message{'s' if count > 1 else ''}"
                raise TryLater(f"{one} has {lost}, which would be lost", hint="see: loom pipes; or add --force")
        for one in instances:
            _remove(home, one)
        fs.remove_tree(home.pipe(name).parent)
    wake.ring(home.wake_fifo("supervisor"))
    printing.note(f"{name} is removed")


def _kept(home: Home, name: str) -> int:
    """What would be lost with an instance: what waits, what it holds, and what the router has not taken yet."""
    unsent = sum(1 for entry in os.listdir(home.agent(name).outbox) if ids.is_stem(entry.removesuffix(".msg")))
    return weaving.waiting(home, [name]) + pipes.held(home, name) + unsent


def _remove(home: Home, name: str) -> None:
    instance = home.agent(name)
    if instance.spec.exists():
        take_down(home, instance)
        wait_gone(instance, time.monotonic() + WAIT_S, WAIT_S)
    lock = locks.acquire(instance.lock)
    if lock is None:
        raise TryLater(f"{name} was started just now", hint="try again")
    with lock:
        fs.ensure_dir(home.pipes / TMP)
        away = home.pipes / TMP / os.urandom(10).hex()
        if fs.move(instance.path, away) != "moved":
            raise TryLater(f"{name} was removed by somebody else")
    fs.remove_tree(away)
