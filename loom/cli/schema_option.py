"""`--schema FILE`: a JSON Schema that answers must fit, read and checked before anything is asked (docs/cli.md)."""

from __future__ import annotations

from typing import Any

from loom.cli import input as texts
from loom.core import schema_rules
from loom.wire.errors import BadInput
from loom.wire.jsontext import Malformed, loads

MAX_BYTES = 256 << 10
_MAX_DEPTH = 32  # it stands in agent.json and in requests, which have a limit of their own


def read(path: str) -> dict[str, Any]:
    """The schema. Raises NotFound, and BadInput naming the file when no answer could be held against it."""
    text = texts.read_file(path, MAX_BYTES)
    try:
        schema = loads(text.encode(), _MAX_DEPTH)
    except Malformed as error:
        raise BadInput(f"the schema {path!r} is {_said(error)}") from None
    if schema is True:
        return {}
    if not isinstance(schema, dict):
        raise BadInput(f"the schema {path!r} is no JSON Schema: expected an object")
    if fault := schema_rules.fault(schema):
        raise BadInput(f"the schema {path!r} cannot be used: {fault}")
    return schema


def _said(error: Malformed) -> str:
    text = str(error)
    return text if text.startswith(("not", "nested")) else f"no JSON: {text}"
