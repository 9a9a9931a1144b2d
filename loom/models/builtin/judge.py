"""Is this the digest it claims to be? Decided by comparing sentences, with no opinion about their choice.

Enters: texts by path, None for a file that is not there or cannot be read. Leaves: findings, each with the line it
is about. A digest is refused when a document has no section or an empty one, when a sentence is in no source, or in
another than its section names, or is only a piece of one, and when something of its form (loom.models.builtin.digest)
is missing or cut off. A link that does not lead where that of its source leads is told, and refuses nothing. Nothing
is refused for being written by another author than the built-in executor.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TypedDict

from loom.models.builtin import markup
from loom.models.builtin.digest import (
    FEWEST,
    FOLDER,
    MOST,
    OVERVIEW,
    Digest,
    Item,
    Part,
    heading_of_whole,
    mark,
    parse,
    quotable,
    title_of,
)
from loom.models.builtin.links import destinations
from loom.models.builtin.rank import distinct
from loom.models.builtin.text import key, sentences
from loom.wire.record import field, record

MOST_FINDINGS = 50


class Finding(TypedDict):
    """One thing that is wrong. severity: blocker, major (either refuses) or minor; where: path or path:line."""

    severity: str
    where: str
    what: str
    evidence: str


@record(frozen=False)
class Source:
    """A document as the judge needs it: its sentences by their keys, and the headings it may go under.

    keys      with where the links of the sentence lead, of all that have this key
    quotable  how many of the sentences a digest could hold
    """

    path: str
    keys: dict[str, set[str | None]]
    titles: set[str]
    readable: bool
    quotable: int


@record(frozen=False)
class Judgement:
    """What was found, and how many of the digest's sentences could be compared with their source."""

    findings: list[Finding] = field(default_factory=list)
    checked: int = 0
    total: int = 0

    @property
    def is_full(self) -> bool:
        """Whether more findings would tell nothing new."""
        return len(self.findings) >= MOST_FINDINGS

    def add(self, severity: str, where: str, what: str, evidence: str = "") -> None:
        """One more finding; their number and the evidence are kept short."""
        if self.is_full:
            return
        shown = evidence if len(evidence) <= 200 else evidence[:199] + "…"
        self.findings.append({"severity": severity, "where": where, "what": what, "evidence": shown})


def judge_digest(
    deliverables: Mapping[str, str | None], sources: Mapping[str, str | None], synthesis: bool
) -> list[Finding]:
    """What is wrong with the deliverables as a digest of the sources; nothing wrong is an empty list.

    For a synthesis the per-document digests, `digest/*.md`, are among the sources.
    """
    return examine(deliverables, sources, synthesis).findings


def refused(findings: list[Finding]) -> bool:
    """Whether the findings keep a digest from passing."""
    return any(f["severity"] != "minor" for f in findings)


def examine(deliverables: Mapping[str, str | None], sources: Mapping[str, str | None], synthesis: bool) -> Judgement:
    """judge_digest, with the count of what was compared."""
    result = Judgement()
    digests = {p: t for p, t in sources.items() if synthesis and p.startswith(FOLDER)}
    documents = {p: _source(p, t) for p, t in sorted(sources.items()) if p not in digests}
    for source in documents.values():
        if not source.readable:
            result.add("blocker", source.path, "this document cannot be read, so its digest cannot be judged")
    if not deliverables or not documents:
        result.add("blocker", "", "there is nothing to judge: no deliverable or no document to read")
    seen: dict[str, str] = {}
    for path, text in sorted(deliverables.items()):
        _judge_file(result, path, text, documents, seen, synthesis)
        if synthesis and text:
            _judge_synthesis(result, path, parse(text), documents, digests)
    for path in documents:
        if path not in seen:
            result.add("blocker", ", ".join(sorted(deliverables)), f"no section for the document {path}")
    return result


def _source(path: str, text: str | None) -> Source:
    document = markup.read(text or "")
    keys: dict[str, set[str | None]] = {}
    for sentence in document.sentences:
        if sentence.key:
            keys.setdefault(sentence.key, set()).update(destinations(sentence.text, path))
    name = path.rsplit("/", 1)[-1]
    titles = {title_of(document, path), path, name, name.rsplit(".", 1)[0]}
    titles |= {markup.short(h) for h in markup.headings(document)}
    return Source(
        path, keys, {key(t) for t in titles}, readable=text is not None, quotable=distinct(quotable(document))
    )


def _judge_file(
    result: Judgement,
    path: str,
    text: str | None,
    documents: Mapping[str, Source],
    seen: dict[str, str],
    synthesis: bool,
) -> None:
    """Everything that can be said of one deliverable: it is there, has the form, and each section holds."""
    if text is None:
        result.add("blocker", path, "the deliverable is missing or cannot be read")
        return
    if not text.strip():
        result.add("blocker", path, "the digest is empty")
        return
    digest = parse(text)
    if not digest.has_form:
        result.add("blocker", path, "no section has a `Source:` line, so this is no digest", text.strip())
        return
    for item in digest.strays:
        result.add("major", f"{path}:{item.line}", "text outside of any section, in no source", item.text)
    if digest.heading and not _is_heading(digest.heading, documents, synthesis):
        result.add("major", path, "the heading does not say of which documents this is the digest", digest.heading)
    for part in digest.parts:
        where = f"{path}:{part.line}"
        if synthesis and part is digest.overview:
            continue
        if part.source not in documents:
            what = f"names the source {part.source}, which was not to be read" if part.source else "names no source"
            result.add("blocker", where, f"the section {part.title!r} {what}")
            result.total += len(part.items)
        elif part.source in seen:
            result.add("major", where, f"a second section for {part.source}; the first is at {seen[part.source]}")
        else:
            seen[part.source] = where
            _judge_part(result, path, part, documents[part.source], documents)


