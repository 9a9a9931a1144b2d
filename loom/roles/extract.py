"""Finding the JSON object in what a model says: in fences, between prose, one of two, or with small faults.

Pure text in, data out; a model's answer is data and nothing in it is followed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from loom.wire.jsontext import Malformed, loads_object

_FENCE = re.compile(r"```[a-zA-Z0-9_-]*[ \t]*\n(.*?)(?:\n[ \t]*```|\Z)", re.DOTALL)
_TRAILING_COMMA = re.compile(r",(\s*[}\]])")
_WORDS = {"True": "true", "False": "false", "None": "null"}
_MAX_CHARS = 2 << 20
_MAX_CANDIDATES = 200


def json_object(text: str, key: str) -> dict[str, Any] | None:
    """The object that has `key`: the first in a fence, else the first in the text; None when there is none."""
    text = text[:_MAX_CHARS]
    for place in (*_FENCE.findall(text), text):
        for candidate in _objects(place):
            found = _parse(candidate)
            if found is not None and key in found:
                return found
    return None


def _objects(text: str) -> Iterator[str]:
    """Balanced `{…}` stretches, outermost first, from left to right; what is never closed is tried as it stands."""
    start = text.find("{")
    for _ in range(_MAX_CANDIDATES):
        if start < 0:
            return
        end = _closing(text, start)
        yield text[start:end]
        # An object that was not the one wanted may hold or precede it: go on behind its first brace if it is prose.
        start = text.find("{", end if _parse(text[start:end]) is not None else start + 1)


def _closing(text: str, start: int) -> int:
    depth = 0
    in_string = escaped = False
    for at in range(start, len(text)):
        char = text[at]
        if in_string:
            if escaped:
                escaped = False
            elif char == "\\":
                escaped = True
            elif char == '"':
                in_string = False
        elif char == '"':
            in_string = True
        elif char == "{":
            depth += 1
        elif char == "}":
            depth -= 1
            if depth == 0:
                return at + 1
    return len(text)


def _parse(candidate: str) -> dict[str, Any] | None:
    for text in (candidate, _mended(candidate)):
        try:
            return loads_object(text.encode("utf-8", "replace"))
        except Malformed:
            continue
    return None


def _mended(text: str) -> str:
    """The commonest faults put right: comments, trailing commas, Python's words, raw line breaks in strings."""
    out: list[str] = []
    at = 0
    in_string = False
    while at < len(text):
        char = text[at]
        if in_string:
            if char == "\\":
                out.append(text[at : at + 2])
                at += 2
                continue
            in_string = char != '"'
            out.append({"\n": "\\n", "\t": "\\t", "\r": "\\r"}.get(char, char))
        elif char == '"':
            in_string = True
            out.append(char)
        elif text.startswith("//", at):
            at = text.find("\n", at) if "\n" in text[at:] else len(text)
            continue
        elif char.isalpha():
            word = re.match(r"\w+", text[at:])
            assert word is not None
            out.append(_WORDS.get(word.group(), word.group()))
            at += len(word.group())
            continue
        else:
            out.append(char)
        at += 1
    return _without_trailing_commas("".join(out))


def _without_trailing_commas(text: str) -> str:
    """Strings hold commas too: only those between them are touched."""
    parts = re.split(r'("(?:[^"\\]|\\.)*")', text)
    return "".join(part if number % 2 else _TRAILING_COMMA.sub(r"\1", part) for number, part in enumerate(parts))
