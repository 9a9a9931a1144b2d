"""Whether an answer can be held against a schema: it says only what loom.core.schema looks at. Pure.

By the standard an unknown keyword is a remark and is passed over. One that would change what fits must not be: an
answer would be called right that is not. So these are refused: references out of the schema, `$dynamicRef`,
`unevaluated…`, expressions that cannot be matched, values of a wrong type, and unknown keywords that are one slip away
from a known one.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping
from typing import Any

from loom.core.pattern import Unsupported, compile_pattern
from loom.core.schema import TYPES, resolve, shown

MAX_SCHEMAS = 5_000
_REFUSED = {
    "$dynamicRef": "dynamic references are not supported",
    "$recursiveRef": "dynamic references are not supported",
    "unevaluatedItems": "it is not supported; items and prefixItems say it in most cases",
    "unevaluatedProperties": "it is not supported; additionalProperties says it in most cases",
}
_REMARKS = frozenset(
    (
        *("title", "description", "default", "example", "examples", "deprecated", "readOnly", "writeOnly", "format"),
        *("$comment", "$schema", "$id", "$anchor", "$dynamicAnchor", "$recursiveAnchor", "$vocabulary"),
        *("contentEncoding", "contentMediaType", "contentSchema"),
    )
)
_DRAFT = re.compile(r"https?://json-schema\.org/(?:draft-0[67]|draft/2019-09|draft/2020-12)/schema#?")
_MAX_CLOSE = 0.85


def fault(schema: Any) -> str:
    """Why no answer can be held against this schema, in one line that begins with the place; '' when one can."""
    try:
        _Reader(schema).read()
    except _Fault as found:
        return " ".join(str(found).split())
    return ""


class _Fault(Exception):
    pass


class _Reader:
    """Goes through every schema in a schema; those that references lead to as well."""

    def __init__(self, root: Any) -> None:
        self._root = root
        self._todo: list[tuple[Any, str]] = [(root, "$")]
        self._seen: set[int] = set()

    def read(self) -> None:
        while self._todo:
            schema, where = self._todo.pop()
            if isinstance(schema, bool) or id(schema) in self._seen:
                continue
            if not isinstance(schema, Mapping):
                raise _Fault(f"{where} is {shown(schema)}; a schema is an object, true or false")
            self._seen.add(id(schema))
            if len(self._seen) > MAX_SCHEMAS:
                raise _Fault(f"{where}: over {MAX_SCHEMAS} schemas in one")
            for keyword, value in schema.items():
                self._keyword(keyword, value, f"{where}.{keyword}")
            if schema is not self._root and isinstance(schema.get("$id"), str) and not schema["$id"].startswith("#"):
                raise _Fault(f"{where}.$id: a schema in a schema may have no address of its own")

    def _keyword(self, keyword: str, value: Any, where: str) -> None:
        if keyword in _REFUSED:
            raise _Fault(f"{where}: {_REFUSED[keyword]}")
        check = _KEYWORDS.get(keyword)
        if check is not None:
            check(self, value, where)
        elif keyword not in _REMARKS:
            near = difflib.get_close_matches(keyword, [*_KEYWORDS, *_REFUSED, *_REMARKS], 1, _MAX_CLOSE)
            if near:
                raise _Fault(f"{where}: no such keyword; did you mean {shown(near[0])}?")
        if keyword == "$schema" and not (isinstance(value, str) and _DRAFT.fullmatch(value)):
            raise _Fault(f"{where} is {shown(value)}; loom reads draft-06, draft-07, 2019-09 and 2020-12")

    # -- what a keyword's value must be ------------------------------------------------------------------------

    def schema(self, value: Any, where: str) -> None:
        self._todo.append((value, where))

    def schemas(self, value: Any, where: str) -> None:
        if not isinstance(value, list) or not value:
            raise _Fault(f"{where} is {shown(value)}; it must be a list of schemas")
        for index, item in enumerate(value):
            self.schema(item, f"{where}[{index}]")

    def items(self, value: Any, where: str) -> None:
        (self.schemas if isinstance(value, list) and value else self.schema)(value if value != [] else True, where)

    def named(self, value: Any, where: str) -> None:
        if not isinstance(value, Mapping):
            raise _Fault(f"{where} is {shown(value)}; it must be an object of schemas")
        for name, item in value.items():
            self.schema(item, f"{where}.{name}")

    def patterns(self, value: Any, where: str) -> None:
        self.named(value, where)
        for source in value:
            self.pattern(source, where)

    def dependencies(self, value: Any, where: str) -> None:
        if not isinstance(value, Mapping):
            raise _Fault(f"{where} is {shown(value)}; it must be an object")
        for name, then in value.items():
            (self.names if isinstance(then, list) else self.schema)(then, f"{where}.{name}")

    def required_with(self, value: Any, where: str) -> None:
        if not isinstance(value, Mapping):
            raise _Fault(f"{where} is {shown(value)}; it must be an object of lists")
        for name, then in value.items():
            self.names(then, f"{where}.{name}")

    def names(self, value: Any, where: str) -> None:
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise _Fault(f"{where} is {shown(value)}; it must be a list of names")

    def pattern(self, value: Any, where: str) -> None:
        if not isinstance(value, str):
            raise _Fault(f"{where} is {shown(value)}; it must be a regular expression")
        try:
            compile_pattern(value)
        except Unsupported as why:
            raise _Fault(f"{where}: the expression {shown(value)} cannot be used: {why}") from None

    def reference(self, value: Any, where: str) -> None:
        if not isinstance(value, str) or not value.startswith("#"):
            raise _Fault(f"{where} is {shown(value)}; only references within the schema (#/…) are followed")
        try:
            target = resolve(self._root, value)
        except (LookupError, ValueError):
            raise _Fault(f"{where} is {shown(value)}; there is nothing of that name in the schema") from None
        self._todo.append((target, value))

    def types(self, value: Any, where: str) -> None:
        kinds = value if isinstance(value, list) else [value]
        if not kinds or any(kind not in TYPES for kind in kinds):
            raise _Fault(f"{where} is {shown(value)}; it must be one or several of {', '.join(TYPES)}")

    def choices(self, value: Any, where: str) -> None:
        if not isinstance(value, list) or not value:
            raise _Fault(f"{where} is {shown(value)}; it must be a list of values")

    def anything(self, value: Any, where: str) -> None:
        pass

    def flag(self, value: Any, where: str) -> None:
        if not isinstance(value, bool):
            raise _Fault(f"{where} is {shown(value)}; it must be true or false")

    def number(self, value: Any, where: str) -> None:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise _Fault(f"{where} is {shown(value)}; it must be a number")

    def step(self, value: Any, where: str) -> None:
        self.number(value, where)
        if value <= 0:
            raise _Fault(f"{where} is {shown(value)}; it must be over 0")

    def count(self, value: Any, where: str) -> None:
        self.number(value, where)
        if value < 0 or value != int(value):
            raise _Fault(f"{where} is {shown(value)}; it must be a whole number")


Check = Callable[[_Reader, Any, str], None]
_KEYWORDS: dict[str, Check] = {
    "type": _Reader.types,
    "enum": _Reader.choices,
    "const": _Reader.anything,
    "$ref": _Reader.reference,
    "required": _Reader.names,
    "dependentRequired": _Reader.required_with,
    "dependencies": _Reader.dependencies,
    "items": _Reader.items,
    "pattern": _Reader.pattern,
    "patternProperties": _Reader.patterns,
    "uniqueItems": _Reader.flag,
    "multipleOf": _Reader.step,
    **dict.fromkeys(("$defs", "definitions", "properties", "dependentSchemas"), _Reader.named),
    **dict.fromkeys(("allOf", "anyOf", "oneOf", "prefixItems"), _Reader.schemas),
    **dict.fromkeys(
        ("not", "if", "then", "else", "additionalProperties", "propertyNames", "contains", "additionalItems"),
        _Reader.schema,
    ),
    **dict.fromkeys(("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"), _Reader.number),
    **dict.fromkeys(
        (
            *("minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties"),
            *("minContains", "maxContains"),
        ),
        _Reader.count,
    ),
}