def _is_heading(heading: str, documents: Mapping[str, Source], synthesis: bool) -> bool:
    """Whether the first line is one that a digest may have; in a synthesis it is the number of the documents."""
    if heading == heading_of_whole(len(documents)):
        return True
    name = key(heading).removeprefix("digest of ")
    return not synthesis and (name == "digest" or any(name in source.titles for source in documents.values()))


def _judge_part(result: Judgement, path: str, part: Part, source: Source, documents: Mapping[str, Source]) -> None:
    """One section against its document."""
    where = f"{path}:{part.line}"
    if not source.readable:
        result.total += len(part.items)
        return
    if key(part.title) not in source.titles:
        result.add("major", where, f"the heading is neither a title of {source.path} nor its name", part.title)
    named: set[str] = set()
    for item in part.items:
        named |= _judge_item(result, path, item.line, item.text, source, documents)
    needed = min(FEWEST, source.quotable)
    if not part.items and source.quotable:
        result.add("blocker", where, f"the digest of {source.path} is empty, the document has sentences")
    elif part.says_none and part.items:
        result.add("major", where, "the section says that there are no sentences and has some")
    elif not part.items and not part.says_none:
        result.add("major", where, "the section is cut off after its heading")
    elif len(named) < needed:
        result.add("major", where, f"{len(named)} sentences of {source.path}, at least {needed} are needed: cut off?")
    if len(named) > MOST:
        half = len(named) * 2 > len(source.keys)
        what = f"{len(named)} sentences of {source.path}, more than {MOST}"
        result.add("major" if half else "minor", where, f"{what}: {'a copy, no digest' if half else 'long'}")


def _judge_item(
    result: Judgement, path: str, line: int, text: str, source: Source, documents: Mapping[str, Source]
) -> set[str]:
    """One bullet against its document: the keys of the source's sentences that it is made of."""
    where = f"{path}:{line}"
    result.total += 1
    result.checked += 1
    found: set[str] = set()
    for sentence in [text] if key(text) in source.keys else _parts(text):
        same = key(sentence)
        if same in source.keys:
            found.add(same)
            if not destinations(sentence, path) <= source.keys[same] - {None}:
                result.add("minor", where, f"a link does not lead where that of {source.path} leads", sentence)
        elif not result.is_full:
            result.add("blocker", where, _what_is_wrong(same, source, documents), sentence)
    return found


def _parts(text: str) -> Iterator[str]:
    """The sentences of a bullet that is not one; the bullet itself when it holds none."""
    parts = [s.text for s in sentences(text)]
    return iter(parts or [text])


def _what_is_wrong(same: str, source: Source, documents: Mapping[str, Source]) -> str:
    if not same:
        return "an empty list item: cut off?"
    if any(k.startswith(same) for k in source.keys):
        return f"only the beginning of a sentence of {source.path}: cut off"
    if any(same in k for k in source.keys):
        return f"only a piece of a sentence of {source.path}"
    others = [d.path for d in documents.values() if same in d.keys]
    return f"stands in {others[0]}, not in {source.path}" if others else f"stands in no source, not in {source.path}"


# --- the digest of all ------------------------------------------------------------------------------------------


def _judge_synthesis(
    result: Judgement,
    path: str,
    whole: Digest,
    documents: Mapping[str, Source],
    digests: Mapping[str, str | None],
) -> None:
    """What a synthesis owes beyond its sections: heading, overview, order, and all sentences of the digests."""
    if not whole.heading:
        result.add("major", path, f"the heading `# {heading_of_whole(len(documents))}` is missing")
    _judge_overview(result, path, whole.overview, documents)
    order = [part.source for part in whole.parts if part.source]
    if order != sorted(order):
        result.add("minor", path, "the sections are not in path order")
    if not digests:
        result.add("blocker", path, f"no digests ({FOLDER}*.md) to compare the synthesis with")
    sections = {part.source: part for part in whole.parts if part.source}
    for digest_path, text in sorted(digests.items()):
        if text is None:
            result.add("blocker", digest_path, "this digest is missing or cannot be read")
            continue
        for part in parse(text).parts:
            copied = {key(item.text) for item in sections[part.source].items} if part.source in sections else set()
            for item in part.items:
                if part.source in documents and key(item.text) not in copied:
                    what = f"the section of {part.source} in {path} lacks this sentence of its digest"
                    result.add("major", f"{digest_path}:{item.line}", what, item.text)


def _judge_overview(result: Judgement, path: str, overview: Part | None, documents: Mapping[str, Source]) -> None:
    if overview is None:
        result.add("major", path, f"the section `## {OVERVIEW}` is missing")
        return
    where = f"{path}:{overview.line}"
    if not overview.items and any(d.quotable for d in documents.values()):
        result.add("blocker", where, "the overview is empty, the documents have sentences")
    elif not overview.items and not overview.says_none:
        result.add("major", where, "the overview is cut off after its heading")
    for item in overview.items:
        _judge_overview_item(result, path, item, documents)


def _judge_overview_item(result: Judgement, path: str, item: Item, documents: Mapping[str, Source]) -> None:
    source = next((d for d in documents.values() if item.text.endswith(mark(d.path))), None)
    if source is None:
        result.total += 1
        what = "names no source at its end, as ` ([path])`: cut off?"
        result.add("blocker", f"{path}:{item.line}", what, item.text)
    elif not source.readable:
        result.total += 1
    else:
        _judge_item(result, path, item.line, item.text.removesuffix(mark(source.path)), source, documents)
