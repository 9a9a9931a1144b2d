"""Telling a service manager how we are: sd_notify(3) in a few lines, without a library.

A manager such as systemd names a datagram socket in NOTIFY_SOCKET and, for a service with a watchdog, in WATCHDOG_USEC
how long it waits for a word from us. A process that is no service finds neither, and says nothing.
"""

from __future__ import annotations

import math
import os
import socket
from collections.abc import MutableMapping

VARIABLES = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")


class Manager:
    """The one who started us. `every_s` is how often it wants to hear from us at least; infinity: never."""

    def __init__(self, env: MutableMapping[str, str]) -> None:
        """Takes the variables out of `env`: they are meant for this process and no child of it."""
        self._told = told = {name: env.pop(name, "") for name in VARIABLES}
        self._address = told["NOTIFY_SOCKET"]
        usec, pid = told["WATCHDOG_USEC"], told["WATCHDOG_PID"]
        wanted = self._address and usec.isdigit() and int(usec) > 0 and pid in ("", str(os.getpid()))
        self.every_s = int(usec) / 2e6 if wanted else math.inf  # half of its patience

    def env(self) -> dict[str, str]:
        """The variables once more, for the program that this process becomes."""
        return {name: text for name, text in self._told.items() if text}

    def tell(self, *lines: str) -> None:
        """Say `READY=1`, `WATCHDOG=1` and the like. A manager that has gone, or does not listen, changes nothing."""
        if not self._address:
            return
        # A leading @ is a name in the kernel's own space.
        address = "\0" + self._address[1:] if self._address.startswith("@") else self._address
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK) as ours:
                ours.sendto("\n".join(lines).encode(), address)
        except OSError:
            pass
