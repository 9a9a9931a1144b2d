"""`loom pipe create` and `loom pipes`: chains of operators, and their instances at work (docs/weave.md)."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from loom.cli import agent_state, printing, weaving
from loom.cli import input as texts
from loom.cli.ensure import ensure_supervisor
from loom.cli.groups import LazyGroup
from loom.cli.homes import existing_home, look_into_home
from loom.core import pipes as core
from loom.core.routing import end_of
from loom.core.weave import parse_operators
from loom.spool import agents, ndjson
from loom.spool.layout import Home
from loom.wire import ids
from loom.wire.errors import Config, NotFound, Usage
from loom.wire.weave import EXPRESSIONS, Operator, decode_operators

pipe = LazyGroup(
    "pipe",
    {
        "create": ("loom.cli.pipes:create", "make a pipe that `loom route` can lead through"),
        "rm": ("loom.cli.pipe_rm:cli", "remove a pipe that no route leads through"),
    },
    help="Named chains of operators.",
)

# What a shell understands by itself; any other first word of a command is a program that must be there.
_JQ_S = 5.0
_JQ_NOT_COMPILED = 3  # its exit status
_JQ_SAYS = re.compile(r"^jq: error: ?|( \(Unix shell quoting issues\?\))?( at <top-level>(, line \d+)?.*)?$")
_OF_THE_SHELL = frozenset(
    (
        *(":", ".", "[", "alias", "bg", "break", "cd", "command", "continue", "echo", "eval", "exec", "exit", "export"),
        *("false", "fg", "getopts", "hash", "jobs", "kill", "local", "printf", "pwd", "read", "readonly", "return"),
        *("set", "shift", "test", "times", "trap", "true", "type", "ulimit", "umask", "unalias", "unset", "wait"),
        *("if", "for", "while", "case", "until", "{", "(", "!"),
    )
)


@click.command("create")
@click.argument("name")
@click.argument("operators", required=False)
@click.option("--file", metavar="F", help="A YAML file with the list of operators instead.")
@click.option("--replace", is_flag=True, help="Give an existing pipe these operators.")
def create(name: str, operators: str | None, file: str | None, replace: bool) -> None:
    """Make the pipe NAME of OPERATORS, a YAML list: '[{operator: command, cmd: "jq -c .items[]"}]'.

    Its commands run in this directory. What the pipe's instances hold while it is replaced goes on as it is.
    """
    if (operators is None) == (file is None):
        raise Usage("give the operators, or --file F with them", hint="see: loom pipe create --help")
    ids.check_agent(name)
    steps = parse_operators(operators or texts.read_file(file or ""), file or "operators")
    for operator, place in steps:
        with at(place):
            check_operator(name, operator)
    chain = tuple(operator for operator, _ in steps)
    home = existing_home()
    with weaving.held(home):
        known = weaving.pipes(home)
        if home.agent(name).spec.exists():
            raise Usage(f"there is an agent {name!r}", hint="choose another name for the pipe")
        made = weaving.Pipe(chain, str(Path.cwd()))
        if name in known and known[name].operators != chain and not replace:
            raise Usage(f"the pipe {name} has other operators", hint="to give it these, add --replace")
        if name in known and known[name].weave:
            raise Usage(f"the pipe {name} belongs to the weave {known[name].weave!r}", hint="change it in its loom.yml")
        if known.get(name) == made:
            printing.note(f"the pipe {name} exists with these operators")
            return
        weaving.write_pipe(home, name, made)
        for route in weaving.routes(home):
            if route.pipe == name:
                weaving.write_instance(home, route, made)
                ensure_supervisor(home)
    printing.note(f"the pipe {name} is made; use it with: loom route A --to B --pipe {name}")


@contextmanager
def at(place: str) -> Iterator[None]:
    """What is wrong here is wrong in this line of a file: Config that begins with it, whatever it was."""
    try:
        yield
    except (Config, NotFound, Usage) as error:
        kind = error.kind if isinstance(error, Config) else ""
        raise Config(f"{place}: {error}", hint=error.hint, kind=kind) from None


def check_operator(pipe: str, operator: Operator) -> None:
    """Raise Config for a program that an operator needs and that is missing, or that refuses what it says."""
    if operator.kind in EXPRESSIONS:
        what = f"pipe {pipe!r}: {operator.kind}.{EXPRESSIONS[operator.kind]}"
        if shutil.which("jq") is None:
            raise Config(f"{what} needs jq, which is not installed", hint="install it, e.g. apt-get install jq")
        if fault := _jq_fault(operator[EXPRESSIONS[operator.kind]]):
            raise Config(f"{what} is no jq expression: {fault}", hint="try it with: jq -n")
    if operator.kind == "command" and (program := _program(operator["cmd"])) and shutil.which(program) is None:
        raise Config(f"pipe {pipe!r}: there is no program {program!r}", hint="install it, or correct its cmd")


def _jq_fault(expression: str) -> str:
    """Why jq cannot compile an expression, in a line; empty when it can, or says nothing in time.

    It is given no input, so nothing of the expression is evaluated.
    """
    argv = ["jq", "-c", f" {expression}"]  # as the pipe runs it: the blank keeps it from being an option
    try:
        done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, timeout=_JQ_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    if done.returncode != _JQ_NOT_COMPILED:
        return ""
    said = done.stderr.decode("utf-8", "replace").partition("\n")[0]
    return _JQ_SAYS.sub("", said) or "it does not compile"


def _program(command: str) -> str:
    """The program that a command begins with, empty where that is not plain to see."""
    try:
        words = shlex.split(command, comments=True)
    except ValueError:
        return ""  # the shell will say what it thinks of it
    first = words[0] if words else ""
    plain = first and not any(c in first for c in "$`=*?()|&;<>/") and first not in _OF_THE_SHELL
    return first if plain else ""


@click.command("pipes")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def pipes(as_json: bool) -> None:
    """List the pipes and their instances: one for each route that leads through them, with what it holds."""
    home = look_into_home()
    known = weaving.pipes(home)
    rows = []
    routes = {end_of(route): route for route in weaving.routes(home) if route.pipe}
    for name in agents.instances(home):
        agent = home.agent(name)
        if not agent.spec.exists():
            continue
        state = agent_state.of(home, agent)
        pipe_name, _, ends = name.partition("~")
        source, _, to = ends.partition("→")
        rows.append(
            {
                "pipe": pipe_name,
                "from": source,
                "to": to,
                "status": state.status,
                "waiting": state.waiting,
                "held": held(home, name),
                "routed": name in routes,
                "reason": state.reason,
            }
        )
    chains = {name: [operator.kind for operator in one.operators] for name, one in known.items()}
    if as_json:
        listed = [{"name": name, "operators": chain, "weave": known[name].weave} for name, chain in chains.items()]
        printing.json_line({"v": 1, "pipes": listed, "instances": rows})
        return
    used = {row["pipe"] for row in rows}
    cells = [
        (
            str(row["pipe"]),
            " ".join(chains.get(str(row["pipe"]), [])),
            str(row["from"]),
            str(row["to"]),
            str(row["status"]),
            str(row["waiting"]),
            str(row["held"]),
        )
        for row in rows
    ]
    cells += [(name, " ".join(chain), "-", "-", "-", "-", "-") for name, chain in chains.items() if name not in used]
    printing.table(("PIPE", "OPERATORS", "FROM", "TO", "STATUS", "WAITING", "HELD"), sorted(cells))


def held(home: Home, name: str) -> int:
    """How many messages an instance holds, as its journal says; the process may be writing it at this moment."""
    records = ndjson.read_objects(home.agent(name).pipe_state / "journal.ndjson")
    if not records:
        return 0
    try:
        state = core.State(decode_operators(records[0].get("operators"), name))
        for record in records[1:]:
            state.apply(record)
    except (Config, KeyError, TypeError, IndexError, ValueError):
        return 0
    return sum(len(here.held) for here in state.at)
