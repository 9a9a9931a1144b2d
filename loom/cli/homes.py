"""The home a command works on, and the agents in it."""

from __future__ import annotations

import os

from loom.spool import home as homes
from loom.spool.layout import Home, default_home
from loom.wire import ids
from loom.wire.errors import Usage


def open_home() -> Home:
    """The home of this command line, made when it is not there. Raises Config and Disk."""
    return homes.open_home(default_home(os.environ))


def look_into_home() -> Home:
    """The same for a command that only shows: it needs no right to write. Raises Config and Disk."""
    return homes.look_into(default_home(os.environ))


def is_reserved(name: str) -> bool:
    """Whether this is one of loom's own processes."""
    try:
        ids.check_agent(name)
    except Usage:
        return True
    return False
