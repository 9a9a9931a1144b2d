"""Makes the manual pages beside it, from the commands themselves and from the pages in docs/: nothing is said twice.

    python contrib/man/make.py          writes loom.1, loom-files.5 and loom-supervisor.8

A test compares them with what this would write. The Markdown is that of this project: headings, paragraphs, lists,
tables, indented and fenced code, and within lines `code`, *emphasis*, **strong** words and links.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import click

from loom.cli.groups import load
from loom.cli.main import COMMANDS, GROUPS, OPTIONS, VERSION

HERE = Path(__file__).parent
DOCS = HERE.parents[1] / "docs"
_SPECIAL = {"\\": "\\e", "-": "\\-", "'": "\\(aq", "^": "\\(ha", "~": "\\(ti", "`": "\\(ga"}
_LONG = 40
_INLINE = re.compile(r"`([^`]+)`|\*\*([^*]+)\*\*|\*([^*\s][^*]*)\*|\[([^\]]*)\]\([^)]*\)")


# -- text as roff ----------------------------------------------------------------------------------------------------


def escaped(text: str) -> str:
    """Plain text: nothing in it is a request or an escape, and all of it is ASCII."""
    text = "".join(_SPECIAL.get(c) or (c if c.isascii() else f"\\[u{ord(c):04X}]") for c in text)
    return f"\\&{text}" if text.startswith(".") else text


def inline(text: str) -> str:
    """A line of Markdown. Code and strong words are bold, emphasis is italic, of a link its words are left."""
    out, at = [], 0
    for match in _INLINE.finditer(text):
        out.append(escaped(text[at : match.start()]))
        code, strong, emphasis, link = match.groups()
        if link is not None:
            out.append(inline(link))
        elif emphasis is not None:
            out.append(f"\\fI{escaped(emphasis)}\\fP")
        else:
            words = escaped(code or strong)
            if len(words) > _LONG:  # it may be broken there, or no line would hold it
                words = re.sub(r"([,|])", r"\1\\:", words)
            out.append(f"\\fB{words}\\fP")
        at = match.end()
    line = "".join([*out, escaped(text[at:])])
    return f"\\&{line}" if line.startswith((".", "'")) else line


def markdown(text: str) -> Iterator[str]:
    """A page of Markdown as lines of roff; its headings are one level lower than those of the manual's own."""
    lines = text.splitlines()
    at = 0
    while at < len(lines):
        line = lines[at]
        end = at + 1
        if not line.strip() or line.startswith("<!--"):
            pass
        elif line.startswith("#"):
            yield f".SS {inline(line.lstrip('# '))}"
        elif line.startswith("```"):
            while not lines[end].startswith("```"):
                end += 1
            yield from code(lines[at + 1 : end])
            end += 1
        elif line.startswith("    "):
            while end < len(lines) and (lines[end].startswith("    ") or not lines[end].strip()):
                end += 1
            yield from code([row[4:] for row in lines[at:end]])
        elif line.startswith("|"):
            while end < len(lines) and lines[end].startswith("|"):
                end += 1
            yield from table(lines[at:end])
        else:
            item = re.match(r"(- |\d+\. )", line)
            while end < len(lines) and lines[end].strip() and not re.match(r"(- |\d+\. |#|\||```)", lines[end]):
                end += 1
            words = " ".join(row.strip() for row in lines[at:end])
            if item:
                mark = "\\(bu" if item[0] == "- " else item[0].strip()
                yield f".IP {mark} 4"
                words = words[len(item[0]) :]
            else:
                yield ".PP"
            yield inline(words)
        at = end


def code(lines: list[str]) -> Iterator[str]:
    while lines and not lines[-1].strip():
        lines = lines[:-1]
    yield from (".PP", ".RS 4", ".nf")
    yield from (escaped(line) or "\\&" for line in lines)
    yield from (".fi", ".RE")


