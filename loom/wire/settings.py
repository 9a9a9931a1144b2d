"""Every setting in one table: key, type, default, what it does (docs/settings.md is made from it).

A `*` in a key stands for a name the user chooses. Decoding is strict: an unknown key or a wrong type is refused
with the nearest right word.
"""

from __future__ import annotations

import reprlib
from collections.abc import Iterable, Iterator, Mapping
from math import inf
from typing import Any

from loom.wire.errors import Config
from loom.wire.provider import Price, Provider
from loom.wire.record import record


@record
class Setting:
    """One row. `type` is str, int, float, bool or `str list`; `choices` limits a str."""

    key: str
    type: str
    default: Any
    what: str
    choices: tuple[str, ...] = ()
    least: float = 0
    most: float = inf


@record
class Override:
    """One setting that a weave says, for the home that it is up in: its value, already checked, and where it stands.

    file, weave  whose it is; empty until the weave is brought up
    """

    key: str
    value: Any
    line: int
    file: str = ""
    weave: str = ""


MOST_S = 1e6  # seconds; poll(2) counts milliseconds in 31 bits


def _seconds(key: str, default: float, what: str, least: float = 0.1) -> Setting:
    """A deadline."""
    return Setting(key, "float", default, what, least=least, most=MOST_S)


TABLE: tuple[Setting, ...] = (
    Setting("model", "str", "", "model of agents and goals when none is named"),
    Setting("models.planner", "str", "", "model of the planner role; empty: `model`"),
    Setting("models.executor", "str", "", "model of the executor role; empty: `model`"),
    Setting("models.verifier", "str", "", "model of the verifier role; empty: `model`"),
    Setting("models.tiers.*", "str", "", "model of executors for subtasks of tier 1, 2 or 3; empty: models.executor"),
    Setting("default_provider", "str", "", "provider of bare model names; empty: LOOM_DEFAULT_PROVIDER, then ollama"),
    Setting(
        *("providers.*.dialect", "str", "", "how the server is spoken to; empty: openai"),
        choices=("", "openai", "anthropic", "ollama"),
    ),
    Setting("providers.*.base_url", "str", "", "up to and including the version, e.g. http://10.0.0.5:8000/v1"),
    Setting(
        "providers.*.key", "str", "", "name of the stored secret or variable; empty: no key, or the built-in one's"
    ),
    Setting("providers.*.key_file", "str", "", "a file that holds the key and nothing else"),
    Setting("providers.*.key_command", "str list", (), "argument list of a program that prints the key"),
    Setting("providers.*.context", "int", 0, "tokens a request and its answer may have; Ollama is asked for as many"),
    Setting("providers.*.price.input", "float", 0.0, "USD for a million tokens of input; no prices: cost is unknown"),
    Setting("providers.*.price.output", "float", 0.0, "USD for a million tokens of output"),
    Setting("providers.*.price.cached", "float", 0.0, "USD for a million tokens of cached input; not set: as input"),
    Setting("pools.planner", "int", 1, "how many planner processes at most", least=1),
    Setting("pools.executor", "int", 4, "how many executor processes at most", least=1),
    Setting("pools.verifier", "int", 2, "how many verifier processes at most", least=1),
    Setting("pools.keeper", "int", 1, "how many keeper processes at most", least=1),
    Setting("pools.idle", "float", 30.0, "seconds after which an idle pool process leaves", least=0),
    Setting("scale.idle", "float", 30.0, "seconds after which an idle agent of `scale: to-zero` leaves", least=0),
    Setting("gates", "str", "free", "who is asked before an action; this version acts on `free` only", ("free",)),
    Setting("goal.max_subtasks", "int", 200, "a plan with more subtasks is refused", least=1),
    Setting("goal.max_attempts", "int", 4, "attempts of one subtask before the plan is changed", least=1),
    Setting("goal.max_replans", "int", 2, "how often a goal is planned anew", least=0),
    Setting("goal.min_confidence", "float", 0.5, "a result below it would be asked about, and blocks", least=0),
    Setting("goal.order_timeout", "float", 1800.0, "seconds after which an order to a role is given up", least=1),
    _seconds("liveness.respond", 600.0, "seconds a runner may work without a sign of it"),
    _seconds("liveness.stopped", 60.0, "seconds a stopped runner (SIGSTOP) may keep a message"),
    _seconds("liveness.claim", 0.0, "seconds until a claimed message is failed; 0: as long as it takes", least=0.0),
    _seconds("liveness.lock", 10.0, "seconds a process that is no runner may hold an agent's lock"),
    _seconds("liveness.first_byte", 120.0, "seconds a model server may take to begin"),
    _seconds("liveness.silence", 60.0, "seconds between two pieces of a model's answer"),
    _seconds("liveness.keepalive", 600.0, "seconds a server may only say that it is still there"),
    _seconds("liveness.program", 600.0, "seconds a model program may take for an answer"),
    _seconds("liveness.tool", 300.0, "seconds a tool call may take"),
    Setting(
        *("liveness.artifact_steps", "int", 12, "steps without anything new before a model is told; 0: never told"),
    ),
    Setting("retention.messages", "float", 7.0, "days until finished messages and their turns are archived", least=0),
    Setting(
        *("retention.steps", "float", 7.0, "days until what operators of pipes gave to the next is removed"),
        least=1.5,  # as young as litter may be: a pipe names what it has written only after that
    ),
    Setting("retention.blobs", "float", 7.0, "days until a blob to which nobody refers is set aside", least=1),
    Setting("retention.logs_packed", "float", 1.0, "days until a log is packed", least=0),
    Setting("retention.logs", "float", 30.0, "days until a log is removed", least=1),
    Setting("retention.crashes", "float", 90.0, "days until a crash record is removed", least=1),
    Setting("retention.dedupe_keys", "int", 10_000, "keys that an operator dedupe remembers", least=1),
)

