"""The JSON Schema of loom.yml for editors, made from the tables that the parser reads by (docs/weave.schema.json).

It says less than the parser: circles, names that are nowhere, and what one value means for another stay with `loom up`.
"""

from __future__ import annotations

import json
from math import inf
from typing import Any

from loom.core import weave
from loom.core.weave_settings import RETENTION
from loom.wire.agent import POLICIES
from loom.wire.settings import TABLE, Setting
from loom.wire.weave import PARAMETERS, SCALES, VERSION

_NAME = {"type": "string", "pattern": "^[a-z][a-z0-9-]{0,63}$"}
_TEXT = {"type": "string", "minLength": 1}
_COUNT = {"type": "integer", "minimum": 1}
_DURATION = {"type": "string", "pattern": "^[0-9]+(\\.[0-9]+)?(ms|s|m|h|d)$"}
_SIZE = {"type": "string", "pattern": "^[0-9]+[KMGT]i?B?$"}
_BY_KIND = {"text": _TEXT, "word": {"type": "string", "pattern": "^[a-z0-9][a-z0-9._-]{0,63}$"}, "count": _COUNT,
            "duration": _DURATION}  # fmt: skip


def schema() -> dict[str, Any]:
    """The schema as data."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "loom.yml",
        **_object(
            {
                "version": {"const": VERSION},
                "name": _NAME,
                "home": _TEXT,
                "settings": _settings(),
                "gc": _object({"retention": _object(_retention())}),
                "pipes": {
                    "type": ["object", "null"],
                    "additionalProperties": {"type": "array", "minItems": 1, "items": {"oneOf": _operators()}},
                },
                "agents": {"type": "array", "items": _agent()},
            },
            ("version", "agents"),
        ),
    }


def page() -> str:
    """docs/weave.schema.json."""
    return json.dumps(schema(), indent=2, ensure_ascii=False) + "\n"


def _retention() -> dict[str, Any]:
    return {name: _COUNT if row.type == "int" else _DURATION for name, row in RETENTION.items()}


def _settings() -> dict[str, Any]:
    """The table of settings as nested objects; a name of the user's choice stands for any."""
    top: dict[str, Any] = {"type": ["object", "null"], "properties": {}, "additionalProperties": False}
    for row in TABLE:
        place = top
        *above, last = row.key.split(".")
        for word in above:
            place = _below(place, word, {"type": ["object", "null"], "properties": {}, "additionalProperties": False})
        _below(place, last, _value(row))
    return top


def _below(place: dict[str, Any], word: str, new: dict[str, Any]) -> dict[str, Any]:
    if word == "*":
        place["additionalProperties"] = place["additionalProperties"] or new
        return place["additionalProperties"]  # type: ignore[no-any-return]
    return place["properties"].setdefault(word, new)  # type: ignore[no-any-return]


def _value(row: Setting) -> dict[str, Any]:
    if row.choices:
        return {"enum": [*row.choices, None]}
    if row.type == "str list":
        return {"type": ["array", "null"], "items": {"type": "string"}}
    kind = {"str": "string", "int": "integer", "float": "number", "bool": "boolean"}[row.type]
    bounds: dict[str, Any] = {} if kind not in ("integer", "number") else {"minimum": row.least}
    if row.most < inf:
        bounds["maximum"] = row.most
    return {"type": [kind, "null"], **bounds, "description": row.what}


def _operators() -> list[dict[str, Any]]:
    return [
        _object(
            {"operator": {"const": kind}, **{name: _BY_KIND[one.takes] for name, one in table.items()}},
            ("operator", *(name for name, one in table.items() if one.default is None)),
        )
        for kind, table in PARAMETERS.items()
    ]


def _agent() -> dict[str, Any]:
    durations = {name: _DURATION for name in weave.RESTART if name not in ("policy", "limit")}
    restart = _object({"policy": {"enum": list(POLICIES)}, "limit": _COUNT, **durations})
    return _object(
        {
            "name": _NAME,
            "model": _TEXT,
            "system": _TEXT,
            "restart": {"oneOf": [{"enum": list(POLICIES)}, restart]},
            "env": {"type": "object", "additionalProperties": {"type": ["string", "number"]}},
            "from": {"type": "array", "items": _object({"agent": _NAME, "pipe": _NAME}, ("agent",))},
            "memory": {"type": "object", "additionalProperties": _TEXT},
            "tools": {"type": "array", "items": _TEXT},
            "workspace": _TEXT,
            "replicas": {**_COUNT, "maximum": weave.MAX_REPLICAS},
            "scale": {"enum": list(SCALES)},
            "limits": _object({"memory": _SIZE, "cpu": _DURATION, "files": _COUNT, "processes": _COUNT, "disk": _SIZE}),
        },
        ("name", "model"),
    )


def _object(properties: dict[str, Any], required: tuple[str, ...] = ()) -> dict[str, Any]:
    needed = {"required": list(required)} if required else {}
    return {"type": "object", "properties": properties, **needed, "additionalProperties": False}
