"""The Markdown in which an order is given: a heading, text quoted with `> `, and `## ` sections with list items.

The same text is sent to every model; this is how the built-in ones read it. Unknown sections do no harm, and of two
sections with one name the first counts. Fences need no care: whatever is not ours is quoted, and no line of a diff
begins with `#`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from loom.wire.record import record

_ITEM = re.compile(r"\s*[-*]\s+(.*)")
_SIZE = re.compile(r"\s+\(\d[\d ,.]*\s*bytes\)\s*$")
_MORE = re.compile(r"\s*[-*]\s+(?:…|\.\.\.)\s*and (\d+) more")
_ASKS_FOR_DIGEST = re.compile(
    r"\b(?:summar[iy]|digest|overview|abstracts? of|condens|synops|extract|key points|main points|gist\b|tl;?dr"
    r"|zusammenfass|überblick|résum|resum|riassun)",
    re.IGNORECASE,
)
_VERBS = (
    "translate|fix|implement|refactor|rename|delete|remove|move|convert|rewrite|correct|proofread|edit|add|install"
    "|deploy|test|run|build|debug|commit|update|replace|sort|format|upgrade|merge|count|compute|calculate|send"
    "|download|compare|optimi[sz]e|solve|design|draw|configure"
)
_BEGINS_OTHERWISE = re.compile(rf"\W*(?:please\s+)?(?:{_VERBS})\b", re.IGNORECASE)
_OTHER_WORK = re.compile(rf"(?:^|[.!?\n]\s*|\b(?:and|then)\s+)(?:please\s+)?(?:{_VERBS})\b", re.IGNORECASE)
_MAKES = re.compile(r"\W*(?:please\s+)?(?:write|create|make|generate|produce)\b", re.IGNORECASE)
_OF_DOCUMENTS = re.compile(r"\b(?:documents?|docs|adrs?|notes|papers|articles|chapters|readme)\b", re.IGNORECASE)


@record
class Order:
    """An order taken apart: the first heading with its lines, and the lines of each section by lower-case name."""

    heading: str
    body: tuple[str, ...]
    sections: dict[str, tuple[str, ...]]

    def has(self, name: str) -> bool:
        """Whether the section is there at all."""
        return name in self.sections

    def text(self) -> str:
        """What stands quoted under the first heading; unquoted text when nothing is quoted."""
        quoted = any(line.startswith(">") for line in self.body)
        return unquoted(self.body) if quoted else "\n".join(self.body).strip()

    def items(self, name: str) -> list[str]:
        """The list items of a section."""
        return [m[1].strip() for line in self.sections.get(name, ()) if (m := _ITEM.match(line))]

    def paths(self, name: str) -> list[str]:
        """The paths listed in a section, each once, in their order."""
        return list(dict.fromkeys(p for item in self.items(name) if (p := path_of(item))))

    def more(self, name: str) -> int:
        """How many entries the section says it leaves out."""
        return sum(int(m[1]) for line in self.sections.get(name, ()) if (m := _MORE.match(line)))


def parse(message: str) -> Order:
    """The order in a message. A message without any heading is all body."""
    heading = ""
    body: list[str] = []
    sections: dict[str, list[str]] = {}
    here = body
    for line in message.replace("\r\n", "\n").split("\n"):
        if line.startswith("## "):
            name = line[3:].strip().casefold()
            here = [] if name in sections else sections.setdefault(name, [])
        elif line.startswith("# ") and not heading and not sections:
            heading = line[2:].strip()
        else:
            here.append(line)
    return Order(heading, tuple(body), {name: tuple(lines) for name, lines in sections.items()})


def unquoted(lines: tuple[str, ...]) -> str:
    """The quoted lines without their mark."""
    return "\n".join(line[1:].removeprefix(" ") for line in lines if line.startswith(">")).strip()


def path_of(item: str) -> str:
    """The path a list item names: between backticks, else bare and without its size; empty for none."""
    if m := re.match(r"(`+)(?!`)(.+?)(?<!`)\1(?!`)", item):
        inner = m[2]
        padded = inner[0] == " " == inner[-1] and inner.strip()
        return inner[1:-1] if padded else inner
    bare = _SIZE.sub("", item).strip()
    return "" if bare == "(none)" or bare.startswith(("…", "...")) else bare


def groups(lines: tuple[str, ...]) -> Iterator[tuple[str, list[str]]]:
    """The items below each line of a section that is no item, those before the first under an empty name."""
    name = ""
    items: list[str] = []
    for line in lines:
        if m := _ITEM.match(line):
            items.append(m[1].strip())
        elif line.strip():
            yield name, items
            name, items = line.strip(), []
    yield name, items


def asks_for_digest(text: str) -> bool:
    """Whether a text asks for a summary, which is all the built-in models can make."""
    return _ASKS_FOR_DIGEST.search(text) is not None and not _BEGINS_OTHERWISE.match(text)


def asks_for_other_work(text: str) -> bool:
    """Whether a text plainly asks for something that a summary of documents is no answer to."""
    if asks_for_digest(text):
        return False
    return (
        _OTHER_WORK.search(text) is not None
        or _BEGINS_OTHERWISE.match(text) is not None
        or (_MAKES.match(text) is not None and not _OF_DOCUMENTS.search(text))
    )
