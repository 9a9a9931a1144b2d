"""What the agents of a weave log, in one stream, until Ctrl-C: `loom up` without -d."""

from __future__ import annotations

import time
from collections.abc import Sequence

from loom.cli import printing
from loom.cli.agent_logs import Tail, human
from loom.spool.layout import Home

_LOOK_S = 0.25


def follow(home: Home, names: Sequence[str], as_json: bool) -> None:
    """Print new log lines for ever; ends with KeyboardInterrupt, SIGTERM or a closed stdout."""
    tails = {name: Tail(home.agent(name).logs) for name in names}
    for tail in tails.values():
        for _ in tail.new():
            pass  # what was logged before is not of this run
    while True:
        for name, tail in tails.items():
            for line in tail.new():
                if as_json:
                    printing.line(line.decode("utf-8", "replace"))
                else:
                    printing.line(f"{name}  {human(line)}")
        time.sleep(_LOOK_S)
