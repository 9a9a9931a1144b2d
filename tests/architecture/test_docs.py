"""The documents: links lead somewhere, lines fit, and the page that lists the pages lists all of them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from loom.cli.config import page
from loom.wire.hang import SHAPES, Shape

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    path
    for path in ROOT.rglob("*.md")
    if not any(part.startswith(".") or part in ("build", "dist", "loom") for part in path.relative_to(ROOT).parts)
)  # those in loom/ are prompts
COLUMNS = 120
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
_HEADING = re.compile(r"#{1,6} +(.*?)\s*#*$")
_FENCE = re.compile(r"\s*(```|~~~)")


def prose(path: Path) -> Iterator[str]:
    """The lines of a page outside fenced code."""
    fenced = False
    for line in path.read_text(encoding="utf-8").splitlines():
        if _FENCE.match(line):
            fenced = not fenced
        elif not fenced:
            yield line


@cache
def anchors(path: Path) -> frozenset[str]:
    """The names of a page's headings, as code hosting sites make them."""
    found: list[str] = []
    for line in prose(path):
        if heading := _HEADING.match(line):
            text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading[1]).replace("`", "").lower()
            name = re.sub(r"[^\w\- ]", "", text).replace(" ", "-")
            before = sum(1 for other in found if re.fullmatch(rf"{re.escape(name)}(-\d+)?", other))
            found.append(f"{name}-{before}" if before else name)
    return frozenset(found)


def links(path: Path) -> Iterator[str]:
    text = re.sub(r"`[^`\n]*`", "``", "\n".join(prose(path)))  # a link's words may stand on two lines
    for target in _LINK.findall(text):
        if not re.match(r"[a-z]+:", target):
            yield target


def named(paths: list[Path]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("path", paths, ids=lambda p: str(p.relative_to(ROOT)))


def test_there_are_pages():
    assert {"README.md", "protocol.md", "cli.md"} <= {path.name for path in PAGES}


@named(PAGES)
def test_links_lead_somewhere(path: Path):
    wrong = []
    for target in links(path):
        name, _, anchor = target.partition("#")
        other = (path.parent / name).resolve() if name else path
        if not other.exists():
            wrong.append(target)
        elif anchor and (other.suffix != ".md" or anchor not in anchors(other)):
            wrong.append(f"{target}: no such heading")
    assert wrong == []


@named(PAGES)
def test_lines_fit(path: Path):
    lines = path.read_text(encoding="utf-8").splitlines()
    assert [f"{n}: {len(line)} columns" for n, line in enumerate(lines, 1) if len(line) > COLUMNS] == []


@named(PAGES)
def test_fences_are_closed(path: Path):
    assert sum(1 for line in path.read_text(encoding="utf-8").splitlines() if _FENCE.match(line)) % 2 == 0


def test_every_page_of_docs_is_listed():
    listed = set(links(ROOT / "docs" / "README.md"))
    assert {p.name for p in (ROOT / "docs").iterdir() if p.name != "README.md"} <= listed


def test_every_decision_is_listed():
    listed = set(links(ROOT / "adrs" / "README.md"))
    assert {p.name for p in (ROOT / "adrs").iterdir() if p.name != "README.md"} <= listed


def test_the_page_of_settings_is_what_the_program_prints():
    assert (ROOT / "docs" / "settings.md").read_text(encoding="utf-8") == page()


@named(PAGES)
def test_files_of_the_project_that_are_named_exist(path: Path):
    """`loom/spool/fs.py` and the like in running text."""
    wrong = []
    for line in prose(path):
        for name in re.findall(r"`((?:loom|tests|runners|tools|examples|\.ci)/[\w./-]*)`", line):
            if not (ROOT / name).exists():
                wrong.append(name)
    assert wrong == []


def test_the_page_of_liveness_has_every_shape_with_its_owner_and_action():
    text = (ROOT / "docs" / "liveness.md").read_text(encoding="utf-8")
    found = {}
    for section in text.split("\n### ")[1:]:
        level = section.split("\n", 1)[0].lower()
        for row in re.findall(r"^\| `(\w+)` \|.*\| ([\w ]+) \| ([\w ]+) \|$", section, re.MULTILINE):
            found[row[0]] = Shape(level, *row[1:])  # type: ignore[arg-type]
    assert found == SHAPES and list(found) == list(SHAPES)
