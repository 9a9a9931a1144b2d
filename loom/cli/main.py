"""The `loom` command: from a word to the module that serves it, and from what went wrong to an exit status.

The table is data. A command's module, and click with it, is imported when its word was given; `--version`, `help`
and a wrong word cost an interpreter and this file. What every command shares is decided here: the global options,
one line for an error and its status (docs/cli.md), the last line of `--json`.
"""

from __future__ import annotations

import gc
import os
import sys

from loom.cli import printing
from loom.wire import exits
from loom.wire.errors import LoomError, Usage
from loom.wire.release import VERSION

TYPE_CHECKING = False  # `typing` itself costs as much as a whole command that is handed over
if TYPE_CHECKING:
    from typing import Any, NoReturn

GROUPS: tuple[tuple[str, dict[str, tuple[str, str]]], ...] = (
    (
        "Goals",
        {
            "run": ("loom.cli.run", "plan, execute and verify a goal"),
            "goal": ("loom.cli.goal", "list, follow, pause, cancel and land goals"),
        },
    ),
    (
        "Agents",
        {
            "agent": ("loom.cli.agent", "start an agent or a filter; list, stop, retry, read logs"),
            "send": ("loom.cli.send", "deliver a message to an agent, and wait for its answer"),
        },
    ),
    (
        "Weaves",
        {
            "up": ("loom.cli.up:up", "bring up the agents, pipes and routes of a loom.yml"),
            "down": ("loom.cli.up:down", "stop them; all they have stays"),
            "route": ("loom.cli.routes:route", "have an agent hear another"),
            "unroute": ("loom.cli.routes:unroute", "end a route"),
            "routes": ("loom.cli.routes:routes", "list the routes and what went along them"),
            "pipe": ("loom.cli.pipes:pipe", "make a chain of operators for routes to lead through"),
            "pipes": ("loom.cli.pipes:pipes", "list the pipes and what they hold"),
        },
    ),
    (
        "Machine room",
        {
            "supervisor": ("loom.cli.supervisor", "run, ask, reload or stop the supervisor"),
            "model": ("loom.cli.model", "list models and providers, try one"),
            "schedule": ("loom.cli.schedule", "jobs that recur: add, list, remove, serve what is due"),
            "config": ("loom.cli.config", "settings in force and where each comes from"),
            "secret": ("loom.cli.secret", "store, list and remove keys"),
            "doctor": ("loom.cli.doctor", "what this machine offers and lacks"),
            "gc": ("loom.cli.gc", "archive and remove what is old and finished"),
            "fsck": ("loom.cli.fsck", "list, or mend, what does not fit the protocol"),
            "conformance": ("loom.cli.conformance", "whether a runner or a tool keeps the protocol"),
            "completion": ("loom.cli.completion", "completion of commands and names for bash, zsh and fish"),
        },
    ),
)
# Whose first argument is a command.
GROUPED = frozenset(("goal", "agent", "supervisor", "model", "secret", "schedule", "pipe"))
COMMANDS = {name: entry for _, commands in GROUPS for name, entry in commands.items()}

USAGE = """\
usage: loom [--home DIR] [-q] [-v] [--debug] COMMAND …
       loom COMMAND --help

LLM agents as Unix processes; all they do lies in plain files.
"""
OPTIONS = """\
Options before the command:
  --home DIR   work in this directory instead of $LOOM_HOME or ~/.loom
  -q           say only errors on stderr
  -v           say more on stderr
  --debug      show the traceback of an error
  --version    print the version
  -h, --help   print this
"""
GLOBAL = frozenset(("--home", "-q", "--quiet", "-v", "--verbose", "--debug", "--version"))  # as OPTIONS tells


class _Terminated(BaseException):
    """SIGTERM: everything is closed on the way out."""


class _Global:
    """The options before the command, and what came meanwhile."""

    def __init__(self) -> None:
        self.debug = False
        self.json = False
        self.command = ""
        self.terminated = False  # SIGTERM came


def command() -> int:
    """The process `loom`: main, and then no more work than needed. A filter is handed over to who has it in memory.

    An interpreter that ends searches all that it holds for garbage, several times, and then gives it to the kernel as
    it is: a tenth of what a filter costs. What is frozen is not searched.
    """
    if None in (sys.stdin, sys.stdout, sys.stderr):  # what the interpreter has for one that is closed
        from loom.proc import streams

        streams.fill()
    args = sys.argv[1:]
    if "start" in args:
        from loom.cli import warm

        try:
            status = warm.run(args)
        except KeyboardInterrupt:
            return exits.INTERRUPTED
        if status is not None:
            os._exit(status)  # nothing is open, and nothing was said
    status = main(args)
    gc.freeze()
    return status


def main(argv: list[str] | None = None) -> int:
    """Run one command line; the exit status."""
    args = list(sys.argv[1:] if argv is None else argv)
    chosen = _Global()
    chosen.json = "--json" in (args[: args.index("--")] if "--" in args else args)
    try:
        return _dispatch(args, chosen)
    except KeyboardInterrupt:  # what a library may make of any signal
        return exits.TERMINATED if chosen.terminated else exits.INTERRUPTED
    except _Terminated:
        return exits.TERMINATED
    except printing.OutputClosed:
        return exits.DONE
    except LoomError as error:
        return _ended(error, chosen)
    except BrokenPipeError:
        printing.drop_stdout()
        return exits.DONE
    except OSError as error:
        from loom.spool.home import disk_error
        from loom.spool.layout import default_home

        tried = f"`loom {chosen.command}` could not be carried out" if chosen.command else "loom could not go on"
        return _ended(disk_error(error, tried, default_home(os.environ)), chosen, error)
    except Exception as error:  # the one place where a bug becomes a line
        return _bug(error, chosen)


