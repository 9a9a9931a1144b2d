"""builtin/executor: summarises documents through the tools it is given, and can do nothing else.

A digest subtask reads documents and writes one file; the synthesis reads the digests and writes the digest of all.
Every sentence is the source's own (loom.models.builtin.digest has the form), and its links lead where they led.
Whatever it is asked for beyond that, and every document it cannot read and write it may not do, it answers as blocked
with the reason, never as done.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from loom.models.builtin import markup, orders
from loom.models.builtin.conversation import READ, WRITE, Builtin, Step, Transcript, answer_json
from loom.models.builtin.digest import (
    FOLDER,
    Item,
    Part,
    as_sentences,
    is_digest,
    overview_size,
    parse,
    quotable,
    render_part,
    render_whole,
    size,
    title_of,
)
from loom.models.builtin.links import moved
from loom.models.builtin.rank import choose, distinct, summarise
from loom.models.builtin.text import Sentence, is_binary
from loom.wire.chat import ChatRequest

BEYOND = "the built-in executor can only summarise documents (--model names another one)"


class Blocked(Exception):
    """The order cannot be carried out; the message says why."""


def open(name: str) -> Builtin:
    """The model, under the name it was asked for."""
    return Builtin(name, _answer)


def _answer(request: ChatRequest) -> Step:
    transcript = Transcript(request, "# Subtask")
    try:
        return _next_step(transcript, orders.parse(transcript.order))
    except Blocked as blocked:
        return answer_json({"status": "blocked", "reason": str(blocked)})


def _next_step(transcript: Transcript, order: orders.Order) -> Step:
    target = _target(transcript, order)
    if step := _spare(transcript, target, order):
        return step
    reads = [p for p in order.paths("reads") if p != target]
    wanted = [p for p in reads if p.startswith(FOLDER)] if order.has("synthesis") else reads
    if not wanted:
        raise Blocked(f"no digests ({FOLDER}*.md) are among the files to read, so there is nothing to put together")
    if step := transcript.read_next(wanted):
        return step
    texts = {path: _text(transcript, path) for path in wanted}
    if order.has("synthesis"):
        content, summary = whole(texts, [p for p in reads if p not in texts], target)
    else:
        content, summary = digest(texts, target)
    return _write(transcript, target, content) or answer_json(
        {"status": "done", "summary": summary, "deliverables": [target]}, summary
    )


def _target(transcript: Transcript, order: orders.Order) -> str:
    """The one file to write. Raises Blocked for any order that is not a digest."""
    deliverables, reads = order.paths("deliverables"), order.paths("reads")
    missing = [tool for tool in (READ, WRITE) if not transcript.has_tool(tool)]
    if missing:
        raise Blocked(f"this needs the tool {missing[0]}, which is not among the tools of the request")
    if not reads:
        raise Blocked(f"{BEYOND}, and this subtask names none to read")
    if len(deliverables) != 1 or not deliverables[0].lower().endswith(".md"):
        found = ", ".join(deliverables) or "none"
        raise Blocked(f"{BEYOND}: it writes one digest, a .md file; the deliverables are: {found}")
    if not orders.asks_for_digest(order.text()):
        raise Blocked(f"{BEYOND}, and the instruction asks for something else")
    return deliverables[0]


def _spare(transcript: Transcript, target: str, order: orders.Order) -> Step | None:
    """Look at a file that is there before it is written over. Raises Blocked when it is no earlier digest."""
    if target not in order.paths("reads"):
        return None
    if step := transcript.read_next([target]):
        return step
    reading = transcript.reading(target)
    if not reading.error and not is_digest(reading.text):
        raise Blocked(f"{target} is there already and is no digest made before; move it away or give it another name")
    return None


def _text(transcript: Transcript, path: str) -> str:
    reading = transcript.reading(path)
    if reading.error:
        raise Blocked(f"{path} cannot be read: {reading.error}")
    if is_binary(reading.text):
        raise Blocked(f"{path} is not text")
    return reading.text


def _write(transcript: Transcript, path: str, content: str) -> Step | None:
    """The write that is left to do; None once it has succeeded. An interrupted one is tried once more."""
    tries = [e for e in transcript.exchanges if transcript.is_tool(e, WRITE) and e.input.get("path") == path]
    if any(not e.error and e.input.get("content") == content for e in tries):
        return None
    if tries and (len(tries) > 1 or "interrupt" not in tries[-1].error.lower()):
        raise Blocked(f"{path} cannot be written: {tries[-1].error or 'the file was written with other content'}")
    return Step(calls=(transcript.call(WRITE, path=path, content=content),))


# --- the work itself --------------------------------------------------------------------------------------------


def digest(texts: Mapping[str, str], target: str) -> tuple[str, str]:
    """The digest of the documents by path, in path order, and a line that says how much was taken.

    target  the file it is for: links lead from there
    """
    parts: list[str] = []
    taken = total = 0
    for path in sorted(texts):
        document = markup.read(texts[path])
        sentences = quotable(document)
        count = distinct(sentences)
        chosen = summarise(sentences, size(count))
        parts.append(render_part(title_of(document, path), path, (moved(s.text, path, target) for s in chosen)))
        taken, total = taken + len(chosen), total + count
    which = next(iter(texts)) if len(texts) == 1 else f"{len(texts)} documents"
    return "\n".join(parts), f"Digest of {which}: {taken} of {total} sentences."


def whole(digests: Mapping[str, str], documents: Sequence[str], target: str) -> tuple[str, str]:
    """The digest of all `documents` from their digests by path, and a line that says what it holds.

    target  the file it is for: links lead from there
    """
    found: dict[str, Part] = {}
    for path in sorted(digests):
        for part in parse(digests[path]).parts:
            if part.source and part.source not in found:
                items = [Item(i.line, moved(i.text, path, target)) for i in part.items]
                found[part.source] = replace(part, items=items)
    if missing := [path for path in documents if path not in found]:
        raise Blocked(f"no digest has a section for {', '.join(missing)}")
    parts = [found[path] for path in sorted(documents or found)]
    sentences: list[Sentence] = []
    sources: list[str] = []
    for part in parts:
        sentences += as_sentences(part.items)
        sources += [part.source] * len(part.items)
    chosen = choose(sentences, overview_size(distinct(sentences)))
    content = render_whole(
        [(sentences[i].text, sources[i]) for i in chosen],
        [render_part(p.title, p.source, (i.text for i in p.items)) for p in parts],
    )
    return content, f"Digest of {len(parts)} documents: {len(sentences)} sentences, {len(chosen)} in the overview."
