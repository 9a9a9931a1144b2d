"""Markdown, reStructuredText and plain text taken apart line by line into headings and blocks of prose.

A reader for summaries, not a renderer: it has to know what is prose and what is not, and must never fail. One pass,
one state; what is open at the end of the text (a fence) simply ends there.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from loom.models.builtin.text import LONGEST_TITLE, Document, Section, Sentence, plain, sentences
from loom.wire.record import field, record

_FENCE = re.compile(r"\s*(`{3,}|~{3,})")
_HEADING = re.compile(r" {0,3}#{1,6}[ \t]+(.*)")
_ITEM = re.compile(r"\s*(?:[-*+•]|\d{1,9}[.)])[ \t]+(?:\[[ xX]\][ \t]+)?")
_QUOTE = re.compile(r" {0,3}(?:> ?)+")
_DEFINITION = re.compile(r" {0,3}\[(?!\^)[^\[\]]+\]:\s")
_FOOTNOTE = re.compile(r" {0,3}\[\^[^\[\]]+\]:[ \t]*")
_TAGS = re.compile(r"\s*</?[a-zA-Z][^<>]*>\s*$")
_RAW = re.compile(r"\s*<(pre|script|style)\b", re.IGNORECASE)
_BADGES = re.compile(r"\s*\[?!\[")
_UNDERLINE = re.compile(r"([=\-~^\"'+*#.])\1*\s*$")
_CONTROL = dict.fromkeys([*range(9), 11, 12, *range(14, 32), *range(127, 160)], " ")


def read(text: str) -> Document:
    """The document in `text`. Its title is that of the front matter, else the first heading, else empty."""
    reader = _Reader()
    lines = text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n").translate(_CONTROL).split("\n")
    title, body = _front_matter(lines)
    kept = _without_comments(lines[body:])
    for i, line in enumerate(kept):
        reader.line(line, kept[i + 1] if i + 1 < len(kept) else "")
    sections = reader.finish()
    headings = [s.heading for s in sections if s.heading]
    return Document(short(title or (headings[0] if headings else "")), sections)


def read_lines(text: str) -> tuple[Sentence, ...]:
    """Every line on its own, whatever it is: what is left to do with a text in which `read` finds no prose."""
    lines = text.replace("\r\n", "\n").replace("\r", "\n").translate(_CONTROL).split("\n")
    return tuple(s for line in lines for s in sentences(line))


def short(title: str) -> str:
    """A title without markup that fits on a line."""
    words = plain(title)
    if len(words) <= LONGEST_TITLE:
        return words
    return words[: max(words.rfind(" ", 0, LONGEST_TITLE), LONGEST_TITLE // 2)].rstrip() + " …"


def _front_matter(lines: list[str]) -> tuple[str, int]:
    """The title given in the front matter, and the number of the first line after it."""
    if lines[0].rstrip() != "---" or len(lines) < 3 or not re.match(r"[\w-]+:", lines[1]):
        return "", 0
    title = ""
    for i, line in enumerate(lines[1:201], start=1):
        if line.rstrip() in ("---", "..."):
            return title, i + 1
        if line.startswith("title:"):
            title = line[6:].strip().strip("\"'")
    return "", 0


def _without_comments(lines: list[str]) -> list[str]:
    """The lines with HTML comments taken out, also over several lines, but not inside code."""
    last_close = max((i for i, line in enumerate(lines) if "-->" in line), default=-1)
    if last_close < 0:
        return lines  # what is never closed is no comment
    kept: list[str] = []
    fence = ""
    inside = False
    for i, whole in enumerate(lines):
        line = whole
        if inside:
            _, closed, line = whole.partition("-->")
            if not closed:
                continue
            inside = False
        mark = _FENCE.match(line)
        if mark and not fence:
            fence = mark[1]
        elif mark and _closes(line, fence):
            fence = ""
        if not fence and "<!--" in line:
            line, inside = _cut_comments(line, may_stay_open=i < last_close)
            if not line.strip():
                continue
        kept.append(line)
    return kept


def _cut_comments(line: str, may_stay_open: bool) -> tuple[str, bool]:
    """The line without its comments, and whether one is still open at its end."""
    parts: list[str] = []
    at = ticks = 0
    while (start := line.find("<!--", at)) >= 0:
        ticks += line.count("`", at, start)
        stop = start + 4 if ticks % 2 else line.find("-->", start + 4)
        if stop < 0:
            if may_stay_open:
                return "".join([*parts, line[at:start]]), True
            break
        parts.append(line[at : stop if ticks % 2 else start])
        at = stop if ticks % 2 else stop + 3
    return "".join([*parts, line[at:]]), False


def _closes(line: str, fence: str) -> bool:
    """Whether the line ends the code block that `fence` began."""
    bare = line.strip()
    return bare.startswith(fence) and not bare.strip(fence[0])


def _is_table_rule(line: str) -> bool:
    return "|" in line and "-" in line and not line.strip("|-:+= \t")


def _is_underline(line: str, title: list[str]) -> bool:
    """Whether the line makes the paragraph before it a heading (setext, and the titles of reStructuredText)."""
    if not title or not _UNDERLINE.match(line):
        return False
    if line[0] in "=-":
        return len(title) <= 3 and len(line.rstrip()) >= 2
    return len(title) == 1 and len(line.rstrip()) >= max(4, len(title[0].strip()))


@record(frozen=False)
class _Reader:
    """The state of the pass: what is open, and what has been read."""

    heading: str = ""
    found: list[Sentence] = field(default_factory=list)
    done: list[Section] = field(default_factory=list)
    block: list[str] = field(default_factory=list)
    fence: str = ""
    raw_end: str = ""
    skip_indented: bool = False
    in_table: bool = False
    in_list: bool = False
    after_blank: bool = True
    in_code: bool = False

    def line(self, line: str, following: str) -> None:
        """Take one line; `following` is looked at to know the head of a table from prose."""
        if self.fence or self.raw_end:
            self._inside(line)
            return
        if self.block and line[:1].isalpha() and "|" not in line:
            self.block.append(line)  # most lines of most texts; nothing below can apply to them
            return
        quote = _QUOTE.match(line)
        if quote:
            line = line[quote.end() :]
            following = _QUOTE.sub("", following, count=1)
        if not line.strip():
            self._blank()
        elif not self._is_skipped(line) and not self._is_structure(line, following):
            self._prose(line)
        self.after_blank = not line.strip()

    def finish(self) -> tuple[Section, ...]:
        """All sections, once no line is left."""
        self._close_section("")
        return tuple(self.done)

    def _inside(self, line: str) -> None:
        bare = _QUOTE.sub("", line, count=1)
        if self.fence and (_closes(line, self.fence) or _closes(bare, self.fence)):
            self.fence = ""
        elif self.raw_end and self.raw_end in line.lower():
            self.raw_end = ""
        self.after_blank = False

    def _blank(self) -> None:
        self._close_block()
        self.in_table = False

    def _is_skipped(self, line: str) -> bool:
        """Whether the line belongs to something begun before that is no prose: table, directive, indented code."""
        indented = line.startswith(("    ", "\t"))
        if self.skip_indented and line[0].isspace():
            return True
        self.skip_indented = False
        if self.in_table:
            return True
        self.in_code = indented and not self.in_list and not self.block and (self.after_blank or self.in_code)
        return self.in_code

    def _is_structure(self, line: str, following: str) -> bool:
        """Whether the line is structure rather than prose; the state is changed accordingly."""
        if fence := _FENCE.match(line):
            self._close_block()
            self.fence = fence[1]
        elif raw := _RAW.match(line):
            self._close_block()
            end = f"</{raw[1].lower()}>"
            self.raw_end = "" if end in line.lower() else end
        elif heading := _HEADING.match(line):
            self._close_section(heading[1].strip().rstrip("#").strip())
        elif not self.in_list and _is_underline(line, self.block):
            title = " ".join(" ".join(self.block).split())
            self.block.clear()
            self._close_section(title)
        elif (
            line.lstrip().startswith(("|", "+-", "+="))
            or _is_table_rule(line)
            or ("|" in line and _is_table_rule(following))
        ):
            self._close_block()
            self.in_table = True
        elif line.startswith(".. "):
            self._close_block()
            self.skip_indented = True
        else:
            return self._is_noise(line)
        return True

    def _is_noise(self, line: str) -> bool:
        """Rules, link definitions, lone tags, badges: on a line of their own and without a word to say."""
        bare = line.strip()
        rule = len(bare) >= 3 and not bare.strip(bare[0] + " ") and not bare[0].isalnum()
        if rule:
            self._close_block()
        return (
            rule
            or _DEFINITION.match(line) is not None
            or _TAGS.match(line) is not None
            or (_BADGES.match(line) is not None and not plain(line).strip("[]() "))
        )

    def _prose(self, line: str) -> None:
        if item := _ITEM.match(line):
            self._close_block()
            self.in_list = True
            line = line[item.end() :]
        elif note := _FOOTNOTE.match(line):
            self._close_block()
            line = line[note.end() :]
        elif self.after_blank and not line[0].isspace():
            self.in_list = False
        self.block.append(line)

    def _close_block(self) -> None:
        if self.block:
            self.found.extend(sentences("\n".join(self.block)))
            self.block.clear()

    def _close_section(self, next_heading: str) -> None:
        self._close_block()
        if self.heading or self.found:
            self.done.append(Section(self.heading, tuple(self.found)))
        self.heading = next_heading
        self.found = []
        self.in_list = False


def headings(document: Document) -> Iterator[str]:
    """The headings of a document in order."""
    return (s.heading for s in document.sections if s.heading)
