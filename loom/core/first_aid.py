"""Answers that weak models spoil: a tool call written down as text, one line said for ever. Pure.

Nothing is read out of such a text but that it is one: what a model says is data, and a document it quotes may hold the
same words. A call in a text is never run.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator

MAX_REPEATS = 50
_TAIL = 20_000  # characters at the end of an answer that are looked at
_PHRASE = (4, 200)  # characters; shorter ones are rules, paddings and rows of zeros
_MAX_CALL = 100_000

_NAMED = re.compile(r'"name"\s*+:\s*+"([^"\n]{1,64})"')
_GIVEN = re.compile(r'"(?:arguments|input|parameters)"\s*+:')
_FUNCTION = re.compile(r"<function=([\w.-]{1,64})>")
_LANGUAGE = re.compile(r"[\w-]{0,20}[ \t]*\n?")


def written_call(text: str, tools: Collection[str]) -> str:
    """The granted tool that an answer ends with calling in words, '' when it does not.

    In a fence, in <tool_call> or <function=…>, or as all there is to the answer. What has prose behind it is quoted.
    """
    text = text.strip()
    if not tools or not text:
        return ""
    found = _FUNCTION.match(text, text.rfind("<function="))
    ends = not _behind(text, "</function>").removesuffix("</tool_call>").strip()
    if found is not None and ends and (tool := _granted(found[1], tools)):
        return tool
    body = _last_block(text)
    if len(body) > _MAX_CALL or _GIVEN.search(body) is None:
        return ""
    return next(filter(None, (_granted(named[1], tools) for named in _NAMED.finditer(body))), "")


def _last_block(text: str) -> str:
    """The JSON object an answer ends with, by its marks; '' when it ends otherwise."""
    bodies = (body.strip() for body in _blocks(text))
    return next((body for body in bodies if body.startswith("{")), "")


def _blocks(text: str) -> Iterator[str]:
    """What may be such an object; the prose before it may hold marks of its own."""
    begin = text.rfind("<tool_call>")
    if begin >= 0 and not _behind(text, "</tool_call>"):
        yield text[begin + len("<tool_call>") :].removesuffix("</tool_call>")
    if text.endswith("```") and (begin := text.rfind("```", 0, -3)) >= 0:
        inside = text[begin + 3 : -3]
        language = _LANGUAGE.match(inside)
        yield inside[language.end() :] if language is not None else inside
    yield text


def _behind(text: str, mark: str) -> str:
    """What stands behind the last such mark; '' when there is none."""
    return text.rpartition(mark)[2].strip() if mark in text else ""


def _granted(name: str, tools: Collection[str]) -> str:
    """The tool of this name, `_` and capitals forgiven."""
    alike = name.lower().replace("_", "-")
    return next((tool for tool in tools if tool in (name, alike)), "")


def endless(text: str, told: Iterable[str]) -> str:
    """The line or phrase that an answer repeats to its end, at least MAX_REPEATS times; '' when it does not.

    told  what the model was given; what stands there as often may be quoted
    """
    phrase = _repeated(text.rstrip()[-_TAIL:])
    return "" if not phrase or any(one.count(phrase) >= MAX_REPEATS for one in told) else phrase


def _repeated(tail: str) -> str:
    lines = [line for line in tail.splitlines() if line.strip()][-MAX_REPEATS:]
    if len(lines) == MAX_REPEATS and len(set(lines)) == 1 and _says_something(lines[0]):
        return lines[0].strip()
    for length in range(_PHRASE[0], _PHRASE[1] + 1):
        phrase = tail[-length:]
        if len(tail) >= length * MAX_REPEATS and tail.endswith(phrase * MAX_REPEATS) and _says_something(phrase):
            return phrase.strip()
    return ""


def _says_something(phrase: str) -> bool:
    return len({char for char in phrase if char.isalnum()}) > 1
