"""builtin/planner: a plan by rules, for the kind of work the built-in executor can do.

1. The goal has a list of two items or more that name no documents: one subtask per item, numbered ones one after
   the other. (The built-in executor will report them as blocked; another executor may do them.)
2. There are documents, and the goal does not plainly ask for other work than a digest: one subtask per document and
   a synthesis. Documents, folders (`adrs/`) or names the goal mentions narrow the choice. A document that the goal
   tells to summarise and that is not there is planned for too, so that its absence is reported by who reads it.
3. Else one subtask.
The plan is a function of the goal and of the set of files: their order does not count.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from loom.models.builtin import orders
from loom.models.builtin.conversation import Builtin, Step, Transcript, answer_json
from loom.models.builtin.digest import DIGEST, FEWEST, FOLDER, MOST, NO_SENTENCES, OVERVIEW, heading_of_whole
from loom.wire.chat import ChatRequest
from loom.wire.plan import is_workspace_path

Subtask = dict[str, Any]

DOCUMENTS = (".md", ".markdown", ".txt", ".text", ".rst")
DEFAULT_LIMIT = 200
_LIMIT = re.compile(r"^Limit: at most (\d+) subtasks?", re.MULTILINE)
_LIST_ITEM = re.compile(r"\s{0,3}(?:([-*+•])|\d{1,4}[.)])\s+(\S.*)")
_ASKED_FOR = re.compile(
    r"(?:\b(?:summari[sz]e|digest|condense|read|of|from|and)\s+(?:the\s+)?(?:file\s+|document\s+)?|,\s*|^\s*[-*]\s+)"
    r"[`\"']?(/?(?:[\w.-]+/)*[\w.-]+\.(?:md|markdown|txt|text|rst))\b(?!\.\w)",
    re.IGNORECASE | re.MULTILINE,
)
_DONE = re.compile(r"\b(?:finished|done|committed|applied|passed|verified|keep)\b", re.IGNORECASE)


def open(name: str) -> Builtin:
    """The model, under the name it was asked for."""
    return Builtin(name, _answer)


def _answer(request: ChatRequest) -> Step:
    order = orders.parse(Transcript(request, "# Goal").order)
    goal, limit = order.text(), _limit(order)
    if steering := orders.unquoted(order.sections.get("steering", ())):
        goal = f"{goal}\n\n{steering}"
    subtasks = plan(goal, order.paths("files"), limit)
    if order.has("replan"):
        subtasks = _with_finished(subtasks, order.sections["replan"], limit)
    more = order.more("files")
    prose = f"{more} more files were not listed; this plan does not cover them." if more else ""
    return answer_json({"subtasks": subtasks}, prose)


def plan(goal: str, files: Sequence[str], limit: int = DEFAULT_LIMIT) -> list[Subtask]:
    """The subtasks for a goal over a set of files, at most `limit`."""
    documents = _documents(goal, files)
    items, ordered = _list_items(goal)
    if len(items) >= 2 and not any(_mentions(item, path) for item in items for path in documents):
        return _plan_items(goal, items, ordered, limit)
    if documents and not orders.asks_for_other_work(goal):
        return [_aware(task, files) for task in _plan_documents(documents, limit)]
    return [_subtask("goal", _line(goal) or "An empty goal", goal or "The goal is empty.")]


def _limit(order: orders.Order) -> int:
    found = _LIMIT.search("\n".join(line for lines in order.sections.values() for line in lines))
    return max(1, int(found[1])) if found else DEFAULT_LIMIT


# --- which documents --------------------------------------------------------------------------------------------


def _documents(goal: str, files: Sequence[str]) -> list[str]:
    """The documents the goal is about, in path order: those it names, else all."""
    every = sorted({f for f in files if f.lower().endswith(DOCUMENTS) and not _is_ours(f)})
    text = re.sub(r"(?<![\w.])\./", "", goal)
    paths = set(every)
    named = {p for p in every if _mentions(text, p)}
    named |= {p for p in every if (base := p.rsplit("/", 1)[-1]) not in paths and _mentions(text, base)}
    missing = {m[1] for m in _ASKED_FOR.finditer(text) if not _is_ours(m[1])}
    if not all(is_workspace_path(m) for m in missing):
        return []  # a document from outside; others would be no answer
    named |= {m for m in missing if not any(p == m or p.endswith("/" + m) for p in every)}
    if not named:
        named = {p for p in every if any(_mentions_folder(text, p[: i + 1]) for i, c in enumerate(p) if c == "/")}
    return sorted(named) or every


def _is_ours(path: str) -> bool:
    """Whether a file is what an earlier digest left behind; a digest of digests helps nobody."""
    return path == DIGEST or path.startswith(FOLDER)


def _mentions(text: str, path: str) -> bool:
    """Whether the path stands in the text on its own, not as a part of a longer path or name."""
    return re.search(rf"(?<![\w/.-]){re.escape(path)}(?![\w/-]|\.\w)", text) is not None


def _mentions_folder(text: str, folder: str) -> bool:
    return re.search(rf"(?<![\w/.-]){re.escape(folder)}(?![\w.-])", text) is not None


# --- the three kinds of plan ------------------------------------------------------------------------------------


def _plan_documents(documents: Sequence[str], limit: int) -> list[Subtask]:
    if limit == 1:
        return [_digest("digest", documents, DIGEST)]
    if len(documents) <= limit - 1:
        slugs = unique([slug(d.rsplit("/", 1)[-1].rsplit(".", 1)[0]) for d in documents])
        parts = [_digest(f"digest-{s}", [d], f"{FOLDER}{s}.md") for d, s in zip(documents, slugs, strict=True)]
    else:
        names = [f"part-{i:02}" for i in range(1, limit)]
        parts = [
            _digest(f"digest-{name}", group, f"{FOLDER}{name}.md")
            for name, group in zip(names, _groups(documents, limit - 1), strict=True)
        ]
    return [*parts, _synthesis(documents, parts)]


def _digest(id: str, documents: Sequence[str], deliverable: str) -> Subtask:
    which = documents[0] if len(documents) == 1 else f"{len(documents)} documents"
    count = f"{FEWEST} to {MOST} of its own sentences"
    each = "Summarise" if len(documents) == 1 else "For each document read, summarise"
    names = documents[0] if len(documents) == 1 else "it"
    return _subtask(
        id,
        f"Digest of {which}",
        f"{each} {names} in {count} and write {deliverable}.\n\n"
        f"One section per document: the heading `## ` with its title, the line `Source: ` with its path, an empty "
        f"line, then each sentence as a list item, word for word as the document has it, relative links made to lead "
        f"to the same place from there. For a document without prose the line `{NO_SENTENCES}` takes the place of "
        f"the list.",
        acceptance=[
            f"{deliverable} has one section for each document read, with its `Source:` line",
            "every sentence of a section stands word for word in its document",
            f"{FEWEST} to {MOST} sentences per document, or all of a shorter one; `{NO_SENTENCES}` where there is none",
        ],
        deliverables=[deliverable],
        reads=list(documents),
    )


def _synthesis(documents: Sequence[str], parts: Sequence[Subtask]) -> Subtask:
    digests = [d for part in parts for d in part["deliverables"]]
    task = _subtask(
        "digest",
        f"Digest of all {len(documents)} documents" if len(documents) > 1 else f"Digest of {documents[0]}",
        f"Put the digests together in {DIGEST}: the heading `# {heading_of_whole(len(documents))}`, a section "
        f"`## {OVERVIEW}` with the 3 to 7 sentences that say most, each followed by its source as ` ([path])`, then "
        f"the section of every document in path order, copied from its digest, relative links made to lead to the "
        f"same place from there.",
        depends_on=[part["id"] for part in parts],
        acceptance=[
            f"{DIGEST} has a section for every document, with all sentences of its digest",
            "the overview's sentences stand word for word in the documents they name",
        ],
        deliverables=[DIGEST],
        reads=[*documents, *digests],
    )
    return task | {"synthesis": True}


def _aware(task: Subtask, files: Sequence[str]) -> Subtask:
    """The subtask told of a deliverable that is there already: who writes it reads it first."""
    return task | {"reads": [*task["reads"], *(d for d in task["deliverables"] if d in files)]}


def _plan_items(goal: str, items: Sequence[str], ordered: bool, limit: int) -> list[Subtask]:
    groups = [[item] for item in items] if len(items) <= limit else list(_groups(items, limit))
    slugs = [slug(group[0], longest=30) for group in groups]
    ids = [f"item-{i}-{s}" for i, s in enumerate(slugs, start=1)]
    subtasks: list[Subtask] = []
    for i, group in enumerate(groups):
        what = "\n".join(f"- {item}" for item in group) if len(group) > 1 else group[0]
        subtasks.append(
            _subtask(
                ids[i],
                _line(group[0]),
                f"{what}\n\nThis is part {i + 1} of {len(groups)} of the following goal; do only this part.\n\n{goal}",
                depends_on=[ids[i - 1]] if ordered and i else [],
                acceptance=list(group),
            )
        )
    return subtasks


def _list_items(goal: str) -> tuple[list[str], bool]:
    """The top-level list items of the goal with what goes on below them, and whether they are numbered."""
    items: list[str] = []
    numbered: list[bool] = []
    for line in goal.split("\n"):
        if m := _LIST_ITEM.match(line):
            items.append(m[2].strip())
            numbered.append(m[1] is None)
        elif items and line.startswith((" ", "\t")) and line.strip():
            items[-1] += " " + line.strip()
    return items, bool(numbered) and all(numbered)


def _groups(things: Sequence[str], count: int) -> list[Sequence[str]]:
    """`count` runs of neighbours whose lengths differ by one at most. There are at least `count` things."""
    ends = [len(things) * i // count for i in range(count + 1)]
    return [things[a:b] for a, b in pairwise(ends)]


def _subtask(
    id: str,
    title: str,
    instruction: str,
    depends_on: Sequence[str] = (),
    acceptance: Sequence[str] = (),
    deliverables: Sequence[str] = (),
    reads: Sequence[str] = (),
) -> Subtask:
    return {
        "id": id,
        "title": title,
        "instruction": instruction,
        "depends_on": list(depends_on),
        "acceptance": list(acceptance),
        "deliverables": list(deliverables),
        "reads": list(reads),
        "tier": 1,
        "level": 2,
    }


# --- replanning and names ---------------------------------------------------------------------------------------


def _with_finished(subtasks: list[Subtask], lines: tuple[str, ...], limit: int) -> list[Subtask]:
    """The plan with every finished subtask in it: by its id if it is there, else added as it was named.

    What was not finished is planned again as before: the built-in roles know no other way to do it.
    """
    known = {task["id"] for task in subtasks}
    kept: list[Subtask] = []
    for group, items in orders.groups(lines):
        for item in items:
            if item == "(none)":
                continue
            id, _, rest = item.partition(":") if not item.startswith("`") else item[1:].partition("`")
            done = _DONE.search(group) if group else _DONE.search(rest)
            if done and id.strip() and id.strip() not in known:
                title = rest.strip(" :-") or id.strip()
                kept.append(_subtask(id.strip(), title, f"Finished before: {title}"))
    return kept[: max(0, limit - len(subtasks))] + subtasks  # a finished one may be left out, it stays finished


def slug(name: str, longest: int = 40) -> str:
    """A name in [a-z0-9-], for ids and file names."""
    folded = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode().lower()
    return re.sub(r"[^a-z0-9]+", "-", folded).strip("-")[:longest].rstrip("-") or "document"


def unique(slugs: Sequence[str]) -> list[str]:
    """The slugs in order, a number added to what came before."""
    taken: set[str] = set()
    found: list[str] = []
    for plain in slugs:
        name, n = plain, 1
        while name in taken:
            n += 1
            name = f"{plain[: 39 - len(str(n))]}-{n}"
        taken.add(name)
        found.append(name)
    return found


def _line(text: str) -> str:
    """The first line that says something, short enough for a title."""
    line = next((" ".join(part.split()) for part in text.split("\n") if part.strip()), "")
    return line if len(line) <= 80 else line[: max(line.rfind(" ", 0, 79), 40)] + " …"
