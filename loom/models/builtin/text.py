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

LONGEST_SENTENCE = 1200  # characters; what is longer has no sentences, it is cut into pieces
LONGEST_PIECE = 400
LONGEST_TITLE = 120


@dataclass(frozen=True, slots=True)
class Sentence:
    """One sentence as it stands in its source, on one line.

    whole  False for a piece of a text that went on for too long without an end
    ended  closes with a full stop, a question mark or the like
    """

    text: str
    whole: bool = True
    ended: bool = True


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

_IMAGE = re.compile(r"!\[[^\[\]]*\]\([^()\s]*(?:\s\"[^\"]*\")?\)")
_LINK = re.compile(r"\[([^\[\]]*)\](?:\([^()\s]*(?:\s\"[^\"]*\")?\)|\[[^\[\]]*\])")
_AUTOLINK = re.compile(r"<(https?://[^<>\s]*)>")
_EMPHASIS = re.compile(r"(?<!\w)[*_]+|[*_]+(?!\w)")
_ESCAPE = re.compile(r"\\([!-/:-@\[-`{-~])")


def plain(text: str) -> str:
    """The text without link, emphasis and code markup; the words of a link stay, its target goes."""
    text = _LINK.sub(r"\1", _IMAGE.sub("", text))
    text = _AUTOLINK.sub(r"\1", text)
    text = _EMPHASIS.sub("", text).replace("`", "").replace("~~", "")
    return " ".join(_ESCAPE.sub(r"\1", text).split())


def key(text: str) -> str:
    """What is compared to find out whether two texts are the same sentence."""
    return plain(text).casefold()


_WORD = re.compile(r"\w+")
# Scripts written without spaces: Thai to Myanmar, kana, Han, Hangul, and the planes of rare Han characters.
_UNSPACED = re.compile("[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af\U00020000-\U0003ffff]")


def words(text: str) -> list[str]:
    """The words that count for likeness. Where words are not set apart, overlapping pairs of characters stand in."""
    found: list[str] = []
    for word in _WORD.findall(key(text)):
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
_ATOM = re.compile(r"`+[^`]*`+|\[[^\[\]]*\]\([^()\s]*\)")  # no sentence ends inside of these
_LAST_WORD = re.compile(r"[\w.]+$")
_ALWAYS = frozenset("e.g i.e cf vs viz al dr mr mrs ms prof st sr jr fig figs eq eqs sec ch vol ed eds pp approx ca z.b d.h bzw".split())
_BEFORE_A_NUMBER = frozenset("no nos nr p art chap".split())
_BEFORE_LOWER_CASE = frozenset("etc inc ltd co corp dept est max min usw u.a".split())


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
        if low in _ALWAYS or (len(word) == 1 and word.isupper()):
            return False
        if low in _BEFORE_A_NUMBER and following.isdigit():
            return False
        if word.isdigit() and not block[start : found.start() - len(word)].strip():
            return False  # "3. Third point" written out in a paragraph
        if following.islower():
            return len(mark) == 1 and len(word) > 2 and "." not in word and low not in _BEFORE_LOWER_CASE
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
        for piece in _pieces(raw):
            yield Sentence(piece, whole=False, ended=False)
    elif any(c.isalnum() for c in text):
        yield Sentence(_balanced(text), whole=True, ended=_ENDED.search(text) is not None)


def _pieces(raw: str) -> Iterator[str]:
    """An endless sentence cut at its lines, else at clauses, else at spaces, else anywhere."""
    for raw_line in raw.split("\n"):
        line = " ".join(raw_line.split())
        start = 0
        while start < len(line):
            stop = start + LONGEST_PIECE
            if stop < len(line):
                clause = max(line.rfind(mark, start, stop) for mark in ("; ", ", ", ": ")) + 1
                stop = clause if clause > start else max(line.rfind(" ", start, stop), 0) or stop
                stop = stop if stop > start else start + LONGEST_PIECE
            piece = line[start:stop].strip()
            if any(c.isalnum() for c in piece):
                yield piece
            start = stop


def _balanced(text: str) -> str:
    """Without an emphasis mark whose partner went with the sentence before or after."""
    for mark in ("**", "__", "*", "_"):
        if text.count(mark) % 2:
            text = text.removeprefix(mark) if text.startswith(mark) else text.removesuffix(mark)
    return text.strip()
