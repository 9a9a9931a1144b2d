"""`loom agent start`: from its options to one of three ways to work: a filter, a conversation, a detached agent."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from loom.cli import input as texts
from loom.cli import printing
from loom.cli.homes import open_home, settings_of
from loom.cli.params import Count, Seconds
from loom.spool import config
from loom.spool.layout import Home, programs_dir
from loom.wire import agent as wire
from loom.wire import ids
from loom.wire.agent import AgentLimits, AgentSpec, Restart
from loom.wire.errors import BadInput, Config, NotFound, Usage
from loom.wire.record import record, replace

WORKSPACE_ENV = "LOOM_WORKSPACE"
OWN = "agent"  # the runner of an agent that is given none


@record
class Options:
    """The command line, as it was written: None, empty or False where it says nothing."""

    name: str
    model: str | None
    stdin: bool
    prompt: str | None
    system: str | None
    system_file: str | None
    thread: str | None
    tools: str | None
    schema: str | None
    attach: tuple[str, ...]
    resume: str | None
    env: tuple[str, ...]
    workspace: str | None
    restart: str | None
    restart_base: float | None
    restart_max: float | None
    restart_limit: int | None
    restart_window: float | None
    scale: str | None
    limit: tuple[str, ...]
    runner: str | None
    detach: bool
    replace: bool
    json: bool
    max_input: int
    timeout: float | None
    unsafe_no_sandbox: bool
    max_steps: int | None


_OPTIONS: tuple[Callable[[Any], Any], ...] = (
    click.argument("name"),
    click.option("--model", metavar="M", help="The model, e.g. ollama/llama3.2 or builtin/echo."),
    click.option("--stdin", is_flag=True, help="Answer what comes on stdin (the default when it is no terminal)."),
    click.option("--prompt", metavar="TEXT", help="Answer TEXT instead of stdin."),
    click.option("--system", metavar="TEXT", help="The system prompt."),
    click.option("--system-file", metavar="F", help="A file with the system prompt."),
    click.option("--thread", metavar="T", help="Keep the conversation under this name and go on with it."),
    click.option("--tools", metavar="A,B", help="Names of the granted tools."),
    click.option("--schema", metavar="FILE", help="A JSON Schema: the answer is JSON that fits it, else 65."),
    click.option("--max-steps", type=Count(1), metavar="N", help="Ask the model so often for a message: 60."),
    click.option("--attach", metavar="FILE", multiple=True, help="An image or a text file to go with it; repeatable."),
    click.option(
        "--resume",
        metavar="[MSG]",
        is_flag=False,
        flag_value="",
        help="Go on with a filter of this name that was interrupted; without MSG with the newest.",
    ),
    click.option("--env", metavar="K=V", multiple=True, help="A variable for model programs and tools; repeatable."),
    click.option("-w", "--workspace", metavar="DIR", help="Where tools work; a filter's default is this directory."),
    click.option("--restart", type=click.Choice(wire.POLICIES), help="With --detach: when to start it again."),
    click.option("--restart-base", type=Seconds(), metavar="S", help="Seconds before the first restart."),
    click.option("--restart-max", type=Seconds(), metavar="S", help="Seconds before a restart at most."),
    click.option("--restart-limit", type=Count(1), metavar="N", help="Crashes within the window until dead."),
    click.option("--restart-window", type=Seconds(), metavar="S", help="Seconds in which crashes count."),
    click.option("--scale", type=click.Choice(("one", "to-zero")), help="to-zero: a process only while there is mail."),
    click.option("--limit", metavar="K=V", multiple=True, help="memory, cpu_s, files, processes or disk; repeatable."),
    click.option("--runner", metavar="PROGRAM", help="With --detach: what serves its mailbox in place of loom's own."),
    click.option("--detach", is_flag=True, help="Run it under the supervisor, serving its mailbox."),
    click.option("--replace", is_flag=True, help="With --detach: give an existing agent these settings."),
    click.option("--json", is_flag=True, help="Print NDJSON events; with --detach one object."),
    click.option(
        "--max-input",
        type=Count(1),
        default=texts.MAX_BYTES,
        show_default=True,
        metavar="BYTES",
        help="Refuse a longer stdin.",
    ),
    click.option("--timeout", type=Seconds(min_open=True), metavar="S", help="Seconds for the answer."),
    click.option("--unsafe-no-sandbox", is_flag=True, help="Let run-shell run without a sandbox; recorded."),
)


def _with_options(function: Callable[..., Any]) -> Callable[..., Any]:
    for option in reversed(_OPTIONS):
        function = option(function)
    return function


@click.command("start")
@_with_options
def cli(**given: Any) -> int:
    """Start the agent NAME.

    With --stdin, with --prompt or when stdin is no terminal it is a filter: the input is the message, the answer
    goes to stdout (a newline is added when it has none at its end), everything else to stderr. Any number of
    filters may run under one name. With tools, what the model says before it calls one goes to stderr.

    With --schema the answer is one line of JSON and nothing else. An answer that does not fit is sent back with its
    faults, twice; then it ends with 65. For example:

    \b
      loom agent start triage --schema issue.json --attach screenshot.png < report.txt | jq .severity

    On a terminal it is a conversation: Ctrl-C stops an answer, Ctrl-D ends it.

    With --detach it becomes a process under the supervisor that answers the messages of `loom send NAME`. What
    an agent of this name is set to is the default for filters and conversations.
    """
    options = Options(**given)
    ids.check_agent(options.name)
    _check_combination(options)
    if options.detach:
        from loom.cli import detach

        return detach.start(options)
    if options.resume is None and not options.stdin and options.prompt is None and texts.stdin_is_terminal():
        if options.attach:
            raise Usage("--attach needs a message to go with", hint="give --prompt TEXT or --stdin")
        from loom.cli import conversation

        return conversation.talk(options)
    from loom.cli import filtering

    return filtering.run(options)


def _check_combination(o: Options) -> None:
    """Raise Usage for options that contradict each other, naming both."""
    if o.stdin and o.prompt is not None:
        raise Usage("--stdin and --prompt are two inputs; give one of them")
    if o.system is not None and o.system_file is not None:
        raise Usage("--system and --system-file are two system prompts; give one of them")
    if o.thread is not None:
        ids.check_thread(o.thread)
    only_detached = {
        "--replace": o.replace,
        "--restart": o.restart is not None,
        "--restart-base": o.restart_base is not None,
        "--restart-max": o.restart_max is not None,
        "--restart-limit": o.restart_limit is not None,
        "--restart-window": o.restart_window is not None,
        "--scale": o.scale is not None,
        "--limit": bool(o.limit),
        "--runner": o.runner is not None,
    }
    never_detached = {
        "--stdin": o.stdin,
        "--prompt": o.prompt is not None,
        "--thread": o.thread is not None,
        "--attach": bool(o.attach),
        "--resume": o.resume is not None,
        "--timeout": o.timeout is not None,
    }
    never_resumed = never_detached | {
        "--resume": False,
        "--timeout": False,
        "--model": o.model is not None,
        "--system": o.system is not None,
        "--system-file": o.system_file is not None,
        "--tools": o.tools is not None,
        "--schema": o.schema is not None,
        "--env": bool(o.env),
        "-w": o.workspace is not None,
        "--unsafe-no-sandbox": o.unsafe_no_sandbox,
    }
    if not o.detach:
        _refuse(only_detached, "needs --detach")
    else:
        _refuse(never_detached, "does not go with --detach")
    if o.resume is not None:
        _refuse(never_resumed, "does not go with --resume, which keeps what was chosen before")


def _refuse(given: dict[str, bool], why: str) -> None:
    for option, is_given in given.items():
        if is_given:
            raise Usage(f"{option} {why}")


def open_and_load() -> tuple[Home, config.Loaded]:
    """The home and its settings."""
    home = open_home()
    return home, config.load(home, os.environ)


def existing(home: Home, name: str, *, anew: bool = False) -> tuple[AgentSpec | None, str]:
    """(spec, prompt) of the agent of this name; (None, '') when there is none.

    anew  an agent.json that cannot be read counts as none: it is about to be replaced. Else raises Config.
    """
    directory = home.agent(name)
    if not directory.spec.exists():
        return None, ""
    try:
        prompt = texts.read_file(str(directory.prompt), 1 << 20)
    except (NotFound, BadInput):
        prompt = ""
    try:
        return settings_of(directory), prompt
    except Config:
        if not anew:
            raise
        return None, prompt


def spec_of(o: Options, base: AgentSpec | None, default_model: str) -> AgentSpec:
    """What the command line says, over what `base` is set to, over the configured model."""
    runner = base.runner if base is not None else OWN
    if o.runner is not None:
        runner = _runner(o.runner)
    if runner != OWN and not o.detach:
        raise Usage(f"{o.name} is served by {runner}", hint=f"send to it with: loom send {o.name} TEXT --wait")
    model = o.model if o.model is not None else (base.model if base is not None else default_model)
    if runner != OWN and o.model is None and (base is None or base.runner != runner):
        model = Path(runner).name  # it has none of ours; what is shown is who answers
    if not model:
        raise Usage(
            f"no model for {o.name}: --model is missing and `model` is not set",
            hint="give --model, e.g. --model ollama/llama3.2, or --model builtin/echo to try without one",
        )
    spec = base if base is not None else AgentSpec(name=o.name, model=model)
    schema = spec.schema
    if o.schema is not None:
        schema = _read_schema(o.schema) if o.schema else None
    env = {**spec.env, **texts.pairs(o.env)}
    if o.workspace is not None:
        env[WORKSPACE_ENV] = workspace(o.workspace)
    return replace(
        spec,
        model=model,
        runner=runner,
        tools=spec.tools if o.tools is None else tuple(t.strip() for t in o.tools.split(",") if t.strip()),
        env=env,
        restart=_restart(o, spec.restart),
        unsafe_no_sandbox=spec.unsafe_no_sandbox or o.unsafe_no_sandbox,
        options=spec.options if o.max_steps is None else {**spec.options, "max_steps": o.max_steps},
        schema=schema,
        limits=_limits(o, spec.limits),
        scale=spec.scale if o.scale is None else "to-zero" if o.scale == "to-zero" else "",
    )


def _runner(given: str) -> str:
    """`--runner`: a path, or the name of one that comes with loom. Raises NotFound, Usage."""
    if given == OWN:
        return given
    path = Path(given).expanduser().absolute() if "/" in given else programs_dir("runners") / given
    if not path.is_file():
        hint = "" if "/" in given else f"one that comes with loom has a name; of another give the path, e.g. ./{given}"
        raise NotFound(f"there is no runner {given!r}", hint=hint)
    if not os.access(path, os.X_OK):
        raise Usage(f"the runner {given} cannot be executed", hint=f"chmod +x {given}")
    return str(path) if "/" in given else given


def _limit(name: str, value: str) -> float | str:
    """A limit as decode_limits() takes it. Raises ValueError."""
    if name not in wire.LEAST or name in ("memory", "disk"):
        return value  # a size, or a name that is refused anyway
    try:
        number = float(value)
    except ValueError:
        raise ValueError(f"{name} is a number{' of seconds' if name == 'cpu_s' else ''}, for example 60") from None
    return number if name == "cpu_s" or number % 1 else int(number)


def _limits(o: Options, base: AgentLimits) -> AgentLimits:
    """`--limit memory=256MiB`, over those of before; an empty value takes one away. Raises Usage."""
    given: dict[str, Any] = wire.limits_to_json(base)
    for pair in o.limit:
        name, is_pair, value = pair.partition("=")
        if not is_pair:
            raise Usage(f"--limit {pair!r} is not NAME=VALUE", hint="for example: --limit memory=256MiB")
        try:
            given[name] = _limit(name, value) if value else None
            wire.decode_limits(given)
        except ValueError as error:
            raise Usage(f"--limit {pair}: {error}") from None
    return wire.decode_limits(given)


def _read_schema(path: str) -> dict[str, Any]:
    from loom.cli import schema_option  # here, because most agents have no schema

    return schema_option.read(path)


def _restart(o: Options, base: Restart) -> Restart:
    return Restart(
        policy=base.policy if o.restart is None else o.restart,  # type: ignore[arg-type]
        base_s=base.base_s if o.restart_base is None else o.restart_base,
        max_s=base.max_s if o.restart_max is None else o.restart_max,
        limit=base.limit if o.restart_limit is None else o.restart_limit,
        window_s=base.window_s if o.restart_window is None else o.restart_window,
    )


def workspace(given: str) -> str:
    """An existing directory as an absolute path. Raises NotFound."""
    path = Path(given).expanduser().absolute()
    if not path.is_dir():
        raise NotFound(f"the workspace {given!r} is no directory", hint="make it first, or correct -w")
    return texts.check(str(path), "the name of the workspace")


def warn_of_no_sandbox(spec: AgentSpec) -> None:
    """Say beforehand that a granted `run-shell` is going to refuse."""
    if "run-shell" in spec.tools and not spec.unsafe_no_sandbox:
        printing.note("run-shell has no sandbox in this version and refuses to run without --unsafe-no-sandbox")


def system_of(o: Options, base: str) -> str:
    """The system prompt: the flags', else the agent's."""
    if o.system_file is not None:
        return texts.read_file(o.system_file, 1 << 20)
    if o.system is None:
        return base
    return texts.check(o.system, "--system") if o.system else ""
