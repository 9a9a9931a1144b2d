"""Which function serves which runner: the table from `runner` in agent.json to what a fork calls.

Names that are not here are executables: an absolute path, or a name in the shipped runners/ directory.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path

from loom.proc import streams
from loom.proc.spawn import Entry
from loom.spool import config
from loom.spool.layout import Home, programs_dir
from loom.wire import exits, ids
from loom.wire.errors import Config, LoomError

RUNNERS: dict[str, str] = {
    "agent": "loom.daemons.runner:serve_agent",
    "planner": "loom.daemons.runner:serve_planner",
    "executor": "loom.daemons.runner:serve_executor",
    "verifier": "loom.daemons.runner:serve_verifier",
    "keeper": "loom.daemons.keeper:serve_keeper",
    "router": "loom.daemons.router:serve_router",
    "pipe": "loom.daemons.pipe:serve_pipe",
}

# Those of them whose only work is their mail, so that they may stand by until there is some.
STAND_BY = frozenset(RUNNERS[name] for name in ("agent", "planner", "executor", "verifier", "keeper"))

FILTER = "loom.cli.main:main"  # what a filter's fork calls, with the words of its command line

# What runners and filters import when they first need it. Imported before the first fork it is shared and costs a
# child nothing.
PRELOAD = (
    "loom.cli.agent",
    "loom.cli.agent_start",
    "loom.cli.filtering",
    "loom.cli.main",
    "loom.daemons.filter",
    "loom.models.exec",
    "loom.models.transport",
    "loom.models.openai",
    "loom.models.keys",
    "loom.models.builtin.echo",
    "loom.models.builtin.text",
    "loom.proc.enclosure",
    "loom.proc.toolcall",
    "base64",
    "encodings.ascii",
    "hashlib",
    "orjson",
    "ssl",
)


def preload(programs: Mapping[str, str]) -> list[str]:
    """Import all that forks will run. What cannot be imported is returned, one line each; the others still work."""
    failed = []
    for module in sorted({target.partition(":")[0] for target in programs.values()} | set(PRELOAD)):
        try:
            import_module(module)
        except ImportError as error:
            failed.append(f"{module}: {error}")
    return failed


def warm(home: Home) -> None:
    """Read config.yml, as every runner does first: a fork of ours then has it parsed, and its parser loaded."""
    try:
        config.load(home, {})
    except (LoomError, OSError):
        pass  # the runners say what is wrong with it


def entry_of(target: str) -> Entry:
    """The function named `module:function`. Raises Config when there is none."""
    module, _, name = target.partition(":")
    try:
        function: Entry = getattr(import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise Config(f"the runner {target} cannot be loaded: {error}", hint="reinstall loom") from None
    return function


def command_of(runner: str, agent_dir: Path) -> tuple[str, ...]:
    """The command line of a runner that is an executable. Raises Config when there is none of that name.

    A shipped Python runner is given to the interpreter that runs us, whatever `python3` on PATH may be.
    """
    if Path(runner).is_absolute():
        path, shipped = Path(runner), False
    elif "/" in runner or runner.startswith("."):
        raise Config(f"runner {runner!r} is neither a name nor an absolute path", hint="give its absolute path")
    else:
        path, shipped = programs_dir("runners") / runner, True
    if not path.is_file():
        raise Config(f"there is no runner {str(path)!r}", hint="correct 'runner' in agent.json")
    if shipped and _is_python(path):
        return (sys.executable, str(path), str(agent_dir))
    return (str(path), str(agent_dir))


def _is_python(path: Path) -> bool:
    with path.open("rb") as file:
        first = file.readline(200)
    return first.startswith(b"#!") and b"python" in first


def main(name: str, argv: Sequence[str]) -> int:
    """The command line of a shipped runner, `runner AGENT_DIR [--drain]`: serve until told to leave; exit status."""
    streams.fill()
    places = [arg for arg in argv if arg != "--drain"]
    if len(places) != 1 or places[0].startswith("-"):
        print(f"usage: {name} AGENT_DIR [--drain]", file=sys.stderr)
        return exits.USAGE
    place = Path(places[0]).absolute()
    if not ids.is_mailbox(place.name) or not (place / "agent.json").is_file():
        print(f"loom: {places[0]} is no agent's directory: it holds no agent.json", file=sys.stderr)
        return exits.NOT_FOUND
    try:
        serve: Callable[[Path, bool], int] = entry_of(RUNNERS[name])  # type: ignore[assignment]
        return serve(place, len(places) != len(argv))
    except LoomError as error:
        print(f"loom: {error.line()}", file=sys.stderr)
        return error.exit_status
