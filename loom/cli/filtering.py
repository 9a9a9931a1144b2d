"""A filter from the command line: what its turn tells becomes text on stdout, or NDJSON (docs/cli.md)."""

from __future__ import annotations

import os
from importlib import import_module
from typing import Any

from loom.cli import input as texts
from loom.cli import printing
from loom.cli.agent_start import WORKSPACE_ENV, Options, existing, open_and_load, spec_of, system_of, warn_of_no_sandbox
from loom.proc.stopping import Leaving, Stopping
from loom.spool.home import disk_error
from loom.spool.layout import Home
from loom.wire import exits, ids
from loom.wire.chat import usage_to_json
from loom.wire.errors import LoomError, Usage
from loom.wire.jsontext import loads
from loom.wire.record import replace

ENGINE = "loom.daemons.filter"
_HELD = 16 << 10  # characters of an unfinished line


class Teller:
    """Carries the events of a turn to the user.

    streaming  text goes to stdout as it comes. Otherwise each step's text is held until it is known whether it is
               the answer (stdout) or what the model said before it called a tool (stderr).
    schema     the answer is JSON; nothing but it goes to stdout

    Into anything but a terminal text goes by whole lines: those of filters side by side (`xargs -P`) do not mix.
    """

    def __init__(self, *, json: bool, tools: bool, schema: bool = False) -> None:
        self.json = json
        self.schema = schema
        self.streaming = json or (not schema and (not tools or printing.on_terminal()))
        self._said: list[str] = []  # by the model since its last tool call
        self._line_open = False
        self._by_line = not printing.on_terminal()
        self._held = ""  # the beginning of a line that is not printed yet

    def event(self, event: dict[str, Any]) -> None:
        """What the turn tells; see loom.daemons.turnloop."""
        kind = event["event"]
        if kind == "retry":
            self._said.clear()
            printing.note(f"{event['error']}; trying again in {event['wait_s']:g} s")
        elif kind == "notice" and not self.json:
            printing.note(event["text"])
        elif kind in ("asked_again", "history_cut") and not self.json:
            self._aside(kind, event)
        elif self.json:
            printing.json_line(event)
        elif kind == "text":
            self._said.append(event["text"])
            if self.streaming:
                self._out(event["text"])
        elif kind == "tool_call":
            self._tool_call(event["name"])
        elif kind == "tool_result":
            printing.detail(f"{event['name']}: {event.get('error') or event['status']}")
        elif kind == "usage":
            printing.detail(f"{event['input_tokens']} tokens in, {event['output_tokens']} out")

    def _aside(self, kind: str, event: dict[str, Any]) -> None:
        if kind == "history_cut":
            printing.note(event["what"])
            return
        if self.streaming:
            self.end_line()
        self._said.clear()
        printing.note(f"{event['why']}; asking again")

    def _tool_call(self, name: str) -> None:
        if self.streaming:
            self.end_line()
        elif said := "".join(self._said).strip():
            printing.aside(f"{said}\n")
        self._said.clear()
        printing.detail(f"calls {name}")

    def finish(self, outcome: Any) -> None:
        """The turn has its answer: print what is not printed yet, and end the line."""
        if self.json:
            told = {"value": loads(outcome.text.encode())} if self.schema else {}
            told |= {"usage": usage_to_json(outcome.usage), "steps": outcome.steps}
            printing.json_line({"event": "result", "text": outcome.text, **told, "exit_status": exits.DONE})
            return
        if not (self.streaming and self._said):  # held back, or recorded by the filter that we resumed
            self._out(outcome.text)
        self.end_line()

    def _out(self, text: str) -> None:
        if not text:
            return
        self._line_open = not text.endswith("\n")
        if self._by_line:
            text = self._held + text
            end = text.rfind("\n") + 1
            if len(text) - end > _HELD:
                end = len(text)
            text, self._held = text[:end], text[end:]
        if text:
            printing.write(text)

    def end_line(self) -> None:
        """What comes next begins a new line."""
        if self._line_open:
            self._out("\n")

    def break_off(self) -> None:
        """No answer will come: print what was held; a terminal's next line is for the reason."""
        if self._held:
            held, self._held = self._held, ""
            try:
                printing.write(held)
            except (OSError, printing.OutputClosed):
                pass  # the reason for breaking off is what counts
        if printing.on_terminal() and not self.json:
            self.end_line()


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
    images, attached = attachments(o.attach, o.max_input)
    home, spec, prompt = settings(o)
    return answer(o, engine.begin(home, spec, prompt, body + attached, o.thread or "", images))


def attachments(paths: tuple[str, ...], limit: int) -> tuple[list[tuple[str, bytes]], str]:
    """(images, what is added to the text) of --attach."""
    if not paths:
        return [], ""
    from loom.cli import attaching  # here, because most messages have none

    return attaching.read(paths, limit)


def settings(o: Options) -> tuple[Home, Any, str]:
    """(home, spec, system prompt) of a filter: it works where the user is, unless told otherwise."""
    home, loaded = open_and_load()
    base, base_prompt = existing(home, o.name)
    spec = spec_of(o, base, loaded["model"])
    if WORKSPACE_ENV not in spec.env:
        here = texts.check(os.getcwd(), "the name of the current directory")
        spec = replace(spec, env={**spec.env, WORKSPACE_ENV: here})
    warn_of_no_sandbox(spec)
    return home, spec, system_of(o, base_prompt)


def answer(o: Options, context: Any) -> int:
    """Carry one filter to its end. What it leaves to be resumed is named in its error."""
    stopping = Stopping()
    stopping.install_terminal()
    with context as filter_:
        spec = filter_.spec
        teller = Teller(json=o.json, tools=bool(spec.tools), schema=spec.schema is not None)
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
            error = LoomError("interrupted", hint=again, kind="interrupted")
            error.exit_status = 128 + leaving.signum
            raise error from None
        except printing.OutputClosed:
            filter_.left = False  # whoever asked has had enough
            raise
        except LoomError as error:
            teller.break_off()
            if filter_.left:
                error.hint = f"{error.hint}; {again}" if error.hint else again
            raise
        except OSError as error:
            trouble = disk_error(error, f"{o.name} cannot go on")
            trouble.hint = f"{trouble.hint}; {again}" if trouble.hint else again
            raise trouble from error
    return exits.DONE
