"""What a command says and where: the answer on stdout, everything else on stderr (docs/cli.md).

Text that came from a model, a tool or a file name reaches a terminal without its control characters; a pipe gets
every byte as it is. Nothing else in loom/cli/ writes to the standard streams.
"""

from __future__ import annotations

import errno
import os
import sys

TYPE_CHECKING = False  # see loom/cli/main.py
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

QUIET, NORMAL, VERBOSE = 0, 1, 2
_level = NORMAL

# C0 without newline and tab, DEL and C1; marks that reorder what a person reads; invisible tag characters.
_HIDDEN = (
    (0x00, 0x08),
    (0x0B, 0x1F),
    (0x7F, 0x9F),
    (0x061C, 0x061C),
    (0x200E, 0x200F),
    (0x2028, 0x202E),
    (0x2066, 0x2069),
    (0xE0000, 0xE007F),
)
_table: dict[int, None] = {}
_GAP = "  "
_NARROWEST = 8


class OutputClosed(Exception):
    """Whoever read our stdout has gone: the command ends quietly."""


def set_level(level: int) -> None:
    """How much `note` and `detail` say from now on."""
    global _level
    _level = level


def plain(text: str) -> str:
    """The text without control, reordering and tag characters; newlines and tabs stay."""
    if not _table:
        _table.update(dict.fromkeys(code for first, last in _HIDDEN for code in range(first, last + 1)))
    return text.translate(_table)


def escaped(text: str) -> str:
    r"""One line in which nothing hides: control, reordering and other unprintable characters as `\x1b`, `\n` and so on.

    For names of files, which may hold anything, where a line is an answer for programs too.
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def on_terminal() -> bool:
    """Whether a person reads our stdout."""
    return sys.stdout is not None and sys.stdout.isatty()


def write(text: str) -> None:
    """Text on stdout, at once: as it is into a pipe, made plain for a terminal.

    Raises OutputClosed when the reader has gone and OSError when the disk refuses.
    """
    if sys.stdout is None:
        raise OSError(errno.EBADF, "stdout is closed")
    data = (plain(text) if on_terminal() else text).encode("utf-8", "replace")
    try:
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
    except OSError as error:
        drop_stdout()  # or the interpreter would try once more at its end
        if error.errno == errno.EPIPE:
            raise OutputClosed from None
        raise


def line(text: str = "") -> None:
    """One line on stdout."""
    write(f"{text}\n")


def json_line(value: dict[str, Any]) -> None:
    """One JSON object on a line of stdout."""
    from loom.wire.jsontext import dumps  # here, because help and version need no JSON

    line(dumps(value).decode())


def table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> None:
    """Columns as wide as their widest cell; nothing but the head when there are no rows.

    On a terminal a line is a line: the widest columns give way, and what is cut ends in `…`.
    """
    cells = [head, *[tuple(map(_one_line, row)) for row in rows]]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    if columns := _columns():
        widths = narrowed(widths, columns - len(_GAP) * (len(widths) - 1))
        cells = [tuple(map(_cut, row, widths)) for row in cells]
    form = _GAP.join(f"{{:<{width}}}" for width in widths).format
    write("".join([f"{form(*row).rstrip()}\n" for row in cells]))  # at once: there may be ten thousand


def narrowed(widths: Sequence[int], room: int) -> list[int]:
    """Widths that need no more than `room` together, the widest made narrower first; none below a few characters."""
    found = list(widths)
    while sum(found) > room and max(found) > _NARROWEST:
        widest = found.index(max(found))
        found[widest] -= 1
    return found


def _one_line(text: str) -> str:
    if text.isprintable() and " " not in text:
        return text
    return " ".join(plain(text).split())


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"


def _columns() -> int:
    """How wide the terminal on stdout is; 0: there is none, or it does not say."""
    try:
        return os.get_terminal_size(1).columns if on_terminal() else 0
    except OSError:
        return 0


def error(text: str) -> None:
    """One line on stderr, whatever the level."""
    _say(f"loom: {' '.join(text.split())}\n")


def note(text: str) -> None:
    """One line on stderr for a person; not with -q."""
    if _level >= NORMAL:
        _say(f"loom: {' '.join(text.split())}\n")


def detail(text: str) -> None:
    """One line on stderr, only with -v."""
    if _level >= VERBOSE:
        _say(f"loom: {' '.join(text.split())}\n")


def aside(text: str) -> None:
    """Text on stderr that is no answer and no message of ours: a prompt, what a model says between tool calls."""
    if _level >= NORMAL:
        _say(text)


def raw_error(text: str) -> None:
    """Lines on stderr as they are: a traceback."""
    _say(text)


def _say(text: str) -> None:
    if sys.stderr is None:
        return
    try:
        sys.stderr.write(plain(text).encode("utf-8", "replace").decode("utf-8"))
        sys.stderr.flush()
    except (OSError, ValueError, UnicodeError):
        pass  # nobody is there to be told


def drop_stdout() -> None:
    """Let what the interpreter still flushes at its end go nowhere."""
    try:
        sink = os.open(os.devnull, os.O_WRONLY)
        os.dup2(sink, 1)
        os.close(sink)
    except OSError:
        pass
