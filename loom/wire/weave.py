"""What loom.yml says once it has been read: agents, pipes and who hears whom (docs/weave.md, ADR-0022).

The operators of a pipe are records here because three places speak of them: loom.yml, `pipes/<name>/pipe.json` and
the agent.json of an instance. Which parameters an operator takes stands in one table, `PARAMETERS`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from loom.wire.agent import AgentLimits, Restart
from loom.wire.errors import Config
from loom.wire.record import field, record
from loom.wire.settings import Override

VERSION = 1
COMMAND_TIMEOUT_S = 30.0
HOLD_TIMEOUT_S = 300.0  # of window and buffer: nothing is held without an end
Scale = Literal["always", "to-zero"]
SCALES: tuple[Scale, ...] = ("always", "to-zero")


@record
class Operator:
    """One step of a pipe: its kind and its parameters, durations in seconds (`timeout_s`, `per_s`)."""

    kind: str
    given: Mapping[str, Any] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Any:
        return self.given[name]


@record
class Parameter:
    """What one parameter of an operator takes. `default` None: it must be given."""

    takes: Literal["text", "word", "count", "duration"]
    default: Any = None


# As written in loom.yml. A duration `x` is kept as `x_s`, in seconds.
PARAMETERS: Mapping[str, Mapping[str, Parameter]] = {
    "command": {"cmd": Parameter("text"), "timeout": Parameter("duration", COMMAND_TIMEOUT_S)},
    "tap": {"label": Parameter("word")},
    "window": {"size": Parameter("count"), "timeout": Parameter("duration", HOLD_TIMEOUT_S)},
    "buffer": {"until": Parameter("text"), "timeout": Parameter("duration", HOLD_TIMEOUT_S)},
    "dedupe": {"key": Parameter("text")},
    "throttle": {"max": Parameter("count"), "per": Parameter("duration")},
    "accumulate": {"expr": Parameter("text")},
}
EXPRESSIONS: Mapping[str, str] = {"buffer": "until", "dedupe": "key", "accumulate": "expr"}  # evaluated by jq


@record
class Feed:
    """One entry of `from`: an agent or a group of replicas, through a pipe or none. `line` of the file."""

    agent: str
    pipe: str = ""
    line: int = 0


@record
class WeaveAgent:
    """One agent of a weave, replicas counted out.

    block   its name in the file; with replicas that of the group
    memory  file name to text: written once, where no such memory exists
    digest  of everything that makes it another agent: what is unchanged is left alone
    """

    name: str
    block: str
    model: str
    system: str = ""
    restart: Restart = Restart()
    env: Mapping[str, str] = field(default_factory=dict)
    tools: tuple[str, ...] = ()
    memory: Mapping[str, str] = field(default_factory=dict)
    workspace: str = ""
    scale: Scale = "always"
    limits: AgentLimits = AgentLimits()
    digest: str = ""


@record
class Route:
    """`source` is heard by `to`, through the instance of a pipe or directly.

    of     the group of replicas that `source` belongs to: they share the instance of the pipe
    share  the group that `to` belongs to: each message goes to one of the group
    weave  whose route it is; empty: made by `loom route`
    """

    source: str
    to: str
    pipe: str = ""
    of: str = ""
    share: str = ""
    weave: str = ""


@record
class Weave:
    """A whole file: in its order, names unique, every route with both ends, no circle.

    lines      of the file: where each agent, each pipe and each operator (step_of) stands; under '' where the weave's
               own name does
    overrides  settings that hold for the home while this weave is up
    """

    name: str
    home: str = ""
    agents: tuple[WeaveAgent, ...] = ()
    pipes: Mapping[str, tuple[Operator, ...]] = field(default_factory=dict)
    routes: tuple[Route, ...] = ()
    lines: Mapping[str, int] = field(default_factory=dict)
    overrides: tuple[Override, ...] = ()


def step_of(pipe: str, number: int) -> str:
    """Under which name the line of an operator, counted from 0, is kept."""
    return f"{pipe}/{number}"


def encode_operators(operators: tuple[Operator, ...]) -> list[dict[str, Any]]:
    """As it stands in pipe.json and in an instance's agent.json."""
    return [{"operator": one.kind, **one.given} for one in operators]


def decode_operators(raw: object, where: str) -> tuple[Operator, ...]:
    """The inverse of encode_operators. Raises Config naming the file."""
    if not isinstance(raw, list) or not raw:
        raise Config(f"{where}: 'operators' is not a list of operators")
    return tuple(_operator(one, f"{where}: operator {number}") for number, one in enumerate(raw, 1))


def _operator(raw: object, where: str) -> Operator:
    kind = raw.get("operator") if isinstance(raw, dict) else None
    if not isinstance(raw, dict) or not isinstance(kind, str) or kind not in PARAMETERS:
        raise Config(f"{where} is {kind!r:.60}, which is no operator")
    given = {key: value for key, value in raw.items() if key != "operator"}
    wanted = {kept_as(name, one): one for name, one in PARAMETERS[kind].items()}
    if given.keys() != wanted.keys() or not all(_fits(wanted[key], value) for key, value in given.items()):
        raise Config(f"{where} ({kind}) does not have the parameters {', '.join(sorted(wanted))}")
    return Operator(kind, given)


def kept_as(name: str, parameter: Parameter) -> str:
    """The name under which a parameter's value is kept: durations say their unit."""
    return f"{name}_s" if parameter.takes == "duration" else name


def _fits(parameter: Parameter, value: object) -> bool:
    match parameter.takes:
        case "text" | "word":
            return isinstance(value, str) and bool(value)
        case "count":
            return isinstance(value, int) and not isinstance(value, bool) and value > 0
        case "duration":
            return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < 1e9
