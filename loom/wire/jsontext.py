"""JSON as bytes, strict in both directions: the only place that calls an encoder or a decoder (ADR-0015).

Reading uses the standard library everywhere, so that whole numbers of any size and unknown fields come back
as they were. Writing uses orjson once a long-lived process has asked for it (`use_orjson`); both writers give
compact UTF-8 without NaN, and whatever one writes the other reads as the same value.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from math import isinf
from typing import Any

MAX_DEPTH = 64

_encoder = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"))
_fast: Callable[[Any], bytes] | None = None


class Malformed(ValueError):
    """The bytes are not the JSON we accept; the text says in which way."""


def use_orjson() -> None:
    """Write with orjson from now on. Called by processes that live long enough to pay for its import (17 ms)."""
    global _fast
    import orjson

    # What the standard library cannot write, this one must not write either.
    options = orjson.OPT_PASSTHROUGH_DATACLASS | orjson.OPT_PASSTHROUGH_DATETIME | orjson.OPT_PASSTHROUGH_SUBCLASS
    _fast = partial(orjson.dumps, option=options)


def dumps(value: Any) -> bytes:
    """`value` as compact UTF-8 without a newline.

    Raises ValueError for NaN, infinities and lone surrogates, TypeError for what JSON cannot say.
    """
    if _fast is not None:
        try:
            data = _fast(value)
        except TypeError:
            pass  # a whole number over 64 bits, a mapping that is no dict: the other encoder decides
        else:
            # orjson writes NaN and the infinities as null; the other encoder tells them from a real one.
            if b"null" not in data:
                return data
    try:
        return _encoder.encode(value).encode("utf-8")
    except RecursionError:
        raise ValueError("nested too deep to be written") from None


def too_deep(data: bytes, max_depth: int = MAX_DEPTH) -> bool:
    """Whether `loads` would refuse this well-formed JSON for its nesting: to be asked before it is written."""
    return data.count(b"[") + data.count(b"{") > max_depth and _depth(data.decode("utf-8")) > max_depth


def loads(data: bytes, max_depth: int = MAX_DEPTH, *, unique: bool = False) -> Any:
    """Parse strict UTF-8 JSON nested at most `max_depth` deep. Raises Malformed, never RecursionError.

    unique  refuse an object in which a name stands twice; else the last one counts
    """
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise Malformed(f"not UTF-8 at byte {error.start}") from None
    if data.count(b"[") + data.count(b"{") > max_depth and _depth(text) > max_depth:
        raise Malformed(f"nested deeper than {max_depth} levels")
    try:
        value = (_unique_decoder if unique else _decoder).decode(text)
    except Malformed:
        raise
    except ValueError as error:
        raise Malformed(f"not JSON: {error}") from None
    except RecursionError:
        raise Malformed(f"nested deeper than {max_depth} levels") from None
    if "\\u" in text:
        # A lone surrogate is legal JSON text and no legal Unicode: nothing could write it back.
        try:
            _encoder.encode(value).encode("utf-8")
        except UnicodeEncodeError:
            raise Malformed("a lone surrogate escape") from None
    return value


def loads_object(data: bytes, max_depth: int = MAX_DEPTH, *, unique: bool = False) -> dict[str, Any]:
    """Like loads, for what must be one object."""
    value = loads(data, max_depth, unique=unique)
    if not isinstance(value, dict):
        raise Malformed(f"not an object but {_kind(value)}")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        for name, _ in pairs:
            if name in seen:
                raise Malformed(f"the name {ascii(name)[:60]} stands twice in one object")
            seen.add(name)
    return found


def _no_constant(name: str) -> Any:
    raise Malformed(f"{name} is not JSON")


def _finite(text: str) -> float:
    value = float(text)
    if isinf(value):  # 1e999: nothing could write it back
        raise Malformed(f"the number {text[:40]} is too large")
    return value


def _kind(value: Any) -> str:
    names = {list: "an array", str: "a string", bool: "a boolean", int: "a number", float: "a number"}
    return names.get(type(value), "null")


_decoder = json.JSONDecoder(parse_constant=_no_constant, parse_float=_finite)
_unique_decoder = json.JSONDecoder(parse_constant=_no_constant, parse_float=_finite, object_pairs_hook=_unique)


def _depth(text: str) -> int:
    """The deepest nesting outside strings; on broken JSON some number, the parser will refuse it anyway."""
    depth = deepest = 0
    in_string = escaped = False
    for char in text:
        if in_string:
            if escaped:
                escaped = False
            elif char == "\\":
                escaped = True
            elif char == '"':
                in_string = False
        elif char == '"':
            in_string = True
        elif char in "[{":
            depth += 1
            deepest = max(deepest, depth)
        elif char in "]}":
            depth -= 1
    return deepest
