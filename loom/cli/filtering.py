"""A filter from the command line: what its turn tells becomes text on stdout, or NDJSON (docs/cli.md)."""

from __future__ import annotations

import os
from dataclasses import replace
from importlib import import_module
from typing import Any

from loom.cli import input as texts
from loom.cli import printing
from loom.cli.agent_start import WORKSPACE_ENV, Options, existing, open_and_load, spec_of, system_of
from loom.proc.stopping import Leaving, Stopping
from loom.spool.layout import Home
from loom.wire import exits, ids
from loom.wire.chat import usage_to_json
from loom.wire.errors import LoomError, Usage

ENGINE = "loom.daemons.filter"


class Teller:
    """Carries the events of a turn to the user.

    streaming  text goes to stdout as it comes. Otherwise each step's text is held until it is known whether it is
               the answer (stdout) or what the model said before it called a tool (stderr).
    """

    def __init__(self, *, json: bool, tools: bool) -> None:
        self.json = json
        self.streaming = json or not tools or printing.on_terminal()
        self._step: list[str] = []
        self._shown = ""  # the last step's text, as far as it went to stdout
        self._at_line_start = True

    def event(self, event: dict[str, Any]) -> None:
        """What the turn tells; see loom.daemons.turnloop."""
        kind = event["event"]
        if kind == "retry":
            self._step.clear()
            printing.note(f"{event['error']}; trying again in {event['wait_s']:g} s")
        elif self.json:
            printing.json_line(event)
        elif kind == "text":
            self._step.append(event["text"])
            if self.streaming:
                self._out(event["text"])
        elif kind == "usage":
            self._shown = "".join(self._step) if self.streaming else ""
            printing.detail(f"{event['input_tokens']} tokens in, {event['output_tokens']} tokens out")
        elif kind == "tool_call":
            self._before_tool(event)
        elif kind == "tool_result":
            printing.detail(f"{event['name']}: {event.get('error') or event.get('status')}")
        if kind == "usage" and self.streaming:
            self._step.clear()

    def _before_tool(self, event: dict[str, Any]) -> None:
        if self.streaming:
            self._end_line()
        elif self._step:
            printing.aside("".join(self._step).rstrip("\n") + "\n")
        self._step.clear()
        self._shown = ""
        printing.detail(f"calls {event['name']}")

    def finish(self, outcome: Any) -> None:
        """The turn has its answer: print what is not printed yet, and end the line."""
        if self.json:
            told = {"usage": usage_to_json(outcome.usage), "steps": outcome.steps}
            printing.json_line({"event": "result", "text": outcome.text, **told, "exit_status": exits.DONE})
            return
        if self._shown != outcome.text:
            self._out(outcome.text)
        self._end_line()

    def _out(self, text: str) -> None:
        if text:
            printing.write(text)
            self._at_line_start = text.endswith("\n")

    def _end_line(self) -> None:
        if not self._at_line_start:
            self._out("\n")

    def break_off(self) -> None:
        """No answer will come: what follows on a terminal begins a new line."""
        if printing.on_terminal() and not self.json:
            self._end_line()


def run(o: Options) -> int:
    """Answer one input, or go on with one that was left; the exit status."""
    engine: Any = import_module(ENGINE)
    if o.resume is not None:
        home, _ = open_and_load()
        stem = o.resume.removesuffix(".msg")
        if stem and not ids.is_stem(stem):
            raise Usage(f"{o.resume!r} is not a message's name", hint="it stands in what the interrupted filter said")
        return answer(o, engine.resume(home, o.name, stem))
    body = texts.check(o.prompt, "--prompt") if o.prompt is not None else texts.read_stdin(o.max_input)
    home, spec, prompt = settings(o)
    return answer(o, engine.begin(home, spec, prompt, body, o.thread or ""))


def settings(o: Options) -> tuple[Home, Any, str]:
    """(home, spec, system prompt) of a filter: it works where the user is, unless told otherwise."""
    home, loaded = open_and_load()
    base, base_prompt = existing(home, o.name)
    spec = spec_of(o, base, loaded["model"])
    if WORKSPACE_ENV not in spec.env:
        spec = replace(spec, env={**spec.env, WORKSPACE_ENV: os.getcwd()})
    return home, spec, system_of(o, base_prompt)


def answer(o: Options, context: Any) -> int:
    """Carry one filter to its end. What it leaves to be resumed is named in its error."""
    stopping = Stopping()
    stopping.install()
    with context as filter_:
        teller = Teller(json=o.json, tools=bool(filter_.spec.tools))
        engine: Any = import_module(ENGINE)
        manner = engine.Manner(stopping, teller.event, teller.streaming, o.timeout)
        again = f"resume with: loom agent start {o.name} --resume {filter_.stem}"
        try:
            outcome = filter_.work(manner)
            filter_.left = True  # until it is said
            teller.finish(outcome)
            filter_.left = False
        except Leaving as leaving:
            teller.break_off()
            printing.error(f"interrupted; {again}")
            return 128 + leaving.signum
        except printing.OutputClosed:
            filter_.left = False  # whoever asked has had enough
            raise
        except LoomError as error:
            teller.break_off()
            if filter_.left:
                error.hint = f"{error.hint}; {again}" if error.hint else again
            raise
        except OSError:
            printing.error(again)
            raise
    return exits.DONE
