"""What the values of a loom.yml must be: what is wrong is said as file:line, with the nearest right word.

Enters: text. Stays out: files and the environment. What the values mean is decided in loom/core/weave.py.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Mapping, Sequence

from loom.wire import yamltext
from loom.wire.errors import Config
from loom.wire.yamltext import Node

_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_DURATION = re.compile(r"(\d{1,9}(?:\.\d{1,6})?)(ms|s|m|h|d)")
_SIZES = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_SIZE = re.compile(r"(\d{1,9})([KMGT])i?B?")
MOST_S = 1e9


class Reader:
    """Reads nodes of one file; every method raises Config with file and line.

    above  lines of ours that stand before the file's first
    """

    def __init__(self, where: str, above: int = 0) -> None:
        self.where, self.above = where, above

    def fault(self, line: int, text: str, hint: str = "") -> Config:
        return Config(f"{self.place(line)}: {text}", hint=hint)

    def place(self, line: int) -> str:
        """A line as errors name it."""
        return f"{self.where}:{max(1, line - self.above)}"

    def compose(self, text: str) -> Node:
        """The whole file. Its top is a mapping."""
        try:
            root = yamltext.read(text)
        except yamltext.Unreadable as error:
            raise self.fault(error.line, str(error)) from None
        if not isinstance(root.value, dict):
            raise self.fault(1, "expected `key: value` lines", "begin with: version: 1")
        return root

    # -- what a value must be ------------------------------------------------------------------------------------

    def mapping(self, node: Node, what: str, keys: Collection[str] = ()) -> Mapping[str, Node]:
        """A mapping; with `keys` it has no others."""
        if not isinstance(node.value, dict):
            raise self.fault(node.line, f"{what} is {said(node)}, expected a mapping")
        for key, value in node.value.items():
            if keys and key not in keys:
                raise self.fault(value.line, f"{what} has no key {key!r:.80}", nearest(key, keys))
        return node.value

    def items(self, node: Node, what: str) -> Sequence[Node]:
        if not isinstance(node.value, list):
            raise self.fault(node.line, f"{what} is {said(node)}, expected a list")
        return node.value

    def text(self, node: Node, what: str) -> str:
        """Text that is not empty."""
        if not isinstance(node.value, str):
            raise self.fault(node.line, f"{what} is {said(node)}, expected text", "put it in quotes if it is one")
        if not node.value.strip():
            raise self.fault(node.line, f"{what} is empty")
        if "\0" in node.value:
            raise self.fault(node.line, f"{what} holds a NUL")
        return node.value

    def word(self, node: Node, what: str, words: Collection[str]) -> str:
        """One of `words`."""
        text = self.text(node, what)
        if text not in words:
            raise self.fault(node.line, f"{what} is {text!r:.80}, expected {' or '.join(words)}", nearest(text, words))
        return text

    def count(self, node: Node, what: str, least: int = 1, most: int = 10**9) -> int:
        value = node.value
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise self.fault(node.line, f"{what} is {said(node)}, expected a whole number of at least {least}")
        return value

    def duration_s(self, node: Node, what: str, *, zero: bool = False) -> float:
        """Seconds. A bare number is refused: nobody can tell what it counts."""
        value = node.value
        found = _DURATION.fullmatch(value) if isinstance(value, str) else None
        if found is None:
            hint = f"write {value}s for seconds" if isinstance(value, int) and not isinstance(value, bool) else ""
            raise self.fault(node.line, f"{what} is {said(node)}, expected a duration such as 30s, 5m or 1h", hint)
        seconds = float(found[1]) * _UNITS[found[2]]
        if seconds > MOST_S or (seconds == 0 and not zero):
            raise self.fault(node.line, f"{what} is {value}, expected {'0s' if zero else 'more than 0s'} to 11000d")
        return seconds

    def size_bytes(self, node: Node, what: str) -> int:
        found = _SIZE.fullmatch(node.value) if isinstance(node.value, str) else None
        if found is None or int(found[1]) == 0:
            raise self.fault(node.line, f"{what} is {said(node)}, expected a size such as 512M or 2G")
        return int(found[1]) * _SIZES[found[2]]


def said(node: Node) -> str:
    """A wrong value, shown."""
    return yamltext.shown(node.value)


def nearest(word: str, known: Collection[str]) -> str:
    """The next step after a wrong word."""
    close = difflib.get_close_matches(word, list(known), 1)
    if close:
        return f"did you mean {close[0]!r}?"
    return f"known: {', '.join(sorted(known)[:12])}" if known else "there is none"
