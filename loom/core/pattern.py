r"""Regular expressions from schemas, matched in time that grows with the text and never explodes. Pure.

A schema's `pattern` is somebody else's expression and is held against a model's text: a backtracking matcher would
let `(a+)+$` stop the process for hours. Here an expression becomes a small automaton whose states are all followed at
once. Enters: an expression as JSON Schema has it (ECMA-262 with the `u` flag, unanchored), a text. Leaves: whether it
is found in the text.

Not supported, and refused by `compile_pattern`: lookahead and lookbehind, backreferences, inline flags, and expressions
that need over MAX_STATES states. Property classes know the general categories (`\p{L}`, `\p{Lu}`).
"""

from __future__ import annotations

import re
from collections.abc import Callable

from loom.wire.record import field, record

MAX_STATES = 2_000
MAX_STEPS = 2_000_000  # states looked at for one text: about a second
_MAX_REPEAT = 1_000
_MAX_DEPTH = 50
_MAX_KNOWN = 20_000  # transitions kept, so that a long text costs one look-up a character

Test = Callable[[str], bool]

_DIGITS = frozenset("0123456789")
_WORD = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_")
_SPACE = frozenset("\t\n\v\f\r \u00a0\u1680\u2028\u2029\u202f\u205f\u3000\ufeff") | {
    chr(code) for code in range(0x2000, 0x200B)
}
_NEWLINES = frozenset("\n\r\u2028\u2029")
_CLASSES: dict[str, frozenset[str]] = {"d": _DIGITS, "w": _WORD, "s": _SPACE}
_CONTROLS = {"t": "\t", "n": "\n", "r": "\r", "f": "\f", "v": "\v", "0": "\0"}
_COUNTS = re.compile(r"\{(\d{1,9})(,(\d{0,9}))?\}", re.ASCII)
_GROUP = re.compile(r"\?(?::|P?<[A-Za-z_]\w*>)", re.ASCII)
_PROPERTY = re.compile(r"\{(?:(?:General_Category|gc)=)?([A-Z][a-z]?)\}", re.ASCII)


class Unsupported(ValueError):
    """This expression cannot be matched here; the text says why."""


class TooLong(Exception):
    """The text is too long for this expression: MAX_STEPS were not enough."""


@record(frozen=False)
class _State:
    """One state. `test` reads a character and leads to `out`; without it all of `out` are entered at once, if `at`
    holds there: `^`, `$`, `b` (a word's edge), `B` (none), or '' for always."""

    test: Test | None = None
    out: list[int] = field(default_factory=list)
    at: str = ""


class Pattern:
    """A compiled expression."""

    def __init__(self, states: list[_State], start: int, end: int) -> None:
        self._states, self._start, self._end = states, start, end
        self._known: dict[tuple[frozenset[int], str, str], frozenset[int] | None] = {}

    def is_in(self, text: str) -> bool:
        """Whether it is found anywhere in the text. Raises TooLong."""
        here: frozenset[int] = frozenset((self._start,))
        before, steps = "^", 0
        for char in text:
            steps += 1
            key = (here, before, char)
            try:
                after = self._known[key]
            except KeyError:
                after, cost = self._step(here, before, char)
                steps += cost
                if len(self._known) >= _MAX_KNOWN:
                    self._known.clear()
                self._known[key] = after
            if after is None:
                return True
            if steps > MAX_STEPS:
                raise TooLong(f"{len(text)} characters")
            here, before = after, "w" if char in _WORD else "-"
        return self._end in self._entered(here, before, "")

    def _step(self, here: frozenset[int], before: str, char: str) -> tuple[frozenset[int] | None, int]:
        """The states behind `char`, None when the end is among those before it; and how many were looked at."""
        entered = self._entered(here, before, char)
        if self._end in entered:
            return None, len(entered)
        after = {self._start}  # the expression may begin at any character
        for number in entered:
            state = self._states[number]
            if state.test is not None and state.test(char):
                after.update(state.out)
        return frozenset(after), len(entered)

    def _entered(self, here: frozenset[int], before: str, char: str) -> set[int]:
        """`here` and what is entered from it without reading; `char` comes next, '' at the end of the text."""
        edge = (before == "w") != (char in _WORD)
        holds = {"": True, "^": before == "^", "$": not char, "b": edge, "B": not edge}
        entered, todo = set(here), list(here)
        while todo:
            state = self._states[todo.pop()]
            if state.test is None and holds[state.at]:
                new = [number for number in state.out if number not in entered]
                entered.update(new)
                todo.extend(new)
        return entered


