"""Whether a model's input fits a tool's schema, said so that the model can correct it.

The subset of JSON Schema that tools use: type, enum, required, properties, additionalProperties, items, minimum,
maximum, minLength and maxLength. Other keywords are not looked at: the tool itself has the last word.
Pure: enters a schema and a value, leaves a list of one-line faults.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from typing import Any

MAX_FAULTS = 20


def check_input(schema: Mapping[str, Any], value: Any) -> list[str]:
    """What is wrong with `value`, in the order of the schema; empty when it fits. At most MAX_FAULTS lines."""
    found: list[str] = []
    for fault in _faults(schema, value, "input"):
        if len(found) == MAX_FAULTS:
            break
        found.append(" ".join(fault.split()))
    return found


def _faults(schema: Any, value: Any, where: str) -> Iterator[str]:
    if not isinstance(schema, Mapping):  # `true` allows everything; anything else is the tool's mistake
        return
    wanted = schema.get("type")
    kinds = [wanted] if isinstance(wanted, str) else wanted if isinstance(wanted, list) else []
    if kinds and not any(_is(kind, value) for kind in kinds):
        yield f"{where} must be of type {' or '.join(map(str, kinds))}, not {_kind(value)} ({_shown(value)})"
        return
    choices = schema.get("enum")
    if isinstance(choices, list) and not any(_equal(choice, value) for choice in choices):
        yield f"{where} is {_shown(value)}; it must be one of {', '.join(_shown(choice) for choice in choices)}"
    if isinstance(value, Mapping):
        yield from _object_faults(schema, value, where)
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _faults(schema.get("items"), item, f"{where}[{index}]")
    elif isinstance(value, str):
        yield from _limit_faults(schema, len(value), where, "minLength", "maxLength", " characters long")
    elif _is("number", value):
        yield from _limit_faults(schema, value, where, "minimum", "maximum", "")


def _object_faults(schema: Mapping[str, Any], value: Mapping[str, Any], where: str) -> Iterator[str]:
    given = schema.get("properties")
    properties: Mapping[str, Any] = given if isinstance(given, Mapping) else {}
    required = schema.get("required")
    for key in required if isinstance(required, list) else []:
        if key not in value:
            yield f"{where} lacks the required field {_shown(key)}"
    others = schema.get("additionalProperties", True)
    for key, item in value.items():
        if key in properties:
            yield from _faults(properties[key], item, f"{where}.{key}")
        elif others is False:
            yield f"{where} has no field {_shown(key)}; {_nearest(key, properties)}"
        else:
            yield from _faults(others, item, f"{where}.{_shown(key)}")


def _limit_faults(
    schema: Mapping[str, Any], size: float, where: str, least: str, most: str, unit: str
) -> Iterator[str]:
    low, high = schema.get(least), schema.get(most)
    if isinstance(low, int | float) and size < low:
        yield f"{where} is {_shown(size)}{unit}; at least {low} is allowed"
    if isinstance(high, int | float) and size > high:
        yield f"{where} is {_shown(size)}{unit}; at most {high} is allowed"


def _nearest(key: str, properties: Mapping[str, Any]) -> str:
    near = difflib.get_close_matches(key, list(properties), n=1)
    if near:
        return f"did you mean {_shown(near[0])}?"
    return f"its fields are {', '.join(properties)}" if properties else "it takes no fields"


def _is(kind: Any, value: Any) -> bool:
    """Whether `value` is of a JSON Schema type; 1.0 is an integer there, and true is no number."""
    match kind:
        case "object":
            return isinstance(value, Mapping)
        case "array":
            return isinstance(value, list)
        case "string":
            return isinstance(value, str)
        case "boolean":
            return isinstance(value, bool)
        case "null":
            return value is None
        case "number":
            return isinstance(value, int | float) and not isinstance(value, bool)
        case "integer":
            return _is("number", value) and (isinstance(value, int) or value.is_integer())
        case _:
            return True


def _kind(value: Any) -> str:
    return next((k for k in ("object", "array", "string", "boolean", "null", "integer") if _is(k, value)), "number")


def _equal(one: Any, other: Any) -> bool:
    return bool(_kind(one) == _kind(other) and one == other)


def _shown(value: Any) -> str:
    """A short form of a value, without control characters: repr escapes them."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # an integer with too many digits; nested too deep
        return "…"
    return text if len(text) <= 80 else text[:80] + "…"
