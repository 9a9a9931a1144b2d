"""Whether a value fits a JSON Schema, said so that a model can mend it. Pure.

Draft 2020-12, and what is common of draft-07 (`definitions`, `items` as a list with `additionalItems`, `dependencies`).
Enters: a schema and a value. Leaves: a list of faults, one line each, that begin with the place of the fault.

Whatever the schema says, the work is bounded and nothing is raised: a keyword with a value of a wrong type, or one that
is not known, is not looked at. Whether a schema says only what is looked at here, tells loom.core.schema_rules.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import lru_cache
from typing import Any, TypeGuard

from loom.core import formats
from loom.core.pattern import Pattern, TooLong, Unsupported, compile_pattern

MAX_FAULTS = 20
MAX_WORK = 200_000  # schemas held against a value, one in the other: about two seconds
MAX_DEPTH = 150
TYPES = ("object", "array", "string", "number", "integer", "boolean", "null")
_MAX_SHOWN = 80


class _TooMuch(Exception):
    """The schema asks for more work than there is, or turns in a circle."""


def check_input(schema: Mapping[str, Any], value: Any) -> list[str]:
    """What is wrong with a tool's input; empty when it fits. At most MAX_FAULTS lines, in the order of the schema."""
    return faults(schema, value, "input")


def faults(schema: Mapping[str, Any] | bool, value: Any, name: str = "$") -> list[str]:
    """What is wrong with `value`, which is called `name`; empty when it fits. At most MAX_FAULTS lines."""
    found: list[str] = []
    checker = _Checker(schema)
    try:
        for fault in checker.faults(schema, value, name):
            if len(found) == MAX_FAULTS:
                break
            found.append(" ".join(fault.split()))
    except (_TooMuch, RecursionError):
        found.append(f"{name} cannot be checked: the schema is nested too deep, or costs too much")
    return found


def resolve(root: Any, reference: str) -> Any:
    """What `#`, `#/a/b` or `#anchor` points to in a schema. Raises LookupError."""
    if reference in ("#", ""):
        return root
    if not reference.startswith("#"):
        raise LookupError(reference)
    if not reference.startswith("#/"):
        return _anchored(root, reference[1:])
    here = root
    for part in reference[2:].split("/"):
        part = _unquoted(part).replace("~1", "/").replace("~0", "~")
        if isinstance(here, Mapping):
            here = here[part]
        elif isinstance(here, list) and part.isascii() and part.isdigit() and len(part) < 10:
            here = here[int(part)]
        else:
            raise LookupError(reference)
    return here


def _unquoted(text: str) -> str:
    """%xx as the characters they stand for."""
    if "%" not in text:
        return text
    data, at = bytearray(), 0
    raw = text.encode("utf-8", "replace")
    while at < len(raw):
        pair = raw[at + 1 : at + 3]
        if raw[at] == 0x25 and len(pair) == 2 and all(c in b"0123456789abcdefABCDEF" for c in pair):
            data.append(int(pair, 16))
            at += 3
        else:
            data.append(raw[at])
            at += 1
    return data.decode("utf-8", "replace")


def _anchored(schema: Any, name: str) -> Any:
    todo = [schema]
    while todo:
        here = todo.pop()
        if isinstance(here, Mapping):
            if here.get("$anchor") == name or here.get("$id") == f"#{name}":  # the second is draft-07's
                return here
            todo += [value for name, value in here.items() if name not in ("enum", "const")]
        elif isinstance(here, list):
            todo += here
    raise LookupError(f"#{name}")


