"""Finding the JSON in what a model says: in fences, between prose, one of two, or with small faults.

Pure text in, data out; a model's answer is data and nothing in it is followed. The work is bounded, whatever the
text: each brace is looked at a few times, and only so many characters are parsed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from loom.wire.jsontext import Malformed, loads
from loom.wire.record import record

_FENCE = re.compile(r"```[a-zA-Z0-9_-]*+[ \t]*+\n(.*?)(?:\n[ \t]*+```|\Z)", re.DOTALL)
_STRING = r'"[^"\\]*+(?:\\.[^"\\]*+)*+"?'
_BRACE = re.compile(rf"[{{}}]|{_STRING}", re.DOTALL)
_BRACKET = re.compile(rf"[{{}}\[\]]|{_STRING}", re.DOTALL)
_OPENING = re.compile(r"[{\[]")
_PART = re.compile(rf"{_STRING}|//[^\n]*+|[^\W\d]\w*+", re.DOTALL)
_COMMA = re.compile(rf"{_STRING}|,(?=\s*[}}\]])", re.DOTALL)
_WORDS = {"True": "true", "False": "false", "None": "null"}
_RAW = str.maketrans({"\n": "\\n", "\t": "\\t", "\r": "\\r"})
_MAX_CHARS = 2 << 20
_MAX_DEPTH = 40  # it travels on in a message and an event, which have a limit of their own
_MAX_BRACES = 400_000
_MAX_PARSED = 8 << 20


@record(frozen=False)
class _Left:
    """What may still be spent on one text."""

    braces: int = _MAX_BRACES
    chars: int = _MAX_PARSED


def json_object(text: str, key: str) -> dict[str, Any] | None:
    """The object that has `key`: the first in a fence, else the first in the text; None when there is none."""
    return next(json_objects(text, key), None)


def json_objects(text: str, key: str) -> Iterator[dict[str, Any]]:
    """Every object that has `key` and lies in no other: those in fences first, then all of the text once more."""
    text = text[:_MAX_CHARS]
    left = _Left()
    for fence in _FENCE.finditer(text):
        yield from _objects(fence[1], key, left)
    yield from _objects(text, key, left)


def json_values(text: str) -> Iterator[list[Any]]:
    """What may be meant as the one JSON value of an answer, in groups of the same likelihood, the likeliest first.

    The whole text; else what stands whole in fences, then, largest first, the objects and arrays that lie in no other.
    """
    text = text[:_MAX_CHARS].strip()
    left = _Left()
    whole = _parse(text, left)
    if whole is not _NOTHING:
        yield [whole]
        return
    fenced = [_parse(fence[1].strip(), left) for fence in _FENCE.finditer(text)]
    yield [value for value in fenced if value is not _NOTHING]
    found = []
    start = _opening(text, 0)
    while start >= 0 and left.braces >= 0 and left.chars >= 0:
        end, depth = _closing(text, start, left, _BRACKET)
        value = _parse(text[start:end], left) if depth <= _MAX_DEPTH and text[end - 1] in "}]" else _NOTHING
        if value is not _NOTHING:
            found.append((start - end, value))
        start = _opening(text, end if value is not _NOTHING else start + 1)
    found.sort(key=lambda pair: pair[0])
    yield [value for _, value in found]


def _opening(text: str, start: int) -> int:
    found = _OPENING.search(text, start)
    return -1 if found is None else found.start()


def _objects(text: str, key: str, left: _Left) -> Iterator[dict[str, Any]]:
    start = text.find("{") if key in text else -1
    while start >= 0 and left.braces >= 0 and left.chars >= 0:
        end, depth = _closing(text, start, left, _BRACE)
        if text.find(key, start, end) < 0:
            start = text.find("{", end)  # neither this one nor anything in it
            continue
        candidate = text[start:end].rstrip()
        found = _parse(candidate, left) if depth <= _MAX_DEPTH and candidate.endswith("}") else None
        is_object = isinstance(found, dict)
        if isinstance(found, dict) and key in found:
            yield found
        # Prose with a brace in it may hold the object or precede it: go on behind that brace.
        start = text.find("{", end if is_object else start + 1)


def _closing(text: str, start: int, left: _Left, tokens: re.Pattern[str]) -> tuple[int, int]:
    """Where what begins here ends, and how deep its braces go; one that is never closed ends the text."""
    depth = deepest = 0
    for token in tokens.finditer(text, start):
        left.braces -= 1
        if left.braces < 0:
            break
        char = text[token.start()]
        if char in "{[":
            depth += 1
            deepest = max(deepest, depth)
        elif char in "}]":
            depth -= 1
            if depth == 0:
                return token.end(), deepest
    return len(text), deepest


_NOTHING = object()


def _parse(candidate: str, left: _Left) -> Any:
    """The value, small faults mended; _NOTHING when it is none."""
    for mend in (False, True):
        left.chars -= len(candidate)
        if left.chars < 0:
            break
        try:
            text = _mended(candidate) if mend else candidate
            return loads(text.encode("utf-8", "replace"), _MAX_DEPTH)
        except Malformed:
            continue
    return _NOTHING


def _mended(text: str) -> str:
    """The commonest faults put right: comments, trailing commas, Python's words, raw line breaks in strings."""
    return _COMMA.sub(lambda part: "" if part[0] == "," else part[0], _PART.sub(_mended_part, text))


def _mended_part(part: re.Match[str]) -> str:
    found = part[0]
    if found[0] == '"':
        return found.translate(_RAW)
    return "" if found[0] == "/" else _WORDS.get(found, found)
