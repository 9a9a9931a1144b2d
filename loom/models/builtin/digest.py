"""The digest file: what the built-in executor writes and the built-in verifier reads.

A digest of documents is one section per document:

    ## <title of the document>
    Source: <path>

    - <a sentence of the document>
    - …

and `(no sentences)` instead of the list for a document without prose. The digest of all, DIGEST.md, is

    # Digest of <n> documents

    ## Overview

    - <a sentence> ([<path>])

followed by the sections of all documents in path order. Nothing else is in such a file: headings, `Source:` lines and
`(no sentences)` are its only words that are not those of a source.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from loom.models.builtin.markup import short
from loom.models.builtin.text import Document, Sentence
from loom.wire.record import field, record

FOLDER = "digest/"
DIGEST = "DIGEST.md"
OVERVIEW = "Overview"
NO_SENTENCES = "(no sentences)"
FEWEST = 3  # sentences per document, if it has as many
MOST = 6
MOST_IN_OVERVIEW = 7
_SOURCE = "Source: "
# What no finished file may hold (the deterministic checks look for it); a draft's gap is no sentence worth quoting.
_GAP = re.compile(r"\[(?:TBD|TODO|INSERT|PLACEHOLDER|MISSING)\b|\blorem ipsum\b", re.IGNORECASE)
_BULLET = re.compile(r"[-*+]\s+|[-*+]$")


@record
class Item:
    """One bullet, or one line of prose, and the number of its line, from 1."""

    line: int
    text: str


@record(frozen=False)
class Part:
    """One `## ` section. `source` is empty when it has no `Source:` line."""

    line: int
    title: str
    source: str = ""
    items: list[Item] = field(default_factory=list)
    says_none: bool = False


@record(frozen=False)
class Digest:
    """A digest file as read. `strays` are lines of text before the first section."""

    heading: str = ""
    parts: list[Part] = field(default_factory=list)
    strays: list[Item] = field(default_factory=list)

    @property
    def has_form(self) -> bool:
        """Whether this is a digest at all: some section names its source."""
        return any(part.source for part in self.parts)

    @property
    def overview(self) -> Part | None:
        """The section that is of no single document."""
        return next((p for p in self.parts if p.title == OVERVIEW and not p.source), None)


def quotable(document: Document) -> list[Sentence]:
    """The sentences of a document that a digest may hold."""
    return [s for s in document.sentences if not _GAP.search(s.text)]


def size(count: int) -> int:
    """How many sentences stand for a document of `count` distinct ones."""
    wanted = FEWEST + (count > 15) + (count > 40) + (count > 100)
    return min(count, wanted)


def overview_size(count: int) -> int:
    """How many of `count` distinct digest sentences make the overview."""
    return min(count, MOST_IN_OVERVIEW, max(3, 2 + count // 6))


def title_of(document: Document, path: str) -> str:
    """The heading of a document's section: its own title, else the name of its file."""
    own = "" if _GAP.search(document.title) else document.title
    return own or short(path.rsplit("/", 1)[-1]) or "Document"


def render_part(title: str, path: str, sentences: Iterable[str]) -> str:
    """The section of one document."""
    bullets = "".join(f"- {s}\n" for s in sentences)
    return f"## {title}\n{_SOURCE}{path}\n\n{bullets or NO_SENTENCES + chr(10)}"


def render_whole(overview: Sequence[tuple[str, str]], parts: Sequence[str]) -> str:
    """The digest of all documents. `overview` is (sentence, path); `parts` come from render_part."""
    bullets = "".join(f"- {text}{mark(path)}\n" for text, path in overview)
    head = f"# {heading_of_whole(len(parts))}\n\n## {OVERVIEW}\n\n{bullets or NO_SENTENCES + chr(10)}"
    return "\n".join([head, *parts])


def heading_of_whole(count: int) -> str:
    """The first line of the digest of all documents, without its `# `."""
    return f"Digest of {count} document" + ("" if count == 1 else "s")


def mark(path: str) -> str:
    """How a sentence of the overview names its source."""
    return f" ([{path}])"


def parse(text: str) -> Digest:
    """A digest file taken apart; never fails. Indented lines go on with the item before them."""
    digest = Digest()
    for number, line in enumerate(text.replace("\r\n", "\n").split("\n"), start=1):
        part = digest.parts[-1] if digest.parts else None
        items = part.items if part else digest.strays
        bare = line.strip()
        if line.startswith("## "):
            digest.parts.append(Part(number, bare[3:].strip()))
        elif line.startswith("# ") and part is None and not digest.heading:
            digest.heading = bare[2:].strip()
        elif part and line.startswith(_SOURCE.rstrip()) and not part.source and not part.items:
            part.source = bare.removeprefix(_SOURCE.rstrip()).strip().strip("`")
        elif part and bare == NO_SENTENCES:
            part.says_none = True
        elif line.startswith((" ", "\t")) and bare and items and not _BULLET.match(bare):
            items[-1] = Item(items[-1].line, f"{items[-1].text} {bare}")
        elif bare:
            bullet = _BULLET.match(bare)
            items.append(Item(number, bare[bullet.end() :].strip() if bullet else bare))
    return digest


def is_digest(text: str) -> bool:
    """Whether a file looks like a digest of ours, or is empty: it may be written over."""
    parts = parse(text).parts
    sourced = [part for part in parts if part.source]
    return not text.strip() or (bool(sourced) and all(p.source or p.title == OVERVIEW for p in parts))


def as_sentences(items: Iterable[Item]) -> list[Sentence]:
    """The items of a digest as sentences to choose from."""
    return [Sentence(item.text) for item in items]