def table(rows: list[str]) -> Iterator[str]:
    """Each row as a tagged paragraph: the first cell is the tag, the others follow, with their columns' names."""
    cells = [
        [cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", row.strip().strip("|"))] for row in rows
    ]
    head, *body = [row for row in cells if not set("".join(row)) <= set("-:")]
    for tag, *others in body:
        named = zip(head[1:], others, strict=False)
        told = [f"{name}: {cell}" if name and len(others) > 1 else cell for name, cell in named if cell]
        if tag:
            yield ".TP"
            yield inline(tag)
        if told:
            yield inline("; ".join(told))
        elif tag:
            yield "\\&"


def section(page: str, begin: str, end: str = "") -> str:
    """The part of a page below one heading, up to another, or to the next of its level."""
    text = (DOCS / page).read_text(encoding="utf-8")
    level = begin.split(" ")[0]
    rest = text[text.index(f"\n{begin}\n") + len(begin) + 2 :]
    found = re.search(rf"^{re.escape(end)}$" if end else rf"^#{{1,{len(level)}}} ", rest, re.MULTILINE)
    return rest[: found.start()] if found else rest


# -- commands --------------------------------------------------------------------------------------------------------


def commands(names: list[str]) -> Iterator[str]:
    """Every command that can be given, with its arguments, what it does, and its options."""
    for name in names:
        command = load(COMMANDS[name][0])
        if isinstance(command, click.Group):
            context = click.Context(command, info_name=f"loom {name}")
            for word in command.list_commands(context):
                found = command.get_command(context, word)
                assert found is not None
                yield from one_command(found, f"loom {name} {word}")
        else:
            yield from one_command(command, f"loom {name}")


def one_command(command: click.Command, path: str) -> Iterator[str]:
    context = click.Context(command, info_name=path)
    pieces = " ".join(command.collect_usage_pieces(context))
    yield f".SS {escaped(path)} {escaped(pieces)}"
    paragraphs = re.split(r"\n\s*\n", (command.help or "").strip())
    for number, text in enumerate(paragraphs):
        if number:
            yield ".PP"
        yield inline(" ".join(text.split()))
    for parameter in command.params:
        if isinstance(parameter, click.Option) and not parameter.hidden:
            value = "" if parameter.is_flag else f" \\fI{escaped(_metavar(parameter))}\\fP"
            yield ".TP"
            yield ", ".join(f"\\fB{escaped(opt)}\\fP" for opt in parameter.opts) + value
            yield inline(" ".join((parameter.help or "").split())) or "\\&"


def _metavar(option: click.Option) -> str:
    if option.metavar:
        return option.metavar
    return "|".join(option.type.choices) if isinstance(option.type, click.Choice) else option.type.name.upper()


def head(name: str, number: int, says: str) -> Iterator[str]:
    yield '.\\" Made by contrib/man/make.py from the commands and from docs/. Do not edit.'
    yield f'.TH {escaped(name.upper())} {number} "" "loom {VERSION}" "loom manual"'
    yield ".nh"
    yield ".ad l"
    yield ".SH NAME"
    yield f"{escaped(name)} \\- {escaped(says)}"


def loom_1() -> Iterator[str]:
    yield from head("loom", 1, "LLM agents as Unix processes")
    yield ".SH SYNOPSIS"
    yield inline("**loom** [**--home** *DIR*] [**-q**] [**-v**] [**--debug**] *COMMAND* ...")
    yield ".SH DESCRIPTION"
    yield "LLM agents as Unix processes: everything they do lies in plain files and survives \\fBkill \\-9\\fP."
    yield from markdown(section("cli.md", "## Streams and manners", "Options that stand before the command:"))
    yield ".SH OPTIONS"
    for line in OPTIONS.splitlines()[1:]:
        option, _, text = line.strip().partition("  ")
        yield from (".TP", f"\\fB{escaped(option)}\\fP", escaped(text.strip()))
    for title, table_ in GROUPS:
        yield f".SH {escaped(title.upper())}"
        yield from commands(list(table_))
    yield ".SH EXIT STATUS"
    yield from markdown(section("cli.md", "## Exit statuses"))
    yield ".SH ENVIRONMENT"
    yield from markdown(section("cli.md", "## Precedence of settings"))
    yield ".SH SEE ALSO"
    yield "\\fBloom\\-files\\fP(5), \\fBloom\\-supervisor\\fP(8)"


def loom_files_5() -> Iterator[str]:
    yield from head("loom-files", 5, "the files of loom: messages, agents, goals, jobs")
    yield ".SH DESCRIPTION"
    yield "loom keeps its state in directories and plain files, and those files are also its interface."
    for title, page, heading in (
        ("HOME", "protocol.md", "## 1. Home"),
        ("NAMES AND MESSAGES", "protocol.md", "## 2. Names and messages"),
        ("WRITING", "protocol.md", "## 3. Writing so that it survives"),
        ("THE LIFE OF A MESSAGE", "protocol.md", "## 4. The life of a message"),
        ("JOURNALS AND LOGS", "protocol.md", "## 8. Journals and logs"),
        ("RETENTION", "protocol.md", "## 10. Retention"),
        ("SCHEDULES", "schedules.md", "## 1. Definitions"),
        ("SLOTS", "schedules.md", "## 2. Slots"),
        ("SETTINGS", "settings.md", "# Settings"),
    ):
        yield f".SH {title}"
        yield from markdown(section(page, heading) if heading != "# Settings" else _settings())
    yield ".SH SEE ALSO"
    yield "\\fBloom\\fP(1), \\fBloom\\-supervisor\\fP(8)"


def _settings() -> str:
    return (DOCS / "settings.md").read_text(encoding="utf-8").partition("\n")[2]


def loom_supervisor_8() -> Iterator[str]:
    yield from head("loom-supervisor", 8, "runs agents, and loom as a service")
    yield ".SH SYNOPSIS"
    yield "\\fBloom supervisor run\\fP [\\fB\\-\\-on\\-demand\\fP]"
    yield ".SH DESCRIPTION"
    yield "One process starts, watches and stops all agents of a home. It decides nothing about their work."
    yield from markdown(section("protocol.md", "## 7. Processes"))
    yield ".SH WAKING UP"
    yield from markdown(section("protocol.md", "## 6. Waking up"))
    yield ".SH AS A SERVICE"
    yield from markdown((DOCS / "service.md").read_text(encoding="utf-8").partition("\n")[2])
    yield ".SH COMMANDS"
    yield from commands(["supervisor"])
    yield ".SH SEE ALSO"
    yield "\\fBloom\\fP(1), \\fBloom\\-files\\fP(5), \\fBsystemd.service\\fP(5)"


PAGES = {"loom.1": loom_1, "loom-files.5": loom_files_5, "loom-supervisor.8": loom_supervisor_8}


def page(name: str) -> str:
    """The text of one page."""
    return "\n".join(PAGES[name]()) + "\n"


if __name__ == "__main__":
    for name in PAGES:
        (HERE / name).write_text(page(name), encoding="ascii")