class _Checker:
    """One check of one value. `root` is what references are looked up in."""

    def __init__(self, root: Any) -> None:
        self._root = root
        self._work = self._depth = 0
        self._circle: set[tuple[int, str]] = set()  # (schema, place) of the references that are being followed

    def faults(self, schema: Any, value: Any, where: str) -> Iterator[str]:
        if schema is False:
            yield f"{where} must not be there"
            return
        if not isinstance(schema, Mapping) or not schema:  # true and {} allow everything
            return
        self._work += 1
        if self._work > MAX_WORK or self._depth > MAX_DEPTH:
            raise _TooMuch
        self._depth += 1
        try:
            yield from self._all(schema, value, where)
        finally:
            self._depth -= 1

    def fits(self, schema: Any, value: Any) -> bool:
        return next(self.faults(schema, value, "$"), None) is None

    def _all(self, schema: Mapping[str, Any], value: Any, where: str) -> Iterator[str]:
        wanted = schema.get("type")
        kinds = [wanted] if isinstance(wanted, str) else wanted if isinstance(wanted, list) else []
        if kinds and not any(_is(kind, value) for kind in kinds):
            yield f"{where} must be of type {' or '.join(map(str, kinds))}, not {_kind(value)} ({shown(value)})"
            return
        choices = schema.get("enum")
        if isinstance(choices, list) and not any(equal(choice, value) for choice in choices):
            yield f"{where} is {shown(value)}; it must be one of {', '.join(shown(choice) for choice in choices[:20])}"
        if "const" in schema and not equal(schema["const"], value):
            yield f"{where} is {shown(value)}; it must be {shown(schema['const'])}"
        if isinstance(value, Mapping):
            yield from self._object(schema, value, where)
        elif isinstance(value, list):
            yield from self._array(schema, value, where)
        elif isinstance(value, str):
            yield from _string(schema, value, where)
        elif _is_number(value):
            yield from _number(schema, value, where)
        yield from self._combined(schema, value, where)

    # -- objects ---------------------------------------------------------------------------------------------

    def _object(self, schema: Mapping[str, Any], value: Mapping[str, Any], where: str) -> Iterator[str]:
        for key in _strings(schema.get("required")):
            if key not in value:
                yield f"{where} lacks the required field {shown(key)}"
        yield from _limits(schema, len(value), where, "minProperties", "maxProperties", " fields large")
        yield from self._fields(schema, value, where)
        names = schema.get("propertyNames")
        if names is not None:
            for key in value:
                if not self.fits(names, key):
                    fault = next(self.faults(names, key, "it"))
                    yield f"{where} has a field {shown(key)} whose name is not allowed: {fault}"
        yield from self._dependencies(schema, value, where)

    def _fields(self, schema: Mapping[str, Any], value: Mapping[str, Any], where: str) -> Iterator[str]:
        properties = _mapping(schema.get("properties"))
        patterns = [(_compiled(source), other) for source, other in _mapping(schema.get("patternProperties")).items()]
        others = schema.get("additionalProperties", True)
        for key, item in value.items():
            place = f"{where}.{key}" if _is_plain(key) else f"{where}[{shown(key)}]"
            known = key in properties
            if known:
                yield from self.faults(properties[key], item, place)
            for pattern, other in patterns:
                if pattern is not None and _finds(pattern, key):
                    known = True
                    yield from self.faults(other, item, place)
            if known:
                continue
            if others is False:
                yield f"{where} has no field {shown(key)}; {_nearest(key, properties)}"
            else:
                yield from self.faults(others, item, place)

    def _dependencies(self, schema: Mapping[str, Any], value: Mapping[str, Any], where: str) -> Iterator[str]:
        for keyword in ("dependentRequired", "dependentSchemas", "dependencies"):
            for key, then in _mapping(schema.get(keyword)).items():
                if key not in value:
                    continue
                if isinstance(then, list):
                    for other in _strings(then):
                        if other not in value:
                            yield f"{where} has the field {shown(key)} and so needs the field {shown(other)}"
                elif keyword != "dependentRequired":
                    yield from self.faults(then, value, where)

    # -- arrays ----------------------------------------------------------------------------------------------

    def _array(self, schema: Mapping[str, Any], value: list[Any], where: str) -> Iterator[str]:
        yield from _limits(schema, len(value), where, "minItems", "maxItems", " items long")
        if schema.get("uniqueItems") is True:
            yield from _repeated(value, where)
        items = schema.get("items")
        if isinstance(items, list):  # draft-07
            first, rest = items, schema.get("additionalItems")
        else:
            given = schema.get("prefixItems")
            first, rest = given if isinstance(given, list) else [], items
        for index, item in enumerate(value):
            if index < len(first):
                yield from self.faults(first[index], item, f"{where}[{index}]")
            elif rest is False:
                yield f"{where} has {len(value)} items; at most {len(first)} are allowed"
                break
            elif rest is None:
                break
            else:
                yield from self.faults(rest, item, f"{where}[{index}]")
        yield from self._contains(schema, value, where)

    def _contains(self, schema: Mapping[str, Any], value: list[Any], where: str) -> Iterator[str]:
        wanted = schema.get("contains")
        if wanted is None:
            return
        least, most = schema.get("minContains"), schema.get("maxContains")
        count = sum(self.fits(wanted, item) for item in value)
        least = least if _is_number(least) else 1
        if count < least:
            yield f"{where} has {count} items that fit {shown(wanted)}; at least {least} must"
        if _is_number(most) and count > most:
            yield f"{where} has {count} items that fit {shown(wanted)}; at most {most} may"

    # -- schemas on schemas ----------------------------------------------------------------------------------

    def _combined(self, schema: Mapping[str, Any], value: Any, where: str) -> Iterator[str]:
        reference = schema.get("$ref")
        if isinstance(reference, str):
            yield from self._referred(reference, value, where)
        for other in _list(schema.get("allOf")):
            yield from self.faults(other, value, where)
        for keyword in ("anyOf", "oneOf"):
            forms = schema.get(keyword)
            if isinstance(forms, list) and forms:
                yield from self._forms(forms, value, where, only_one=keyword == "oneOf")
        if "not" in schema and isinstance(schema["not"], Mapping | bool) and self.fits(schema["not"], value):
            yield f"{where} is {shown(value)}; it must not fit {shown(schema['not'])}"
        if "if" in schema:
            branch = "then" if self.fits(schema["if"], value) else "else"
            yield from self.faults(schema.get(branch), value, where)

    def _referred(self, reference: str, value: Any, where: str) -> Iterator[str]:
        try:
            target = resolve(self._root, reference)
        except (LookupError, ValueError):
            return
        here = (id(target), where)
        if here in self._circle:
            return  # it refers to itself without going on: that says nothing
        self._circle.add(here)
        try:
            yield from self.faults(target, value, where)
        finally:
            self._circle.discard(here)

    def _forms(self, forms: list[Any], value: Any, where: str, only_one: bool) -> Iterator[str]:
        fitting = 0
        nearest: list[str] = []
        for form in forms:
            found: list[str] = []
            for fault in self.faults(form, value, where):
                found.append(fault)
                if len(found) > 3:
                    break
            if not found:
                fitting += 1
                if not only_one:
                    return
            elif not nearest or _distance(found, where) < _distance(nearest, where):
                nearest = found
        if fitting == 0:
            yield f"{where} fits none of the {len(forms)} forms it may have; for the nearest: {'; '.join(nearest[:3])}"
        elif fitting > 1:
            yield f"{where} fits {fitting} of the {len(forms)} forms it may have; it must fit exactly one"


