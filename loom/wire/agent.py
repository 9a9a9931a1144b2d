"""`agent.json`: what an agent is. Decoded strictly, because a person may edit it (docs/protocol.md section 1)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from loom.wire import ids
from loom.wire.errors import Config, LoomError
from loom.wire.jsontext import Malformed, dumps, loads_object
from loom.wire.record import field, record

VERSION = 1
Policy = Literal["always", "on-failure", "never"]
Scale = Literal["", "to-zero"]
Want = Literal["up", "down", "demand", "dead"]
WANTS: tuple[Want, ...] = ("up", "down", "demand", "dead")
SCALES: tuple[Scale, ...] = ("", "to-zero")
POLICIES: tuple[Policy, ...] = ("always", "on-failure", "never")


@record
class Restart:
    """When and how fast a runner is started again (docs/protocol.md section 7).

    limit crashes within window_s without a finished message end as `dead`; base_s 0 restarts at once.
    """

    policy: Policy = "always"
    base_s: float = 1.0
    max_s: float = 300.0
    limit: int = 10
    window_s: float = 3600.0


@record
class AgentLimits:
    """What all processes of an agent may use together (docs/protocol.md section 7); None: no limit.

    memory, disk   bytes; disk is that of its directory
    cpu_s          seconds of processor time for one message
    files          open files of one process
    """

    memory: int | None = None
    cpu_s: float | None = None
    files: int | None = None
    processes: int | None = None
    disk: int | None = None

    def __bool__(self) -> bool:
        return self != AgentLimits()


@record
class AgentSpec:
    """One agent. `runner` names an executable in runners/ or is an absolute path to one.

    tools     names of granted tools
    options   sampling settings for the model; among them, for us, `context_tokens`: how many tokens it can hold, and
              `max_steps`: how often it may be asked for one message
    env       added to the runner's environment; never a secret
    schema    the JSON Schema that every answer must fit; None: any text will do
    scale     `to-zero`: a process only while there is mail, and for some idle time after; empty: always one
    idle_s    leave after so many idle seconds; None: stay, or with `to-zero` after those of the setting scale.idle
    unsafe_no_sandbox   run-shell may run although there is no sandbox; recorded in the log
    """

    name: str
    model: str
    runner: str = "agent"
    tools: tuple[str, ...] = ()
    restart: Restart = Restart()
    options: Mapping[str, Any] = field(default_factory=dict)
    env: Mapping[str, str] = field(default_factory=dict)
    idle_s: float | None = None
    unsafe_no_sandbox: bool = False
    schema: Mapping[str, Any] | None = None
    scale: Scale = ""
    limits: AgentLimits = AgentLimits()
    rest: Mapping[str, Any] = field(default_factory=dict)


_FIELDS = {
    *("v", "name", "model", "runner", "tools", "restart", "options", "env", "idle_s", "unsafe_no_sandbox", "schema"),
    *("scale", "limits"),
}


def encode(spec: AgentSpec) -> bytes:
    """The bytes of agent.json, one field a line: people read it."""
    r = spec.restart
    fields: dict[str, Any] = {
        "v": VERSION,
        "name": spec.name,
        "model": spec.model,
        "runner": spec.runner,
        "tools": list(spec.tools),
        "restart": {
            "policy": r.policy,
            "base_s": r.base_s,
            "max_s": r.max_s,
            "limit": r.limit,
            "window_s": r.window_s,
        },
        "options": dict(spec.options),
        "env": dict(spec.env),
        "idle_s": spec.idle_s,
        "unsafe_no_sandbox": spec.unsafe_no_sandbox,
        **({} if spec.schema is None else {"schema": dict(spec.schema)}),
        **({"scale": spec.scale} if spec.scale else {}),
        **({"limits": limits_to_json(spec.limits)} if spec.limits else {}),
        **spec.rest,
    }
    lines = [b"  " + dumps(k) + b": " + dumps(v) for k, v in fields.items()]
    return b"{\n" + b",\n".join(lines) + b"\n}\n"


def decode(data: bytes, where: str) -> AgentSpec:
    """The spec in `data`; `where` names the file in errors. Raises errors.Config and nothing else."""
    try:
        raw = loads_object(data, unique=True)
        return _decode(raw)
    except Malformed as error:
        raise Config(f"{where} cannot be read: {error}") from None
    except (KeyError, TypeError, ValueError, LoomError) as error:
        raise Config(f"{where} is not a valid agent: {_reason(error)}") from None


def _reason(error: Exception) -> str:
    return f"field {error} is missing" if isinstance(error, KeyError) else str(error)


def _decode(raw: Mapping[str, Any]) -> AgentSpec:
    if raw.get("v") != VERSION:
        raise ValueError(f"version {raw.get('v')!r}, this loom reads {VERSION}")
    name, model, runner = _text(raw, "name"), _text(raw, "model"), _text(raw, "runner", "agent")
    if not model:
        raise ValueError("field 'model' is empty")
    if not ids.is_mailbox(name):
        raise ValueError(f"{name!r} is not an agent name")
    tools = raw.get("tools", [])
    if not isinstance(tools, list) or not all(isinstance(t, str) for t in tools):
        raise ValueError("field 'tools' is not a list of names")
    env, options = raw.get("env", {}), raw.get("options", {})
    if not isinstance(env, dict) or not all(isinstance(v, str) for v in env.values()):
        raise ValueError("field 'env' is not an object of strings")
    if any(not k or "=" in k or "\0" in k + v for k, v in env.items()):
        raise ValueError("field 'env' holds a name or value that no environment can hold")
    if not isinstance(options, dict):
        raise ValueError("field 'options' is not an object")
    schema = raw.get("schema")
    if schema is not None and not isinstance(schema, dict):
        raise ValueError("field 'schema' is not an object")
    scale = raw.get("scale", "")
    if scale not in SCALES:
        raise ValueError(f"scale {scale!r:.40} is not 'to-zero'")
    idle = raw.get("idle_s")
    if idle is not None:
        idle = _number(raw, "idle_s", 0)
    return AgentSpec(
        name=name,
        model=model,
        runner=runner,
        tools=tuple(tools),
        restart=decode_restart(raw.get("restart", {})),
        options=options,
        env=env,
        idle_s=idle,
        unsafe_no_sandbox=raw.get("unsafe_no_sandbox") is True,
        schema=schema,
        scale=scale,
        limits=decode_limits(raw.get("limits", {})),
        rest={k: v for k, v in raw.items() if k not in _FIELDS},
    )


_SIZES = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
LEAST = {"memory": 32 << 20, "cpu_s": 0.1, "files": 32, "processes": 1, "disk": 64 << 10}


def limits_to_json(limits: AgentLimits) -> dict[str, Any]:
    return {name: value for name in LEAST if (value := getattr(limits, name)) is not None}


def decode_limits(raw: object) -> AgentLimits:
    """{memory, cpu_s, files, processes, disk}: numbers, sizes also as `256MiB`. Raises ValueError."""
    if not isinstance(raw, dict):
        raise ValueError("field 'limits' is not an object")
    if unknown := set(raw) - set(LEAST):
        raise ValueError(f"there is no limit {sorted(unknown)[0]!r}, only {', '.join(LEAST)}")
    return AgentLimits(**{name: _limit(name, value) for name, value in raw.items() if value is not None})


def _limit(name: str, value: object) -> Any:
    number = parse_size(value) if isinstance(value, str) and name in ("memory", "disk") else value
    kinds = int | float if name == "cpu_s" else int
    if isinstance(number, bool) or not isinstance(number, kinds) or not LEAST[name] <= number < 1 << 62:
        raise ValueError(f"limit {name} is {value!r:.40}, expected a number of at least {LEAST[name]}")
    return float(number) if name == "cpu_s" else number


def parse_size(text: str) -> int:
    """A number of bytes: `268435456`, `256M`, `256MB` or `256MiB`, all powers of 1024. Raises ValueError."""
    unit = text.strip().lstrip("0123456789")
    digits = text.strip()[: len(text.strip()) - len(unit)]
    known = unit.strip().upper().removesuffix("B").removesuffix("I")
    if not digits or len(digits) > 18 or known not in _SIZES:
        raise ValueError(f"{text!r:.40} is not a size like 256MiB")
    return int(digits) * _SIZES[known]


def decode_restart(raw: object) -> Restart:
    """A policy word or {policy, base_s, max_s, limit, window_s}. Raises ValueError."""
    if isinstance(raw, str):
        raw = {"policy": raw}
    if not isinstance(raw, dict):
        raise ValueError("field 'restart' is neither a word nor an object")
    if unknown := set(raw) - {"policy", "base_s", "max_s", "limit", "window_s"}:
        raise ValueError(f"restart has no setting {sorted(unknown)[0]!r}")
    policy = raw.get("policy", "always")
    if policy not in POLICIES:
        raise ValueError(f"restart policy {policy!r} is not one of {', '.join(POLICIES)}")
    default = Restart()
    limit = raw.get("limit", default.limit)
    if not isinstance(limit, int) or isinstance(limit, bool) or limit < 1:
        raise ValueError("restart limit is not a whole number of at least 1")
    return Restart(
        policy=policy,
        base_s=_number(raw, "base_s", default.base_s),
        max_s=_number(raw, "max_s", default.max_s),
        limit=limit,
        window_s=_number(raw, "window_s", default.window_s),
    )


def _text(raw: Mapping[str, Any], name: str, default: str | None = None) -> str:
    value = raw[name] if default is None else raw.get(name, default)
    if not isinstance(value, str):
        raise ValueError(f"field {name!r} is not a string")
    return value


def _number(raw: Mapping[str, Any], name: str, default: float) -> float:
    value = raw.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e9:
        raise ValueError(f"field {name!r} is not a number of seconds")
    return float(value)
