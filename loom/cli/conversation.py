"""A conversation on a terminal: each line is a filter in the same thread (docs/cli.md)."""

from __future__ import annotations

import signal
import sys
from importlib import import_module
from typing import Any

from loom.cli import input as texts
from loom.cli import printing
from loom.cli.agent_start import Options
from loom.cli.filtering import ENGINE, Teller, settings
from loom.proc.stopping import Leaving, Stopping
from loom.wire import exits
from loom.wire.errors import LoomError

PROMPT = "> "


def talk(o: Options) -> int:
    """Read, answer, until Ctrl-D. An error ends one turn, not the conversation."""
    engine: Any = import_module(ENGINE)
    home, spec, prompt = settings(o)
    engine.prepare(home, spec, home.filters)  # what cannot work is said before anybody types
    thread = o.thread or "main"
    _edit_lines()
    printing.aside(f"{o.name} ({spec.model}), conversation {thread}: Ctrl-C stops an answer, Ctrl-D ends\n")
    stopping = Stopping()
    while True:
        try:
            text = _read()
        except EOFError:
            printing.aside("\n")
            return exits.DONE
        except KeyboardInterrupt:
            printing.aside("\n")
            continue
        if not text.strip():
            continue
        try:
            with _signals(stopping):
                _turn(o, engine.begin(home, spec, prompt, texts.check(text, "the line"), thread), stopping)
        except LoomError as error:
            printing.error(error.line())
        except Leaving as leaving:
            if leaving.signum != signal.SIGINT:
                return 128 + leaving.signum
        stopping.forget()


def _turn(o: Options, context: Any, stopping: Stopping) -> None:
    engine: Any = import_module(ENGINE)
    with context as filter_:
        spec = filter_.spec
        teller = Teller(json=o.json, tools=bool(spec.tools), schema=spec.schema is not None)
        try:
            outcome = filter_.work(engine.Manner(stopping, teller.event, teller.streaming, o.timeout))
            teller.finish(outcome)
        except BaseException:
            teller.break_off()
            raise
        finally:
            filter_.left = False  # whoever types can ask again


class _signals:
    """Inside, signals stop the answer; outside, Ctrl-C at the prompt raises KeyboardInterrupt."""

    def __init__(self, stopping: Stopping) -> None:
        self.stopping = stopping

    def __enter__(self) -> None:
        self.before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
        self.stopping.install_terminal()

    def __exit__(self, *_: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)


def _edit_lines() -> None:
    """Line editing and history, where there is such a thing."""
    if printing.on_terminal():
        try:
            import readline  # noqa: F401  importing it is what changes input()
        except ImportError:
            pass


def _read() -> str:
    if printing.on_terminal():
        return input(PROMPT)
    printing.aside(PROMPT)
    line = sys.stdin.readline()
    if not line:
        raise EOFError
    return line.rstrip("\n")