def _dispatch(args: list[str], chosen: _Global) -> int:
    if asked := os.environ.get("_LOOM_COMPLETE"):  # by the script of `loom completion`, for what could be typed next
        from loom.cli.completion import answer

        return answer(COMMANDS, asked)
    rest = _global_options(args, chosen)
    if rest[:1] == ["--version"]:
        printing.line(f"loom {VERSION}")
        return exits.DONE
    if not rest or rest[0] == "help":
        if len(rest) > 1:
            rest = [*rest[1:], "--help"]
        else:
            printing.write(help_text())
            return exits.DONE
    name = rest[0]
    if name not in COMMANDS:
        from loom.cli.words import unknown

        raise unknown(name, COMMANDS)
    return _run(name, rest[1:], chosen)


def _global_options(args: list[str], chosen: _Global) -> list[str]:
    """Take the options before the command; what is left begins with the command."""
    rest = list(args)
    level = printing.VERBOSE if os.environ.get("LOOM_LOG") == "debug" else printing.NORMAL
    while rest and rest[0].startswith("-"):
        option, _, value = rest.pop(0).partition("=")
        if option == "--debug":
            chosen.debug = True
        elif option in ("-q", "--quiet"):
            level = printing.QUIET
        elif option in ("-v", "--verbose"):
            level = printing.VERBOSE
            os.environ.setdefault("LOOM_LOG", "debug")
        elif option == "--home":
            value = value or (rest.pop(0) if rest else "")
            if not value:
                raise Usage("--home needs a directory")
            os.environ["LOOM_HOME"] = os.path.abspath(os.path.expanduser(value))
        elif option == "--version":
            return ["--version"]
        elif option in ("-h", "--help"):
            return ["help"]
        else:
            raise Usage(f"there is no option {option!r} before the command", hint="see: loom help")
    printing.set_level(level)
    return rest


def help_text() -> str:
    """All commands by group."""
    parts = [USAGE]
    for title, commands in GROUPS:
        parts.append(f"{title}:\n" + "".join(f"  {name:<12} {text}\n" for name, (_, text) in commands.items()))
    parts.append(OPTIONS)
    return "\n".join(parts)


def _run(name: str, args: list[str], chosen: _Global) -> int:
    import signal

    import click

    from loom.cli.groups import load

    def on_sigterm(signum: int, frame: object) -> NoReturn:
        chosen.terminated = True
        raise _Terminated

    signal.signal(signal.SIGTERM, on_sigterm)
    chosen.command = " ".join([name, *args[:1]]) if name in GROUPED else name
    command = load(COMMANDS[name][0])
    # make_context and invoke are what click's main() does, without its own ideas about errors and broken pipes.
    try:
        with command.make_context(f"loom {name}", args, help_option_names=["-h", "--help"]) as context:
            result: Any = command.invoke(context)
    except click.exceptions.Exit as leave:
        return leave.exit_code
    except click.Abort:
        return exits.INTERRUPTED
    except click.UsageError as error:
        raise _usage(error, name, args) from None
    return result if isinstance(result, int) and not isinstance(result, bool) else exits.DONE


def _usage(error: Any, name: str, args: list[str]) -> Usage:
    """click's error about the command `name` as one line of ours."""
    from loom.cli.words import PLANNED_IN, planned

    text = " ".join(error.format_message().split()).rstrip(".")
    grouped = name in GROUPED and args and not args[0].startswith("-")
    path = error.ctx.command_path if error.ctx is not None else f"loom {name} {args[0]}" if grouped else f"loom {name}"
    hint = f"see: {path} --help"
    option = getattr(error, "option_name", "")
    if option in PLANNED_IN.get(name, ()):
        return planned(option, path)
    if option in GLOBAL:
        hint = f"it stands before the command: loom {option} {path.removeprefix('loom ')} …"
        text = f"{path} has no option {option!r}"
    return Usage(text[:1].lower() + text[1:], hint=hint)


def _ended(error: LoomError, chosen: _Global, cause: BaseException | None = None) -> int:
    if chosen.debug:
        _traceback(cause or error)
    printing.error(error.line())
    if chosen.json:
        told = {"type": error.kind, "message": str(error), "hint": error.hint, "exit_status": error.exit_status}
        _last_line(told, error.about)
    return error.exit_status


def _bug(error: Exception, chosen: _Global) -> int:
    if chosen.debug:
        _traceback(error)
    text = f"{type(error).__name__}: {error}"
    hint = "this is a bug of loom; nothing that was accepted is lost; run it again as: loom --debug …"
    printing.error(f"{text}; {hint}")
    if chosen.json:
        _last_line({"type": "bug", "message": text, "hint": hint, "exit_status": exits.BUG})
    return exits.BUG


def _last_line(told: dict[str, Any], about: dict[str, str] | None = None) -> None:
    try:
        printing.json_line({"event": "error", **(about or {}), "error": told})
    except (OSError, printing.OutputClosed):
        pass  # it was said on stderr


def _traceback(error: BaseException) -> None:
    import traceback

    printing.raw_error("".join(traceback.format_exception(error)))
