"""A model's answer held against a schema: what it says as JSON, or what is wrong with it. Pure.

An answer is data: it may be wrapped in prose or a fence, and small faults of its JSON are mended. What is not done is
guessing: of two values that both fit neither is taken.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from loom.core import extract, schema
from loom.wire.jsontext import dumps

MAX_ANSWERS = 3  # the first one, and two that were asked for with the faults of the one before
_MAX_LINE = 300

AGAIN = "Your answer does not fit the schema:"


def prompt(wanted: Mapping[str, Any]) -> str:
    """What the system prompt says about the answer."""
    return (
        "Your answer must be one JSON value that fits this JSON Schema, and nothing else: no prose, no code fence.\n\n"
        + dumps(dict(wanted)).decode()
    )


def read(wanted: Mapping[str, Any], text: str) -> tuple[str, list[str]]:
    """(the answer as one line of JSON, []), or ('', its faults)."""
    first: list[str] = []
    for group in extract.json_values(text):
        fitting: list[Any] = []
        for value in group:
            found = schema.faults(wanted, value)
            first = first or found
            if not found and not any(schema.equal(value, other) for other in fitting):
                fitting.append(value)
        if len(fitting) == 1:
            return dumps(fitting[0]).decode(), []
        if fitting:
            return "", [f"it holds {len(fitting)} different JSON values that fit; say only the one you mean"]
    return "", first or ["it holds no JSON value; a text on its own must stand in double quotes"]


def ask_again(faults: Sequence[str]) -> str:
    """What the model is told about an answer that does not fit."""
    lines = "\n".join(f"- {fault[:_MAX_LINE]}" for fault in faults)
    return f"{AGAIN}\n{lines}\n\nAnswer again with one JSON value that fits it, and nothing else."
