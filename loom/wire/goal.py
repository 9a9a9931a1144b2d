"""`goal.md`: what was asked, by whom, with which limits and settings (docs/goals.md).

The front matter between the `---` lines is one JSON object, which is YAML as well; below it stands the goal.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from loom.wire.errors import Config
from loom.wire.jsontext import Malformed, dumps, loads_object
from loom.wire.record import field, record

VERSION = 1
_FENCE = "---\n"


@record
class Limits:
    """Caps of one goal; the settings `goal.*` give the defaults."""

    max_subtasks: int = 200
    max_attempts: int = 4
    max_replans: int = 2
    min_confidence: float = 0.5
    order_timeout_s: float = 1800.0


@record
class GoalSpec:
    """A goal as it was asked.

    source  absolute path of the workspace it is about, '' for an empty one
    models  by role: planner, executor, verifier, and executor-2, executor-3 for subtasks of a higher tier
    land    bring the result into the source when done; `by` asked for it
    umask   of whoever asked: what landed files may be
    cwd     what relative exec/ and script/ model names start from
    env     where the models' servers are, when variables of the caller say so; never a key
    """

    id: str
    text: str
    by: str
    created_ms: int
    models: Mapping[str, str]
    source: str = ""
    gates: str = "free"
    land: bool = False
    umask: int = 0o077
    cwd: str = "."
    env: Mapping[str, str] = field(default_factory=dict)
    limits: Limits = field(default_factory=Limits)


def to_json(spec: GoalSpec) -> dict[str, Any]:
    return {"v": VERSION, **asdict(spec)}


def from_json(raw: Mapping[str, Any]) -> GoalSpec:
    """Raises KeyError, TypeError or ValueError for what is no goal."""
    if raw["v"] != VERSION:
        raise ValueError(f"goal version {raw['v']!r}, this loom reads {VERSION}")
    fields = {k: v for k, v in raw.items() if k != "v"}
    models, limits = dict(fields["models"]), Limits(**fields["limits"])
    if not all(isinstance(models.get(role), str) for role in _ROLES) or not all(map(_is_str, models.values())):
        raise ValueError(f"'models' does not name a model for each of {', '.join(_ROLES)}")
    spec = GoalSpec(**{**fields, "limits": limits, "models": models})
    for part in (spec, limits):
        for name, what in _TYPES[type(part)].items():
            value = getattr(part, name)
            if not isinstance(value, what) or (isinstance(value, bool) and what is not bool):
                raise ValueError(f"field {name!r} is of the wrong type")
    return spec


def _is_str(value: object) -> bool:
    return isinstance(value, str)


_ROLES = ("planner", "executor", "verifier")
_TYPES: Mapping[type, Mapping[str, Any]] = {
    GoalSpec: {
        **dict.fromkeys(("id", "text", "by", "source", "gates", "cwd"), str),
        **dict.fromkeys(("created_ms", "umask"), int),
        "land": bool,
    },
    Limits: {
        **dict.fromkeys(("max_subtasks", "max_attempts", "max_replans"), int),
        **dict.fromkeys(("min_confidence", "order_timeout_s"), int | float),
    },
}


def encode(spec: GoalSpec) -> bytes:
    """The bytes of goal.md, one front-matter field a line."""
    fields = {k: v for k, v in to_json(spec).items() if k != "text"}
    lines = ",\n".join(f"  {dumps(k).decode()}: {dumps(v).decode()}" for k, v in fields.items())
    return f"{_FENCE}{{\n{lines}\n}}\n{_FENCE}\n{spec.text}\n".encode()


def decode(data: bytes, where: str) -> GoalSpec:
    """Raises Config naming the file."""
    try:
        text = data.decode("utf-8")
        _, front, body = text.split(_FENCE, 2)
        said = body.removeprefix("\n").removesuffix("\n")
        return from_json({**loads_object(front.encode()), "text": said})
    except (UnicodeDecodeError, Malformed, KeyError, TypeError, ValueError) as error:
        raise Config(f"{where} is not a goal: {error}") from None
