"""What the agents of a weave log, in one stream, until Ctrl-C: `loom up` without -d."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

from loom.cli import printing
from loom.cli.agent_logs import Tail, human
from loom.spool.layout import Home

_LOOK_S = 0.25


def follow(home: Home, names: Sequence[str], as_json: bool) -> None:
    """Print new log lines for ever; ends with KeyboardInterrupt, SIGTERM or a closed stdout.

    Whatever becomes of one agent's logs, those of the others are printed on.
    """
    tails = {name: Tail(home.agent(name).logs) for name in names}
    lost: set[str] = set()
    for name, tail in tails.items():
        for _ in _added(name, tail, lost):
            pass  # what was logged before is not of this run
    while True:
        for name, tail in tails.items():
            for line in _added(name, tail, lost):
                if as_json:
                    printing.line(line.decode("utf-8", "replace"))
                else:
                    printing.line(f"{name}  {human(line)}")
        time.sleep(_LOOK_S)


def _added(name: str, tail: Tail, lost: set[str]) -> Iterator[bytes]:
    """The new lines of one agent; none from one whose logs are `lost`, which is told once."""
    try:
        yield from tail.new()
        lost.discard(name)
    except OSError as error:
        if name not in lost:
            lost.add(name)
            printing.error(f"the logs of {name} cannot be read: {error}")
