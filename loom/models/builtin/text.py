"""Plain text and Markdown read as documents: title, sections, and sentences in the words of their author.

Enters: any string, however damaged, up to several megabytes; every function is linear in its length.
Leaves: sentences whose words and inline markup are those of the source, only their whitespace is collapsed, so
that each can be found again where it stands. Left out as no prose: front matter, code, tables, HTML comments and
tags on a line of their own, images, link definitions, directives.
Two texts are the same sentence when their `key` is the same: markup, whitespace and case do not count.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

LONGEST_SENTENCE = 1200  # characters; what is longer has no sentences, it is cut into pieces
LONGEST_PIECE = 400
SHORTEST_PIECE = 40
LONGEST_TITLE = 120


@dataclass(frozen=True)
class Sentence:
    """One sentence as it stands in its source, on one line.

    whole  False for a piece of a text that went on for too long without an end
    ended  closes with a full stop, a question mark or the like
    """

    text: str
    whole: bool = True
    ended: bool = True

    @cached_property
    def key(self) -> str:
        """What is compared; see `key` below."""
        return key(self.text)


@dataclass(frozen=True, slots=True)
class Section:
    """What stands below one heading, up to the next of any level. The first may have no heading."""

    heading: str
    sentences: tuple[Sentence, ...]


@dataclass(frozen=True, slots=True)
class Document:
    """A text as this package sees it. `title` is empty when nothing in the text gives one."""

    title: str
    sections: tuple[Section, ...]

    @property
    def sentences(self) -> tuple[Sentence, ...]:
        """All sentences in the order of the source."""
        return tuple(s for section in self.sections for s in section.sentences)


# --- comparison -------------------------------------------------------------------------------------------------

TARGET = r"<[^<>\n]*>|(?:[^()\s]|\([^()\s]*\))*"  # of a link, which may hold a pair of brackets
TITLE = r"(?:\s+(?:\"[^\"]*\"|'[^']*'))?"
_IMAGE = re.compile(rf"!\[[^\[\]]*\]\((?:{TARGET}){TITLE}\)")
_LINK = re.compile(rf"\[([^\[\]]*)\](?:\((?:{TARGET}){TITLE}\)|\[[^\[\]]*\])")
_AUTOLINK = re.compile(r"<(https?://[^<>\s]*)>")
_EMPHASIS = re.compile(r"(?<!\w)[*_]+|[*_]+(?!\w)")
_ESCAPE = re.compile(r"\\([!-/:-@\[-`{-~])")


_MARKUP = re.compile(r"[\[<*_`~\\]")


def plain(text: str) -> str:
    """The text without link, emphasis and code markup; the words of a link stay, its target goes."""
    if not _MARKUP.search(text):
        return " ".join(text.split())
    text = _LINK.sub(r"\1", _IMAGE.sub("", text))
    text = _AUTOLINK.sub(r"\1", text)
    text = _EMPHASIS.sub("", text).replace("`", "").replace("~~", "")
    return " ".join(_ESCAPE.sub(r"\1", text).split())


def key(text: str) -> str:
    """What is compared to find out whether two texts are the same sentence."""
    return plain(text).casefold()


_WORD = re.compile(r"\w+")
# Scripts written without spaces: Thai to Myanmar, kana, Han, Hangul, and the planes of rare Han characters.
_UNSPACED = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af\U00020000-\U0003ffff]"
)


def words(text: str) -> list[str]:
    """The words of a text (of a key, to compare). Where none are set apart, overlapping pairs of characters are."""
    found: list[str] = []
    for word in _WORD.findall(text):
        if len(word) > 2 and _UNSPACED.search(word):
            found.extend(word[i : i + 2] for i in range(len(word) - 1))
        else:
            found.append(word)
    return found


def is_binary(text: str) -> bool:
    """Whether a text is rather the bytes of something else: a NUL, or one character in ten is none."""
    head = text[:65536]
    odd = sum(1 for c in head if c == "\ufffd" or (c < " " and c not in "\t\n\r\f\x1b"))
    return "\x00" in text or odd * 10 > len(head)


# --- sentences --------------------------------------------------------------------------------------------------

_CLOSERS = "[\"'”’»)\\]*_」』）】]*"
_END = re.compile(rf"[.!?…]+{_CLOSERS}(?=\s|$)|[。！？｡．؟۔।॥።។။։]+{_CLOSERS}")
_ENDED = re.compile(rf"[.!?…。！？｡．؟۔।॥።។။։]{_CLOSERS}$")
_SOFT = frozenset(".!?…")
_ATOM = re.compile(rf"`+[^`]*`+|\[[^\[\]]*\]\((?:{TARGET}){TITLE}\)")  # no sentence ends inside of these
_LAST_WORD = re.compile(r"[\w.]+$")
# Words whose full stop ends no sentence: never; before a number; before a small letter.
_ALWAYS = re.compile(
    r"e\.g|i\.e|cf|vs|viz|al|dr|mr|mrs|ms|prof|st|sr|jr|figs?|eqs?|sec|ch|vol|eds?|pp|approx|ca|z\.b|d\.h|bzw"
)
_BEFORE_A_NUMBER = re.compile(r"nos?|nr|p|art|chap")
_BEFORE_LOWER_CASE = re.compile(r"etc|inc|ltd|co|corp|dept|est|max|min|usw|u\.a")


def sentences(block: str) -> Iterator[Sentence]:
    """The sentences of one paragraph or list item, in order, nothing left out but whitespace."""
    start = 0
    atoms = _ATOM.finditer(block)
    atom = next(atoms, None)
    for found in _END.finditer(block):
        while atom is not None and atom.end() <= found.start():
            atom = next(atoms, None)
        inside = atom is not None and atom.start() <= found.start()
        if inside or (found[0][0] in _SOFT and not _ends(block, start, found)):
            continue
        yield from _sentence(block[start : found.end()])
        start = found.end()
    yield from _sentence(block[start:])


def _ends(block: str, start: int, found: re.Match[str]) -> bool:
    """Whether a full stop, ! or ? ends the sentence that began at `start`, by the words on both sides of it."""
    following = _first_visible(block, found.end())
    mark = found[0]
    before = _LAST_WORD.search(block, max(start, found.start() - 40), found.start())
    word = before[0] if before else ""
    if mark[0] == "." and len(mark.rstrip("\"'”’»)]*_")) == 1:
        low = word.casefold()
        if _ALWAYS.fullmatch(low) or (len(word) == 1 and word.isupper()):
            return False
        if _BEFORE_A_NUMBER.fullmatch(low) and following.isdigit():
            return False
        if word.isdigit() and not block[start : found.start() - len(word)].strip():
            return False  # "3. Third point" written out in a paragraph
        if following.islower():
            return len(mark) == 1 and len(word) > 2 and "." not in word and not _BEFORE_LOWER_CASE.fullmatch(low)
        return True
    return not following.islower()


def _first_visible(block: str, at: int) -> str:
    """The first character from `at` on that is neither space nor an opening mark; empty at the end."""
    for c in block[at : at + 40]:
        if not c.isspace() and c not in "\"'“‘«([*_`":
            return c
    return ""


def _sentence(raw: str) -> Iterator[Sentence]:
    text = " ".join(raw.split())
    if len(text) > LONGEST_SENTENCE:
        pieces = (Sentence(piece, whole=False, ended=False) for piece in _pieces(raw))
        yield from (piece for piece in pieces if _says_something(piece))
    else:
        sentence = Sentence(_balanced(text), whole=True, ended=_ENDED.search(text) is not None)
        if _says_something(sentence):
            yield sentence


def _says_something(sentence: Sentence) -> bool:
    """Whether a letter or a digit is left once markup is gone."""
    return any(c.isalnum() for c in sentence.key)


def _pieces(raw: str) -> Iterator[str]:
    """An endless sentence cut at its lines, else at clauses, else at spaces, else anywhere."""
    for line in _joined_lines(raw):
        start = 0
        while start < len(line):
            stop = start + LONGEST_PIECE
            if stop < len(line):
                clause = max(line.rfind(mark, start, stop) for mark in ("; ", ", ", ": ")) + 1
                space = line.rfind(" ", start, stop)
                stop = clause if clause > start else space if space > start else stop
            yield line[start:stop].strip()
            start = stop


def _joined_lines(raw: str) -> Iterator[str]:
    """The lines of a text, very short ones put together with those that follow."""
    gathered: list[str] = []
    length = 0
    for line in raw.split("\n"):
        gathered.append(line)
        length += len(line) + 1
        if length >= SHORTEST_PIECE:
            yield " ".join(" ".join(gathered).split())
            gathered, length = [], 0
    yield " ".join(" ".join(gathered).split())


def _balanced(text: str) -> str:
    """Without an emphasis mark whose partner went with the sentence before or after."""
    for mark in ("**", "__", "*", "_"):
        if text.count(mark) % 2:
            text = text.removeprefix(mark) if text.startswith(mark) else text.removesuffix(mark)
    return text.strip()