def _distance(found: list[str], where: str) -> tuple[bool, int]:
    """A form of another type is further away than one with many faults."""
    return found[0].startswith((f"{where} must be of type", f"{where} is ")), len(found)


# -- values that hold no others ----------------------------------------------------------------------------------


def _string(schema: Mapping[str, Any], value: str, where: str) -> Iterator[str]:
    yield from _limits(schema, len(value), where, "minLength", "maxLength", " characters long")
    source = schema.get("pattern")
    pattern = _compiled(source) if isinstance(source, str) else None
    if pattern is not None:
        try:
            if not pattern.is_in(value):
                yield f"{where} is {shown(value)}; it must match {shown(source)}"
        except TooLong:
            yield f"{where} is too long to be matched with {shown(source)}"
    name = schema.get("format")
    if isinstance(name, str) and not formats.fits(name, value):
        yield f"{where} is {shown(value)}; it must be of the format {name}"


def _number(schema: Mapping[str, Any], value: Any, where: str) -> Iterator[str]:
    yield from _limits(schema, value, where, "minimum", "maximum", "")
    for keyword, fails, words in _EXCLUSIVE:
        limit = schema.get(keyword)
        if _is_number(limit) and fails(value, limit):
            yield f"{where} is {shown(value)}; it must be {words} {limit}"
    step = schema.get("multipleOf")
    if _is_number(step) and step > 0 and not _is_multiple(value, step):
        yield f"{where} is {shown(value)}; it must be a multiple of {step}"


