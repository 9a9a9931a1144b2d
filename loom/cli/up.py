"""`loom up` and `loom down`: the agents, pipes and routes of a loom.yml (docs/weave.md, ADR-0022)."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path

import click

from loom.cli import detach, printing, weaving
from loom.cli.agent_stop import WAIT_S, take_down, wait_gone
from loom.cli.ensure import ensure_supervisor
from loom.cli.homes import existing_home, open_home
from loom.cli.params import Seconds
from loom.cli.pipes import at, check_operator
from loom.core import weave as core
from loom.core.routing import circle, end_of
from loom.core.weave import Change
from loom.core.weave_settings import joined
from loom.spool import agents, config, fs, wake
from loom.spool.config import Loaded
from loom.spool.layout import Home
from loom.wire import exits
from loom.wire.agent import AgentSpec
from loom.wire.errors import Config, NotFound, Usage
from loom.wire.weave import Route, Weave, WeaveAgent, step_of

WORKSPACE_ENV = "LOOM_WORKSPACE"
_FILE = click.option("-f", "--file", metavar="FILE", help="The weave; by default loom.yml here or in the home.")


@click.command("up")
@_FILE
@click.option("-d", "--detach", "detached", is_flag=True, help="Leave when all is started, and print what was done.")
@click.option("--schema", "print_schema", is_flag=True, help="Print the JSON Schema of loom.yml, for editors.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object; without -d log lines as NDJSON after it.")
def up(file: str | None, detached: bool, print_schema: bool, as_json: bool) -> int:
    """Bring up the agents, pipes and routes of a loom.yml.

    Given again it changes only what the file has changed: what is the same is left alone, what is not is restarted,
    what is gone is stopped and keeps all it has. Without -d it prints what the agents log until Ctrl-C, which takes
    them down.
    """
    if print_schema:
        from loom.core import weave_schema

        printing.write(weave_schema.page())
        return exits.DONE
    path = weaving.find_file(file)
    weave = weaving.read_file(path)
    weaving.choose_home(weave, path)
    home = open_home()
    if detached:
        with weaving.held(home):
            done = bring_up(home, weave, path)
        _tell(home, weave, done, as_json)
    else:
        _stay(home, weave, path, as_json)
    return exits.DONE


def _stay(home: Home, weave: Weave, path: Path, as_json: bool) -> None:
    """Bring it up and print what its agents log; whatever ends us takes them down, also while they are brought up.

    A weave that is refused is left as it was.
    """
    from loom.cli import weave_logs

    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        signal.signal(signal.SIGHUP, signal.getsignal(signal.SIGTERM))  # a terminal that is closed takes them down too
    is_ours = False
    try:
        with weaving.held(home):
            is_ours = True
            try:
                done = bring_up(home, weave, path)
            except Exception:
                is_ours = False
                raise
        _tell(home, weave, done, as_json)
        weave_logs.follow(home, [agent.name for agent in weave.agents], as_json)
    finally:
        if is_ours:
            with weaving.held(home, wait=True):
                take_all_down(home, _stands(home, weave), WAIT_S)
                _tell_taken(weaving.take_back_overrides(home, weave.name))


def bring_up(home: Home, weave: Weave, path: Path) -> list[Change]:
    """Make the home as the weave says; what was done to each agent. Under `weave.lock`.

    First all that could be refused; then agents that are new, but down; settings, pipes and routes; and only then is
    anything started, so that no answer finds its route missing.
    """
    standing = weaving.standing(home)
    file = weaving.shown(path)
    if found := core.foreign(weave, standing, str(path)):
        raise Config(f"{file}:{found.line}: {weave.name} cannot be brought up: {found.why}", hint=found.hint)
    for name in weave.pipes:
        with at(f"{file}:{weave.lines[name]}"):
            _check_owner(home, weave, name)
        for number, operator in enumerate(weave.pipes[name]):
            with at(f"{file}:{weave.lines[step_of(name, number)]}"):
                check_operator(name, operator)
    routes = _joined_routes(home, weave)
    overrides = joined(config.read_overrides(home), weave.overrides, weave.name, str(path), file)
    changes = core.changes(weave, standing)
    specs = _settled(home, weave, path, changes, config.load(home, os.environ, overrides))
    by_name = {agent.name: agent for agent in weave.agents}
    for change in changes:
        if change.how == "created":
            agents.create(home, specs[change.name], by_name[change.name].system, "down")
    weaving.write_overrides(home, overrides)
    for name, operators in weave.pipes.items():
        weaving.write_pipe(home, name, weaving.Pipe(operators, str(path.parent), weave.name))
    instances = {end_of(route): route for route in weave.routes if route.pipe}
    for route in instances.values():
        pipe = weaving.Pipe(weave.pipes[route.pipe], str(path.parent), weave.name)
        weaving.write_instance(home, route, pipe)
    weaving.write_routes(home, routes)
    for change in changes:
        _carry_out(home, change, specs, by_name)
    for name in agents.instances(home):
        if name not in instances and weaving.weave_of_instance(home, name) == weave.name:
            weaving.want(home.agent(name), "down")
    ensure_supervisor(home)
    for name in by_name:
        wake.ring_agent(home.wake, name)
    return changes


def _check_owner(home: Home, weave: Weave, name: str) -> None:
    if home.pipe(name).exists() and (known := weaving.read_pipe(home, name)).weave != weave.name:
        owner = f"belongs to the weave {known.weave!r}" if known.weave else "was made by hand"
        raise Config(f"pipe {name!r} exists and {owner}", hint="rename it in this file")


def _joined_routes(home: Home, weave: Weave) -> list[Route]:
    """Everybody's routes, with those of this weave as they are now. Raises Config for a circle through others'."""
    others = [route for route in weaving.routes(home) if route.weave != weave.name]
    joined = [*others, *weave.routes]
    if way := circle((route.source, route.to) for route in joined):
        raise Config(
            f"circular route detected: {' → '.join(way)}", hint="some of it was made by `loom route`; see: loom routes"
        )
    return joined


def _settled(home: Home, weave: Weave, path: Path, changes: Sequence[Change], loaded: Loaded) -> dict[str, AgentSpec]:
    """The specs of agents that are to be written, checked: nothing is changed when one of them could not work."""
    file = weaving.shown(path)
    os.chdir(path.parent)  # names of files in loom.yml are seen from there, whatever directory we were called in
    wanted = {change.name for change in changes if change.how in ("created", "changed")}
    specs: dict[str, AgentSpec] = {}
    for agent in weave.agents:
        if agent.name in wanted:
            with at(f"{file}:{weave.lines[agent.name]}"):
                specs[agent.name] = _checked(home, loaded, spec_of(agent, weave.name, str(path)))
    return specs


def _checked(home: Home, loaded: Loaded, spec: AgentSpec) -> AgentSpec:
    try:
        settled = detach.settled(home, loaded, spec)
        detach.check(home, loaded, settled)
    except (Config, NotFound, Usage) as error:
        raise type(error)(f"agent {spec.name!r}: {error}", hint=error.hint, kind=error.kind) from None
    return settled


def spec_of(agent: WeaveAgent, weave: str, file: str) -> AgentSpec:
    """The agent.json of one agent of a weave; names of files are seen from the present directory."""
    env = dict(agent.env)
    if agent.workspace:
        place = Path(agent.workspace).expanduser().absolute()
        if not place.is_dir():
            raise NotFound(f"agent {agent.name!r}: the workspace {agent.workspace!r} is no directory")
        env[WORKSPACE_ENV] = str(place)
    return AgentSpec(
        name=agent.name,
        model=agent.model,
        tools=agent.tools,
        restart=agent.restart,
        env=env,
        limits=agent.limits,
        scale="to-zero" if agent.scale == "to-zero" else "",
        rest={"weave": {"name": weave, "file": file, "digest": agent.digest}},
    )


def _seed(home: Home, agent: WeaveAgent) -> None:
    """Its first memories; what it has under the same name stays."""
    place = home.agent(agent.name).path / "memory"
    for name, text in agent.memory.items():
        fs.publish(place / name, text.encode())


def _carry_out(home: Home, change: Change, specs: dict[str, AgentSpec], by_name: dict[str, WeaveAgent]) -> None:
    agent = home.agent(change.name)
    if change.how == "removed":
        weaving.want(agent, "down")
        return
    if change.how == "unchanged":
        return
    _seed(home, by_name[change.name])
    if change.how == "changed":
        agents.create(home, specs[change.name], by_name[change.name].system, "up")
    else:
        weaving.want(agent, "up")


def _left_behind(home: Home, weave: Weave) -> list[tuple[str, int]]:
    """Instances of pipes that the file has no more and that still hold something: (name, how many messages)."""
    from loom.cli import pipes

    instances = {end_of(route) for route in weave.routes if route.pipe}
    gone = [
        n for n in agents.instances(home) if n not in instances and weaving.weave_of_instance(home, n) == weave.name
    ]
    counts = [(name, weaving.waiting(home, [name]) + pipes.held(home, name)) for name in gone]
    return [(name, count) for name, count in counts if count]


def _tell(home: Home, weave: Weave, done: Sequence[Change], as_json: bool) -> None:
    if as_json:
        told = [{"name": change.name, "how": change.how} for change in done]
        printing.json_line(weaving.told(weave.name, agents=told, routes=len(weave.routes), pipes=list(weave.pipes)))
    else:
        printing.table(("AGENT", "HOW"), [(change.name, change.how) for change in done])
    names = {agent.name for agent in weave.agents}
    for name, one in weaving.standing(home).items():  # stopped now, or by an earlier `down`
        if one.weave == weave.name and name not in names and (count := weaving.waiting(home, [name])):
            printing.note(
                f"{name} is in the file no more: it is stopped, and {count} of its messages wait in its inbox;"
                f" start it with: loom agent start {name} --detach; or remove it: loom agent rm {name}"
            )
    for name, count in _left_behind(home, weave):
        kept = f"{count} message{'s' if count > 1 else ''}"
        printing.note(f"{name} is in the file no more: it is stopped and keeps {kept} for when it is again")


# -- down --------------------------------------------------------------------------------------------------------


@click.command("down")
@_FILE
@click.option("--name", metavar="WEAVE", help="The weave of this name, when its file is gone.")
@click.option("--timeout", type=Seconds(), default=WAIT_S, show_default=True, metavar="S", help="Seconds to wait.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def down(file: str | None, name: str | None, timeout: float, as_json: bool) -> None:
    """Stop the agents and pipes of a loom.yml. All they have stays: mail, conversations, routes; `up` goes on.

    Its settings hold no more.
    """
    if name is not None and file is not None:
        raise Usage("--name and -f are two weaves; give one of them")
    if name is not None:
        weave = Weave(name)
    else:
        path = weaving.find_file(file)
        weave = weaving.read_file(path)
        weaving.choose_home(weave, path)
    home = existing_home()
    with weaving.held(home):
        names = _stands(home, weave)
        if not names and not any(one.weave == weave.name for one in config.read_overrides(home)):
            raise NotFound(f"no agent of the weave {weave.name!r} is in {home.path}", hint="see: loom agent ps -a")
        running = [one for one in names if agents.is_alive(home.agent(one))]
        take_all_down(home, names, timeout)
        taken = weaving.take_back_overrides(home, weave.name)
    count = weaving.waiting(home, names)
    if as_json:
        printing.json_line(weaving.told(weave.name, stopped=running, waiting=count, settings=taken))
        return
    for one in running:
        printing.line(one)
    if count:
        printing.note(f"{count} message{'s wait' if count > 1 else ' waits'} in their inboxes; `loom up` goes on")
    _tell_taken(taken)


def _tell_taken(keys: Sequence[str]) -> None:
    if keys:
        printing.note(f"its settings hold no more: {', '.join(keys)}; what is to hold always belongs into config.yml")


def _stands(home: Home, weave: Weave) -> list[str]:
    """Everything of this weave in the home, agents first."""
    of_home = [name for name, one in weaving.standing(home).items() if one.weave == weave.name]
    return of_home + [n for n in agents.instances(home) if weaving.weave_of_instance(home, n) == weave.name]


def take_all_down(home: Home, names: Sequence[str], timeout: float) -> None:
    """Stop them all at once, then wait for each. What they had claimed stays claimed. Raises TryLater."""
    found = [home.agent(name) for name in names]
    for agent in found:
        take_down(home, agent)
    deadline = time.monotonic() + timeout
    for agent in found:
        wait_gone(agent, deadline, timeout)
