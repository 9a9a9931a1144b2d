"""docs/cli.md and the commands say the same: every command and option is named there, and what it promises exists."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import click
import pytest

from loom.cli.groups import load
from loom.cli.main import COMMANDS, OPTIONS
from loom.cli.words import PLANNED, PLANNED_IN
from loom.wire import exits

PAGE = (Path(__file__).parents[2] / "docs" / "cli.md").read_text(encoding="utf-8")
_CODE = re.compile(r"`([^`]+)`")
_LONG = re.compile(r"--[a-z][a-z-]*")
_SUBJECT = re.compile(r"^#+ Options of `loom ([a-z ]+)`$")
SINCE, PLAN = "since 0.1", "planned"


@dataclass(frozen=True)
class Row:
    """A row of a table: its cells, and the command whose options the section above it lists ('' elsewhere)."""

    cells: tuple[str, ...]
    subject: str

    @property
    def codes(self) -> list[str]:
        return _CODE.findall(self.cells[0])

    @property
    def exists(self) -> bool:
        return SINCE in self.cells[-1]


def rows(page: str = PAGE) -> Iterator[Row]:
    subject = ""
    for line in page.splitlines():
        if line.startswith("#"):
            found = _SUBJECT.match(line)
            subject = found[1] if found else ""
        elif line.startswith("| ") and not line.startswith("|--"):
            cells = re.split(r"(?<!\\)\|", line.strip().strip("|"))
            yield Row(tuple(cell.strip() for cell in cells), subject)


def leaves() -> Iterator[tuple[str, click.Command]]:
    """Every command that can be given, by its words."""
    for name, (module, _) in COMMANDS.items():
        command = load(module)
        if isinstance(command, click.Group):
            context = click.Context(command)
            for sub in command.list_commands(context):
                found = command.get_command(context, sub)
                assert found is not None
                yield f"{name} {sub}", found
        else:
            yield name, command


LEAVES = dict(leaves())


def words_of(code: str) -> str:
    """`loom agent ps [-a]` as `agent ps`: the words before the first that is no command's; '' for no command line."""
    words = code.split()
    if words[0] != "loom":
        return ""
    taken: list[str] = []
    for word in words[1:]:
        if not re.fullmatch(r"[a-z][a-z-]*", word):
            break
        taken.append(word)
    return " ".join(taken)


def options_of(command: click.Command) -> set[str]:
    return {
        name
        for parameter in command.params
        if isinstance(parameter, click.Option)
        for name in (*parameter.opts, *parameter.secondary_opts)
    }


@dataclass
class Told:
    """What the page says of one command."""

    exists: bool = False
    options: set[str] = field(default_factory=set)


def told() -> dict[str, Told]:
    found: dict[str, Told] = {}
    for row in rows():
        if row.subject and row.exists:
            about = found.setdefault(row.subject, Told())
            about.options |= {word for code in row.codes for word in re.findall(r"(?<!\S)-[\w-]+", code)}
        for code in row.codes:
            if words := words_of(code):
                about = found.setdefault(words, Told())
                about.exists = about.exists or row.exists
                if row.exists:
                    about.options |= set(re.findall(r"(?<![\w-])--?[a-z][a-z-]*", code))
    found["agent send"].options |= found["send"].options
    return found


TOLD = told()


@pytest.mark.parametrize("words", LEAVES)
def test_every_command_is_on_the_page(words: str) -> None:
    assert words in TOLD, f"docs/cli.md has no row for `loom {words}`"
    assert TOLD[words].exists, f"the row of `loom {words}` does not say {SINCE!r}"


@pytest.mark.parametrize("words", LEAVES)
def test_every_option_of_it_too(words: str) -> None:
    missing = options_of(LEAVES[words]) - TOLD[words].options
    assert missing == set(), f"docs/cli.md does not name {sorted(missing)} of `loom {words}`"


@pytest.mark.parametrize("words", [words for words, about in TOLD.items() if about.exists])
def test_what_the_page_promises_exists(words: str) -> None:
    assert words in LEAVES, f"docs/cli.md promises `loom {words}`"
    extra = TOLD[words].options - options_of(LEAVES[words])
    assert extra == set(), f"docs/cli.md promises {sorted(extra)} of `loom {words}`"


def test_what_is_planned_does_not_exist() -> None:
    for row in rows():
        if row.cells[-1] != PLAN:
            continue
        for code in row.codes:
            if words := words_of(code):
                assert words not in LEAVES, f"`loom {words}` exists and is marked as planned"
            elif row.subject:
                there = options_of(LEAVES[row.subject])
                assert there.isdisjoint(_LONG.findall(code)), f"{code} of `loom {row.subject}` exists"


def test_every_word_that_is_taken_is_explained() -> None:
    for word in PLANNED:
        assert re.search(rf"`(loom )?{word}\b", PAGE), f"docs/cli.md does not say what `loom {word}` will be"


def test_what_is_said_to_be_planned_is_so_on_the_page() -> None:
    planned: dict[str, set[str]] = {"run": set(), "goal": set()}
    for row in rows():
        if row.cells[-1] == PLAN:
            for code in row.codes:
                if row.subject:
                    planned[row.subject] |= set(_LONG.findall(code))
            if row.codes and row.codes[0].startswith("loom goal "):
                planned["goal"] |= {code.removeprefix("loom goal ") for code in row.codes}
    assert planned == PLANNED_IN


def test_the_options_before_the_command_are_there() -> None:
    head = PAGE[: PAGE.index("## Exit statuses")]
    for option in (*_LONG.findall(OPTIONS), "--quiet", "--verbose"):
        assert f"`{option}" in head, option


def test_every_exit_status_is_there() -> None:
    table = PAGE[PAGE.index("## Exit statuses") : PAGE.index("## Commands")]
    given = {int(n) for cell in re.findall(r"^\| ([\d, ]+) \|", table, re.MULTILINE) for n in cell.split(",")}
    assert given == set(exits.MEANING)