_EXCLUSIVE: tuple[tuple[str, Callable[[Any, Any], bool], str], ...] = (
    ("exclusiveMinimum", lambda value, limit: bool(value <= limit), "more than"),
    ("exclusiveMaximum", lambda value, limit: bool(value >= limit), "less than"),
)


def _is_multiple(value: int | float, step: int | float) -> bool:
    """As the numbers are written: 0.3 is a multiple of 0.1, whatever the machine makes of them."""
    if isinstance(value, int) and isinstance(step, int):
        return value % step == 0
    from fractions import Fraction  # here, because few schemas need it

    return Fraction(repr(value)) % Fraction(repr(step)) == 0


def _limits(schema: Mapping[str, Any], size: Any, where: str, least: str, most: str, unit: str) -> Iterator[str]:
    low, high = schema.get(least), schema.get(most)
    if _is_number(low) and size < low:
        yield f"{where} is {shown(size)}{unit}; at least {low} is allowed"
    if _is_number(high) and size > high:
        yield f"{where} is {shown(size)}{unit}; at most {high} is allowed"


def _repeated(value: list[Any], where: str) -> Iterator[str]:
    first: dict[Any, int] = {}
    for index, item in enumerate(value):
        before = first.setdefault(_key(item), index)
        if before != index:
            yield f"{where}[{index}] is the same as {where}[{before}]; all items must differ"


@lru_cache(maxsize=256)
def _compiled(source: str) -> Pattern | None:
    """None for an expression that cannot be matched here."""
    try:
        return compile_pattern(source)
    except Unsupported:
        return None


def _finds(pattern: Pattern, text: str) -> bool:
    try:
        return pattern.is_in(text)
    except TooLong:
        return False


# -- values ------------------------------------------------------------------------------------------------------


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
            return _is_number(value)
        case "integer":
            return _is_number(value) and (isinstance(value, int) or value.is_integer())
        case _:
            return True


def _is_number(value: Any) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _kind(value: Any) -> str:
    return next((k for k in ("object", "array", "string", "boolean", "null", "integer") if _is(k, value)), "number")


def equal(one: Any, other: Any) -> bool:
    """As JSON has it: 1 is 1.0 and no true, at any depth."""
    return bool(_key(one) == _key(other))


def _key(value: Any) -> Any:
    """A hashable form, equal for equal values."""
    if isinstance(value, bool) or value is None:
        return ("constant", value)
    if isinstance(value, list):
        return ("array", tuple(_key(item) for item in value))
    if isinstance(value, Mapping):
        return ("object", frozenset((name, _key(item)) for name, item in value.items()))
    return value


def shown(value: Any) -> str:
    """A short form of a value, without control characters: repr escapes them."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # an integer with too many digits; nested too deep
        return "…"
    return text if len(text) <= _MAX_SHOWN else text[:_MAX_SHOWN] + "…"


def _is_plain(key: str) -> bool:
    return key.replace("-", "_").isidentifier() and len(key) <= _MAX_SHOWN


def _nearest(key: str, properties: Mapping[str, Any]) -> str:
    near = difflib.get_close_matches(key, list(properties), n=1)
    if near:
        return f"did you mean {shown(near[0])}?"
    return f"its fields are {', '.join(properties)}" if properties else "it takes no fields"


def _strings(value: Any) -> Iterable[str]:
    return [item for item in value if isinstance(item, str)] if isinstance(value, list) else []


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
