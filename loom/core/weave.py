"""loom.yml from text to a Weave: read, checked, replicas counted out, digests taken (docs/weave.md, ADR-0022).

Enters: the text, the name of the file and the environment as arguments. Leaves: a Weave without any contradiction, or
Config that names file and line. Stays out: files, processes. What follows from a Weave: loom/cli/up.py.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from hashlib import sha256
from typing import Any

from loom.core import weave_settings
from loom.core.routing import circle
from loom.core.weave_nodes import Reader, nearest, said
from loom.wire import ids, yamltext
from loom.wire.agent import POLICIES, AgentLimits, Restart
from loom.wire.errors import Usage
from loom.wire.jsontext import dumps
from loom.wire.record import field, record
from loom.wire.settings import Override
from loom.wire.weave import (
    PARAMETERS,
    SCALES,
    VERSION,
    Feed,
    Operator,
    Route,
    Weave,
    WeaveAgent,
    kept_as,
    step_of,
)
from loom.wire.yamltext import Node

MAX_REPLICAS = 1000
TOP = ("version", "name", "home", "settings", "gc", "pipes", "agents")
AGENT = (
    *("name", "model", "system", "restart", "env", "from", "memory", "tools", "workspace", "replicas", "scale"),
    "limits",
)
RESTART = ("policy", "base", "max", "limit", "window")
LIMITS = ("memory", "cpu", "files", "processes", "disk")
_VARIABLE = re.compile(r"\$\{([^}]*)\}")
_NAME_OF_VARIABLE = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)(?::-(.*))?", re.S)
_FILE = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_LABEL = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")


@record
class _Block:
    """One entry of `agents:` before its replicas are counted out."""

    line: int
    agent: WeaveAgent
    feeds: tuple[Feed, ...] = ()
    replicas: int | None = None
    names: tuple[str, ...] = field(default_factory=tuple)


def parse(text: str, where: str, name: str, env: Mapping[str, str]) -> Weave:
    """The weave in `text`.

    where  the file, as errors name it
    name   what the weave is called where the file does not say
    env    what `${VAR}` stands for
    Raises Config naming file, line and the nearest right word.
    """
    return _Parser(Reader(where), env).weave(text, name)


class _Parser:
    def __init__(self, read: Reader, env: Mapping[str, str]) -> None:
        self.read, self.env = read, env

    def weave(self, text: str, name: str) -> Weave:
        read, root = self.read, self.read.compose(text)
        top = read.mapping(root, "the file", TOP)
        if "version" not in top:
            raise read.fault(root.line, "the file has no 'version'", f"begin with: version: {VERSION}")
        if top["version"].value != VERSION or isinstance(top["version"].value, bool):
            raise read.fault(top["version"].line, f"version is {top['version'].value!r:.40}, expected {VERSION}")
        if "name" in top:
            name = self._name(top["name"], "the weave")
        elif not ids.is_agent(name):
            raise read.fault(root.line, f"{name!r:.80} is no name for a weave", "say `name: …` at the top of the file")
        overrides = weave_settings.settings(read, top)
        pipes = self._pipes(top["pipes"]) if "pipes" in top else {}
        if "agents" not in top:
            raise read.fault(root.line, "the file has no 'agents'", "add: agents: [{name: …, model: …}]")
        blocks = self._blocks(read.items(top["agents"], "agents"), pipes)
        home = read.text(top["home"], "home") if "home" in top else ""
        lines = {"": top["name"].line if "name" in top else root.line}
        for pipe in pipes:
            chain = top["pipes"].value[pipe]
            lines |= {pipe: chain.line, **{step_of(pipe, n): step.line for n, step in enumerate(chain.value)}}
        lines |= {one: block.line for block in blocks for one in block.names}
        return Weave(
            name=name,
            home=home,
            agents=tuple(
                replace(block.agent, name=one, digest=digest(block.agent, overrides))
                for block in blocks
                for one in block.names
            ),
            overrides=overrides,
            pipes=pipes,
            routes=self._routes(blocks, pipes, name),
            lines=lines,
        )

    # -- pipes ---------------------------------------------------------------------------------------------------

    def _pipes(self, node: Node) -> dict[str, tuple[Operator, ...]]:
        if node.value is None:
            return {}
        found = {}
        for name, chain in self.read.mapping(node, "pipes").items():
            self._name(Node(name, chain.line), "a pipe")
            steps = self.read.items(chain, f"pipe {name!r}")
            if not steps:
                raise self.read.fault(chain.line, f"pipe {name!r} has no operators")
            found[name] = tuple(self.operator(step, f"pipe {name!r}") for step in steps)
        return found

    def operator(self, node: Node, what: str) -> Operator:
        read = self.read
        keys = read.mapping(node, f"an operator of {what}")
        if "operator" not in keys:
            raise read.fault(node.line, f"an operator of {what} has no 'operator'", f"known: {', '.join(PARAMETERS)}")
        kind = read.text(keys["operator"], "operator")
        if kind not in PARAMETERS:
            why = f"{what}: there is no operator {kind!r:.80}"
            raise read.fault(keys["operator"].line, why, nearest(kind, PARAMETERS))
        table = PARAMETERS[kind]
        read.mapping(node, f"operator {kind}", ("operator", *table))
        given: dict[str, Any] = {}
        for name, parameter in table.items():
            if name in keys:
                value = self._parameter(keys[name], f"{kind}.{name}", parameter.takes)
            elif parameter.default is not None:
                value = parameter.default
            else:
                raise read.fault(node.line, f"{what}: operator {kind} has no {name!r}")
            given[kept_as(name, parameter)] = value
        return Operator(kind, given)

    def _parameter(self, node: Node, what: str, takes: str) -> Any:
        match takes:
            case "count":
                return self.read.count(node, what, most=10_000)
            case "duration":
                return self.read.duration_s(node, what)
        text = self.read.text(node, what)
        if takes == "word" and not _LABEL.fullmatch(text):
            raise self.read.fault(node.line, f"{what} is {text!r:.80}, expected a name of letters, digits and '._-'")
        return text

    # -- agents --------------------------------------------------------------------------------------------------

    def _blocks(self, nodes: Sequence[Node], pipes: Collection[str]) -> list[_Block]:
        blocks: list[_Block] = []
        lines: dict[str, int] = {}
        for node in nodes:
            block = self._block(node)
            for name in {block.agent.block, *block.names}:
                if name in pipes:
                    raise self.read.fault(block.line, f"{name!r} is a pipe and an agent", "rename one of them")
                if name in lines:
                    why = f"there are two agents {name!r}, the first in line {lines[name]}"
                    raise self.read.fault(block.line, why)
                lines[name] = block.line
            blocks.append(block)
        return blocks

    def _block(self, node: Node) -> _Block:
        read = self.read
        keys = read.mapping(node, "an agent", AGENT)
        if "name" not in keys:
            raise read.fault(node.line, "an agent has no 'name'")
        name = self._name(keys["name"], "an agent")
        what = f"agent {name!r}"
        if "model" not in keys:
            raise read.fault(node.line, f"{what} has no 'model'", "to try without one: model: builtin/echo")
        given: dict[str, Any] = {"model": read.text(keys["model"], f"{what}: model")}
        if "system" in keys:
            given["system"] = read.text(keys["system"], f"{what}: system")
        if "restart" in keys:
            given["restart"] = self._restart(keys["restart"], f"{what}: restart")
        if "env" in keys:
            given["env"] = self._env(keys["env"], f"{what}: env")
        if "tools" in keys:
            given["tools"] = self._tools(keys["tools"], f"{what}: tools")
        if "memory" in keys:
            given["memory"] = self._memory(keys["memory"], f"{what}: memory")
        if "workspace" in keys:
            given["workspace"] = read.text(keys["workspace"], f"{what}: workspace")
        if "scale" in keys:
            given["scale"] = read.word(keys["scale"], f"{what}: scale", SCALES)
        if "limits" in keys:
            given["limits"] = self._limits(keys["limits"], f"{what}: limits")
        replicas = read.count(keys["replicas"], f"{what}: replicas", most=MAX_REPLICAS) if "replicas" in keys else None
        names = (name,) if replicas is None else tuple(f"{name}-{n}" for n in range(1, replicas + 1))
        if not ids.is_agent(names[-1]):
            raise read.fault(keys["replicas"].line, f"{names[-1]!r} would have more than 64 characters")
        feeds = self._feeds(keys["from"], f"{what}: from") if "from" in keys else ()
        return _Block(keys["name"].line, WeaveAgent(name, name, **given), feeds, replicas, names)

    def _name(self, node: Node, what: str) -> str:
        name = self.read.text(node, f"the name of {what}")
        try:
            return ids.check_agent(name)
        except Usage as error:
            raise self.read.fault(node.line, str(error), error.hint) from None

    def _restart(self, node: Node, what: str) -> Restart:
        read = self.read
        if isinstance(node.value, str):
            return Restart(policy=read.word(node, what, POLICIES))  # type: ignore[arg-type]
        keys = read.mapping(node, what, RESTART)
        given: dict[str, Any] = {}
        if "policy" in keys:
            given["policy"] = read.word(keys["policy"], f"{what}.policy", POLICIES)
        for name in ("base", "max", "window"):
            if name in keys:
                given[f"{name}_s"] = read.duration_s(keys[name], f"{what}.{name}", zero=name == "base")
        if "limit" in keys:
            given["limit"] = read.count(keys["limit"], f"{what}.limit")
        return Restart(**given)

    def _limits(self, node: Node, what: str) -> AgentLimits:
        read, keys = self.read, self.read.mapping(node, what, LIMITS)
        given: dict[str, Any] = {}
        for name, least in (("memory", 32 << 20), ("disk", 64 << 10)):
            if name in keys and (size := read.size_bytes(keys[name], f"{what}.{name}")) < least:
                raise read.fault(keys[name].line, f"{what}.{name} is too little: at least {least >> 10}K")
            if name in keys:
                given[name] = size
        if "cpu" in keys:
            given["cpu_s"] = read.duration_s(keys["cpu"], f"{what}.cpu")
            if given["cpu_s"] < 0.1:
                raise read.fault(keys["cpu"].line, f"{what}.cpu is too little: at least 100ms")
        for name, least in (("files", 32), ("processes", 1)):
            if name in keys:
                given[name] = read.count(keys[name], f"{what}.{name}", least)
        return AgentLimits(**given)

    def _env(self, node: Node, what: str) -> dict[str, str]:
        found = {}
        for name, value in self.read.mapping(node, what).items():
            if not name or "=" in name or "\0" in name or name.startswith("LOOM_"):
                raise self.read.fault(value.line, f"{what}: {name!r:.80} is no variable that can be set")
            if not isinstance(value.value, str | int | float) or isinstance(value.value, bool):
                raise self.read.fault(value.line, f"{what}: {name} is no text", "put it in quotes")
            found[name] = self._expanded(value.written, value.line, f"{what}: {name}")
            if "\0" in found[name]:
                raise self.read.fault(value.line, f"{what}: {name} holds a NUL")
            if not yamltext.is_writable(found[name]):  # a variable of the caller's may hold any bytes
                raise self.read.fault(value.line, f"{what}: {name} is not UTF-8")
        return found

    def _expanded(self, text: str, line: int, what: str) -> str:
        def value_of(match: re.Match[str]) -> str:
            found = _NAME_OF_VARIABLE.fullmatch(match[1])
            if found is None:
                hint = "write ${NAME} or ${NAME:-…}"
                raise self.read.fault(line, f"{what}: ${{{match[1]:.40}}} is no variable", hint)
            name, default = found[1], found[2]
            value = self.env.get(name, "")
            if value or (name in self.env and default is None):
                return value
            if default is None:
                raise self.read.fault(
                    line, f"{what}: the variable {name} is not set", f"set it, or write ${{{name}:-default}}"
                )
            return default

        return _VARIABLE.sub(value_of, text)

    def _tools(self, node: Node, what: str) -> tuple[str, ...]:
        return tuple(dict.fromkeys(self.read.text(one, what) for one in self.read.items(node, what)))

    def _memory(self, node: Node, what: str) -> dict[str, str]:
        found = {}
        for name, text in self.read.mapping(node, what).items():
            if not _FILE.fullmatch(name):
                raise self.read.fault(text.line, f"{what}: {name!r:.80} is no name for a memory", "for example: style")
            found[name if name.endswith(".md") else f"{name}.md"] = self.read.text(text, f"{what}: {name}")
        return found

    # -- routes --------------------------------------------------------------------------------------------------

    def _feeds(self, node: Node, what: str) -> tuple[Feed, ...]:
        read, found = self.read, []
        for entry in read.items(node, what):
            if isinstance(entry.value, str):
                fault = f"{what}: an entry is {said(entry)}, expected a mapping"
                raise read.fault(entry.line, fault, f"write {{agent: {entry.value:.80}}}")
            keys = read.mapping(entry, f"{what}: an entry", ("agent", "pipe"))
            if "agent" not in keys:
                raise read.fault(entry.line, f"{what}: an entry has no 'agent'")
            pipe = read.text(keys["pipe"], f"{what}: pipe") if "pipe" in keys else ""
            found.append(Feed(read.text(keys["agent"], f"{what}: agent"), pipe, entry.line))
        return tuple(found)

    def _routes(self, blocks: Sequence[_Block], pipes: Collection[str], weave: str) -> tuple[Route, ...]:
        groups = {block.agent.block: block.names for block in blocks}
        members = groups | {name: (name,) for block in blocks for name in block.names}
        routes: dict[tuple[str, str, str], Route] = {}
        lines: dict[tuple[str, str], int] = {}
        for block in blocks:
            for feed in block.feeds:
                self._check_feed(block, feed, members, pipes)
                for source in members[feed.agent]:
                    for to in block.names:
                        share = "" if block.replicas is None else block.agent.block
                        of = feed.agent if source != feed.agent else ""
                        route = Route(source, to, feed.pipe, of, share, weave)
                        if (source, to, feed.pipe) in routes:
                            why = f"agent {block.agent.block!r} hears {feed.agent!r} twice in the same way"
                            raise self.read.fault(feed.line, why)
                        routes[source, to, feed.pipe] = route
                        lines[source, to] = feed.line
        if way := circle(lines):
            raise self.read.fault(lines[way[-2], way[-1]], f"circular route detected: {' → '.join(way)}")
        return tuple(routes.values())

    def _check_feed(self, block: _Block, feed: Feed, members: Collection[str], pipes: Collection[str]) -> None:
        if feed.agent in pipes:
            raise self.read.fault(feed.line, f"{feed.agent!r} is a pipe; a route begins at an agent",
                                  "write: {agent: …, pipe: " + feed.agent + "}")  # fmt: skip
        if feed.agent not in members:
            why = f"agent {block.agent.block!r} hears {feed.agent!r:.80}, which is no agent of this file"
            raise self.read.fault(feed.line, why, nearest(feed.agent, members))
        if feed.pipe and feed.pipe not in pipes:
            why = f"agent {block.agent.block!r} hears through {feed.pipe!r:.80}, which is no pipe of this file"
            raise self.read.fault(feed.line, why, nearest(feed.pipe, pipes))


def digest(agent: WeaveAgent, overrides: Sequence[Override] = ()) -> str:
    """Of everything but its name: the same for all replicas, and unchanged while the agent is.

    Settings of the weave count, because a runner reads them when it starts; but not how long files are kept.
    """
    fields = asdict(replace(agent, name="", digest=""))
    if said := {one.key: one.value for one in overrides if not weave_settings.is_retention(one.key)}:
        fields["settings"] = said
    return sha256(dumps({**fields, "tools": list(agent.tools)})).hexdigest()


def parse_operators(text: str, where: str) -> list[tuple[Operator, str]]:
    """A chain of operators by itself, as `loom pipe create` takes it: a YAML list. Each with its place, file and line.

    Raises Config.
    """
    on_one_line = text.lstrip().startswith("[")
    read = Reader(where, above=0 if on_one_line else 1)
    top = read.mapping(read.compose(f"pipe: {text}" if on_one_line else f"pipe:\n{text}"), "the chain", ("pipe",))
    steps = read.items(top["pipe"], "the chain")
    if not steps:
        raise read.fault(1, "the chain has no operators")
    return [(_Parser(read, {}).operator(step, "the chain"), read.place(step.line)) for step in steps]


# -- what `up` must change ---------------------------------------------------------------------------------------


@record
class Standing:
    """An agent as it is: whose it is, which digest it was made from, whether it is wanted."""

    weave: str
    digest: str
    wanted: bool
    file: str = ""


@record
class Change:
    """What is to be done about one agent."""

    name: str
    how: str  # created | changed | started | unchanged | removed


def changes(weave: Weave, standing: Mapping[str, Standing]) -> list[Change]:
    """What makes the agents of this home those of the weave: in the file's order, then what it has no more.

    The same digest is left alone, another is given and restarted, a new one is made, one that is in the file no more
    is stopped and keeps all it has.
    """
    found = [Change(agent.name, _how(agent, standing.get(agent.name))) for agent in weave.agents]
    names = {agent.name for agent in weave.agents}
    gone = [name for name, one in standing.items() if one.weave == weave.name and one.wanted and name not in names]
    return found + [Change(name, "removed") for name in sorted(gone)]


def _how(agent: WeaveAgent, now: Standing | None) -> str:
    if now is None:
        return "created"
    if now.digest != agent.digest:
        return "changed"
    return "unchanged" if now.wanted else "started"


@record
class Foreign:
    """What of a weave is somebody else's in this home: in which line of the file, what it is, what helps."""

    line: int
    why: str
    hint: str


def foreign(weave: Weave, standing: Mapping[str, Standing], file: str) -> Foreign | None:
    """Why this weave may not be brought up here, or None: its name or its agents are somebody else's."""
    for name in (agent.name for agent in weave.agents):
        one = standing.get(name)
        if one is not None and one.weave != weave.name:
            owner = f"belongs to the weave {one.weave!r}" if one.weave else "was not made by a weave"
            hint = f"rename it here, or remove it: loom agent rm {name}"
            return Foreign(weave.lines.get(name, 1), f"agent {name!r} exists and {owner}", hint)
    for one in _of(weave.name, standing.values()):
        if one.wanted and one.file != file:
            why = f"another weave {weave.name!r} is up, from {one.file}"
            return Foreign(weave.lines.get("", 1), why, "rename it here, or take the other down")
    return None


def _of(weave: str, standing: Iterable[Standing]) -> Iterable[Standing]:
    return (one for one in standing if one.weave == weave)
