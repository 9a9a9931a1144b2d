"""The home a command works on, and the agents in it."""

from __future__ import annotations

import os
from pathlib import Path

from loom.spool import agents
from loom.spool import home as homes
from loom.spool.layout import AgentDir, Home, default_home
from loom.wire import ids
from loom.wire.agent import AgentSpec
from loom.wire.errors import Config, NotFound, Usage

BEGIN = "set LOOM_HOME, or give --home DIR; `loom agent start` and `loom up` would make one"


def open_home() -> Home:
    """The home of this command line, made when it is not there: for who begins one. Raises Config and Disk."""
    return homes.open_home(default_home(os.environ))


def existing_home() -> Home:
    """The same for a command that changes what is there: a slip in the name makes no home. Raises NotFound too."""
    place = default_home(os.environ)
    check_is_there(place)
    return homes.open_home(place)


def look_into_home(*, is_needed: bool = True) -> Home:
    """The same for a command that only shows: it makes no home, and needs no right to write.

    A home that was named and is not there is a slip: raises NotFound, unless it `is_needed` for no more than settings;
    Config and Disk as open_home does.
    """
    place = default_home(os.environ)
    if is_needed and os.environ.get("LOOM_HOME"):
        check_is_there(place)
    return homes.look_into(place)


def check_is_there(place: Path) -> None:
    """Raises NotFound for a home that is not there."""
    if not place.exists():
        raise NotFound(f"there is no loom home in {place}", hint=BEGIN)


def settings_of(agent: AgentDir) -> AgentSpec:
    """What an agent is set to. Raises Config that says how to get out of settings that cannot be read."""
    try:
        return agents.read_spec(agent)
    except Config as error:
        if not error.hint and ids.is_agent(agent.name):
            error.hint = f"give it new ones: loom agent start {agent.name} --detach --replace --model M"
        raise


def is_reserved(name: str) -> bool:
    """Whether this is one of loom's own processes."""
    try:
        ids.check_agent(name)
    except Usage:
        return True
    return False