def compile_pattern(source: str) -> Pattern:
    """The expression, ready to be matched. Raises Unsupported."""
    parser = _Parser(source)
    start, end = parser.choice(0)
    if parser.at < len(source):
        raise Unsupported("an unmatched )")
    return Pattern(parser.states, start, end)


# A piece of the automaton: the state it begins in and the one it ends in.
_Piece = tuple[int, int]


class _Parser:
    """Recursive descent over the source; `states` grows on the way."""

    def __init__(self, source: str) -> None:
        self.source, self.at = source, 0
        self.states: list[_State] = []

    def choice(self, depth: int) -> _Piece:
        if depth > _MAX_DEPTH:
            raise Unsupported(f"groups nested deeper than {_MAX_DEPTH}")
        pieces = [self._sequence(depth)]
        while self._take("|"):
            pieces.append(self._sequence(depth))
        if len(pieces) == 1:
            return pieces[0]
        end = self._new()
        for _, last in pieces:
            self.states[last].out.append(end)
        return self._new(out=[first for first, _ in pieces]), end

    def _sequence(self, depth: int) -> _Piece:
        start = end = self._new()
        while self.at < len(self.source) and self.source[self.at] not in "|)":
            first, last = self._repeated(depth)
            self.states[end].out.append(first)
            end = last
        return start, end

    def _repeated(self, depth: int) -> _Piece:
        """One atom with its quantifier; for counts it is read again as often as it is needed."""
        at = self.at
        piece, is_edge = self._atom(depth)
        least, most = self._quantifier()
        if (least, most) == (1, 1):
            return piece
        if is_edge:
            raise Unsupported("a quantifier behind ^, $ or \\b")
        if max(least, most or 0) > _MAX_REPEAT:
            raise Unsupported(f"a count over {_MAX_REPEAT}")
        behind = self.at

        def again() -> _Piece:
            self.at = at
            return self._atom(depth)[0]

        start = end = self._new()
        stop = self._new()
        for number in range(max(least, 1 if most is None else most)):
            first, last = piece if number == 0 else again()
            self.states[end].out.append(first)
            if number >= least:  # this one may be left out, and with it all that follow
                self.states[end].out.append(stop)
            end = last
        self.states[end].out.append(stop)
        if most is None:
            self.states[end].out.append(first)
        self.at = behind
        return start, stop

    def _quantifier(self) -> tuple[int, int | None]:
        counts = _COUNTS.match(self.source, self.at)
        if self._take("*"):
            found: tuple[int, int | None] = (0, None)
        elif self._take("+"):
            found = (1, None)
        elif self._take("?"):
            found = (0, 1)
        elif counts is not None:
            self.at = counts.end()
            least = int(counts[1])
            found = (least, least if counts[2] is None else int(counts[3]) if counts[3] else None)
            if found[1] is not None and found[1] < least:
                raise Unsupported("counts out of order")
        else:
            return 1, 1
        self._take("?")  # a lazy one finds the same texts
        return found

    def _atom(self, depth: int) -> tuple[_Piece, bool]:
        """(the piece, whether it stands between characters)."""
        char = self.source[self.at]
        self.at += 1
        if char == "(":
            return self._group(depth), False
        if char in "^$":
            return self._edge(char), True
        if char == "[":
            return self._reads(self._set()), False
        if char == ".":
            return self._reads(lambda c: c not in _NEWLINES), False
        if char == "\\":
            if self.source[self.at : self.at + 1] in ("b", "B"):
                self.at += 1
                return self._edge(self.source[self.at - 1]), True
            return self._reads(_member(self._escape())), False
        if char in "*+?":
            raise Unsupported(f"a {char} with nothing before it")
        return self._reads(char.__eq__), False

    def _group(self, depth: int) -> _Piece:
        if self.source[self.at : self.at + 1] == "?":
            group = _GROUP.match(self.source, self.at)
            if group is None:
                raise Unsupported(f"the group ({self.source[self.at : self.at + 3]} (lookaround, flags)")
            self.at = group.end()
        piece = self.choice(depth + 1)
        if not self._take(")"):
            raise Unsupported("a ( that is not closed")
        return piece

    def _set(self) -> Test:
        """Behind `[`: the test for one of these characters."""
        negated = self._take("^")
        single: set[str] = set()
        ranges: list[tuple[str, str]] = []
        tests: list[Test] = []
        while not self._take("]"):
            item = self._set_item()
            dash, behind = self.source[self.at : self.at + 1], self.source[self.at + 1 : self.at + 2]
            if isinstance(item, str) and dash == "-" and behind not in ("]", ""):
                self.at += 1
                last = self._set_item()
                if not isinstance(last, str) or last < item:
                    raise Unsupported("a range out of order")
                ranges.append((item, last))
            elif isinstance(item, str):
                single.add(item)
            else:
                tests.append(_member(item))

        def holds(char: str) -> bool:
            found = char in single or any(a <= char <= b for a, b in ranges) or any(test(char) for test in tests)
            return found != negated

        return holds

    def _set_item(self) -> str | frozenset[str] | Test:
        if self.at >= len(self.source):
            raise Unsupported("a [ that is not closed")
        char = self.source[self.at]
        self.at += 1
        if char != "\\":
            return char
        if self._take("b"):
            return "\b"
        return self._escape()

    def _escape(self) -> str | frozenset[str] | Test:
        r"""What stands behind a `\`: a character, or several."""
        if self.at >= len(self.source):
            raise Unsupported("a \\ at the end")
        char = self.source[self.at]
        self.at += 1
        if char in _CLASSES:
            return _CLASSES[char]
        if char.lower() in _CLASSES:
            return _none_of(_CLASSES[char.lower()])
        if char in "pP":
            return self._category(negated=char == "P")
        if char == "0" and self.source[self.at : self.at + 1] in _DIGITS:
            raise Unsupported("an octal escape")
        if char in _CONTROLS:
            return _CONTROLS[char]
        if char == "x":
            return self._hex(r"([0-9a-fA-F]{2})")
        if char == "u":
            return self._hex(r"([0-9a-fA-F]{4})|\{([0-9a-fA-F]{1,6})\}")
        if char == "c" and self.source[self.at : self.at + 1].isalpha():
            self.at += 1
            return chr(ord(self.source[self.at - 1]) % 32)
        if char.isascii() and char.isalnum():
            raise Unsupported(f"the escape \\{char}")
        return char

    def _hex(self, form: str) -> str:
        found = re.compile(form).match(self.source, self.at)
        if found is None or int(found[1] or found[2], 16) > 0x10FFFF:
            raise Unsupported("an escape without its hexadecimal digits")
        self.at = found.end()
        return chr(int(found[1] or found[2], 16))

    def _category(self, negated: bool) -> Test:
        found = _PROPERTY.match(self.source, self.at)
        if found is None:
            raise Unsupported("a \\p that names no general category")
        self.at = found.end()
        from unicodedata import category  # few expressions need it

        wanted = found[1]
        return lambda char: category(char).startswith(wanted) != negated

    def _reads(self, test: Test) -> _Piece:
        end = self._new()
        return self._new(test, [end]), end

    def _edge(self, at: str) -> _Piece:
        end = self._new()
        return self._new(None, [end], at), end

    def _new(self, test: Test | None = None, out: list[int] | None = None, at: str = "") -> int:
        if len(self.states) >= MAX_STATES:
            raise Unsupported(f"over {MAX_STATES} states")
        self.states.append(_State(test, [] if out is None else out, at))
        return len(self.states) - 1

    def _take(self, char: str) -> bool:
        if self.source[self.at : self.at + 1] != char:
            return False
        self.at += 1
        return True


def _member(item: str | frozenset[str] | Test) -> Test:
    if isinstance(item, str):
        return item.__eq__
    return item.__contains__ if isinstance(item, frozenset) else item


def _none_of(chars: frozenset[str]) -> Test:
    return lambda char: char not in chars