Settings = Mapping[str, Any]


def defaults() -> dict[str, Any]:
    """Key to default, for keys without a `*`."""
    return {s.key: s.default for s in TABLE if "*" not in s.key}


def flatten(raw: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Nested mappings as dotted keys; an empty mapping says nothing."""
    for key, value in raw.items():
        dotted = f"{prefix}{key}"
        if isinstance(value, Mapping):
            yield from flatten(value, f"{dotted}.")
        else:
            yield dotted, value


def row_of(key: str) -> Setting | None:
    """The row a dotted key belongs to."""
    parts = key.split(".")
    for row in TABLE:
        pattern = row.key.split(".")
        if len(pattern) == len(parts) and all(p in ("*", k) for p, k in zip(pattern, parts, strict=True)):
            return row
    return None


def check(key: str, value: Any, where: str) -> Any:
    """The value of one key, of the row's type. Raises Config naming `where`, the key and what was expected."""
    row = row_of(key)
    if row is None:
        import difflib  # here, because most settings exist

        close = difflib.get_close_matches(key[:200], [s.key for s in TABLE], 1, 0.5)
        hint = f"did you mean {close[0]!r}?" if close else "all settings: loom config"
        raise Config(f"{where}: there is no setting {_shown(key)}", hint=hint)
    if value is None:
        return row.default
    if not _fits(row, value):
        least = f" of at least {row.least:g}" if row.type in ("int", "float") else ""
        least += f", at most {row.most:g}" if row.most < inf else ""
        raise Config(f"{where}: {key} is {_shown(value)}, expected a {row.type}{least}")
    if row.choices and value not in row.choices:
        known = ", ".join(c for c in row.choices if c)
        raise Config(f"{where}: {key} is {_shown(value)}", hint=f"this version knows: {known}")
    return tuple(value) if row.type == "str list" else value


def _fits(row: Setting, value: object) -> bool:
    if row.type == "str list":
        return isinstance(value, list | tuple) and all(isinstance(item, str) for item in value)
    if row.type == "str":
        return isinstance(value, str)
    if isinstance(value, bool):
        return row.type == "bool"
    number = isinstance(value, int) if row.type == "int" else isinstance(value, int | float)
    return number and row.least <= value <= row.most and value < inf  # type: ignore[operator]


def _shown(value: object) -> str:
    """A value in a few words, however large: aliases make a small YAML file into a very large value."""
    short = reprlib.Repr()
    short.maxlevel = 2
    return short.repr(value)


def is_group(prefix: str) -> bool:
    """Whether settings begin with these dotted words and go on."""
    parts = prefix.split(".")
    patterns = (row.key.split(".") for row in TABLE)
    return any(
        len(pattern) > len(parts) and all(p in ("*", k) for p, k in zip(pattern, parts, strict=False))
        for pattern in patterns
    )


def encode_overrides(found: Iterable[Override]) -> list[dict[str, Any]]:
    """As they stand in settings.json."""
    return [
        {"key": one.key, "value": one.value, "weave": one.weave, "file": one.file, "line": one.line} for one in found
    ]


def decode_overrides(raw: object, where: str) -> tuple[Override, ...]:
    """The inverse of encode_overrides, each value checked anew. Raises Config naming the file, or the weave's."""
    if not isinstance(raw, list):
        raise Config(f"{where}: 'settings' is no list")
    return tuple(_override(one, where) for one in raw)


def _override(raw: object, where: str) -> Override:
    match raw:
        case {"key": str(key), "value": value, "weave": str(weave), "file": str(file), "line": int(line)}:
            return Override(key, check(key, value, f"{file}:{line}"), line, file, weave)
    raise Config(f"{where}: {_shown(raw)} is no setting of a weave")


def providers(settings: Settings) -> dict[str, Provider]:
    """The `providers.*` settings as records, by alias."""
    found: dict[str, dict[str, Any]] = {}
    for key, value in settings.items():
        if key.startswith("providers."):
            _, alias, field = key.split(".", 2)
            found.setdefault(alias, {})[field] = value
    return {
        alias: Provider(
            alias=alias,
            dialect=fields.get("dialect", ""),
            base_url=fields.get("base_url", ""),
            key=fields.get("key", ""),
            key_file=fields.get("key_file", ""),
            key_command=tuple(fields.get("key_command", ())),
            context=fields.get("context") or None,
            price=_price(fields),
        )
        for alias, fields in found.items()
    }


def _price(fields: Mapping[str, Any]) -> Price | None:
    """The price, when any part of it was set. Zero is a price: that of a server of one's own."""
    if not any(field.startswith("price.") for field in fields):
        return None
    return Price(fields.get("price.input", 0.0), fields.get("price.output", 0.0), fields.get("price.cached"))
